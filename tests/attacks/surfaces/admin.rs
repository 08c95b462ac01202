//! The admin listener where others can reach it: TLS, a token, and the same bounds as everywhere.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use turnix::base::Clock;
use turnix::config::{Config, Sources};
use turnix::stream::certificates;

use super::super::client::Client;
use super::super::common::wire::Request;
use super::super::server::{BOTH, PATIENCE, Server, now};
use super::{answers, connect, exchange, until_closed};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn server() -> Server {
    Server::with(
        BOTH,
        &[
            "http.admin='127.0.0.1:0'",
            "http.tls=true",
            &format!("http.token={TOKEN}"),
            "http.hosts=[\"turn.example.org\", \"203.0.113.9\"]",
        ],
    )
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn tls(server: &Server, alpn: &[&[u8]]) -> Tls {
    let to = server.admin();
    let mut config = (*server.tls).clone();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::IpAddress(to.ip().into());
    StreamOwned::new(
        ClientConnection::new(Arc::new(config), name).unwrap(),
        connect(to),
    )
}

/// Everything that is said to `bytes` over TLS until the connection is closed.
#[track_caller]
fn say(server: &Server, bytes: &[u8]) -> String {
    let mut stream = tls(server, &[]);
    let _ = stream.write_all(bytes);
    let socket = stream.sock.try_clone().unwrap();
    let said = until_closed(&mut stream, &socket, PATIENCE).expect("closed");
    String::from_utf8(said).unwrap()
}

/// Code and whole answer of a request with further `headers`, each with its end.
#[track_caller]
fn ask(server: &Server, method: &str, path: &str, headers: &str) -> (u16, String) {
    let host = if headers.contains("Host: ") {
        ""
    } else {
        "Host: localhost\r\n"
    };
    let request = format!("{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n");
    let said = say(server, request.as_bytes());
    let code = said.get(9..12).and_then(|code| code.parse().ok());
    (code.unwrap_or_else(|| panic!("no answer: {said:?}")), said)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn without_the_token_it_says_whether_the_server_is_well_and_nothing_else() {
    let server = server();
    let mut client = Client::udp(&server);
    client.allocate();
    for path in ["/live", "/ready", "/health"] {
        let (code, said) = ask(&server, "GET", path, "");
        assert_eq!(code, 200, "{path}");
        assert!(
            said.ends_with("\r\n\r\n{\"status\":\"ok\"}"),
            "{path}: {said}"
        );
        let (code, said) = ask(&server, "GET", path, &bearer(TOKEN));
        assert_eq!(code, 200, "{path}");
        assert!(said.contains("\"allocations\":1"), "{path}: {said}");
        // A bare check is no way of guessing unseen.
        assert_eq!(ask(&server, "GET", path, &bearer("guess")).0, 401, "{path}");
    }
    // The dashboard asks for the token itself: a page that is the same whoever asks, and whatever the server does.
    let (code, page) = ask(&server, "GET", "/", "");
    assert_eq!(code, 200);
    assert!(
        !page.contains("alice")
            && !page.contains(TOKEN)
            && !page.contains(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(ask(&server, "GET", "/", &bearer("guess")).0, 401);
    assert_eq!(ask(&server, "POST", "/", "").0, 405);
    let doors = [
        ("GET", "/metrics"),
        ("GET", "/api/v1/allocations"),
        ("DELETE", "/api/v1/allocations/0-0-0"),
        ("DELETE", "/api/v1/users/alice/allocations"),
        ("POST", "/api/v1/reload"),
        ("GET", "/api/v1/events"),
        ("GET", "/api/v1/allocations?user=alice"),
        ("GET", "/api/v1/allocations/0-0-0"),
        ("GET", "/nothing"),
        ("GET", "/live/"),
        ("GET", "/health/../metrics"),
        ("GET", "//metrics"),
    ];
    for (method, path) in doors {
        for shown in [
            String::new(),
            bearer(""),
            bearer(&TOKEN[1..]),
            bearer(&format!("{TOKEN}0")),
            bearer(&TOKEN.to_uppercase()),
            format!("Authorization: {TOKEN}\r\n"),
            format!("Authorization: Basic {TOKEN}\r\n"),
            format!("{}{}", bearer(TOKEN), bearer("guess")),
            format!("Cookie: token={TOKEN}\r\n"),
        ] {
            let (code, said) = ask(&server, method, path, &shown);
            assert_eq!(code, 401, "{method} {path} {shown}");
            assert!(
                said.to_lowercase().contains("www-authenticate: bearer"),
                "{said}"
            );
            assert!(!said.contains("alice") && !said.contains("turn_"), "{said}");
        }
    }
    assert_eq!(
        ask(&server, "GET", &format!("/metrics?token={TOKEN}"), "").0,
        401
    );
    assert_eq!(server.live(), 1, "nobody ended it");

    let (code, page) = ask(&server, "GET", "/metrics", &bearer(TOKEN));
    assert_eq!(code, 200);
    let count = |reason: &str| {
        let name = format!("turn_admin_auth_failures_total{{reason=\"{reason}\"}} ");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name.as_str()));
        line.expect("a series").parse::<u32>().unwrap()
    };
    // Of what is shown at each door, the first and the last hold no token.
    let doors = doors.len() as u32;
    assert_eq!(count("missing"), 2 * doors + 1);
    assert_eq!(count("wrong"), 7 * doors + 4);
    let (code, ended) = ask(
        &server,
        "DELETE",
        "/api/v1/users/alice/allocations",
        &bearer(TOKEN),
    );
    assert_eq!(code, 200);
    assert!(ended.ends_with("{\"ended\":1}"), "{ended}");
}

#[test]
fn it_speaks_https_and_nothing_else() {
    let server = server();
    let plain = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n",
        bearer(TOKEN)
    );
    assert_eq!(
        exchange(server.admin(), plain.as_bytes()),
        b"",
        "nothing in plain text"
    );
    assert_eq!(exchange(server.admin(), &Request::binding().bytes()), b"");
    assert_eq!(
        say(&server, &Request::binding().bytes()),
        "",
        "no TURN inside"
    );
    // Nor is it offered: a client that insists gets no handshake.
    let mut stream = tls(&server, &[b"stun.turn"]);
    assert!(
        stream
            .write_all(b"x")
            .and_then(|()| stream.read(&mut [0]).map(drop))
            .is_err()
    );
    let mut stream = tls(&server, &[b"h2", b"http/1.1"]);
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "SETTINGS");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn it_is_asked_by_its_own_names() {
    let server = server();
    let get = |host: &str| {
        let headers = format!("Host: {host}\r\n{}", bearer(TOKEN));
        ask(&server, "GET", "/api/v1/allocations", &headers).0
    };
    let own = server.admin().to_string();
    for known in [
        "turn.example.org",
        "TURN.example.org:9641",
        "203.0.113.9",
        "127.0.0.1",
        &own,
    ] {
        assert_eq!(get(known), 200, "{known}");
    }
    for foreign in [
        "rebound.example",
        "turn.example.org.rebound.example",
        "203.0.113.10",
        "[2001:db8::1]",
    ] {
        assert_eq!(get(foreign), 403, "{foreign}");
    }
}

#[test]
fn no_page_from_elsewhere_is_answered() {
    let server = server();
    for shown in [String::new(), bearer(TOKEN)] {
        for path in [
            "/metrics",
            "/live",
            "/health",
            "/api/v1/allocations",
            "/api/v1/users/a/allocations",
            "*",
        ] {
            let headers = format!(
                "Origin: https://page.example\r\nAccess-Control-Request-Method: DELETE\r\n\
                 Access-Control-Request-Headers: authorization\r\n{shown}"
            );
            for method in ["OPTIONS", "GET"] {
                let (code, said) = ask(&server, method, path, &headers);
                assert!(method == "GET" || code >= 400, "{said}");
                assert!(!said.to_lowercase().contains("access-control-"), "{said}");
            }
        }
    }
}

#[test]
fn bounds_hold_inside_tls() {
    let server = server();
    let mut udp = Client::udp(&server);
    let head = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
    for (what, rest, code) in [
        (
            "a header",
            format!("X: {}\r\n\r\n", "x".repeat(9000)),
            "431",
        ),
        ("headers", format!("{}\r\n", "X: y\r\n".repeat(200)), "431"),
        (
            "a body",
            "Content-Length: 10000000000\r\n\r\n".into(),
            "413",
        ),
    ] {
        let said = say(&server, format!("{head}{rest}").as_bytes());
        assert_eq!(said.get(9..12), Some(code), "{what}: {said}");
    }
    // Connections that go on for ever: silent, half a handshake, a handshake and no request, a header without end.
    let begin = now();
    let hello = super::tls::client_hello([3, 3], &super::tls::extensions());
    let mut waiting = Vec::new();
    for opening in [&b""[..], &hello[..3], &hello[..hello.len() / 2], &hello] {
        let mut connection = connect(server.admin());
        connection.write_all(opening).unwrap();
        waiting.push(std::thread::spawn(move || {
            let socket = connection.try_clone().unwrap();
            until_closed(&mut connection, &socket, 2 * PATIENCE).is_some()
        }));
    }
    for opening in ["", head] {
        let mut stream = tls(&server, &[]);
        stream.conn.complete_io(&mut stream.sock).unwrap();
        stream.write_all(opening.as_bytes()).unwrap();
        waiting.push(std::thread::spawn(move || {
            let socket = stream.sock.try_clone().unwrap();
            until_closed(&mut stream, &socket, 2 * PATIENCE).is_some()
        }));
    }
    while waiting.iter().any(|thread| !thread.is_finished()) {
        answers(&mut udp);
        assert_eq!(ask(&server, "GET", "/health", "").0, 200);
        std::thread::sleep(Duration::from_millis(500));
    }
    for thread in waiting {
        assert!(thread.join().unwrap(), "one is still open");
    }
    assert!(now() - begin >= Duration::from_secs(5), "all at once");
}

#[test]
fn beyond_loopback_it_takes_both_tls_and_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let signed =
        certificates::self_signed(&["localhost".to_owned()], Clock.now().unix_secs()).unwrap();
    std::fs::write(path("chain"), &signed.certificate_pem).unwrap();
    std::fs::write(path("key"), signed.key_pem.expose()).unwrap();
    std::fs::write(path("token"), format!("{TOKEN}\n")).unwrap();
    std::fs::write(path("short"), "short\n").unwrap();
    let certificate = format!(
        "tls.certificate={}\ntls.key={}",
        path("chain").display(),
        path("key").display()
    );
    let load = |set: &str| {
        let set = (set.lines().chain(certificate.lines()))
            .map(|line| line.trim().to_owned())
            .chain(["auth.secrets=[\"s3cret\"]".to_owned()])
            .collect();
        Config::load(&Sources {
            set,
            ..Sources::default()
        })
        .map_err(|problems| problems.to_string())
    };
    let token = format!("http.token={TOKEN}");
    let file = format!("http.token_file={}", path("token").display());
    for public in [
        "0.0.0.0:9641",
        "[::]:9641",
        "192.0.2.1:9641",
        "[::ffff:192.0.2.1]:1",
    ] {
        let to: SocketAddr = public.parse().unwrap();
        let admin = format!("http.admin={public}");
        for shown in [&token, &file] {
            let config = load(&format!("{admin}\nhttp.tls=true\n{shown}")).unwrap();
            assert_eq!(config.admin, Some(to));
            assert!(config.http.tls && config.http.token.is_some());
        }
        for (half, missing) in [
            ("http.tls=true".to_owned(), "there is no token"),
            (token.clone(), "there is no TLS"),
            (file.clone(), "there is no TLS"),
            ("http.tls=false".to_owned(), "neither TLS nor a token"),
        ] {
            // Listeners speak TLS, so that the certificate itself is no problem.
            let problems = load(&format!("{admin}\n{half}")).unwrap_err();
            assert!(
                problems.contains("http.admin") && problems.contains(missing),
                "{problems}"
            );
            assert!(problems.contains("set http.tls = true"), "{problems}");
        }
    }
    for (set, problem) in [
        (
            "http.token=fifteen-letters".to_owned(),
            "fewer than 16 characters",
        ),
        (
            format!("http.token_file={}", path("short").display()),
            "fewer than 16 characters",
        ),
        (
            "http.token_file=/nothing/there".to_owned(),
            "cannot be read",
        ),
        (
            "http.token=with space in the middle".to_owned(),
            "a header does not carry",
        ),
        (format!("{token}\n{file}"), "and so is http.token_file"),
        (
            "http.hosts=[\"https://turn.example.org\"]".to_owned(),
            "http.hosts",
        ),
        (
            "http.hosts=[\"turn.example.org:9641\"]".to_owned(),
            "http.hosts",
        ),
    ] {
        let problems = load(&set).unwrap_err();
        assert!(problems.contains(problem), "{problems}");
    }
    let problems = Config::load(&Sources {
        set: vec!["auth.secrets=[\"s3cret\"]".into(), "http.tls=true".into()],
        ..Sources::default()
    });
    let problems = problems.unwrap_err().to_string();
    assert!(
        problems.contains("http.tls: true, and tls.certificate is empty"),
        "{problems}"
    );
}
