//! Ranges that are not for peers, and the forms in which IPv6 addresses carry IPv4 addresses. Facts, no policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::peers::DeniedRule;

/// The narrowest range of the safe defaults that holds the canonical `ip`.
pub(super) fn safe_default(ip: IpAddr) -> Option<DeniedRule> {
    if METADATA.contains(&ip) {
        return Some(DeniedRule::Metadata);
    }
    match ip {
        IpAddr::V4(ip) => IPV4
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|&(_, rule)| rule),
        IpAddr::V6(ip) => IPV6
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|&(_, rule)| rule)
            .or_else(|| {
                let unicast = GLOBAL_UNICAST.contains(&ip) || NAT64.contains(&ip);
                (!unicast).then_some(DeniedRule::Reserved)
            }),
    }
}

/// The IPv4 addresses that `ip` carries in the forms that translators and tunnels of the Internet understand.
///
/// Mapped addresses are not among them: they are canonicalized before.
pub(super) fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let [_, a, b, c, d, e, f, g] = ip.segments();
    let first = if TEREDO.contains(&ip) {
        // The server, RFC 4380 §4.
        Some(ipv4(b, c))
    } else if SIX_TO_FOUR.contains(&ip) {
        Some(ipv4(a, b))
    } else if NAT64.contains(&ip)
        || SIIT.contains(&ip)
        || (COMPATIBLE.contains(&ip) && !ip.is_unspecified() && !ip.is_loopback())
    {
        Some(low_ipv4(ip))
    } else {
        None
    };
    // The client behind its NAT, with its bits inverted, RFC 4380 §4.
    let teredo_client = TEREDO.contains(&ip).then(|| ipv4(!f, !g));
    // An interface identifier under any prefix, RFC 5214 §6.1.
    let isatap = (matches!(d, 0 | 0x200) && e == 0x5efe).then(|| low_ipv4(ip));
    [first, teredo_client, isatap]
}

/// The IPv4 address in `ip` behind a NAT64 prefix of 32 bits or more (RFC 6052 §2.2).
///
/// A length between those of the RFC counts as the next shorter one.
pub(super) const fn rfc6052(ip: Ipv6Addr, prefix_len: u8) -> Ipv4Addr {
    let [_, _, _, _, e, f, g, h, _, j, k, l, m, n, o, p] = ip.octets();
    match prefix_len {
        ..40 => Ipv4Addr::new(e, f, g, h),
        40..48 => Ipv4Addr::new(f, g, h, j),
        48..56 => Ipv4Addr::new(g, h, j, k),
        56..64 => Ipv4Addr::new(h, j, k, l),
        64..96 => Ipv4Addr::new(j, k, l, m),
        96.. => Ipv4Addr::new(m, n, o, p),
    }
}

const fn ipv4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(((high as u32) << 16) | low as u32)
}

pub(super) const fn low_ipv4(ip: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(ip.to_bits() as u32)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

/// The network whose first four groups are given and whose others are zero.
const fn v6(groups: [u16; 4], prefix_len: u8) -> Ipv6Net {
    let [a, b, c, d] = groups;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix_len)
}

/// RFC 4291 §2.5.5.2.
pub(super) const MAPPED: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
/// RFC 4291 §2.5.5.1.
const COMPATIBLE: Ipv6Net = v6([0; 4], 96);
/// RFC 2765 §2.1, "IPv4-translated".
const SIIT: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96);
/// RFC 6052 §2.1.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);
/// RFC 8215.
pub(super) const NAT64_LOCAL: Ipv6Net = v6([0x64, 0xff9b, 1, 0], 48);
/// RFC 3056.
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0], 16);
/// RFC 4380.
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0], 32);
/// All that IANA allocates from.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], 3);

/// AWS and everyone who copied it, ECS, EKS, Scaleway, Alibaba, Azure, Oracle; over IPv6 AWS, EKS, Scaleway, Google.
const METADATA: [IpAddr; 11] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Of ranges that overlap, the narrower comes first.
const IPV4: [(Ipv4Net, DeniedRule); 16] = [
    (v4(0, 0, 0, 0, 8), DeniedRule::Unspecified),
    (v4(127, 0, 0, 0, 8), DeniedRule::Loopback),
    (v4(169, 254, 0, 0, 16), DeniedRule::LinkLocal),
    (v4(10, 0, 0, 0, 8), DeniedRule::Private),
    (v4(172, 16, 0, 0, 12), DeniedRule::Private),
    (v4(192, 168, 0, 0, 16), DeniedRule::Private),
    (v4(100, 64, 0, 0, 10), DeniedRule::Cgnat),
    (v4(192, 0, 0, 0, 24), DeniedRule::Reserved),
    (v4(192, 0, 2, 0, 24), DeniedRule::Documentation),
    (v4(198, 51, 100, 0, 24), DeniedRule::Documentation),
    (v4(203, 0, 113, 0, 24), DeniedRule::Documentation),
    (v4(192, 88, 99, 0, 24), DeniedRule::Reserved),
    (v4(198, 18, 0, 0, 15), DeniedRule::Benchmarking),
    (v4(224, 0, 0, 0, 4), DeniedRule::Multicast),
    (v4(255, 255, 255, 255, 32), DeniedRule::Broadcast),
    (v4(240, 0, 0, 0, 4), DeniedRule::Reserved),
];

/// As above. What is not here and not in [`GLOBAL_UNICAST`] is reserved too, as 100::/64, 5f00::/16 and fec0::/10 are.
const IPV6: [(Ipv6Net, DeniedRule); 10] = [
    (
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
        DeniedRule::Unspecified,
    ),
    (
        Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
        DeniedRule::Loopback,
    ),
    (NAT64_LOCAL, DeniedRule::Translated),
    (v6([0xfe80, 0, 0, 0], 10), DeniedRule::LinkLocal),
    (v6([0xfc00, 0, 0, 0], 7), DeniedRule::UniqueLocal),
    (v6([0xff00, 0, 0, 0], 8), DeniedRule::Multicast),
    (v6([0x2001, 0xdb8, 0, 0], 32), DeniedRule::Documentation),
    (v6([0x3fff, 0, 0, 0], 20), DeniedRule::Documentation),
    (v6([0x2001, 2, 0, 0], 48), DeniedRule::Benchmarking),
    (v6([0x2001, 0, 0, 0], 23), DeniedRule::Reserved),
];
