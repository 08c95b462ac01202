//! Emptying a server, and stopping it.

use std::time::Duration;

use super::client::Client;
use super::common::wire::Request;
use super::process::{CONFIG, Process, http};
use super::server::{now, peer, receive, until};

const CHANNEL: u16 = 0x4000;

/// Far longer than any of these tests.
const LONG: &str = "[drain]\ndeadline = \"1h\"\ngrace = \"1h\"\n";

fn long() -> String {
    CONFIG.to_owned() + LONG
}

fn until_draining(process: &Process) {
    until("it drains", || {
        process.http("GET", "/ready").1["status"] == "draining"
    });
}

/// What a newcomer is told, who leaves no allocation behind.
fn told_to_newcomers(process: &Process) -> u16 {
    let mut client = process.client();
    let code = client.try_allocate().code();
    if code == 0 {
        client.release();
    }
    code
}

#[test]
fn a_draining_server_keeps_what_lives_and_stops_when_it_is_empty() {
    let mut process = Process::start(&long());
    let peer = peer(process.ip);
    let mut client = process.client();
    let relayed = client.allocate();
    process.signal("USR1");
    until_draining(&process);
    let (status, body) = process.http("GET", "/ready");
    assert_eq!((status, &body["allocations"]), (503, &1.into()));
    let in_an_hour = turnix::base::Clock.now().unix_secs() + 3600;
    let deadline = body["deadline"].as_u64().unwrap();
    assert!(deadline.abs_diff(in_an_hour) < 600, "{deadline}");
    assert_eq!(process.http("GET", "/live").0, 200);
    let public = http((process.ip, 3478).into(), "GET", "/health");
    assert_eq!((public.0, &public.1["status"]), (503, &"draining".into()));
    until("systemd is told", || process.heard("STATUS=draining: 1 "));
    assert!(!process.heard("STOPPING=1"));

    assert_eq!(told_to_newcomers(&process), 486);
    client.bind(CHANNEL, peer.local_addr().unwrap());
    client.permit(peer.local_addr().unwrap());
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    client.send_channel(CHANNEL, b"goes on");
    assert_eq!(receive(&peer), (b"goes on".to_vec(), relayed));
    // A reload does not end it.
    process.reload(&(long() + "[limits]\nallocations = 100\n"));
    assert_eq!(process.http("GET", "/ready").0, 503);
    assert_eq!(told_to_newcomers(&process), 486);
    client.release();
    assert_eq!(process.exit_code(), Some(0));
    assert!(process.heard("STOPPING=1"));
}

#[test]
fn the_deadline_ends_the_rest_and_a_second_drain_can_only_shorten_it() {
    let mut process = Process::start(&long());
    let mut client = process.client();
    client.allocate();
    let deadline = |path: &str| {
        let (status, body) = process.http("POST", path);
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["allocations"], 1);
        body["deadline"].as_u64().unwrap()
    };
    let first = deadline("/api/v1/drain?deadline=30m");
    assert!(deadline("/api/v1/drain") == first, "an hour is no shorter");
    assert!(deadline("/api/v1/drain?deadline=10m") < first - 600);
    let (status, body) = process.http("POST", "/api/v1/drain?deadline=soon");
    assert_eq!(status, 422);
    assert!(body["error"].as_str().unwrap().contains("10m"), "{body}");
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    deadline("/api/v1/drain?deadline=1s");
    assert_eq!(process.exit_code(), Some(0));
    assert!(process.log().contains("\"shutdown\""), "{}", process.log());
}

#[test]
fn an_empty_server_that_is_drained_stops_at_once() {
    let mut process = Process::start(&long());
    process.signal("USR1");
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn newcomers_are_sent_elsewhere() {
    let config = CONFIG.to_owned()
        + "[drain]\nalternates = [\"198.51.100.8:3478\", \"[2001:db8::8]:3478\"]\n";
    let process = Process::start(&config);
    let mut client = process.client();
    client.allocate();
    process.signal("USR1");
    until_draining(&process);
    assert_eq!(told_to_newcomers(&process), 300);
}

#[test]
fn a_server_that_is_nearly_full_sends_newcomers_elsewhere() {
    let config = CONFIG.to_owned()
        + "[drain]\nalternates = [\"198.51.100.8:3478\"]\noverload = 50\n[limits]\nallocations = 4\n";
    let process = Process::start(&config);
    let mut clients: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = process.client();
            client.allocate();
            client
        })
        .collect();
    until("newcomers are sent elsewhere", || {
        told_to_newcomers(&process) == 300
    });
    assert_eq!(process.http("GET", "/ready").0, 200);
    for client in &mut clients {
        client.release();
    }
    until("newcomers are welcome again", || {
        told_to_newcomers(&process) == 0
    });
}

#[test]
fn sigterm_waits_for_calls_and_no_longer_than_its_grace() {
    let mut process = Process::start(&long());
    let mut client = process.client();
    client.allocate();
    process.signal("TERM");
    until("systemd is told", || {
        process.heard("STOPPING=1") && process.heard("EXTEND_TIMEOUT_USEC=")
    });
    until_draining(&process);
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    client.release();
    assert_eq!(process.exit_code(), Some(0));

    let mut process = Process::start(&(CONFIG.to_owned() + "[drain]\ngrace = \"1s\"\n"));
    let mut client = process.client();
    client.allocate();
    let begun = now();
    process.signal("TERM");
    assert_eq!(process.exit_code(), Some(0));
    assert!(now() - begun >= Duration::from_millis(900));
}

#[test]
fn a_second_sigterm_and_sigint_stop_at_once() {
    for signals in [
        &["TERM", "TERM"][..],
        &["INT"],
        &["USR1", "INT"],
        &["TERM", "INT"],
    ] {
        let mut process = Process::start(&long());
        let mut client = process.client();
        client.allocate();
        for (at, signal) in signals.iter().enumerate() {
            if at > 0 {
                until_draining(&process);
            }
            process.signal(signal);
        }
        assert_eq!(process.exit_code(), Some(0), "{signals:?}");
    }
}
