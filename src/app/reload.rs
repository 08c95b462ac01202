//! A changed configuration for a running server: everything is prepared first, then applied, whole or not at all.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::base::Clock;
use crate::cluster;
use crate::config::{Change, Config, Listener, PemFiles, Problem, Problems, Sources, Tls};
use crate::external::Look;
use crate::lifecycle::Inherited;
use crate::shard::{self, ListenerSlot, RelayIp, Unread};
use crate::stream::Certificates;
use crate::stream::certificates::{self, Certificate};

use super::certification::{self, First};
use super::doors::{Door, Prepared, PreparedAdmin};
use super::outside::relay_ips;
use super::serve::SetLog;
use super::sockets::{check_relays, open_tcp, own_addresses, speaks, udp_problem};
use super::{Open, Running, host_shortages, ice, key_lifetimes, log_started, mappings};

/// Keys, or sections of them, that a running server cannot change: its threads, what they run on, and the form and place
/// of what is being written.
const NEEDS_RESTART: [&str; 4] = [
    "server.shards",
    "server.pin_shards",
    "log.format",
    "records.",
];

/// What a reload did.
#[derive(Clone, Debug, Serialize)]
pub struct Reloaded {
    /// Keys that have another value from now on.
    pub changed: Vec<Change>,
    /// Keys whose new value takes a restart; the old one stays.
    pub restart: Vec<Change>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// A listener of the next configuration and what it needs.
struct Planned {
    wanted: Listener,
    address: SocketAddr,
    udp: PlannedUdp,
    door: PlannedDoor,
}

enum PlannedUdp {
    None,
    Keep(ListenerSlot),
    Open(Unread),
}

enum PlannedDoor {
    None,
    /// The door of the listener that has this place now.
    Keep(usize),
    Open(Box<Prepared>),
}

/// Everything the next configuration needs that could not be had.
struct Plan {
    relays: Vec<RelayIp>,
    look: Look,
    certificate: Option<Certificate>,
    certificates: Option<Arc<Certificates>>,
    others: Vec<Certificate>,
    listeners: Vec<Planned>,
    close: Vec<ListenerSlot>,
    admin: Option<PreparedAdmin>,
}

impl Running {
    /// Reads the configuration again and applies it. Calls go on; what the new configuration forbids ends.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration or the host; nothing has changed then.
    pub async fn reload(
        &mut self,
        sources: &Sources,
        set_log: &SetLog,
    ) -> Result<Reloaded, Problems> {
        let mut next = Config::load(sources)?;
        let mut changed = self.config.keys.changes(&next.keys);
        let restart: Vec<Change> = changed
            .extract_if(.., |change| {
                NEEDS_RESTART
                    .iter()
                    .any(|name| change.key.starts_with(name))
            })
            .collect();
        for change in &restart {
            next.keys.keep(&self.config.keys, &change.key);
        }
        next.server.shards = self.config.server.shards;
        next.server.pin_shards = self.config.server.pin_shards;
        next.server.core_dumps = self.config.server.core_dumps;
        next.log.format = self.config.log.format;
        next.records = self.config.records.clone();
        next.access.visits = self.config.access.visits.clone();

        let look = self.look_for(&next).await;
        let plan = self.plan(&next, look)?;
        let before = host_shortages(&self.config);
        let shortages = host_shortages(&next).into_iter();
        let new = shortages.filter(|shortage| !before.contains(shortage));
        let mut notes: Vec<String> = new.map(|shortage| shortage.to_string()).collect();
        let warnings = (next.warnings.iter()).filter(|one| !self.config.warnings.contains(one));
        notes.extend(warnings.map(ToString::to_string));
        notes.extend(self.apply(next, plan, set_log).await);
        let elsewhere = |change: &Change| {
            ["cluster.", "auth."]
                .iter()
                .any(|section| change.key.starts_with(section))
        };
        self.renew_service(changed.iter().any(elsewhere));
        Ok(Reloaded {
            changed,
            restart,
            notes,
        })
    }

    /// Opens and reads what `next` needs, and changes nothing.
    fn plan(&self, next: &Config, look: Look) -> Result<Plan, Problems> {
        let mut problems = Vec::new();
        let relays = relay_ips(&look.seen);
        check_relays(&relays, &mut problems);
        let current = self.certificates.clone();
        let first = self
            .certification
            .first(next, current.is_some(), &mut problems);
        let certificates = match &first {
            First::None => None,
            First::Current => current,
            First::Load(certificate) => {
                Some(current.unwrap_or_else(|| self.certification.serving(certificate.clone())))
            }
        };
        let certificate = match first {
            First::Load(certificate) => Some(certificate),
            First::None | First::Current => None,
        };
        let others = certification::others(next, &mut problems);
        let mut used = vec![false; self.listeners.len()];
        let mut listeners = Vec::new();
        for wanted in &next.listeners {
            let found = (self.listeners.iter().enumerate())
                .position(|(at, open)| !used[at] && open.wanted.address == wanted.address);
            if let Some(found) = found {
                used[found] = true;
            }
            let planned =
                self.plan_listener(next, wanted, found, certificates.as_ref(), &mut problems);
            listeners.extend(planned);
        }
        let kept = |slot: ListenerSlot| {
            (listeners.iter())
                .any(|planned| matches!(planned.udp, PlannedUdp::Keep(kept) if kept == slot))
        };
        let close = (self.listeners.iter())
            .filter_map(|open| open.udp)
            .filter(|slot| !kept(*slot))
            .collect();
        let admin = match (next.admin, &self.admin) {
            (None, _) => None,
            (Some(address), Some(door)) if self.config.admin == Some(address) => door
                .socket()
                .map_err(|error| problems.push(shared("http.admin", &error)))
                .ok()
                .map(|socket| (door.address, socket)),
            (Some(address), _) => open_tcp(
                "http.admin",
                address,
                &mut Inherited::default(),
                &mut problems,
            )
            .map(|socket| (socket.local_addr().unwrap_or(address), socket)),
        };
        let tls = certificates.clone().filter(|_| next.http.tls);
        let admin = admin.and_then(|(address, socket)| {
            PreparedAdmin::new(address, socket, tls)
                .map_err(|error| problems.push(shared("http.admin", &error)))
                .ok()
        });
        if problems.is_empty() {
            Ok(Plan {
                relays,
                look,
                certificate,
                certificates,
                others,
                listeners,
                close,
                admin,
            })
        } else {
            Err(Problems::new(problems))
        }
    }

    fn plan_listener(
        &self,
        next: &Config,
        wanted: &Listener,
        found: Option<usize>,
        certificates: Option<&Arc<Certificates>>,
        problems: &mut Vec<Problem>,
    ) -> Option<Planned> {
        let open = found.and_then(|at| self.listeners.get(at));
        let bound = found.and_then(|at| self.started.listeners.get(at));
        let mut address = bound.map_or(wanted.address, |listener| listener.address);
        let before = problems.len();
        let door = match (open.and_then(|open| open.door.as_ref()), found) {
            _ if !wanted.has_streams() => PlannedDoor::None,
            (Some(door), Some(at)) if door.is_as(wanted) => PlannedDoor::Keep(at),
            (door, _) => {
                let socket = match door {
                    Some(door) => door
                        .socket()
                        .map_err(|error| problems.push(shared("listen", &error)))
                        .ok()?,
                    None => {
                        match open_tcp("listen", address, &mut Inherited::default(), problems) {
                            Some(socket) => socket,
                            None => {
                                if let Some(problem) = self.overlap("tcp", address) {
                                    problems.pop();
                                    problems.push(problem);
                                }
                                return None;
                            }
                        }
                    }
                };
                address = socket.local_addr().unwrap_or(address);
                match Prepared::new(socket, wanted, certificates.cloned()) {
                    Ok(prepared) => PlannedDoor::Open(Box::new(prepared)),
                    Err(error) => {
                        problems.push(shared("listen", &error));
                        return None;
                    }
                }
            }
        };
        let udp = match open.and_then(|open| open.udp) {
            _ if !wanted.has_datagrams() => PlannedUdp::None,
            Some(slot) => PlannedUdp::Keep(slot),
            None => {
                let bytes = next.server.listener_buffer_bytes;
                match self.shards.open_listener(address, speaks(wanted), bytes) {
                    Ok(unread) => {
                        address = unread.address();
                        PlannedUdp::Open(unread)
                    }
                    Err(error) => {
                        let overlap = self.overlap("udp", address);
                        problems.push(overlap.unwrap_or_else(|| udp_problem(&error)));
                        return None;
                    }
                }
            }
        };
        (problems.len() == before).then_some(Planned {
            wanted: wanted.clone(),
            address,
            udp,
            door,
        })
    }

    /// Why `address` cannot be opened, if that is because the running server has it open on another one.
    fn overlap(&self, transport: &str, address: SocketAddr) -> Option<Problem> {
        let ours = (self.started.listeners.iter()).find(|listener| {
            let open = if transport == "udp" {
                listener.has_datagrams()
            } else {
                listener.has_streams()
            };
            let (a, b) = (listener.address.ip(), address.ip());
            open && listener.address.port() == address.port()
                && (a == b || a.is_unspecified() || b.is_unspecified())
        })?;
        Some(Problem::host(
            "listen",
            format!(
                "cannot bind {transport} {address}: it overlaps {}, which this server has open until the reload is done",
                ours.address
            ),
            "remove that listener in one reload and add this one in the next, or restart",
        ))
    }

    /// Puts `next` into effect with what is prepared for it. Nothing here can fail.
    async fn apply(&mut self, next: Config, plan: Plan, set_log: &SetLog) -> Vec<String> {
        let mut notes = Vec::new();
        set_log(&next.log);
        if next.tls != self.config.tls {
            // Lest what an order brings in this moment takes the place of what is wanted now.
            self.certification.stop();
        }
        if let (Some(certificate), Some(served)) = (plan.certificate, &plan.certificates)
            && served.replace(certificate)
        {
            notes.push("the certificate is another one from now on".to_owned());
        }
        if let Some(served) = &plan.certificates {
            if served.replace_others(plan.others) {
                notes
                    .push("the certificates for other names are other ones from now on".to_owned());
            }
            served.claim(certification::own_names(&next));
        }
        self.certificates = plan.certificates;
        self.lobby.admission.set_limit(next.connections_per_address);
        (self.lobby.admission.passages()).set_limit(next.upstream_connections);

        let listeners: Vec<Listener> = (plan.listeners.iter())
            .map(|planned| Listener {
                address: planned.address,
                ..planned.wanted.clone()
            })
            .collect();
        let admin_address = plan.admin.as_ref().map(PreparedAdmin::address);
        let own = own_addresses(&next, &listeners, &plan.relays, admin_address);
        let relays_differ =
            plan.relays != self.relays || next.relay.ports != self.config.relay.ports;
        let now_unix = Clock.now().unix_secs();
        let gone = self.ledger.set_keys(key_lifetimes(&next), now_unix);
        self.ledger.configure(next.revoked.clone(), now_unix);
        for id in gone {
            notes.push(format!(
                "the API key {id:?} is gone: what it has minted is revoked"
            ));
        }
        let access = self.access(&next, own, relays_differ);
        let mut open = Vec::new();
        let mut spoken = shard::Spoken {
            speaks: Vec::new(),
            certificates: self.certificates.clone(),
        };
        let mut udp = Vec::new();
        let mut doors = Vec::new();
        for planned in plan.listeners {
            udp.push(match planned.udp {
                PlannedUdp::None => Some(None),
                PlannedUdp::Keep(slot) => {
                    spoken.speaks.push((slot, speaks(&planned.wanted)));
                    Some(Some(slot))
                }
                PlannedUdp::Open(unread) => {
                    open.push(unread);
                    None
                }
            });
            doors.push((planned.wanted, planned.door));
        }
        let (slots, all) = self
            .shards
            .change(shard::Change {
                access,
                turn: next.turn.clone(),
                limits: next.access.limits,
                relays: relays_differ.then(|| (plan.relays.clone(), next.relay.ports.clone())),
                listener_buffer_bytes: next.server.listener_buffer_bytes,
                relay_buffer_bytes: next.server.relay_buffer_bytes,
                busy_poll: next.server.busy_poll,
                close: plan.close,
                open,
                spoken: Some(spoken),
            })
            .await;
        if !all {
            notes.push("a shard is busy: it takes the change when it has time".to_owned());
        }
        let mut slots = slots.into_iter();
        let mut old: Vec<Option<Door>> = (self.listeners.drain(..)).map(|open| open.door).collect();
        let kept: Vec<Option<Door>> = (doors.iter())
            .map(|(_, door)| match door {
                PlannedDoor::Keep(at) => old.get_mut(*at).and_then(Option::take),
                PlannedDoor::None | PlannedDoor::Open(_) => None,
            })
            .collect();
        // Before others accept on the same ports: what waits there waits for them.
        for door in old.into_iter().flatten() {
            door.close().await;
        }
        for (((wanted, door), kept), udp) in doors.into_iter().zip(kept).zip(udp) {
            let door = match door {
                PlannedDoor::Open(prepared) => Some(self.lobby.open(*prepared)),
                PlannedDoor::None | PlannedDoor::Keep(_) => kept,
            };
            let udp = udp.unwrap_or_else(|| slots.next());
            self.listeners.push(Open { wanted, udp, door });
        }
        self.relays = plan.relays;
        self.started.listeners = listeners;
        self.started.relays = mappings(&self.relays);
        self.started.admin = admin_address;
        self.config = next;
        self.look_at(plan.look);
        // Everything it tells may have changed.
        if let Some(door) = self.admin.take() {
            door.close().await;
            self.events.dismiss();
            self.captures.dismiss();
        }
        self.remember();
        if let Some(prepared) = plan.admin {
            self.open_admin(prepared);
        }
        self.update_newcomers();
        self.certify();
        log_started(&self.started, self.shards.count());
        notes
    }

    /// Has the ICE configuration service tell what is in effect; of other servers as well, or by other credentials.
    pub(super) fn renew_service(&mut self, other_fleet: bool) {
        if other_fleet {
            self.fleet = ice::fleet(&self.config);
            self.canary.abort();
            let mint = ice::mint(&self.config);
            let watch = cluster::canary::watch(Arc::clone(&self.fleet), mint);
            self.canary = self.control.spawn(watch);
        }
        self.visits.replace(ice::visits(
            &self.config,
            &self.started.listeners,
            mappings(&self.relays),
        ));
        self.open_eyes();
        self.service.replace(ice::offer(
            &self.config,
            &self.started.listeners,
            mappings(&self.relays),
            Arc::clone(&self.fleet),
        ));
    }

    /// Serves the certificates that the files hold now; whether any is another one.
    ///
    /// # Errors
    /// What is wrong with them; the certificates that were served before are served on.
    pub fn reload_certificate(&self) -> Result<bool, certificates::CertificateError> {
        let Some(served) = &self.certificates else {
            return Ok(false);
        };
        let load = |files: &PemFiles| certificates::load(&files.certificate, &files.key);
        let files = self.config.tls.as_ref().and_then(Tls::files);
        let own = files.map(load).transpose()?;
        let others = (self.config.certificates.iter().map(load)).collect::<Result<Vec<_>, _>>()?;
        let differs = own.is_some_and(|own| served.replace(own));
        Ok(served.replace_others(others) || differs)
    }
}

fn shared(key: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::host(
        key,
        format!("a socket cannot be shared: {error}"),
        "if it says \"too many open files\", raise LimitNOFILE",
    )
}
