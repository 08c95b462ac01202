//! What IP headers carry beside addresses, and the ICMP errors that come back for them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::Ordering;

use super::socket::UdpSocket;
use super::sys::{self, NAME_BYTES, Name};
use crate::base::Family;

/// Fields of one datagram's IP header (RFC 8656 §14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpFields {
    /// DSCP and ECN: Type of Service in IPv4, Traffic Class in IPv6.
    pub tos: u8,
    /// Nobody may cut it up: the DF bit. For IPv4.
    pub dont_fragment: bool,
}

/// An ICMP error about a datagram that a socket sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram was for. The port is 0 where this host itself did not send it.
    pub to: SocketAddr,
    /// ICMP type, ICMPv6's where `to` is IPv6.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU that was exceeded, in bytes, where type and code say so.
    pub data: u32,
}

/// IP_MTU_DISCOVER (ip(7)) of a socket whose datagrams may be fragmented: DF is clear, and what ICMP says of the path is
/// not believed, so that nobody who forges it makes datagrams smaller.
const FRAGMENT: libc::c_int = libc::IP_PMTUDISC_OMIT;

/// The same for datagrams that must not be: DF is set, and the sender is told what the path says, rather than kept from
/// asking.
const DONT_FRAGMENT: libc::c_int = libc::IP_PMTUDISC_PROBE;

/// Room for the control data of one error: the error, who reports it, and what else the socket reports.
const ERROR_CONTROL: usize = 256;

#[repr(C, align(8))]
struct ErrorControl([u8; ERROR_CONTROL]);

impl UdpSocket {
    /// Lets datagrams leave as RFC 8656 §14 says: IPv4 with DF clear, cut up where a link needs it. IPv6 is cut up by
    /// this host, as it is by default.
    pub fn let_fragment(&self) {
        // An IPv6 socket may be one that carries IPv4 as well. Without the option (before Linux 3.14) DF stays set.
        let _ = self.discover_mtu(FRAGMENT);
    }

    /// Sets DF on what is sent from now on, or clears it.
    ///
    /// # Errors
    /// The kernel does not know how.
    pub(super) fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        self.discover_mtu(if on { DONT_FRAGMENT } else { FRAGMENT })
    }

    fn discover_mtu(&self, how: libc::c_int) -> io::Result<()> {
        sys::set_option(self.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, how)
    }

    /// Whether [`Received::tos`](super::Received::tos) is told of every datagram.
    pub fn report_tos(&self, on: bool) {
        self.set_both(libc::IP_RECVTOS, libc::IPV6_RECVTCLASS, on);
        self.tos.store(on, Ordering::Relaxed);
    }

    /// Whether ICMP errors about what it sent wait for [`take_errors`](Self::take_errors); off forgets those that do.
    pub fn report_errors(&self, on: bool) {
        self.set_both(libc::IP_RECVERR, libc::IPV6_RECVERR, on);
    }

    /// Sets an option of IPv4, and that of IPv6 on a socket that may carry both. Neither fails on a socket of its family.
    fn set_both(&self, v4: libc::c_int, v6: libc::c_int, on: bool) {
        let set = sys::set_option(self.as_fd(), libc::IPPROTO_IP, v4, on.into());
        let set = match self.family() {
            Family::V4 => set,
            Family::V6 => sys::set_option(self.as_fd(), libc::IPPROTO_IPV6, v6, on.into()),
        };
        debug_assert!(set.is_ok(), "{set:?}");
    }

    /// Takes up to `most` errors that wait and shows them; how many there were, those that no ICMP error made included.
    pub fn take_errors(&self, most: usize, mut show: impl FnMut(IcmpError)) -> usize {
        for count in 0..most {
            match self.take_error() {
                Ok(Some(error)) => show(error),
                Ok(None) => {}
                // EAGAIN: none is left. Nothing else can be done about another one either.
                Err(_) => return count,
            }
        }
        most
    }

    /// One error; `None` if it is none that has a place in ICMP.
    fn take_error(&self) -> io::Result<Option<IcmpError>> {
        let mut name = Name::UNSPECIFIED;
        let mut control = ErrorControl([0; ERROR_CONTROL]);
        // SAFETY: `msghdr` is made of pointers, for which null is valid, and integers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = ptr::from_mut(&mut name).cast();
        message.msg_namelen = NAME_BYTES;
        message.msg_control = ptr::from_mut(&mut control).cast();
        message.msg_controllen = ERROR_CONTROL as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: recvmsg(2) writes the name and the control data, which are locals with their lengths beside them; there
        // is no piece to write the datagram to.
        let length = unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, flags) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: recvmsg just filled the header, and its control memory is the local above.
        let Some(error) = unsafe { sys::ancillary(&message) }.error else {
            return Ok(None);
        };
        let to = name.decode();
        let (kind, code) = match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code),
            // What no link of this host takes: the same in ICMP's words (RFC 1191 §4, RFC 4443 §3.2).
            libc::SO_EE_ORIGIN_LOCAL if error.ee_errno == libc::EMSGSIZE as u32 => match to {
                SocketAddr::V4(_) => (3, 4),
                SocketAddr::V6(_) => (2, 0),
            },
            _ => return Ok(None),
        };
        Ok(Some(IcmpError {
            to,
            kind,
            code,
            data: error.ee_info,
        }))
    }
}
