//! What changes in running shards: every shard takes all of it between two turns.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::access::{Access, Limits, Revocations};
use crate::base::{Clock, Family};
use crate::net::UdpSocket;
use crate::stream::Certificates;
use crate::turn::{self, Newcomers};

use super::dtls::Speaks;
use super::mailbox::Message;
use super::ports::RelayPool;
use super::{ANSWER_TIMEOUT, BindError, RelayIp, Shards, lock, open_listener};

/// What is in effect from now on. Whatever is not named stays.
pub struct Change {
    /// What decides access.
    pub access: Arc<Access>,
    /// The core's settings.
    pub turn: turn::Settings,
    /// Quotas. What lives already stays, even above them.
    pub limits: Limits,
    /// Where new relayed addresses come from, and their ports; `None` leaves them.
    pub relays: Option<(Vec<RelayIp>, RangeInclusive<u16>)>,
    /// Receive and send buffer of each listener, in bytes.
    pub listener_buffer_bytes: usize,
    /// Receive and send buffer of new relay sockets, in bytes.
    pub relay_buffer_bytes: usize,
    /// How long a shard asks for packets again and again before it sleeps.
    pub busy_poll: Duration,
    /// UDP listeners that are closed; their clients' allocations end.
    pub close: Vec<ListenerSlot>,
    /// UDP listeners that are new.
    pub open: Vec<Unread>,
    /// What is spoken on the UDP listeners that stay; `None` leaves it.
    pub spoken: Option<Spoken>,
}

/// What is spoken with datagrams from now on.
#[derive(Clone)]
pub struct Spoken {
    /// On each listener that stays.
    pub speaks: Vec<(ListenerSlot, Speaks)>,
    /// What DTLS shows for itself.
    pub certificates: Option<Arc<Certificates>>,
}

/// A UDP listener among all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerSlot(pub(super) usize);

/// A UDP listener whose sockets are open, one for each shard, and read by nobody yet.
pub struct Unread {
    pub(super) address: SocketAddr,
    pub(super) sockets: Vec<UdpSocket>,
    /// What is spoken on it.
    pub(super) speaks: Speaks,
}

impl Unread {
    /// The address it got.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// One shard's share of a change.
pub(super) struct ShardChange {
    pub access: Arc<Access>,
    pub turn: turn::Settings,
    /// The pool that new relayed addresses come from, and their families.
    pub relays: Option<(Arc<RelayPool>, Vec<Family>)>,
    pub listener_buffer_bytes: usize,
    pub relay_buffer_bytes: usize,
    pub busy_poll: Duration,
    pub close: Vec<ListenerSlot>,
    pub open: Vec<(ListenerSlot, UdpSocket, Speaks)>,
    pub spoken: Option<Spoken>,
}

impl Shards {
    /// Opens a UDP listener that [`change`](Self::change) may give to the shards.
    ///
    /// # Errors
    /// The system refuses one of its sockets.
    pub fn open_listener(
        &self,
        address: SocketAddr,
        speaks: Speaks,
        buffer_bytes: usize,
    ) -> Result<Unread, BindError> {
        let sockets = open_listener(address, self.count(), buffer_bytes, Vec::new())
            .map_err(|source| BindError { address, source })?;
        let address = sockets.first().map_or(address, UdpSocket::local_addr);
        Ok(Unread {
            address,
            sockets,
            speaks,
        })
    }

    /// Has every shard take `change`, and waits until all have, a while at most; the slots of the new listeners, in
    /// their order, and whether all shards answered.
    pub async fn change(&self, change: Change) -> (Vec<ListenerSlot>, bool) {
        self.pool().set_limits(change.limits);
        self.pool().set_realms(&change.access.realms);
        self.budgets.set(change.turn.bandwidth);
        let relays = change
            .relays
            .map(|(ips, ports)| self.renew_pool(&ips, ports));
        let mut slots = Vec::new();
        let mut each_open: Vec<Vec<(ListenerSlot, UdpSocket, Speaks)>> =
            (0..self.count()).map(|_| Vec::new()).collect();
        {
            let mut listeners = lock(&self.listeners);
            for slot in &change.close {
                if let Some(listener) = listeners.get_mut(slot.0) {
                    *listener = None;
                }
            }
            for unread in change.open {
                // Shards close before they open, and take changes in order: a slot that is free here is free there.
                let free = listeners.iter().position(Option::is_none);
                let slot = free.unwrap_or(listeners.len());
                match listeners.get_mut(slot) {
                    Some(listener) => *listener = Some(unread.address),
                    None => listeners.push(Some(unread.address)),
                }
                let slot = ListenerSlot(slot);
                slots.push(slot);
                for (shard, socket) in each_open.iter_mut().zip(unread.sockets) {
                    shard.push((slot, socket, unread.speaks));
                }
            }
        }
        let mut answers = Vec::new();
        {
            // Held until every shard has it in its mailbox: they all take changes of access in the same order.
            let mut current = lock(&self.access);
            *current = at_least_as_new(&change.access, &current.revoked);
            for (handle, open) in self.handles.iter().zip(each_open) {
                let (answer, answered) = oneshot::channel();
                let change = ShardChange {
                    access: Arc::clone(&current),
                    turn: change.turn.clone(),
                    relays: relays.clone(),
                    listener_buffer_bytes: change.listener_buffer_bytes,
                    relay_buffer_bytes: change.relay_buffer_bytes,
                    busy_poll: change.busy_poll,
                    close: change.close.clone(),
                    open,
                    spoken: change.spoken.clone(),
                };
                (handle.mailbox).send(Message::Change(Box::new(change), answer));
                answers.push(answered);
            }
        }
        let all = async {
            for answered in answers {
                if answered.await.is_err() {
                    return false;
                }
            }
            true
        };
        // A shard that is busy for longer takes it later, in the order of its mailbox.
        let patience = ANSWER_TIMEOUT * 10;
        let all = tokio::time::timeout(patience, all).await.unwrap_or(false);
        (slots, all)
    }

    /// Replaces the snapshot that decides access, in every shard, between two batches.
    pub fn set_access(&self, access: &Arc<Access>) {
        let mut current = lock(&self.access);
        *current = at_least_as_new(access, &current.revoked);
        drop(self.send_access(&current));
    }

    /// Has every shard refuse what `revoked` holds, and end what lives of it; how many allocations that were. What is
    /// older than what they have changes nothing.
    pub async fn revoke(&self, revoked: Revocations) -> usize {
        let answers = {
            let mut current = lock(&self.access);
            if !revoked.is_newer(&current.revoked) {
                return 0;
            }
            *current = Arc::new((**current).clone().with_revoked(revoked));
            self.send_access(&current)
        };
        let mut ended = 0;
        for answered in answers {
            // A shard that is busy for longer does it later.
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
            ended += answer.map_or(0, Result::unwrap_or_default);
        }
        ended
    }

    fn send_access(&self, access: &Arc<Access>) -> Vec<oneshot::Receiver<usize>> {
        (self.handles.iter())
            .map(|handle| {
                let (answer, answered) = oneshot::channel();
                (handle.mailbox).send(Message::Access(Arc::clone(access), answer));
                answered
            })
            .collect()
    }

    /// Decides in every shard what newcomers get.
    pub fn set_newcomers(&self, newcomers: &Newcomers) {
        for handle in self.handles.iter() {
            (handle.mailbox).send(Message::Newcomers(newcomers.clone()));
        }
    }

    /// Relayed addresses of earlier configurations that may live, as clients and peers see them; with `all`, those of the
    /// pool in use, too.
    pub fn earlier_relays(&self, all: bool) -> Vec<(IpAddr, RangeInclusive<u16>)> {
        let pools = lock(&self.pools);
        let (last, older) = match pools.split_last() {
            Some((last, older)) => (all.then_some(last), older),
            None => (None, &pools[..]),
        };
        (older.iter().filter(|pool| !pool.is_idle()))
            .chain(last)
            .flat_map(|pool| pool.ranges())
            .collect()
    }

    /// A pool that takes over from the one there is, whose relayed addresses live on.
    fn renew_pool(
        &self,
        ips: &[RelayIp],
        ports: RangeInclusive<u16>,
    ) -> (Arc<RelayPool>, Vec<Family>) {
        let mut pools = lock(&self.pools);
        let next = RelayPool::succeed(&pools, ips, ports, Clock.now().mono);
        let next = Arc::new(next.unwrap_or_else(|| unreachable!("there is always one pool")));
        pools.retain(|pool| !pool.is_idle());
        pools.push(Arc::clone(&next));
        (next, super::families(ips))
    }
}

/// `access`, with what is `revoked` meanwhile.
fn at_least_as_new(access: &Arc<Access>, revoked: &Revocations) -> Arc<Access> {
    if revoked.is_newer(&access.revoked) {
        Arc::new((**access).clone().with_revoked(revoked.clone()))
    } else {
        Arc::clone(access)
    }
}
