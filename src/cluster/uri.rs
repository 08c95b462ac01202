//! `turn:` and `turns:` URIs (RFC 7065), `stun:` and `stuns:` URIs (RFC 7064).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::base::Transport;

/// What a `turn:` or `turns:` URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnUri {
    /// A host name, or an address without brackets.
    pub host: String,
    /// The port; 3478, or 5349 for `turns:`, where the URI has none.
    pub port: u16,
    /// How to get there; UDP, or TLS for `turns:`, where the URI does not say.
    pub transport: Transport,
    /// What of this the URI itself says.
    pub says: Says,
}

/// What a URI names, rather than leaving it to records and defaults (RFC 5928 §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Says {
    /// A port.
    pub port: bool,
    /// A transport.
    pub transport: bool,
}

/// Why a text is no URI of a TURN server, or one that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError(String);

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UriError {}

impl FromStr for TurnUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        const FORM: &str = "expected turn:host[:port][?transport=udp|tcp] or turns:host[:port]";
        let (secure, rest) = match scheme(uri) {
            Some(("turn", rest)) => (false, rest),
            Some(("turns", rest)) => (true, rest),
            _ => return Err(UriError(FORM.into())),
        };
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let transport = match (query, secure) {
            (None | Some("transport=udp"), false) => Transport::Udp,
            (Some("transport=tcp"), false) => Transport::Tcp,
            (None | Some("transport=tcp"), true) => Transport::Tls,
            (Some("transport=udp"), true) => {
                return Err(UriError(
                    "turns: over UDP is DTLS, which this client does not speak; use transport=tcp"
                        .into(),
                ));
            }
            (Some(query), _) => {
                return Err(UriError(format!("{query:?} is no transport; {FORM}")));
            }
        };
        let (host, port) = host_and_port(authority, FORM)?;
        Ok(Self {
            host,
            port: port.unwrap_or(default_port(secure)),
            transport,
            says: Says {
                port: port.is_some(),
                transport: query.is_some(),
            },
        })
    }
}

/// What any URI of an ICE server names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceUri {
    /// Whether it is asked to relay: `turn:`, `turns:`.
    pub relays: bool,
    /// Where it is. `stun:` is UDP, `stuns:` TLS.
    pub server: TurnUri,
}

impl FromStr for IceUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        const FORM: &str = "expected stun:host[:port], stuns:host[:port], turn:host[:port][?transport=udp|tcp] or \
                            turns:host[:port]";
        let (secure, authority) = match scheme(uri) {
            Some(("stun", rest)) => (false, rest),
            Some(("stuns", rest)) => (true, rest),
            Some(("turn" | "turns", _)) => {
                return Ok(Self {
                    relays: true,
                    server: uri.parse()?,
                });
            }
            _ => return Err(UriError(FORM.into())),
        };
        if let Some((_, query)) = authority.split_once('?') {
            return Err(UriError(format!(
                "stun: and stuns: take no {query:?}: stun: is UDP, stuns: TLS"
            )));
        }
        let (host, port) = host_and_port(authority, FORM)?;
        let transport = if secure {
            Transport::Tls
        } else {
            Transport::Udp
        };
        Ok(Self {
            relays: false,
            server: TurnUri {
                host,
                port: port.unwrap_or(default_port(secure)),
                transport,
                says: Says {
                    port: port.is_some(),
                    transport: true,
                },
            },
        })
    }
}

/// The port where neither a URI nor a record names one.
const fn default_port(secure: bool) -> u16 {
    if secure { 5349 } else { 3478 }
}

/// The scheme, among those that there are and in lower case, and what follows it.
fn scheme(uri: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = uri.split_once(':')?;
    let known = ["turn", "turns", "stun", "stuns"];
    let scheme = (known.into_iter()).find(|known| known.eq_ignore_ascii_case(scheme))?;
    Some((scheme, rest))
}

fn host_and_port(authority: &str, form: &str) -> Result<(String, Option<u16>), UriError> {
    let wrong = |text: String| Err(UriError(text));
    // A bare IPv6 address has colons of its own, which is why URIs put it in brackets.
    let (host, port) = match authority
        .strip_prefix('[')
        .and_then(|v6| v6.split_once(']'))
    {
        Some((host, port)) => (host, port),
        None => match authority.split_once(':') {
            Some((host, _)) => (host, &authority[host.len()..]),
            None => (authority, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        Some(port) => match port.parse() {
            Ok(port) => Some(port),
            Err(_) => return wrong(format!("{port:?} is no port; {form}")),
        },
        None if port.is_empty() => None,
        None => return wrong(form.into()),
    };
    if host.is_empty() || host.contains(['/', '@']) {
        return wrong(form.into());
    }
    if authority.starts_with('[') && host.parse::<IpAddr>().is_err() {
        return wrong(format!("{host:?} is no IPv6 address"));
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_rfc_7065() {
        for (uri, host, port, transport) in [
            ("turn:example.org", "example.org", 3478, Transport::Udp),
            ("turns:example.org", "example.org", 5349, Transport::Tls),
            (
                "turn:192.0.2.1:443?transport=tcp",
                "192.0.2.1",
                443,
                Transport::Tcp,
            ),
            (
                "turns:[2001:db8::1]:443?transport=tcp",
                "2001:db8::1",
                443,
                Transport::Tls,
            ),
            ("TURN:[::1]", "::1", 3478, Transport::Udp),
        ] {
            let parsed: TurnUri = uri.parse().unwrap();
            let host = host.to_owned();
            assert_eq!(
                parsed,
                TurnUri {
                    host,
                    port,
                    transport,
                    says: parsed.says,
                },
                "{uri}"
            );
        }
    }

    #[test]
    fn what_a_uri_says_itself() {
        for (uri, port, transport) in [
            ("turn:a", false, false),
            ("turn:a:3478", true, false),
            ("turn:a?transport=udp", false, true),
            ("turns:[::1]:5349?transport=tcp", true, true),
            ("stun:a", false, true),
            ("stuns:a:443", true, true),
        ] {
            let parsed: IceUri = uri.parse().unwrap();
            assert_eq!(parsed.server.says, Says { port, transport }, "{uri}");
        }
    }

    #[test]
    fn what_is_no_turn_uri() {
        for uri in [
            "",
            "example.org",
            "stun:example.org",
            "turn:",
            "turn:a:b",
            "turn:a?transport=sctp",
            "turns:a?transport=udp",
            "turn://a",
            "turn:[::1",
            "turn:[x]:1",
            "turn:[::1]x",
        ] {
            assert!(uri.parse::<TurnUri>().is_err(), "{uri}");
        }
    }

    #[test]
    fn the_forms_of_rfc_7064() {
        for (uri, relays, port, transport) in [
            ("stun:example.org", false, 3478, Transport::Udp),
            ("STUN:example.org:19302", false, 19302, Transport::Udp),
            ("stuns:example.org", false, 5349, Transport::Tls),
            ("turn:example.org?transport=tcp", true, 3478, Transport::Tcp),
        ] {
            let parsed: IceUri = uri.parse().unwrap();
            let server = TurnUri {
                host: "example.org".into(),
                port,
                transport,
                says: parsed.server.says,
            };
            assert_eq!(parsed, IceUri { relays, server }, "{uri}");
        }
        for uri in [
            "stun:example.org?transport=udp",
            "stun:",
            "stunt:example.org",
            "example.org:3478",
            "turn:",
        ] {
            assert!(uri.parse::<IceUri>().is_err(), "{uri}");
        }
    }
}
