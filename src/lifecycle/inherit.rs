//! Sockets that systemd opened for us (socket activation, sd_listen_fds(3)), told apart by what they are bound to.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use listenfd::ListenFd;

use crate::net;

use super::store::{self, Stored};

/// Sockets that somebody else bound; each is taken by the listener of its address.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// What an earlier process of this service had systemd keep.
    stored: Stored,
    /// Descriptors that are neither.
    strange: usize,
}

impl Inherited {
    /// What LISTEN_FDS and LISTEN_PID name. The variables are cleared, so that this is for the start, before there are
    /// threads.
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<_> = names.split(':').collect();
        let mut given = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..given.len() {
            if let Some(name) = names
                .get(index)
                .filter(|name| name.starts_with(store::PREFIX))
            {
                let raw = given.take_raw_fd(index).ok().flatten();
                if let Some(Ok(descriptor)) = raw.map(net::given) {
                    inherited.stored.add(name, descriptor);
                }
            } else if let Ok(Some(socket)) = given.take_tcp_listener(index) {
                inherited.tcp.push(socket);
            } else if let Ok(Some(socket)) = given.take_udp_socket(index) {
                inherited.udp.push(socket);
            } else {
                inherited.strange += 1;
            }
        }
        inherited
    }

    /// What an earlier process of this service left, if it did.
    pub fn take_stored(&mut self) -> Option<Stored> {
        Some(std::mem::take(&mut self.stored)).filter(|stored| !stored.is_empty())
    }

    /// Adds TCP sockets that another process gave.
    pub fn add_tcp(&mut self, sockets: Vec<TcpListener>) {
        self.tcp.extend(sockets);
    }

    /// The TCP socket that is bound to `address`, if there is one.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let bound = |socket: &TcpListener| socket.local_addr().ok() == Some(address);
        let index = self.tcp.iter().position(bound)?;
        Some(self.tcp.swap_remove(index))
    }

    /// The UDP socket that is bound to `address`, if there is one.
    pub fn take_udp(&mut self, address: SocketAddr) -> Option<UdpSocket> {
        let bound = |socket: &UdpSocket| socket.local_addr().ok() == Some(address);
        let index = self.udp.iter().position(bound)?;
        Some(self.udp.swap_remove(index))
    }

    /// What nobody took, in words; they are closed with this value.
    pub fn left(&self) -> Vec<String> {
        let named = |kind: &str, address: std::io::Result<SocketAddr>| match address {
            Ok(address) => format!("{kind} {address}"),
            Err(_) => kind.to_owned(),
        };
        let tcp = (self.tcp.iter()).map(|socket| named("tcp", socket.local_addr()));
        let udp = (self.udp.iter()).map(|socket| named("udp", socket.local_addr()));
        let strange = (0..self.strange).map(|_| "a descriptor that is no TCP or UDP socket".into());
        tcp.chain(udp).chain(strange).collect()
    }
}
