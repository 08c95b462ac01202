//! The keys of `[records]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;

use super::reader::Reader;
use super::source::Node;
use super::values::{self, Converted, Fault};
use crate::base::Secret;
use crate::records::{Settings, webhook};

/// The longest time between the records of one allocation.
const LONGEST_INTERIM: Duration = Duration::from_secs(86_400);

/// Shorter secrets can be tried out by whoever sees one request.
const SECRET_BYTES: usize = 16;

pub(super) fn read_records(r: &mut Reader<'_>) -> Option<Settings> {
    let file = r.key(
        "records.file",
        r#""""#,
        r#"the path of a file to append to, or "" for none"#,
        file,
    );
    let interim = r.key(
        "records.interim",
        r#""15m""#,
        r#"a duration from "1s" to "24h", or "0" for records at the end only"#,
        |node: &Node| match values::parsed(values::duration)(node)? {
            every if every.is_zero() => Ok(every),
            every if (Duration::from_secs(1)..=LONGEST_INTERIM).contains(&every) => Ok(every),
            _ => Err(Fault::of(node)),
        },
    );
    let url = r.key(
        "records.webhook",
        r#""""#,
        r#"a URL such as "https://billing.example.org/turn", or "" for none"#,
        url,
    );
    let secret = r.key(
        "records.webhook_secret",
        r#""""#,
        "a text of 16 characters or more",
        secret,
    );
    let authorities = r.key(
        "records.webhook_ca",
        r#""""#,
        r#"the path of a PEM file, or "" for the authorities that this host trusts"#,
        values::text,
    );
    let (url, secret, authorities) = (url?, secret?, authorities?);
    let webhook = match (url, secret) {
        (None, None) => None,
        (Some(url), Some(secret)) => Some(webhook_settings(r, url, secret, &authorities)?),
        (Some(_), None) => {
            r.problem(
                "records.webhook_secret",
                "empty, and records.webhook is not",
                "name a long random text that the receiver knows, too: it tells by the signature that records are ours",
            );
            return None;
        }
        (None, Some(_)) => {
            r.problem(
                "records.webhook",
                "empty, and records.webhook_secret is not",
                "name both, or neither",
            );
            return None;
        }
    };
    Some(Settings {
        file: file?,
        webhook,
        interim: interim?,
        ..Settings::default()
    })
}

fn webhook_settings(
    r: &mut Reader<'_>,
    url: Uri,
    secret: Secret<String>,
    authorities: &str,
) -> Option<webhook::Settings> {
    let path = Some(Path::new(authorities)).filter(|path| !path.as_os_str().is_empty());
    let roots = match (path, url.scheme_str()) {
        (None, Some("http")) => Ok(rustls::RootCertStore::empty()),
        _ => webhook::roots(path),
    };
    match roots {
        Ok(roots) => Some(webhook::Settings {
            url,
            secret,
            roots: Arc::new(roots),
            first_pause: webhook::Settings::FIRST_PAUSE,
        }),
        Err(found) => {
            r.problem(
                "records.webhook_ca",
                found,
                "install ca-certificates, or name a PEM file of the authorities that vouch for the webhook",
            );
            None
        }
    }
}

fn file(node: &Node) -> Converted<Option<PathBuf>> {
    let text = values::text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    if path.is_dir() {
        return Err(Fault::with(
            node,
            format!("{} is a directory", path.display()),
            "name a file in it",
        ));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(Fault::with(
            node,
            format!("there is no directory {}", directory.display()),
            "make it, for the user that the server runs as (LogsDirectory= of systemd does)",
        ));
    }
    Ok(Some(path))
}

fn url(node: &Node) -> Converted<Option<Uri>> {
    let text = values::text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let uri: Uri = text.parse().map_err(|_| Fault::masked(node))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Fault::masked(node));
    };
    if authority.as_str().contains('@') {
        return Err(Fault::with(
            node,
            "found a user or password in the URL",
            "leave it out: requests are signed with records.webhook_secret",
        ));
    }
    let host = authority.host();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost"
        || (literal.parse::<std::net::IpAddr>()).is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" => Ok(Some(uri)),
        "http" if local => Ok(Some(uri)),
        "http" => Err(Fault::with(
            node,
            "found http: to another host, where anybody on the way reads who calls whom",
            "use https:",
        )),
        _ => Err(Fault::masked(node)),
    }
}

fn secret(node: &Node) -> Converted<Option<Secret<String>>> {
    let text = values::text(node).map_err(|_| Fault::masked(node))?;
    match text.len() {
        0 => Ok(None),
        SECRET_BYTES.. => Ok(Some(Secret::new(text))),
        _ => Err(Fault::masked(node)),
    }
}
