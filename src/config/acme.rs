//! The keys of `[tls.acme]`: for which names to order a certificate, from whom, and how to prove them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::problem::{Origin, Problem, Sources};
use super::reader::Reader;
use super::source::Node;
use super::values::{self, Converted, Fault};
use super::{Listener, Tls};
use crate::acme::{Challenge, LETS_ENCRYPT, LETS_ENCRYPT_STAGING, MAX_NAMES, Pace, Settings};
use crate::records::webhook;

/// Keys that mean nothing without names.
const OTHERS: [&str; 4] = [
    "tls.acme.email",
    "tls.acme.directory",
    "tls.acme.ca_file",
    "tls.acme.challenge",
];

/// Whether somebody wants a certificate to be ordered.
pub(super) fn is_wanted(r: &Reader<'_>) -> bool {
    r.is_filled("tls.acme.names")
}

pub(super) fn read_acme(r: &mut Reader<'_>, sources: &Sources) -> Option<Option<Settings>> {
    let names = r.key(
        "tls.acme.names",
        "[]",
        r#"DNS names of this server such as "turn.example.org""#,
        names,
    );
    let email = r.key(
        "tls.acme.email",
        r#""""#,
        r#"an address such as "admin@example.org", or "" for none"#,
        email,
    );
    let directory = r.key(
        "tls.acme.directory",
        r#""https://acme-v02.api.letsencrypt.org/directory""#,
        "the https: URL of an ACME directory",
        directory,
    );
    let staging = r.key(
        "tls.acme.staging",
        "false",
        "true or false",
        values::boolean,
    );
    let authorities = r.key(
        "tls.acme.ca_file",
        r#""""#,
        "the path of a PEM file",
        values::text,
    );
    let challenge = r.key(
        "tls.acme.challenge",
        r#""auto""#,
        r#""auto", "tls-alpn-01" or "http-01""#,
        values::one_of(&[
            ("auto", None),
            ("tls-alpn-01", Some(Challenge::TlsAlpn01)),
            ("http-01", Some(Challenge::Http01)),
        ]),
    );
    let (names, email, directory) = (names?, email?, directory?);
    let (staging, authorities, challenge) = (staging?, authorities?, challenge?);
    if names.is_empty() {
        let mut given = OTHERS.into_iter().filter(|key| r.is_changed(key));
        if let Some(key) = given.next().or(staging.then_some("tls.acme.staging")) {
            r.problem(
                key,
                "given, and tls.acme.names is empty, so nothing is ordered",
                "name what the certificate is for: names = [\"turn.example.org\"]",
            );
            return None;
        }
        return Some(None);
    }
    let custom = directory != LETS_ENCRYPT;
    if staging && custom {
        r.problem(
            "tls.acme.staging",
            "true, and tls.acme.directory names another authority",
            "keep one of them: staging is an environment of Let's Encrypt",
        );
        return None;
    }
    if !custom {
        check_public(r, &names, email.as_deref())?;
    }
    let path = Some(Path::new(&authorities)).filter(|path| !path.as_os_str().is_empty());
    let roots = match webhook::roots(path) {
        Ok(roots) => roots,
        Err(found) => {
            r.problem(
                "tls.acme.ca_file",
                found,
                "install ca-certificates, or name a PEM file of the authorities that vouch for the directory",
            );
            return None;
        }
    };
    Some(Some(Settings {
        names,
        email,
        directory: match staging {
            true => LETS_ENCRYPT_STAGING.to_owned(),
            false => directory,
        },
        roots: Arc::new(roots),
        challenges: challenge.into_iter().collect(),
        state: sources.state_directory().join("acme"),
        pace: Pace::default(),
    }))
}

/// What a public authority would refuse, at the cost of one of the few orders that it takes.
fn check_public(r: &mut Reader<'_>, names: &[String], email: Option<&str>) -> Option<()> {
    // RFC 2606, RFC 6761, RFC 6762, RFC 8375, RFC 9476.
    const PRIVATE: [&str; 9] = [
        "localhost",
        "local",
        "test",
        "example",
        "invalid",
        "internal",
        "lan",
        "arpa",
        "onion",
    ];
    let private = |name: &&String| match name.rsplit_once('.') {
        None => true,
        Some((_, last)) => PRIVATE.contains(&last),
    };
    if let Some(name) = names.iter().find(private) {
        r.problem(
            "tls.acme.names",
            format!("found {name:?}, for which no public authority issues a certificate"),
            "use a name in the public DNS, or name your own authority in tls.acme.directory",
        );
        return None;
    }
    let documentation = ["example.com", "example.net", "example.org"];
    if let Some(email) = email
        && documentation
            .iter()
            .any(|domain| email.ends_with(&format!("@{domain}")))
    {
        r.problem(
            "tls.acme.email",
            format!("found {email:?}, which the authority refuses"),
            "write an address that is read, or leave it empty",
        );
        return None;
    }
    Some(())
}

/// Which challenges can be answered on `listeners`; problems and warnings where that is none, or not where authorities
/// look.
pub(super) fn choose_challenges(
    r: &mut Reader<'_>,
    tls: Option<Option<Tls>>,
    listeners: Option<&[(Origin, Listener)]>,
) -> Option<Option<Tls>> {
    let (Some(Some(Tls::Acme(mut settings))), Some(listeners)) = (tls.clone(), listeners) else {
        return tls;
    };
    let speaks = |challenge: Challenge| {
        (listeners.iter().map(|(_, listener)| listener)).filter(move |one| match challenge {
            Challenge::TlsAlpn01 => one.streams.tls,
            Challenge::Http01 => one.streams.http,
        })
    };
    let found = |challenge: Challenge| speaks(challenge).next().is_some();
    let exposed =
        |challenge: Challenge| speaks(challenge).any(|one| one.address.port() == challenge.port());
    let wanted = settings.challenges.first().copied();
    let mut usable: Vec<Challenge> = [Challenge::TlsAlpn01, Challenge::Http01]
        .into_iter()
        .filter(|one| wanted.is_none_or(|wanted| wanted == *one) && found(*one))
        .collect();
    if usable.is_empty() {
        let (found, remedy) = match wanted {
            Some(Challenge::TlsAlpn01) => (
                "\"tls-alpn-01\", and no [[listen]] names \"tls\"",
                "add \"tls\" to the listen.protocols of port 443",
            ),
            Some(Challenge::Http01) => (
                "\"http-01\", and no [[listen]] names \"http\"",
                "add a [[listen]] with address = \"[::]:80\" and protocols = [\"http\"]",
            ),
            None => (
                "no [[listen]] names \"tls\" or \"http\", so nobody can see that the names lead here",
                "add \"tls\" to the listen.protocols of port 443, or a [[listen]] of port 80 with protocols = [\"http\"]",
            ),
        };
        r.problem("tls.acme.challenge", found, remedy);
        return None;
    }
    if usable.iter().any(|one| exposed(*one)) {
        usable.retain(|one| exposed(*one));
    } else {
        let ports: Vec<String> = usable
            .iter()
            .map(|one| format!("{} ({})", one.port(), one.label()))
            .collect();
        r.warn(Problem {
            origin: r.origin("tls.acme.names"),
            key: "tls.acme.names".into(),
            found: format!(
                "authorities look at port {}, where no [[listen]] is",
                ports.join(" or ")
            ),
            remedy:
                "fine where a NAT or a proxy forwards that port to such a listener; else add one"
                    .into(),
        });
    }
    settings.challenges = usable;
    Some(Some(Tls::Acme(settings)))
}

fn names(node: &Node) -> Converted<Vec<String>> {
    let names = values::list(values::parsed(name))(node)?;
    let again = (names.iter().enumerate())
        .find(|(at, name)| names.iter().take(*at).any(|one| one == *name));
    if let Some((_, name)) = again {
        return Err(Fault::with(
            node,
            format!("{name:?} occurs twice"),
            "keep one of them",
        ));
    }
    if names.len() > MAX_NAMES {
        return Err(Fault::with(
            node,
            format!("{} names", names.len()),
            format!("no authority takes more than {MAX_NAMES}"),
        ));
    }
    Ok(names)
}

/// A DNS name that a certificate can be issued for, in lower case (RFC 1123 §2.1).
fn name(text: &str) -> Result<String, String> {
    let literal = text.trim_start_matches('[').trim_end_matches(']');
    if literal.parse::<IpAddr>().is_ok() {
        return Err(
            "write a DNS name that leads to this address: certificates are ordered for names"
                .into(),
        );
    }
    if text.contains('*') {
        return Err(
            "name each host: a wildcard is proven in DNS, which turnix does not write to".into(),
        );
    }
    if !text.is_ascii() {
        return Err("write it as DNS has it, in ASCII: \"xn--…\"".into());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 253
        && text.split('.').all(label)
        && !text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(
            "write a DNS name such as \"turn.example.org\", without scheme, port or dot at the end"
                .into(),
        )
    }
}

fn email(node: &Node) -> Converted<Option<String>> {
    let text = values::text(node)?;
    let text = text.strip_prefix("mailto:").unwrap_or(&text);
    if text.is_empty() {
        return Ok(None);
    }
    let fine = |c: char| c.is_ascii_graphic() && !"?,;<>&#%\"".contains(c);
    match text.split_once('@') {
        Some((user, host)) if !user.is_empty() && name(host).is_ok() && text.chars().all(fine) => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(Fault::of(node)),
    }
}

fn directory(node: &Node) -> Converted<String> {
    let text = values::text(node)?;
    let uri: axum::http::Uri = text.parse().map_err(|_| Fault::of(node))?;
    let plain = uri
        .authority()
        .is_some_and(|authority| !authority.as_str().contains('@'));
    match uri.scheme_str() {
        Some("https") if plain => Ok(text),
        Some("http") => Err(Fault::with(
            node,
            format!("found {}", node.shown()),
            "use https: (RFC 8555 §6.1)",
        )),
        _ => Err(Fault::of(node)),
    }
}
