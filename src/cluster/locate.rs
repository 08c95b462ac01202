//! Where a URI leads: RFC 5928 for `turn:` and `turns:`, RFC 8489 §8.1 for `stun:` and `stuns:`.
//!
//! A URI that names a port, or an address, leads there. Else the domain's NAPTR and SRV records are asked, and where it has
//! none, the default port is taken, by UDP if the URI names no transport: the RFC would have TCP tried next, but browsers do
//! not, and who asks what is wrong with UDP is not served by an answer over TCP. Addresses come from the host's own
//! resolver, which knows `/etc/hosts`, too.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use rand::RngExt;
use tokio::net::lookup_host;

use super::IceUri;
use crate::base::Transport;

/// NAPTR records that lead to NAPTR records: as many as anybody needs, and a loop ends.
const MOST_HOPS: usize = 4;

/// Servers that are looked at, and addresses of each.
const MOST_TARGETS: usize = 8;
const MOST_ADDRESSES: usize = 8;

/// How long name servers have for the first record: where none answers, the others are not asked for, and addresses may
/// yet be known.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A server to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it is.
    pub address: SocketAddr,
    /// How to get there.
    pub transport: Transport,
}

/// A NAPTR record (RFC 3403 §4.1), without the expression, which S-NAPTR leaves empty (RFC 3958 §2.2).
#[derive(Clone, Debug)]
pub struct Naptr {
    /// Lower first.
    pub order: u16,
    /// Lower first among equals.
    pub preference: u16,
    /// `s`: `replacement` has SRV records; `a`: addresses; empty: NAPTR records.
    pub flags: String,
    /// The service and the protocols it is offered by, such as `RELAY:turn.udp`.
    pub services: String,
    /// Where to go on.
    pub replacement: String,
}

/// An SRV record (RFC 2782).
#[derive(Clone, Debug)]
pub struct Srv {
    /// Lower first.
    pub priority: u16,
    /// Share among those of one priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host; `.`: the domain has no such service.
    pub target: String,
}

/// Where records come from. No record and no answer are alike: there may be others.
pub trait Zone {
    /// NAPTR records of `name`.
    fn naptr(&self, name: &str) -> impl Future<Output = Vec<Naptr>>;
    /// SRV records of `name`.
    fn srv(&self, name: &str) -> impl Future<Output = Vec<Srv>>;
    /// Addresses of `host`.
    ///
    /// # Errors
    /// Why there are none.
    fn addresses(&self, host: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>>;
}

/// A host and a port, and how to get there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    transport: Transport,
}

/// The servers that `uri` leads to, in the order to try them in: at least one.
///
/// # Errors
/// The domain says that it has no such server, or a name does not resolve.
pub async fn locate(uri: &IceUri, zone: &impl Zone) -> io::Result<Vec<Located>> {
    let targets = targets(uri, zone).await?;
    let mut located = Vec::new();
    let mut failed = None;
    for target in targets.iter().take(MOST_TARGETS) {
        match zone.addresses(&target.host).await {
            Err(error) => failed = failed.or(Some(error)),
            Ok(addresses) => {
                located.extend(
                    addresses
                        .into_iter()
                        .take(MOST_ADDRESSES)
                        .map(|ip| Located {
                            address: SocketAddr::new(ip, target.port),
                            transport: target.transport,
                        }),
                )
            }
        }
    }
    let mut seen = Vec::new();
    located.retain(|one| {
        let new = !seen.contains(one);
        seen.push(*one);
        new
    });
    match failed {
        _ if !located.is_empty() => Ok(located),
        Some(error) => Err(error),
        None => Err(io::Error::other("it has no address")),
    }
}

async fn targets(uri: &IceUri, zone: &impl Zone) -> io::Result<Vec<Target>> {
    let server = &uri.server;
    let transports = transports(uri);
    let plain = vec![Target {
        host: server.host.clone(),
        port: server.port,
        transport: server.transport,
    }];
    let host = server.host.as_str();
    if server.says.port || host.parse::<IpAddr>().is_ok() || is_local(host) {
        return Ok(plain);
    }
    if uri.relays && !server.says.transport {
        let found = by_naptr(host, &transports, server.port, zone).await;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let (mut found, mut denied) = (Vec::new(), 0);
    for transport in &transports {
        let name = format!("{}.{host}", service(uri.relays, *transport));
        match by_srv(&name, *transport, zone).await {
            Some(targets) => found.extend(targets),
            None => denied += 1,
        }
    }
    if denied == transports.len() {
        return Err(io::Error::other(
            "its SRV records say that it has no such server",
        ));
    }
    Ok(if found.is_empty() { plain } else { found })
}

/// What `uri` may be spoken by, the preferred one first.
fn transports(uri: &IceUri) -> Vec<Transport> {
    let server = &uri.server;
    match server.transport {
        Transport::Udp if uri.relays && !server.says.transport => {
            vec![Transport::Udp, Transport::Tcp]
        }
        transport => vec![transport],
    }
}

/// The label of SRV records (RFC 5928 §3, RFC 8489 §8.1).
const fn service(relays: bool, transport: Transport) -> &'static str {
    match (relays, transport) {
        (true, Transport::Udp) => "_turn._udp",
        (true, Transport::Tcp) => "_turn._tcp",
        (true, Transport::Tls) => "_turns._tcp",
        (true, Transport::Dtls) => "_turns._udp",
        (false, Transport::Udp) => "_stun._udp",
        (false, Transport::Tcp) => "_stun._tcp",
        (false, Transport::Tls) => "_stuns._tcp",
        (false, Transport::Dtls) => "_stuns._udp",
    }
}

/// The application protocol tag of S-NAPTR (RFC 5928 §6.3).
const fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "turn.udp",
        Transport::Tcp => "turn.tcp",
        Transport::Tls => "turn.tls",
        Transport::Dtls => "turn.dtls",
    }
}

/// A name that no name server is asked for (RFC 6761 §6.3).
fn is_local(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// What S-NAPTR records of `host` lead to by one of `transports` (RFC 5928 §3), in their order.
async fn by_naptr(
    host: &str,
    transports: &[Transport],
    default_port: u16,
    zone: &impl Zone,
) -> Vec<Target> {
    let mut found = Vec::new();
    // What is still to be asked, the next one last.
    let mut open = vec![(host.to_owned(), transports.to_vec(), 0)];
    while let Some((name, transports, hops)) = open.pop() {
        let mut records = zone.naptr(&name).await;
        records.sort_by_key(|record| (record.order, record.preference));
        let mut next = Vec::new();
        for record in records.iter().take(MOST_TARGETS) {
            let offered: Vec<Transport> = (transports.iter().copied())
                .filter(|transport| record.offers(*transport))
                .collect();
            let Some(&transport) = offered.first() else {
                continue;
            };
            match record.flags.to_ascii_lowercase().as_str() {
                "" if hops < MOST_HOPS => {
                    next.push((record.replacement.clone(), offered, hops + 1));
                }
                "s" => {
                    let targets = by_srv(&record.replacement, transport, zone).await;
                    found.extend(targets.unwrap_or_default());
                }
                "a" => found.push(Target {
                    host: record.replacement.clone(),
                    port: default_port,
                    transport,
                }),
                _ => {}
            }
        }
        open.extend(next.into_iter().rev());
        if open.len() + found.len() > 4 * MOST_TARGETS {
            break;
        }
    }
    found
}

impl Naptr {
    /// Whether this is a relay that is reached by `transport`.
    fn offers(&self, transport: Transport) -> bool {
        let mut words = self.services.split(':');
        let service = words.next().unwrap_or_default();
        service.eq_ignore_ascii_case("RELAY")
            && words.any(|word| word.eq_ignore_ascii_case(protocol(transport)))
    }
}

/// What the SRV records of `name` lead to, in the order to try; `None` if they say that there is nothing.
async fn by_srv(name: &str, transport: Transport, zone: &impl Zone) -> Option<Vec<Target>> {
    let records = zone.srv(name).await;
    if let [only] = &records[..]
        && matches!(only.target.as_str(), "" | ".")
    {
        return None;
    }
    let targets = in_order(records).into_iter().map(|record| Target {
        host: record.target,
        port: record.port,
        transport,
    });
    Some(targets.collect())
}

/// By priority; within one, drawn by weight (RFC 2782).
fn in_order(mut records: Vec<Srv>) -> Vec<Srv> {
    // Those of weight 0 in front, so that they are drawn at times.
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered: Vec<Srv> = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let same = || records.iter().take_while(|one| one.priority == priority);
        let total: u32 = same().map(|one| u32::from(one.weight)).sum();
        let drawn = rand::rng().random_range(0..=total);
        let mut sum = 0;
        let at = same()
            .position(|one| {
                sum += u32::from(one.weight);
                sum >= drawn
            })
            .unwrap_or(0);
        ordered.push(records.remove(at));
    }
    ordered
}

/// Records by the name servers of `/etc/resolv.conf`, addresses by the host's own resolver.
pub struct Dns {
    resolver: Option<TokioResolver>,
    /// No name server answers.
    silent: AtomicBool,
}

impl Dns {
    /// Where the host has no name servers, only its own resolver is asked.
    pub fn of_host() -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = PATIENCE / 2;
            options.attempts = 1;
            builder.build()
        });
        if let Err(error) = &resolver {
            tracing::debug!(%error, "no name servers");
        }
        Self {
            resolver: resolver.ok(),
            silent: AtomicBool::new(false),
        }
    }

    async fn records(&self, name: &str, kind: RecordType) -> Vec<RData> {
        let Some(resolver) = (self.resolver.as_ref()).filter(|_| !self.silent.load(Relaxed)) else {
            return Vec::new();
        };
        // With the dot at the end no search list is tried.
        let name = format!("{}.", name.trim_end_matches('.'));
        match tokio::time::timeout(PATIENCE, resolver.lookup(name.as_str(), kind)).await {
            Ok(Ok(found)) => (found.answers().iter())
                .map(|record| record.data.clone())
                .collect(),
            Ok(Err(error)) => {
                tracing::debug!(name, %kind, %error, "no records");
                let answered = error.is_no_records_found() || error.is_nx_domain();
                self.silent.store(!answered, Relaxed);
                Vec::new()
            }
            Err(_) => {
                tracing::debug!(name, %kind, "no name server answers");
                self.silent.store(true, Relaxed);
                Vec::new()
            }
        }
    }
}

impl Zone for Dns {
    async fn naptr(&self, name: &str) -> Vec<Naptr> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let records = self.records(name, RecordType::NAPTR).await;
        (records.into_iter())
            .filter_map(|record| match record {
                RData::NAPTR(naptr) => Some(Naptr {
                    order: naptr.order,
                    preference: naptr.preference,
                    flags: text(&naptr.flags),
                    services: text(&naptr.services),
                    replacement: naptr.replacement.to_ascii(),
                }),
                _ => None,
            })
            .collect()
    }

    async fn srv(&self, name: &str) -> Vec<Srv> {
        let records = self.records(name, RecordType::SRV).await;
        (records.into_iter())
            .filter_map(|record| match record {
                RData::SRV(srv) => Some(Srv {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: srv.target.to_ascii(),
                }),
                _ => None,
            })
            .collect()
    }

    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        // Names in records end in a dot, which not every resolver's files have.
        let host = host.trim_end_matches('.');
        let found = lookup_host((host, 0)).await?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        Ok(addresses)
    }
}
