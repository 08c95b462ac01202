//! TLS as clients: what the commands verify, and what a certificate says.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::records::webhook;
use crate::stream::unverified;

/// Whose certificates are taken.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Those below the authorities that this host trusts.
    Host,
    /// Those below the roots in this PEM file.
    Roots(&'a Path),
    /// Every one.
    Anybody,
    /// None: no TLS is wanted.
    Nobody,
}

impl<'a> Trust<'a> {
    /// As `--insecure` and `--ca` say.
    pub fn of(insecure: bool, ca: Option<&'a Path>) -> Self {
        match (insecure, ca) {
            (true, _) => Self::Anybody,
            (false, Some(ca)) => Self::Roots(ca),
            (false, None) => Self::Host,
        }
    }

    /// What connections are made with.
    ///
    /// # Errors
    /// There are no roots.
    pub fn config(self) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let roots = match self {
            Self::Anybody => return Ok(unverified()?),
            Self::Host => webhook::roots(None),
            Self::Roots(file) => webhook::roots(Some(file)),
            Self::Nobody => Ok(RootCertStore::empty()),
        };
        let roots = (roots.map_err(anyhow::Error::msg))
            .context("no roots to verify the server's certificate with; --ca FILE names some")?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// `host` as certificates name servers.
///
/// # Errors
/// No certificate could have that name.
pub fn server_name(host: &str) -> anyhow::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .with_context(|| format!("{host:?} is no name that a certificate could have"))
}

/// What the certificate of a server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The host names and addresses that it is for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Signed by itself.
    pub self_signed: bool,
    /// Seconds since the Unix epoch.
    pub not_before_unix: u64,
    /// Seconds since the Unix epoch.
    pub not_after_unix: u64,
}

impl Certificate {
    /// Reads a certificate in DER; `None` if it is none.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let names = match parsed.subject_alternative_name() {
            Ok(Some(names)) => (names.value.general_names.iter())
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => address(bytes),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let unix = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        Some(Self {
            names,
            issuer: parsed.issuer().to_string(),
            self_signed: parsed.issuer() == parsed.subject(),
            not_before_unix: unix(parsed.validity().not_before),
            not_after_unix: unix(parsed.validity().not_after),
        })
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}
