//! Peer rules as texts, and the policy against a model that looks every case up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use turnix::access::peers::{Nat64, Rule, Settings};
use turnix::access::{DeniedRule, OwnAddresses, PeerPolicy};

use super::Reach;
use super::input::Input;

/// First and last address of every range that safe defaults refuse.
const SPECIAL: &[(&str, &str, &str)] = &[
    ("0.0.0.0", "0.255.255.255", "unspecified"),
    ("10.0.0.0", "10.255.255.255", "private"),
    ("100.64.0.0", "100.127.255.255", "cgnat"),
    ("127.0.0.0", "127.255.255.255", "loopback"),
    ("169.254.0.0", "169.254.255.255", "link-local"),
    ("172.16.0.0", "172.31.255.255", "private"),
    ("192.0.0.0", "192.0.0.255", "reserved"),
    ("192.0.2.0", "192.0.2.255", "documentation"),
    ("192.88.99.0", "192.88.99.255", "reserved"),
    ("192.168.0.0", "192.168.255.255", "private"),
    ("198.18.0.0", "198.19.255.255", "benchmarking"),
    ("198.51.100.0", "198.51.100.255", "documentation"),
    ("203.0.113.0", "203.0.113.255", "documentation"),
    ("224.0.0.0", "239.255.255.255", "multicast"),
    ("240.0.0.0", "255.255.255.254", "reserved"),
    ("255.255.255.255", "255.255.255.255", "broadcast"),
];

const METADATA: [&str; 5] = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
];

/// Names of rules.
const NAMES: [&str; 13] = [
    "public",
    "loopback",
    "private",
    "cgnat",
    "link-local",
    "unique-local",
    "multicast",
    "documentation",
    "benchmarking",
    "reserved",
    "metadata",
    "unspecified",
    "broadcast",
];

const RELAY: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 2);
const SERVICES: [u16; 2] = [3478, 50_000];
const RELAY_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// A rule for IPv4 as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    name: Option<&'static str>,
    first: u32,
    last: u32,
    ports: (u16, u16),
}

pub fn peers(data: &[u8]) -> Reach {
    let mut input = Input(data);
    let mut reach = Reach::new();
    match input.below(2) {
        0 => texts(input.0, &mut reach),
        _ => judged(&mut input, &mut reach),
    }
    reach
}

/// Lines of text: a rule or an error, and what is a rule is written as it is read.
fn texts(data: &[u8], reach: &mut Reach) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut settings = Settings::default();
    for (index, line) in text.lines().take(16).enumerate() {
        if let Ok(rule) = line.parse::<Rule>() {
            assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule.clone()), "{line}");
            reach.insert("rule".into());
            match index % 2 {
                0 => settings.deny.push(rule),
                _ => settings.allow.push(rule),
            }
        }
        if let Ok(prefix) = line.parse::<Nat64>() {
            assert_eq!(prefix.to_string().parse::<Nat64>(), Ok(prefix), "{line}");
            reach.insert("nat64".into());
            settings.nat64.push(prefix);
        }
        if let Ok(peer) = line.parse::<SocketAddr>() {
            reach.insert("peer".into());
            let _ = always(&settings, peer);
        }
        if let Ok(ip) = line.parse::<IpAddr>() {
            let _ = always(&settings, SocketAddr::new(ip, 40_000));
        }
    }
}

fn policy(settings: &Settings) -> PeerPolicy {
    PeerPolicy::new(
        settings,
        OwnAddresses {
            relays: vec![RELAY.into()],
            relay_ports: RELAY_PORTS,
            host: vec![RELAY.into(), HOST.into()],
            service_ports: SERVICES.into(),
        },
    )
}

/// What holds whatever the rules are.
fn always(settings: &Settings, peer: SocketAddr) -> Result<(), DeniedRule> {
    let judging = policy(settings);
    let verdict = judging.permit(peer);
    let mut turned = settings.clone();
    turned.deny.reverse();
    turned.allow.reverse();
    turned.nat64.reverse();
    let again = policy(&turned).permit(peer);
    assert_eq!(verdict.is_ok(), again.is_ok(), "order decides of {peer}");
    let mut denying = settings.clone();
    denying.allow.clear();
    if policy(&denying).permit(peer).is_ok() {
        assert!(verdict.is_ok(), "an exception closes {peer}");
    }
    if verdict.is_ok() {
        let permitted = judging.permit_ip(peer.ip());
        assert!(permitted.is_ok(), "{peer}, and not its IP");
        assert!(judging.admit(peer).is_ok(), "{peer} may not answer");
        let canonical = peer.ip().to_canonical();
        let own =
            [IpAddr::from(RELAY), HOST.into()].contains(&canonical) || canonical.is_loopback();
        assert!(
            !own || !SERVICES.contains(&peer.port()),
            "{peer} is a service"
        );
        assert_ne!(peer.port(), 0);
    }
    verdict.map(drop).map_err(|denied| denied.rule)
}

/// Rules and addresses of IPv4, the latter also hidden in IPv6, against the model.
fn judged(input: &mut Input<'_>, reach: &mut Reach) {
    let mut settings = Settings::default();
    let mut known = [Vec::new(), Vec::new()];
    for _ in 0..input.below(6) {
        let denies = input.byte().is_multiple_of(2);
        let (rule, text) = rule(input);
        let parsed: Rule = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error:?}"));
        if denies {
            settings.deny.push(parsed);
            known[0].push(rule);
        } else {
            settings.allow.push(parsed);
            known[1].push(rule);
        }
    }
    let nat64 = input.byte().is_multiple_of(2);
    if nat64 {
        settings
            .nat64
            .push("2a01:100::/96".parse().expect("a prefix"));
    }
    let [deny, allow] = known;
    for _ in 0..8 {
        if input.is_empty() {
            return;
        }
        let ip = address(input);
        let port = input.one_of(&[0, 1, 79, 80, 81, 3478, 5000, 49_151, 49_152, 50_000, 65_535]);
        let expected = model(&deny, &allow, ip, port);
        let verdict = always(&settings, SocketAddr::new(ip.into(), port));
        assert_eq!(verdict.is_ok(), expected, "{ip}:{port}");
        reach.insert(match verdict {
            Ok(()) => "permitted".into(),
            Err(rule) => rule.label().to_owned(),
        });
        let bits = u128::from(ip.to_bits());
        let prefixed = |prefix: u128| Ipv6Addr::from_bits(prefix | bits);
        let host = u128::from(input.byte());
        // The same address, then addresses that a translator turns into it.
        let mapped = always(
            &settings,
            SocketAddr::new(prefixed(0xFFFF << 32).into(), port),
        );
        assert_eq!(mapped.is_ok(), expected, "mapped {ip}:{port}");
        let translated = [
            prefixed(0x0064_FF9B << 96),
            Ipv6Addr::from_bits((0x2002 << 112) | (bits << 80) | host),
            Ipv6Addr::from_bits((0x2A00 << 112) | (0x5EFE << 32) | bits),
            prefixed(0x2A01_0100 << 96),
        ];
        let count = if nat64 { 4 } else { 3 };
        for outer in &translated[..count] {
            let verdict = always(&settings, SocketAddr::new((*outer).into(), port));
            // Our own addresses are reached in memory or not at all: nothing translates to them.
            let own = [RELAY, HOST].contains(&ip) || special(ip) == Some("loopback");
            // A name stands for addresses, and of these IPv6 ones none has a special name.
            let named = |rules: &[Known]| rules.iter().any(|rule| rule.name == Some("public"));
            if !expected || port == 0 {
                assert!(verdict.is_err(), "{outer} carries {ip}:{port}");
                reach.insert("refused inside".into());
            } else if !own && !named(&deny) && !named(&allow) {
                assert_eq!(verdict, Ok(()), "{outer} carries {ip}:{port}");
                reach.insert("permitted inside".into());
            }
        }
    }
}

/// Addresses at the ends of what decides.
fn address(input: &mut Input<'_>) -> Ipv4Addr {
    let v4 = |text: &str| text.parse::<Ipv4Addr>().expect("an address").to_bits();
    let which = input.below(4);
    let bits = match which {
        0 => u32::from_be_bytes(input.array()),
        1 => {
            let (first, last, _) = SPECIAL[input.below(SPECIAL.len())];
            v4(if input.once_in(2) { first } else { last })
        }
        2 => v4(METADATA[input.below(METADATA.len())]),
        _ => input
            .one_of(&[RELAY, HOST, Ipv4Addr::new(9, 9, 9, 9)])
            .to_bits(),
    };
    Ipv4Addr::from_bits(
        bits.wrapping_add(u32::from(input.byte() % 3))
            .wrapping_sub(1),
    )
}

fn rule(input: &mut Input<'_>) -> (Known, String) {
    let ports = match input.below(3) {
        0 => {
            let a = input.one_of(&[1, 80, 3478, 49_152, 65_535]);
            let b = input.one_of(&[1, 80, 3478, 49_152, 65_535]);
            (a.min(b), a.max(b))
        }
        _ => (1, u16::MAX),
    };
    let (name, first, last, range) = match input.below(3) {
        0 => {
            let name = NAMES[input.below(NAMES.len())];
            (Some(name), 0, 0, name.to_owned())
        }
        _ => {
            let ip = address(input);
            let len = u32::from(input.byte()) % 33;
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            let first = ip.to_bits() & mask;
            let text = format!("{}/{len}", Ipv4Addr::from_bits(first));
            (None, first, first | !mask, text)
        }
    };
    let text = match ports {
        (1, u16::MAX) => range,
        (a, b) => format!("{range}:{a}-{b}"),
    };
    let known = Known {
        name,
        first,
        last,
        ports,
    };
    (known, text)
}

/// The name of what is special about an address.
fn special(ip: Ipv4Addr) -> Option<&'static str> {
    let v4 = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    if METADATA.iter().any(|text| v4(text) == ip) {
        return Some("metadata");
    }
    (SPECIAL.iter())
        .find(|(first, last, _)| (v4(first)..=v4(last)).contains(&ip))
        .map(|(.., name)| *name)
}

fn model(deny: &[Known], allow: &[Known], ip: Ipv4Addr, port: u16) -> bool {
    if port == 0 {
        return false;
    }
    let special = special(ip);
    let covers = |rule: &Known| {
        (rule.ports.0..=rule.ports.1).contains(&port)
            && match rule.name {
                Some("public") => special.is_none(),
                Some(name) => special == Some(name),
                None => (rule.first..=rule.last).contains(&ip.to_bits()),
            }
    };
    let allowed = allow.iter().any(|rule| {
        let exact = rule.name.is_some() || rule.first == rule.last;
        covers(rule) && (special != Some("metadata") || exact)
    });
    let local = matches!(special, Some("loopback" | "unspecified"));
    if local || [RELAY, HOST].contains(&ip) {
        if SERVICES.contains(&port) {
            return false;
        }
        return allowed || (ip == RELAY && RELAY_PORTS.contains(&port));
    }
    allowed || (special.is_none() && !deny.iter().any(covers))
}
