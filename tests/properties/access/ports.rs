//! Rules with ports and prefixes of NAT64, in any order and overlapping, against a model that looks every case up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use turnix::access::peers::{Nat64, Rule, Settings};
use turnix::access::{DeniedRule, OwnAddresses, PeerPolicy};

fn policy(deny: &[String], allow: &[String], nat64: &[String]) -> PeerPolicy {
    let rules = |texts: &[String]| texts.iter().map(|text| text.parse().unwrap()).collect();
    PeerPolicy::new(
        &Settings {
            deny: rules(deny),
            allow: rules(allow),
            nat64: nat64.iter().map(|text| text.parse().unwrap()).collect(),
        },
        OwnAddresses {
            relays: vec![ip("8.8.8.1")],
            relay_ports: 49_152..=65_535,
            host: vec![ip("8.8.8.1"), ip("8.8.8.2")],
            service_ports: vec![3478, 50_000],
        },
    )
}

fn of(deny: &[&str], allow: &[&str], nat64: &[&str]) -> PeerPolicy {
    let owned = |texts: &[&str]| -> Vec<String> { texts.iter().map(ToString::to_string).collect() };
    policy(&owned(deny), &owned(allow), &owned(nat64))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn verdict(policy: &PeerPolicy, peer: &str) -> Result<(), DeniedRule> {
    let verdict = policy.permit(peer.parse().unwrap());
    verdict.map(drop).map_err(|denied| denied.rule)
}

fn ip_verdict(policy: &PeerPolicy, text: &str) -> Result<(), DeniedRule> {
    let verdict = policy.permit_ip(ip(text));
    verdict.map(drop).map_err(|denied| denied.rule)
}

#[test]
fn media_servers_and_nothing_else() {
    let policy = of(
        &["public"],
        &[
            "10.1.2.0/24:10000-20000",
            "10.1.3.3:5004",
            "[fd00:1::/32]:10000-20000",
        ],
        &[],
    );
    for (peer, expected) in [
        ("10.1.2.3:9999", Err(DeniedRule::Private)),
        ("10.1.2.3:10000", Ok(())),
        ("10.1.2.3:20000", Ok(())),
        ("10.1.2.3:20001", Err(DeniedRule::Private)),
        ("10.1.2.3:0", Err(DeniedRule::PortZero)),
        ("10.1.3.3:5004", Ok(())),
        ("10.1.3.3:5005", Err(DeniedRule::Private)),
        ("[::ffff:10.1.2.3]:10000", Ok(())),
        ("[::ffff:10.1.2.3]:80", Err(DeniedRule::Private)),
        ("10.1.4.1:10000", Err(DeniedRule::Private)),
        ("[fd00:1::9]:10000", Ok(())),
        ("[fd00:1::9]:9999", Err(DeniedRule::UniqueLocal)),
        ("[fd00:2::9]:10000", Err(DeniedRule::UniqueLocal)),
        ("8.8.4.4:10000", Err(DeniedRule::Configured)),
        ("[2a00::1]:10000", Err(DeniedRule::Configured)),
        ("[64:ff9b::8.8.4.4]:10000", Err(DeniedRule::Configured)),
        // Two clients of this server still meet in memory.
        ("8.8.8.1:49152", Ok(())),
        ("8.8.8.1:50000", Err(DeniedRule::OwnAddress)),
    ] {
        assert_eq!(verdict(&policy, peer), expected, "{peer}");
    }
    for (text, expected) in [
        ("10.1.2.3", Ok(())),
        ("10.1.3.3", Ok(())),
        ("10.1.4.1", Err(DeniedRule::Private)),
        ("fd00:1::9", Ok(())),
        ("8.8.4.4", Err(DeniedRule::Configured)),
        ("8.8.8.1", Ok(())),
        ("8.8.8.2", Err(DeniedRule::OwnAddress)),
    ] {
        assert_eq!(ip_verdict(&policy, text), expected, "{text}");
    }
}

#[test]
fn a_deny_with_ports_refuses_these_ports_only() {
    let policy = of(&["8.8.4.0/24:1-1023", "public:25"], &["8.8.4.4:53"], &[]);
    for (peer, expected) in [
        ("8.8.4.5:1", Err(DeniedRule::Configured)),
        ("8.8.4.5:1023", Err(DeniedRule::Configured)),
        ("8.8.4.5:1024", Ok(())),
        ("8.8.4.4:53", Ok(())),
        ("8.8.4.4:54", Err(DeniedRule::Configured)),
        ("1.1.1.1:25", Err(DeniedRule::Configured)),
        ("[64:ff9b::1.1.1.1]:25", Err(DeniedRule::Configured)),
        ("1.1.1.1:26", Ok(())),
    ] {
        assert_eq!(verdict(&policy, peer), expected, "{peer}");
    }
    assert_eq!(ip_verdict(&policy, "8.8.4.5"), Ok(()));
    // Every port refused, by several rules: the IP is.
    let all = of(&["8.8.4.5:1-30000", "8.8.4.0/24:29000-65535"], &[], &[]);
    assert_eq!(ip_verdict(&all, "8.8.4.5"), Err(DeniedRule::Configured));
    let all_but_one = of(&["8.8.4.5:1-30000", "8.8.4.0/24:30002-65535"], &[], &[]);
    assert_eq!(ip_verdict(&all_but_one, "8.8.4.5"), Ok(()));
    assert_eq!(ip_verdict(&all_but_one, "64:ff9b::8.8.4.5"), Ok(()));
}

#[test]
fn what_always_holds_holds_with_ports() {
    let policy = of(
        &[],
        &[
            "169.254.169.254:80",
            "169.254.0.0/16:80",
            "0.0.0.0/0:3478-50000",
        ],
        &[],
    );
    for (peer, expected) in [
        ("169.254.169.254:80", Ok(())),
        ("169.254.169.254:81", Err(DeniedRule::Metadata)),
        ("169.254.170.2:80", Err(DeniedRule::Metadata)),
        ("169.254.170.2:4000", Err(DeniedRule::Metadata)),
        ("127.0.0.1:4000", Ok(())),
        ("127.0.0.1:3478", Err(DeniedRule::OwnAddress)),
        ("127.0.0.1:50000", Err(DeniedRule::OwnAddress)),
        ("127.0.0.1:50001", Err(DeniedRule::Loopback)),
        ("8.8.8.2:3478", Err(DeniedRule::OwnAddress)),
        ("8.8.8.2:3479", Ok(())),
    ] {
        assert_eq!(verdict(&policy, peer), expected, "{peer}");
    }
    // The only port that is allowed is a service's: no port is left.
    let service = of(&[], &["8.8.8.2:3478"], &[]);
    assert_eq!(ip_verdict(&service, "8.8.8.2"), Err(DeniedRule::OwnAddress));
}

#[test]
fn data_from_peers_is_judged_by_port_where_rules_have_ports() {
    let peer: SocketAddr = "10.1.2.3:80".parse().unwrap();
    assert!(of(&[], &["10.1.2.3:5004"], &[]).admit(peer).is_err());
    assert!(of(&[], &["10.1.2.3:80"], &[]).admit(peer).is_ok());
    // A permission was given, and no rule speaks of ports: nothing is left to judge.
    assert!(of(&[], &["10.1.2.3"], &[]).admit(peer).is_ok());
}

#[test]
fn rules_with_ports_are_read_and_written() {
    for (text, written) in [
        ("10.1.2.0/24:10000-20000", "10.1.2.0/24:10000-20000"),
        ("10.1.2.3:5004", "10.1.2.3:5004"),
        ("10.1.2.3/32:5004-5004", "10.1.2.3:5004"),
        ("10.1.2.3:1-65535", "10.1.2.3"),
        ("[2001:db8::/32]:10000-20000", "[2001:db8::/32]:10000-20000"),
        ("[::1]:80", "[::1]:80"),
        ("[::ffff:10.0.0.0/104]:80", "10.0.0.0/8:80"),
        ("private:1-1023", "private:1-1023"),
        ("Link_Local:9", "link-local:9"),
    ] {
        let rule: Rule = text.parse().unwrap();
        assert_eq!(rule.to_string(), written);
        assert_eq!(written.parse(), Ok(rule));
    }
    for text in [
        "10.1.2.3:",
        "10.1.2.3:0",
        "10.1.2.3:0-9",
        "10.1.2.3:9-8",
        "10.1.2.3:65536",
        "10.1.2.3:+9",
        "10.1.2.3: 9",
        "10.1.2.3:9-",
        "10.1.2.3:-9",
        "10.1.2.3:1-2-3",
        "10.1.2.3:http",
        "[2001:db8::/32]:",
        "private:0",
    ] {
        let error = text.parse::<Rule>().unwrap_err();
        assert!(error.contains("10.1.2.0/24:10000-20000"), "{error}");
    }
    for text in [
        "[2001:db8::/32]",
        "[2001:db8::]/32:80",
        "[10.0.0.0/8]:80",
        "[private]:80",
        "nowhere:80",
        "10.0.0.0/33:80",
        "[::1]80",
        ":80",
    ] {
        let error = text.parse::<Rule>().unwrap_err();
        assert!(error.contains("is not a range"), "{error}");
    }
    assert!("10.0.0.1/8:80".parse::<Rule>().is_err());
}

#[test]
fn nat64_prefixes_are_read_and_written() {
    for len in 0..=128 {
        let text = format!("2001:db8::/{len}");
        let known = [32, 40, 48, 56, 64, 96].contains(&len);
        assert_eq!(text.parse::<Nat64>().is_ok(), known, "{text}");
    }
    for text in [
        "",
        "2001:db8::",
        "10.0.0.0/32",
        "2001:db8::1/96",
        "2001:db8:1::/32",
        "nat64",
    ] {
        let error = text.parse::<Nat64>().unwrap_err();
        assert!(error.contains("2001:db8:64::/96"), "{error}");
    }
    let prefix: Nat64 = "2001:DB8:64::/96".parse().unwrap();
    assert_eq!(prefix.to_string(), "2001:db8:64::/96");
}

/// The examples of RFC 6052 §2.4.
#[test]
fn rfc6052_2_4() {
    for (prefix, address) in [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ] {
        let prefix: Nat64 = prefix.parse().unwrap();
        let inner = prefix.extract(address.parse().unwrap());
        assert_eq!(inner, Some(Ipv4Addr::new(192, 0, 2, 33)), "{address}");
        assert_eq!(prefix.extract("2002::".parse().unwrap()), None);
    }
}

#[test]
fn nat64_opens_nothing_and_judges_what_is_inside() {
    let policy = of(
        &["9.9.9.0/24:53"],
        &["64:ff9b:1::/48", "fd64::/96"],
        &["2a01:64::/96", "64:ff9b:1:2::/96", "fd64::/96", "fc64::/96"],
    );
    for (peer, expected) in [
        ("[2a01:64::8.8.4.4]:9", Ok(())),
        ("[2a01:64::10.0.0.1]:9", Err(DeniedRule::Private)),
        ("[2a01:64::169.254.169.254]:80", Err(DeniedRule::Metadata)),
        ("[2a01:64::9.9.9.9]:53", Err(DeniedRule::Configured)),
        ("[2a01:64::9.9.9.9]:54", Ok(())),
        ("[2a01:64::8.8.8.1]:49152", Err(DeniedRule::OwnAddress)),
        ("[2a01:64::8.8.8.1]:3478", Err(DeniedRule::OwnAddress)),
        // Beside the prefix.
        ("[2a01:64::1:10.0.0.1]:9", Ok(())),
        // Where it says how long the prefix is, the rule's length does not count.
        ("[64:ff9b:1:2::8.8.4.4]:9", Ok(())),
        ("[64:ff9b:1:2::10.0.0.1]:9", Err(DeniedRule::Private)),
        ("[64:ff9b:1:808:4:400::]:9", Ok(())),
        ("[fd64::8.8.4.4]:9", Ok(())),
        ("[fd64::127.0.0.1]:9", Err(DeniedRule::Loopback)),
        ("[fc64::8.8.4.4]:9", Err(DeniedRule::UniqueLocal)),
    ] {
        assert_eq!(verdict(&policy, peer), expected, "{peer}");
    }
}

/// A rule of the model: what it covers, spelled out.
#[derive(Clone, Debug)]
struct Model {
    text: String,
    first: u128,
    last: u128,
    v4: bool,
    name: Option<bool>,
    ports: (u16, u16),
}

impl Model {
    /// `name`: `Some(true)` is `public`, `Some(false)` is `private`.
    fn covers(&self, ip: IpAddr, port: u16) -> bool {
        let bits = match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let range = match self.name {
            Some(public) => public != is_private(ip),
            None => ip.is_ipv4() == self.v4 && self.first <= bits && bits <= self.last,
        };
        range && self.ports.0 <= port && port <= self.ports.1
    }
}

/// The addresses of the model are private or public.
fn is_private(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_private())
}

/// Port numbers where ranges begin and end.
const EDGES: [u16; 9] = [1, 2, 79, 80, 1023, 1024, 40_000, 65_534, 65_535];

/// Prefixes of each length of RFC 6052, of which some lie within others.
const PREFIXES: [(&str, u32); 6] = [
    ("2a01::", 32),
    ("2a01:0:100::", 40),
    ("2a01:0:100::", 48),
    ("2a01:0:100:200::", 56),
    ("2a01:0:100:200::", 64),
    ("2a01:0:100:200::", 96),
];

/// `ip` behind `prefix`, written down as the table of RFC 6052 §2.2 does; `noise` is everywhere else.
fn behind((prefix, len): (&str, u32), ip: Ipv4Addr, noise: u128) -> Ipv6Addr {
    let mut octets = (noise >> len).to_be_bytes();
    let fixed = prefix.parse::<Ipv6Addr>().unwrap().octets();
    let len = len as usize / 8;
    octets[..len].copy_from_slice(&fixed[..len]);
    let places = (len..16).filter(|&place| place != 8);
    for (place, octet) in places.zip(ip.octets()) {
        octets[place] = octet;
    }
    octets.into()
}

fn inner() -> impl Strategy<Value = Ipv4Addr> {
    (any::<bool>(), 0_u8..8).prop_map(|(private, host)| match private {
        true => Ipv4Addr::new(10, 1, 2, host),
        false => Ipv4Addr::new(9, 1, 2, host),
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        inner().prop_map(IpAddr::V4),
        (
            prop::sample::select(PREFIXES.to_vec()),
            inner(),
            any::<u128>()
        )
            .prop_map(|(prefix, inner, noise)| behind(prefix, inner, noise).into()),
        (prop::sample::select(PREFIXES.to_vec()), inner())
            .prop_map(|(prefix, inner)| behind(prefix, inner, 0).into()),
    ]
}

fn rule() -> impl Strategy<Value = Model> {
    let edge = || prop::sample::select(EDGES.to_vec());
    let ports = prop_oneof![
        Just((1, u16::MAX)),
        (edge(), edge()).prop_map(|(a, b)| (a.min(b), a.max(b))),
    ];
    let name = prop::option::weighted(0.2, any::<bool>());
    (address(), 0_u32..8, ports, name).prop_map(|(ip, wide, ports, name)| {
        let (v4, bits, len) = match ip {
            IpAddr::V4(ip) => (true, u128::from(ip.to_bits()), 32 - wide.min(4)),
            IpAddr::V6(ip) => (false, ip.to_bits(), 128 - 16 * wide.min(6)),
        };
        let size = if v4 { 32 } else { 128 } - len;
        let first = bits >> size << size;
        let last = first | ((1 << size) - 1);
        let range = match (name, v4) {
            (Some(true), _) => "public".into(),
            (Some(false), _) => "private".into(),
            (None, true) => format!("{}/{len}", Ipv4Addr::from_bits(first as u32)),
            (None, false) => format!("{}/{len}", Ipv6Addr::from_bits(first)),
        };
        let text = match ports {
            (1, u16::MAX) => range,
            (a, b) if name.is_none() && !v4 => format!("[{range}]:{a}-{b}"),
            (a, b) => format!("{range}:{a}-{b}"),
        };
        Model {
            text,
            first,
            last,
            v4,
            name,
            ports,
        }
    })
}

fn model(
    (deny, allow, nat64): (&[Model], &[Model], &[(&str, u32)]),
    ip: IpAddr,
    port: u16,
) -> Result<(), DeniedRule> {
    let allowed = allow.iter().any(|rule| rule.covers(ip, port));
    if !allowed && deny.iter().any(|rule| rule.covers(ip, port)) {
        return Err(DeniedRule::Configured);
    }
    match ip {
        IpAddr::V4(_) if !allowed && is_private(ip) => Err(DeniedRule::Private),
        IpAddr::V4(_) => Ok(()),
        IpAddr::V6(outer) => {
            for &(prefix, len) in nat64 {
                let fixed = prefix.parse::<Ipv6Addr>().unwrap().to_bits();
                if (fixed ^ outer.to_bits()) >> (128 - len) != 0 {
                    continue;
                }
                let octets = outer.octets();
                let places = (len as usize / 8..16).filter(|&place| place != 8);
                let found: Vec<u8> = places.take(4).map(|place| octets[place]).collect();
                let found: [u8; 4] = found.try_into().unwrap();
                let found = Ipv4Addr::from(found);
                // What the model knows nothing about is left to the tests above.
                if !matches!(found.octets(), [9 | 10, 1, 2, _]) {
                    continue;
                }
                model((deny, allow, nat64), found.into(), port)?;
            }
            Ok(())
        }
    }
}

/// Whether every prefix that covers `ip` finds an address that the model knows.
fn is_known(nat64: &[(&str, u32)], ip: IpAddr) -> bool {
    let IpAddr::V6(outer) = ip else {
        return true;
    };
    nat64.iter().all(|&(prefix, len)| {
        let fixed = prefix.parse::<Ipv6Addr>().unwrap().to_bits();
        (fixed ^ outer.to_bits()) >> (128 - len) != 0
            || (0..8).any(|host| {
                [9, 10].into_iter().any(|net| {
                    let inner = Ipv4Addr::new(net, 1, 2, host);
                    let octets = behind((prefix, len), inner, 0).octets();
                    let places = (len as usize / 8..16).filter(|&place| place != 8).take(4);
                    places
                        .into_iter()
                        .all(|place| octets[place] == outer.octets()[place])
                })
            })
    })
}

fn texts(rules: &[Model]) -> Vec<String> {
    rules.iter().map(|rule| rule.text.clone()).collect()
}

proptest! {
    #[test]
    fn rules_in_any_order_are_what_the_model_says(
        deny in prop::collection::vec(rule(), 0..5),
        allow in prop::collection::vec(rule(), 0..5),
        chosen in prop::sample::subsequence(PREFIXES.to_vec(), 0..=2),
        addresses in prop::collection::vec(address(), 1..12),
        turn in 0_usize..5,
    ) {
        let nat64: Vec<String> = chosen.iter().map(|(prefix, len)| format!("{prefix}/{len}")).collect();
        let judged = policy(&texts(&deny), &texts(&allow), &nat64);
        let turned = |rules: &[Model]| {
            let mut texts = texts(rules);
            texts.reverse();
            let by = turn % texts.len().max(1);
            texts.rotate_left(by);
            texts
        };
        let reordered = policy(&turned(&deny), &turned(&allow), &nat64);
        for ip in addresses {
            let known = is_known(&chosen, ip);
            let mut some_port = false;
            for edge in EDGES {
                for port in [edge - 1, edge, edge.saturating_add(1)] {
                    let peer = SocketAddr::new(ip, port);
                    let verdict = judged.permit(peer).map(drop).map_err(|denied| denied.rule);
                    let again = reordered.permit(peer).map(drop).map_err(|denied| denied.rule);
                    prop_assert_eq!(verdict, again, "order of {}", peer);
                    some_port |= verdict.is_ok();
                    let expected = match port {
                        0 => Err(DeniedRule::PortZero),
                        _ => model((&deny, &allow, &chosen), ip, port),
                    };
                    if known {
                        prop_assert_eq!(verdict, expected, "{}", peer);
                    } else if expected.is_err() {
                        prop_assert!(verdict.is_err(), "{}", peer);
                    }
                }
            }
            // The ranges turn at these ports, so that an IP is permitted if and only if one of them is.
            prop_assert_eq!(judged.permit_ip(ip).is_ok(), some_port, "{}", ip);
            prop_assert_eq!(reordered.permit_ip(ip).is_ok(), some_port, "{}", ip);
        }
    }

    #[test]
    fn any_text_with_ports_is_a_rule_or_an_error(text in "[\\[]?[0-9a-f.:/]{0,12}[\\]]?(:[0-9]{0,6}(-[0-9]{0,6})?)?") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
