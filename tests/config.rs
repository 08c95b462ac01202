//! The configuration: what is read, what is refused and in which words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use turnix::access::Limits;
use turnix::acme;
use turnix::base::{Clock, PiiMode};
use turnix::config::{Config, External, Mapping, Sources, Tls, declared, values};
use turnix::external::Cloud;
use turnix::logging::{Format, Level};
use turnix::stream::certificates;
use turnix::turn::{self, Bandwidth, ChannelRange, DefaultFamily, SecurityFeatures};

const AUTH: &str = "auth.secrets=[\"s3cret\"]";

struct File {
    directory: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnix.toml");
    std::fs::write(&path, text).unwrap();
    File { directory, path }
}

fn load(text: &str) -> Result<Config, String> {
    let file = file(text);
    Config::load(&Sources {
        file: Some(file.path.clone()),
        ..Sources::default()
    })
    .map_err(|problems| clean(&problems.to_string(), file.directory.path()))
}

fn clean(text: &str, directory: &Path) -> String {
    text.replace(&format!("{}/", directory.display()), "")
}

fn set(assignments: &[&str]) -> Result<Config, String> {
    Config::load(&Sources {
        set: assignments.iter().map(|&text| text.into()).collect(),
        ..Sources::default()
    })
    .map_err(|problems| problems.to_string())
}

fn environment(variables: &[(&str, &str)]) -> Result<Config, String> {
    Config::load(&Sources {
        environment: variables
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect(),
        ..Sources::default()
    })
    .map_err(|problems| problems.to_string())
}

/// Dotted names and values of a file, `[[listen]]` entries under `listen.`.
fn flatten(
    prefix: &str,
    value: &toml::Value,
    known: &[&str],
    into: &mut Vec<(String, toml::Value)>,
) {
    if known.contains(&prefix) {
        into.push((prefix.to_owned(), value.clone()));
        return;
    }
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&name, value, known, into);
            }
        }
        // Of several tables the first shows the defaults; `the_sample_serves_once_it_has_a_secret` holds the others.
        toml::Value::Array(tables) => flatten(prefix, &tables[0], known, into),
        _ => into.push((prefix.to_owned(), value.clone())),
    }
}

/// The file with the tables that it shows in comments, from `# [[name]]` to the next empty line.
fn with_optional_tables(text: &str) -> String {
    let mut shown = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        shown = (shown && !line.is_empty()) || line.starts_with("# [[");
        let bare = if shown { line.strip_prefix("# ") } else { None };
        lines.push(bare.unwrap_or(line));
    }
    lines.join("\n")
}

#[test]
fn the_file_names_every_key_at_its_default() {
    let text = with_optional_tables(include_str!("../conf/turnix.toml"));
    let file: toml::Value = toml::Value::Table(text.parse().unwrap());
    let declared = declared();
    let known: Vec<&str> = declared.iter().map(|key| key.name).collect();
    let mut in_file = Vec::new();
    flatten("", &file, &known, &mut in_file);

    let mut written = BTreeMap::new();
    for (name, value) in in_file {
        assert!(known.contains(&name.as_str()), "{name} is in the file only");
        assert!(
            written.insert(name.clone(), value).is_none(),
            "{name} twice"
        );
    }
    for key in &declared {
        let default: toml::Table = format!("v = {}", key.default).parse().unwrap();
        let value = written
            .get(key.name)
            .unwrap_or_else(|| panic!("{} is missing in the file", key.name));
        assert_eq!(value, &default["v"], "default of {}", key.name);
    }
}

#[test]
fn every_key_of_the_file_has_a_comment() {
    let text = include_str!("../conf/turnix.toml");
    let mut commented = false;
    for line in text.lines() {
        if line.starts_with('#') {
            commented = true;
        } else if line.is_empty() {
            commented = false;
        } else {
            // One comment may speak for the lines that follow it.
            assert!(commented || line.starts_with('['), "no comment on {line}");
        }
    }
}

#[test]
fn the_sample_serves_once_it_has_a_secret() {
    let text =
        include_str!("../conf/turnix.toml").replace("secrets = []", "secrets = [\"s3cret\"]");
    // Where the secret is written has warnings of its own.
    let calm = |config: Config| Config {
        warnings: Vec::new(),
        ..config
    };
    let sample = calm(load(&text).unwrap());
    let bare = calm(set(&[AUTH]).unwrap());
    assert_eq!(format!("{sample:?}"), format!("{bare:?}"));
}

#[test]
fn defaults() {
    let config = set(&[AUTH]).unwrap();
    assert_eq!(config.access.realm, "turnix");
    assert_eq!(config.listeners.len(), 2);
    for (listener, address) in config.listeners.iter().zip(["[::]:3478", "[::]:443"]) {
        assert_eq!(listener.address, address.parse().unwrap());
        assert!(listener.udp && listener.streams.tcp && listener.streams.http);
        assert!(!listener.streams.tls);
    }
    assert_eq!(config.relay.external, External::Auto);
    assert_eq!(config.relay.ports, 49152..=65535);
    assert_eq!(
        format!("{:?}", config.turn),
        format!("{:?}", turn::Settings::default())
    );
    assert_eq!(config.admin, Some("127.0.0.1:9641".parse().unwrap()));
    assert_eq!(config.per_allocation, 1000);
    let server = config.server;
    assert_eq!((server.shards, server.pin_shards), (0, false));
    assert_eq!(server.busy_poll, Duration::ZERO);
    assert_eq!(server.listener_buffer_bytes, 4 << 20);
    assert_eq!(server.relay_buffer_bytes, 256 << 10);
    assert!(!config.cluster.node.is_empty());
    assert_eq!(config.cluster.region, "");
    let limits = Limits {
        share_per_user: 90,
        ..Limits::default()
    };
    assert_eq!(config.access.limits, limits);
    assert_eq!(config.connections_per_address, 1024);
    assert!(config.tls.is_none());
}

#[test]
fn a_lone_user_is_not_limited_to_a_share_unless_told_to() {
    let share = |assignments: &[&str]| set(assignments).map(|c| c.access.limits.share_per_user);
    let lone = "auth.users={ alice = \"wonder\" }";
    let two = "auth.users={ alice = \"wonder\", bob = \"builder\" }";
    let told = "limits.share_per_user=50";
    for (assignments, expected) in [
        (&[lone][..], 0),
        (&[lone, told], 50),
        (&[lone, AUTH], 90),
        (&[two], 90),
        (&[AUTH], 90),
        (&[AUTH, "limits.share_per_user=0"], 0),
        (&[two, "limits.share_per_user=auto"], 90),
    ] {
        assert_eq!(share(assignments), Ok(expected), "{assignments:?}");
    }
    for wrong in ["101", "-1", "0.5", "most", "\"90%\""] {
        let problem = share(&[AUTH, &format!("limits.share_per_user={wrong}")]).unwrap_err();
        let way_out = "expected a percentage from 1 to 100, 0 for no limit, or \"auto\"";
        assert!(problem.contains(way_out), "{problem}");
    }
}

#[test]
fn everything_at_once() {
    let config = load(
        r#"
realm = "turn.example.org"
[[listen]]
address = "0.0.0.0:3478"
protocols = ["udp"]
[[listen]]
address = "192.0.2.1:443"
protocols = ["tcp", "http"]
[relay]
addresses = ["10.0.0.5", "2001:db8::5"]
external_address = ["203.0.113.7/10.0.0.5", "2001:db8::7"]
ports = "50000-50100"
[auth]
users = { alice = "wonder", bob = "builder" }
secrets = ["one", "two"]
strict_expiry = true
nonce_lifetime = "10m"
[limits]
allocations = 100
allocations_per_user = 10
connections_per_address = 20
allocations_per_address = 5
share_per_user = 75
allocation_lifetime = "30m"
permissions_per_allocation = 8
channels_per_allocation = 4
unauthenticated_per_address = 7
auth_failures_per_address = 0
[protocol]
channels = "rfc5766"
security_features = "always"
[http]
admin = "[::1]:9641"
[cluster]
node = "a"
region = "eu"
[metrics]
per_allocation = 0
[server]
shards = 2
pin_shards = true
busy_poll = "50us"
listener_buffer = "1MiB"
relay_buffer = "64KiB"
[log]
format = "json"
level = "debug"
ip_privacy = "truncate"
"#,
    )
    .unwrap();
    assert_eq!(config.access.realm, "turn.example.org");
    assert!(config.listeners[0].udp && !config.listeners[0].has_streams());
    assert!(!config.listeners[1].udp && config.listeners[1].has_streams());
    let External::Mapped(mappings) = &config.relay.external else {
        panic!("not mapped")
    };
    assert_eq!(
        mappings,
        &[
            Mapping {
                local: Some("10.0.0.5".parse().unwrap()),
                external: "203.0.113.7".parse().unwrap()
            },
            Mapping {
                local: None,
                external: "2001:db8::7".parse().unwrap()
            },
        ]
    );
    let external = &config.relay.external;
    assert_eq!(external.of("10.0.0.6".parse().unwrap()), None);
    assert_eq!(
        external.of("2001:db8::5".parse().unwrap()),
        Some("2001:db8::7".parse().unwrap())
    );
    assert_eq!(config.relay.ports, 50000..=50100);
    assert_eq!(config.access.users[0].0, "alice");
    assert_eq!(config.access.users[0].1.expose(), "wonder");
    assert_eq!(config.access.secrets[1].expose(), "two");
    assert!(config.access.strict_expiry);
    assert_eq!(config.turn.nonce_lifetime, Duration::from_secs(600));
    assert_eq!(config.turn.max_lifetime, Duration::from_secs(1800));
    assert_eq!(config.turn.protocol.channels, ChannelRange::Rfc5766);
    let features = config.turn.protocol.security_features;
    assert_eq!(features, SecurityFeatures::Always);
    assert_eq!(config.access.limits.allocations_per_address, 5);
    assert_eq!(config.access.limits.share_per_user, 75);
    assert_eq!(config.turn.unauthenticated_per_address, 7);
    assert_eq!(config.turn.auth_failures_per_address, 0);
    assert_eq!(config.connections_per_address, 20);
    assert_eq!(config.log.format, Format::Json);
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.log.ip_privacy, PiiMode::Truncate);
    assert_eq!(
        (config.cluster.node.as_str(), config.cluster.region.as_str()),
        ("a", "eu")
    );
    let server = config.server;
    assert_eq!((server.shards, server.pin_shards), (2, true));
    assert_eq!(server.busy_poll, Duration::from_micros(50));
    assert_eq!(server.listener_buffer_bytes, 1 << 20);
    assert_eq!(server.relay_buffer_bytes, 64 << 10);
}

#[test]
fn what_no_server_can_wait_with_is_refused() {
    for wrong in [
        "server.busy_poll=11ms",
        "server.busy_poll=50",
        "server.listener_buffer=63KiB",
        "server.listener_buffer=65536",
        "server.relay_buffer=0",
        "server.relay_buffer=1GiB",
        "server.pin_shards=1",
    ] {
        let key = wrong.split('=').next().unwrap();
        let problems = set(&[AUTH, wrong]).unwrap_err();
        assert!(problems.contains(key), "{wrong}: {problems}");
    }
}

#[test]
fn all_problems_at_once_each_with_its_line_and_the_way_out() {
    let problems = load(
        r#"realm = ""
relm = "x"

[[listen]]
address = "3478"
protocols = ["udp", "sctp"]
trusted_proxies = ["10.0.0.0/8", "0.0.0.0/0", "balancer"]
upstream = "www.example.org:443"
upstream_idle = "0"

[relay]
ports = "65535-1"
external_adress = "203.0.113.7"

[auth]
secrets = ["good",
  7]

[limit]
allocations = 1

[limits]
allocations = -1
bandwidth = "8bit"

[http]
admin = "0.0.0.0:9641"

[log]
format = "syslog"
"#,
    )
    .unwrap_err();
    assert_eq!(
        problems,
        r#"turnix.toml:1: realm: found ""; expected 1 to 127 characters, usually the server's domain name
turnix.toml:2: relm: unknown key; did you mean realm?
turnix.toml:5: listen.address: found "3478"; write an IP address and a port such as "[::]:3478", "0.0.0.0:3478" or "192.0.2.10:443"
turnix.toml:6: listen.protocols: found "sctp"; expected some of "udp", "tcp", "tls", "http", "dtls"
turnix.toml:7: listen.trusted_proxies: found "0.0.0.0/0", so anybody could pass for anybody else; name the addresses of your proxies
turnix.toml:7: listen.trusted_proxies: found "balancer"; expected a list of CIDRs or addresses such as ["10.0.0.0/24", "2001:db8::7"]
turnix.toml:8: listen.upstream: found "www.example.org:443"; expected the IP address and port of another server such as "127.0.0.1:8443", or ""
turnix.toml:9: listen.upstream_idle: found "0"; expected a duration from "1s" to "24h"
turnix.toml:12: relay.ports: found "65535-1"; write the first and the last port, 1 to 65535, such as "49152-65535"
turnix.toml:13: relay.external_adress: unknown key; did you mean relay.external_address?
turnix.toml:17: auth.secrets: found a number; expected a list of texts, none of them empty
turnix.toml:19: limit: unknown key; did you mean [limits]?
turnix.toml:23: limits.allocations: found -1; expected a number of allocations, 0 for no limit
turnix.toml:24: limits.bandwidth: found "8bit"; expected a rate from "32kbit" to "1000Gbit" such as "8Mbit", or "0" for no limit
turnix.toml:27: http.admin: 0.0.0.0:9641 can be asked from outside, and there is neither TLS nor a token; set http.tls = true and http.token_file (or http.token), or use "127.0.0.1:9641" and reach it by ssh -L 9641:127.0.0.1:9641
turnix.toml:30: log.format: found "syslog"; expected "auto", "text", "json" or "journald""#
    );
}

#[test]
fn refuses_to_serve_strangers() {
    let problems = load("realm = \"x\"\n").unwrap_err();
    assert!(
        problems.starts_with("turnix.toml: auth: neither users nor secrets"),
        "{problems}"
    );
    assert!(problems.contains("turnix credentials"), "{problems}");
    let problems = set(&[]).unwrap_err();
    assert!(
        problems.starts_with("configuration: auth: neither"),
        "{problems}"
    );
}

#[test]
fn broken_toml_names_the_line_and_shows_no_secret() {
    let problems =
        load("realm = \"x\"\n[auth]\nsecrets = [\"hush-hush\"\nusers = {}\n").unwrap_err();
    assert!(problems.contains("turnix.toml:"), "{problems}");
    assert!(problems.contains("not TOML"), "{problems}");
    assert!(!problems.contains("hush"), "{problems}");
    assert!(!problems.contains("neither users"), "{problems}");
    let problems = load("realm = turn.example.org\nsecret = 1\n").unwrap_err();
    assert!(
        problems.starts_with("turnix.toml:1: not TOML"),
        "{problems}"
    );
    assert!(
        problems.contains("turnix.toml:2: secret: unknown key; did you mean auth.secrets?"),
        "{problems}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let problems = Config::load(&Sources {
        file: Some("/nonexistent/turnix.toml".into()),
        ..Sources::default()
    })
    .unwrap_err();
    let text = problems.to_string();
    assert!(
        text.starts_with("/nonexistent/turnix.toml: cannot be read"),
        "{text}"
    );
    assert_eq!(problems.len(), 1, "{text}");
}

#[test]
fn secrets_stay_secret() {
    let problems = load("[auth]\nsecrets = \"hush\"\nusers = { alice = 4711, bob = [\"hush\"] }\n")
        .unwrap_err();
    assert!(
        !problems.contains("hush") && !problems.contains("4711"),
        "{problems}"
    );
    let problems = environment(&[("TURNIX_AUTH__SECRET", "hush")]).unwrap_err();
    assert!(!problems.contains("hush"), "{problems}");
    let problems = set(&["hush"]).unwrap_err();
    assert!(!problems.contains("hush"), "{problems}");
    let config = set(&["auth.secrets=hush", "auth.users.alice=hush"]).unwrap();
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn set_over_environment_over_file_over_default() {
    let file = file(
        "realm = \"file\"\n[auth]\nsecrets = [\"s\"]\n[relay]\nports = \"1000-2000\"\n[server]\nshards = 1\n",
    );
    let mut sources = Sources {
        file: Some(file.path.clone()),
        environment: vec![
            ("TURNIX_REALM".into(), "environment".into()),
            ("TURNIX_SERVER__SHARDS".into(), "2".into()),
            ("HOME".into(), "/".into()),
        ],
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.access.realm, "environment");
    assert_eq!(config.server.shards, 2);
    assert_eq!(config.relay.ports, 1000..=2000);
    sources.set = vec!["realm=set".into(), "realm=last".into()];
    assert_eq!(Config::load(&sources).unwrap().access.realm, "last");
    sources.base = Some("realm = \"base\"\n[cluster]\nregion = \"base\"".into());
    let config = Config::load(&sources).unwrap();
    assert_eq!(
        (config.access.realm.as_str(), config.cluster.region.as_str()),
        ("last", "base")
    );
}

#[test]
fn the_environment_takes_texts_and_toml() {
    let config = environment(&[
        ("TURNIX_AUTH__SECRETS", "12345,true, a b"),
        ("TURNIX_AUTH__USERS__ALICE", "2024"),
        (
            "TURNIX_RELAY__EXTERNAL_ADDRESS",
            "203.0.113.7/10.0.0.5, 2001:db8::7",
        ),
        ("TURNIX_RELAY__PORTS", "50000-50010"),
        ("TURNIX_LISTEN", "0.0.0.0:1,127.0.0.1:2"),
        ("TURNIX_AUTH__STRICT_EXPIRY", "true"),
        ("TURNIX_HTTP__ADMIN", ""),
    ])
    .unwrap();
    let secrets: Vec<&str> = config
        .access
        .secrets
        .iter()
        .map(|s| s.expose().as_str())
        .collect();
    assert_eq!(secrets, ["12345", "true", "a b"]);
    assert_eq!(config.access.users[0].0, "alice");
    assert_eq!(config.access.users[0].1.expose(), "2024");
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(config.listeners[1].address, "127.0.0.1:2".parse().unwrap());
    assert_eq!(config.admin, None);
    assert!(config.access.strict_expiry);

    let config = environment(&[
        ("TURNIX_AUTH__SECRETS", r#"["a,b"]"#),
        (
            "TURNIX_LISTEN",
            r#"[{ address = "127.0.0.1:0", protocols = ["udp"] }]"#,
        ),
    ])
    .unwrap();
    assert_eq!(config.access.secrets[0].expose(), "a,b");
    assert!(!config.listeners[0].has_streams());
}

#[test]
fn problems_outside_the_file_name_their_source() {
    let problems = environment(&[
        ("TURNIX_AUTH__SECRETS", "s"),
        ("TURNIX_RELM", "x"),
        ("TURNIX_SERVER__SHARDS", "many"),
    ])
    .unwrap_err();
    assert_eq!(
        problems,
        "environment TURNIX_RELM: relm: unknown key; did you mean realm?\n\
         environment TURNIX_SERVER__SHARDS: server.shards: found \"many\"; expected a number from 0 (one per core) to 128"
    );
    let problems = set(&[AUTH, "limits.allocation=3"]).unwrap_err();
    assert_eq!(
        problems,
        "--set: limits.allocation: unknown key; did you mean limits.allocations?"
    );
}

#[test]
fn kubernetes_service_variables_are_not_keys() {
    environment(&[
        ("TURNIX_AUTH__SECRETS", "s"),
        ("TURNIX_PORT", "tcp://10.0.0.1:3478"),
        ("TURNIX_SERVICE_HOST", "10.0.0.1"),
        ("TURNIX_SERVICE_PORT", "3478"),
        ("TURNIX_SERVICE_PORT_TURN", "3478"),
        ("TURNIX_PORT_3478_UDP", "udp://10.0.0.1:3478"),
        ("TURNIX_PORT_3478_UDP_ADDR", "10.0.0.1"),
    ])
    .unwrap();
    assert!(environment(&[("TURNIX_AUTH__SECRETS", "s"), ("TURNIX_PORT", "3478")]).is_err());
}

#[test]
fn secret_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one");
    std::fs::write(&path, "from a file\n").unwrap();
    std::fs::write(directory.path().join("empty"), "\n").unwrap();
    let files = format!("auth.secret_files=[\"{}\", \"cred:one\"]", path.display());
    let mut sources = Sources {
        environment: vec![(
            "CREDENTIALS_DIRECTORY".into(),
            directory.path().display().to_string(),
        )],
        set: vec![files, "auth.secrets=first".into()],
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap();
    let secrets: Vec<&str> = config
        .access
        .secrets
        .iter()
        .map(|s| s.expose().as_str())
        .collect();
    assert_eq!(secrets, ["first", "from a file", "from a file"]);

    sources
        .set
        .push("auth.secret_files=cred:empty,cred:../one,cred:none".into());
    let problems = clean(
        &Config::load(&sources).unwrap_err().to_string(),
        directory.path(),
    );
    assert_eq!(
        problems,
        "--set: auth.secret_files: empty is empty; write one secret into it\n\
         --set: auth.secret_files: found \"cred:../one\"; expected a list of paths, or \"cred:name\" for systemd credentials\n\
         --set: auth.secret_files: none cannot be read: No such file or directory (os error 2); name a file that this user may read"
    );
    sources.environment.clear();
    let problems = Config::load(&sources).unwrap_err().to_string();
    assert!(
        problems.contains("CREDENTIALS_DIRECTORY is not set"),
        "{problems}"
    );
}

#[test]
fn tls_and_listeners_agree() {
    let directory = tempfile::tempdir().unwrap();
    let pem = directory.path().join("pem");
    let made = certificates::self_signed(&["localhost".into()], Clock.now().unix_secs()).unwrap();
    std::fs::write(&pem, made.certificate_pem + made.key_pem.expose()).unwrap();
    let certificate = format!("tls.certificate={}", pem.display());
    let key = format!("tls.key={}", pem.display());

    let problems = set(&[AUTH, r#"listen=[{ protocols = ["tls"] }]"#]).unwrap_err();
    assert!(
        problems.contains("tls.certificate: empty, and a [[listen]] names \"tls\""),
        "{problems}"
    );
    let problems = set(&[AUTH, &certificate]).unwrap_err();
    assert!(
        problems.contains("tls.key: empty, and tls.certificate is not"),
        "{problems}"
    );
    let problems = set(&[
        AUTH,
        &certificate,
        &key,
        r#"listen=[{ protocols = ["udp"] }]"#,
    ])
    .unwrap_err();
    assert!(
        problems.contains("no [[listen]] names \"tls\""),
        "{problems}"
    );
    let problems = set(&[AUTH, &certificate, "tls.key=/nonexistent"]).unwrap_err();
    assert!(
        problems.contains("--set: tls.key: /nonexistent: cannot be read"),
        "{problems}"
    );

    let config = set(&[AUTH, &certificate, &key]).unwrap();
    assert!(
        config.listeners[0].streams.tls,
        "left out, tls comes with the certificate"
    );
    assert_eq!(config.tls.unwrap().files().unwrap().key, pem);
}

#[test]
fn certificates_are_held_against_key_and_clock() {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock.now().unix_secs();
    let write = |name: &str, made_unix: u64| {
        let made = certificates::self_signed(&["localhost".into()], made_unix).unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, made.certificate_pem + made.key_pem.expose()).unwrap();
        path.display().to_string()
    };
    let (one, other) = (write("one", now), write("other", now));
    let old = write("old", now - 400 * 86_400);
    let with = |certificate: &str, key: &str| {
        let problems = set(&[
            AUTH,
            &format!("tls.certificate={certificate}"),
            &format!("tls.key={key}"),
        ])
        .map(|_| String::new());
        clean(&problems.unwrap_or_else(|text| text), directory.path())
    };
    assert_eq!(with(&one, &one), "");
    assert_eq!(
        with(&one, &other),
        "--set: tls.key: other: the private key belongs to another certificate; name the pair that was issued together"
    );
    assert_eq!(
        with(&old, &old),
        "--set: tls.certificate: old expired 3 days ago; renew it, or correct the clock"
    );
}

#[test]
fn peer_rules_are_read_and_refused_one_by_one() {
    let config = set(&[
        AUTH,
        "peers.allow=loopback",
        "peers.deny=198.51.100.0/24,private",
    ])
    .unwrap();
    assert_eq!(config.access.peers.allow.len(), 1);
    assert_eq!(config.access.peers.deny.len(), 2);
    let problems = set(&[AUTH, "peers.deny=[\"nowhere\", \"10.0.0.0/99\"]"]).unwrap_err();
    assert_eq!(problems.lines().count(), 2, "{problems}");
    assert!(
        problems.starts_with("--set: peers.deny: found \"nowhere\"; "),
        "{problems}"
    );
}

#[test]
fn peer_rules_have_ports_and_translators_prefixes() {
    let config = set(&[
        AUTH,
        "peers.deny=public",
        "peers.allow=10.1.2.0/24:10000-20000,10.1.3.3:5004,[fd00::/32]:10000-20000",
        "peers.nat64=[\"2001:db8:64::/96\"]",
    ])
    .unwrap();
    let peers = config.access.peers;
    let shown: Vec<String> = peers.allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "10.1.2.0/24:10000-20000",
            "10.1.3.3:5004",
            "[fd00::/32]:10000-20000"
        ]
    );
    assert_eq!(peers.nat64.len(), 1);
    for (assignment, remedy) in [
        ("peers.allow=[\"10.1.2.3:0\"]", "10.1.2.3:5004"),
        ("peers.deny=[\"10.1.2.3:9-8\"]", "10.1.2.3:5004"),
        ("peers.nat64=[\"2001:db8::/95\"]", "2001:db8:64::/96"),
        ("peers.nat64=[\"10.0.0.0/8\"]", "2001:db8:64::/96"),
        ("peers.nat64=7", "2001:db8:64::/96"),
    ] {
        let problems = set(&[AUTH, assignment]).unwrap_err();
        let key = assignment.split_once('=').unwrap().0;
        assert!(
            problems.starts_with(&format!("--set: {key}: ")),
            "{problems}"
        );
        assert!(problems.contains(remedy), "{problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn listeners_do_not_collide() {
    for pair in ["[::]:3478,0.0.0.0:3478", "127.0.0.1:9,127.0.0.1:9"] {
        let problems = set(&[AUTH, &format!("listen={pair}")]).unwrap_err();
        assert!(problems.contains("collides with"), "{problems}");
    }
    for pair in [
        "[::]:3478,0.0.0.0:3479",
        "127.0.0.1:0,127.0.0.1:0",
        "127.0.0.1:9,127.0.0.2:9",
    ] {
        set(&[AUTH, &format!("listen={pair}")]).unwrap();
    }
    for empty in ["listen=[]", "listen=", "listen=7", "listen=[7]"] {
        let problems = set(&[AUTH, empty]).unwrap_err();
        assert!(
            problems.contains("expected at least one [[listen]]"),
            "{problems}"
        );
    }
    let problems = set(&[AUTH, "listen=[{ protocols = [] }]"]).unwrap_err();
    assert!(problems.contains("name at least one"), "{problems}");
    let problems = set(&[AUTH, "listen=[{ port = 3 }]"]).unwrap_err();
    assert!(problems.contains("listen.port: unknown key"), "{problems}");
}

#[test]
fn dtls_takes_a_certificate_with_an_ecdsa_key_and_shows_no_intermediates() {
    let listen = r#"listen=[{ protocols = ["udp", "dtls"] }]"#;
    let problems = set(&[AUTH, listen]).unwrap_err();
    assert!(
        problems.contains("tls.certificate: empty, and a [[listen]] names \"dtls\""),
        "{problems}"
    );
    let directory = tempfile::tempdir().unwrap();
    let load = |algorithm: &'static rcgen::SignatureAlgorithm, chain: usize| {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(["turn.example.org".to_owned()]).unwrap();
        let leaf = params.self_signed(&key).unwrap();
        let pem = directory.path().join("tls.pem");
        std::fs::write(&pem, leaf.pem().repeat(chain) + &key.serialize_pem()).unwrap();
        let files = ["certificate", "key"].map(|name| format!("tls.{name}={}", pem.display()));
        set(&[AUTH, listen, &files[0], &files[1]])
    };
    let config = load(&rcgen::PKCS_ECDSA_P384_SHA384, 1).unwrap();
    assert!(config.listeners[0].dtls && config.listeners[0].udp);
    let about_dtls = |config: &Config| {
        let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        warnings
            .iter()
            .filter(|warning| warning.contains("DTLS"))
            .count()
    };
    assert_eq!(about_dtls(&config), 0);
    let config = load(&rcgen::PKCS_ECDSA_P256_SHA256, 2).unwrap();
    assert_eq!(about_dtls(&config), 1);
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ED25519] {
        let problems = load(algorithm, 1).unwrap_err();
        assert!(
            problems.contains("tls.key: no ECDSA key, and a [[listen]] names \"dtls\"; have the certificate issued"),
            "{problems}"
        );
    }
}

#[test]
fn what_is_not_enforced_is_not_accepted() {
    let problems = set(&[AUTH, "relay.external_address=stun:stun.example.org"]).unwrap_err();
    assert!(problems.contains("this version"), "{problems}");
    assert!(!problems.contains('\n'), "{problems}");
    let problems = set(&[AUTH, "relay=7"]).unwrap_err();
    assert!(problems.contains("relay is a section"), "{problems}");
    let problems = set(&[AUTH, "realm.x=7"]).unwrap_err();
    assert!(problems.contains("realm: found a table"), "{problems}");
    let problems = set(&[AUTH, "external_address=192.0.2.1"]).unwrap_err();
    assert!(
        problems.contains("did you mean relay.external_address?"),
        "{problems}"
    );
}

#[test]
fn a_port_is_shared_with_others_and_not_with_itself() {
    let config = set(&[
        AUTH,
        r#"listen=[{ address = "127.0.0.1:3478", trusted_proxies = ["10.1.2.3/8", "2001:db8::7"], upstream = "127.0.0.1:8443", upstream_proxy_protocol = true, upstream_idle = "90s" }]"#,
    ])
    .unwrap();
    let sharing = &config.listeners[0].sharing;
    for (ip, trusted) in [
        ("10.9.9.9", true),
        ("11.0.0.1", false),
        ("2001:db8::7", true),
        ("2001:db8::8", false),
    ] {
        assert_eq!(sharing.trusts(ip.parse().unwrap()), trusted, "{ip}");
    }
    let upstream = sharing.upstream.unwrap();
    assert_eq!(upstream.address, "127.0.0.1:8443".parse().unwrap());
    assert!(upstream.proxy_protocol);
    assert_eq!(upstream.idle, Duration::from_secs(90));
    assert_eq!(config.upstream_connections, 4096);

    for (listen, says) in [
        (
            r#"[{ address = "[::]:3478", upstream = "127.0.0.1:3478" }]"#,
            "in circles",
        ),
        (
            r#"[{ address = "[::]:3478" }, { address = "[::]:443", upstream = "[::1]:3478" }]"#,
            "in circles",
        ),
        (
            r#"[{ upstream = "127.0.0.1:9641" }]"#,
            "http.admin, which would be open to everybody",
        ),
        (
            r#"[{ upstream = "0.0.0.0:8443" }]"#,
            "expected the IP address",
        ),
        (
            r#"[{ upstream = "127.0.0.1:0" }]"#,
            "expected the IP address",
        ),
        (
            r#"[{ upstream_proxy_protocol = true }]"#,
            "listen.upstream is empty",
        ),
        (
            r#"[{ protocols = ["udp"], upstream = "127.0.0.1:8443" }]"#,
            "nothing that is spoken over TCP",
        ),
        (
            r#"[{ protocols = ["udp"], trusted_proxies = ["10.0.0.1"] }]"#,
            "nothing that is spoken over TCP",
        ),
    ] {
        let problems = set(&[AUTH, &format!("listen={listen}")]).unwrap_err();
        assert!(problems.contains(says), "{listen}: {problems}");
        assert!(!problems.contains('\n'), "{listen}: {problems}");
    }
    // Another port, another host, and UDP on the same port are somebody else's.
    for listen in [
        r#"[{ address = "[::]:3478", upstream = "192.0.2.1:3478" }]"#,
        r#"[{ address = "0.0.0.0:3478", upstream = "[::1]:3478" }]"#,
        r#"[{ address = "[::]:3478", protocols = ["udp"] }, { address = "[::]:443", upstream = "127.0.0.1:3478" }]"#,
    ] {
        set(&[AUTH, &format!("listen={listen}")]).unwrap();
    }
}

#[test]
fn certificates_for_other_names_come_beside_one_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = certificates::self_signed(&names, Clock.now().unix_secs()).unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, made.certificate_pem.clone() + made.key_pem.expose()).unwrap();
        path.display().to_string()
    };
    let own = write("own.pem", &["turn.example.org"]);
    let other = write("other.pem", &["www.example.org", "*.example.net"]);
    let nameless = write("nameless.pem", &["192.0.2.1"]);
    let of = |file: &str| format!("{{ certificate = {file:?}, key = {file:?} }}");
    let default = format!("tls={}", of(&own));
    let more = |tables: &[String]| format!("tls.certificates=[{}]", tables.join(", "));

    let config = set(&[AUTH, &default, &more(&[of(&other), of(&own)])]).unwrap();
    assert_eq!(config.certificates.len(), 2);
    assert!(config.certificates[0].certificate.ends_with("other.pem"));
    for (assignments, says) in [
        (
            vec![more(&[of(&other)])],
            "tls.certificates: given, and there is none for clients",
        ),
        (
            vec![default.clone(), more(&[of(&nameless)])],
            "is for no DNS name",
        ),
        (
            vec![default.clone(), more(&["{}".to_owned()])],
            "tls.certificates.certificate: empty",
        ),
        (
            vec![
                default.clone(),
                more(&[format!("{{ certificate = {other:?} }}")]),
            ],
            "tls.certificates.key: empty",
        ),
        (
            vec![
                default.clone(),
                more(&[format!("{{ certificate = {other:?}, key = {own:?} }}")]),
            ],
            "belongs to another certificate",
        ),
    ] {
        let mut all = vec![AUTH];
        all.extend(assignments.iter().map(String::as_str));
        let problems = set(&all).unwrap_err();
        assert!(problems.contains(says), "{assignments:?}: {problems}");
    }
}

#[test]
fn records_go_where_nobody_else_reads_them() {
    const SECRET: &str = "records.webhook_secret=sixteen-letters!";
    let hook = |url: &str| format!("records.webhook={url}");
    for (assignments, says) in [
        (
            vec![hook("https://example.org")],
            "records.webhook_secret: empty",
        ),
        (vec![SECRET.to_owned()], "records.webhook: empty"),
        (
            vec![
                hook("https://example.org"),
                "records.webhook_secret=short".to_owned(),
            ],
            "expected a text of 16 characters or more",
        ),
        (
            vec![hook("http://example.org"), SECRET.to_owned()],
            "records.webhook: found http: to another host",
        ),
        (
            vec![hook("https://a:b@example.org"), SECRET.to_owned()],
            "records.webhook: found a user or password",
        ),
        (
            vec![hook("ftp://example.org"), SECRET.to_owned()],
            "expected a URL",
        ),
        (
            vec![
                hook("https://127.0.0.1/"),
                SECRET.to_owned(),
                "records.webhook_ca=/nonexistent/roots.pem".to_owned(),
            ],
            "records.webhook_ca: /nonexistent/roots.pem cannot be read",
        ),
        (
            vec!["records.file=/nonexistent/records".to_owned()],
            "records.file: there is no directory /nonexistent",
        ),
        (
            vec!["records.file=/".to_owned()],
            "records.file: / is a directory",
        ),
        (
            vec!["records.interim=1ms".to_owned()],
            "records.interim: found \"1ms\"",
        ),
    ] {
        let all: Vec<&str> = std::iter::once(AUTH)
            .chain(assignments.iter().map(String::as_str))
            .collect();
        let problems = set(&all).unwrap_err();
        assert!(problems.contains(says), "{says}: {problems}");
        assert!(!problems.contains("sixteen-letters"), "{problems}");
    }
    for url in [
        "http://localhost:8080/x",
        "http://[::1]:8080/",
        "http://127.0.0.1/",
    ] {
        let config = set(&[AUTH, SECRET, &hook(url), "records.interim=0"]).unwrap();
        assert!(config.records.is_wanted());
        assert!(config.records.interim.is_zero());
        let shown = format!("{config:?}");
        assert!(!shown.contains("sixteen-letters"), "{shown}");
    }
    assert!(!set(&[AUTH]).unwrap().records.is_wanted());
}

#[test]
fn bandwidth_is_a_rate_that_a_call_can_live_with() {
    let config = set(&[
        AUTH,
        "limits.bandwidth=10Gbit",
        "limits.bandwidth_per_user=8Mbit",
        "limits.bandwidth_per_allocation=32kbit",
        "limits.new_peers_per_second=7",
    ])
    .unwrap();
    let bandwidth = Bandwidth {
        per_allocation: 32_000,
        per_user: 8_000_000,
        total: 10_000_000_000,
    };
    assert_eq!(config.turn.bandwidth, bandwidth);
    assert_eq!(config.turn.new_peers_per_second, 7);
    let config = set(&[AUTH]).unwrap();
    assert_eq!(config.turn.bandwidth, Bandwidth::default());
    for wrong in [
        "8",
        "8MB",
        "31kbit",
        "1001Gbit",
        "-1Mbit",
        "99999999999Gbit",
    ] {
        for key in [
            "bandwidth",
            "bandwidth_per_user",
            "bandwidth_per_allocation",
        ] {
            let problems = set(&[AUTH, &format!("limits.{key}={wrong}")]).unwrap_err();
            assert!(
                problems.contains(&format!("limits.{key}: found ")),
                "{problems}"
            );
        }
    }
}

#[test]
fn units() {
    assert_eq!(values::duration("90s"), Ok(Duration::from_secs(90)));
    assert_eq!(values::duration("1h30m"), Ok(Duration::from_secs(5400)));
    assert_eq!(values::duration("250ms"), Ok(Duration::from_millis(250)));
    assert_eq!(values::duration("50us"), Ok(Duration::from_micros(50)));
    assert_eq!(values::duration("0"), Ok(Duration::ZERO));
    for wrong in [
        "",
        "10",
        "s",
        "-1s",
        "1w",
        "1.5h",
        "99999999999999999999s",
        "18446744073709551615d",
    ] {
        assert!(values::duration(wrong).is_err(), "{wrong}");
    }
    assert_eq!(values::rate("8Mbit"), Ok(8_000_000));
    assert_eq!(values::rate("500kbit"), Ok(500_000));
    assert_eq!(values::rate("0"), Ok(0));
    assert!(values::rate("8").is_err() && values::rate("8MB").is_err());
    assert_eq!(values::size("64KiB"), Ok(65_536));
    assert_eq!(values::size("1MB"), Ok(1_000_000));
    assert!(values::size("64").is_err());
}

#[test]
fn api_keys_are_read_and_refused_one_by_one() {
    const SECRET: &str = "sixteen letters!";
    let keys = |keys: &str| set(&[AUTH, &format!("api.keys=[{keys}]")]);
    assert!(keys("").unwrap().api_keys.is_empty());
    let hash = "sha256:2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
    let two = format!(
        r#"{{ id = "a", secret = "{SECRET}", origins = ["https://App.Example.org"] }}, {{ id = "b", secret = "{hash}", ttl = "10m", user_prefix = "b-" }}"#
    );
    let config = keys(&two).unwrap();
    let [a, b] = &config.api_keys[..] else {
        panic!("{:?}", config.api_keys);
    };
    assert_eq!(
        (a.id.as_str(), a.ttl),
        ("a", Duration::from_secs(24 * 3600))
    );
    assert_eq!(a.origins, ["https://app.example.org"]);
    assert_eq!((b.secret_hash[0], b.secret_hash[31]), (0x2b, 0x90));
    assert_eq!(
        (b.ttl, b.user_prefix.as_str()),
        (Duration::from_secs(600), "b-")
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let from_file = format!(r#"{{ id = "c", secret_file = "{}" }}"#, path.display());
    assert_eq!(
        keys(&from_file).unwrap().api_keys[0].secret_hash,
        a.secret_hash
    );
    for (wrong, complaint) in [
        (
            r#"{ secret = "sixteen letters!" }"#,
            "api.keys.id: found \"\"",
        ),
        (r#"{ id = "a" }"#, "api.keys.secret: missing"),
        (
            r#"{ id = "a", secret = "short" }"#,
            "api.keys.secret: found a text",
        ),
        (
            r#"{ id = "a", secret = "sha256:12" }"#,
            "api.keys.secret: found a text",
        ),
        (
            r#"{ id = "a", secret = "sixteen letters!", ttl = "49h" }"#,
            "api.keys.ttl",
        ),
        (
            r#"{ id = "a", secret = "sixteen letters!", origins = ["*"] }"#,
            "api.keys.origins",
        ),
        (
            r#"{ id = "a", secret = "sixteen letters!", origins = ["https://a/b"] }"#,
            "origins",
        ),
        (
            r#"{ id = "a", secret = "sixteen letters!", scope = 1 }"#,
            "api.keys.scope: unknown key",
        ),
        (
            r#"{ id = "a", secret = "sixteen letters!" }, { id = "a", secret = "sixteen letters!" }"#,
            "occurs twice",
        ),
    ] {
        let problems = keys(wrong).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
        assert!(
            !problems.contains("sixteen") && !problems.contains("short"),
            "{problems}"
        );
    }
    let users_only = ["auth.users={ a = \"b\" }", &format!("api.keys=[{two}]")].map(str::to_owned);
    let users_only: Vec<&str> = users_only.iter().map(String::as_str).collect();
    let problems = set(&users_only).unwrap_err();
    assert!(
        problems.contains("no secret to make credentials with"),
        "{problems}"
    );
}

#[test]
fn nodes_are_read_and_refused_one_by_one() {
    let nodes = |nodes: &str| set(&[AUTH, &format!("cluster.nodes=[{nodes}]")]);
    let config = nodes(
        r#"{ name = "fra", region = "eu", location = "50.1, 8.7", urls = ["turn:a:3478", "turns:a:443?transport=tcp"] }, { name = "iad", weight = 0, urls = ["turn:b"] }"#,
    )
    .unwrap();
    let [fra, iad] = &config.cluster.nodes[..] else {
        panic!("{:?}", config.cluster.nodes);
    };
    assert_eq!(fra.location.map(|place| place.latitude), Some(50.1));
    assert_eq!((fra.weight, iad.weight, iad.location), (100, 0, None));
    assert_eq!(fra.urls, ["turn:a:3478", "turns:a:443?transport=tcp"]);
    for (wrong, complaint) in [
        (r#"{ urls = ["turn:a"] }"#, "cluster.nodes.name: found \"\""),
        (r#"{ name = "a" }"#, "cluster.nodes.urls: found a list"),
        (
            r#"{ name = "a", urls = ["http://a"] }"#,
            "cluster.nodes.urls: found \"http://a\"",
        ),
        (
            r#"{ name = "a", urls = ["turn:a"], location = "north" }"#,
            "cluster.nodes.location",
        ),
        (
            r#"{ name = "a", urls = ["turn:a"] }, { name = "a", urls = ["turn:b"] }"#,
            "occurs twice",
        ),
    ] {
        let problems = nodes(wrong).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
    }
    let problems = set(&[AUTH, "cluster.geoip=/nowhere/at.all"]).unwrap_err();
    assert!(
        problems.contains("/nowhere/at.all cannot be used"),
        "{problems}"
    );
}

#[test]
fn the_dashboard_sees_as_far_back_as_it_is_told() {
    assert_eq!(set(&[AUTH]).unwrap().http.history, Duration::from_secs(600));
    for (history, secs) in [("0", 0), ("30s", 30), ("1h", 3600)] {
        let config = set(&[AUTH, &format!("http.history={history}")]).unwrap();
        assert_eq!(config.http.history, Duration::from_secs(secs));
    }
    for history in ["61m", "long", "-1s"] {
        let told = set(&[AUTH, &format!("http.history={history}")]).unwrap_err();
        assert!(told.contains("http.history"), "{history}: {told}");
    }
}

#[test]
fn who_is_judged_has_to_be_looked_at() {
    let config = set(&[AUTH]).unwrap();
    assert_eq!(config.turn.quality, turnix::quality::Settings::default());
    let warns = |settings: &[&str]| {
        let settings: Vec<_> = [&[AUTH], settings].concat();
        let config = set(&settings).unwrap();
        let warnings = config.warnings.iter().map(ToString::to_string);
        warnings.filter(|one| one.contains("quality.abuse")).count()
    };
    for action in ["throttle", "end"] {
        let action = format!("quality.abuse={action}");
        assert_eq!(warns(&[&action, "quality.mode=off"]), 1, "{action}");
        assert_eq!(warns(&[&action, "quality.mode=full"]), 0);
    }
    assert_eq!(
        warns(&["quality.mode=off"]),
        0,
        "a note is missed by nobody"
    );
    for wrong in ["quality.abuse_bandwidth=0", "quality.abuse=ban"] {
        let told = set(&[AUTH, wrong]).unwrap_err();
        assert!(told.contains(wrong.split('=').next().unwrap()), "{told}");
    }
}

#[test]
fn draining_is_configured() {
    let config = set(&[AUTH]).unwrap();
    assert_eq!(config.drain.deadline, Duration::from_secs(3600));
    assert_eq!(config.drain.grace, Duration::from_secs(5));
    let config = set(&[
        AUTH,
        "drain.deadline=10m",
        "drain.grace=0",
        "drain.alternates=198.51.100.8:3478,[2001:db8::8]:3478",
        "drain.overload=80",
    ])
    .unwrap();
    assert_eq!(config.drain.deadline, Duration::from_secs(600));
    assert_eq!(config.drain.grace, Duration::ZERO);
    assert_eq!(config.drain.alternates.len(), 2);
    assert_eq!(config.drain.overload_percent, 80);
    for (assignment, key) in [
        ("drain.overload=80", "drain.alternates"),
        ("drain.overload=101", "drain.overload"),
        ("drain.alternates=turn.example.org:3478", "drain.alternates"),
        ("drain.alternates=198.51.100.8:0", "drain.alternates"),
        ("drain.grace=2h", "drain.grace"),
    ] {
        let told = set(&[AUTH, assignment]).unwrap_err();
        assert!(told.contains(key), "{assignment}: {told}");
    }
}

#[test]
fn nat_discovery_takes_two_addresses_and_two_ports() {
    let one_port = r#"listen=[{address="0.0.0.0:3478"}]"#;
    let config = set(&[
        AUTH,
        "protocol.nat_discovery=192.0.2.1,203.0.113.2/10.0.0.2",
    ])
    .unwrap();
    let discovery = &config.turn.protocol.nat_discovery;
    assert_eq!(discovery.len(), 1);
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    assert_eq!(discovery[0].local, [ip("192.0.2.1"), ip("10.0.0.2")]);
    assert_eq!(discovery[0].seen, [ip("192.0.2.1"), ip("203.0.113.2")]);
    assert_eq!(discovery[0].ports, [3478, 443]);
    let both = "protocol.nat_discovery=192.0.2.1,192.0.2.2,2001:db8::1,2001:db8::2";
    let config = set(&[AUTH, both]).unwrap();
    assert_eq!(config.turn.protocol.nat_discovery.len(), 2);
    for (assignments, what) in [
        (
            &["protocol.nat_discovery=192.0.2.1"][..],
            "something else than two",
        ),
        (
            &["protocol.nat_discovery=192.0.2.1,2001:db8::1"],
            "something else than two",
        ),
        (
            &["protocol.nat_discovery=192.0.2.1,192.0.2.1"],
            "one address twice",
        ),
        (
            &["protocol.nat_discovery=192.0.2.1,192.0.2.2", one_port],
            "no two UDP ports",
        ),
        (
            &["protocol.nat_discovery=0.0.0.0,192.0.2.2"],
            "protocol.nat_discovery",
        ),
    ] {
        let told = set(&[&[AUTH], assignments].concat()).unwrap_err();
        assert!(told.contains(what), "{assignments:?}: {told}");
    }
}

#[test]
fn proxies_are_known_by_their_ipv4_addresses() {
    let with = |proxies: &str| {
        let listen = format!(
            r#"listen=[{{ address = "127.0.0.1:3478", trusted_proxies = ["{proxies}"] }}]"#
        );
        set(&[AUTH, &listen])
    };
    let config = with("::ffff:10.0.0.0/104").unwrap();
    let trusted = &config.listeners[0].sharing.trusted_proxies;
    assert_eq!(trusted.to_vec(), ["10.0.0.0/8".parse().unwrap()]);
    for anybody in ["::/0", "::ffff:0:0/96", "::/1"] {
        let told = with(anybody).unwrap_err();
        assert!(told.contains("anybody"), "{anybody}: {told}");
    }
}

#[test]
fn protocol_switches_are_read() {
    let config = set(&[AUTH]).unwrap();
    assert_eq!(config.turn.protocol.default_family, DefaultFamily::Ipv4);
    assert!(!config.turn.protocol.rfc3489);
    let config = set(&[
        AUTH,
        "protocol.default_family=same-as-client",
        "protocol.rfc3489=true",
    ])
    .unwrap();
    assert_eq!(
        config.turn.protocol.default_family,
        DefaultFamily::SameAsClient
    );
    assert!(config.turn.protocol.rfc3489);
}

#[test]
fn changes_are_told_key_by_key_and_without_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let secret_file = format!("auth.secret_files=[\"{}\"]", file.display());
    std::fs::write(&file, "recognizable-one").unwrap();
    let before = set(&[&secret_file, "limits.allocations=5"]).unwrap();
    assert_eq!(before.keys.changes(&before.keys), []);
    std::fs::write(&file, "recognizable-two").unwrap();
    let after = set(&[
        &secret_file,
        "limits.allocations=6",
        "auth.users={ alice = \"recognizable-three\" }",
        "listen=[{ address = \"[::]:3478\" }, { address = \"[::]:443\", protocols = [\"udp\"] }]",
    ])
    .unwrap();
    let changes = before.keys.changes(&after.keys);
    let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            r#"listen.protocols: ["udp", "tcp", "http"], ["udp", "tcp", "http"] -> ["udp", "tcp", "http"], ["udp"]"#,
            "auth.users: changed",
            "auth.secret_files: changed",
            "limits.allocations: 5 -> 6",
        ]
    );
    let debugged = format!("{:?}", after.keys);
    assert!(!debugged.contains("recognizable"), "{debugged}");
}

#[test]
fn files_of_users() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let users = r#"auth.users={ alice = "in the file itself" }"#;
        set(&[users, &format!("auth.users_file={}", path.display())])
            .map_err(|problems| clean(&problems, directory.path()))
    };
    let config = read("# comment\r\n\r\nbob:a:b\r\n  carol : spaces \n").unwrap();
    let users: Vec<_> = (config.access.users.iter())
        .map(|(name, password)| (name.as_str(), password.expose().as_str()))
        .collect();
    assert_eq!(
        users,
        [
            ("alice", "in the file itself"),
            ("bob", "a:b"),
            ("  carol ", " spaces ")
        ]
    );
    let long = format!("{}:x", "n".repeat(509));
    for (text, complaint) in [
        ("bob", "users:1: no colon"),
        ("\nbob:\n", "users:2: no user and password"),
        (":x", "users:1: no user and password"),
        (&long, "users:1: no user and password"),
        ("bob:x\nbob:y\n", "users:2: a user for the second time"),
        (
            "alice:hush",
            "auth.users_file: \"alice\" is in auth.users, too",
        ),
    ] {
        let problems = read(text).unwrap_err();
        assert!(problems.contains(complaint), "{text}: {problems}");
        assert!(!problems.contains("hush"), "{problems}");
    }
    assert!(read("").is_ok(), "alice is enough");
    let alone = set(&[&format!("auth.users_file={}", path.display())]).unwrap_err();
    assert!(alone.contains("neither users nor secrets"), "{alone}");
    let missing = set(&[AUTH, "auth.users_file=/nowhere/at.all"]).unwrap_err();
    assert!(
        missing.contains("/nowhere/at.all cannot be read"),
        "{missing}"
    );
}

/// What is to be put right about ACME, a line for each.
fn acme_warnings(config: &Config) -> String {
    let warnings = config.warnings.iter().map(ToString::to_string);
    let ours: Vec<String> = warnings.filter(|one| one.contains("tls.acme")).collect();
    ours.join("\n")
}

fn acme(config: Config) -> acme::Settings {
    match config.tls {
        Some(Tls::Acme(settings)) => settings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_is_enough_to_have_certificates_ordered() {
    let config = load(
        "[auth]\nsecrets = [\"s3cret\"]\n[tls]\nacme = { names = [\"Turn.Example-1.org\", \"b.example-1.org\"] }\n",
    )
    .unwrap();
    assert!(acme_warnings(&config).is_empty());
    assert!(
        config.listeners.iter().all(|listener| listener.streams.tls),
        "as with a certificate of one's own"
    );
    let settings = acme(config);
    assert_eq!(settings.names, ["turn.example-1.org", "b.example-1.org"]);
    assert_eq!(settings.directory, acme::LETS_ENCRYPT);
    assert_eq!(settings.challenges, [acme::Challenge::TlsAlpn01]);
    assert_eq!(settings.email, None);

    let config = environment(&[
        ("TURNIX_AUTH__SECRETS", "s3cret"),
        ("TURNIX_TLS__ACME__NAMES", "a.example-1.org,b.example-1.org"),
        ("TURNIX_TLS__ACME__EMAIL", "admin@example-1.org"),
        ("TURNIX_TLS__ACME__STAGING", "true"),
        ("STATE_DIRECTORY", "/var/lib/turnix"),
    ])
    .unwrap();
    let settings = acme(config);
    assert_eq!(settings.names.len(), 2);
    assert_eq!(settings.email.as_deref(), Some("admin@example-1.org"));
    assert_eq!(settings.directory, acme::LETS_ENCRYPT_STAGING);
    assert_eq!(settings.state, Path::new("/var/lib/turnix/acme"));
}

#[test]
fn challenges_follow_the_listeners() {
    let of = |listen: &str, challenge: &str| {
        load(&format!(
            "[auth]\nsecrets = [\"s3cret\"]\n[tls.acme]\nnames = [\"turn.example-1.org\"]\nchallenge = \"{challenge}\"\n{listen}"
        ))
    };
    let listen = |port: u16, protocols: &str| {
        format!("[[listen]]\naddress = \"[::]:{port}\"\nprotocols = [{protocols}]\n")
    };
    let (tls, http) = (listen(443, "\"tls\""), listen(80, "\"http\""));
    let both = format!("{tls}{http}");
    let chosen = |listen: &str, challenge: &str| acme(of(listen, challenge).unwrap()).challenges;
    use acme::Challenge::{Http01, TlsAlpn01};
    assert_eq!(chosen(&both, "auto"), [TlsAlpn01, Http01]);
    assert_eq!(chosen(&both, "http-01"), [Http01]);
    assert_eq!(chosen(&tls, "auto"), [TlsAlpn01]);
    // TLS at another port is not where authorities look.
    let elsewhere = format!("{}{http}", listen(5349, "\"tls\""));
    assert_eq!(chosen(&elsewhere, "auto"), [Http01]);
    let config = of(&listen(5349, "\"tls\""), "auto").unwrap();
    let problems = of(&http, "http-01").unwrap_err();
    assert!(
        problems.contains("tls.acme.names: given, and no [[listen]] names \"tls\""),
        "nobody would see it: {problems}"
    );
    let warnings = acme_warnings(&config);
    assert!(
        warnings.contains("authorities look at port 443"),
        "{warnings}"
    );

    for (listen, challenge, wanted) in [
        (
            &tls,
            "http-01",
            "\"http-01\", and no [[listen]] names \"http\"",
        ),
        (
            &http,
            "tls-alpn-01",
            "\"tls-alpn-01\", and no [[listen]] names \"tls\"",
        ),
        (
            &listen(3478, "\"udp\""),
            "auto",
            "no [[listen]] names \"tls\" or \"http\"",
        ),
    ] {
        let problems = of(listen, challenge).unwrap_err();
        assert!(problems.contains(wanted), "{problems}");
    }
}

#[test]
fn what_no_authority_would_issue_is_refused() {
    let refused = |keys: &[&str]| {
        let mut all = vec![AUTH];
        all.extend(keys);
        set(&all).unwrap_err()
    };
    for (name, wanted) in [
        ("203.0.113.7", "write a DNS name that leads to this address"),
        (
            "[2001:db8::7]",
            "write a DNS name that leads to this address",
        ),
        ("*.example-1.org", "name each host"),
        ("turn.exämple.org", "in ASCII"),
        ("turn_1.example-1.org", "write a DNS name"),
        ("https://turn.example-1.org", "write a DNS name"),
        ("turn.example-1.org:443", "write a DNS name"),
        ("turn.example-1.org.", "write a DNS name"),
        ("-turn.example-1.org", "write a DNS name"),
        ("turn", "no public authority"),
        ("turn.local", "no public authority"),
        ("turn.test", "no public authority"),
    ] {
        let problems = refused(&[&format!("tls.acme.names=[\"{name}\"]")]);
        assert!(problems.contains("tls.acme.names"), "{name}: {problems}");
        assert!(problems.contains(wanted), "{name}: {problems}");
    }
    let name = "tls.acme.names=[\"turn.example-1.org\"]";
    for (keys, wanted) in [
        (
            [name, "tls.certificate=/etc/chain.pem"],
            "tls.certificate: given, and so is tls.acme.names",
        ),
        ([name, "tls.acme.email=nobody"], "expected an address"),
        (
            [name, "tls.acme.email=admin@example.org"],
            "which the authority refuses",
        ),
        (
            [name, "tls.acme.directory=http://127.0.0.1/dir"],
            "use https:",
        ),
        (
            [name, "tls.acme.ca_file=/nonexistent"],
            "tls.acme.ca_file: /nonexistent cannot be read",
        ),
        ([name, "tls.acme.challenge=dns-01"], "expected \"auto\""),
        (
            ["tls.acme.staging=true", "tls.acme.email=a@example-1.org"],
            "tls.acme.email: given, and tls.acme.names is empty",
        ),
        (
            ["tls.acme.staging=true", "tls.acme.names=[]"],
            "tls.acme.staging: given, and tls.acme.names is empty",
        ),
        (
            [
                "tls.acme.names=[\"a.example-1.org\", \"A.example-1.org\"]",
                "tls.acme.staging=false",
            ],
            "occurs twice",
        ),
    ] {
        let problems = refused(&keys);
        assert!(problems.contains(wanted), "{keys:?}: {problems}");
    }
    let problems = refused(&[
        name,
        "tls.acme.staging=true",
        "tls.acme.directory=https://ca.example-1.org/directory",
    ]);
    assert!(problems.contains("names another authority"), "{problems}");
}

#[test]
fn who_tells_external_addresses() {
    let config = set(&[
        AUTH,
        "relay.metadata=[\"gcp\", \"aws\"]",
        "relay.stun_servers=[\"stun:stun.example.org\", \"192.0.2.1:19302\"]",
    ])
    .unwrap();
    let discovery = &config.relay.discovery;
    assert_eq!(discovery.metadata, [Cloud::Gcp, Cloud::Aws]);
    assert_eq!(
        discovery.stun_servers,
        ["192.0.2.1:19302", "stun.example.org:3478"]
    );
    let config = set(&[AUTH, "relay.metadata=hetzner"]).unwrap();
    assert_eq!(config.relay.discovery.metadata, [Cloud::Hetzner]);
    // Nobody is asked unless somebody says so.
    assert!(!set(&[AUTH]).unwrap().relay.discovery.asks());
    for (assignments, says) in [
        (
            vec!["relay.metadata=ibm"],
            "expected \"off\", or one or more of",
        ),
        (
            vec!["relay.metadata=[\"off\", \"aws\"]"],
            "write one or the other",
        ),
        (vec!["relay.stun_servers=[\"192.0.2.1\"]"], "name two"),
        (
            vec!["relay.stun_servers=[\"192.0.2.1\", \"192.0.2.1:3478\"]"],
            "name two",
        ),
        (
            vec!["relay.stun_servers=[\"https://example.org\", \"192.0.2.1\"]"],
            "write a host, and a port unless it is 3478",
        ),
        (
            vec!["relay.external_address=192.0.2.7", "relay.metadata=aws"],
            "relay.metadata: asks for addresses, and relay.external_address names them",
        ),
    ] {
        let assignments: Vec<&str> = [AUTH].into_iter().chain(assignments).collect();
        let problems = set(&assignments).unwrap_err();
        assert!(problems.contains(says), "{problems}");
    }
}

#[test]
fn keys_of_tokens_are_read_and_refused_one_by_one() {
    // openssl rand -base64 32, and 16.
    const KEY: &str = "3vCwGPUJUFNXLTFyNC2OuiHNjPxMZPRC4m9gfXhGuBk=";
    const SHORT: &str = "XcSSHmaPRBzNLL1Hzdfz0g==";
    let keys = |keys: &str| set(&[AUTH, &format!("auth.oauth.keys=[{keys}]")]);
    let none = set(&[AUTH]).unwrap().access.oauth;
    assert!(none.keys.is_empty() && none.server_name.is_none());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, format!("{SHORT}\n")).unwrap();
    // A server may live on tokens alone.
    let config = set(&[
        "auth.oauth.server_name=relays.example.org",
        &format!(
            r#"auth.oauth.keys=[{{ kid = "a", key = "{KEY}", not_before = "2026-01-01T00:00:00Z", not_after = "2026-01-02T00:00:00+01:00" }},
                {{ kid = "b", algorithm = "A128GCM", key_file = "{}" }}]"#,
            path.display()
        ),
    ])
    .unwrap();
    assert!(!format!("{config:?}").contains("3vCw"));
    let oauth = config.access.oauth;
    assert_eq!(oauth.server_name.as_deref(), Some("relays.example.org"));
    let [a, b] = &oauth.keys[..] else {
        panic!("{:?}", oauth.keys);
    };
    assert_eq!((a.kid.as_str(), a.key.expose().len()), ("a", 32));
    assert_eq!(a.not_before, Some(Duration::from_secs(1_767_225_600)));
    assert_eq!(
        a.not_after,
        Some(Duration::from_secs(1_767_225_600 + 23 * 3600))
    );
    assert_eq!((b.kid.as_str(), b.key.expose()[0]), ("b", 0x5d));
    assert_eq!((b.not_before, b.not_after), (None, None));
    let in_the_file = load(&format!(
        "[[auth.oauth.keys]]\nkid = \"a\"\nkey = \"{KEY}\"\nnot_before = 2026-01-01T00:00:00Z\n"
    ));
    let in_the_file = in_the_file.unwrap().access.oauth.keys;
    assert_eq!(in_the_file[0].not_before, a.not_before);
    for (wrong, complaint) in [
        (
            format!(r#"{{ key = "{KEY}" }}"#),
            "auth.oauth.keys.kid: found \"\"",
        ),
        (
            r#"{ kid = "a" }"#.to_owned(),
            "auth.oauth.keys.key: missing",
        ),
        (
            r#"{ kid = "a", key = "*" }"#.to_owned(),
            "something else than base64",
        ),
        (
            format!(r#"{{ kid = "a", key = "{SHORT}" }}"#),
            "a key of 16 bytes; A256GCM takes 32 bytes",
        ),
        (
            format!(r#"{{ kid = "a", algorithm = "A128GCM", key = "{KEY}" }}"#),
            "a key of 32 bytes; A128GCM takes 16 bytes",
        ),
        (
            r#"{ kid = "a", algorithm = "A128GCM", key = "MTIzNDU2Nzg5MDEyMzQ1Ngo=" }"#.to_owned(),
            "this one ends with a line feed",
        ),
        (
            format!(r#"{{ kid = "a", algorithm = "HS256", key = "{KEY}" }}"#),
            "expected \"A256GCM\" or \"A128GCM\"",
        ),
        (
            format!(
                r#"{{ kid = "a", key = "{KEY}", key_file = "{}" }}"#,
                path.display()
            ),
            "given, and key_file too",
        ),
        (
            format!(r#"{{ kid = "a", key = "{KEY}", not_after = "tomorrow" }}"#),
            "expected a date and time",
        ),
        (
            format!(
                r#"{{ kid = "a", key = "{KEY}", not_before = "2026-01-02T00:00:00Z", not_after = "2026-01-01T00:00:00Z" }}"#
            ),
            "not later than not_before",
        ),
        (
            format!(r#"{{ kid = "a", key = "{KEY}" }}, {{ kid = "a", key = "{KEY}" }}"#),
            "\"a\" occurs twice",
        ),
    ] {
        let problems = keys(&wrong).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
        assert!(
            !problems.contains("3vCw") && !problems.contains("XcSS"),
            "{problems}"
        );
    }
}

#[test]
fn realms_are_read_and_refused_one_by_one() {
    let realms = |realms: &str| {
        set(&[
            "auth.users={ alice = \"a\", \"erin@e.example\" = \"e\" }",
            &format!("realms=[{realms}]"),
        ])
    };
    assert!(realms("").unwrap().access.realms.is_empty());
    let config = realms(
        r#"{ name = "b.example", server_names = ["Turn.B.example"], users = { alice = "hush" }, allocations = 5 },
            { name = "c", secrets = ["hush"], allocations_per_user = 2 }"#,
    )
    .unwrap();
    assert!(!format!("{config:?}").contains("hush"));
    // Somebody else can come, so a user leaves others some ports.
    assert_eq!(config.access.limits.share_per_user, 90);
    let [b, c] = &config.access.realms[..] else {
        panic!("{:?}", config.access.realms);
    };
    assert_eq!(
        (b.name.as_str(), &b.server_names[..]),
        ("b.example", &["turn.b.example".to_owned()][..])
    );
    assert_eq!(
        (b.limits.allocations, b.limits.allocations_per_user),
        (5, 0)
    );
    assert_eq!((b.users.len(), c.secrets.len()), (1, 1));
    let key = |realm: &str| {
        set(&[
            r#"realms=[{ name = "b", secrets = ["hush"] }, { name = "c", users = { a = "hush" } }]"#,
            &format!(
                r#"api.keys=[{{ id = "k", secret = "sixteen letters!", realm = "{realm}" }}]"#
            ),
        ])
    };
    let keys = key("b").unwrap().api_keys;
    assert_eq!(keys[0].realm.as_ref().unwrap().0.as_str(), "b");
    assert!(
        key("")
            .unwrap_err()
            .contains("no secret to make credentials with")
    );
    for other in ["c", "d"] {
        assert!(
            key(other).unwrap_err().contains("api.keys.realm: found"),
            "{other}"
        );
    }
    // The default realm may be nobody's.
    set(&[r#"realms=[{ name = "b", secrets = ["hush"] }]"#]).unwrap();
    for (wrong, complaint) in [
        (r#"{ secrets = ["hush"] }"#, "realms.name: found \"\""),
        (
            r#"{ name = "b@c", secrets = ["hush"] }"#,
            "realms.name: found \"b@c\"",
        ),
        (r#"{ name = "b" }"#, "neither users nor secrets"),
        (
            r#"{ name = "turnix", secrets = ["hush"] }"#,
            "\"turnix\" occurs twice",
        ),
        (
            r#"{ name = "b", secrets = ["hush"] }, { name = "b", secrets = ["hush"] }"#,
            "\"b\" occurs twice",
        ),
        (
            r#"{ name = "b", server_names = ["x"], secrets = ["hush"] }, { name = "c", server_names = ["X"], secrets = ["hush"] }"#,
            "realms.server_names: \"x\" occurs twice",
        ),
        (
            r#"{ name = "b", server_names = ["*.b"], secrets = ["hush"] }"#,
            "realms.server_names: found",
        ),
        (
            r#"{ name = "e.example", secrets = ["hush"] }"#,
            "move the user to the realm's own users",
        ),
        (
            r#"{ name = "b", users = { a = "md5:hush" } }"#,
            "realms.users",
        ),
        (
            r#"{ name = "b", secrets = ["hush"], peers = [] }"#,
            "realms.peers: unknown key",
        ),
    ] {
        let problems = realms(wrong).unwrap_err();
        assert!(problems.contains(complaint), "{wrong}: {problems}");
        assert!(!problems.contains("hush"), "{problems}");
    }
}
