//! The keys of `[tls]`: whether the certificate can be served with, or who is to issue one.

use std::path::PathBuf;

use super::acme::{self, read_acme};
use super::exposure;
use super::problem::{Origin, Problem, Sources};
use super::reader::Reader;
use super::values;
use super::{Listener, PemFiles, Tls};
use crate::base::Clock;
use crate::stream::certificates;

pub(super) fn read_tls(r: &mut Reader<'_>, sources: &Sources) -> Option<Option<Tls>> {
    let paths = read_paths(r);
    let acme = read_acme(r, sources);
    if !acme::is_wanted(r) {
        let files = paths.and_then(|paths| read_files(r, paths, ("tls.certificate", "tls.key")));
        acme?;
        return Some(files?.map(Tls::Files));
    }
    if let Some(key) = ["tls.certificate", "tls.key"]
        .into_iter()
        .find(|key| r.is_set(key))
    {
        r.problem(
            key,
            "given, and so is tls.acme.names",
            "keep one of them: files that somebody else renews, or names that turnix orders a certificate for",
        );
        return None;
    }
    Some(acme??).map(|settings| Some(Tls::Acme(settings)))
}

fn read_paths(r: &mut Reader<'_>) -> Option<(String, String)> {
    const PATH: &str = "the path of a PEM file";
    let certificate = r.key("tls.certificate", r#""""#, PATH, values::text);
    let key = r.key("tls.key", r#""""#, PATH, values::text);
    Some((certificate?, key?))
}

fn read_files(
    r: &mut Reader<'_>,
    (certificate, key): (String, String),
    (certificate_key, key_key): (&'static str, &'static str),
) -> Option<Option<PemFiles>> {
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => return Some(None),
        (false, false) => {}
        (true, false) => {
            let found = format!("empty, and {key_key} is not");
            r.problem(certificate_key, found, "name both, or neither");
            return None;
        }
        (false, true) => {
            let found = format!("empty, and {certificate_key} is not");
            r.problem(key_key, found, "name both, or neither");
            return None;
        }
    }
    let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
    match certificates::load(&certificate, &key) {
        Ok(loaded) => {
            let now_unix = Clock.now().unix_secs();
            if loaded.not_after_unix() <= now_unix {
                let days = (now_unix - loaded.not_after_unix()) / 86_400;
                r.problem(
                    certificate_key,
                    format!("{} expired {days} days ago", certificate.display()),
                    "renew it, or correct the clock",
                );
                return None;
            }
            exposure::warn_of_file(r, key_key, &key);
            Some(Some(PemFiles { certificate, key }))
        }
        Err(error) => {
            let name = if error.file == certificate {
                certificate_key
            } else {
                key_key
            };
            let text = error.to_string();
            let (found, remedy) = text
                .split_once("; ")
                .unwrap_or((&text, "name a PEM file that this user may read"));
            r.problem(name, found, remedy);
            None
        }
    }
}

/// The certificates beside the one of `tls`.
pub(super) fn read_certificates(
    r: &mut Reader<'_>,
    tls: Option<&Option<Tls>>,
) -> Option<Vec<PemFiles>> {
    let certificates = r.tables(
        "tls.certificates",
        "tls.certificates.",
        "certificate",
        "tables with a certificate and a key",
        &[],
        read_certificate,
    )?;
    if let (Some((origin, _)), Some(None)) = (certificates.first(), tls) {
        r.problems.push(Problem {
            origin: origin.clone(),
            key: "tls.certificates".into(),
            found: "given, and there is none for clients that ask for no name or another one"
                .into(),
            remedy: "name the server's own in tls.certificate and tls.key, or in tls.acme.names"
                .into(),
        });
        return None;
    }
    Some((certificates.into_iter().map(|(_, files)| files)).collect())
}

fn read_certificate(r: &mut Reader<'_>) -> Option<PemFiles> {
    const KEYS: (&str, &str) = ("tls.certificates.certificate", "tls.certificates.key");
    const PATH: &str = "the path of a PEM file";
    let certificate = r.key(KEYS.0, r#""""#, PATH, values::text);
    let key = r.key(KEYS.1, r#""""#, PATH, values::text);
    let (certificate, key) = (certificate?, key?);
    if certificate.is_empty() && key.is_empty() {
        r.problem(
            KEYS.0,
            "empty",
            "name the certificate and its key, or remove the table",
        );
        return None;
    }
    let files = read_files(r, (certificate, key), KEYS)??;
    let names = certificates::load(&files.certificate, &files.key)
        .is_ok_and(|loaded| !loaded.names().is_empty());
    if !names {
        r.problem(
            KEYS.0,
            format!(
                "{} is for no DNS name, so nobody asks for it",
                files.certificate.display()
            ),
            "name one with DNS names in its subjectAltName, or remove the table",
        );
        return None;
    }
    Some(files)
}

pub(super) fn check_tls(
    r: &mut Reader<'_>,
    tls: Option<&Option<Tls>>,
    listeners: Option<&[(Origin, Listener)]>,
    elsewhere: bool,
) {
    let (Some(tls), Some(listeners)) = (tls, listeners) else {
        return;
    };
    let names = |name, is: fn(&Listener) -> bool| {
        let found = listeners.iter().any(|(_, listener)| is(listener));
        found.then_some(name)
    };
    let over_tcp = names("tls", |listener| listener.streams.tls);
    let dtls = names("dtls", |listener| listener.dtls);
    let named = over_tcp.or(dtls);
    if let (Some(name), None) = (named, tls) {
        r.problem(
            "tls.certificate",
            format!("empty, and a [[listen]] names \"{name}\""),
            format!(
                "name tls.certificate and tls.key, or tls.acme.names; or remove \"{name}\" from listen.protocols"
            ),
        );
    }
    if let (Some(_), Some(Tls::Files(files))) = (dtls, tls) {
        check_dtls(r, files);
    }
    let speaks = named.is_some();
    let key = match tls {
        Some(Tls::Acme(_)) => "tls.acme.names",
        _ => "tls.certificate",
    };
    let chosen = r.origin(key) == Origin::QuickStart;
    if !speaks && !elsewhere && tls.is_some() && !chosen {
        r.problem(
            key,
            "given, and no [[listen]] names \"tls\"",
            "add \"tls\" to listen.protocols, set http.tls = true, or remove the certificate",
        );
    }
}

/// Whether DTLS can be spoken with what is in `files`.
fn check_dtls(r: &mut Reader<'_>, files: &PemFiles) {
    // What keeps it from being read was told by whoever read it first.
    let Ok(certificate) = certificates::load(&files.certificate, &files.key) else {
        return;
    };
    if !certificate.serves_dtls() {
        r.problem(
            "tls.key",
            "no ECDSA key, and a [[listen]] names \"dtls\"",
            "have the certificate issued for an ECDSA key of P-256 or P-384 (certbot: --key-type ecdsa), or remove \"dtls\" \
             from listen.protocols",
        );
    } else if certificate.has_intermediates() {
        r.warn(Problem {
            origin: r.origin("tls.certificate"),
            key: "tls.certificate".into(),
            found: "over DTLS its first certificate is shown alone, without those of intermediate authorities"
                .into(),
            remedy: "give clients that verify it those certificates, or let them use \"turns:\" over TCP".into(),
        });
    }
}
