//! What can happen to a server in virtual time.

use super::model::Kind;

pub const CLIENTS: usize = 6;
pub const CREDENTIALS: usize = 9;

#[derive(Clone, Debug)]
pub struct World {
    pub strict_expiry: bool,
    pub steps: Vec<Step>,
}

/// One operation, told a time that lies `back_ms` in the past.
#[derive(Clone, Debug)]
pub struct Step {
    pub back_ms: u64,
    pub operation: Operation,
}

#[derive(Clone, Copy, Debug)]
pub enum Opening {
    Opens,
    Quota,
    Capacity,
    Later,
}

#[derive(Clone, Copy, Debug)]
pub enum NonceChoice {
    Own,
    Of(usize),
    Junk,
}

#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// `None`: the credential that belongs to the client.
    pub credential: Option<usize>,
    pub nonce: NonceChoice,
}

#[derive(Clone, Debug)]
pub enum Operation {
    /// Time passes; timers fire on time, or nobody tells the server.
    Pass {
        ms: u64,
        unnoticed: bool,
    },
    /// Time passes until a millisecond before, to or after the next moment at which the model has something end.
    PassToEnd {
        after: u64,
        unnoticed: bool,
    },
    Timeout,
    Request {
        client: usize,
        kind: Kind,
        signature: Option<Signature>,
        fingerprint: bool,
        unknown_attribute: bool,
        /// With the transaction id of the client's last Allocate.
        retransmitted: bool,
        opening: Opening,
    },
    OpenLater {
        which: usize,
        outcome: Opening,
    },
    Send {
        client: usize,
        peer: usize,
        bytes: usize,
    },
    ChannelData {
        client: usize,
        channel: u16,
        bytes: usize,
    },
    FromPeer {
        which: usize,
        peer: usize,
        bytes: usize,
    },
    ClientClosed {
        client: usize,
    },
    Administrative {
        which: usize,
    },
    RelayFailed {
        which: usize,
    },
    /// Another process goes on with one of the two servers.
    HandOver,
    /// Another snapshot of who may log in and who may be reached.
    SetAccess {
        stricter: bool,
    },
}
