//! Relay to relay across shards: what one shard has for another in one turn travels as one parcel, and the empty
//! parcel comes back, so that in the steady state nothing is allocated.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use super::mailbox::Mailbox;
use crate::access::Scope;

/// Datagrams of one parcel.
pub(super) const DATAGRAMS: usize = 64;

/// Bytes of one parcel; the longest datagram fits.
const BYTES: usize = 64 * 1024;

/// Application data from relayed addresses of one shard to those of another.
pub(super) struct Parcel {
    /// The shard it came from and goes back to.
    home: u8,
    items: Vec<Item>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Item {
    to: SocketAddr,
    from: SocketAddr,
    scope: Scope,
    end: usize,
}

/// One datagram in a parcel.
pub(super) struct Hairpin<'a> {
    /// The relayed address it is for.
    pub to: SocketAddr,
    /// The relayed address it is from.
    pub from: SocketAddr,
    /// How far the sending allocation reaches.
    pub scope: Scope,
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
    pub fn datagrams(&self) -> impl Iterator<Item = Hairpin<'_>> {
        let mut start = 0;
        self.items.iter().map(move |item| {
            let payload = self.bytes.get(start..item.end).unwrap_or_default();
            start = item.end;
            Hairpin {
                to: item.to,
                from: item.from,
                scope: item.scope,
                payload,
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

/// A parcel on its way, or refused: the lengths of its datagrams are for the caller to count.
pub(super) struct Posted<'a> {
    pub accepted: bool,
    pub lengths: &'a [usize],
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
        let Some(open) = self.open.get_mut(usize::from(shard)) else {
            return;
        };
        if (open.as_ref()).is_some_and(|parcel| !parcel.takes(hairpin.payload.len())) {
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
        parcel.bytes.extend_from_slice(hairpin.payload);
        parcel.items.push(Item {
            to: hairpin.to,
            from: hairpin.from,
            scope: hairpin.scope,
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
        let mut start = 0;
        for (length, item) in lengths.iter_mut().zip(&parcel.items) {
            *length = item.end - start;
            start = item.end;
        }
        let count = parcel.items.len();
        let refused = neighbour.parcel(parcel).err();
        posted(Posted {
            accepted: refused.is_none(),
            lengths: lengths.get(..count).unwrap_or_default(),
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
