//! What reloads change, what they end, and what they leave alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::Value;
use turnix::access::rest;
use turnix::base::{Clock, Secret};

use super::client::{Client, Ended};
use super::common::wire::{Request, Signer};
use super::process::{CONFIG, Process, http_with};
use super::server::{PATIENCE, peer, receive, until};

const CHANNEL: u16 = 0x4000;

fn keys(body: &Value, list: &str) -> Vec<String> {
    (body[list].as_array().unwrap().iter())
        .map(|change| change["key"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_reload_says_what_changed_what_takes_a_restart_and_no_secret() {
    let process = Process::start(CONFIG);
    let body = process.reload(CONFIG);
    assert_eq!(
        (keys(&body, "changed"), keys(&body, "restart")),
        (vec![], vec![])
    );
    let next = CONFIG
        .replace("north", "recognizable-secret")
        .replace("builder", "recognizable-password")
        .replace("shards = 2", "shards = 3")
        + "[limits]\nallocations = 7\n";
    for _ in 0..2 {
        let body = process.reload(&next);
        // What could not be changed is told again until it is.
        assert_eq!(keys(&body, "restart"), ["server.shards"]);
        let text = body.to_string() + &process.log();
        assert!(!text.contains("recognizable"), "{text}");
    }
    let body = process.reload(CONFIG);
    let changed = keys(&body, "changed");
    assert_eq!(
        changed,
        ["auth.users", "auth.secrets", "limits.allocations"]
    );
    let limit = &body["changed"][2];
    assert_eq!((&limit["from"], &limit["to"]), (&"7".into(), &"0".into()));
    assert_eq!(keys(&body, "restart"), [""; 0]);
}

#[test]
fn a_reload_by_signal_is_told_to_systemd() {
    let process = Process::start(CONFIG);
    let before = process.told().len();
    process.write(&(CONFIG.to_owned() + "[cluster]\nnode = \"renamed\"\n"));
    process.signal("HUP");
    until("the reload is told", || {
        process.told()[before..]
            .iter()
            .any(|message| message.contains("READY=1"))
    });
    let told = process.told()[before..].concat();
    let begun = told.find("RELOADING=1").expect("told that it begins");
    let at = told.find("MONOTONIC_USEC=").expect("told when");
    assert!(begun < at && at < told.find("READY=1").unwrap(), "{told}");
    assert_eq!(process.http("GET", "/ready").1["node"], "renamed");
}

#[test]
fn a_bad_file_changes_nothing_and_all_that_is_wrong_is_told() {
    let process = Process::start(CONFIG);
    let mut client = process.client();
    client.allocate();
    let bad = CONFIG.replace("shards = 2", "shards = -1\nspeed = 9")
        + "[limits]\nallocations = \"many\"\n";
    process.write(&bad);
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 422);
    assert_eq!(body["applied"], false);
    let problems: Vec<&str> = (body["problems"].as_array().unwrap().iter())
        .map(|problem| problem.as_str().unwrap())
        .collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    for key in ["server.shards", "server.speed", "limits.allocations"] {
        assert!(
            problems.iter().any(|problem| problem.contains(key)),
            "{key}"
        );
    }
    // The same by signal: systemd hears that the reload is over, too.
    let before = process.told().len();
    process.signal("HUP");
    until("the end is told", || {
        process.told()[before..]
            .iter()
            .any(|message| message.contains("READY=1"))
    });
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    process.client().allocate();
}

#[test]
fn who_watches_sees_how_a_reload_went_and_is_let_in_anew() {
    let process = Process::start(CONFIG);
    let watch = || {
        let mut stream = TcpStream::connect(process.admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        let host = process.admin();
        write!(
            stream,
            "GET /api/v1/events HTTP/1.1\r\nHost: {host}\r\n\r\n"
        )
        .unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        // The first line is of what was before.
        lines.filter_map(|line| {
            let told: Value = serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
            told.is_object().then_some(told)
        })
    };
    let mut watcher = watch();
    let told = watcher.next().unwrap();
    assert_eq!(
        (&told["status"], &told["reload"]),
        (&"ok".into(), &Value::Null)
    );
    process.write(&CONFIG.replace("shards = 2", "shards = 2\nspeed = 9"));
    assert_eq!(process.http("POST", "/api/v1/reload").0, 422);
    let told = watcher.find(|told| !told["reload"].is_null()).unwrap();
    assert_eq!(told["reload"]["applied"], false);
    let problem = told["reload"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("server.speed"), "{problem}");

    process.reload(&(CONFIG.to_owned() + "[limits]\nallocations = 7\n"));
    assert!(watcher.all(|told| told["capacity"]["allocations"]["limit"] == 0));
    let mut watcher = watch();
    let told = watcher.next().unwrap();
    assert_eq!(told["reload"]["applied"], true);
    assert_eq!(told["capacity"]["allocations"]["limit"], 7);

    let mut client = process.client();
    client.allocate();
    assert_eq!(process.http("POST", "/api/v1/drain").0, 200);
    let told = watcher.find(|told| told["status"] == "draining").unwrap();
    assert!(told["deadline"].is_u64(), "{told}");
}

#[test]
fn who_was_let_in_before_a_reload_shows_the_token_anew() {
    let (first, second) = ("the-first-token-of-all", "the-second-token-of-all");
    let with = |token: &str| CONFIG.replace("[http]", &format!("[http]\ntoken = \"{token}\""));
    let process = Process::start(&with(first));
    let host = process.admin();
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let request = |what: &str| format!("{what} HTTP/1.1\r\nHost: {host}\r\n{}\r\n", bearer(first));
    // Answered, and open.
    let open = |what: &str| {
        let mut connection = TcpStream::connect(host).unwrap();
        connection.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        connection.write_all(request(what).as_bytes()).unwrap();
        let mut begin = [0; 12];
        connection.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200", "{what}");
        connection
    };
    let mut idle = open("GET /api/v1/allocations");
    let mut watcher = open("GET /api/v1/events");
    process.write(&with(second));
    let mut reloading = open("POST /api/v1/reload");

    // The connections before are gone, or close without another answer.
    let mut rest = Vec::new();
    let _ = idle.write_all(request("GET /api/v1/allocations").as_bytes());
    let _ = idle.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("HTTP/1.1"), "{rest}");
    let mut rest = String::new();
    watcher.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "{rest}");
    let mut answer = String::new();
    reloading.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("http.token"), "{answer}");
    let refused = http_with(host, "GET", "/api/v1/allocations", &bearer(first));
    assert_eq!(refused.0, 401);
    // Whoever watches is let in at once.
    let again = request("GET /api/v1/events").replace(first, second);
    let mut watcher = TcpStream::connect(host).unwrap();
    watcher.set_read_timeout(Some(PATIENCE * 2)).unwrap();
    watcher.write_all(again.as_bytes()).unwrap();
    let mut begin = [0; 12];
    watcher.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
}

#[test]
fn a_port_that_cannot_be_had_leaves_everything_as_it_is() {
    let process = Process::start(CONFIG);
    let taken = TcpListener::bind((process.ip, 0)).unwrap();
    let udp = UdpSocket::bind((process.ip, 0)).unwrap();
    let next = |tcp: u16, udp: u16| {
        CONFIG.replace("3478", "3480")
            + &format!(
                "[[listen]]\naddress = \"{{ip}}:{tcp}\"\nprotocols = [\"tcp\"]\n\
                 [[listen]]\naddress = \"{{ip}}:{udp}\"\nprotocols = [\"udp\"]\n\
                 [limits]\nallocations = 1\n"
            )
    };
    let ports = (
        taken.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    process.write(&next(ports.0, ports.1));
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 422);
    let text = body.to_string();
    for port in [ports.0, ports.1] {
        assert!(text.contains(&format!("{}:{port}", process.ip)), "{text}");
    }
    // Neither the new port nor the new limit is there, and the old port still is.
    TcpStream::connect((process.ip, 3480)).unwrap_err();
    for _ in 0..2 {
        process.client().allocate();
    }
    drop((taken, udp));
    process.reload(&next(ports.0, ports.1));
    TcpStream::connect((process.ip, 3480)).unwrap();
    TcpStream::connect((process.ip, 3478)).unwrap_err();
}

#[test]
fn listeners_come_and_go() {
    let process = Process::start(CONFIG);
    let more =
        CONFIG.to_owned() + "[[listen]]\naddress = \"{ip}:3479\"\nprotocols = [\"udp\", \"tcp\"]\n";
    let peer = peer(process.ip);
    let at = peer.local_addr().unwrap();
    let mut stays = process.client();
    let stays_at = stays.allocate();
    stays.bind(CHANNEL, at);
    // Twice, so that the slots of the first round are used again.
    for _ in 0..2 {
        process.reload(&more);
        let mut datagrams: Vec<_> = (0..8)
            .map(|_| {
                let mut client = process.client_on(3479);
                let relayed = client.allocate();
                client.bind(CHANNEL, at);
                (client, relayed)
            })
            .collect();
        let mut stream = process.tcp_client_on(3479);
        let stream_at = stream.allocate();
        stream.bind(CHANNEL, at);
        for (client, relayed) in &mut datagrams {
            client.send_channel(CHANNEL, b"there");
            assert_eq!(receive(&peer), (b"there".to_vec(), *relayed));
        }
        process.until_live(10);

        process.reload(CONFIG);
        // Nobody could answer its UDP clients any more; connections are there and stay.
        process.until_live(2);
        assert!(
            process.log().contains("listener_closed"),
            "{}",
            process.log()
        );
        for (_, relayed) in &datagrams {
            UdpSocket::bind(relayed).expect("its relayed address is free");
        }
        stream.send_channel(CHANNEL, b"still there");
        assert_eq!(receive(&peer), (b"still there".to_vec(), stream_at));
        peer.send_to(b"and back", stream_at).unwrap();
        assert_eq!(stream.expect_channel(CHANNEL), b"and back");
        TcpStream::connect((process.ip, 3479)).unwrap_err();
        until("the UDP port is free", || {
            UdpSocket::bind((process.ip, 3479)).is_ok()
        });
        stays.send_channel(CHANNEL, b"never moved");
        assert_eq!(receive(&peer), (b"never moved".to_vec(), stays_at));
        drop(stream);
        process.until_live(1);
    }
}

#[test]
fn a_listener_changes_what_it_speaks_without_closing() {
    let process = Process::start(CONFIG);
    let mut stream = process.tcp_client_on(3478);
    stream.allocate();
    let mut datagrams = process.client();
    datagrams.allocate();
    process.reload(&CONFIG.replace(r#"["udp", "tcp", "http"]"#, r#"["udp", "http"]"#));
    // The port is open; TURN over TCP is not spoken on it any more by who comes now.
    let mut refused = process.tcp_client_on(3478);
    refused.send(&Request::allocate().bytes());
    let ended = refused.next(PATIENCE).map(drop);
    assert!(
        matches!(ended, Err(Ended::Closed | Ended::Cut)),
        "{ended:?}"
    );
    assert_eq!(stream.ask_signed(Request::refresh(600)).code(), 0);
    process.reload(&CONFIG.replace(r#"["udp", "tcp", "http"]"#, r#"["tcp"]"#));
    process.until_live(1);
    process.tcp_client_on(3478).allocate();
    process.reload(CONFIG);
    process.client().allocate();
}

#[test]
fn relay_ports_and_addresses_change_for_newcomers_only() {
    // Peers are each other's relayed addresses, which are reached in memory and otherwise refused here.
    // The server's own looks take a port for a moment, and here there are two.
    let config = CONFIG.replace("allow = [\"loopback\"]", "") + "canary = \"0\"\n";
    let process = Process::start(&config);
    let mut old = process.client();
    let old_at = old.allocate();
    let mut older = process.client();
    let older_at = older.allocate();
    old.bind(CHANNEL + 1, older_at);
    older.bind(CHANNEL + 1, old_at);
    assert!(old_at.port() >= 49_152);
    let narrow = config.replace("[auth]", "ports = \"20000-20001\"\n[auth]");
    process.reload(&narrow);
    let mut new = process.client();
    let new_at = new.allocate();
    let mut last = process.client();
    last.allocate();
    assert!((20_000..=20_001).contains(&new_at.port()), "{new_at}");
    assert_eq!(process.client().try_allocate().code(), 508);
    // In memory from one to the other, whatever configuration made them.
    old.bind(CHANNEL, new_at);
    new.bind(CHANNEL, old_at);
    old.send_channel(CHANNEL, b"from old to new");
    assert_eq!(new.expect_channel(CHANNEL), b"from old to new");
    new.send_channel(CHANNEL, b"from new to old");
    assert_eq!(old.expect_channel(CHANNEL), b"from new to old");
    let among_old = |old: &mut Client, older: &mut Client| {
        old.send_channel(CHANNEL + 1, b"among old ones");
        assert_eq!(older.expect_channel(CHANNEL + 1), b"among old ones");
        older.bind(CHANNEL + 1, old_at);
    };
    among_old(&mut old, &mut older);
    // Behind 1:1 NAT from now on.
    let mapped = narrow.replace("[auth]", "external_address = \"203.0.113.7\"\n[auth]");
    process.reload(&mapped);
    last.release();
    let mut outside = process.client();
    assert_eq!(outside.allocate().ip().to_string(), "203.0.113.7");
    assert_eq!(new.ask_signed(Request::refresh(600)).code(), 0);
    among_old(&mut old, &mut older);
    process.reload(&config);
    among_old(&mut old, &mut older);
    assert!(process.client().allocate().port() >= 49_152);
    process.until_live(5);
}

#[test]
fn quotas_hold_from_the_reload_on() {
    let process = Process::start(CONFIG);
    let mut first = process.client();
    first.allocate();
    let mut second = process.client();
    second.allocate();
    process.reload(&(CONFIG.to_owned() + "[limits]\nallocations_per_user = 1\n"));
    assert_eq!(process.client().try_allocate().code(), 486);
    assert_eq!(first.ask_signed(Request::refresh(600)).code(), 0);
    first.release();
    assert_eq!(process.client().try_allocate().code(), 486);
    second.release();
    process.client().allocate();
    process.reload(CONFIG);
    process.client().allocate();
}

#[test]
fn who_is_taken_out_of_the_configuration_is_out_at_once() {
    let process = Process::start(CONFIG);
    let mut alice = process.client();
    let relayed = alice.allocate();
    let mut limited = process.client();
    let expires = Clock.now().unix_secs() + 3600;
    let (user, password) = rest::mint(&Secret::new("north".into()), Some("carol"), expires);
    limited.login(&user, &password);
    limited.allocate();
    let mut bob = process.client();
    bob.login("bob", "builder");
    bob.allocate();
    process.reload(
        &CONFIG
            .replace("alice = \"wonderland\", ", "")
            .replace("north", "south"),
    );
    process.until_live(2);
    UdpSocket::bind(relayed).expect("its relayed address is free");
    assert!(process.log().contains("\"revoked\""), "{}", process.log());
    let signer: Signer = alice.signer.clone().unwrap();
    let refused = alice.ask(&Request::refresh(600).sign(&signer));
    assert_eq!(refused.code(), 401);
    for client in [&mut bob, &mut limited] {
        assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    }
    let mut late = process.client();
    late.login(&user, &password);
    let signer = late.signer.clone().unwrap();
    assert_eq!(late.ask(&Request::allocate().sign(&signer)).code(), 401);
}

#[test]
fn a_peer_that_the_new_policy_refuses_is_cut_off() {
    let process = Process::start(CONFIG);
    // On an address that is not relayed from: those are peers under any policy.
    let peer = peer(std::net::Ipv4Addr::LOCALHOST);
    let mut client = process.client();
    let relayed = client.allocate();
    client.bind(CHANNEL, peer.local_addr().unwrap());
    client.send_channel(CHANNEL, b"before");
    assert_eq!(receive(&peer), (b"before".to_vec(), relayed));
    process.reload(&CONFIG.replace("allow = [\"loopback\"]", ""));
    client.send_channel(CHANNEL, b"after");
    client.send_indication(peer.local_addr().unwrap(), b"after");
    peer.send_to(b"after", relayed).unwrap();
    until("all three are refused", || {
        let (_, live) = process.http("GET", "/api/v1/allocations");
        live[0]["permissions"] == 0 && live[0]["channels"] == 0
    });
    // A request and its answer come behind whatever had still been relayed.
    assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
    let next = client.next(std::time::Duration::from_millis(200)).map(drop);
    assert_eq!(next, Err(Ended::Silent));
    peer.set_nonblocking(true).unwrap();
    peer.recv_from(&mut [0; 64]).unwrap_err();
}

#[test]
fn the_admin_listener_moves_and_orders_come_from_nobody_else() {
    let process = Process::start(CONFIG);
    for header in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://localhost:8080\r\n",
    ] {
        for path in ["/api/v1/reload", "/api/v1/drain"] {
            let (status, _) = http_with(process.admin(), "POST", path, header);
            assert_eq!(status, 403, "{header} {path}");
        }
    }
    assert_eq!(process.http("GET", "/api/v1/reload").0, 405);
    let (status, _) = process.http("GET", "/ready");
    assert_eq!(status, 200);
    // The answer still comes by the way of the question.
    process.reload(&CONFIG.replace("9641", "9642"));
    TcpStream::connect(process.admin()).unwrap_err();
    let moved = (process.ip, 9642).into();
    assert_eq!(super::process::http(moved, "GET", "/ready").0, 200);
    process.write(CONFIG);
    assert_eq!(super::process::http(moved, "POST", "/api/v1/reload").0, 200);
    assert_eq!(process.http("GET", "/ready").0, 200);
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let process = Process::start(CONFIG);
    let mut client = process.client();
    client.login("alice", "wonderland");
    assert!(!process.log().contains("request refused"));
    process.reload(&(CONFIG.to_owned() + "[log]\nlevel = \"debug\"\n"));
    process.client().login("alice", "wonderland");
    until("refusals are logged", || {
        process.log().contains("request refused")
    });
}

#[test]
fn the_ice_configuration_service_tells_what_is_in_effect() {
    let process = Process::start(&(key("first")));
    let config = |secret: &str| {
        let header = format!("Authorization: Bearer {secret}\r\n");
        http_with(
            (process.ip, 3478).into(),
            "GET",
            "/api/webrtc/config",
            &header,
        )
    };
    let first = "the first key of this test";
    let second = "the second key of this test";
    let (status, before) = config(first);
    assert_eq!(status, 200, "{before}");
    let more = "[[listen]]\naddress = \"{ip}:3479\"\nprotocols = [\"udp\"]\n";
    process.reload(&(key("second").replace("north", "south") + more));
    assert_eq!(config(first).0, 401);
    let (status, after) = config(second);
    assert_eq!(status, 200, "{after}");
    assert!(after.to_string().contains(":3479"), "{after}");
    assert!(!before.to_string().contains(":3479"), "{before}");
    // What it mints is what the server takes.
    let server = &after["iceServers"][0];
    let text = |name: &str| server[name].as_str().unwrap();
    let mut client = process.client_on(3479);
    client.login(text("username"), text("credential"));
    client.allocate();
}

fn key(which: &str) -> String {
    CONFIG.to_owned()
        + &format!(
            "[[api.keys]]\nid = \"web\"\nsecret = \"the {which} key of this test\"\nttl = \"1h\"\n"
        )
}

#[test]
fn bandwidth_is_limited_from_the_reload_on_and_freed_again() {
    let process = Process::start(CONFIG);
    let peer = peer(process.ip);
    let mut client = process.client();
    let relayed = client.allocate();
    client.bind(CHANNEL, peer.local_addr().unwrap());
    let mut burst = |process: &Process| {
        let packets = |process: &Process| {
            let (_, live) = process.http("GET", "/api/v1/allocations");
            live[0]["packets"]["to_peer"].as_u64().unwrap()
        };
        let before = packets(process);
        for _ in 0..40 {
            client.send_channel(CHANNEL, &[7; 1000]);
        }
        // Its answer comes behind all of them.
        assert_eq!(client.ask_signed(Request::refresh(600)).code(), 0);
        packets(process) - before
    };
    assert_eq!(burst(&process), 40);
    process.reload(&(CONFIG.to_owned() + "[limits]\nbandwidth_per_allocation = \"32kbit\"\n"));
    assert!(burst(&process) < 40);
    process.reload(CONFIG);
    assert_eq!(burst(&process), 40);
    assert_eq!(receive(&peer), (vec![7; 1000], relayed));
}

#[test]
fn a_file_of_users_is_read_again_when_it_changes() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("users");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("# as a script wrote it\n\ncarol:looking:glass\ndave:rabbit\n");
    let named = format!("users_file = \"{}\"\nsecrets", path.display());
    let process = Process::start(&CONFIG.replacen("secrets", &named, 1));
    let allocate = |user: &str, password: &str| {
        let mut client = process.client();
        client.login(user, password);
        let signer = client.signer.clone().unwrap();
        let code = client.ask(&Request::allocate().sign(&signer)).code();
        (client, code)
    };
    let (mut carol, code) = allocate("carol", "looking:glass");
    assert_eq!(code, 0);
    let (mut dave, code) = allocate("dave", "rabbit");
    assert_eq!(code, 0);
    assert_eq!(allocate("erin", "hatter").1, 401);
    // Looked at once, so that it is known.
    std::thread::sleep(std::time::Duration::from_millis(300));

    // Nobody is let in or thrown out by a file that cannot be understood.
    write("erin hatter\n");
    until("it is told", || process.log().contains("users:1: no colon"));
    assert!(!process.log().contains("hatter"));
    assert_eq!(dave.ask_signed(Request::refresh(600)).code(), 0);

    write("carol:looking:glass\nerin:hatter\n");
    until("erin is known", || allocate("erin", "hatter").1 == 0);
    assert_eq!(carol.ask_signed(Request::refresh(600)).code(), 0);
    let signer = dave.signer.clone().unwrap();
    assert_eq!(dave.ask(&Request::refresh(600).sign(&signer)).code(), 401);
    assert!(process.log().contains("\"revoked\""), "{}", process.log());
}
