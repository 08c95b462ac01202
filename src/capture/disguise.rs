//! How addresses are shown: as `log.ip_privacy` says, the same address always as the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ahash::RandomState;

use crate::base::{PiiMode, addr};

/// What addresses of clients and peers are replaced by; ports stay, and so do the server's own addresses.
#[derive(Clone, Debug)]
pub struct Disguise {
    mode: PiiMode,
    own: Vec<IpAddr>,
    key: RandomState,
}

impl Disguise {
    /// As `mode` says, but for the server's `own` addresses. Pseudonyms are keyed with `key`, one for each capture: those
    /// of one say nothing in another.
    pub fn new(mode: PiiMode, own: Vec<IpAddr>, key: [u64; 4]) -> Self {
        let [a, b, c, d] = key;
        Self {
            mode,
            own: own.into_iter().map(|ip| ip.to_canonical()).collect(),
            key: RandomState::with_seeds(a, b, c, d),
        }
    }

    /// What a reader has to know.
    pub(super) const fn words(&self) -> &'static str {
        match self.mode {
            PiiMode::Full => "",
            PiiMode::Truncate => "; addresses of clients and peers are cut to /24 and /48",
            PiiMode::Hash | PiiMode::Off => {
                "; addresses of clients and peers are pseudonyms in 240.0.0.0/4 and 2001:db8::/32"
            }
        }
    }

    pub(super) fn socket(&self, address: SocketAddr) -> SocketAddr {
        let address = addr::canonical(address);
        SocketAddr::new(self.ip(address.ip()), address.port())
    }

    /// In the family of `ip`, whose IPv4-mapped form is an IPv6 address here.
    pub(super) fn ip(&self, ip: IpAddr) -> IpAddr {
        let shown = ip.to_canonical();
        if self.mode == PiiMode::Full || shown.is_unspecified() || self.own.contains(&shown) {
            return ip;
        }
        let hash = || self.key.hash_one(shown);
        match (self.mode, ip) {
            (PiiMode::Full, ip) => ip,
            (PiiMode::Truncate, IpAddr::V4(ip)) => {
                Ipv4Addr::from_bits(ip.to_bits() & (!0 << 8)).into()
            }
            (PiiMode::Truncate, IpAddr::V6(ip)) => {
                Ipv6Addr::from_bits(ip.to_bits() & (!0 << 80)).into()
            }
            (PiiMode::Hash | PiiMode::Off, IpAddr::V4(_)) => {
                Ipv4Addr::from_bits(0xF000_0000 | hash() as u32 >> 4).into()
            }
            (PiiMode::Hash | PiiMode::Off, IpAddr::V6(_)) => {
                Ipv6Addr::from_bits(0x2001_0DB8 << 96 | u128::from(hash())).into()
            }
        }
    }
}
