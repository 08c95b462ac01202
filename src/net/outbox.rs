//! What leaves: datagrams in slots, described to the kernel so that runs of them are one message (UDP_SEGMENT, udp(7)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use super::batch::{HEADROOM, SLOT_BYTES, Slots, TAILROOM};
use super::headers::IpFields;
use super::socket::{RETRIES, SendFault, UdpOptions, UdpSocket};
use super::sys::{self, Block, Cause, Control, Name, SEGMENT_SPACE};

/// Pieces of one datagram: a header in side memory, the bytes in the slot, padding.
const MAX_WIDTH: usize = 3;

/// Headers that the side memory holds.
const FRONTS: usize = 256;

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

/// A header in the side memory of a [`Batch`], and padding: sent around the bytes of an [`Outgoing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    index: u16,
    bytes: u8,
    padding: u8,
}

impl Front {
    /// Bytes it adds to the datagram.
    fn total(self) -> usize {
        usize::from(self.bytes) + usize::from(self.padding)
    }

    /// Pieces that a datagram with it is gathered from.
    fn pieces(self) -> usize {
        if self.padding == 0 { 2 } else { 3 }
    }
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
    /// A header that does not lie in the slot.
    pub front: Option<Front>,
    /// What its IP header says.
    pub fields: IpFields,
}

impl Outgoing {
    /// The bytes in the slot, `None` if they would lie outside it.
    fn range(&self) -> Option<Range<usize>> {
        let start = self.start as usize;
        let end = start.checked_add(self.len as usize)?;
        (end <= SLOT_BYTES).then_some(start..end)
    }
}

/// What became of the items of one [`Batch::send`], in datagrams; the counts add up to the number of items.
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
    /// The kernel or the device refuses to cut messages up for this socket: from now on it sends one by one.
    pub gave_up_segments: bool,
    /// Where the last one was for that was not to be fragmented and is larger than what the first link takes.
    pub unfragmented: Option<SocketAddr>,
}

impl SendReport {
    fn count(&mut self, fault: SendFault, datagrams: u32, to: &Name) {
        if fault == SendFault::TooLarge {
            self.unfragmented = Some(to.decode());
        }
        *match fault {
            SendFault::WouldBlock => &mut self.would_block,
            SendFault::TooLarge => &mut self.too_large,
            SendFault::Unreachable | SendFault::Other => &mut self.failed,
        } += datagrams;
    }
}

/// The kernel structures for sending, and the side memory. Filled anew by every call.
pub(super) struct Outbox {
    /// Messages of one call.
    messages: usize,
    headers: Block<libc::mmsghdr>,
    names: Block<Name>,
    controls: Block<Control>,
    pieces: Block<libc::iovec>,
    /// Pieces that every datagram of a message is gathered from.
    widths: Vec<u8>,
    fronts: Block<[u8; HEADROOM]>,
    fronts_used: usize,
    padding: Block<u8>,
    merge: Option<Merge>,
}

impl Outbox {
    /// Room for `messages` messages, at least one.
    pub(super) fn new(messages: usize) -> Self {
        Self {
            messages,
            headers: Block::new(messages),
            names: Block::new(messages),
            controls: Block::new(messages),
            pieces: Block::new(messages * MAX_WIDTH),
            widths: vec![1; messages],
            fronts: Block::new(FRONTS),
            fronts_used: 0,
            padding: Block::new(TAILROOM),
            merge: kernel_segments().then_some(MERGE),
        }
    }

    /// Merges nothing from now on.
    pub(super) fn without_merging(&mut self) {
        self.merge = None;
    }

    /// See [`Batch::front`](super::Batch::front).
    pub(super) fn front(&mut self, header: &[u8], padding: usize) -> Option<Front> {
        assert!(header.len() <= HEADROOM && padding <= TAILROOM);
        if self.fronts_used == FRONTS {
            return None;
        }
        let index = self.fronts_used;
        self.fronts_used += 1;
        self.fronts.get_mut(index)[..header.len()].copy_from_slice(header);
        Some(Front {
            index: index as u16,
            bytes: header.len() as u8,
            padding: padding as u8,
        })
    }

    /// See [`Batch::forget_fronts`](super::Batch::forget_fronts).
    pub(super) fn forget_fronts(&mut self) {
        self.fronts_used = 0;
    }

    /// The header in side memory and the padding.
    pub(super) fn around(&self, front: Front) -> (&[u8], &[u8]) {
        let header = self.fronts.get(usize::from(front.index));
        (
            &header[..usize::from(front.bytes)],
            self.padding.slice(0..usize::from(front.padding)),
        )
    }

    /// See [`Batch::send`](super::Batch::send).
    pub(super) fn send(
        &mut self,
        slots: &Slots,
        socket: &UdpSocket,
        items: &[Outgoing],
    ) -> SendReport {
        let mut report = SendReport::default();
        // DF is a matter of the socket (ip(7)); all others are a matter of the datagram.
        let dont_fragment = |item: &Outgoing| item.fields.dont_fragment;
        for items in items.chunk_by(|a, b| dont_fragment(a) == dont_fragment(b)) {
            let whole = items.first().is_some_and(dont_fragment);
            let before = report.unfragmented;
            if whole && socket.set_dont_fragment(true).is_err() {
                report.failed += items.len() as u32;
                continue;
            }
            for items in items.chunks(self.messages) {
                let messages = self.gather(slots, socket, items, &mut report);
                self.submit(socket, messages, &mut report);
            }
            if whole {
                let _ = socket.set_dont_fragment(false);
            } else {
                report.unfragmented = before;
            }
        }
        report
    }

    /// Describes at most as many items as there is room for to the kernel, returns the number of messages they make.
    fn gather(
        &mut self,
        slots: &Slots,
        socket: &UdpSocket,
        items: &[Outgoing],
        report: &mut SendReport,
    ) -> usize {
        let merge = self.merge.filter(|_| socket.segments());
        let mut messages = 0;
        let mut pieces = 0;
        let mut run: Option<Run> = None;
        for item in items {
            let slot = usize::from(item.slot);
            let Some(range) = item.range().filter(|_| slot < slots.count()) else {
                debug_assert!(false, "{item:?} lies outside its slot");
                report.failed += 1;
                continue;
            };
            let bytes = range.len() + item.front.map_or(0, Front::total);
            if let (Some(run), Some(merge)) = (&mut run, &merge)
                && run.takes(item, bytes, merge)
            {
                pieces += self.set_pieces(slots, pieces, item, range);
                run.push(bytes);
                self.extend_message(messages - 1, run);
                continue;
            }
            run = None;
            let Some((name, name_bytes)) = Name::encode(item.to, socket.family()) else {
                report.failed += 1;
                continue;
            };
            let mut control_bytes = match item.from {
                None => 0,
                Some(from) => {
                    let control = self.controls.get_mut(messages);
                    let Some(length) = control.set_source(from, socket.family()) else {
                        report.failed += 1;
                        continue;
                    };
                    length
                }
            };
            // 0 is what the socket says by itself.
            if item.fields.tos != 0 {
                let control = self.controls.get_mut(messages);
                control_bytes = control.set_tos(control_bytes, item.fields.tos, item.to.ip());
            }
            *self.names.get_mut(messages) = name;
            let width = self.set_pieces(slots, pieces, item, range);
            let name = self.names.address(messages);
            let first_piece = self.pieces.address(pieces);
            let control = self.controls.address(messages);
            let header = &mut self.headers.get_mut(messages).msg_hdr;
            header.msg_name = name.cast();
            header.msg_namelen = name_bytes;
            header.msg_iov = first_piece;
            header.msg_iovlen = width as _;
            header.msg_control = control.cast();
            header.msg_controllen = control_bytes as _;
            header.msg_flags = 0;
            self.widths[messages] = width as u8;
            pieces += width;
            messages += 1;
            run = Some(Run::new(item, bytes, control_bytes));
        }
        messages
    }

    /// Describes one datagram from piece `at` on, returns how many pieces it takes.
    fn set_pieces(
        &mut self,
        slots: &Slots,
        at: usize,
        item: &Outgoing,
        range: Range<usize>,
    ) -> usize {
        let payload = libc::iovec {
            iov_base: slots.address(usize::from(item.slot), range.start).cast(),
            iov_len: range.len(),
        };
        let Some(front) = item.front else {
            *self.pieces.get_mut(at) = payload;
            return 1;
        };
        *self.pieces.get_mut(at) = libc::iovec {
            iov_base: self.fronts.address(usize::from(front.index)).cast(),
            iov_len: usize::from(front.bytes),
        };
        *self.pieces.get_mut(at + 1) = payload;
        if front.padding > 0 {
            *self.pieces.get_mut(at + 2) = libc::iovec {
                iov_base: self.padding.address(0).cast(),
                iov_len: usize::from(front.padding),
            };
        }
        front.pieces()
    }

    /// Lets message `index` cover one more datagram, whose pieces are behind its last.
    fn extend_message(&mut self, index: usize, run: &Run) {
        let control_bytes = if run.datagrams == 2 {
            self.controls
                .get_mut(index)
                // `Merge::piece_bytes` is far below 2^16; a larger one would only be refused by the kernel.
                .set_segment(run.control_bytes, run.piece_bytes as u16)
        } else {
            run.control_bytes + SEGMENT_SPACE
        };
        let pieces = run.datagrams * usize::from(self.widths[index]);
        let header = &mut self.headers.get_mut(index).msg_hdr;
        header.msg_iovlen = pieces as _;
        header.msg_controllen = control_bytes as _;
    }

    /// Hands the first `messages` messages to the kernel.
    fn submit(&mut self, socket: &UdpSocket, messages: usize, report: &mut SendReport) {
        if messages == 1 && self.datagrams(0..1) == 1 {
            // Most relay sockets have one datagram in a batch, and for one message sendmsg is the cheaper call.
            // SAFETY: `gather` filled the header; its pointers lead to blocks that `self` owns.
            match unsafe { socket.send_message(&self.headers.get(0).msg_hdr) } {
                Ok(()) => report.sent += 1,
                Err(fault) => report.count(fault, 1, self.names.get(0)),
            }
            return;
        }
        let mut next = 0;
        let mut retries = 0;
        while next < messages {
            // SAFETY: sendmmsg(2) reads `vlen` headers; `gather` filled them, and their pointers lead to blocks that
            // `self` owns, with the lengths beside them.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers.address(next),
                    (messages - next) as libc::c_uint,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            if let Ok(count) = usize::try_from(count)
                && count > 0
            {
                report.sent += self.datagrams(next..next + count);
                next += count;
                retries = 0;
                continue;
            }
            // sendmmsg(2): "if no messages could be sent, -1 is returned": the error is that of message `next`.
            let cause = Cause::of(sys::last_errno());
            let datagrams = self.datagrams(next..next + 1);
            match cause {
                Cause::Interrupted => continue,
                // Possibly the pending ICMP error of an earlier datagram, which reading it has cleared.
                cause if cause.may_be_pending() && retries < RETRIES => {
                    retries += 1;
                    continue;
                }
                Cause::WouldBlock => {
                    let left = self.datagrams(next..messages);
                    report.count(SendFault::WouldBlock, left, self.names.get(next));
                    return;
                }
                Cause::Unsegmented | Cause::Invalid | Cause::TooLarge if datagrams > 1 => {
                    if cause == Cause::Unsegmented {
                        socket.disable_segments();
                        report.gave_up_segments = true;
                    }
                    self.send_singly(socket, next, report);
                }
                cause => report.count(cause.into(), datagrams, self.names.get(next)),
            }
            next += 1;
            retries = 0;
        }
    }

    /// Sends the datagrams of message `index` one by one.
    fn send_singly(&self, socket: &UdpSocket, index: usize, report: &mut SendReport) {
        let merged = &self.headers.get(index).msg_hdr;
        let width = usize::from(self.widths[index]);
        let mut single = *merged;
        single.msg_iovlen = width as _;
        // The segment size is the last control message.
        single.msg_controllen -= SEGMENT_SPACE as ControlLength;
        for datagram in 0..self.datagrams(index..index + 1) as usize {
            // SAFETY: `gather` made `msg_iovlen` consecutive pieces in one block, the first of which is at `msg_iov`:
            // `width` of them for every datagram.
            single.msg_iov = unsafe { merged.msg_iov.add(datagram * width) };
            // SAFETY: name, control data and pieces belong to `self`; `gather` set their lengths.
            match unsafe { socket.send_message(&single) } {
                Ok(()) => report.sent += 1,
                Err(fault) => report.count(fault, 1, self.names.get(index)),
            }
        }
    }

    /// Datagrams in these messages.
    fn datagrams(&self, messages: Range<usize>) -> u32 {
        messages
            .map(|index| {
                let pieces = self.headers.get(index).msg_hdr.msg_iovlen as u32;
                pieces / u32::from(self.widths[index])
            })
            .sum()
    }
}

/// `msg_controllen` has another width in musl.
#[cfg(target_env = "musl")]
type ControlLength = libc::socklen_t;
#[cfg(not(target_env = "musl"))]
type ControlLength = usize;

/// Datagrams that leave as one message.
struct Run {
    to: SocketAddr,
    from: Option<IpAddr>,
    fields: IpFields,
    /// Bytes of every datagram but the last.
    piece_bytes: usize,
    total_bytes: usize,
    datagrams: usize,
    /// Pieces of every datagram.
    width: usize,
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
            fields: item.fields,
            piece_bytes: len,
            total_bytes: len,
            datagrams: 1,
            width: item.front.map_or(1, Front::pieces),
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
            && self.datagrams < merge.pieces
            && self.width == item.front.map_or(1, Front::pieces)
            && self.total_bytes + len <= merge.total_bytes
            && self.to == item.to
            && self.from == item.from
            && self.fields == item.fields
    }

    fn push(&mut self, len: usize) {
        self.datagrams += 1;
        self.total_bytes += len;
        self.ended = len < self.piece_bytes;
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

    use super::super::Batch;
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
            front: None,
            fields: IpFields::default(),
        }
    }

    #[test]
    fn a_run_makes_one_message() {
        let relay = open();
        let peer = open().local_addr();
        let mut batch = Batch::new(64);
        if batch.outbox.merge.is_none() {
            return;
        }
        let mut report = SendReport::default();
        let run: Vec<_> = (0..64).map(|slot| item(slot, 1000, peer)).collect();
        assert_eq!(
            batch.outbox.gather(&batch.slots, &relay, &run, &mut report),
            1
        );
        let messages = batch.outbox.gather(&batch.slots, &relay, &run, &mut report);
        assert_eq!(batch.outbox.datagrams(0..messages), 64);

        let longer: Vec<_> = (0..64).map(|slot| item(slot, 1232, peer)).collect();
        assert_eq!(
            batch
                .outbox
                .gather(&batch.slots, &relay, &longer, &mut report),
            2,
            "64 KiB"
        );
        let fragments: Vec<_> = (0..64).map(|slot| item(slot, 1233, peer)).collect();
        assert_eq!(
            batch
                .outbox
                .gather(&batch.slots, &relay, &fragments, &mut report),
            64
        );
        relay.disable_segments();
        assert_eq!(
            batch.outbox.gather(&batch.slots, &relay, &run, &mut report),
            64
        );
        assert_eq!(report, SendReport::default());
    }

    #[test]
    fn a_run_that_the_kernel_refuses_leaves_one_by_one() {
        let relay = open();
        let peer = open();
        let mut batch = Batch::new(8);
        if batch.outbox.merge.is_none() {
            return;
        }
        // More than any message may hold, so that the kernel answers EMSGSIZE.
        batch.outbox.merge = Some(Merge {
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
    fn faults_are_counted_where_they_belong() {
        let mut report = SendReport::default();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let (name, _) = Name::encode(to, crate::base::Family::V4).unwrap();
        report.count(SendFault::WouldBlock, 3, &name);
        report.count(SendFault::TooLarge, 1, &name);
        report.count(SendFault::Unreachable, 1, &name);
        report.count(SendFault::Other, 1, &name);
        assert_eq!(
            report,
            SendReport {
                sent: 0,
                would_block: 3,
                too_large: 1,
                failed: 2,
                gave_up_segments: false,
                unfragmented: Some(to),
            }
        );
    }
}
