//! What STUN servers see of a relay address (RFC 8489 §6.3, Binding).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

use super::{Trouble, is_credible};
use crate::base::{Clock, Family, Secret, Transport};
use crate::client::{Client, Event, Failure, Settings, Step};

/// How long a server may take, the resolution of its name included: three requests on the way.
const PATIENCE: Duration = Duration::from_millis(2200);

/// What is read of an answer.
const ANSWER_BYTES: usize = 2048;

/// The port where none is written (RFC 8489 §18.6).
const PORT: u16 = 3478;

/// A server as `host:port`, from `stun.example.org`, `192.0.2.1:19302`, `[2001:db8::1]:3478`, with or without `stun:`.
///
/// # Errors
/// What would do.
pub fn server(text: &str) -> Result<String, String> {
    const WANTED: &str = "write a host, and a port unless it is 3478, such as \"stun.example.org:19302\" or \"192.0.2.1\"";
    let text = text.strip_prefix("stun:").unwrap_or(text);
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT).to_string());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| WANTED)?),
        None => (text, PORT),
    };
    let is_name = !host.is_empty()
        && host.len() <= 253
        && (host.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name && port != 0 {
        Ok(format!("{host}:{port}"))
    } else {
        Err(WANTED.into())
    }
}

/// What all of `servers` see of `local`: two answers or more, which say the same.
///
/// # Errors
/// Who did not answer, or that they disagree.
pub(super) async fn agree(servers: &[String], local: IpAddr) -> Result<IpAddr, Trouble> {
    let mut asked = tokio::task::JoinSet::new();
    for (index, server) in servers.iter().enumerate() {
        let server = server.clone();
        asked.spawn(async move {
            let answer = timeout(PATIENCE, ask(&server, local)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("{server} does not answer")));
            (index, server, answer)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_unstable_by_key(|(index, ..)| *index);
    let sees: Vec<(&str, IpAddr)> = (answers.iter())
        .filter_map(|(_, server, answer)| Some((server.as_str(), *answer.as_ref().ok()?)))
        .collect();
    let trouble = |found: String, remedy: &str| Trouble {
        key: "relay.stun_servers",
        found: format!("about {local}: {found}"),
        remedy: remedy.to_owned(),
    };
    let silent: Vec<&str> = (answers.iter())
        .filter_map(|(.., answer)| answer.as_ref().err())
        .map(String::as_str)
        .collect();
    match sees[..] {
        [] => Err(trouble(
            silent.join("; "),
            "name servers outside this network that answer over UDP",
        )),
        [(server, external)] => Err(trouble(
            format!(
                "{}, and {server} alone, which sees {external}, is not believed",
                silent.join("; ")
            ),
            "name a second server that answers",
        )),
        [(_, first), ..] if sees.iter().all(|(_, other)| *other == first) => Ok(first),
        _ => {
            let sees: Vec<String> = (sees.iter())
                .map(|(server, external)| format!("{server} sees {external}"))
                .collect();
            Err(trouble(
                format!("{}: neither is believed", sees.join(", ")),
                "where the NAT has several addresses, write the one that leads here in relay.external_address",
            ))
        }
    }
}

/// What `server`, `host:port`, sees of `local`.
async fn ask(server: &str, local: IpAddr) -> Result<IpAddr, String> {
    let family = Family::of(local);
    let mut addresses = (lookup_host(server).await)
        .map_err(|error| format!("{server} cannot be resolved: {error}"))?;
    let address = addresses
        .find(|address| Family::of(address.ip()) == family)
        .ok_or_else(|| format!("{server} has no {} address", family.label()))?;
    let mapped = (binding(address, local).await)
        .map_err(|error| format!("{server} does not answer: {error}"))?
        .to_canonical();
    if mapped == local {
        Err(format!(
            "{server} sees the address as it is: it is in the same network, ask one outside"
        ))
    } else if is_credible(mapped, local) {
        Ok(mapped)
    } else {
        Err(format!("{server} sees {mapped}, which is not public"))
    }
}

/// Asks from `local` itself: another address might leave through another NAT.
async fn binding(server: SocketAddr, local: IpAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((local, 0)).await?;
    // Nobody else is heard from now on.
    socket.connect(server).await?;
    let settings = Settings {
        username: String::new(),
        password: Secret::new(String::new()),
        transport: Transport::Udp,
        family: None,
        lifetime_secs: None,
    };
    let mut client = Client::new(settings, Clock.now(), rand::random());
    client.begin(Clock.now(), Step::Binding);
    let mut answer = [0; ANSWER_BYTES];
    loop {
        while let Some(event) = client.poll_event() {
            match event {
                Event::Mapped { mapped, .. } => return Ok(mapped.ip()),
                Event::Failed(_, Failure::Refused(code)) => {
                    return Err(io::Error::other(format!("it refuses with {code}")));
                }
                Event::Failed(..) => return Err(io::ErrorKind::TimedOut.into()),
                _ => {}
            }
        }
        while let Some(request) = client.poll_transmit() {
            socket.send(&request).await?;
        }
        let wait = client.poll_timeout();
        let received = tokio::select! {
            received = socket.recv(&mut answer) => Some(received?),
            () = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            } => None,
        };
        match received {
            Some(length) => {
                client.handle_input(Clock.now(), answer.get(..length).unwrap_or_default());
            }
            None => client.handle_timeout(Clock.now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::server;

    #[test]
    fn servers_are_written_in_many_ways() {
        for (text, read) in [
            ("stun.example.org", "stun.example.org:3478"),
            ("stun:stun.example.org:19302", "stun.example.org:19302"),
            ("192.0.2.1", "192.0.2.1:3478"),
            ("2001:db8::1", "[2001:db8::1]:3478"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
        ] {
            assert_eq!(server(text).as_deref(), Ok(read));
        }
        for text in ["", ":3478", "a b", "host:port", "host:0", "http://host"] {
            assert!(server(text).is_err(), "{text}");
        }
    }
}
