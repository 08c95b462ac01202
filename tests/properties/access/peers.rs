//! Who may be reached: every range of the safe defaults, every way to hide one, and the rules of the operator.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use turnix::access::peers::{Rule, Settings};
use turnix::access::{DeniedRule, OwnAddresses, PeerPolicy};

const RELAY: &str = "8.8.8.1";
const RELAY6: &str = "2a00::1";
const HOST: &str = "8.8.8.2";
const SERVICE: u16 = 3478;
const SERVICE_IN_RELAY_PORTS: u16 = 50_000;

fn policy(deny: &[&str], allow: &[&str]) -> PeerPolicy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    PeerPolicy::new(
        &Settings {
            deny: rules(deny),
            allow: rules(allow),
            nat64: Vec::new(),
        },
        OwnAddresses {
            relays: vec![ip(RELAY), ip(RELAY6)],
            relay_ports: 49_152..=65_535,
            host: [RELAY, RELAY6, HOST, "10.0.0.5", "127.0.0.1", "::1"]
                .map(ip)
                .to_vec(),
            service_ports: vec![SERVICE, SERVICE_IN_RELAY_PORTS],
        },
    )
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The verdict on `ip`, which is the same at IP level and for an ordinary port.
#[track_caller]
fn verdict(policy: &PeerPolicy, ip: IpAddr) -> Result<(), DeniedRule> {
    let of_ip = policy.permit_ip(ip).map(drop);
    let of_peer = policy.permit(SocketAddr::new(ip, 4000)).map(drop);
    assert_eq!(of_ip, of_peer, "{ip}");
    of_ip.map_err(|denied| denied.rule)
}

/// What may be done at a port: (in memory, through the kernel).
fn roads(policy: &PeerPolicy, text: &str, port: u16) -> Result<(bool, bool), DeniedRule> {
    policy
        .permit(SocketAddr::new(ip(text), port))
        .map(|peer| (peer.may_be_own_relay(), peer.may_use_kernel()))
        .map_err(|denied| denied.rule)
}

/// First and last address of every range, with its rule.
const DENIED: &[(&str, &str, DeniedRule)] = &[
    ("0.0.0.0", "0.255.255.255", DeniedRule::Unspecified),
    ("10.0.0.0", "10.255.255.255", DeniedRule::Private),
    ("100.64.0.0", "100.127.255.255", DeniedRule::Cgnat),
    ("127.0.0.0", "127.255.255.255", DeniedRule::Loopback),
    ("169.254.0.0", "169.254.255.255", DeniedRule::LinkLocal),
    ("172.16.0.0", "172.31.255.255", DeniedRule::Private),
    ("192.0.0.0", "192.0.0.255", DeniedRule::Reserved),
    ("192.0.2.0", "192.0.2.255", DeniedRule::Documentation),
    ("192.88.99.0", "192.88.99.255", DeniedRule::Reserved),
    ("192.168.0.0", "192.168.255.255", DeniedRule::Private),
    ("198.18.0.0", "198.19.255.255", DeniedRule::Benchmarking),
    ("198.51.100.0", "198.51.100.255", DeniedRule::Documentation),
    ("203.0.113.0", "203.0.113.255", DeniedRule::Documentation),
    ("224.0.0.0", "239.255.255.255", DeniedRule::Multicast),
    ("240.0.0.0", "255.255.255.254", DeniedRule::Reserved),
    ("255.255.255.255", "255.255.255.255", DeniedRule::Broadcast),
    ("::", "::", DeniedRule::Unspecified),
    ("::1", "::1", DeniedRule::Loopback),
    (
        "64:ff9b:1::",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Translated,
    ),
    ("100::", "100::ffff:ffff:ffff:ffff", DeniedRule::Reserved),
    (
        "200::",
        "3ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "2001:1::",
        "2001:1:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "2001:2::",
        "2001:2:0:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Benchmarking,
    ),
    (
        "2001:2:1::",
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "2001:db8::",
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Documentation,
    ),
    (
        "3fff::",
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Documentation,
    ),
    (
        "4000::",
        "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "5f00::",
        "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "fc00::",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::UniqueLocal,
    ),
    (
        "fe80::",
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::LinkLocal,
    ),
    (
        "fec0::",
        "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Reserved,
    ),
    (
        "ff00::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        DeniedRule::Multicast,
    ),
];

/// Addresses right beside denied ranges, and ordinary ones.
const PERMITTED: &[&str] = &[
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "8.8.8.8",
    "2000::",
    "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:200::",
    "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::",
    "2606:4700::1111",
    "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "3fff:1000::",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2a00::5efe:808:808",
    "::ffff:8.8.8.8",
];

const METADATA: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
];

#[test]
fn safe_defaults_deny_every_special_range() {
    let policy = policy(&[], &[]);
    for &(first, last, rule) in DENIED {
        for text in [first, last] {
            assert_eq!(verdict(&policy, ip(text)), Err(rule), "{text}");
        }
    }
    for text in PERMITTED {
        assert_eq!(verdict(&policy, ip(text)), Ok(()), "{text}");
    }
    for text in METADATA {
        assert_eq!(
            verdict(&policy, ip(text)),
            Err(DeniedRule::Metadata),
            "{text}"
        );
    }
}

#[test]
fn embedded_ipv4_is_judged() {
    let policy = policy(&[], &[]);
    for (text, rule) in [
        ("::ffff:127.0.0.1", DeniedRule::Loopback),
        ("::ffff:0:127.0.0.1", DeniedRule::Loopback),
        ("::127.0.0.1", DeniedRule::Loopback),
        ("::10.0.0.1", DeniedRule::Private),
        ("64:ff9b::7f00:1", DeniedRule::Loopback),
        ("64:ff9b::10.1.2.3", DeniedRule::Private),
        ("64:ff9b:1::8.8.8.8", DeniedRule::Translated),
        ("2002:7f00:1::", DeniedRule::Loopback),
        ("2002:c0a8:101::1", DeniedRule::Private),
        // Teredo: the server in clear, the client inverted.
        ("2001:0:7f00:1::f7f7:f7f7", DeniedRule::Loopback),
        ("2001:0:808:808::80ff:fffe", DeniedRule::Loopback),
        ("2001:0:808:808::f7f7:f7f7", DeniedRule::Reserved),
        ("2a00::5efe:127.0.0.1", DeniedRule::Loopback),
        ("2a00::200:5efe:127.0.0.1", DeniedRule::Loopback),
        ("fe80::5efe:127.0.0.1", DeniedRule::LinkLocal),
        // Two at once.
        ("2002:808:808:0:0:5efe:10.0.0.1", DeniedRule::Private),
        ("2002:a00:1::5efe:808:808", DeniedRule::Private),
        // Our own address behind a translator is reached from outside, at any port.
        ("64:ff9b::8.8.8.1", DeniedRule::OwnAddress),
        ("64:ff9b::8.8.8.2", DeniedRule::OwnAddress),
        ("2002:808:802::", DeniedRule::OwnAddress),
        ("::8.8.8.8", DeniedRule::Reserved),
    ] {
        assert_eq!(verdict(&policy, ip(text)), Err(rule), "{text}");
    }
    assert_eq!(
        roads(&policy, "64:ff9b::8.8.8.1", 49_152),
        Err(DeniedRule::OwnAddress)
    );
}

#[test]
fn allow_speaks_for_the_address_it_names() {
    for (allow, text, expected) in [
        ("2001::/32", "2001:0:808:808::f7f7:f7f7", Ok(())),
        (
            "2001::/32",
            "2001:0:808:808::80ff:fffe",
            Err(DeniedRule::Loopback),
        ),
        (
            "2001::/32",
            "2001:0:7f00:1::f7f7:f7f7",
            Err(DeniedRule::Loopback),
        ),
        (
            "64:ff9b::/96",
            "64:ff9b::127.0.0.1",
            Err(DeniedRule::Loopback),
        ),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1", Ok(())),
        ("10.0.0.0/8", "::10.0.0.1", Err(DeniedRule::Reserved)),
        ("::/0", "::ffff:10.0.0.1", Err(DeniedRule::Private)),
        ("::/0", "64:ff9b::10.0.0.1", Err(DeniedRule::Private)),
        ("::ffff:10.0.0.0/104", "10.0.0.1", Ok(())),
        ("10.0.0.0/8", "::ffff:10.0.0.1", Ok(())),
        // A local NAT64 prefix, by its own length.
        ("::/0", "64:ff9b:1::8.8.8.8", Err(DeniedRule::Translated)),
        ("64:ff9b:1::/96", "64:ff9b:1::8.8.8.8", Ok(())),
        (
            "64:ff9b:1::/96",
            "64:ff9b:1::10.0.0.1",
            Err(DeniedRule::Private),
        ),
        (
            "64:ff9b:1:fffe::/96",
            "64:ff9b:1::8.8.8.8",
            Err(DeniedRule::Translated),
        ),
        ("64:ff9b:1::/48", "64:ff9b:1:808:8:800::", Ok(())),
        (
            "64:ff9b:1::/48",
            "64:ff9b:1:7f00:0:100::",
            Err(DeniedRule::Loopback),
        ),
        (
            "64:ff9b:1:100::/56",
            "64:ff9b:1:10a:0:1::",
            Err(DeniedRule::Private),
        ),
        (
            "64:ff9b:1:100::/64",
            "64:ff9b:1:100:a:0:100::",
            Err(DeniedRule::Private),
        ),
    ] {
        let policy = policy(&[], &[allow]);
        assert_eq!(verdict(&policy, ip(text)), expected, "{allow} {text}");
    }
}

#[test]
fn metadata_needs_to_be_named() {
    let ranges = ["link-local", "private", "cgnat", "reserved", "unique-local"];
    let wide = policy(
        &[],
        &[&ranges[..], &["0.0.0.0/0", "::/0", "169.254.169.254/31"]].concat(),
    );
    for text in METADATA {
        assert_eq!(
            verdict(&wide, ip(text)),
            Err(DeniedRule::Metadata),
            "{text}"
        );
        assert_eq!(
            verdict(&policy(&[], &["metadata"]), ip(text)),
            Ok(()),
            "{text}"
        );
    }
    assert_eq!(verdict(&wide, ip("169.254.1.1")), Ok(()));
    let exact = policy(&[], &["169.254.169.254", "fd00:ec2::254/128"]);
    assert_eq!(verdict(&exact, ip("169.254.169.254")), Ok(()));
    assert_eq!(verdict(&exact, ip("fd00:ec2::254")), Ok(()));
    assert_eq!(
        verdict(&exact, ip("169.254.170.2")),
        Err(DeniedRule::Metadata)
    );
}

#[test]
fn operator_denies_and_allows() {
    let policy = policy(
        &["8.8.0.0/16", "2606:4700::/32"],
        &["8.8.8.8", "private", "loopback"],
    );
    for (text, expected) in [
        ("8.8.4.4", Err(DeniedRule::Configured)),
        ("::ffff:8.8.4.4", Err(DeniedRule::Configured)),
        ("64:ff9b::8.8.4.4", Err(DeniedRule::Configured)),
        ("2606:4700::1111", Err(DeniedRule::Configured)),
        ("8.8.8.8", Ok(())),
        ("10.1.2.3", Ok(())),
        ("172.16.0.1", Ok(())),
        ("192.168.0.1", Ok(())),
        ("127.0.0.1", Ok(())),
        ("::1", Ok(())),
        ("fd00::1", Err(DeniedRule::UniqueLocal)),
        ("1.1.1.1", Ok(())),
    ] {
        assert_eq!(verdict(&policy, ip(text)), expected, "{text}");
    }
}

#[test]
fn every_named_range_opens_its_own() {
    for name in [
        "loopback",
        "private",
        "cgnat",
        "link-local",
        "unique-local",
        "multicast",
        "documentation",
        "benchmarking",
        "reserved",
        "unspecified",
        "broadcast",
        "public",
    ] {
        let policy = policy(&[], &[name]);
        for &(first, _, rule) in DENIED {
            let opened = rule.label().replace('_', "-") == name;
            let expected = if opened { Ok(()) } else { Err(rule) };
            assert_eq!(verdict(&policy, ip(first)), expected, "{name} {first}");
        }
    }
}

#[test]
fn own_addresses() {
    let default = policy(&[], &[]);
    let open = policy(&[], &["0.0.0.0/0", "::/0"]);
    const IN_MEMORY: Result<(bool, bool), DeniedRule> = Ok((true, false));
    const KERNEL: Result<(bool, bool), DeniedRule> = Ok((false, true));
    const OWN: Result<(bool, bool), DeniedRule> = Err(DeniedRule::OwnAddress);
    for (text, port, by_default, when_open) in [
        (RELAY, 49_152, IN_MEMORY, Ok((true, true))),
        (RELAY, 65_535, IN_MEMORY, Ok((true, true))),
        (RELAY6, 49_152, IN_MEMORY, Ok((true, true))),
        ("::ffff:8.8.8.1", 49_152, IN_MEMORY, Ok((true, true))),
        (RELAY, 49_151, OWN, KERNEL),
        (RELAY, 53, OWN, KERNEL),
        (RELAY, SERVICE, OWN, OWN),
        (RELAY, SERVICE_IN_RELAY_PORTS, OWN, OWN),
        (HOST, 49_152, OWN, KERNEL),
        (HOST, SERVICE, OWN, OWN),
        (HOST, SERVICE_IN_RELAY_PORTS, OWN, OWN),
        ("10.0.0.5", 49_152, OWN, KERNEL),
        ("10.0.0.5", SERVICE, OWN, OWN),
        ("10.0.0.6", SERVICE, Err(DeniedRule::Private), KERNEL),
        ("127.0.0.1", 49_152, Err(DeniedRule::Loopback), KERNEL),
        ("127.0.0.1", SERVICE, OWN, OWN),
        // What the kernel delivers here although no interface lists it.
        ("127.9.9.9", 4000, Err(DeniedRule::Loopback), KERNEL),
        ("127.9.9.9", SERVICE, OWN, OWN),
        ("0.0.0.0", SERVICE, OWN, OWN),
        ("::", SERVICE, OWN, OWN),
        ("::1", SERVICE, OWN, OWN),
        // Through a translator.
        ("64:ff9b::8.8.8.1", 49_152, OWN, KERNEL),
        ("64:ff9b::8.8.8.1", SERVICE, OWN, OWN),
        ("2002:808:802::", SERVICE, OWN, OWN),
        ("8.8.8.8", SERVICE, KERNEL, KERNEL),
        (
            "8.8.8.8",
            0,
            Err(DeniedRule::PortZero),
            Err(DeniedRule::PortZero),
        ),
        (
            RELAY,
            0,
            Err(DeniedRule::PortZero),
            Err(DeniedRule::PortZero),
        ),
    ] {
        assert_eq!(roads(&default, text, port), by_default, "{text} {port}");
        assert_eq!(roads(&open, text, port), when_open, "{text} {port}, open");
    }
    // A permission is per IP: of our relays it is given, of the host's other addresses only if allowed.
    assert!(default.permit_ip(ip(RELAY)).is_ok());
    assert!(default.permit_ip(ip(RELAY6)).is_ok());
    assert!(default.permit_ip(ip(HOST)).is_err());
    assert!(default.permit_ip(ip("64:ff9b::8.8.8.1")).is_err());
    assert!(open.permit_ip(ip(HOST)).is_ok());
}

#[test]
fn proofs_carry_the_canonical_address() {
    let policy = policy(&[], &[]);
    let mapped = ip("::ffff:8.8.8.8");
    assert_eq!(policy.permit_ip(mapped).unwrap().ip(), ip("8.8.8.8"));
    let peer = policy.permit(SocketAddr::new(mapped, 9)).unwrap();
    assert_eq!(peer.address(), "8.8.8.8:9".parse().unwrap());
}

#[test]
fn a_host_on_a_private_network_still_relays_to_itself() {
    let policy = PeerPolicy::new(
        &Settings::default(),
        OwnAddresses {
            relays: vec![ip("::ffff:10.0.0.5")],
            relay_ports: 49_152..=65_535,
            host: vec![ip("10.0.0.5")],
            service_ports: vec![SERVICE],
        },
    );
    assert_eq!(roads(&policy, "10.0.0.5", 50_000), Ok((true, false)));
    assert_eq!(roads(&policy, "10.0.0.5", 80), Err(DeniedRule::OwnAddress));
}

#[test]
fn rules_are_read_and_written() {
    for (text, written) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("link-local", "link-local"),
        ("link_local", "link-local"),
        ("Private", "private"),
        ("public", "public"),
    ] {
        let rule: Rule = text.parse().unwrap();
        assert_eq!(rule.to_string(), written);
        assert_eq!(written.parse(), Ok(rule));
    }
    for text in [
        "",
        " ",
        "privat",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "10.0.0/8",
        "10.0.0.1-10.0.0.9",
        "[::1]",
        "fe80::1%eth0",
        "translated",
        "own-address",
        "a\nb",
    ] {
        let error = text.parse::<Rule>().unwrap_err();
        assert!(error.contains(&*text.escape_debug().to_string()), "{error}");
        assert!(error.contains("\"link-local\""), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = "10.0.0.1/8".parse::<Rule>().unwrap_err();
    assert!(
        error.contains("\"10.0.0.0/8\"") && error.contains("\"10.0.0.1\""),
        "{error}"
    );
}

#[test]
fn labels_are_distinct() {
    let mut labels = DeniedRule::ALL.map(DeniedRule::label).to_vec();
    for (index, rule) in DeniedRule::ALL.into_iter().enumerate() {
        assert_eq!(rule as usize, index);
    }
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), DeniedRule::ALL.len());
}

/// IPv4 addresses, half of them in or beside a special range.
fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    let edges: Vec<u32> = DENIED
        .iter()
        .flat_map(|(first, last, _)| [ip(first), ip(last)])
        .chain(METADATA.iter().map(|text| ip(text).to_canonical()))
        .chain([RELAY, HOST].map(ip))
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.to_bits()),
            IpAddr::V6(_) => None,
        })
        .collect();
    prop_oneof![
        any::<u32>(),
        (prop::sample::select(edges), -2_i32..=2)
            .prop_map(|(edge, by)| edge.wrapping_add_signed(by)),
    ]
    .prop_map(Ipv4Addr::from_bits)
}

const GOOD: Ipv4Addr = Ipv4Addr::new(8, 8, 4, 4);

/// Every form an IPv4 address can hide in.
fn embeddings(inner: Ipv4Addr) -> Vec<Ipv6Addr> {
    let low = u128::from(inner.to_bits());
    let good = u128::from(GOOD.to_bits());
    let under =
        |prefix: &str| Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | low);
    let six_to_four = |host: u128| Ipv6Addr::from_bits((0x2002 << 112) | (low << 80) | host);
    let teredo = |server: u128, client: u128| {
        Ipv6Addr::from_bits((0x2001_0000 << 96) | (server << 64) | (client ^ 0xffff_ffff))
    };
    let mut forms = vec![
        under("::ffff:0.0.0.0"),
        under("::ffff:0:0.0.0.0"),
        under("::"),
        under("64:ff9b::"),
        under("64:ff9b:1::"),
        under("64:ff9b:1:fffe::"),
        six_to_four(0),
        six_to_four(1),
        teredo(low, good),
        teredo(good, low),
        under("2a00::5efe:0:0"),
        under("2a00:1:2:3:200:5efe::"),
        under("2002:808:404:0:0:5efe::"),
    ];
    // These two have a meaning of their own.
    forms.retain(|form| !form.is_unspecified() && !form.is_loopback());
    forms
}

/// What is opened in some of the properties.
const ALLOWED: [&[&str]; 6] = [
    &[],
    &["private", "loopback"],
    &["0.0.0.0/0"],
    &["::/0", "64:ff9b:1::/96", "64:ff9b:1:fffe::/96"],
    &["0.0.0.0/0", "::/0", "metadata"],
    &["2001::/23", "reserved"],
];

proptest! {
    #[test]
    fn no_embedding_reaches_what_its_ipv4_address_may_not(
        inner in ipv4(),
        port in prop_oneof![any::<u16>(), Just(SERVICE), Just(SERVICE_IN_RELAY_PORTS)],
        allow in prop::sample::select(ALLOWED.to_vec()),
    ) {
        let policy = policy(&["9.9.9.0/24"], allow);
        let plain = policy.permit(SocketAddr::new(inner.into(), port));
        for outer in embeddings(inner) {
            let outer = SocketAddr::new(outer.into(), port);
            if let Ok(peer) = policy.permit(outer) {
                prop_assert!(plain.is_ok(), "{outer}");
                prop_assert_eq!(peer.may_use_kernel(), plain.unwrap().may_use_kernel(), "{}", outer);
                prop_assert!(policy.permit_ip(outer.ip()).is_ok());
            }
        }
        // Of these forms the verdict is the very same, unless it is our own relay: memory is for its plain form.
        let nat64 = Ipv6Addr::from_bits((0x0064_ff9b << 96) | u128::from(inner.to_bits()));
        let six_to_four = Ipv6Addr::from_bits((0x2002 << 112) | (u128::from(inner.to_bits()) << 80));
        if inner != ip(RELAY) {
            for outer in [nat64, six_to_four] {
                let outer = policy.permit(SocketAddr::new(outer.into(), port));
                prop_assert_eq!(outer.map(drop), plain.map(drop));
            }
        }
    }

    #[test]
    fn service_ports_are_never_reached(
        inner in prop::sample::select(vec![ip(RELAY), ip(RELAY6), ip(HOST), ip("127.0.0.1"), ip("127.3.2.1"), ip("0.0.0.0"), ip("::1"), ip("::")]),
        port in prop::sample::select(vec![SERVICE, SERVICE_IN_RELAY_PORTS]),
        allow in prop::sample::select(ALLOWED.to_vec()),
    ) {
        let policy = policy(&[], allow);
        let mut forms = vec![inner];
        if let IpAddr::V4(inner) = inner {
            forms.extend(embeddings(inner).into_iter().map(IpAddr::V6));
        }
        for form in forms {
            prop_assert!(policy.permit(SocketAddr::new(form, port)).is_err(), "{form}");
        }
    }

    #[test]
    fn a_permitted_peer_has_a_permitted_ip(
        bits in any::<u128>(),
        inner in ipv4(),
        port in any::<u16>(),
        allow in prop::sample::select(ALLOWED.to_vec()),
    ) {
        let policy = policy(&["9.9.9.0/24", "2a00::/16"], allow);
        for address in [inner.into(), Ipv6Addr::from_bits(bits).into(), IpAddr::from(Ipv6Addr::from_bits(bits >> 3 | 1 << 125))] {
            if let Ok(peer) = policy.permit(SocketAddr::new(address, port)) {
                prop_assert!(policy.permit_ip(address).is_ok());
                prop_assert!(peer.may_be_own_relay() || peer.may_use_kernel());
            }
        }
    }

    #[test]
    fn ipv4_ranges_are_intervals(base in ipv4(), len in 0_u8..=32, other in ipv4(), by in -2_i32..=2, at_end in any::<bool>()) {
        let size = 1_u64 << (32 - len);
        let first = u64::from(base.to_bits()) / size * size;
        let rule: Rule = format!("{}/{len}", Ipv4Addr::from_bits(first as u32)).parse().unwrap();
        let edge = if at_end { first + size - 1 } else { first };
        let near = Ipv4Addr::from_bits((edge as u32).wrapping_add_signed(by));
        for address in [base, other, near] {
            let inside = (first..first + size).contains(&u64::from(address.to_bits()));
            prop_assert_eq!(rule.contains(address.into()), inside);
            prop_assert_eq!(rule.contains(address.to_ipv6_mapped().into()), inside);
        }
        prop_assert!(!rule.contains(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn ipv6_ranges_are_intervals(base in any::<u128>(), len in 0_u8..=128, other in any::<u128>(), flip in 0_u32..128, by in -2_i128..=2, at_end in any::<bool>()) {
        let last_bits = u128::MAX.checked_shr(u32::from(len)).unwrap_or(0);
        let first = base & !last_bits;
        let last = first | last_bits;
        let rule: Rule = format!("{}/{len}", Ipv6Addr::from_bits(first)).parse().unwrap();
        let near = (if at_end { last } else { first }).wrapping_add_signed(by);
        for bits in [base, other, near, base ^ (1 << flip)] {
            let address = Ipv6Addr::from_bits(bits);
            prop_assume!(address.to_ipv4_mapped().is_none());
            prop_assert_eq!(rule.contains(address.into()), (first..=last).contains(&bits));
        }
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }

    #[test]
    fn deny_and_allow_act_on_their_range(base in any::<u128>(), len in 3_u8..=128, other in any::<u128>()) {
        // Within 2000::/3, so that some addresses are denied by nothing else.
        let unicast = |bits: u128| (bits >> 3) | (1 << 125);
        let (base, other) = (unicast(base), unicast(other));
        let first = base & !u128::MAX.checked_shr(u32::from(len)).unwrap_or(0);
        let rule = format!("{}/{len}", Ipv6Addr::from_bits(first));
        let default = policy(&[], &[]);
        let denying = policy(&[&rule], &[]);
        let both = policy(&[&rule], &[&rule]);
        for bits in [base, other] {
            let address = IpAddr::V6(Ipv6Addr::from_bits(bits));
            let before = verdict(&default, address);
            let inside = rule.parse::<Rule>().unwrap().contains(address);
            if inside {
                prop_assert!(verdict(&denying, address).is_err());
                prop_assert!(verdict(&both, address).is_ok() || before.is_err());
            } else {
                prop_assert_eq!(verdict(&denying, address), before);
                prop_assert_eq!(verdict(&both, address), before);
            }
        }
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in prop_oneof!["\\PC{0,30}", "[0-9a-f.:/]{0,20}"]) {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
