//! Access records: what they say, that they add up, and that sinks which fail lose nothing that they need not lose.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use turnix::base::{Clock, Secret, Transport};
use turnix::records::webhook::{self, roots, sign};
use turnix::records::{Outcome, Records, Settings, Sink};
use turnix::stream::certificates::{SelfSigned, self_signed};
use turnix::turn::{AllocationId, AllocationView, EndReason, Ended, Traffic};

use super::binary::http;
use super::client::Client;
use super::quality;
use super::receiver::Receiver;
use super::server::{BOTH, Server, peer, receive, until};

const SECRET: &str = "a secret of the test";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // What is being written has no end yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    (whole.lines())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

fn number(record: &Value, pointer: &str) -> u64 {
    record
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{pointer}: {record}"))
}

/// A server with records in a file.
fn server(interim: &str) -> (Server, tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("records");
    let server = Server::with(
        BOTH,
        &[
            "http.admin='127.0.0.1:0'",
            "cluster.node=one",
            "cluster.region=eu",
            &format!("records.file='{}'", file.display()),
            &format!("records.interim={interim}"),
        ],
    );
    (server, directory, file)
}

#[test]
fn a_record_says_what_the_client_really_sent_and_got() {
    let (server, _directory, file) = server("0");
    for (turn, transport) in Transport::ALL.into_iter().enumerate() {
        let mut client = Client::new(&server, transport, turnix::base::Family::V4);
        let relayed = client.allocate();
        let other = peer(Ipv4Addr::LOCALHOST);
        client.permit(other.local_addr().unwrap());
        client.bind(0x4000, other.local_addr().unwrap());
        for _ in 0..10 {
            client.send_channel(0x4000, &[7; 100]);
            receive(&other);
        }
        client.send_indication(other.local_addr().unwrap(), &[8; 50]);
        receive(&other);
        for _ in 0..4 {
            other.send_to(&[9; 70], relayed).unwrap();
            client.expect_channel(0x4000);
        }
        client.release();
        until("the record", || lines(&file).len() == turn + 1);
        let record = lines(&file).pop().unwrap();
        assert_eq!(record["kind"], "final");
        assert_eq!(record["reason"], "released");
        assert_eq!(record["user"], "alice");
        assert_eq!(record["node"], "one");
        assert_eq!(record["region"], "eu");
        assert_eq!(record["transport"], transport.label());
        assert_eq!(record["client"], client.local().to_string());
        assert_eq!(record["relayed"], relayed.to_string());
        assert_eq!(record["relay_transport"], "udp");
        assert_eq!(number(&record, "/bytes/to_peer"), 1050);
        assert_eq!(number(&record, "/packets/to_peer"), 11);
        assert_eq!(number(&record, "/bytes/to_client"), 280);
        assert_eq!(number(&record, "/packets/to_client"), 4);
        assert_eq!(record["since_last"]["bytes"], record["bytes"]);
        assert_eq!(record["since_last"]["packets"], record["packets"]);
        assert_eq!(number(&record, "/permissions"), 1);
        assert_eq!(number(&record, "/channels"), 1);
        let (start, end) = (number(&record, "/start_ms"), number(&record, "/end_ms"));
        assert!(
            end - start - number(&record, "/duration_ms") <= 1,
            "{record}"
        );
        assert!(end / 1000 <= Clock.now().unix_secs());
        for (direction, bytes) in [("to_peer", 1050), ("to_client", 280)] {
            let peak = number(&record, &format!("/peak_bits_per_second/{direction}"));
            assert!((1..=bytes * 8).contains(&peak), "{record}");
            let mean = number(&record, &format!("/mean_bits_per_second/{direction}"));
            assert!((1..=bytes * 8).contains(&mean), "{record}");
        }
    }
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let (_, metrics) = http(server.admin(), "GET", "/metrics", "");
    let each = Transport::ALL.len();
    let sample = format!(r#"turn_records_total{{sink="file",result="ok"}} {each}"#);
    assert!(metrics.contains(&sample), "{metrics}");
    assert!(!metrics.contains(r#"sink="webhook""#));
}

#[test]
fn interim_records_and_the_last_add_up() {
    let (server, _directory, file) = server("1s");
    let mut client = Client::udp(&server);
    client.allocate();
    let other = peer(Ipv4Addr::LOCALHOST);
    client.bind(0x4000, other.local_addr().unwrap());
    // Another one that is silent and is ended by the server's end.
    let mut silent = Client::tcp(&server);
    silent.allocate();
    let mut sent = 0;
    until("three interim records", || {
        client.send_channel(0x4000, &[7; 100]);
        sent += 1;
        receive(&other);
        std::thread::sleep(Duration::from_millis(20));
        let all = lines(&file);
        [client.local(), silent.local()].iter().all(|name| {
            let of = |record: &&Value| {
                record["kind"] == "interim" && record["client"] == name.to_string()
            };
            all.iter().filter(of).count() >= 3
        })
    });
    client.release();
    drop(server);
    let all = lines(&file);
    let ids: HashSet<_> = all.iter().map(|record| record["id"].to_string()).collect();
    assert_eq!(ids.len(), all.len(), "{all:?}");
    for (name, sent, reason) in [
        (client.local().to_string(), sent, "released"),
        (silent.local().to_string(), 0, "shutdown"),
    ] {
        let mine: Vec<_> = all
            .iter()
            .filter(|record| record["client"] == name)
            .collect();
        let last = mine.last().unwrap();
        assert_eq!(last["kind"], "final");
        assert_eq!(last["reason"], reason);
        assert!(mine.len() >= 4, "{mine:?}");
        assert!(
            mine.iter()
                .all(|record| record["allocation"] == last["allocation"])
        );
        for (what, total) in [("packets", sent), ("bytes", 100 * sent)] {
            assert_eq!(number(last, &format!("/{what}/to_peer")), total);
            let path = format!("/since_last/{what}/to_peer");
            let sum: u64 = mine.iter().map(|record| number(record, &path)).sum();
            assert_eq!(sum, total, "{what} add up");
        }
        let ends: Vec<_> = mine
            .iter()
            .map(|record| number(record, "/end_ms"))
            .collect();
        assert!(ends.is_sorted(), "{ends:?}");
    }
}

fn ended(slot: u32) -> Ended {
    let now = Clock.now();
    let traffic = [Traffic {
        bytes: 1000,
        packets: 10,
    }; 2];
    Ended {
        view: AllocationView {
            id: AllocationId {
                slot,
                generation: 0,
            },
            user: Arc::from("alice\n\"quoted\""),
            realm: None,
            scope: turnix::access::Scope::Policy,
            transport: Transport::Udp,
            client: "198.51.100.7:4000".parse().unwrap(),
            relayed: "203.0.113.7:50000".parse().unwrap(),
            additional: None,
            created_unix: now.unix,
            created: now.mono,
            expires_unix: now.unix,
            traffic,
            bits_per_second: [0; 2],
            peak_bits_per_second: [8000; 2],
            permissions: 0,
            channels: 0,
            permissions_made: 1,
            channels_made: 1,
            relay_transport: turnix::base::RelayTransport::Udp,
            connections: 0,
            quality: None,
        },
        duration: Duration::from_secs(10),
        reason: EndReason::Expired,
    }
}

fn to_file(file: &Path) -> Records {
    Records::start(&Settings {
        file: Some(file.to_owned()),
        ..Settings::default()
    })
    .unwrap()
}

#[test]
fn a_file_that_was_moved_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let records = to_file(&at("records"));
    let emitter = records.emitter();
    let write = |slot| {
        let before = records.counts().of(Sink::File, Outcome::Ok);
        emitter.ended(0, ended(slot));
        until("written", || {
            records.counts().of(Sink::File, Outcome::Ok) > before
        });
    };
    write(1);
    fs::rename(at("records"), at("records.1")).unwrap();
    write(2);
    write(3);
    fs::rename(at("records"), at("records.2")).unwrap();
    fs::write(at("records"), "").unwrap();
    write(4);
    fs::remove_file(at("records")).unwrap();
    write(5);
    records.reopen();
    write(6);
    let of = |name: &str| lines(&at(name)).len();
    assert_eq!((of("records.1"), of("records.2"), of("records")), (1, 2, 2));

    // A directory that is gone loses records, counted, and nothing else.
    fs::remove_file(at("records")).unwrap();
    fs::create_dir(at("records")).unwrap();
    emitter.ended(0, ended(7));
    until("lost", || {
        records.counts().of(Sink::File, Outcome::Failed) == 1
    });
    fs::remove_dir(at("records")).unwrap();
    write(8);
    assert_eq!(of("records"), 1);
    records.close(Duration::ZERO);
}

#[test]
fn a_record_says_how_the_call_went_where_that_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("records");
    let records = to_file(&file);
    let mut watched = ended(1);
    watched.view.quality = Some(Box::new(quality::lossy()));
    records.emitter().ended(0, watched);
    records.emitter().ended(0, ended(2));
    records.close(Duration::ZERO);
    let all = lines(&file);
    assert_eq!(
        all[0]["quality"],
        json!({
            "session": "established",
            "rtt_ms": {
                "client": {"smoothed": 23.456, "least": 21.0},
                "peer": {"smoothed": 170.0, "least": 160.0},
            },
            "loss": {"to_peer": 0.0, "to_client": 0.05},
            "jitter_ms": {"to_peer": 1.25, "to_client": null},
            "first_data_ms": {"to_peer": 5.0, "to_client": 350.0},
        })
    );
    assert_eq!(all[1]["quality"], Value::Null);
    assert!(all[1].as_object().unwrap().contains_key("quality"));
}

#[test]
fn ids_differ_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("records");
    for _ in 0..2 {
        let records = to_file(&file);
        for slot in 0..100 {
            records.emitter().ended(1, ended(slot));
        }
        records.close(Duration::ZERO);
    }
    let all = lines(&file);
    let ids: HashSet<_> = all.iter().map(|record| record["id"].to_string()).collect();
    assert_eq!((all.len(), ids.len()), (200, 200));
    assert_eq!(all[0]["user"], "alice\n\"quoted\"");
}

fn to_webhook(url: &str, authorities: Option<&SelfSigned>) -> Records {
    let directory = tempfile::tempdir().unwrap();
    let roots = match authorities {
        None => rustls::RootCertStore::empty(),
        Some(signed) => {
            let path = directory.path().join("roots.pem");
            fs::write(&path, &signed.certificate_pem).unwrap();
            roots(Some(&path)).unwrap()
        }
    };
    Records::start(&Settings {
        webhook: Some(webhook::Settings {
            url: url.parse().unwrap(),
            secret: Secret::new(SECRET.to_owned()),
            roots: Arc::new(roots),
            first_pause: Duration::from_millis(20),
        }),
        ..Settings::default()
    })
    .unwrap()
}

fn signed() -> SelfSigned {
    self_signed(&["127.0.0.1".to_owned()], Clock.now().unix_secs()).unwrap()
}

fn delivered(records: &Records) -> u64 {
    records.counts().of(Sink::Webhook, Outcome::Ok)
}

#[test]
fn a_webhook_that_fails_at_first_gets_every_record_once_signed_over_tls() {
    let certificate = signed();
    let receiver = Receiver::start(&[503, 302, 401], Some(&certificate));
    let url = format!("https://{}/records?from=turnix", receiver.address);
    let records = to_webhook(&url, Some(&certificate));
    for slot in 0..250 {
        records.emitter().ended(0, ended(slot));
    }
    until("delivered", || delivered(&records) == 250);
    let all = receiver.all();
    assert!(
        all.iter().all(|one| one.path == "/records?from=turnix"),
        "no redirect is followed"
    );
    // The failures and the success are one batch, tried again.
    assert_eq!(
        all.iter().map(|one| one.status).collect::<Vec<_>>()[..4],
        [503, 302, 401, 200]
    );
    assert!(all[..4].windows(2).all(|two| two[0].body == two[1].body));
    assert!(all.iter().all(|one| one.records().len() <= 100));
    let taken = receiver.taken();
    let ids: HashSet<_> = taken
        .iter()
        .map(|record| record["id"].to_string())
        .collect();
    assert_eq!((taken.len(), ids.len()), (250, 250));

    let secret = Secret::new(SECRET.to_owned());
    let now = Clock.now().unix_secs();
    for one in &all {
        let time = one
            .signature
            .strip_prefix("t=")
            .unwrap()
            .split_once(',')
            .unwrap()
            .0;
        let time: u64 = time.parse().unwrap();
        assert!((now - 60..=now).contains(&time));
        assert_eq!(one.signature, sign(&secret, time, &one.body));
        let forged = Secret::new("another secret".to_owned());
        assert_ne!(one.signature, sign(&forged, time, &one.body));
    }
    records.close(Duration::from_secs(5));
}

#[test]
fn the_signature_is_checked_as_the_document_says() {
    let document = include_str!("../../docs/records.md");
    let code = document.split("```python\n").nth(1).unwrap();
    let code = code.split("```").next().unwrap();
    let secret = Secret::new(SECRET.to_owned());
    let body = r#"{"records":[{"user":"ä"}]}"#;
    let header = sign(&secret, 1_798_761_600, body.as_bytes());
    let checks = format!(
        "{code}\n\
         body = {body:?}.encode()\n\
         check = lambda secret, header, body, now: print(int(is_ours(secret, header, body, now)), end='')\n\
         check({SECRET:?}, {header:?}, body, 1798761610)\n\
         check('another', {header:?}, body, 1798761610)\n\
         check({SECRET:?}, {header:?}, body + b' ', 1798761610)\n\
         check({SECRET:?}, {header:?}, body, 1798769999)\n\
         check({SECRET:?}, {header:?}.replace('t=1', 't=2'), body, 2798761610)\n"
    );
    let python = Command::new("python3")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        let required = std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some_and(|v| v == "1");
        assert!(!required, "python3 not found");
        println!("SKIPPED: python3 not found");
        return;
    };
    python
        .stdin
        .take()
        .unwrap()
        .write_all(checks.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "10000");
}

#[test]
fn a_receiver_that_nobody_vouches_for_gets_nothing() {
    let (theirs, ours) = (signed(), signed());
    let receiver = Receiver::start(&[], Some(&theirs));
    let records = to_webhook(&format!("https://{}/", receiver.address), Some(&ours));
    records.emitter().ended(0, ended(1));
    let counts = records.counts();
    records.close(Duration::from_secs(2));
    assert_eq!(receiver.all().len(), 0);
    assert_eq!(counts.of(Sink::Webhook, Outcome::Dropped), 1);
}

#[test]
fn a_batch_that_is_refused_for_good_does_not_hold_up_the_next() {
    let receiver = Receiver::start(&[422], None);
    let records = to_webhook(&format!("http://{}/", receiver.address), None);
    records.emitter().ended(0, ended(1));
    let counts = records.counts();
    until("refused", || counts.of(Sink::Webhook, Outcome::Failed) == 1);
    records.emitter().ended(0, ended(2));
    until("taken", || delivered(&records) == 1);
    records.close(Duration::from_secs(5));
    assert_eq!(receiver.taken().len(), 1);
}

#[test]
fn what_is_left_at_the_end_is_posted() {
    let receiver = Receiver::start(&[500], None);
    let records = to_webhook(&format!("http://{}/", receiver.address), None);
    (0..150).for_each(|slot| records.emitter().ended(0, ended(slot)));
    let counts = records.counts();
    records.close(Duration::from_secs(15));
    assert_eq!(receiver.taken().len(), 150);
    assert_eq!(counts.of(Sink::Webhook, Outcome::Ok), 150);
}

#[test]
fn a_receiver_that_sleeps_costs_records_and_holds_nobody_up() {
    const RECORDS: u64 = 80_000;
    let receiver = Receiver::start(&[0; 100], None);
    let records = to_webhook(&format!("http://{}/", receiver.address), None);
    let emitter = records.emitter();
    // Would never end if anything waited for the receiver.
    (0..RECORDS).for_each(|slot| emitter.ended(0, ended(slot as u32)));
    let counts = records.counts();
    until("some are lost", || {
        counts.of(Sink::Webhook, Outcome::Dropped) > 0
    });
    let before = Clock.now().mono;
    records.close(Duration::ZERO);
    assert!(Clock.now().mono - before < Duration::from_secs(60));
    let all = Outcome::ALL.map(|outcome| counts.of(Sink::Webhook, outcome));
    assert_eq!(all.iter().sum::<u64>(), RECORDS, "{all:?}");
    assert_eq!(counts.of(Sink::Webhook, Outcome::Ok), 0);
    let _: SocketAddr = receiver.address;
}
