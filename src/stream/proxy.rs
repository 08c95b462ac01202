//! The header of the PROXY protocol, versions 1 and 2: for whom a proxy in front of this server speaks. Pure.
//!
//! What follows the header belongs to others, so [`step`] never asks for a byte that may lie behind its end.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use crate::base::addr::canonical;

/// How version 1 begins.
const V1_START: &[u8] = b"PROXY ";

/// The longest header of version 1, in bytes.
const V1_LONGEST: usize = 107;

/// The shortest header there is, in bytes: `PROXY UNKNOWN` and the end of its line.
const SHORTEST: usize = 15;

/// Version 2 before its addresses, in bytes: signature, command, family, length.
const V2_FIXED: usize = 16;

/// Addresses of IPv6 and what proxies tell besides (TLVs), in bytes. The length has 16 bits; what is longer than this
/// is no header of a load balancer.
const V2_LONGEST: usize = 36 + 2048;

/// The longest header that is read, in bytes.
pub const MOST_BYTES: usize = V2_FIXED + V2_LONGEST;

/// Version 2, command LOCAL: the proxy speaks for itself.
pub const LOCAL: [u8; V2_FIXED] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Both ends of the connection that the proxy accepted, IPv4 in its own form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The client's transport address.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub server: SocketAddr,
}

/// How far a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many more bytes belong to it for certain, at least one.
    Read(usize),
    /// It is whole. `None`: the proxy speaks for itself (LOCAL), or does not know for whom (UNKNOWN, UNSPEC): the
    /// connection's own ends count.
    Whole(Option<Route>),
    /// This is no header, for this reason.
    Refuse(&'static str),
}

/// Whether a connection begins with a header, as far as `first`, its first bytes, tell.
pub fn begins(first: &[u8]) -> bool {
    first.starts_with(V1_START) || first.starts_with(v2::PROTOCOL_PREFIX)
}

/// What to do about `received`, all that was read so far by earlier steps.
pub fn step(received: &[u8]) -> Step {
    let could_be = |start: &[u8]| {
        let length = start.len().min(received.len());
        received.get(..length) == start.get(..length)
    };
    if !could_be(V1_START) && !could_be(v2::PROTOCOL_PREFIX) {
        return Step::Refuse("it begins with something else");
    }
    match received.len() {
        0..SHORTEST => Step::Read(SHORTEST - received.len()),
        _ if received.starts_with(V1_START) => text(received),
        _ => binary(received),
    }
}

/// Version 1: a line of text.
fn text(received: &[u8]) -> Step {
    match received
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
    {
        Some(end) if received.get(end..) == Some(b"\r\n") => {}
        Some(end) if received.get(end..) == Some(b"\r") && end < V1_LONGEST - 1 => {
            return Step::Read(1);
        }
        None if received.len() <= V1_LONGEST - 2 => return Step::Read(2),
        None => return Step::Refuse("its line is too long"),
        Some(_) => return Step::Refuse("its line does not end as it has to"),
    }
    match v1::Header::try_from(received).map(|header| header.addresses) {
        Ok(v1::Addresses::Unknown) => Step::Whole(None),
        Ok(v1::Addresses::Tcp4(of)) => whole(
            (of.source_address.into(), of.source_port),
            (of.destination_address.into(), of.destination_port),
        ),
        Ok(v1::Addresses::Tcp6(of)) => whole(
            (of.source_address.into(), of.source_port),
            (of.destination_address.into(), of.destination_port),
        ),
        Err(_) => Step::Refuse("its line makes no sense"),
    }
}

/// Version 2: binary, its length near its beginning.
fn binary(received: &[u8]) -> Step {
    let Some((fixed, _)) = received.split_first_chunk::<V2_FIXED>() else {
        return Step::Read(V2_FIXED - received.len());
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > V2_LONGEST {
        return Step::Refuse("it is too long");
    }
    let left = (V2_FIXED + length).saturating_sub(received.len());
    if left > 0 {
        return Step::Read(left);
    }
    let header = match v2::Header::try_from(received) {
        Ok(header) => header,
        Err(_) => return Step::Refuse("it makes no sense"),
    };
    if header.command == v2::Command::Local {
        return Step::Whole(None);
    }
    match (header.protocol, header.addresses) {
        (_, v2::Addresses::Unspecified) => Step::Whole(None),
        (v2::Protocol::Stream, v2::Addresses::IPv4(of)) => whole(
            (of.source_address.into(), of.source_port),
            (of.destination_address.into(), of.destination_port),
        ),
        (v2::Protocol::Stream, v2::Addresses::IPv6(of)) => whole(
            (of.source_address.into(), of.source_port),
            (of.destination_address.into(), of.destination_port),
        ),
        (_, v2::Addresses::Unix(_)) => Step::Refuse("its client came by a Unix socket"),
        _ => Step::Refuse("it speaks of something else than TCP"),
    }
}

fn whole(client: (IpAddr, u16), server: (IpAddr, u16)) -> Step {
    Step::Whole(Some(Route {
        client: canonical(client.into()),
        server: canonical(server.into()),
    }))
}

/// Version 2 for a connection of `route`. Ends of two families are both told as IPv6.
pub fn header(route: Route) -> Vec<u8> {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), address.port())),
        IpAddr::V6(_) => address,
    };
    let ends = if route.client.is_ipv4() == route.server.is_ipv4() {
        (route.client, route.server)
    } else {
        (mapped(route.client), mapped(route.server))
    };
    let command = v2::Version::Two | v2::Command::Proxy;
    let built = v2::Builder::with_addresses(command, v2::Protocol::Stream, ends).build();
    // It fails beyond 64 KiB only.
    built.unwrap_or_else(|_| LOCAL.to_vec())
}
