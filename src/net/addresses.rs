//! What the kernel tells about addresses of interfaces that come and go (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::Poller;

/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR of linux/rtnetlink.h: one message for each address added or removed.
const GROUPS: u32 = 0x10 | 0x100;

/// Tells when addresses of this host may have changed; which they are is asked for afresh.
#[derive(Debug)]
pub struct AddressChanges {
    socket: OwnedFd,
    poller: Poller,
}

impl AddressChanges {
    /// Listens from now on.
    ///
    /// # Errors
    /// A sandbox without AF_NETLINK, or no more descriptors.
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol, which is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        let poller = Poller::new(1)?;
        poller.add(&socket, 0)?;
        Ok(Self { socket, poller })
    }

    /// For a runtime to watch: readable once there is something to [`take`](Self::take).
    pub const fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Takes all that was told so far; whether there was anything.
    pub fn take(&mut self) -> bool {
        let mut told = false;
        let mut buffer = [0; 4096];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok(_) => told = true,
                // More happened than the socket holds.
                Err(rustix::io::Errno::NOBUFS) => told = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.poller.ready();
        told
    }
}
