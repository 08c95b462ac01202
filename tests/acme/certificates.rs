//! Issued, kept, used again, renewed, refused.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use turnix::app;
use turnix::base::Clock;
use turnix::config::{Config, Sources, Tls};
use turnix::stream::certificates;

use super::common::wire::{Reply, Request};
use super::pebble::{Manners, Pebble};
use super::process::Process;
use super::server::{now, quiet_address};

/// Loaded machines take their time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ports of [`CONFIG`]; every test has an address of its own.
const TLS_PORT: u16 = 5349;
const HTTP_PORT: u16 = 8080;

pub const CONFIG: &str = r#"
[[listen]]
address = "{ip}:5349"
protocols = ["udp", "tcp", "tls"]
[[listen]]
address = "{ip}:8080"
protocols = ["http"]
[relay]
addresses = ["{ip}"]
[auth]
users = { alice = "wonderland" }
[peers]
allow = ["loopback"]
[http]
admin = "{ip}:9641"
[server]
shards = 1
"#;

fn manners() -> Manners {
    Manners {
        tls_port: TLS_PORT,
        http_port: HTTP_PORT,
        ..Manners::default()
    }
}

/// [`CONFIG`] with a certificate of `pebble` for `names`.
fn config(pebble: &Pebble, names: &[&str], more: &str) -> String {
    format!(
        "{CONFIG}[tls.acme]\nnames = {names:?}\n{}{more}\n",
        pebble.keys()
    )
}

/// A server that keeps its state in `state`.
pub fn serve(config: &str, ip: Ipv4Addr, state: &Path) -> Process {
    let mut process = Process::spawn(config, ip, |command: &mut Command| {
        command.env("STATE_DIRECTORY", state);
    });
    process.await_ready();
    process
}

#[track_caller]
pub fn until(process: &Process, what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !reached() {
        assert!(now() < deadline, "never: {what}\n{}", process.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The leaf that a client gets which checks chain and name, and asks for its address by STUN inside.
fn leaf(ip: Ipv4Addr, name: &str, trust: &Arc<ClientConfig>) -> Result<Vec<u8>, String> {
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let client = ClientConnection::new(Arc::clone(trust), server).unwrap();
    let connection = TcpStream::connect((ip, TLS_PORT)).map_err(|error| error.to_string())?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(client, connection);
    (stream.write_all(&Request::binding().bytes())).map_err(|error| error.to_string())?;
    let mut answer = [0; 32];
    stream
        .read_exact(&mut answer)
        .map_err(|error| error.to_string())?;
    assert!(Reply::parse(&answer).is_success());
    Ok(stream.conn.peer_certificates().unwrap()[0].to_vec())
}

#[track_caller]
fn await_leaf(process: &Process, name: &str, trust: &Arc<ClientConfig>) -> Vec<u8> {
    let mut found = None;
    until(process, &format!("a certificate for {name}"), || {
        found = leaf(process.ip, name, trust).ok();
        found.is_some()
    });
    found.unwrap()
}

fn text(ip: Ipv4Addr, port: u16, path: &str) -> String {
    let mut connection = TcpStream::connect((ip, port)).unwrap();
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: {ip}:{port}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// A sample of the metrics; 0 if it is not there.
pub fn metric(process: &Process, name: &str) -> u64 {
    let text = text(process.ip, 9641, "/metrics");
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    line.map_or(0, |line| {
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64
    })
}

const ISSUED: &str = r#"turn_acme_orders_total{outcome="issued"}"#;
const FAILED: &str = r#"turn_acme_orders_total{outcome="failed"}"#;
const EXPIRY: &str = "turn_certificate_expiry_timestamp_seconds";

#[test]
fn several_names_by_tls_alpn_01_kept_private_and_used_again() {
    let ip = quiet_address();
    let manners = Manners {
        refuses_nonces: 15,
        ..manners()
    };
    let Some(mut pebble) = Pebble::start(ip, &manners) else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let names = ["turn.example-1.org", "a.example-1.org", "b.example-2.org"];
    let config = config(
        &pebble,
        &names,
        "challenge = \"tls-alpn-01\"\nemail = \"admin@example-1.org\"",
    );
    let process = serve(&config, ip, state.path());
    // It serves at once, with a certificate that nobody trusts.
    let trust = pebble.trust();
    let first = await_leaf(&process, names[0], &trust);
    for name in names {
        assert_eq!(leaf(ip, name, &trust).as_ref(), Ok(&first), "{name}");
    }
    assert!(
        leaf(ip, "c.example-1.org", &trust).is_err(),
        "names are checked"
    );
    assert_eq!(metric(&process, ISSUED), 1);
    assert_eq!(metric(&process, "turn_acme_failures"), 0);
    let expiry = metric(&process, EXPIRY);
    let next = metric(&process, "turn_acme_next_order_timestamp_seconds");
    let left = |at: u64| at.saturating_sub(Clock.now().unix_secs()) / 86_400;
    assert!((88..=90).contains(&left(expiry)), "{expiry}");
    assert!((55..=60).contains(&left(next)), "{next}");

    // Nobody else reads account and key.
    let kept = state.path().join("acme");
    assert_eq!(
        fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let mut files = Vec::new();
    for entry in fs::read_dir(&kept).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{entry:?}"
        );
        files.push(entry.file_name().into_string().unwrap());
    }
    files.sort();
    let [account, lock, pem] = files.as_slice() else {
        panic!("{files:?}");
    };
    assert!(account.starts_with("account-127."), "{account}");
    assert_eq!(lock, "lock");
    assert!(
        pem.starts_with("turn.example-1.org-") && pem.ends_with(".pem"),
        "{pem}"
    );

    // What is not due is not ordered, whoever asks.
    process.signal("USR2");
    until(&process, "it says so", || {
        process.log().contains("nothing to order before its time")
    });

    // Nor after a restart: the authority is not even there.
    let mut process = process;
    process.signal("TERM");
    assert_eq!(process.exit_code(), Some(0));
    assert_eq!(pebble.issued(), 1, "{}", pebble.log());
    pebble.stop();
    let process = serve(&config, ip, state.path());
    assert_eq!(leaf(ip, names[1], &trust), Ok(first), "{}", process.log());
    assert_eq!(metric(&process, EXPIRY), expiry);
    assert_eq!(metric(&process, ISSUED) + metric(&process, FAILED), 0);
}

#[test]
fn http_01_and_other_names_by_a_reload() {
    let ip = quiet_address();
    let Some(pebble) = Pebble::start(ip, &manners()) else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let http = |names: &[&str]| config(&pebble, names, "challenge = \"http-01\"");
    let process = serve(&http(&["turn.example-1.org"]), ip, state.path());
    let trust = pebble.trust();
    let first = await_leaf(&process, "turn.example-1.org", &trust);
    // Nothing is to be found where nothing is under way.
    let answer = text(
        ip,
        HTTP_PORT,
        "/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA",
    );
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");

    let body = process.reload(&http(&["turn.example-1.org", "more.example-1.org"]));
    assert_eq!(body["applied"], true, "{body}");
    // The one before is served until the next one is there.
    assert!(leaf(ip, "turn.example-1.org", &trust).is_ok());
    let second = await_leaf(&process, "more.example-1.org", &trust);
    assert_ne!(first, second);
    assert_eq!(pebble.issued(), 2);

    // What is kept for the names before is good for them still.
    process.reload(&http(&["turn.example-1.org"]));
    assert_eq!(leaf(ip, "turn.example-1.org", &trust), Ok(first));
    assert_eq!(pebble.issued(), 2);

    // A certificate from files takes its place, and nothing is ordered.
    let pair =
        certificates::self_signed(&["own.example-1.org".to_owned()], Clock.now().unix_secs())
            .unwrap();
    fs::write(
        process.file("own.pem"),
        pair.certificate_pem + pair.key_pem.expose(),
    )
    .unwrap();
    process.reload(&format!(
        "{CONFIG}[tls]\ncertificate = \"own.pem\"\nkey = \"own.pem\"\n"
    ));
    assert!(leaf(ip, "turn.example-1.org", &trust).is_err());
    assert!(!text(ip, 9641, "/metrics").contains("turn_acme"));
}

#[test]
fn a_failure_is_told_waited_for_and_mended() {
    let ip = quiet_address();
    let manners = Manners {
        has_names: false,
        ..manners()
    };
    let Some(pebble) = Pebble::start(ip, &manners) else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let config = config(&pebble, &["turn.example-1.org"], "");
    let failed = |process: &Process| {
        until(process, "it fails", || {
            metric(process, "turn_acme_failures") > 0
        });
    };
    let mut process = serve(&config, ip, state.path());
    failed(&process);
    assert_eq!(metric(&process, FAILED), 1);
    let log = process.log();
    assert!(
        log.contains("turn.example-1.org needs an A or AAAA record"),
        "{log}"
    );
    // TURN is served all the same.
    let mut client = process.client_on(TLS_PORT);
    assert!(client.ask(&Request::binding()).is_success());

    // A server that starts again and again does not order again and again.
    process.signal("TERM");
    assert_eq!(process.exit_code(), Some(0));
    let process = serve(&config, ip, state.path());
    failed(&process);
    let wait = metric(&process, "turn_acme_next_order_timestamp_seconds") - Clock.now().unix_secs();
    assert!((60..=150).contains(&wait), "{wait}");
    assert_eq!(metric(&process, FAILED), 0);

    // Whoever has mended it says so. The second way is tried after the first has failed.
    pebble.name(ip);
    process.signal("USR2");
    let trust = pebble.trust();
    await_leaf(&process, "turn.example-1.org", &trust);
    assert_eq!(metric(&process, ISSUED), 1);
    // The pause is forgotten once the certificate is served.
    until(&process, "no failure is left", || {
        metric(&process, "turn_acme_failures") == 0
    });
    let log = process.log();
    assert!(log.contains("http-01"), "{log}");
}

#[test]
fn a_certificate_that_ends_soon_is_renewed_under_the_running_server() {
    let ip = quiet_address();
    let manners = Manners {
        validity_secs: 6,
        ..manners()
    };
    let Some(pebble) = Pebble::start(ip, &manners) else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let text = config(&pebble, &["turn.example-1.org"], "").replace("{ip}", &ip.to_string());
    let mut config = Config::load(&Sources {
        base: Some(text),
        environment: vec![(
            "STATE_DIRECTORY".to_owned(),
            state.path().to_string_lossy().into_owned(),
        )],
        ..Sources::default()
    })
    .unwrap();
    let Some(Tls::Acme(settings)) = &mut config.tls else {
        panic!("{:?}", config.tls);
    };
    settings.pace.between = Duration::from_secs(1);
    let running = app::start(config).unwrap();
    let trust = pebble.trust();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let deadline = now() + PATIENCE;
    while seen.len() < 3 {
        assert!(now() < deadline, "{} of 3", seen.len());
        if let Ok(leaf) = leaf(ip, "turn.example-1.org", &trust)
            && !seen.contains(&leaf)
        {
            seen.push(leaf);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Each when its time had come, rather than as fast as it goes.
    assert!(pebble.issued() <= 4, "{}", pebble.issued());
    running.stop();
}

#[test]
fn who_takes_over_orders_nothing() {
    let ip = quiet_address();
    let Some(pebble) = Pebble::start(ip, &manners()) else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let server = format!(
        "[server]\nhandover = \"{}/handover\"\n",
        state.path().display()
    );
    let config = config(&pebble, &["turn.example-1.org"], "").replace("[server]\n", &server);
    let mut first = serve(&config, ip, state.path());
    let trust = pebble.trust();
    let before = await_leaf(&first, "turn.example-1.org", &trust);
    let mut second = Process::spawn(&config, ip, |command: &mut Command| {
        command
            .arg("--takeover")
            .env("STATE_DIRECTORY", state.path());
    });
    assert_eq!(first.exit_code(), Some(0), "{}", second.log());
    until(&second, "the other one answers", || {
        second.log().contains("taken over from the running server")
    });
    assert_eq!(leaf(ip, "turn.example-1.org", &trust), Ok(before));
    assert_eq!(pebble.issued(), 1);
    second.signal("TERM");
    assert_eq!(second.exit_code(), Some(0));
}
