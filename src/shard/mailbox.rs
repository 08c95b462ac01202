//! What other threads may ask of a shard.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::access::Access;
use crate::metrics::ShardSnapshot;
use crate::stream::ClientStream;
use crate::turn::{AllocationId, AllocationView, EndReason};

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
    /// Decide access by this from now on.
    Access(Arc<Access>),
    /// Say that you live.
    Ping(oneshot::Sender<()>),
    /// End everything.
    Stop,
}

/// Application data from a relayed address of one shard to one of another.
pub(super) struct Hairpin {
    /// The relayed address it is for.
    pub to: SocketAddr,
    /// The relayed address it is from.
    pub from: SocketAddr,
    pub payload: Box<[u8]>,
}

/// Datagrams that may wait for another shard; beyond it they are dropped, as a full socket buffer would.
const HAIRPINS: usize = 1024;

#[derive(Clone)]
pub(super) struct Mailbox {
    control: mpsc::UnboundedSender<Message>,
    hairpins: mpsc::Sender<Hairpin>,
}

pub(super) struct Inbox {
    pub control: mpsc::UnboundedReceiver<Message>,
    pub hairpins: mpsc::Receiver<Hairpin>,
}

pub(super) fn pair() -> (Mailbox, Inbox) {
    let (control, control_inbox) = mpsc::unbounded_channel();
    let (hairpins, hairpins_inbox) = mpsc::channel(HAIRPINS);
    (
        Mailbox { control, hairpins },
        Inbox {
            control: control_inbox,
            hairpins: hairpins_inbox,
        },
    )
}

impl Mailbox {
    /// Posts `message`. A shard that is gone has nothing to do with it any more.
    pub fn send(&self, message: Message) {
        let _ = self.control.send(message);
    }

    /// Posts application data; false if the mailbox is full or the shard gone.
    pub fn hairpin(&self, hairpin: Hairpin) -> bool {
        self.hairpins.try_send(hairpin).is_ok()
    }
}
