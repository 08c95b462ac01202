//! The importer as a function of the file's text.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use turnix::base::Secret;
use turnix::config::coturn::{self, Database, Import, Input, Outcome, Place, Row};
use turnix::config::{Config, Sources};

use crate::tools::{find_tool, skip};

/// Options that coturn has got, or got back, since the 4.6 of Debian 12.
const SINCE_4_7: [&str; 26] = [
    "cpus",
    "dtls",
    "drain-min-allocations",
    "include-reason-string",
    "log-min-level",
    "multiplex-peer",
    "multiplex-peer-max-peers",
    "multiplex-peer-port",
    "multiplex-peer-tag",
    "prometheus-address",
    "prometheus-path",
    "raw-public-keys",
    "respond-http-unsupported",
    "rfc3489-compatibility",
    "rfc5766-channel-numbers",
    "rfc5780",
    "sock-buf-size",
    "software-attribute",
    "stateless-nonce",
    "stateless-nonce-secret",
    "stun-backward-compatibility",
    "tlsv1",
    "udp-gso",
    "udp-recvmmsg",
    "unauthorized-ratelimit",
    "unauthorized-ratelimit-rps",
];

fn import_with(text: &str, database: Option<&Database>) -> Import {
    coturn::import(&Input {
        name: "turnserver.conf",
        text,
        folder: Path::new("/etc"),
        database,
        fresh_secret: &Secret::new("fresh".into()),
    })
}

fn import(text: &str) -> Import {
    import_with(text, None)
}

fn load(toml: &str) -> Result<Config, String> {
    let sources = Sources {
        base: Some(toml.to_owned()),
        ..Sources::default()
    };
    Config::load(&sources).map_err(|problems| problems.to_string())
}

/// The one finding about `option`.
fn outcome(import: &Import, option: &str) -> (Outcome, String) {
    let of = import.findings.iter().filter(|one| one.option == option);
    let all: Vec<_> = of.collect();
    let [finding] = all[..] else {
        panic!("{option}: {all:?}")
    };
    (finding.outcome, finding.reason.clone())
}

fn is_known(name: &str) -> bool {
    coturn::names().any(|known| known == name)
}

#[test]
fn every_option_of_coturns_example_is_known() {
    let paths = [
        "/usr/share/doc/coturn/examples/etc/turnserver.conf",
        "/etc/turnserver.conf",
    ];
    let Some(text) = paths
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
    else {
        return skip(
            "every_option_of_coturns_example_is_known",
            "coturn's example",
        );
    };
    let mut options = 0;
    for line in text.lines() {
        // "#option", "#option=value" and "# option=value" are options; "# Words" is prose.
        let (bare, spaced) = match line.strip_prefix('#') {
            Some(rest) => (rest.trim_start(), rest.starts_with(' ')),
            None => (line, false),
        };
        let name = bare.split(['=', ' ', '\t', '"']).next().unwrap_or_default();
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let sets = bare[name.len()..].starts_with('=');
        let alone = bare.len() == name.len();
        if is_name && (sets || (alone && !spaced)) {
            assert!(is_known(name), "{line}");
            options += 1;
        }
    }
    assert!(options > 90, "{options} options are found");
}

#[test]
fn every_option_of_coturns_help_is_known() {
    let Some(turnserver) = find_tool("every_option_of_coturns_help_is_known", "turnserver") else {
        return;
    };
    let output = Command::new(turnserver).arg("-h").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut options = 0;
    for line in help.lines() {
        let line = line.trim_start();
        if !line.starts_with('-') {
            continue;
        }
        for word in line.split([' ', '\t', ',', '=', '[', '<']) {
            let word = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if let Some(name) = word.strip_prefix("--") {
                assert!(is_known(name), "{line}");
                options += 1;
            }
        }
    }
    assert!(options > 100, "{options} options are found");
}

#[test]
fn options_of_later_versions_are_known() {
    for name in SINCE_4_7 {
        assert!(is_known(name), "{name}");
    }
}

#[test]
fn lines_are_read_as_coturn_reads_them() {
    let text = "# realm=comment\n\n  listening-port = 3478  \nrealm\t\"a b\" \nstatic-auth-secret==x#y=z\nfingerprint\r\nuser=\"a:b\"c\n";
    let read: Vec<_> = coturn::settings(text)
        .into_iter()
        .map(|one| (one.line, one.written, one.value))
        .collect();
    assert_eq!(
        read,
        [
            (3, "listening-port", "3478"),
            (4, "realm", "a b"),
            (5, "static-auth-secret", "x#y=z"),
            (6, "fingerprint", ""),
            (7, "user", "a:b\"c"),
        ]
    );
}

#[test]
fn a_file_and_what_it_becomes() {
    let import = import(
        r#"
listening-port=3479
listening-ip=192.0.2.1
aux-server=192.0.2.1:80
relay-ip=10.0.0.5
external-ip=203.0.113.7/10.0.0.5
min-port=50000 # and up
max-port=50099
lt-cred-mech
realm=turn.example.org
user=alice:wonder "land"
user=bob:0xbc807ee29df3c9ffa736523fb2c4e8ee
user-quota=12
total-quota=1200
max-bps=187500
bps-capacity=12500001
max-allocate-lifetime=1800
stale-nonce=0
denied-peer-ip=10.0.0.0-10.255.255.255
denied-peer-ip=192.0.2.0-192.0.2.9
allowed-peer-ip=10.0.0.44
allowed-peer-ip=2001:db8::1-2001:db8::2
alternate-server=198.51.100.8
Verbose
prometheus
prometheus-port=9741
relay-threads=0
sock-buf-size=1048576
unauthorized-ratelimit-rps=50
"#,
    );
    let golden = r#"# Imported from turnserver.conf. Every key that is not here has its default: see the
# turnix.toml that comes with turnix. `turnix check -c FILE` says whether this host can serve it.

realm = "turn.example.org" # line 10: realm

[[listen]]
address = "192.0.2.1:3479" # line 2: listening-port; line 3: listening-ip
protocols = ["udp", "tcp"]

[[listen]]
address = "192.0.2.1:80" # line 4: aux-server
protocols = ["udp", "tcp"]

[relay]
addresses = [
    "10.0.0.5", # line 5: relay-ip
]
external_address = [
    "203.0.113.7/10.0.0.5", # line 6: external-ip
]
ports = "50000-50099" # line 7: min-port, line 8: max-port

[auth]
nonce_lifetime = "86400s" # line 18: stale-nonce

[auth.users]
"alice" = "wonder \"land\"" # line 11: user
"bob" = "md5:bc807ee29df3c9ffa736523fb2c4e8ee" # line 12: user

[limits]
allocations_per_user = 12 # line 13: user-quota
allocations = 1200 # line 14: total-quota
bandwidth_per_allocation = "1500kbit" # line 15: max-bps, in bytes per second
bandwidth = "100000008bit" # line 16: bps-capacity, in bytes per second
allocation_lifetime = "1800s" # line 17: max-allocate-lifetime
unauthenticated_per_address = 50 # line 29: unauthorized-ratelimit-rps

[peers]
deny = [
    "10.0.0.0/8", # line 19: denied-peer-ip
    "192.0.2.0/29", # line 20: denied-peer-ip
    "192.0.2.8/31", # line 20: denied-peer-ip
]
allow = [
    "10.0.0.44", # line 21: allowed-peer-ip
    "2001:db8::1", # line 22: allowed-peer-ip
    "2001:db8::2", # line 22: allowed-peer-ip
]

[protocol]
channels = "rfc5766" # coturn takes channel numbers of the old range as well

[http]
admin = "127.0.0.1:9741" # line 25: prometheus

[drain]
alternates = [
    "198.51.100.8:3478", # line 23: alternate-server
]

[server]
shards = 1 # line 27: relay-threads
listener_buffer = "1MiB" # line 28: sock-buf-size
relay_buffer = "1MiB" # line 28: sock-buf-size

[log]
level = "debug" # line 24: Verbose
"#;
    assert_eq!(import.toml.expose(), golden);
    load(golden).unwrap();
    for (option, expected) in [
        ("listening-port", Outcome::Mapped),
        ("bps-capacity", Outcome::Approximated),
        ("stale-nonce", Outcome::Approximated),
        ("alternate-server", Outcome::Approximated),
        ("relay-threads", Outcome::Approximated),
    ] {
        assert_eq!(outcome(&import, option).0, expected, "{option}");
    }
    let (_, reason) = outcome(&import, "max-bps");
    assert_eq!(reason, "187500 bytes per second are 1500kbit");
}

#[test]
fn tls_is_spoken_where_there_is_a_certificate() {
    let ports = |text: &str| {
        let toml = import(text).toml.expose().clone();
        (
            toml.contains(":5349\""),
            toml.contains("\"tls\""),
            toml.contains("[tls]"),
        )
    };
    let both = "cert=a.pem\npkey=/etc/b.pem\n";
    assert_eq!(ports(both), (true, true, true));
    assert_eq!(ports(&format!("{both}no-tls\n")), (false, false, false));
    assert_eq!(ports(&format!("{both}no-tls=0\n")), (true, true, true));
    assert_eq!(ports("cert=a.pem\n"), (false, false, false));
    assert_eq!(ports(""), (false, false, false));
    let toml = import(both).toml.expose().clone();
    assert!(toml.contains("certificate = \"/etc/a.pem\""), "{toml}");
    let toml = import(&format!("{both}no-udp\nno-tcp\n"))
        .toml
        .expose()
        .clone();
    assert!(toml.contains("protocols = [\"tls\"]"), "{toml}");
}

#[test]
fn what_is_not_safe_is_refused_with_the_reason() {
    let import = import(
        "no-auth\nallow-loopback-peers\ncli-password=hunter2\nserver-relay\ntlsv1\noauth\nweb-admin\n\
         allowed-peer-ip=0.0.0.0-255.255.255.255\nallowed-peer-ip=127.0.0.1\nallowed-peer-ip=::1\npkey-pwd=hunter2\n\
         psql-userdb=\"host=db password=hunter2\"\n",
    );
    let toml = import.toml.expose();
    assert!(!toml.contains("hunter2"), "{toml}");
    for finding in &import.findings {
        assert!(!finding.reason.contains("hunter2"), "{finding:?}");
        assert!(
            !finding.reason.is_empty() || !finding.keys.is_empty(),
            "{finding:?}"
        );
        if matches!(finding.place, Place::Line(_)) {
            assert_eq!(finding.outcome, Outcome::Refused, "{finding:?}");
        }
    }
    assert!(outcome(&import, "no-auth").1.contains("open relay"));
    assert!(
        outcome(&import, "allow-loopback-peers")
            .1
            .contains("peers.allow = [\"loopback\"]")
    );
    assert!(
        outcome(&import, "psql-userdb")
            .1
            .contains("auth.users_file")
    );
    // Nobody could come in: a secret that nobody knows yet.
    let config = load(toml).unwrap();
    assert!(config.access.peers.allow.is_empty(), "{toml}");
    assert_eq!(config.access.secrets[0].expose(), "fresh");
    assert_eq!(outcome(&import, "authentication").0, Outcome::Approximated);
}

#[test]
fn whatever_a_file_says_the_result_can_be_used() {
    let values = [
        "",
        "0",
        "1",
        "-1",
        "on",
        "no",
        "65536",
        "4294967296",
        "99999999999999999999",
        "127.0.0.1",
        "::",
        "0.0.0.0",
        "10.0.0.1-10.0.0.9",
        "10.0.0.9-10.0.0.1",
        "::1-10.0.0.1",
        "10.0.0.0/8",
        "203.0.113.7/10.0.0.5",
        "203.0.113.7/::1",
        "[::1]:3478",
        "1.2.3.4:0",
        "a:b",
        "a:0xff",
        "a:md5:ff",
        ":x",
        "a:",
        "\"",
        "\"\\\u{7}\u{202e}",
        "/x",
        "é:ü",
    ];
    for name in coturn::names() {
        for value in values {
            let text = format!("{name}={value}\n{name}={value}\n");
            let import = import(&text);
            let toml = import.toml.expose();
            // Not opened to everybody: below.
            let unread = name.starts_with("listening-") && toml.contains("is not an IP address")
                || name == "listening-device";
            if let Err(problems) = load(toml)
                && !unread
            {
                panic!("{text}{problems}\n{toml}");
            }
            let told = |line| {
                import
                    .findings
                    .iter()
                    .any(|one| one.place == Place::Line(line))
            };
            assert!(told(1) && told(2), "{text}: {:?}", import.findings);
        }
    }
}

#[test]
fn a_listener_that_cannot_be_read_is_not_opened_to_everybody() {
    for line in ["listening-ip=turn.internal", "listening-device=eth1"] {
        let import = import(&format!("{line}\nuse-auth-secret\nstatic-auth-secret=s\n"));
        let problems = load(import.toml.expose()).unwrap_err();
        let value = line.split('=').nth(1).unwrap();
        assert!(problems.contains("listen.address"), "{problems}");
        assert!(problems.contains(value), "{problems}");
    }
    let both = import(
        "listening-device=eth1\nlistening-ip=192.0.2.1\nuse-auth-secret\nstatic-auth-secret=s\n",
    );
    assert!(load(both.toml.expose()).is_ok());
}

#[test]
fn what_coturn_ignores_is_said() {
    let import =
        import("frobnicate=1\n-p 3480\n--realm=example.org\nmin-port=1000\nmin-port=2000\n");
    assert_eq!(outcome(&import, "frobnicate").0, Outcome::Unknown);
    assert_eq!(outcome(&import, "-p").0, Outcome::Approximated);
    assert_eq!(outcome(&import, "--realm").0, Outcome::Approximated);
    let config = load(import.toml.expose()).unwrap();
    assert_eq!(config.listeners[0].address.port(), 3480);
    assert_eq!(config.access.realm, "example.org");
    assert_eq!(config.relay.ports, 2000..=65535);
    let overridden = import
        .findings
        .iter()
        .find(|one| one.place == Place::Line(4));
    assert!(overridden.unwrap().reason.contains("line 5"));
}

#[test]
fn ranges_become_cidrs_that_cover_just_them() {
    let ip = |last: u8| Ipv4Addr::new(198, 51, 100, last);
    for (first, last) in [(0, 255), (1, 254), (7, 7), (3, 200), (128, 129), (127, 128)] {
        let import = import(&format!("denied-peer-ip={}-{}\n", ip(first), ip(last)));
        let toml: toml::Table = import.toml.expose().parse().unwrap();
        let nets: Vec<ipnet::Ipv4Net> = toml["peers"]["deny"]
            .as_array()
            .unwrap()
            .iter()
            .map(|net| net.as_str().unwrap())
            .map(|net| {
                net.parse()
                    .unwrap_or_else(|_| format!("{net}/32").parse().unwrap())
            })
            .collect();
        for at in 0..=255 {
            let covered = nets.iter().filter(|net| net.contains(&ip(at))).count();
            assert_eq!(
                covered,
                usize::from((first..=last).contains(&at)),
                "{first}-{last}: {at} in {nets:?}"
            );
        }
    }
}

#[test]
fn users_beside_secrets_are_left_out_as_coturn_does() {
    let import = import(
        "use-auth-secret\nstatic-auth-secret=north\nstatic-auth-secret=south\nuser=alice:wonder\n",
    );
    assert_eq!(outcome(&import, "user").0, Outcome::Refused);
    let config = load(import.toml.expose()).unwrap();
    assert!(config.access.users.is_empty());
    assert_eq!(config.access.secrets.len(), 2);
}

#[test]
fn the_database_comes_with_its_realm() {
    let row = |realm: &str, name: &str, value: &str| Row {
        realm: realm.into(),
        name: name.into(),
        value: Secret::new(value.into()),
    };
    let key = "d644b13be02ec97ca3a494cb566c9121";
    let database = Database {
        users: vec![
            row("example.org", "alice", key),
            row("example.org", "bob", "0xd644b13be02ec97ca3a494cb566c9121"),
            row("example.org", "carol", "not a key"),
            row("example.net", "dave", key),
        ],
        secrets: vec![row("example.org", "", "north")],
        allowed: vec![row("", "", "10.0.0.44")],
        denied: vec![
            row("example.org", "", "192.0.2.0-192.0.2.255"),
            row("example.net", "", "192.0.2.1"),
        ],
        options: vec![
            row("example.org", "max-bps", "125000"),
            row("example.org", "user-quota", "3"),
            row("example.org", "total-quota", "-1"),
        ],
        origins: 1,
        oauth_keys: 0,
        admins: 2,
    };
    let text = "realm=example.org\nuser=bob:here\nuser-quota=9\ntotal-quota=8\n";
    let import = import_with(text, Some(&database));
    let config = load(import.toml.expose()).unwrap();
    let users: Vec<(&str, &str)> = (config.access.users.iter())
        .map(|(name, password)| (name.as_str(), password.expose().as_str()))
        .collect();
    assert_eq!(
        users,
        [
            ("alice", "md5:d644b13be02ec97ca3a494cb566c9121"),
            ("bob", "here")
        ]
    );
    assert!(config.access.secrets.is_empty());
    assert_eq!(config.access.limits.allocations_per_user, 3);
    assert_eq!(config.access.limits.allocations, 8);
    assert_eq!(config.turn.bandwidth.per_allocation, 1_000_000);
    let rules = |rules: &[turnix::access::peers::Rule]| {
        rules.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(rules(&config.access.peers.allow), ["10.0.0.44"]);
    assert_eq!(rules(&config.access.peers.deny), ["192.0.2.0/24"]);
    let of = |table: &str, outcome: Outcome| {
        let alike = |one: &&turnix::config::coturn::Finding| {
            one.outcome == outcome && one.place.to_string() == format!("table {table}")
        };
        import.findings.iter().filter(alike).count()
    };
    // A key that is none, one that the file has, and another realm.
    assert_eq!(of("turnusers_lt", Outcome::Refused), 3);
    assert_eq!(of("turnusers_lt", Outcome::Mapped), 1);
    assert_eq!(of("turn_secret", Outcome::Refused), 1);
    assert_eq!(of("turn_origin_to_realm", Outcome::Refused), 1);
    assert_eq!(of("admin_user", Outcome::Refused), 1);
    assert_eq!(of("oauth_key", Outcome::Refused), 0);

    let import = import_with(
        "use-auth-secret\nno-dynamic-ip-list\nno-dynamic-realms\n",
        Some(&database),
    );
    let config = load(import.toml.expose()).unwrap();
    assert_eq!(
        config.access.realm, "example.org",
        "the only one of the secrets"
    );
    assert_eq!(config.access.secrets[0].expose(), "north");
    assert!(config.access.users.is_empty());
    assert!(config.access.peers.deny.is_empty() && config.access.peers.allow.is_empty());
    assert_eq!(config.access.limits.allocations_per_user, 0);
}
