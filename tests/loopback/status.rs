//! The status page, and the canary that it speaks from: real looks, by a real server at itself.

use std::net::IpAddr;
use std::process::Command;

use serde_json::Value;
use turnix::access::rest;
use turnix::base::{Family, Secret, Transport};
use turnix::turn::{Direction, Path};
use turnix::wire::Method;

use super::client::Client;
use super::common::wire::Request;
use super::common::world::SECRET;
use super::server::{BOTH, Server, until};
use super::service::ask;

const FAST: &str = "server.canary=200ms";

fn status(server: &Server) -> Value {
    let answer = ask(server.address(Family::V4), "GET", "/status.json", &[]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

fn codes(status: &Value) -> Vec<&str> {
    let reasons = status["reasons"].as_array().unwrap().iter();
    reasons
        .map(|reason| reason["code"].as_str().unwrap())
        .collect()
}

#[track_caller]
fn becomes(server: &Server, word: &str, code: Option<&str>) -> Value {
    let mut last = Value::Null;
    until(&format!("{word} {code:?}"), || {
        last = status(server);
        let codes = codes(&last);
        last["status"] == word && code.is_none_or(|code| codes.contains(&code))
    });
    last
}

#[test]
fn a_server_that_serves_is_online_and_nobody_sees_it_look() {
    let server = Server::with(BOTH, &[FAST, "http.admin='127.0.0.1:0'"]);
    let seen = becomes(&server, "online", None);
    let mut ways: Vec<_> = (seen["paths"].as_array().unwrap().iter())
        .map(|path| {
            assert_eq!(path["ok"], true, "{path}");
            assert!(path["rtt_ms"].as_f64().unwrap() > 0.0, "{path}");
            path["transport"].as_str().unwrap().to_owned()
        })
        .collect();
    ways.sort();
    assert_eq!(
        ways,
        ["tcp", "tcp", "tls", "tls", "udp", "udp"],
        "both families"
    );
    assert!(
        !seen.to_string().contains("127.0.0.1"),
        "no address: {seen}"
    );
    // The metrics tell of the looks, and nothing counts them among clients.
    let metrics = ask(server.admin(), "GET", "/metrics", &[]).body;
    for transport in Transport::ALL {
        if transport == Transport::Dtls {
            // Not among the ways that are looked at.
            continue;
        }
        let transport = transport.label();
        let line = format!("turn_canary_success{{transport=\"{transport}\"}} 1\n");
        assert!(metrics.contains(&line), "{metrics}");
        let line = format!("turn_canary_duration_seconds{{transport=\"{transport}\"}} ");
        assert!(metrics.contains(&line), "{metrics}");
    }
    let totals = server.snapshot().stats;
    for transport in Transport::ALL {
        let of = |method: Method| totals.requests[method as usize][transport as usize][0];
        assert_eq!((of(Method::Allocate), of(Method::CreatePermission)), (0, 0));
        assert_eq!((of(Method::Refresh), of(Method::Binding)), (0, 0));
        let all = totals.requests.iter().map(|rows| rows[transport as usize]);
        assert_eq!(all.flatten().sum::<u64>(), 0, "no challenge either");
    }
    assert_eq!(totals.auth_failures.iter().sum::<u64>(), 0);
    assert_eq!(server.live(), 0);
    assert!(server.allocations().is_empty());
    assert_eq!(server.relayed(Direction::ToPeer, Path::Kernel).packets, 0);
    assert_eq!(server.relayed(Direction::ToClient, Path::Kernel).packets, 0);
}

#[test]
fn people_and_programs_get_what_they_read() {
    let server = Server::with(BOTH, &[FAST]);
    becomes(&server, "online", None);
    let to = server.address(Family::V4);
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = ask(to, "GET", "/status", &[("Accept", browser)]);
    assert_eq!(page.status, 200);
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.field("vary"), Some("accept"));
    assert!(
        page.field("content-security-policy")
            .unwrap()
            .starts_with("default-src 'none'; style-src 'sha256-")
    );
    assert!(page.body.contains("TURN over UDP, port"), "{}", page.body);
    assert!(!page.body.contains("{{"), "{}", page.body);
    assert!(!page.body.contains("127.0.0.1"), "{}", page.body);
    for accept in [
        &[("Accept", "application/json")][..],
        &[("Accept", "*/*")],
        &[],
        &[("Accept", "text/html;q=0")],
    ] {
        let answer = ask(to, "GET", "/status", accept);
        assert_eq!(
            answer.field("content-type"),
            Some("application/json"),
            "{accept:?}"
        );
        assert_eq!(answer.field("vary"), Some("accept"));
    }
    assert_eq!(ask(to, "POST", "/status", &[]).status, 405);
    // A balancer learns no more than before.
    assert_eq!(ask(to, "GET", "/health", &[]).body, r#"{"status":"ok"}"#);

    let server = Server::with(BOTH, &["http.status_page=false", FAST]);
    let to = server.address(Family::V4);
    assert_eq!(ask(to, "GET", "/status", &[]).status, 404);
    assert_eq!(ask(to, "GET", "/status.json", &[]).status, 404);
}

#[test]
fn a_full_server_says_so_until_there_is_room() {
    let server = Server::with(BOTH, &[FAST, "limits.allocations=1"]);
    becomes(&server, "online", None);
    let mut alice = Client::udp(&server);
    // The canary may have the only place for a moment.
    until("a place for alice", || alice.try_allocate().code() == 0);
    let seen = becomes(&server, "degraded", Some("full"));
    assert!(
        seen["reasons"][0]["text"]
            .as_str()
            .unwrap()
            .contains("no room")
    );
    alice.release();
    becomes(&server, "online", None);
}

/// An application that has another secret than the server, and then the right one.
#[test]
fn whose_fault_it_is_that_clients_fail() {
    let server = Server::with(BOTH, &[FAST, "http.admin='127.0.0.1:0'"]);
    becomes(&server, "online", None);
    let from = |network: u8| IpAddr::from([127, network, 1, 1]);
    let client = |network| {
        Client::between(
            &server,
            Transport::Udp,
            from(network),
            server.address(Family::V4),
        )
    };
    for network in 1..=12 {
        let mut client = client(network);
        client.login("4000000000:carol", "of another secret");
        assert_eq!(client.code_of(Request::allocate()), 401);
    }
    let mut seen = Value::Null;
    until("all of them are told of", || {
        seen = status(&server);
        seen.to_string().contains("12 of 12 clients")
    });
    assert_eq!(seen["status"], "degraded", "{seen}");
    assert_eq!(codes(&seen)[0], "credentials", "{seen}");
    assert!(!seen.to_string().contains("127."), "no address: {seen}");
    assert!(seen["reasons"][0]["since"].as_u64().unwrap() > 1_700_000_000);
    let page = ask(
        server.address(Family::V4),
        "GET",
        "/status",
        &[("Accept", "text/html")],
    );
    assert!(page.body.contains("12 of 12 clients"), "{}", page.body);

    // Who looks after it gets the networks.
    let outage = |server: &Server| -> Value {
        let answer = ask(server.admin(), "GET", "/api/v1/outage", &[]);
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    };
    let told = outage(&server);
    assert_eq!(
        (&told["status"], &told["causes"][0]["cause"]),
        (&"degraded".into(), &"credentials".into())
    );
    let networks = told["causes"][0]["networks"].as_array().unwrap();
    assert_eq!(networks[0]["network"], "127.1.1.0", "{told}");
    assert_eq!(told["windows"][1]["clients"]["failed"], 12, "{told}");
    let metrics = ask(server.admin(), "GET", "/metrics", &[]).body;
    assert!(
        metrics.contains("turn_outage{cause=\"credentials\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("turn_outage{cause=\"node\"} 0\n"),
        "{metrics}"
    );

    // The right secret.
    let mut kept = Vec::new();
    for network in 1..=12 {
        let name = format!("user{network}");
        let secret = Secret::new(SECRET.to_owned());
        let (name, password) = rest::mint(&secret, Some(&name), 4_000_000_000);
        let mut client = client(network);
        client.login(&name, &password);
        assert_eq!(client.code_of(Request::allocate()), 0);
        kept.push(client);
    }
    until("nobody fails for its credentials", || {
        let clients = &outage(&server)["windows"][1]["clients"];
        clients["ok"] == 12 && clients["failed"] == 0
    });
}

#[test]
fn without_looks_it_says_what_it_knows() {
    let server = Server::with(BOTH, &["limits.allocations=1"]);
    let seen = becomes(&server, "online", None);
    assert_eq!(seen["paths"].as_array().unwrap().len(), 0);
}

/// Set where the test below runs in a network of its own.
const ALONE: &str = "TURNIX_TEST_NETWORK_OF_STATUS";

/// A firewall closes relay ports, then one listener, then all of them; each time it opens again.
#[test]
fn what_a_firewall_closes_is_found_out() {
    if std::env::var_os(ALONE).is_some() {
        return behind_a_firewall();
    }
    let possible = Command::new("unshare")
        .args(["-rn", "nft", "list", "ruleset"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        let insist = std::env::var_os("INTEROP_REQUIRE_TOOLS").is_some();
        assert!(!insist, "a network of its own with nft cannot be had");
        eprintln!("skipped: `unshare -rn nft` does not work here");
        return;
    }
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "status::what_a_firewall_closes_is_found_out",
            "--nocapture",
        ])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn nft(command: &str) {
    let output = Command::new("nft").arg(command).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn behind_a_firewall() {
    let admin = "http.admin='127.0.0.1:0'";
    let other = Server::with(&["127.0.0.1:0"], &[]);
    let node = |name: &str, port: u16| {
        format!("{{name='{name}', urls=['turn:127.0.0.1:{port}?transport=udp']}}")
    };
    let nodes = [
        node("own", 9),
        node("other", other.address(Family::V4).port()),
    ];
    let nodes = format!("cluster.nodes=[{}]", nodes.join(", "));
    let ports = "relay.ports='61000-61999'";
    let set = [FAST, ports, admin, "cluster.node='own'", &nodes];
    let server = Server::with(&["127.0.0.1:0"], &set);
    let blames = |cause: &str, there: u8| {
        let metrics = ask(server.admin(), "GET", "/metrics", &[]).body;
        let line = format!("turn_outage{{cause=\"{cause}\"}} {there}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    };
    let port = server.address(Family::V4).port();
    becomes(&server, "online", None);
    nft("add table inet test; add chain inet test in { type filter hook input priority 0; }");
    let close = |rule: &str| nft(&format!("add rule inet test in {rule} drop"));
    let open = || nft("flush chain inet test in");

    close("udp dport 61000-61999");
    let seen = becomes(&server, "offline", Some("relay"));
    assert_eq!(
        codes(&seen).iter().filter(|code| **code == "relay").count(),
        1,
        "once for all: {seen}"
    );
    // The other server answers meanwhile.
    assert_eq!(codes(&seen)[..2], ["relay", "node"], "{seen}");
    blames("node", 1);
    blames("network", 0);
    open();
    becomes(&server, "online", None);
    blames("node", 0);

    close(&format!("udp dport {port}"));
    let seen = becomes(&server, "degraded", Some("silent"));
    let ok = |transport: &str| {
        let mut paths = seen["paths"].as_array().unwrap().iter();
        paths.find(|path| path["transport"] == transport).unwrap()["ok"].clone()
    };
    assert_eq!(
        (ok("udp"), ok("tcp"), ok("tls")),
        (false.into(), true.into(), true.into())
    );
    open();
    let seen = becomes(&server, "online", None);
    let slots = seen["history"]["slots"].as_array().unwrap();
    assert!(slots.iter().any(|slot| slot == "offline"), "{seen}");
}
