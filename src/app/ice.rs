//! What a WebRTC client is told: URLs in the order to try them, and one credential.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::access::{credentials::first_with_password, rest};
use crate::base::addr::is_link_local;
use crate::base::{Clock, Family, Secret, Transport};
use crate::cluster::{self, Fleet, canary};
use crate::config::{Config, External, Listener, Mapping, Tls};
use crate::http::ice::Offer;
use crate::http::visits::{self, Form};
use crate::net::host;

/// The user id of canaries, in the metrics and logs of the nodes that they look at.
const CANARY: &str = "canary";

/// How long the credential of one look of a canary is good for: clocks of nodes may differ.
const CANARY_TTL: Duration = Duration::from_secs(600);

/// Where clients look for STUN and TURN if no port is given.
const STUN_PORT: u16 = 3478;

/// How clients name this server.
#[derive(Clone, Debug)]
pub struct Host {
    /// The same name for every listener, if there is one.
    pub name: Option<String>,
    /// What the operator wrote about external addresses.
    pub external: External,
    /// Local relay addresses and how they are seen; empty while nothing is bound.
    pub relays: Vec<Mapping>,
}

impl Host {
    /// The host part of URLs that lead to `listener`, an IPv6 address in brackets.
    pub fn of(&self, listener: &Listener) -> String {
        match &self.name {
            Some(name) => match name.parse::<IpAddr>() {
                Ok(ip) => bracketed(ip),
                Err(_) => name.clone(),
            },
            None => bracketed(self.address(listener.address.ip())),
        }
    }

    fn address(&self, local: IpAddr) -> IpAddr {
        if !local.is_unspecified() {
            let found = (self.relays.iter())
                .find(|relay| relay.local == Some(local))
                .map(|relay| relay.external);
            let outside = self.external.of(local).or(found);
            return outside.filter(|_| !local.is_loopback()).unwrap_or(local);
        }
        // "[::]" takes IPv4 too, which more clients have.
        let v6_only = |ip: &IpAddr| local.is_ipv6() || ip.is_ipv4();
        let relayed = self.relays.iter().map(|relay| relay.external);
        let mapped: Vec<IpAddr> = match &self.external {
            External::Auto => Vec::new(),
            External::Mapped(mappings) => mappings.iter().map(|one| one.external).collect(),
        };
        let sources = Family::ALL.into_iter().filter_map(host::default_source);
        let mut candidates: Vec<IpAddr> = relayed.chain(mapped).chain(sources).collect();
        candidates.extend(
            host::interface_addresses()
                .into_iter()
                .filter(|ip| !ip.is_loopback() && !is_link_local(*ip)),
        );
        candidates.retain(v6_only);
        let first_v4 = candidates.iter().find(|ip| ip.is_ipv4());
        first_v4
            .or(candidates.first())
            .copied()
            .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// URLs of every listener (RFC 7065) in the order of [`forms`].
pub fn urls(listeners: &[Listener], host: &Host) -> Vec<String> {
    forms(listeners, host).iter().map(Form::url).collect()
}

/// URLs for people to copy: those of [`urls`] less what goes without saying. UDP is what a client takes if nothing is said,
/// and the port of STUN (RFC 8489, section 12.1) is no way out where UDP is closed, if there is another.
pub fn plain_urls(listeners: &[Listener], host: &Host) -> Vec<String> {
    let all = forms(listeners, host);
    let says_more = |form: &&Form| {
        let others = || all.iter().filter(|other| other.port != STUN_PORT);
        form.transport == Transport::Udp
            || form.port != STUN_PORT
            || !others().any(|other| other.transport == form.transport)
    };
    let shown = all
        .iter()
        .filter(says_more)
        .map(|form| match form.transport {
            Transport::Udp => form.url().replace("?transport=udp", ""),
            _ => form.url(),
        });
    shown.collect()
}

/// Ways to every listener: UDP, then TCP, then TLS, which is the order from fast to passable; DTLS last, since few clients
/// know it.
fn forms(listeners: &[Listener], host: &Host) -> Vec<Form> {
    let form = |transport, listener: &Listener| Form {
        transport,
        host: host.of(listener),
        port: listener.address.port(),
        bound: listener.address.ip(),
    };
    let udp = listeners.iter().filter(|listener| listener.udp);
    let tcp = listeners.iter().filter(|listener| listener.streams.tcp);
    let tls = listeners.iter().filter(|listener| listener.streams.tls);
    let dtls = listeners.iter().filter(|listener| listener.dtls);
    udp.map(|listener| form(Transport::Udp, listener))
        .chain(tcp.map(|listener| form(Transport::Tcp, listener)))
        .chain(tls.map(|listener| form(Transport::Tls, listener)))
        .chain(dtls.map(|listener| form(Transport::Dtls, listener)))
        .collect()
}

/// The `iceServers` array of an RTCConfiguration.
pub fn ice_servers(urls: &[String], username: &str, credential: &str) -> Value {
    json!([{ "urls": urls, "username": username, "credential": credential }])
}

/// The domain name that the certificate was issued for, or will be; `None` for a wildcard, a bare host name or no name.
pub fn certificate_name(tls: &Tls) -> Option<String> {
    let files = match tls {
        Tls::Files(files) => files,
        Tls::Acme(settings) => return settings.names.first().cloned(),
    };
    let file = std::fs::read(&files.certificate).ok()?;
    let (_, pem) = parse_x509_pem(&file).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) if name.contains('.') && !name.contains('*') => {
                Some((*name).to_owned())
            }
            _ => None,
        })
}

/// The servers of the service, as configured.
pub(super) fn fleet(config: &Config) -> Arc<Fleet> {
    let places = config.cluster.geoip.as_deref().and_then(|path| {
        (cluster::places(path))
            .inspect_err(|error| tracing::warn!(%error, "clients go by region and weight alone"))
            .ok()
    });
    let nodes = config.cluster.nodes.clone();
    Arc::new(Fleet::new(&config.cluster.node, nodes, places))
}

/// What the ICE configuration service offers: `listeners` and `relays` as they are bound.
pub(super) fn offer(
    config: &Config,
    listeners: &[Listener],
    relays: Vec<Mapping>,
    fleet: Arc<Fleet>,
) -> Offer {
    let host = host(config, relays);
    Offer {
        keys: config.api_keys.clone(),
        secret: config.access.secrets.first().cloned(),
        own_urls: urls(listeners, &host),
        fleet,
    }
}

fn host(config: &Config, relays: Vec<Mapping>) -> Host {
    Host {
        name: config.tls.as_ref().and_then(certificate_name),
        external: config.relay.external.clone(),
        relays,
    }
}

/// What the test page is told: `listeners` and `relays` as they are bound.
pub(super) fn visits(
    config: &Config,
    listeners: &[Listener],
    relays: Vec<Mapping>,
) -> visits::Settings {
    visits::Settings {
        enabled: config.http.test_page,
        // No browser speaks DTLS to a relay.
        forms: (forms(listeners, &host(config, relays)).into_iter())
            .filter(|form| form.transport != Transport::Dtls)
            .collect(),
        bits_per_second: config.turn.bandwidth.per_allocation,
        node: config.cluster.node.clone(),
        region: config.cluster.region.clone(),
    }
}

/// Credentials for canaries: time-limited ones, else those of the first static user whose password is known.
pub(super) fn mint(config: &Config) -> canary::Mint {
    let secret = config.access.secrets.first().cloned();
    let user = first_with_password(&config.access.users).cloned();
    Arc::new(move || match &secret {
        Some(secret) => {
            let expires_unix = Clock.now().unix_secs() + CANARY_TTL.as_secs();
            let (username, password) = rest::mint(secret, Some(CANARY), expires_unix);
            Some((username, Secret::new(password)))
        }
        None => user.clone(),
    })
}
