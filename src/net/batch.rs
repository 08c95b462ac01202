//! Fixed memory in which datagrams arrive and from which they leave, many per system call.
//!
//! A slot is `HEADROOM | datagram | TAILROOM`: headers are written in front of the payload where it lies, and no
//! payload is copied between receiving and sending. Nothing is allocated after [`Batch::new`].
//!
//! A message may hold a train of datagrams of one size, of which the last may be shorter, from one sender (UDP_GRO):
//! they lie side by side in one slot. Headers that then do not fit in front of their datagram go into side memory
//! ([`Batch::front`]), and the kernel gathers.
//!
//! Sending merges runs of neighbouring items that go the same way and have the same size (the last may be shorter)
//! into one message that the kernel cuts up (UDP_SEGMENT, udp(7)): the network stack is walked once per run. Where
//! the kernel or the device refuses, the same datagrams leave one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::outbox::{Front, Outbox, Outgoing, SendReport};
use super::socket::{RecvFault, UdpSocket};
use super::sys::{self, Ancillary, Block, CONTROL_BYTES, Cause, Control, NAME_BYTES, Name};

/// Bytes free in front of every received datagram: a Data indication to an IPv6 peer takes 20 + 24 + 4.
pub const HEADROOM: usize = 48;
/// Bytes free behind the longest datagram: ChannelData over a byte stream is padded to four.
pub const TAILROOM: usize = 3;
/// The longest datagram, in bytes; no UDP payload exceeds it, so none is cut short.
pub const MAX_DATAGRAM: usize = 65_535;
/// Slots that [`Batch::default`] has.
pub const DEFAULT_SLOTS: usize = 64;

/// Bytes of one slot.
pub const SLOT_BYTES: usize = HEADROOM + MAX_DATAGRAM + TAILROOM;

/// Distance of two slots: whole cache lines, and not a multiple of the page size, so that the first bytes of all
/// slots do not compete for the same few sets of the cache.
const STRIDE: usize = SLOT_BYTES.next_multiple_of(64) | 64;
const _: () =
    assert!(STRIDE >= SLOT_BYTES && STRIDE.is_multiple_of(64) && !STRIDE.is_multiple_of(4096));

/// Slots beyond this are no use: recvmmsg and sendmmsg take at most UIO_MAXIOV messages.
const MAX_SLOTS: usize = 1024;

/// How often one receive call passes over pending errors of a socket.
const MAX_PENDING_ERRORS: usize = 16;

/// One received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The sender; a mapped IPv4 address is in its IPv4 form, a link-local IPv6 address has its scope.
    pub from: SocketAddr,
    /// The address it was sent to, canonical; only from sockets with [`UdpOptions::packet_info`].
    pub local: Option<IpAddr>,
    /// Bytes of payload, of all datagrams together.
    pub len: usize,
    /// Bytes of every datagram but the last; `len` where there is only one.
    pub datagram_bytes: usize,
    /// The datagram was longer than the slot; cannot happen with UDP.
    pub truncated: bool,
    /// DSCP and ECN; only from sockets that report them, else 0.
    pub tos: u8,
}

impl Received {
    const NOTHING: Self = Self {
        from: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        local: None,
        len: 0,
        datagram_bytes: 0,
        truncated: false,
        tos: 0,
    };

    /// Where each datagram lies in the payload, in order. At least one, which may be empty.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (len, step) = (self.len, self.datagram_bytes.max(1));
        (0..len.max(1))
            .step_by(step)
            .map(move |start| start..len.min(start + step))
    }

    /// How many datagrams there are.
    pub fn count(&self) -> usize {
        self.len.max(1).div_ceil(self.datagram_bytes.max(1))
    }
}

/// The memory of the slots.
pub(super) struct Slots {
    count: usize,
    memory: Block<u8>,
}

impl Slots {
    /// The number of slots.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Where byte `at` of `slot` is, valid as long as the slots live.
    pub(super) fn address(&self, slot: usize, at: usize) -> *mut u8 {
        self.memory.address(slot * STRIDE + at)
    }
}

/// Slots for datagrams and the kernel structures that describe them.
pub struct Batch {
    pub(super) slots: Slots,
    received: Vec<Received>,
    // Always armed: header i describes name i, control i and piece i, which covers slot i.
    headers: Block<libc::mmsghdr>,
    names: Block<Name>,
    _controls: Block<Control>,
    _pieces: Block<libc::iovec>,
    pub(super) outbox: Outbox,
}

// SAFETY: the raw pointers inside the kernel structures lead only to blocks that this `Batch` owns and that keep
// their address when it moves.
unsafe impl Send for Batch {}

impl Default for Batch {
    fn default() -> Self {
        Self::new(DEFAULT_SLOTS)
    }
}

impl Batch {
    /// Allocates `slots` slots, 1 to 1024. Memory that no datagram touches stays unmapped.
    pub fn new(slots: usize) -> Self {
        let slots = slots.clamp(1, MAX_SLOTS);
        let slots = Slots {
            count: slots,
            memory: Block::new(slots * STRIDE),
        };
        let mut headers = Block::<libc::mmsghdr>::new(slots.count);
        let names = Block::<Name>::new(slots.count);
        let controls = Block::<Control>::new(slots.count);
        let mut pieces = Block::<libc::iovec>::new(slots.count);
        for slot in 0..slots.count {
            *pieces.get_mut(slot) = libc::iovec {
                iov_base: slots.address(slot, HEADROOM).cast(),
                iov_len: MAX_DATAGRAM,
            };
            let header = &mut headers.get_mut(slot).msg_hdr;
            header.msg_name = names.address(slot).cast();
            header.msg_iov = pieces.address(slot);
            header.msg_iovlen = 1;
            header.msg_control = controls.address(slot).cast();
            arm(header);
        }
        Self {
            received: vec![Received::NOTHING; slots.count],
            outbox: Outbox::new(slots.count),
            slots,
            headers,
            names,
            _controls: controls,
            _pieces: pieces,
        }
    }

    /// Sends every datagram by itself from now on: what follows is cut up by nobody.
    pub fn without_segmentation(mut self) -> Self {
        self.outbox.without_merging();
        self
    }

    /// The number of slots.
    pub const fn slots(&self) -> usize {
        self.slots.count
    }

    /// Receives into the slots from `first` on and returns how many were filled: 0 if nothing is there, or no slot.
    ///
    /// Pending ICMP errors and a kernel short of memory are passed over.
    ///
    /// # Errors
    /// The socket is dead.
    pub fn receive(&mut self, socket: &UdpSocket, first: usize) -> Result<usize, RecvFault> {
        self.receive_up_to(socket, first, self.slots.count)
    }

    fn receive_up_to(
        &mut self,
        socket: &UdpSocket,
        first: usize,
        most: usize,
    ) -> Result<usize, RecvFault> {
        if first >= self.slots.count {
            return Ok(0);
        }
        let mut pending_errors = 0;
        let count = loop {
            // SAFETY: recvmmsg(2) fills at most `vlen` headers from the one given; all slots from `first` on have
            // armed headers, whose pointers lead to blocks that `self` owns, with the lengths set in `new` and `arm`.
            // The timeout may be null.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.address(first),
                    (self.slots.count - first).min(most) as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(count) = usize::try_from(count) {
                break count;
            }
            if again_after_error(&mut pending_errors)? == Again::No {
                return Ok(0);
            }
        };
        for slot in first..first + count {
            let message = self.headers.get_mut(slot);
            // SAFETY: recvmmsg just filled this header; its control memory belongs to `self`.
            let ancillary = unsafe { sys::ancillary(&message.msg_hdr) };
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let len = message.msg_len as usize;
            arm(&mut message.msg_hdr);
            self.note(slot, len, ancillary, truncated);
        }
        Ok(count)
    }

    /// Receives one message into slot `first`; whether there was one. For sockets that rarely hold two at a time:
    /// [`receive`](Self::receive) always asks for another one. Otherwise the same.
    ///
    /// # Errors
    /// The socket is dead.
    pub fn receive_one(&mut self, socket: &UdpSocket, first: usize) -> Result<bool, RecvFault> {
        if first >= self.slots.count {
            return Ok(false);
        }
        if socket.has_ancillary() {
            return self.receive_one_with_ancillary(socket, first);
        }
        let mut pending_errors = 0;
        let len = loop {
            let mut name_bytes = NAME_BYTES;
            // SAFETY: recvfrom(2) writes at most MAX_DATAGRAM bytes into the slot, which has room for them behind
            // HEADROOM, and a name of at most NAME_BYTES.
            let len = unsafe {
                libc::recvfrom(
                    socket.as_raw_fd(),
                    self.slots.address(first, HEADROOM).cast(),
                    MAX_DATAGRAM,
                    libc::MSG_DONTWAIT,
                    self.names.address(first).cast(),
                    &raw mut name_bytes,
                )
            };
            if let Ok(len) = usize::try_from(len) {
                break len;
            }
            if again_after_error(&mut pending_errors)? == Again::No {
                return Ok(false);
            }
        };
        self.note(first, len, Ancillary::default(), false);
        Ok(true)
    }

    fn receive_one_with_ancillary(
        &mut self,
        socket: &UdpSocket,
        slot: usize,
    ) -> Result<bool, RecvFault> {
        let mut pending_errors = 0;
        let len = loop {
            let header = &raw mut self.headers.get_mut(slot).msg_hdr;
            // SAFETY: recvmsg(2) fills the header of `slot`, which is armed; its pointers lead to blocks that `self` owns.
            let len = unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) };
            if let Ok(len) = usize::try_from(len) {
                break len;
            }
            if again_after_error(&mut pending_errors)? == Again::No {
                return Ok(false);
            }
        };
        let header = &mut self.headers.get_mut(slot).msg_hdr;
        // SAFETY: recvmsg just filled this header; its control memory belongs to `self`.
        let ancillary = unsafe { sys::ancillary(header) };
        let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
        arm(header);
        self.note(slot, len, ancillary, truncated);
        Ok(true)
    }

    fn note(&mut self, slot: usize, len: usize, ancillary: Ancillary, truncated: bool) {
        let len = len.min(MAX_DATAGRAM);
        self.received[slot] = Received {
            from: self.names.get(slot).decode(),
            local: ancillary.local,
            len,
            datagram_bytes: ancillary.segment_bytes.unwrap_or(len).min(len),
            truncated,
            tos: ancillary.tos,
        };
    }

    /// What the last [`receive`](Self::receive) put into `slot`.
    ///
    /// # Panics
    /// There is no such slot: a bug of the caller.
    pub fn received(&self, slot: usize) -> Received {
        self.received[slot]
    }

    /// The same of several slots, in order.
    ///
    /// # Panics
    /// There are no such slots: a bug of the caller.
    pub fn all_received(&self, slots: Range<usize>) -> impl Iterator<Item = &Received> {
        self.received[slots].iter()
    }

    /// The datagram in `slot` as it was received.
    ///
    /// # Panics
    /// There is no such slot: a bug of the caller.
    pub fn payload(&self, slot: usize) -> &[u8] {
        let len = self.received[slot].len;
        self.bytes(slot, HEADROOM..HEADROOM + len)
    }

    /// The whole memory of `slot`, [`SLOT_BYTES`] long; the datagram begins at [`HEADROOM`].
    ///
    /// # Panics
    /// There is no such slot: a bug of the caller.
    pub fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        assert!(
            slot < self.slots.count,
            "slot {slot} of {}",
            self.slots.count
        );
        (self.slots.memory).slice_mut(slot * STRIDE..slot * STRIDE + SLOT_BYTES)
    }

    /// Bytes of `slot`, counted from the start of its memory.
    ///
    /// # Panics
    /// There is no such slot, or `range` leaves it: a bug of the caller.
    pub fn bytes(&self, slot: usize, range: Range<usize>) -> &[u8] {
        assert!(
            slot < self.slots.count && range.end <= SLOT_BYTES,
            "{range:?} of slot {slot} of {}",
            self.slots.count
        );
        let base = slot * STRIDE;
        self.slots
            .memory
            .slice(base + range.start..base + range.end)
    }

    /// Keeps a header of at most [`HEADROOM`] bytes in side memory, and up to [`TAILROOM`] bytes of padding for behind
    /// the payload. `None` if the side memory is full: send what has gathered, then
    /// [`forget`](Self::forget_fronts) what it holds.
    ///
    /// # Panics
    /// The header or the padding is too long: a bug of the caller.
    pub fn front(&mut self, header: &[u8], padding: usize) -> Option<Front> {
        self.outbox.front(header, padding)
    }

    /// Frees the side memory: no [`Front`] made before may be used any more.
    pub fn forget_fronts(&mut self) {
        self.outbox.forget_fronts();
    }

    /// The bytes of `item` in the order they leave: its header in side memory, its bytes in the slot, padding.
    ///
    /// # Panics
    /// It lies outside its slot: a bug of the caller.
    pub fn pieces(&self, item: &Outgoing) -> [&[u8]; 3] {
        let start = item.start as usize;
        let bytes = self.bytes(usize::from(item.slot), start..start + item.len as usize);
        let (header, padding) = match item.front {
            Some(front) => self.outbox.around(front),
            None => Default::default(),
        };
        [header, bytes, padding]
    }

    /// Sends `items` in order, straight from slot memory, with as few system calls as possible. Never blocks.
    ///
    /// An item that fails is counted and the next one goes on; nothing is sent later. There may be more items than
    /// slots, and several of one slot.
    pub fn send(&mut self, socket: &UdpSocket, items: &[Outgoing]) -> SendReport {
        self.outbox.send(&self.slots, socket, items)
    }
}

/// Readies a header for receiving: the kernel has overwritten the lengths with those of the last datagram.
fn arm(header: &mut libc::msghdr) {
    header.msg_namelen = NAME_BYTES;
    header.msg_controllen = CONTROL_BYTES as _;
    header.msg_flags = 0;
}

/// Whether to call once more after a failed receive call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Yes,
    /// Nothing is there.
    No,
}

/// What the last failed receive call of this thread asks for; the caller counts in `pending_errors`.
fn again_after_error(pending_errors: &mut usize) -> Result<Again, RecvFault> {
    let errno = sys::last_errno();
    match after_receive_error(Cause::of(errno)) {
        // The socket is still reported as readable if there is more.
        Some(Again::Yes) if *pending_errors >= MAX_PENDING_ERRORS => Ok(Again::No),
        Some(again) => {
            *pending_errors += 1;
            Ok(again)
        }
        None => Err(RecvFault::Dead { errno }),
    }
}

/// `None` if the descriptor is of no use any more.
fn after_receive_error(cause: Cause) -> Option<Again> {
    match cause {
        Cause::WouldBlock => Some(Again::No),
        // The errors of earlier sends; reading them has cleared them.
        Cause::Interrupted
        | Cause::Unreachable
        | Cause::TooLarge
        | Cause::NoBuffers
        | Cause::Unsegmented
        | Cause::Refused => Some(Again::Yes),
        Cause::Invalid | Cause::Fatal => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_slots_is_kept_within_bounds() {
        assert_eq!(Batch::new(0).slots(), 1);
        assert_eq!(Batch::new(5000).slots(), 1024);
    }

    #[test]
    fn only_a_useless_descriptor_is_dead() {
        for (errno, expected) in [
            (libc::EAGAIN, Some(Again::No)),
            (libc::EINTR, Some(Again::Yes)),
            (libc::ECONNREFUSED, Some(Again::Yes)),
            (libc::EHOSTUNREACH, Some(Again::Yes)),
            (libc::EMSGSIZE, Some(Again::Yes)),
            (libc::ENOMEM, Some(Again::Yes)),
            (libc::EBADF, None),
            (libc::ENOTSOCK, None),
            (libc::EINVAL, None),
        ] {
            assert_eq!(after_receive_error(Cause::of(errno)), expected, "{errno}");
        }
    }
}
