//! The ICE configuration service of running servers: who gets what, and where clients are sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use serde_json::{Value, json};
use turnix::base::{Family, Transport};

use super::client::Client;
use super::common::wire::{Request, Signer};
use super::common::world::USER;
use super::server::{BOTH, PATIENCE, Server, until};

pub const KEY: &str = "a key that is long enough";
const PAGE: &str = "https://app.example.org";

pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        (self.head.lines()).find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub fn ask(to: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    ask_with(to, method, path, fields, "")
}

/// The same with a body.
pub fn ask_with(
    to: SocketAddr,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in fields {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    connection
        .write_all((request + "\r\n" + body).as_bytes())
        .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

pub fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

pub fn keys(more: &str) -> String {
    format!(r#"api.keys=[{{ id = "web", secret = "{KEY}", ttl = "1h", {more} }}]"#)
}

fn config(server: SocketAddr, query: &str) -> Answer {
    let path = format!("/api/webrtc/config{query}");
    ask(server, "GET", &path, &[("Authorization", &bearer(KEY))])
}

/// The credential in an RTCConfiguration, and all of its TURN URIs.
fn offered(answer: &Value) -> (String, String, Vec<String>) {
    let first = &answer["iceServers"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let urls = first["urls"].as_array().unwrap().iter().map(text).collect();
    (text(&first["username"]), text(&first["credential"]), urls)
}

#[test]
fn credentials_from_the_service_allocate() {
    let server = Server::with(BOTH, &[&keys(r#"user_prefix = "app-""#)]);
    let address = server.address(Family::V4);
    let answer = config(address, "?user=carol&ttl=10m").json();
    assert_eq!(
        (&answer["ttl"], &answer["iceTransportPolicy"]),
        (&json!(600), &json!("all"))
    );
    let (username, credential, urls) = offered(&answer);
    assert!(username.ends_with(":app-carol;key=web"), "{username}");
    // The order in which clients should try them: UDP, TCP, TLS, DTLS, and then STUN.
    let port = address.port();
    let v4: Vec<&String> = urls
        .iter()
        .filter(|url| url.contains("127.0.0.1"))
        .collect();
    assert_eq!(
        v4,
        [
            &format!("turn:127.0.0.1:{port}?transport=udp"),
            &format!("turn:127.0.0.1:{port}?transport=tcp"),
            &format!("turns:127.0.0.1:{port}?transport=tcp"),
            &format!("turns:127.0.0.1:{port}?transport=udp"),
        ]
    );
    assert_eq!(
        answer["iceServers"][1]["urls"][0],
        json!(format!("stun:127.0.0.1:{port}"))
    );
    for transport in Transport::ALL {
        let mut client = Client::new(&server, transport, Family::V4);
        client.login(&username, &credential);
        client.allocate();
    }
    let users: Vec<_> = server
        .allocations()
        .into_iter()
        .map(|one| one.view.user)
        .collect();
    assert!(
        !users.is_empty() && users.iter().all(|user| &**user == "app-carol"),
        "{users:?}"
    );
}

#[test]
fn lifetimes_and_names_are_bounded() {
    let server = Server::with(BOTH, &[&keys("")]);
    let address = server.address(Family::V4);
    for (query, ttl) in [
        ("", 3600),
        ("?ttl=24h", 3600),
        ("?ttl=90", 90),
        ("?ttl=1h30m", 3600),
    ] {
        assert_eq!(config(address, query).json()["ttl"], json!(ttl), "{query}");
    }
    let long = format!("?user={}", "x".repeat(401));
    for query in ["?ttl=0", "?ttl=soon", "?ttl=-5", "?user=a%0ab", &long] {
        assert_eq!(config(address, query).status, 400, "{query}");
    }
}

#[test]
fn only_keys_open_and_guessing_is_slow() {
    let server = Server::with(BOTH, &[&keys("")]);
    let address = server.address(Family::V4);
    for path in ["/api/webrtc/config", "/api/webrtc/stats"] {
        let bare = ask(address, "GET", path, &[]);
        assert_eq!(
            (bare.status, bare.field("www-authenticate")),
            (401, Some("Bearer"))
        );
        let query = format!("{path}?key={}", KEY.replace(' ', "%20"));
        assert_eq!(ask(address, "GET", &query, &[]).status, 200);
    }
    let guess = || {
        let fields = [("Authorization", &*bearer("another key of that length"))];
        ask(address, "GET", "/api/webrtc/config", &fields).status
    };
    let guesses: Vec<u16> = (0..40).map(|_| guess()).collect();
    assert!(guesses.iter().all(|status| [401, 429].contains(status)));
    assert!(
        guesses.iter().filter(|status| **status == 401).count() < 30,
        "{guesses:?}"
    );
    assert_eq!(*guesses.last().unwrap(), 429);
    // The one who knows is served all the same.
    assert_eq!(config(address, "").status, 200);
}

#[test]
fn pages_of_listed_origins_may_read_the_answer() {
    let server = Server::with(BOTH, &[&keys(&format!(r#"origins = ["{PAGE}"]"#))]);
    let address = server.address(Family::V4);
    let with = |method: &str, origin: &str| {
        let authorization = bearer(KEY);
        let fields = [("Authorization", &*authorization), ("Origin", origin)];
        let fields = if method == "OPTIONS" {
            &fields[1..]
        } else {
            &fields
        };
        ask(address, method, "/api/webrtc/config", fields)
    };
    let answer = with("GET", PAGE);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("access-control-allow-origin"), Some(PAGE));
    let preflight = with("OPTIONS", PAGE);
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.field("access-control-allow-headers"),
        Some("authorization")
    );
    for stranger in [
        "https://evil.example",
        "null",
        "https://app.example.org.evil.example",
    ] {
        for method in ["GET", "OPTIONS"] {
            let refused = with(method, stranger);
            assert_eq!(refused.status, 403, "{method} {stranger}");
            assert_eq!(refused.field("access-control-allow-origin"), None);
        }
    }
}

#[test]
fn totals_are_told() {
    let server = Server::with(BOTH, &[&keys("")]);
    let mut client = Client::udp(&server);
    client.allocate();
    let mut wrong = Client::udp(&server);
    let challenge = wrong.ask(&Request::allocate());
    let signer = Signer::new(USER, "not her password", &challenge.nonce());
    assert_eq!(wrong.ask(&Request::allocate().sign(&signer)).code(), 401);
    let path = format!("/api/webrtc/stats?key={}", KEY.replace(' ', "%20"));
    let totals = ask(server.address(Family::V4), "GET", &path, &[]).json();
    assert_eq!(totals["allocations"], json!(1));
    assert_eq!(totals["allocationsTotal"], json!(1));
    assert_eq!(totals["wrongCredentials"], json!(1));
    assert_eq!(totals["successRatio"], json!(0.5));
}

fn node(name: &str, region: &str, weight: u32, urls: &[String]) -> String {
    format!(r#"{{ name = "{name}", region = "{region}", weight = {weight}, urls = {urls:?} }}"#)
}

/// What the service offers, one node after the other, as `names` of their first URIs.
fn names(server: SocketAddr, query: &str, known: &[(&str, SocketAddr)]) -> Vec<String> {
    let (_, _, urls) = offered(&config(server, query).json());
    (urls.iter())
        .map(|url| {
            let named = known
                .iter()
                .find(|(_, at)| url.contains(&format!(":{}?", at.port())));
            named.map_or("?", |(name, _)| *name).to_owned()
        })
        .collect()
}

#[test]
fn regions_are_kept_to_and_dead_nodes_left_out() {
    let far = Server::with(&["127.0.0.1:0"], &[]);
    let tcp = Server::with(&["127.0.0.1:0"], &[]);
    // Nobody answers there, and nobody else gets the port.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = |server: &Server| server.address(Family::V4);
    let dead = silent.local_addr().unwrap();
    let uri = |at: SocketAddr, transport: &str| format!("turn:{at}?transport={transport}");
    let own = ["turn:127.0.0.1:1?transport=udp".to_owned()];
    let nodes = [
        node("own", "eu", 0, &own),
        node("far", "us", 100, &[uri(at(&far), "udp")]),
        node("tcp", "ap", 100, &[uri(at(&tcp), "tcp")]),
        node("dead", "us", 10_000, &[uri(dead, "udp")]),
    ];
    let set = [
        keys(""),
        "cluster.node='own'".to_owned(),
        format!("cluster.nodes=[{}]", nodes.join(", ")),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let server = Server::with(BOTH, &set);
    let known = [
        ("own", "127.0.0.1:1".parse().unwrap()),
        ("far", at(&far)),
        ("tcp", at(&tcp)),
        ("dead", dead),
    ];
    let offered = |query: &str| names(at(&server), query, &known);

    until("the dead node is left out", || {
        !offered("?region=us").contains(&"dead".to_owned())
    });
    assert_eq!(offered("?region=us")[0], "far");
    assert_eq!(offered("?region=ap")[0], "tcp");
    // Its own weight of 0 makes it the last resort, even where its region is asked for.
    for _ in 0..20 {
        assert!(!offered("?region=eu").contains(&"own".to_owned()));
    }
    // The canaries went all the way, over UDP and TCP, and left nothing behind.
    for node in [&far, &tcp] {
        let allocated = |server: &Server| {
            let requests = server.snapshot().stats.requests;
            requests[turnix::wire::Method::Allocate as usize]
                .iter()
                .map(|row| row[0])
                .sum::<u64>()
        };
        until("a canary allocates", || allocated(node) > 0);
        until("its data came back", || {
            node.relayed(
                turnix::turn::Direction::ToClient,
                turnix::turn::Path::Hairpin,
            )
            .packets
                > 0
        });
        until("it leaves nothing behind", || node.live() == 0);
    }

    drop(far);
    until("a node that is gone is left out", || {
        offered("?region=us")[0] == "tcp"
    });
}
