//! Fixed memory in which datagrams arrive and from which they leave, many per system call.
//!
//! A slot is `HEADROOM | datagram | TAILROOM`: headers are written in front of the payload where it lies, and no
//! payload is copied between receiving and sending. Nothing is allocated after [`Batch::new`].
//!
//! Sending merges runs of neighbouring items that go the same way and have the same size (the last may be shorter)
//! into one message that the kernel cuts up (UDP_SEGMENT, udp(7)): the network stack is walked once per run. Where
//! the kernel or the device refuses, the same datagrams leave one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use super::socket::{RecvFault, SendFault, UdpOptions, UdpSocket};
use super::sys::{self, Block, CONTROL_BYTES, Cause, Control, NAME_BYTES, Name, SEGMENT_SPACE};

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

/// Limits of a run that is sent as one message.
#[derive(Clone, Copy, Debug)]
struct Merge {
    /// Datagrams, UDP_MAX_SEGMENTS of older kernels.
    pieces: usize,
    /// Bytes of one datagram: what fits IPv6's minimum MTU of 1280, because the kernel refuses to merge datagrams
    /// that it would have to fragment.
    piece_bytes: usize,
    /// Bytes of all together: what fits one IPv4 datagram.
    total_bytes: usize,
}

const MERGE: Merge = Merge {
    pieces: 64,
    piece_bytes: 1280 - 40 - 8,
    total_bytes: 65_535 - 20 - 8,
};

/// One received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The sender; a mapped IPv4 address is in its IPv4 form, a link-local IPv6 address has its scope.
    pub from: SocketAddr,
    /// The address it was sent to, canonical; only from sockets with [`UdpOptions::packet_info`].
    pub local: Option<IpAddr>,
    /// Bytes of payload.
    pub len: usize,
    /// The datagram was longer than the slot; cannot happen with UDP.
    pub truncated: bool,
}

impl Received {
    const NOTHING: Self = Self {
        from: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        local: None,
        len: 0,
        truncated: false,
    };
}

/// One datagram to send: `len` bytes from `start` in the memory of `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The slot that holds the bytes.
    pub slot: u16,
    /// Offset of the first byte in the slot; a received datagram begins at [`HEADROOM`].
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
    /// Where to.
    pub to: SocketAddr,
    /// The local address to send from, for sockets bound to a wildcard.
    pub from: Option<IpAddr>,
}

impl Outgoing {
    /// The bytes in the slot, `None` if they would lie outside it.
    fn range(&self) -> Option<Range<usize>> {
        let start = self.start as usize;
        let end = start.checked_add(self.len as usize)?;
        (end <= SLOT_BYTES).then_some(start..end)
    }
}

/// What became of the items of one [`Batch::send`], in datagrams; the fields add up to the number of items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Handed to the kernel.
    pub sent: u32,
    /// Dropped because the send buffer or the device's queue was full, the newest first to go.
    pub would_block: u32,
    /// Dropped because they exceed what UDP or the path carries.
    pub too_large: u32,
    /// Dropped for any other reason: unreachable, refused by a firewall, a family that the socket does not have.
    pub failed: u32,
}

impl SendReport {
    fn count(&mut self, fault: SendFault, datagrams: u32) {
        *match fault {
            SendFault::WouldBlock => &mut self.would_block,
            SendFault::TooLarge => &mut self.too_large,
            SendFault::Unreachable | SendFault::Other => &mut self.failed,
        } += datagrams;
    }
}

/// Slots for datagrams and the kernel structures that describe them.
pub struct Batch {
    slots: usize,
    memory: Block<u8>,
    received: Vec<Received>,
    // Receiving: always armed, header i describes name i, control i and piece i, which covers slot i.
    in_headers: Block<libc::mmsghdr>,
    in_names: Block<Name>,
    _in_controls: Block<Control>,
    _in_pieces: Block<libc::iovec>,
    // Sending: filled anew by every call.
    out_headers: Block<libc::mmsghdr>,
    out_names: Block<Name>,
    out_controls: Block<Control>,
    out_pieces: Block<libc::iovec>,
    merge: Option<Merge>,
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
        let memory = Block::<u8>::new(slots * STRIDE);
        let mut in_headers = Block::<libc::mmsghdr>::new(slots);
        let in_names = Block::<Name>::new(slots);
        let in_controls = Block::<Control>::new(slots);
        let mut in_pieces = Block::<libc::iovec>::new(slots);
        for slot in 0..slots {
            *in_pieces.get_mut(slot) = libc::iovec {
                iov_base: memory.address(slot * STRIDE + HEADROOM).cast(),
                iov_len: MAX_DATAGRAM,
            };
            let header = &mut in_headers.get_mut(slot).msg_hdr;
            header.msg_name = in_names.address(slot).cast();
            header.msg_iov = in_pieces.address(slot);
            header.msg_iovlen = 1;
            header.msg_control = in_controls.address(slot).cast();
            arm(header);
        }
        Self {
            slots,
            memory,
            received: vec![Received::NOTHING; slots],
            in_headers,
            in_names,
            _in_controls: in_controls,
            _in_pieces: in_pieces,
            out_headers: Block::new(slots),
            out_names: Block::new(slots),
            out_controls: Block::new(slots),
            out_pieces: Block::new(slots),
            merge: kernel_segments().then_some(MERGE),
        }
    }

    /// Sends every datagram by itself from now on: what follows is cut up by nobody.
    pub fn without_segmentation(mut self) -> Self {
        self.merge = None;
        self
    }

    /// The number of slots.
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Receives into the slots from `first` on and returns how many were filled: 0 if nothing is there, or no slot.
    ///
    /// Pending ICMP errors and a kernel short of memory are passed over.
    ///
    /// # Errors
    /// The socket is dead.
    pub fn receive(&mut self, socket: &UdpSocket, first: usize) -> Result<usize, RecvFault> {
        if first >= self.slots {
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
                    self.in_headers.address(first),
                    (self.slots - first) as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(count) = usize::try_from(count) {
                break count;
            }
            let errno = sys::last_errno();
            match after_receive_error(Cause::of(errno)) {
                AfterError::Empty => return Ok(0),
                // The socket is still reported as readable if there is more.
                AfterError::Again if pending_errors >= MAX_PENDING_ERRORS => return Ok(0),
                AfterError::Again => pending_errors += 1,
                AfterError::Dead => return Err(RecvFault::Dead { errno }),
            }
        };
        for slot in first..first + count {
            let message = self.in_headers.get_mut(slot);
            self.received[slot] = Received {
                from: self.in_names.get(slot).decode(),
                // SAFETY: recvmmsg just filled this header; its control memory belongs to `self`.
                local: unsafe { sys::local_address(&message.msg_hdr) },
                len: (message.msg_len as usize).min(MAX_DATAGRAM),
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
            arm(&mut message.msg_hdr);
        }
        Ok(count)
    }

    /// What the last [`receive`](Self::receive) put into `slot`.
    ///
    /// # Panics
    /// There is no such slot: a bug of the caller.
    pub fn received(&self, slot: usize) -> Received {
        self.received[slot]
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
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        self.memory
            .slice_mut(slot * STRIDE..slot * STRIDE + SLOT_BYTES)
    }

    /// Bytes of `slot`, counted from the start of its memory.
    ///
    /// # Panics
    /// There is no such slot, or `range` leaves it: a bug of the caller.
    pub fn bytes(&self, slot: usize, range: Range<usize>) -> &[u8] {
        assert!(
            slot < self.slots && range.end <= SLOT_BYTES,
            "{range:?} of slot {slot} of {}",
            self.slots
        );
        let base = slot * STRIDE;
        self.memory.slice(base + range.start..base + range.end)
    }

    /// Sends `items` in order, straight from slot memory, with as few system calls as possible. Never blocks.
    ///
    /// An item that fails is counted and the next one goes on; nothing is sent later. There may be more items than
    /// slots, and several of one slot.
    pub fn send(&mut self, socket: &UdpSocket, items: &[Outgoing]) -> SendReport {
        let mut report = SendReport::default();
        for items in items.chunks(self.slots) {
            let messages = self.gather(socket, items, &mut report);
            self.submit(socket, messages, &mut report);
        }
        report
    }

    /// Describes at most `slots` items to the kernel, returns the number of messages they make.
    fn gather(&mut self, socket: &UdpSocket, items: &[Outgoing], report: &mut SendReport) -> usize {
        let merge = self.merge.filter(|_| socket.segments());
        let mut messages = 0;
        let mut pieces = 0;
        let mut run: Option<Run> = None;
        for item in items {
            let slot = usize::from(item.slot);
            let Some(range) = item.range().filter(|_| slot < self.slots) else {
                debug_assert!(false, "{item:?} lies outside its slot");
                report.failed += 1;
                continue;
            };
            let piece = libc::iovec {
                iov_base: self.memory.address(slot * STRIDE + range.start).cast(),
                iov_len: range.len(),
            };
            if let (Some(run), Some(merge)) = (&mut run, &merge)
                && run.takes(item, range.len(), merge)
            {
                *self.out_pieces.get_mut(pieces) = piece;
                pieces += 1;
                run.push(range.len());
                self.extend_message(messages - 1, run);
                continue;
            }
            run = None;
            let Some((name, name_bytes)) = Name::encode(item.to, socket.family()) else {
                report.failed += 1;
                continue;
            };
            let control_bytes = match item.from {
                None => 0,
                Some(from) => {
                    let control = self.out_controls.get_mut(messages);
                    let Some(length) = control.set_source(from, socket.family()) else {
                        report.failed += 1;
                        continue;
                    };
                    length
                }
            };
            *self.out_names.get_mut(messages) = name;
            *self.out_pieces.get_mut(pieces) = piece;
            let name = self.out_names.address(messages);
            let first_piece = self.out_pieces.address(pieces);
            let control = self.out_controls.address(messages);
            let header = &mut self.out_headers.get_mut(messages).msg_hdr;
            header.msg_name = name.cast();
            header.msg_namelen = name_bytes;
            header.msg_iov = first_piece;
            header.msg_iovlen = 1;
            header.msg_control = control.cast();
            header.msg_controllen = control_bytes as _;
            header.msg_flags = 0;
            pieces += 1;
            messages += 1;
            run = Some(Run::new(item, range.len(), control_bytes));
        }
        messages
    }

    /// Lets message `index` cover one more piece, the one behind its last.
    fn extend_message(&mut self, index: usize, run: &Run) {
        let control_bytes = if run.pieces == 2 {
            self.out_controls
                .get_mut(index)
                // `Merge::piece_bytes` is far below 2^16; a larger one would only be refused by the kernel.
                .set_segment(run.control_bytes, run.piece_bytes as u16)
        } else {
            run.control_bytes + SEGMENT_SPACE
        };
        let header = &mut self.out_headers.get_mut(index).msg_hdr;
        header.msg_iovlen = run.pieces as _;
        header.msg_controllen = control_bytes as _;
    }

    /// Hands the first `messages` messages to the kernel.
    fn submit(&mut self, socket: &UdpSocket, messages: usize, report: &mut SendReport) {
        if messages == 1 && self.pieces(0..1) == 1 {
            // Most relay sockets have one datagram in a batch, and for one message sendmsg is the cheaper call.
            // SAFETY: `gather` filled the header; its pointers lead to blocks that `self` owns.
            match unsafe { socket.send_message(&self.out_headers.get(0).msg_hdr) } {
                Ok(()) => report.sent += 1,
                Err(fault) => report.count(fault, 1),
            }
            return;
        }
        let mut next = 0;
        let mut retried = false;
        while next < messages {
            // SAFETY: sendmmsg(2) reads `vlen` headers; `gather` filled them, and their pointers lead to blocks that
            // `self` owns, with the lengths beside them.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.out_headers.address(next),
                    (messages - next) as libc::c_uint,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            if let Ok(count) = usize::try_from(count)
                && count > 0
            {
                report.sent += self.pieces(next..next + count);
                next += count;
                retried = false;
                continue;
            }
            // sendmmsg(2): "if no messages could be sent, -1 is returned": the error is that of message `next`.
            let cause = Cause::of(sys::last_errno());
            let pieces = self.pieces(next..next + 1);
            match cause {
                Cause::Interrupted => continue,
                // Possibly the pending ICMP error of an earlier datagram, which reading it has cleared.
                Cause::Unreachable if !retried => {
                    retried = true;
                    continue;
                }
                Cause::WouldBlock => {
                    report.count(SendFault::WouldBlock, self.pieces(next..messages));
                    return;
                }
                Cause::Unsegmented | Cause::Invalid | Cause::TooLarge if pieces > 1 => {
                    if cause == Cause::Unsegmented {
                        socket.disable_segments();
                    }
                    self.send_singly(socket, next, report);
                }
                cause => report.count(cause.into(), pieces),
            }
            next += 1;
            retried = false;
        }
    }

    /// Sends the pieces of message `index` as datagrams of their own.
    fn send_singly(&self, socket: &UdpSocket, index: usize, report: &mut SendReport) {
        let merged = &self.out_headers.get(index).msg_hdr;
        let mut single = *merged;
        single.msg_iovlen = 1;
        // The segment size is the last control message.
        single.msg_controllen -= SEGMENT_SPACE as ControlLength;
        for piece in 0..self.pieces(index..index + 1) as usize {
            // SAFETY: `gather` made `msg_iovlen` consecutive pieces in one block, the first of which is at `msg_iov`.
            single.msg_iov = unsafe { merged.msg_iov.add(piece) };
            // SAFETY: name, control data and pieces belong to `self`; `gather` set their lengths.
            match unsafe { socket.send_message(&single) } {
                Ok(()) => report.sent += 1,
                Err(fault) => report.count(fault, 1),
            }
        }
    }

    /// Datagrams in these messages.
    fn pieces(&self, messages: Range<usize>) -> u32 {
        messages
            .map(|index| self.out_headers.get(index).msg_hdr.msg_iovlen as u32)
            .sum()
    }
}

/// `msg_controllen` has another width in musl.
#[cfg(target_env = "musl")]
type ControlLength = libc::socklen_t;
#[cfg(not(target_env = "musl"))]
type ControlLength = usize;

/// Readies a header for receiving: the kernel has overwritten the lengths with those of the last datagram.
fn arm(header: &mut libc::msghdr) {
    header.msg_namelen = NAME_BYTES;
    header.msg_controllen = CONTROL_BYTES as _;
    header.msg_flags = 0;
}

/// Datagrams that leave as one message.
struct Run {
    to: SocketAddr,
    from: Option<IpAddr>,
    /// Bytes of every datagram but the last.
    piece_bytes: usize,
    total_bytes: usize,
    pieces: usize,
    /// Control bytes in front of the segment size.
    control_bytes: usize,
    /// A shorter datagram ends the run.
    ended: bool,
}

impl Run {
    fn new(item: &Outgoing, len: usize, control_bytes: usize) -> Self {
        Self {
            to: item.to,
            from: item.from,
            piece_bytes: len,
            total_bytes: len,
            pieces: 1,
            control_bytes,
            ended: false,
        }
    }

    fn takes(&self, item: &Outgoing, len: usize, merge: &Merge) -> bool {
        !self.ended
            // An empty datagram adds no bytes, so the kernel would not send it.
            && len > 0
            && len <= self.piece_bytes
            && self.piece_bytes <= merge.piece_bytes
            && self.pieces < merge.pieces
            && self.total_bytes + len <= merge.total_bytes
            && self.to == item.to
            && self.from == item.from
    }

    fn push(&mut self, len: usize) {
        self.pieces += 1;
        self.total_bytes += len;
        self.ended = len < self.piece_bytes;
    }
}

/// What to do after a failed receive call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterError {
    Empty,
    Again,
    Dead,
}

fn after_receive_error(cause: Cause) -> AfterError {
    match cause {
        Cause::WouldBlock => AfterError::Empty,
        // The errors of earlier sends; reading them has cleared them.
        Cause::Interrupted
        | Cause::Unreachable
        | Cause::TooLarge
        | Cause::NoBuffers
        | Cause::Refused => AfterError::Again,
        Cause::Unsegmented | Cause::Invalid | Cause::Fatal => AfterError::Dead,
    }
}

/// Whether the kernel knows UDP_SEGMENT (Linux 4.18). An older one would ignore the request and send one huge datagram.
fn kernel_segments() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        UdpSocket::bind(any, &UdpOptions::default()).is_ok_and(|socket| {
            sys::read_option::<1>(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn open() -> UdpSocket {
        open_at(Ipv4Addr::LOCALHOST)
    }

    fn open_at(ip: Ipv4Addr) -> UdpSocket {
        let options = UdpOptions {
            recv_buffer_bytes: 1 << 20,
            send_buffer_bytes: 1 << 20,
            ..UdpOptions::default()
        };
        UdpSocket::bind(SocketAddr::from((ip, 0)), &options).unwrap()
    }

    fn receive(batch: &mut Batch, socket: &UdpSocket, count: usize) -> usize {
        let mut filled = 0;
        for _ in 0..2000 {
            filled += batch.receive(socket, filled).unwrap();
            if filled >= count {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        filled
    }

    fn item(slot: u16, len: u32, to: SocketAddr) -> Outgoing {
        Outgoing {
            slot,
            start: HEADROOM as u32,
            len,
            to,
            from: None,
        }
    }

    #[test]
    fn the_number_of_slots_is_kept_within_bounds() {
        assert_eq!(Batch::new(0).slots(), 1);
        assert_eq!(Batch::new(5000).slots(), 1024);
    }

    #[test]
    fn a_run_makes_one_message() {
        let relay = open();
        let peer = open().local_addr();
        let mut batch = Batch::new(64);
        if batch.merge.is_none() {
            return;
        }
        let mut report = SendReport::default();
        let run: Vec<_> = (0..64).map(|slot| item(slot, 1000, peer)).collect();
        assert_eq!(batch.gather(&relay, &run, &mut report), 1);
        let messages = batch.gather(&relay, &run, &mut report);
        assert_eq!(batch.pieces(0..messages), 64);

        let longer: Vec<_> = (0..64).map(|slot| item(slot, 1232, peer)).collect();
        assert_eq!(batch.gather(&relay, &longer, &mut report), 2, "64 KiB");
        let fragments: Vec<_> = (0..64).map(|slot| item(slot, 1233, peer)).collect();
        assert_eq!(batch.gather(&relay, &fragments, &mut report), 64);
        relay.disable_segments();
        assert_eq!(batch.gather(&relay, &run, &mut report), 64);
        assert_eq!(report, SendReport::default());
    }

    #[test]
    fn a_run_that_the_kernel_refuses_leaves_one_by_one() {
        let relay = open();
        let peer = open();
        let mut batch = Batch::new(8);
        if batch.merge.is_none() {
            return;
        }
        // More than any message may hold, so that the kernel answers EMSGSIZE.
        batch.merge = Some(Merge {
            pieces: 64,
            piece_bytes: 60_000,
            total_bytes: 1_000_000,
        });
        for (slot, len) in [(0, 40_000), (1, 40_000), (2, 30_000), (3, 5)] {
            batch.buffer_mut(slot)[HEADROOM..HEADROOM + len].fill(slot as u8 + 1);
        }
        let to = peer.local_addr();
        for from in [None, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))] {
            let items = [
                item(3, 5, to),
                item(0, 40_000, to),
                item(1, 40_000, to),
                item(2, 30_000, to),
                item(3, 5, to),
            ]
            .map(|item| Outgoing { from, ..item });
            let report = batch.send(&relay, &items);
            assert_eq!(report.sent, 5, "{report:?}");
            let mut arrived = Batch::new(8);
            assert_eq!(receive(&mut arrived, &peer, 5), 5);
            for (slot, (byte, len)) in [(4, 5), (1, 40_000), (2, 40_000), (3, 30_000), (4, 5)]
                .into_iter()
                .enumerate()
            {
                assert_eq!(arrived.payload(slot), vec![byte; len], "datagram {slot}");
            }
        }
    }

    #[test]
    fn pending_icmp_errors_cost_no_datagram() {
        let relay = open();
        let peer = open();
        // An address of its own, so that no other test takes the port meanwhile.
        let closed = open_at(Ipv4Addr::new(127, 0, 0, 4)).local_addr();
        // IP_RECVERR makes the kernel report ICMP errors on an unconnected socket.
        sys::enable_option(relay.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR).unwrap();
        let mut batch = Batch::new(8);
        let to_closed = item(0, 10, closed);
        let to_peer = item(1, 10, peer.local_addr());
        for _ in 0..3 {
            let report = batch.send(&relay, &[to_closed, to_peer, to_closed, to_peer]);
            assert_eq!(report.sent, 4, "{report:?}");
            assert_eq!(receive(&mut batch, &peer, 2), 2);
            relay.send_to(b"nobody", closed, None).unwrap();
            relay.send_to(b"somebody", peer.local_addr(), None).unwrap();
            assert_eq!(receive(&mut batch, &peer, 1), 1);

            // The error waits in front of the datagram on the receiving side, too.
            relay.send_to(b"nobody", closed, None).unwrap();
            peer.send_to(b"back", relay.local_addr(), None).unwrap();
            assert_eq!(receive(&mut batch, &relay, 1), 1);
            assert_eq!(batch.payload(0), b"back");
        }
    }

    #[test]
    fn only_a_useless_descriptor_is_dead() {
        for (errno, expected) in [
            (libc::EAGAIN, AfterError::Empty),
            (libc::EINTR, AfterError::Again),
            (libc::ECONNREFUSED, AfterError::Again),
            (libc::EHOSTUNREACH, AfterError::Again),
            (libc::EMSGSIZE, AfterError::Again),
            (libc::ENOMEM, AfterError::Again),
            (libc::EBADF, AfterError::Dead),
            (libc::ENOTSOCK, AfterError::Dead),
            (libc::EINVAL, AfterError::Dead),
        ] {
            assert_eq!(after_receive_error(Cause::of(errno)), expected, "{errno}");
        }
    }

    #[test]
    fn faults_are_counted_where_they_belong() {
        let mut report = SendReport::default();
        report.count(SendFault::WouldBlock, 3);
        report.count(SendFault::TooLarge, 1);
        report.count(SendFault::Unreachable, 1);
        report.count(SendFault::Other, 1);
        assert_eq!(
            report,
            SendReport {
                sent: 0,
                would_block: 3,
                too_large: 1,
                failed: 2
            }
        );
    }
}
