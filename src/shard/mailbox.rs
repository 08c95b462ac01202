//! What other threads may ask of a shard.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::access::Access;
use crate::base::trace::Traces;
use crate::metrics::ShardSnapshot;
use crate::records::Due;
use crate::stream::ClientStream;
use crate::turn::{
    AllocationId, AllocationView, Attempts, Bandwidth, EndReason, Newcomers, Remembered, Subject,
};

use super::capturing::Wanted;
use super::change::ShardChange;
use super::engine::Endpoint;
use super::hairpin::Parcel;
use super::handover::{Part, Sink};
use super::queue::Queue;

/// A page of live allocations, and whether there are more.
pub(super) type Page = (Vec<AllocationView>, bool);

/// Control messages: rare, never dropped.
pub(super) enum Message {
    /// Own this client from now on.
    Adopt(Box<ClientStream>),
    /// Copy the counters.
    Snapshot(oneshot::Sender<ShardSnapshot>),
    /// List the slots `from..from + count`.
    Views {
        from: usize,
        count: usize,
        answer: oneshot::Sender<Page>,
    },
    /// End an allocation; answers whether it was there.
    End {
        id: AllocationId,
        reason: EndReason,
        answer: oneshot::Sender<bool>,
    },
    /// Decide access by this from now on; answers how many allocations that ended.
    Access(Arc<Access>, oneshot::Sender<usize>),
    /// Take this from now on, and say when it is done.
    Change(Box<ShardChange>, oneshot::Sender<()>),
    /// Give this to clients that ask for an allocation and have none.
    Newcomers(Newcomers),
    /// Log the doings of these in detail from now on.
    Traces(Arc<Traces>),
    /// Let those in the slots `from..from + count` that are due leave a record; answers whether there are slots beyond.
    RecordLive {
        due: Due,
        from: usize,
        count: usize,
        answer: oneshot::Sender<bool>,
    },
    /// Hold to these limits from now on.
    Limits {
        bandwidth: Bandwidth,
        new_peers_per_second: u32,
    },
    /// Say that you live.
    Ping(oneshot::Sender<()>),
    /// Do nothing else for so long: for tests.
    Hold(Duration),
    /// Read nothing until `Thaw`; answers once nothing is on its way.
    Freeze(oneshot::Sender<()>),
    /// Give away what another process needs. While frozen.
    Export {
        part: Part,
        sink: Box<dyn Sink>,
        answer: oneshot::Sender<io::Result<()>>,
    },
    /// Read again.
    Thaw,
    /// Let go of what another process has now; answers how many connections are left.
    Leave(oneshot::Sender<u64>),
    /// Own this client from now on, for whom something waits: its ticket names an allocation here.
    Move(Box<(ClientStream, Queue)>),
    /// Datagrams of this client are no longer for the shard they were passed on to, as of the Refresh of that number.
    CallBack {
        endpoint: Endpoint,
        client: SocketAddr,
        count: u32,
    },
    /// Tell what is remembered of `subject`, whose live allocations are `live`.
    Why {
        subject: Subject,
        live: Vec<AllocationId>,
        answer: oneshot::Sender<Remembered>,
    },
    /// Copy the packets of an allocation out of the data path.
    Capture(Box<Wanted>),
    /// Nobody reads that capture any more.
    EndCapture(u64),
    /// Say what became of those who wanted an allocation since you were asked last.
    Attempts(oneshot::Sender<Attempts>),
    /// End everything.
    Stop,
}

/// Parcels that may wait for one shard; beyond it they are dropped, as a full socket buffer would.
const PARCELS: usize = 64;

#[derive(Clone)]
pub(super) struct Mailbox {
    control: mpsc::UnboundedSender<Message>,
    parcels: mpsc::Sender<Box<Parcel>>,
    empties: mpsc::Sender<Box<Parcel>>,
}

pub(super) struct Inbox {
    pub control: mpsc::UnboundedReceiver<Message>,
    /// Application data from other shards.
    pub parcels: mpsc::Receiver<Box<Parcel>>,
}

/// A shard's mailbox, both ends, and where its own parcels come back.
pub(super) fn open() -> (Mailbox, Inbox, mpsc::Receiver<Box<Parcel>>) {
    let (control, control_inbox) = mpsc::unbounded_channel();
    let (parcels, parcels_inbox) = mpsc::channel(PARCELS);
    let (empties, empties_inbox) = mpsc::channel(PARCELS);
    (
        Mailbox {
            control,
            parcels,
            empties,
        },
        Inbox {
            control: control_inbox,
            parcels: parcels_inbox,
        },
        empties_inbox,
    )
}

impl Mailbox {
    /// Posts `message`. A shard that is gone has nothing to do with it any more.
    pub fn send(&self, message: Message) {
        let _ = self.control.send(message);
    }

    /// Posts application data; it comes back if the mailbox is full or the shard gone.
    pub fn parcel(&self, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        self.parcels
            .try_send(parcel)
            .map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Gives one of the shard's own parcels back; there may be enough of them.
    pub fn empty(&self, parcel: Box<Parcel>) {
        let _ = self.empties.try_send(parcel);
    }
}
