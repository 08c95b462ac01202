//! `turnix` without a configuration: chooses credentials, certificate and ports, never an open relay.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use super::credentials::decides_access;
use super::holder;
use super::state::{self, State};
use crate::base::Clock;
use crate::config::{Config, Listener, Problem, Problems, Sources};
use crate::stream::{Protocols, Sharing};

/// What the quick start chose.
#[derive(Debug)]
pub struct QuickStart {
    /// The configuration, environment and `--set` included.
    pub config: Config,
    /// Where it came from, for reloads.
    pub sources: Sources,
    /// What it keeps from one run to the next.
    pub state: State,
    /// What people should know about the choices.
    pub notes: Vec<String>,
}

/// Finds or makes the state, chooses ports.
///
/// # Errors
/// State that cannot be used, no free port, a bad environment or `--set`.
pub fn prepare(mut sources: Sources) -> anyhow::Result<QuickStart> {
    let state = state::prepare(&sources, Clock.now().unix_secs())?;
    let (listeners, mut notes) = choose_listeners(&sources)?;
    if listeners.iter().any(|one| one.streams.tls) && !sources.overrides("tls") {
        notes.push(
            "The certificate is self-signed: browsers take turns: URLs once there is one that they trust, \
             in tls.certificate and tls.key."
                .into(),
        );
    }
    sources.base = Some(describe(&sources, &state, &listeners));
    finish(sources, state, notes)
}

/// Goes on with what the running server chose, whose ports are not free.
///
/// # Errors
/// As [`prepare`].
pub fn go_on(mut sources: Sources) -> anyhow::Result<QuickStart> {
    let state = state::prepare(&sources, Clock.now().unix_secs())?;
    let Some(chosen) = state::saved_configuration(&state) else {
        return prepare(sources);
    };
    sources.base = Some(chosen);
    finish(sources, state, Vec::new())
}

fn finish(sources: Sources, state: State, notes: Vec<String>) -> anyhow::Result<QuickStart> {
    Ok(QuickStart {
        config: Config::load(&sources)?,
        sources,
        state,
        notes,
    })
}

impl QuickStart {
    /// Keeps the choices for `turnix credentials`; called once they have proved good, lest a second server that finds
    /// every port taken overwrites what the first one chose.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let base = self.sources.base.as_deref().unwrap_or_default();
        state::save_configuration(&self.state, base)
    }
}

/// The choices as a configuration file, less what environment and `--set` decide.
fn describe(sources: &Sources, state: &State, listeners: &[Listener]) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = String::from("# Written by the quick start of turnix, anew at every start.\n");
    if !decides_access(sources) {
        text += "\n[auth]\n";
        text += &format!("secret_files = [{}]\n", path(&state.secret_file));
        // A preset has users of its own.
        if !sources.overrides("preset") {
            let (name, password) = &state.user;
            let (name, password) = (quoted(name), quoted(password.expose()));
            text += &format!("users = {{ {name} = {password} }}\n");
        }
    }
    let needs_tls =
        sources.overrides("listen") || listeners.iter().any(|listener| listener.streams.tls);
    if needs_tls && !sources.overrides("tls") {
        let file = path(&state.certificate);
        text += &format!("\n[tls]\ncertificate = {file}\nkey = {file}\n");
    }
    for listener in listeners {
        let protocols: Vec<&str> = [
            (listener.udp, "\"udp\""),
            (listener.streams.tcp, "\"tcp\""),
            (listener.streams.tls, "\"tls\""),
            (listener.streams.http, "\"http\""),
            (listener.dtls, "\"dtls\""),
        ]
        .into_iter()
        .filter_map(|(speaks, name)| speaks.then_some(name))
        .collect();
        text += &format!(
            "\n[[listen]]\naddress = \"{}\"\nprotocols = [{}]\n",
            listener.address,
            protocols.join(", ")
        );
    }
    text
}

/// Whether a port may be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Free,
    Forbidden,
    Taken,
}

fn port(bound: io::Result<()>) -> Port {
    match bound {
        Ok(()) => Port::Free,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Port::Forbidden,
        Err(_) => Port::Taken,
    }
}

/// 3478, 443 and 80, or what stands in for them; none if environment or `--set` name listeners.
fn choose_listeners(sources: &Sources) -> Result<(Vec<Listener>, Vec<String>), Problems> {
    let mut notes = Vec::new();
    if sources.overrides("listen") {
        return Ok((Vec::new(), notes));
    }
    let wildcard = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let try_port = |number: u16| {
        let address = SocketAddr::new(wildcard, number);
        let udp = port(UdpSocket::bind(address).map(drop));
        let tcp = port(TcpListener::bind(address).map(drop));
        (udp, tcp)
    };
    let forbidden = [443, 80].into_iter().any(|number| {
        let (udp, tcp) = try_port(number);
        udp == Port::Forbidden || tcp == Port::Forbidden
    });
    let numbers = if forbidden {
        notes.push(
            "Ports 443 and 80 may not be bound by this user: listening on 5349 and 8443 instead. \
             To allow them: sudo setcap cap_net_bind_service=+ep \"$(command -v turnix)\""
                .into(),
        );
        [3478, 5349, 8443]
    } else {
        [3478, 443, 80]
    };
    let mut listeners = Vec::new();
    for number in numbers {
        let (udp, tcp) = try_port(number);
        for (name, state) in [("UDP", udp), ("TCP", tcp)] {
            if state != Port::Free {
                let holder = holder::of_port(name == "UDP", number)
                    .map_or_else(|| "another program".to_owned(), |one| one.to_string());
                notes.push(format!(
                    "Port {number} ({name}) is in use by {holder}: left out."
                ));
            }
        }
        let streams = tcp == Port::Free;
        let listener = Listener {
            address: SocketAddr::new(wildcard, number),
            udp: udp == Port::Free,
            streams: Protocols {
                tcp: streams,
                // Clients expect no TLS on port 80.
                tls: streams && number != 80,
                http: streams,
            },
            sharing: Sharing::default(),
            dtls: false,
        };
        if listener.udp || listener.has_streams() {
            listeners.push(listener);
        }
    }
    if listeners.is_empty() {
        return Err(Problem::host(
            "ports",
            notes.join(" "),
            "stop the other server, or choose a port: --set listen=[::]:3479",
        )
        .into());
    }
    Ok((listeners, notes))
}
