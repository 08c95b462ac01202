//! What a quick start tells the person who ran it.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::Value;

use crate::base::{Secret, printable};
use crate::config::Listener;
use crate::external::Seen;

/// A server that has just started, and how to use it.
#[derive(Clone, Debug)]
pub struct Banner {
    /// The version of turnix.
    pub version: &'static str,
    /// Listeners as bound.
    pub listeners: Vec<Listener>,
    /// Local relay addresses and how clients see them; may be empty.
    pub relays: Vec<Seen>,
    /// Ports of relayed addresses.
    pub ports: RangeInclusive<u16>,
    /// URL of the admin listener, without a path.
    pub admin: Option<String>,
    /// The `iceServers` array.
    pub ice_servers: Secret<String>,
    /// In the order to try them.
    pub urls: Vec<String>,
    /// The link to the test page, credential in its fragment; `None` without a listener that speaks HTTP.
    pub test_page: Option<Secret<String>>,
    /// Where the state lives.
    pub state: PathBuf,
    /// What else people should know.
    pub notes: Vec<String>,
    /// Whether to highlight for a terminal.
    pub terminal: bool,
}

impl Banner {
    /// `ice_servers` in the form to paste.
    pub fn paste(ice_servers: &Value) -> Secret<String> {
        let text = Secret::new(format!("{ice_servers:#}"));
        Secret::new(printable::json(text.expose()).into_owned())
    }
}

/// Writes the banner: plain text, headings in bold on a terminal. Shows the credential, which is its purpose.
pub fn banner(about: &Banner) -> String {
    let heading = |text: &str| {
        if about.terminal {
            format!("\x1b[1m{text}\x1b[0m\n")
        } else {
            format!("{text}\n")
        }
    };
    let mut text = heading(&format!("turnix {} is serving", about.version));
    for (index, listener) in about.listeners.iter().enumerate() {
        let label = if index == 0 { "listening on" } else { "" };
        let address = listener.address.to_string();
        text += &format!("  {label:<14}{address:<22}{}\n", spoken(listener));
    }
    let (first, last) = (about.ports.start(), about.ports.end());
    for (index, relay) in about.relays.iter().enumerate() {
        let label = if index == 0 { "relaying from" } else { "" };
        let seen = if relay.local == relay.external {
            relay.external.to_string()
        } else {
            let source = relay.source.described();
            format!("{}, seen as {} ({source})", relay.local, relay.external)
        };
        text += &format!("  {label:<14}{seen}, UDP ports {first}-{last}\n");
    }
    if let Some(url) = &about.admin {
        text += &format!("  {:<14}{url}/\n", "dashboard");
        text += &format!("  {:<14}{url}/metrics\n", "metrics");
    }
    text += &format!("  {:<14}{}\n", "state", about.state.display());
    for note in &about.notes {
        text += &format!("  {:<14}{note}\n", "note");
    }
    text += "\n";
    text += &heading("iceServers, for new RTCPeerConnection({ iceServers: … })");
    text += about.ice_servers.expose();
    text += "\n\n";
    text += &heading("URLs, in the order to try them");
    for url in &about.urls {
        text += &format!("  {url}\n");
    }
    if let Some(page) = &about.test_page {
        text += "\n";
        text += &heading("Test it in a browser (the link holds the credential)");
        text += &format!("  {}\n", page.expose());
    }
    text += "\nCredentials that end by themselves: turnix credentials --user NAME --ttl 1h\n";
    text
}

fn spoken(listener: &Listener) -> String {
    let streams = listener.streams;
    [
        (listener.udp, "UDP"),
        (streams.tcp, "TCP"),
        (streams.tls, "TLS"),
        (listener.dtls, "DTLS"),
        (streams.http, "HTTP"),
        (streams.http && streams.tls, "HTTPS"),
    ]
    .into_iter()
    .filter_map(|(speaks, name)| speaks.then_some(name))
    .collect::<Vec<_>>()
    .join(" ")
}
