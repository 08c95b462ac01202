//! The kernel's door: every system call and every `unsafe` block of turnix.
//!
//! Owns UDP sockets and their options ([`socket`]), what IP headers carry ([`headers`]), fixed memory for batched receiving and sending ([`batch`]), the
//! set of sockets a shard waits for ([`poll`]), descriptors between processes, questions about the host ([`host`]) and
//! its changes of addresses ([`AddressChanges`]). Knows nothing of STUN or TURN
//! and keeps no state about clients or peers. `io::Error` leaves this module only where a socket is opened; on the
//! data path errors are sorted by what the caller does about them ([`RecvFault`], [`SendFault`], [`SendReport`]).

#![allow(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, epoll, cmsg and rlimits have no safe interface that does not allocate per call"
)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod addresses;
pub mod batch;
mod descriptors;
pub mod headers;
pub mod host;
pub mod outbox;
mod poll;
pub mod socket;
mod sys;

pub use addresses::AddressChanges;
pub use batch::{Batch, HEADROOM, MAX_DATAGRAM, Received, TAILROOM};
pub use descriptors::{
    Channel, Doorway, MAX_DESCRIPTORS, Parcel, Peer, expect_descriptors, given, seal,
    sealable_memory, wait_readable,
};
pub use headers::{IcmpError, IpFields};
pub use outbox::{Front, Outgoing, SendReport};
pub use poll::Poller;
pub use socket::{
    RecvFault, SendFault, UdpOptions, UdpSocket, granted_buffers, relay_connector, relay_listener,
    tcp_listener,
};
