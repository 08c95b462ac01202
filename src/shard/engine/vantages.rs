//! Which endpoints of a shard clients may discover their NAT by (RFC 5780).

use std::net::{IpAddr, SocketAddr};

use crate::turn::{NatDiscovery, Vantage};

use super::{Endpoint, Shard};

impl Shard {
    /// Tells the core the ids of the endpoints that `wanted` names; those of which a listener lacks are left out.
    pub(super) fn settle_vantages(&mut self, wanted: &[NatDiscovery]) {
        let vantages = wanted.iter().filter_map(|one| self.vantage(one)).collect();
        self.server.set_vantages(vantages);
    }

    fn vantage(&mut self, wanted: &NatDiscovery) -> Option<Vantage> {
        let mut listeners = [[Default::default(); 2]; 2];
        let mut seen = [[SocketAddr::from(([0; 4], 0)); 2]; 2];
        for (ip, local) in wanted.local.into_iter().enumerate() {
            for (at, port) in wanted.ports.into_iter().enumerate() {
                let endpoint = self.endpoint_at(local, port)?;
                listeners[ip][at] = self.intern(endpoint);
                seen[ip][at] = SocketAddr::new(wanted.seen[ip], port);
            }
        }
        Some(Vantage { listeners, seen })
    }

    /// How a datagram to `local` and `port` comes in.
    fn endpoint_at(&self, local: IpAddr, port: u16) -> Option<Endpoint> {
        let bound = |at: SocketAddr| at.port() == port && at.ip().to_canonical() == local;
        let any = |at: SocketAddr| {
            at.port() == port && at.ip().is_unspecified() && (at.is_ipv6() || local.is_ipv4())
        };
        let addresses = || {
            (self.listeners.iter().enumerate())
                .filter_map(|(at, one)| Some((at, one.as_ref()?.socket.local_addr())))
        };
        if let Some((socket, _)) = addresses().find(|(_, at)| bound(*at)) {
            return Some(Endpoint::Udp {
                socket,
                local: None,
            });
        }
        let (socket, _) = addresses().find(|(_, at)| any(*at))?;
        Some(Endpoint::Udp {
            socket,
            local: Some(local),
        })
    }
}
