//! Ranges of peers, `first-last` with coturn, CIDRs with us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// The CIDRs that cover exactly what `text` does: an address, `first-last`, or a CIDR.
///
/// # Errors
/// Why coturn makes nothing of it either.
pub(super) fn ranges(text: &str) -> Result<Vec<IpNet>, &'static str> {
    const FORM: &str = "is no address and no range of addresses";
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(vec![net.trunc()]);
    }
    let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| FORM);
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![IpNet::from(parse(text)?)]);
    };
    match (parse(first)?, parse(last)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Ok(Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            Ok(Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect())
        }
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            Err("ends before it begins")
        }
        _ => Err("begins in one address family and ends in another"),
    }
}

/// As the configuration writes it: the address alone where there is one.
pub(super) fn written(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Whether something in `net` is on loopback, unspecified or multicast: out of reach with coturn, whatever is allowed.
pub(super) fn touches_host(net: &IpNet) -> bool {
    const V4: [Ipv4Net; 3] = [
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    ];
    const V6: [Ipv6Net; 3] = [
        Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
        Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    let touches = |own: IpNet| own.contains(net) || net.contains(&own);
    (V4.into_iter().map(IpNet::V4))
        .chain(V6.into_iter().map(IpNet::V6))
        .any(touches)
}

/// Whether `denied` covers every private IPv4 range (RFC 1918).
pub(super) fn cover_private(denied: &[IpNet]) -> bool {
    const PRIVATE: [Ipv4Net; 3] = [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
        Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
        Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    ];
    (PRIVATE.into_iter().map(IpNet::V4)).all(|net| denied.iter().any(|range| range.contains(&net)))
}
