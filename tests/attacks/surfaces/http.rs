//! HTTP: requests that are two, headers and bodies without end, names and paths that are not ours.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use turnix::base::Family;
use turnix::config::{Config, Sources};

use super::super::client::Client;
use super::super::server::{BOTH, PATIENCE, Server, now};
use super::{answers, connect, exchange, until_closed};

fn server() -> Server {
    Server::with(BOTH, &["http.admin='127.0.0.1:0'"])
}

/// The port of strangers and the admin listener.
fn ports(server: &Server) -> [SocketAddr; 2] {
    [server.address(Family::V4), server.admin()]
}

/// What is said to `request` until the connection is closed, and the codes of all answers in it.
#[track_caller]
fn ask(to: SocketAddr, request: impl AsRef<[u8]>) -> (Vec<u16>, String) {
    let said = String::from_utf8(exchange(to, request.as_ref())).unwrap();
    let codes = (said.split("HTTP/1.1 ").skip(1))
        .map(|answer| answer[..3].parse().unwrap())
        .collect();
    (codes, said.to_lowercase())
}

#[test]
fn one_request_is_never_two() {
    // What a proxy would take for the body of the first request.
    const SMUGGLED: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let server = server();
    let length = SMUGGLED.len() + 5;
    let heads: Vec<(&str, String)> = vec![
        ("both lengths", format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("both, the other way round", format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n")),
        ("chunked alone", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("chunked by another name", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into()),
        ("chunked and then not", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into()),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n".into()),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n".into()),
        ("a tab before the name", "X: y\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("a folded header", "X: y\r\n z\r\nContent-Length: 0\r\n\r\n".into()),
        ("a line feed that begins a header", "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("a carriage return that begins a header", "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("nothing in a header", "X: y\0\r\nContent-Length: 0\r\n\r\n".into()),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n")),
        ("two lengths in one", format!("Content-Length: 0, {length}\r\n\r\n")),
        ("a length with a sign", "Content-Length: +0\r\n\r\n".into()),
        ("a negative length", "Content-Length: -1\r\n\r\n".into()),
        ("a length in hexadecimal", "Content-Length: 0x0\r\n\r\n".into()),
        ("a length beyond all numbers", "Content-Length: 18446744073709551616\r\n\r\n".into()),
        ("an empty length", "Content-Length: \r\n\r\n".into()),
        ("a chunk beyond all numbers", "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n".into()),
        ("a chunk of no size", "Transfer-Encoding: chunked\r\n\r\n;x\r\n\r\n0\r\n\r\n".into()),
        ("an upgrade", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
    ];
    for to in ports(&server) {
        for method in ["GET", "POST"] {
            for (what, head) in &heads {
                let request =
                    format!("{method} /nothing HTTP/1.1\r\nHost: localhost\r\n{head}{SMUGGLED}");
                let (codes, said) = ask(to, request);
                assert!(codes.len() <= 1, "{what} by {method}: {said}");
                assert!(
                    codes.iter().all(|code| *code >= 400),
                    "{what} by {method}: {said}"
                );
            }
        }
        let old = format!(
            "POST /nothing HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
        );
        assert!(ask(to, old).0.len() <= 1);
        // Requests that are two are two.
        let plain = "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(ask(to, format!("{plain}{SMUGGLED}")).0, [200, 200]);
    }
}

#[test]
fn headers_are_bounded() {
    let server = server();
    let ended = "Connection: close\r\n\r\n";
    for to in ports(&server) {
        let head = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
        let with = |rest: String| ask(to, format!("{head}{rest}{ended}"));
        assert_eq!(with(format!("X: {}\r\n", "x".repeat(7000))).0, [200]);
        assert_eq!(with(format!("X: {}\r\n", "x".repeat(9000))).0, [431]);
        assert_eq!(with("X: y\r\n".repeat(200)).0, [431]);
        let path = format!(
            "GET /{} HTTP/1.1\r\nHost: localhost\r\n{ended}",
            "a".repeat(9000)
        );
        assert!(ask(to, path).0.iter().all(|code| [414, 431].contains(code)));

        // Without end: refused while it comes.
        let mut connection = connect(to);
        connection.write_all(head.as_bytes()).unwrap();
        // The kernel takes some megabytes before anybody reads.
        let sent = (0..65_536).take_while(|_| connection.write_all(&[b'x'; 1024]).is_ok());
        assert!(sent.count() < 65_536, "64 MiB of header were taken");
    }
}

#[test]
fn bodies_are_bounded_and_not_waited_for() {
    let server = server();
    for to in ports(&server) {
        for path in ["/health", "/nothing"] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
            for (rest, expected) in [
                ("Content-Length: 10000000000\r\n\r\n", &[413][..]),
                (
                    "Content-Length: 65537\r\nExpect: 100-continue\r\n\r\n",
                    &[413],
                ),
                // Announced and never sent.
                ("Content-Length: 1000\r\n\r\n", &[404, 405]),
                ("Content-Length: 1000\r\n\r\nhalf", &[404, 405]),
                ("Transfer-Encoding: chunked\r\n\r\n", &[404, 405]),
                (
                    "Transfer-Encoding: chunked\r\n\r\nffff\r\nhalf",
                    &[404, 405],
                ),
            ] {
                let begin = now();
                let (codes, said) = ask(to, format!("{head}{rest}"));
                assert!(
                    codes.len() == 1 && expected.contains(&codes[0]),
                    "{rest}: {said}"
                );
                assert!(now() - begin < Duration::from_secs(5), "{rest}");
            }
            // A body without end is not taken.
            let mut connection = connect(to);
            (connection.write_all(head.as_bytes()))
                .and_then(|()| connection.write_all(b"Transfer-Encoding: chunked\r\n\r\n"))
                .unwrap();
            let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
            let sent = (0..65_536).take_while(|_| connection.write_all(chunk.as_bytes()).is_ok());
            assert!(sent.count() < 65_536, "64 MiB of body were taken");
        }
    }
}

#[test]
fn a_request_that_never_ends_is_cut_off_and_holds_nobody_up() {
    let server = server();
    let mut udp = Client::udp(&server);
    let waiting: Vec<_> = (ports(&server).into_iter())
        .map(|to| {
            let mut connection = connect(to);
            connection
                .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
                .unwrap();
            std::thread::spawn(move || {
                let begin = now();
                // A header a second, each of them whole.
                while connection.write_all(b"X: y\r\n").is_ok() {
                    std::thread::sleep(Duration::from_secs(1));
                    assert!(now() - begin < 2 * PATIENCE, "it is still listened to");
                }
            })
        })
        .collect();
    while waiting.iter().any(|thread| !thread.is_finished()) {
        answers(&mut udp);
        std::thread::sleep(Duration::from_millis(100));
    }
    for thread in waiting {
        thread.join().unwrap();
    }
}

#[test]
fn the_admin_listener_answers_to_its_own_name_only() {
    let server = server();
    let to = server.admin();
    let get = |host: &str| {
        ask(
            to,
            format!("GET /api/v1/allocations HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        )
        .0
    };
    for own in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "localhost:9641",
        &to.to_string(),
    ] {
        assert_eq!(get(&format!("Host: {own}\r\n")), [200], "{own}");
    }
    for foreign in [
        "rebound.example",
        "rebound.example:9641",
        "localhost.rebound.example",
        "127.0.0.1.rebound.example",
        "192.0.2.1",
        "0.0.0.0",
        "[::]",
        "localhost@rebound.example",
        "2130706433",
        "127.1",
    ] {
        assert_eq!(get(&format!("Host: {foreign}\r\n")), [403], "{foreign}");
    }
    assert_eq!(get(""), [400]);
    assert_eq!(get("Host: localhost\r\nHost: localhost\r\n"), [400]);
    assert_eq!(get("Host: localhost\r\nHost: rebound.example\r\n"), [400]);
}

#[test]
fn a_page_from_elsewhere_may_not_ask() {
    let server = server();
    for to in ports(&server) {
        for request in [
            "OPTIONS /api/v1/allocations/0-0-0 HTTP/1.1\r\nAccess-Control-Request-Method: DELETE\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "OPTIONS /api/webrtc/config HTTP/1.1\r\nAccess-Control-Request-Method: GET\r\n",
            "GET /health HTTP/1.1\r\n",
        ] {
            let (codes, said) = ask(
                to,
                format!(
                    "{request}Host: localhost\r\nOrigin: https://page.example\r\nConnection: close\r\n\r\n"
                ),
            );
            assert_eq!(codes.len(), 1, "{said}");
            assert!(request.starts_with("GET") || codes[0] >= 400, "{said}");
            assert!(!said.contains("access-control-"), "{said}");
        }
    }
    // Without asking first, a page may send what it cannot read the answer of; its browser says where it is from.
    let mut client = Client::udp(&server);
    client.allocate();
    let own = server.admin().to_string();
    let end = |origin: &str| {
        let head = "DELETE /api/v1/users/alice/allocations HTTP/1.1\r\nHost: localhost\r\n";
        let (codes, _) = ask(
            server.admin(),
            format!("{head}{origin}Connection: close\r\n\r\n"),
        );
        codes[0]
    };
    for origin in [
        "https://page.example",
        "null",
        "https://localhost.page.example",
        "http://localhost@page.example",
        "localhost",
        "file://",
    ] {
        assert_eq!(end(&format!("Origin: {origin}\r\n")), 403, "{origin}");
        let both = format!("Origin: http://localhost\r\nOrigin: {origin}\r\n");
        assert_eq!(end(&both), 403, "{origin}");
    }
    assert_eq!(server.live(), 1);
    assert_eq!(end(&format!("Origin: http://{own}\r\n")), 200);
    assert_eq!(server.live(), 0);
}

#[test]
fn only_what_is_routed_is_answered() {
    let server = server();
    let [public, admin] = ports(&server);
    let request = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    };
    for to in [public, admin] {
        for path in [
            "/../../../../etc/passwd",
            "/test/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc%2fpasswd",
            "/..%c0%af..%c0%afetc/passwd",
            "/..\\..\\etc\\passwd",
            "//etc/passwd",
            "/health/",
            "/health%00",
            "/HEALTH",
            "/.env",
            "/.git/config",
            "file:///etc/passwd",
        ] {
            let (codes, said) = ask(to, request("GET", path));
            assert!(
                codes.len() == 1 && [400, 403, 404].contains(&codes[0]),
                "{path}: {said}"
            );
            assert!(!said.contains("root:"), "{path}: {said}");
        }
        // The public port closes on words that no request of its own begins with.
        for method in [
            "BREW",
            "PROPFIND",
            "TRACE",
            "CONNECT",
            "get",
            "G\u{e9}T",
            &"A".repeat(5000),
        ] {
            let (codes, said) = ask(to, request(method, "/health"));
            assert!(
                codes.iter().all(|code| (400..500).contains(code)),
                "{method}: {said}"
            );
            assert!(!said.contains("\"ok\""), "{method}: {said}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(ask(to, request(method, "/health")).0, [405], "{method}");
        }
        for version in [
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/2.0",
            "HTTP/9",
            "HTTPS/1.1",
            "",
        ] {
            let (codes, said) = ask(
                to,
                format!("GET /health {version}\r\nHost: localhost\r\n\r\n"),
            );
            assert!(codes.iter().all(|code| *code >= 400), "{version}: {said}");
        }
    }
    // What the admin listener tells is not told to strangers.
    for path in ["/metrics", "/live", "/ready", "/api/v1/allocations"] {
        assert_eq!(ask(public, request("GET", path)).0, [404], "{path}");
        assert_eq!(ask(admin, request("GET", path)).0, [200], "{path}");
    }
    assert_eq!(
        ask(public, request("DELETE", "/api/v1/users/alice/allocations")).0,
        [404]
    );
}

#[test]
fn http2_nonsense_ends_the_connection() {
    let server = server();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A header block that goes on and on: HEADERS without END_HEADERS, then CONTINUATION frames.
    let mut endless = vec![0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
    for _ in 0..200 {
        endless.extend([0, 0x10, 0, 9, 0, 0, 0, 0, 1]);
        // Literal fields without indexing, a name and a value of one byte.
        endless.extend([0, 1, b'x', 1, b'y'].repeat(819));
        endless.push(0);
    }
    // Streams opened and reset at once.
    let mut resets = Vec::new();
    for stream in (1..20_001u32).step_by(2) {
        let id = stream.to_be_bytes();
        // GET http / with an authority from the static table's names.
        resets.extend([
            0, 0, 6, 1, 5, id[0], id[1], id[2], id[3], 0x82, 0x86, 0x84, 0x41, 1, b'x',
        ]);
        resets.extend([0, 0, 4, 3, 0, id[0], id[1], id[2], id[3], 0, 0, 0, 8]);
    }
    let cases: [(&str, Vec<u8>); 4] = [
        (
            "a frame that is too long",
            vec![0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1],
        ),
        ("data of no stream", vec![0, 0, 1, 0, 1, 0, 0, 0, 5, 0]),
        ("headers without end", endless),
        ("streams reset at once", resets),
    ];
    let mut udp = Client::udp(&server);
    for to in ports(&server) {
        for (what, frames) in &cases {
            let begin = now();
            let mut connection = connect(to);
            let bytes = [&preface[..], &settings, frames].concat();
            let mut reading = connection.try_clone().unwrap();
            let _ = connection.write_all(&bytes);
            let socket = connection.try_clone().unwrap();
            until_closed(&mut reading, &socket, PATIENCE)
                .unwrap_or_else(|| panic!("{what} goes on"));
            assert!(
                now() - begin < Duration::from_secs(8),
                "{what} was listened to"
            );
            answers(&mut udp);
        }
    }
}

#[test]
fn the_admin_listener_stays_on_loopback() {
    let load = |admin: &str| {
        Config::load(&Sources {
            set: vec![
                "auth.secrets=[\"s3cret\"]".into(),
                format!("http.admin='{admin}'"),
            ],
            ..Sources::default()
        })
    };
    for public in [
        "0.0.0.0:9641",
        "[::]:9641",
        "192.0.2.1:9641",
        "10.0.0.1:9641",
        "[2001:db8::1]:9641",
        "[fe80::1]:9641",
        "[::ffff:192.0.2.1]:9641",
        "localhost:9641",
        "9641",
    ] {
        let problems = load(public).expect_err(public).to_string();
        assert!(problems.contains("http.admin"), "{problems}");
    }
    for own in [
        "127.0.0.1:9641",
        "127.9.9.9:1",
        "[::1]:9641",
        "[::ffff:127.0.0.1]:9641",
        "",
    ] {
        load(own).unwrap_or_else(|problems| panic!("{own}: {problems}"));
    }
}
