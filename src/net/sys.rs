//! Kernel structures in Rust's terms: zeroed memory, socket addresses, control messages, errno.

use std::alloc::{self, Layout};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use crate::base::Family;

/// A type of which all-zero bytes are a valid value and which needs no drop.
///
/// # Safety
/// Implementors promise both.
pub(super) unsafe trait Plain {}

// SAFETY: an integer, all bit patterns are valid.
unsafe impl Plain for u8 {}
// SAFETY: a raw pointer, for which null is valid, and an integer.
unsafe impl Plain for libc::iovec {}
// SAFETY: raw pointers, for which null is valid, and integers.
unsafe impl Plain for libc::mmsghdr {}
// SAFETY: every field is made of integers.
unsafe impl Plain for Name {}
// SAFETY: an array of integers.
unsafe impl Plain for Control {}
// SAFETY: an array of integers, all bit patterns are valid.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// Zeroed heap memory whose address never changes and whose pages are touched only when used.
///
/// Kernel structures point into one another, so the root pointer stays raw: addresses derived from it stay valid
/// beside the short-lived references that the accessors hand out.
pub(super) struct Block<T: Plain> {
    root: NonNull<T>,
    len: usize,
}

// SAFETY: a `Block` owns its memory alone, as a `Box<[T]>` does, and plain data may change threads.
unsafe impl<T: Plain> Send for Block<T> {}

impl<T: Plain> Block<T> {
    /// Allocates `len` elements, at least one.
    pub(super) fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: `layout` has a non-zero size: `len` is at least one and no `Plain` type is zero-sized.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        let Some(root) = NonNull::new(memory.cast::<T>()) else {
            alloc::handle_alloc_error(layout)
        };
        Self { root, len }
    }

    fn layout(len: usize) -> Layout {
        assert!(len > 0 && size_of::<T>() > 0, "an empty block is a bug");
        // Whole cache lines, so that neighbouring blocks share none.
        Layout::array::<T>(len)
            .and_then(|layout| layout.align_to(64))
            .unwrap_or_else(|_| panic!("a block of {len} elements exceeds the address space"))
    }

    /// The address of element `index`, valid as long as the block lives.
    pub(super) fn address(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: `index` is inside the allocation, checked above.
        unsafe { self.root.as_ptr().add(index) }
    }

    pub(super) fn get(&self, index: usize) -> &T {
        // SAFETY: `address` is in bounds and aligned, the memory is initialised (zeroed, then written only by us and
        // by the kernel with valid values), and `&self` excludes writers.
        unsafe { &*self.address(index) }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: as in `get`, and `&mut self` excludes every other reference.
        unsafe { &mut *self.address(index) }
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &[T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        // SAFETY: the range is inside the allocation, checked above; otherwise as in `get`.
        unsafe { std::slice::from_raw_parts(self.root.as_ptr().add(range.start), range.len()) }
    }

    pub(super) fn slice_mut(&mut self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        // SAFETY: the range is inside the allocation, checked above; otherwise as in `get_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.root.as_ptr().add(range.start), range.len()) }
    }
}

impl<T: Plain> Drop for Block<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; `Plain` types need no drop of their own.
        unsafe { alloc::dealloc(self.root.as_ptr().cast(), Self::layout(self.len)) }
    }
}

/// Room for the socket address of one datagram.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// What the kernel may write into a [`Name`].
pub(super) const NAME_BYTES: libc::socklen_t = size_of::<Name>() as libc::socklen_t;

impl Name {
    /// Of no family yet.
    pub(super) const UNSPECIFIED: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// `address` as a socket of `family` takes it, with its length: IPv4 is written mapped on an IPv6 socket.
    /// `None` for an IPv6 address on an IPv4 socket.
    pub(super) fn encode(address: SocketAddr, family: Family) -> Option<(Self, libc::socklen_t)> {
        match (address, family) {
            (SocketAddr::V4(address), Family::V4) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: in_addr(*address.ip()),
                    sin_zero: [0; 8],
                };
                Some((Self { v4 }, size_of::<libc::sockaddr_in>() as _))
            }
            (SocketAddr::V6(_), Family::V4) => None,
            (address, Family::V6) => {
                let (ip, scope_id) = match address {
                    SocketAddr::V4(address) => (address.ip().to_ipv6_mapped(), 0),
                    SocketAddr::V6(address) => (*address.ip(), address.scope_id()),
                };
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: in6_addr(ip),
                    sin6_scope_id: scope_id,
                };
                Some((Self { v6 }, size_of::<libc::sockaddr_in6>() as _))
            }
        }
    }

    /// The address in canonical form, with the scope of a link-local one. An unknown family reads as `0.0.0.0:0`.
    pub(super) fn decode(&self) -> SocketAddr {
        // SAFETY: on Linux all `sockaddr` structures begin with `sa_family_t`; any bits are a valid integer.
        let family = unsafe { self.family };
        match libc::c_int::from(family) {
            libc::AF_INET => {
                // SAFETY: `sockaddr_in` is made of integers, all initialised since the memory began zeroed.
                let name = unsafe { self.v4 };
                let ip = Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr));
                SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: `sockaddr_in6` is made of integers, all initialised since the memory began zeroed.
                let name = unsafe { self.v6 };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                let port = u16::from_be(name.sin6_port);
                match ip.to_ipv4_mapped() {
                    Some(ip) => SocketAddr::V4(SocketAddrV4::new(ip, port)),
                    None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
                }
            }
            _ => SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        }
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: ip.to_bits().to_be(),
    }
}

fn in6_addr(ip: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr {
        s6_addr: ip.octets(),
    }
}

/// Bytes of control data per message: packet-info, DSCP and ECN, and a segment size, as sent or as received.
pub(super) const CONTROL_BYTES: usize = space_of::<libc::in6_pktinfo>()
    + space_of::<libc::c_int>()
    + if space_of::<SegmentBytes>() > space_of::<TrainBytes>() {
        space_of::<SegmentBytes>()
    } else {
        space_of::<TrainBytes>()
    };

/// Control data, aligned as `cmsghdr` asks.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL_BYTES]);

const _: () = assert!(align_of::<libc::cmsghdr>() <= 8);

/// The value of `UDP_SEGMENT` (linux/udp.h: `u16` gso_size).
type SegmentBytes = u16;

/// The value of `UDP_GRO` in what is received (net/udp.h: `int` gso_size).
type TrainBytes = libc::c_int;

/// Control bytes that a segment size takes up.
pub(super) const SEGMENT_SPACE: usize = space_of::<SegmentBytes>();

const fn space_of<T>() -> usize {
    // SAFETY: CMSG_SPACE is arithmetic without any access to memory.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as libc::c_uint) as usize }
}

const fn length_of<T>() -> usize {
    // SAFETY: CMSG_LEN is arithmetic without any access to memory.
    unsafe { libc::CMSG_LEN(size_of::<T>() as libc::c_uint) as usize }
}

impl Control {
    pub(super) const fn new() -> Self {
        Self([0; CONTROL_BYTES])
    }

    /// Writes the source address at the front, returns the control length; `None` if `family` cannot carry `from`.
    ///
    /// An IPv6 socket takes `IPV6_PKTINFO` for IPv4 too, mapped.
    pub(super) fn set_source(&mut self, from: IpAddr, family: Family) -> Option<usize> {
        match (from, family) {
            (IpAddr::V4(ip), Family::V4) => {
                let value = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(ip),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                Some(self.write(0, libc::IPPROTO_IP, libc::IP_PKTINFO, value))
            }
            (IpAddr::V6(_), Family::V4) => None,
            (from, Family::V6) => {
                let ip = match from {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                let value = libc::in6_pktinfo {
                    ipi6_addr: in6_addr(ip),
                    ipi6_ifindex: 0,
                };
                Some(self.write(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, value))
            }
        }
    }

    /// Appends DSCP and ECN of a datagram to `to`, returns the new control length.
    pub(super) fn set_tos(&mut self, at: usize, tos: u8, to: IpAddr) -> usize {
        let value = libc::c_int::from(tos);
        match to {
            // An IPv6 socket takes it for IPv4 too.
            IpAddr::V4(_) => self.write(at, libc::IPPROTO_IP, libc::IP_TOS, value),
            IpAddr::V6(_) => self.write(at, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value),
        }
    }

    /// Appends the size at which the kernel cuts the message into datagrams, returns the new control length.
    pub(super) fn set_segment(&mut self, at: usize, segment_bytes: SegmentBytes) -> usize {
        self.write(at, libc::SOL_UDP, libc::UDP_SEGMENT, segment_bytes)
    }

    fn write<T: Copy>(&mut self, at: usize, level: i32, kind: i32, value: T) -> usize {
        let end = at + space_of::<T>();
        assert!(end <= CONTROL_BYTES && at.is_multiple_of(align_of::<libc::cmsghdr>()));
        // SAFETY: `cmsghdr` is made of integers (and, in musl, padding), for which zero is valid.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = length_of::<T>() as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        let start = self.0.as_mut_ptr();
        // SAFETY: cmsg(3): the data begins CMSG_LEN(0) bytes behind the header and CMSG_SPACE covers both; the bounds
        // and the header's alignment are checked above, the value may be unaligned.
        unsafe {
            start.add(at).cast::<libc::cmsghdr>().write(header);
            start
                .add(at + length_of::<()>())
                .cast::<T>()
                .write_unaligned(value);
        }
        end
    }
}

/// What the kernel says about a received message beside its sender.
#[derive(Clone, Copy, Default)]
pub(super) struct Ancillary {
    /// The local address it was sent to, canonical.
    pub local: Option<IpAddr>,
    /// Bytes of every datagram but the last, where the message holds several (UDP_GRO).
    pub segment_bytes: Option<usize>,
    /// DSCP and ECN.
    pub tos: u8,
    /// The error that it is about, where it is of the error queue.
    pub error: Option<libc::sock_extended_err>,
}

/// Reads the control data of a received message.
///
/// # Safety
/// `header` must have been filled by recvmsg or recvmmsg, and its control memory must still be alive.
pub(super) unsafe fn ancillary(header: &libc::msghdr) -> Ancillary {
    let mut found = Ancillary::default();
    // SAFETY: cmsg(3): CMSG_FIRSTHDR returns the first header in the msg_controllen bytes the kernel wrote, or null.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: a non-null result of CMSG_FIRSTHDR or CMSG_NXTHDR is a header inside the control data.
        let message = unsafe { next.read_unaligned() };
        // SAFETY: CMSG_DATA is the address behind that header.
        let data = unsafe { libc::CMSG_DATA(next) };
        let length = message.cmsg_len as usize;
        match (message.cmsg_level, message.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if length >= length_of::<libc::in_pktinfo>() => {
                // SAFETY: ip(7): IP_PKTINFO carries a `struct in_pktinfo`; cmsg_len covers it.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                // ip(7): ipi_spec_dst is the local address; ipi_addr, the header's, may be a broadcast address.
                let ip = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr));
                found.local = Some(IpAddr::V4(ip));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
                if length >= length_of::<libc::in6_pktinfo>() =>
            {
                // SAFETY: ipv6(7), RFC 3542 §6: IPV6_PKTINFO carries a `struct in6_pktinfo`; cmsg_len covers it.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                found.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
            (libc::IPPROTO_IP, libc::IP_TOS) if length > length_of::<()>() => {
                // SAFETY: ip(7): IP_TOS carries a byte; cmsg_len covers it.
                found.tos = unsafe { data.read() };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if length >= length_of::<libc::c_int>() => {
                // SAFETY: RFC 3542 §6.5: IPV6_TCLASS carries an `int`; cmsg_len covers it.
                let class = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                found.tos = class as u8;
            }
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
                if length >= length_of::<libc::sock_extended_err>() =>
            {
                // SAFETY: ip(7), ipv6(7): both carry a `struct sock_extended_err`; cmsg_len covers it.
                let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
                found.error = Some(error);
            }
            (libc::SOL_UDP, libc::UDP_GRO) if length >= length_of::<TrainBytes>() => {
                // SAFETY: udp(7): UDP_GRO carries an `int`; cmsg_len covers it.
                let bytes = unsafe { data.cast::<TrainBytes>().read_unaligned() };
                found.segment_bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0);
            }
            _ => {}
        }
        // SAFETY: cmsg(3): CMSG_NXTHDR returns the next valid header, or null when the control data ends.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    found
}

/// The error number of the last failed system call of this thread.
pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The result of a system call that returns -1 and sets errno.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Switches an `int` socket option on.
pub(super) fn enable_option(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<()> {
    set_option(fd, level, option, 1)
}

/// Sets an `int` socket option.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: setsockopt(2) reads `optlen` bytes at `optval`, which is exactly the `int` on our stack.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Reads a socket option made of `N` 32-bit integers, returns how many of them the kernel wrote.
pub(super) fn read_option<const N: usize>(
    fd: BorrowedFd<'_>,
    level: i32,
    option: i32,
) -> io::Result<([u32; N], usize)> {
    let mut values = [0u32; N];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `*optlen` bytes at `optval`, which is the size of our array.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok((values, length as usize / size_of::<u32>()))
}

/// What an errno of a UDP socket call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing to read, or the send buffer is full.
    WouldBlock,
    /// A signal came in between.
    Interrupted,
    /// The datagram exceeds what UDP or the path carries. May also be the pending ICMP error of an earlier one.
    TooLarge,
    /// No way to this destination. May also be the pending ICMP error of an earlier datagram.
    Unreachable,
    /// The kernel or the device queue is short of memory for the moment.
    NoBuffers,
    /// The kernel or the device does not cut messages into segments. May also be a pending ICMP error (a source route that
    /// failed).
    Unsegmented,
    /// The arguments do not fit the socket: a source address that is not ours, a family that does not match.
    Invalid,
    /// A firewall or security module refuses.
    Refused,
    /// Everything else; on receive the descriptor is no use any more.
    Fatal,
}

impl Cause {
    /// Whether it may be what ICMP said of an earlier datagram rather than what is wrong with this one.
    pub(super) const fn may_be_pending(self) -> bool {
        matches!(self, Self::Unreachable | Self::TooLarge | Self::Unsegmented)
    }

    pub(super) fn of(errno: i32) -> Self {
        // EWOULDBLOCK is EAGAIN on Linux.
        match errno {
            libc::EAGAIN => Self::WouldBlock,
            libc::EINTR => Self::Interrupted,
            libc::EMSGSIZE => Self::TooLarge,
            // What ICMP and ICMPv6 errors turn into (icmp_err_convert and tab_unreach in the kernel), and what a
            // missing route or neighbour reports directly. EACCES stands for "administratively prohibited" there.
            libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EPROTO
            | libc::EACCES
            | libc::ETIMEDOUT => Self::Unreachable,
            libc::ENOBUFS | libc::ENOMEM => Self::NoBuffers,
            libc::EIO | libc::EOPNOTSUPP => Self::Unsegmented,
            libc::EINVAL
            | libc::EAFNOSUPPORT
            | libc::EADDRNOTAVAIL
            | libc::ENODEV
            | libc::ENXIO
            | libc::EDESTADDRREQ => Self::Invalid,
            libc::EPERM => Self::Refused,
            _ => Self::Fatal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_values_are_sorted_by_what_to_do() {
        for (errno, cause) in [
            (libc::EAGAIN, Cause::WouldBlock),
            (libc::EWOULDBLOCK, Cause::WouldBlock),
            (libc::EINTR, Cause::Interrupted),
            (libc::EMSGSIZE, Cause::TooLarge),
            (libc::ECONNREFUSED, Cause::Unreachable),
            (libc::EHOSTUNREACH, Cause::Unreachable),
            (libc::ENETUNREACH, Cause::Unreachable),
            (libc::ENOBUFS, Cause::NoBuffers),
            (libc::EIO, Cause::Unsegmented),
            (libc::EINVAL, Cause::Invalid),
            (libc::EPERM, Cause::Refused),
            (libc::EBADF, Cause::Fatal),
            (libc::ENOTSOCK, Cause::Fatal),
        ] {
            assert_eq!(Cause::of(errno), cause, "errno {errno}");
        }
    }

    #[test]
    fn names_survive_the_round_trip() {
        for (text, family) in [
            ("192.0.2.1:3478", Family::V4),
            ("192.0.2.1:3478", Family::V6),
            ("[2001:db8::1]:65535", Family::V6),
            ("[fe80::1%7]:5349", Family::V6),
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let (name, length) = Name::encode(address, family).unwrap();
            assert_eq!(name.decode(), address);
            assert!(length <= NAME_BYTES);
        }
        assert!(Name::encode("[::1]:1".parse().unwrap(), Family::V4).is_none());
    }

    #[test]
    fn a_name_of_an_unknown_family_reads_as_unspecified() {
        let name = Name {
            v6: libc::sockaddr_in6 {
                sin6_family: libc::AF_UNIX as libc::sa_family_t,
                sin6_port: 1,
                sin6_flowinfo: 0,
                sin6_addr: in6_addr(Ipv6Addr::LOCALHOST),
                sin6_scope_id: 0,
            },
        };
        assert_eq!(name.decode(), "0.0.0.0:0".parse().unwrap());
    }

    fn read_back(control: &mut Control, length: usize) -> Option<IpAddr> {
        // SAFETY: `msghdr` is made of pointers, for which null is valid, and integers.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = ptr::from_mut(control).cast();
        header.msg_controllen = length as _;
        // SAFETY: the header describes `length` bytes of control data written by `Control`, still alive.
        unsafe { ancillary(&header) }.local
    }

    #[test]
    fn packet_info_is_written_as_it_is_read() {
        let mut control = Control::new();
        for (text, family) in [
            ("::1", Family::V6),
            ("2001:db8::7", Family::V6),
            ("127.0.0.2", Family::V4),
            ("127.0.0.2", Family::V6),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let length = control.set_source(ip, family).unwrap();
            assert_eq!(read_back(&mut control, length), Some(ip));
        }
        assert!(
            control
                .set_source("::1".parse().unwrap(), Family::V4)
                .is_none()
        );
    }

    #[test]
    fn other_control_messages_are_passed_over() {
        let mut control = Control::new();
        let end = control.set_segment(0, 1200);
        assert_eq!(read_back(&mut control, end), None);
        let end = control.write(
            end,
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            libc::in_pktinfo {
                ipi_ifindex: 1,
                ipi_spec_dst: in_addr(Ipv4Addr::new(127, 0, 0, 3)),
                ipi_addr: in_addr(Ipv4Addr::BROADCAST),
            },
        );
        assert_eq!(
            read_back(&mut control, end),
            Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)))
        );
        assert_eq!(read_back(&mut control, 0), None);
    }
}
