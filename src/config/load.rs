//! Every key, read in the order of `conf/turnix.toml`; tables of many keys have files of their own beside this one.

use std::fs;

use super::Config;
use super::acme;
use super::auth::{Auth, read_auth};
use super::changes::Keys;
use super::cluster::{read_cluster, read_keys};
use super::drain::read_drain;
use super::exposure;
use super::http::{check_http, read_http};
use super::limits::read_limits;
use super::listen::{read_listeners, read_relay};
use super::log::read_log;
use super::preset;
use super::problem::{Origin, Problem, Problems, Sources};
use super::protocol::read_protocol;
use super::quality::read_quality;
use super::reader::{Declared, Reader};
use super::realms::read_realms;
use super::records::read_records;
use super::server::{read_handover, read_server};
use super::sharing::check_upstreams;
use super::source::{Node, Table, merge};
use super::tls::{check_tls, read_certificates, read_tls};
use super::values::{self, Converted, Fault};
use crate::access::{self, peers};
use crate::records;
use crate::turn;

impl Config {
    /// Reads every source, the files of `auth.secret_files` included.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let (table, whole) = merge(sources, &mut problems);
        let absent = match &sources.file {
            Some(path) => Origin::File(path.as_path().into(), None),
            None => Origin::Default,
        };
        let mut reader = Reader::new(&table, absent);
        let config = read(&mut reader, sources);
        reader.reject_unknown();
        let keys = std::mem::take(&mut reader.keys);
        let warnings = reader.warnings;
        let mut found = reader.problems;
        if !whole {
            // A key that seems to be missing may stand on a line that could not be read, and a value that is wrong may
            // belong to another key, which keeps it secret: both are told once the syntax is right.
            found.retain(|problem| match problem.origin {
                Origin::File(_, None) => false,
                Origin::File(..) | Origin::QuickStart => !problem.found.starts_with("found "),
                _ => true,
            });
        }
        problems.extend(found);
        match config {
            Some(config) if problems.is_empty() => Ok(Self {
                keys,
                warnings,
                ..config
            }),
            _ => {
                if problems.is_empty() {
                    debug_assert!(false, "a key was refused without saying why");
                    problems.push(Problem {
                        origin: Origin::Default,
                        key: String::new(),
                        found: "a key was refused without a reason".into(),
                        remedy: "report this as a bug of turnix".into(),
                    });
                }
                Err(Problems::new(problems))
            }
        }
    }
}

/// Every key there is, in the order they are read.
pub fn declared() -> Vec<Declared> {
    let table = Table::new();
    let mut reader = Reader::new(&table, Origin::Default);
    read(&mut reader, &Sources::default());
    reader.declared
}

/// The name of this machine, or `localhost` if it has none.
pub fn host_name() -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

fn read(r: &mut Reader<'_>, sources: &Sources) -> Option<Config> {
    preset::read(r);
    let realm = r.key(
        "realm",
        r#""turnix""#,
        "1 to 127 characters, usually the server's domain name",
        realm,
    );
    let tls = read_tls(r, sources);
    let certificates = read_certificates(r, tls.as_ref());
    let has_certificate = r.is_set("tls.certificate") || r.is_set("tls.key") || acme::is_wanted(r);
    let listeners = read_listeners(r, has_certificate);
    let relay = read_relay(r);
    let auth = read_auth(r, sources);
    let known = auth
        .as_ref()
        .map(|auth| &auth.users[..])
        .unwrap_or_default();
    let realms = read_realms(r, sources, realm.as_deref(), known);
    let several_users = realms.as_ref().is_none_or(|realms| !realms.is_empty())
        || auth.as_ref().is_none_or(Auth::knows_several);
    let limits = read_limits(r, several_users);
    let peers = read_peers(r);
    let protocol = read_protocol(r, listeners.as_deref());
    let quality = read_quality(r);
    let http = read_http(r, sources);
    let has_secrets = auth.as_ref().is_none_or(|auth| !auth.secrets.is_empty());
    let realms_known = realms.as_deref().unwrap_or_default();
    let api_keys = read_keys(r, sources, has_secrets, realms_known);
    let cluster = read_cluster(r);
    let per_allocation = r.key(
        "metrics.per_allocation",
        "1000",
        "a number from 0 to 100000",
        values::number(0..=100_000),
    );
    let drain = read_drain(r);
    let server = read_server(r);
    let handover = read_handover(r);
    let log = read_log(r);
    let records = read_records(r);
    let elsewhere = http.as_ref().is_none_or(|keys| keys.http.tls);
    check_tls(r, tls.as_ref(), listeners.as_deref(), elsewhere);
    let tls = acme::choose_challenges(r, tls, listeners.as_deref());
    check_http(r, tls.as_ref(), http.as_ref());
    let admin = http.as_ref().and_then(|keys| keys.admin);
    check_upstreams(r, listeners.as_deref(), admin);
    exposure::warn(r, sources);

    let auth = auth?;
    let limits = limits?;
    let http = http?;
    let cluster = cluster?;
    Some(Config {
        access: access::Settings {
            realm: realm?,
            users: auth.users,
            secrets: auth.secrets,
            // Made by the process that serves.
            visits: None,
            strict_expiry: auth.strict_expiry,
            peers: peers?,
            limits: limits.quotas,
            oauth: auth.oauth,
            realms: realms?,
        },
        listeners: listeners?
            .into_iter()
            .map(|(_, listener)| listener)
            .collect(),
        relay: relay?,
        turn: turn::Settings {
            max_lifetime: limits.max_lifetime,
            nonce_lifetime: auth.nonce_lifetime,
            protocol: protocol?,
            permissions_per_allocation: limits.permissions,
            channels_per_allocation: limits.channels,
            unauthenticated_per_address: limits.unauthenticated,
            auth_failures_per_address: limits.auth_failures,
            bandwidth: limits.bandwidth,
            new_peers_per_second: limits.new_peers,
            connections_per_allocation: limits.peer_connections,
            quality: quality?,
        },
        connections_per_address: limits.connections_per_address,
        upstream_connections: limits.upstream_connections,
        tls: tls?,
        certificates: certificates?,
        admin: http.admin,
        http: http.http,
        per_allocation: per_allocation? as usize,
        drain: drain?,
        server: server?,
        handover: handover?,
        log: log?,
        records: records::Settings {
            node: cluster.node.clone(),
            region: cluster.region.clone(),
            ..records?
        },
        directory: auth.directory,
        revoked: auth.revoked,
        revoked_file: auth.revoked_file,
        api_keys: api_keys?,
        cluster,
        keys: Keys::default(),
        warnings: Vec::new(),
    })
}

fn realm(node: &Node) -> Converted<String> {
    let realm = values::text(node)?;
    let length = realm.chars().count();
    if (1..=127).contains(&length) && !realm.chars().any(char::is_control) {
        Ok(realm)
    } else {
        Err(Fault::of(node))
    }
}

fn read_peers(r: &mut Reader<'_>) -> Option<peers::Settings> {
    const RULES: &str = r#"a list of CIDRs such as "198.51.100.0/24" or names such as "private", with ports if need be: "10.1.2.0/24:10000-20000""#;
    let rule = |text: &str| text.parse::<peers::Rule>();
    let deny = r.key(
        "peers.deny",
        "[]",
        RULES,
        values::list(values::parsed(rule)),
    );
    let allow = r.key(
        "peers.allow",
        "[]",
        RULES,
        values::list(values::parsed(rule)),
    );
    let nat64 = r.key(
        "peers.nat64",
        "[]",
        r#"a list of IPv6 prefixes such as "2001:db8:64::/96""#,
        values::list(values::parsed(|text: &str| text.parse::<peers::Nat64>())),
    );
    Some(peers::Settings {
        deny: deny?,
        allow: allow?,
        nat64: nat64?,
    })
}
