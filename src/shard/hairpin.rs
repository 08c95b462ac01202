//! Relay to relay across shards, and from clients that have moved: what one shard has for another in one turn travels as one parcel, and the empty
//! parcel comes back, so that in the steady state nothing is allocated.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use super::engine::Endpoint;
use super::mailbox::{Mailbox, Message};
use crate::access::Scope;

/// Datagrams of one parcel.
pub(super) const DATAGRAMS: usize = 64;

/// Bytes of one parcel; the longest datagram fits.
const BYTES: usize = 64 * 1024;

/// What one shard has for another.
pub(super) struct Parcel {
    /// The shard it came from and goes back to.
    home: u8,
    items: Vec<Item>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Item {
    what: What,
    end: usize,
}

#[derive(Clone, Copy)]
enum What {
    Hairpin {
        to: SocketAddr,
        from: SocketAddr,
        scope: Scope,
        tos: u8,
    },
    Passed {
        client: SocketAddr,
        endpoint: Endpoint,
        count: u32,
        back: bool,
        tos: u8,
    },
}

/// One datagram in a parcel.
pub(super) enum Datagram<'a> {
    Hairpin(Hairpin<'a>),
    Passed(Passed<'a>),
}

/// What a client sent that has moved, for the shard that has its allocation.
pub(super) struct Passed<'a> {
    pub client: SocketAddr,
    /// Where it was received.
    pub endpoint: Endpoint,
    /// How many Refreshes were passed on before and with it.
    pub count: u32,
    /// Back to where it was received: it was for that shard after all.
    pub back: bool,
    /// DSCP and ECN that it came with.
    pub tos: u8,
    pub payload: &'a [u8],
}

/// Application data between relayed addresses.
pub(super) struct Hairpin<'a> {
    /// The relayed address it is for.
    pub to: SocketAddr,
    /// The relayed address it is from.
    pub from: SocketAddr,
    /// How far the sending allocation reaches.
    pub scope: Scope,
    /// DSCP and ECN that it came with.
    pub tos: u8,
    pub payload: &'a [u8],
}

impl Parcel {
    fn new(home: u8) -> Box<Self> {
        Box::new(Self {
            home,
            items: Vec::with_capacity(DATAGRAMS),
            bytes: Vec::with_capacity(BYTES),
        })
    }

    fn takes(&self, length: usize) -> bool {
        self.items.len() < DATAGRAMS && self.bytes.len() + length <= BYTES
    }

    /// The shard it came from.
    pub fn home(&self) -> usize {
        usize::from(self.home)
    }

    /// Its datagrams, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let mut start = 0;
        self.items.iter().map(move |item| {
            let payload = self.bytes.get(start..item.end).unwrap_or_default();
            start = item.end;
            match item.what {
                What::Hairpin {
                    to,
                    from,
                    scope,
                    tos,
                } => Datagram::Hairpin(Hairpin {
                    to,
                    from,
                    scope,
                    tos,
                    payload,
                }),
                What::Passed {
                    client,
                    endpoint,
                    count,
                    back,
                    tos,
                } => Datagram::Passed(Passed {
                    client,
                    endpoint,
                    count,
                    back,
                    tos,
                    payload,
                }),
            }
        })
    }

    fn clear(&mut self) {
        self.items.clear();
        self.bytes.clear();
    }
}

/// What a shard has for the others.
pub(super) struct Parcels {
    home: u8,
    /// What has gathered for each shard.
    open: Vec<Option<Box<Parcel>>>,
    /// Some are open.
    waiting: bool,
    /// Those that came back.
    empties: mpsc::Receiver<Box<Parcel>>,
    neighbours: Vec<Mailbox>,
}

/// A parcel on its way, or refused: what is in it is for the caller to count.
pub(super) struct Posted<'a> {
    pub accepted: bool,
    /// Of the datagrams from relay to relay.
    pub lengths: &'a [usize],
    /// How many others there are.
    pub passed: usize,
}

impl Parcels {
    /// For shard `home`, whose parcels come back through `empties`.
    pub fn new(home: u8, neighbours: Vec<Mailbox>, empties: mpsc::Receiver<Box<Parcel>>) -> Self {
        Self {
            home,
            open: neighbours.iter().map(|_| None).collect(),
            waiting: false,
            empties,
            neighbours,
        }
    }

    /// The mailbox of `shard`, if there is one of that number and it is another.
    pub fn neighbour(&self, shard: u8) -> Option<&Mailbox> {
        (shard != self.home).then_some(())?;
        self.neighbours.get(usize::from(shard))
    }

    /// Packs one datagram for `shard`. A parcel that is full leaves first: see [`post`](Self::post).
    pub fn pack(&mut self, shard: u8, hairpin: &Hairpin<'_>, posted: impl FnMut(Posted<'_>)) {
        let &Hairpin {
            to,
            from,
            scope,
            tos,
            payload,
        } = hairpin;
        let what = What::Hairpin {
            to,
            from,
            scope,
            tos,
        };
        self.put(shard, what, payload, posted);
    }

    /// The same, for what a client sent.
    pub fn pass(&mut self, shard: u8, passed: &Passed<'_>, posted: impl FnMut(Posted<'_>)) {
        let &Passed {
            client,
            endpoint,
            count,
            back,
            tos,
            payload,
        } = passed;
        let what = What::Passed {
            client,
            endpoint,
            count,
            back,
            tos,
        };
        self.put(shard, what, payload, posted);
    }

    /// Whether there is such a shard.
    pub fn has(&self, shard: u8) -> bool {
        usize::from(shard) < self.neighbours.len()
    }

    /// Posts `message` to another shard.
    pub fn tell(&self, shard: u8, message: Message) {
        if let Some(neighbour) = self.neighbours.get(usize::from(shard)) {
            neighbour.send(message);
        }
    }

    fn put(&mut self, shard: u8, what: What, payload: &[u8], posted: impl FnMut(Posted<'_>)) {
        let Some(open) = self.open.get_mut(usize::from(shard)) else {
            return;
        };
        if (open.as_ref()).is_some_and(|parcel| !parcel.takes(payload.len())) {
            self.post_to(usize::from(shard), posted);
        }
        let parcel = match self.open.get_mut(usize::from(shard)) {
            Some(Some(parcel)) => parcel,
            Some(none) => none.insert(match self.empties.try_recv() {
                Ok(empty) => empty,
                Err(_) => Parcel::new(self.home),
            }),
            None => return,
        };
        parcel.bytes.extend_from_slice(payload);
        parcel.items.push(Item {
            what,
            end: parcel.bytes.len(),
        });
        self.waiting = true;
    }

    /// Sends what has gathered. `posted` hears of every parcel, also of one that a full mailbox refuses: its datagrams
    /// are lost, as in a full socket buffer.
    pub fn post(&mut self, mut posted: impl FnMut(Posted<'_>)) {
        if std::mem::take(&mut self.waiting) {
            for shard in 0..self.open.len() {
                self.post_to(shard, &mut posted);
            }
        }
    }

    fn post_to(&mut self, shard: usize, mut posted: impl FnMut(Posted<'_>)) {
        let (Some(open), Some(neighbour)) = (self.open.get_mut(shard), self.neighbours.get(shard))
        else {
            return;
        };
        let Some(parcel) = open.take() else {
            return;
        };
        let mut lengths = [0; DATAGRAMS];
        let (mut start, mut count) = (0, 0);
        for item in &parcel.items {
            if let What::Hairpin { .. } = item.what
                && let Some(length) = lengths.get_mut(count)
            {
                *length = item.end - start;
                count += 1;
            }
            start = item.end;
        }
        let passed = parcel.items.len() - count;
        let refused = neighbour.parcel(parcel).err();
        posted(Posted {
            accepted: refused.is_none(),
            lengths: lengths.get(..count).unwrap_or_default(),
            passed,
        });
        if let Some(mut parcel) = refused {
            parcel.clear();
            *open = Some(parcel);
        }
    }

    /// Gives an emptied parcel back to where it came from.
    pub fn give_back(&self, mut parcel: Box<Parcel>) {
        parcel.clear();
        if let Some(home) = self.neighbours.get(parcel.home()) {
            home.empty(parcel);
        }
    }
}
