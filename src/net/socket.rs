//! UDP sockets and their options; TCP sockets that listen, and those that connect from the same address.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::sys::{self, Cause, Control, Name};
use crate::base::Family;

/// How a UDP socket is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOptions {
    /// Share the address with other sockets of the same user; the kernel spreads clients over them by five-tuple.
    pub reuse_port: bool,
    /// Payload room of the receive queue, in bytes. The kernel clips it silently, to `net.core.rmem_max` unless the
    /// process has CAP_NET_ADMIN. 0 leaves the system's default.
    pub recv_buffer_bytes: usize,
    /// Payload room of the send queue, in bytes; clipped likewise, to `net.core.wmem_max`.
    pub send_buffer_bytes: usize,
    /// Report the local address of every datagram: for sockets bound to a wildcard, whose answers must come from the
    /// address that was asked.
    pub packet_info: bool,
    /// Keep IPv4 off a socket bound to `[::]`.
    pub only_v6: bool,
    /// Take trains of equal datagrams as one message where the network stack has them so (UDP_GRO, udp(7)).
    pub trains: bool,
}

/// A non-blocking, unconnected UDP socket, closed on exec.
pub struct UdpSocket {
    fd: OwnedFd,
    address: SocketAddr,
    family: Family,
    // Atomic only to keep the socket `Sync`.
    /// Cleared once the kernel or the device refuses to segment.
    segments: AtomicBool,
    /// The kernel was asked to report the local address.
    packet_info: bool,
    /// The kernel was asked for trains.
    trains: AtomicBool,
    /// The kernel is asked for DSCP and ECN.
    pub(super) tos: AtomicBool,
}

/// The socket is of no use any more: close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvFault {
    /// The kernel refuses to read from the descriptor at all.
    Dead {
        /// The kernel's error number, for the log.
        errno: i32,
    },
}

/// Why one datagram was not sent. The socket stays usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFault {
    /// The send buffer or the device's queue is full: drop the datagram.
    WouldBlock,
    /// The datagram exceeds what UDP or the path carries.
    TooLarge,
    /// No route, no neighbour, or an ICMP error said so.
    Unreachable,
    /// Anything else: a firewall refuses, the address family does not fit, the source address is not ours.
    Other,
}

/// How often a datagram is sent again whose error may be that of another one. One does unless ICMP errors come in
/// between.
pub(super) const RETRIES: u32 = 3;

impl UdpSocket {
    /// Opens a socket at `address`; port 0 lets the kernel choose one.
    ///
    /// # Errors
    /// The address is taken or not ours, the port is privileged, or descriptors ran out.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> io::Result<Self> {
        let family = Family::of(address.ip());
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // Stated either way: the default is the host's choice (net.ipv6.bindv6only).
            socket.set_only_v6(options.only_v6)?;
        }
        size_buffer(socket.as_fd(), &RECEIVE, options.recv_buffer_bytes)?;
        size_buffer(socket.as_fd(), &SEND, options.send_buffer_bytes)?;
        if options.packet_info {
            report_local_address(socket.as_fd(), family)?;
        }
        socket.bind(&address.into())?;
        let address = if address.port() == 0 {
            socket
                .local_addr()?
                .as_socket()
                .ok_or(io::ErrorKind::InvalidData)?
        } else {
            address
        };
        let socket = Self {
            fd: socket.into(),
            address,
            family,
            segments: AtomicBool::new(true),
            packet_info: options.packet_info,
            trains: AtomicBool::new(false),
            tos: AtomicBool::new(false),
        };
        if options.trains {
            socket.take_trains(true)?;
        }
        Ok(socket)
    }

    /// Takes a socket that somebody else bound, and makes it as if it had been opened with `options`, except for what
    /// binding decides: its address, SO_REUSEPORT and IPV6_V6ONLY.
    ///
    /// # Errors
    /// It is no socket, or bound to nothing.
    pub fn adopt(socket: std::net::UdpSocket, options: &UdpOptions) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let socket = Self {
            fd: socket.into(),
            address,
            family: Family::of(address.ip()),
            segments: AtomicBool::new(true),
            packet_info: options.packet_info,
            trains: AtomicBool::new(false),
            tos: AtomicBool::new(false),
        };
        if options.packet_info {
            report_local_address(socket.as_fd(), socket.family)?;
        }
        socket.size_buffers(options.recv_buffer_bytes, options.send_buffer_bytes)?;
        if options.trains {
            socket.take_trains(true)?;
        }
        Ok(socket)
    }

    /// Whether other sockets of the same user may share the address (SO_REUSEPORT).
    pub fn reuses_port(&self) -> bool {
        SockRef::from(self).reuse_port().unwrap_or(false)
    }

    /// Asks for other queue sizes, in bytes of payload; 0 leaves one as it is.
    ///
    /// # Errors
    /// The kernel refuses to size it at all. That it grants less is no error.
    pub fn size_buffers(&self, receive: usize, send: usize) -> io::Result<()> {
        size_buffer(self.as_fd(), &RECEIVE, receive)?;
        size_buffer(self.as_fd(), &SEND, send)
    }

    /// Whether trains of equal datagrams from one sender arrive as one message (UDP_GRO, udp(7)).
    ///
    /// Switching it on makes the kernel look the socket up for every packet of a device that aggregates, so it is
    /// worth having only where trains come.
    ///
    /// # Errors
    /// The kernel does not know the option (before Linux 5.0).
    pub fn take_trains(&self, on: bool) -> io::Result<()> {
        sys::set_option(self.as_fd(), libc::SOL_UDP, libc::UDP_GRO, on.into())?;
        if on {
            self.trains.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether trains were taken at any time: some may wait to be received.
    pub fn took_trains(&self) -> bool {
        self.trains.load(Ordering::Relaxed)
    }

    /// Goes on with a socket that another process opened, without its local addresses reported.
    ///
    /// # Errors
    /// It is no bound UDP socket.
    pub fn resume(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::DGRAM {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let address = socket.local_addr()?;
        let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            fd: socket.into(),
            address,
            family: Family::of(address.ip()),
            segments: AtomicBool::new(true),
            packet_info: false,
            trains: AtomicBool::new(false),
            tos: AtomicBool::new(false),
        })
    }

    /// Takes no trains any more that the other process took; those that came before are understood.
    ///
    /// # Errors
    /// The kernel does not know the option.
    pub fn leave_trains(&self) -> io::Result<()> {
        self.trains.store(true, Ordering::Relaxed);
        self.take_trains(false)
    }

    /// The same socket under another descriptor, for one that reports local addresses, if so.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn share(&self, packet_info: bool) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            address: self.address,
            family: self.family,
            segments: AtomicBool::new(true),
            packet_info,
            trains: AtomicBool::new(self.took_trains()),
            tos: AtomicBool::new(false),
        })
    }

    /// Whether messages may come with control data: also trains that arrived before they were switched off.
    pub(super) fn has_ancillary(&self) -> bool {
        self.packet_info || self.trains.load(Ordering::Relaxed) || self.tos.load(Ordering::Relaxed)
    }

    /// The address the socket is bound to, with the port in use.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Payload room of the receive queue as granted, in bytes; less than asked where `net.core.rmem_max` clips it.
    pub fn recv_buffer_bytes(&self) -> usize {
        granted_bytes(self.fd.as_fd(), &RECEIVE)
    }

    /// Payload room of the send queue as granted, in bytes; less than asked where `net.core.wmem_max` clips it.
    pub fn send_buffer_bytes(&self) -> usize {
        granted_bytes(self.fd.as_fd(), &SEND)
    }

    /// Datagrams that the kernel threw away because the receive queue was full, since the socket was opened.
    ///
    /// One system call, nothing on the data path. Wraps at 2³². 0 if the kernel does not tell (before Linux 4.12).
    pub fn drops(&self) -> u32 {
        const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
        match sys::read_option::<{ DROPS + 1 }>(self.fd.as_fd(), libc::SOL_SOCKET, SO_MEMINFO) {
            Ok((values, count)) if count > DROPS => values[DROPS],
            _ => 0,
        }
    }

    /// Sends one datagram, from the local address `from` where the socket is bound to a wildcard. Never blocks.
    ///
    /// # Errors
    /// The datagram was not sent; the socket stays usable.
    pub fn send_to(
        &self,
        bytes: &[u8],
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<(), SendFault> {
        let (mut name, name_bytes) = Name::encode(to, self.family).ok_or(SendFault::Other)?;
        let mut control = Control::new();
        let control_bytes = match from {
            Some(from) => control
                .set_source(from, self.family)
                .ok_or(SendFault::Other)?,
            None => 0,
        };
        let mut piece = libc::iovec {
            // sendmsg only reads; iovec has no const form.
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: `msghdr` is made of pointers, for which null is valid, and integers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = ptr::from_mut(&mut name).cast();
        message.msg_namelen = name_bytes;
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if control_bytes > 0 {
            message.msg_control = ptr::from_mut(&mut control).cast();
            message.msg_controllen = control_bytes as _;
        }
        // SAFETY: every pointer in `message` leads to a local or to `bytes`, with the length beside it.
        unsafe { self.send_message(&message) }
    }

    /// Sends one message, again if the error may be the pending ICMP error of an earlier datagram.
    ///
    /// # Safety
    /// The name, control data and pieces that `message` points to must be alive and as long as it says.
    pub(super) unsafe fn send_message(&self, message: &libc::msghdr) -> Result<(), SendFault> {
        const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let fd = self.fd.as_raw_fd();
        // Without control data, sendto(2) says the same, and the kernel has less to copy and to check.
        let plain = message.msg_iovlen == 1 && message.msg_controllen == 0;
        let mut retries = 0;
        loop {
            let sent = if plain {
                // SAFETY: `msg_iovlen` is 1, so there is one piece to read; the caller vouches for it, the bytes it
                // describes and the name.
                unsafe {
                    let piece = *message.msg_iov;
                    let name = message.msg_name.cast::<libc::sockaddr>();
                    let (bytes, len) = (piece.iov_base, piece.iov_len);
                    libc::sendto(fd, bytes, len, FLAGS, name, message.msg_namelen)
                }
            } else {
                // SAFETY: sendmsg(2) reads what `message` describes; the caller vouches for it.
                unsafe { libc::sendmsg(fd, message, FLAGS) }
            };
            if sent >= 0 {
                return Ok(());
            }
            match Cause::of(sys::last_errno()) {
                Cause::Interrupted => {}
                cause if cause.may_be_pending() && retries < RETRIES => retries += 1,
                cause => return Err(cause.into()),
            }
        }
    }

    /// The family of the socket itself; a dual-stack one is IPv6.
    pub(super) const fn family(&self) -> Family {
        self.family
    }

    /// Whether sending a train of equal datagrams as one message is worth a try.
    pub(super) fn segments(&self) -> bool {
        self.segments.load(Ordering::Relaxed)
    }

    pub(super) fn disable_segments(&self) {
        self.segments.store(false, Ordering::Relaxed);
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpSocket({})", self.address)
    }
}

impl From<Cause> for SendFault {
    fn from(cause: Cause) -> Self {
        match cause {
            // A signal that comes again and again leaves the datagram unsent, as a full queue does.
            Cause::WouldBlock | Cause::NoBuffers | Cause::Interrupted => Self::WouldBlock,
            Cause::TooLarge => Self::TooLarge,
            Cause::Unreachable => Self::Unreachable,
            Cause::Unsegmented | Cause::Invalid | Cause::Refused | Cause::Fatal => Self::Other,
        }
    }
}

impl fmt::Display for RecvFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead { errno } => write!(
                f,
                "the socket cannot be read any more: {}",
                io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl std::error::Error for RecvFault {}

impl fmt::Display for SendFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "the send queue is full",
            Self::TooLarge => "the datagram is too large",
            Self::Unreachable => "the destination is unreachable",
            Self::Other => "the kernel refused the datagram",
        })
    }
}

impl std::error::Error for SendFault {}

fn report_local_address(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        // Reports IPv4 as mapped addresses where the socket is dual-stack.
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    sys::enable_option(fd, level, option)
}

/// Payload room that the host grants a UDP socket that asks for `wanted` bytes: of its receive and of its send queue.
///
/// # Errors
/// Descriptors ran out.
pub fn granted_buffers(wanted: usize) -> io::Result<(usize, usize)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
        .or_else(|_| Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)))?;
    let fd = socket.as_fd();
    size_buffer(fd, &RECEIVE, wanted)?;
    size_buffer(fd, &SEND, wanted)?;
    Ok((granted_bytes(fd, &RECEIVE), granted_bytes(fd, &SEND)))
}

/// The option that sizes a queue, and the one that needs CAP_NET_ADMIN and knows no limit.
struct Queue {
    size: i32,
    force: i32,
}

const RECEIVE: Queue = Queue {
    size: libc::SO_RCVBUF,
    force: libc::SO_RCVBUFFORCE,
};

const SEND: Queue = Queue {
    size: libc::SO_SNDBUF,
    force: libc::SO_SNDBUFFORCE,
};

/// Asks for `bytes`, and insists on them where the kernel grants less and the process may; 0 asks for nothing.
fn size_buffer(fd: BorrowedFd<'_>, queue: &Queue, bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // The kernel keeps the doubled size in an int.
    let wanted = libc::c_int::try_from(bytes)
        .unwrap_or(libc::c_int::MAX)
        .min(libc::c_int::MAX / 2);
    sys::set_option(fd, libc::SOL_SOCKET, queue.size, wanted)?;
    if granted_bytes(fd, queue) < wanted as usize {
        // Without the capability it stays as it was granted.
        let _ = sys::set_option(fd, libc::SOL_SOCKET, queue.force, wanted);
    }
    Ok(())
}

fn granted_bytes(fd: BorrowedFd<'_>, queue: &Queue) -> usize {
    // socket(7): "The kernel doubles this value (to allow space for bookkeeping overhead)".
    sys::read_option::<1>(fd, libc::SOL_SOCKET, queue.size)
        .map_or(0, |([bytes], _)| bytes as usize / 2)
}

/// Opens a non-blocking TCP listener; `[::]` takes IPv4 clients too. `backlog` is the length of the accept queue.
///
/// # Errors
/// The address is taken or not ours, the port is privileged, or descriptors ran out.
pub fn tcp_listener(address: SocketAddr, backlog: i32) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the last run in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Opens a TCP listener of which connections can leave as well: a socket from [`relay_connector`] may be bound to the same
/// address. Nobody else may have it.
///
/// # Errors
/// The address is taken or not ours, or descriptors ran out.
pub fn relay_listener(address: SocketAddr, backlog: i32) -> io::Result<std::net::TcpListener> {
    let socket = tcp_socket(address)?;
    socket.bind(&address.into())?;
    // Only now: bound with it, it would share the address with whoever asks.
    socket.set_reuse_port(true)?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// A TCP socket that is bound to the address of a [`relay_listener`], to connect from there.
///
/// # Errors
/// The address is not ours, or descriptors ran out.
pub fn relay_connector(address: SocketAddr) -> io::Result<std::net::TcpStream> {
    let socket = tcp_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of the last owner may be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// `SO_MEMINFO` of asm-generic/socket.h, which the libc crate does not name; sparc numbers its options differently.
#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_MEMINFO: libc::c_int = 55;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_MEMINFO: libc::c_int = 0x39;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_errors_are_sorted_by_what_to_do() {
        for (errno, fault) in [
            (libc::EAGAIN, SendFault::WouldBlock),
            (libc::ENOBUFS, SendFault::WouldBlock),
            (libc::EMSGSIZE, SendFault::TooLarge),
            (libc::ENETUNREACH, SendFault::Unreachable),
            (libc::ECONNREFUSED, SendFault::Unreachable),
            (libc::EPERM, SendFault::Other),
            (libc::EINVAL, SendFault::Other),
        ] {
            assert_eq!(SendFault::from(Cause::of(errno)), fault, "errno {errno}");
        }
    }
}
