//! Headless Chromium: a call between two peer connections that may use nothing but the relay, once over each transport
//! on the one port, and the server's own test page.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::chromium::{Tab, command};
use crate::quality;
use crate::server::{Options, PASSWORD, Server, USER, is_stand_in};
use crate::tools::{Process, find_tool, one_at_a_time, wait_for};

const CALL: Duration = Duration::from_secs(60);

#[test]
fn call_over_udp() {
    check_call(
        "browser::call_over_udp",
        "turn:127.0.0.1:PORT?transport=udp",
        "udp",
    );
}

#[test]
fn call_over_tcp() {
    check_call(
        "browser::call_over_tcp",
        "turn:127.0.0.1:PORT?transport=tcp",
        "tcp",
    );
}

#[test]
fn call_over_tls() {
    check_call(
        "browser::call_over_tls",
        "turns:localhost:PORT?transport=tcp",
        "tls",
    );
}

fn check_call(test: &str, uri: &str, relay_protocol: &str) {
    let Some(chromium) = find_tool(test, "chromium") else {
        return;
    };
    let _turn = one_at_a_time();
    // Both peers are relayed addresses of this server: no exception to the peer policy.
    let server = Server::start(Options::default());
    let uri = uri.replace("PORT", &server.port.to_string());
    let page = Page::serve(json!({
        "iceServers": [{ "urls": uri, "username": USER, "credential": PASSWORD }],
        "iceTransportPolicy": "relay",
    }));
    let url = format!("http://127.0.0.1:{}/", page.port);
    let _browser = Process::start(
        command(&chromium, server.dir()).arg(url),
        server.dir().join("chromium.log"),
    );

    let up = page.wait_for_report("up");
    for end in ["caller", "callee"] {
        let (before, after) = (&up["before"][end], &up["after"][end]);
        assert_eq!(after["local"], "relay", "{up:#}");
        assert_eq!(after["remote"], "relay", "{up:#}");
        assert_eq!(after["relayProtocol"], relay_protocol, "{up:#}");
        assert!(
            number(after, "bytesSent") > number(before, "bytesSent"),
            "{up:#}"
        );
        assert!(
            number(after, "bytesReceived") > number(before, "bytesReceived"),
            "{up:#}"
        );
    }
    assert!(
        number(&up["after"]["media"], "framesDecoded") > 20.0,
        "{up:#}"
    );
    let audio = ["before", "after"].map(|moment| number(&up[moment]["media"], "audioBytes"));
    assert!(audio[1] > audio[0] && audio[0] > 0.0, "{up:#}");
    assert_eq!(number(&up, "echoedBytes"), 16.0 * 4096.0, "{up:#}");

    let received = number(&up["after"]["caller"], "bytesReceived")
        + number(&up["after"]["callee"], "bytesReceived");
    server.wait_for_metrics("the call is accounted for", |metrics| {
        ["to_peer", "to_client"].iter().all(|direction| {
            metrics.sum(
                "turn_relayed_bytes_total",
                &[("direction", direction), ("path", "hairpin")],
            ) >= received
        })
    });
    server.wait_for_metrics("each allocation has series of its own", |metrics| {
        metrics.sum("turn_allocations", &[("transport", relay_protocol)]) >= 2.0
            && metrics
                .values("turn_allocation_bytes_total", "allocation")
                .len()
                >= 2
            && metrics.sum(
                "turn_allocation_bytes_total",
                &[("user", USER), ("transport", relay_protocol)],
            ) >= received
            && metrics.count("turn_allocation_packets_total", &[("user", USER)]) >= 2
            && metrics.sum("turn_allocation_bandwidth", &[("user", USER)]) > 0.0
    });

    quality::check_call_is_seen(&server);

    page.hang_up();
    page.wait_for_report("closed");
    // The browser is still there: the allocations end because it says so, not because its sockets close.
    server.wait_until_idle();
}

/// What the test page has found so far: the JSON of the result it promises, or null.
pub const FOUND: &str = "window.turnixFound ?? \
    (window.turnixResult?.then((result) => { window.turnixFound = JSON.stringify(result); }), null)";

/// The server's own page tests the ICE servers it is given, in a browser, and promises `turnixResult`.
#[test]
fn built_in_test_page() {
    let Some(chromium) = find_tool("browser::built_in_test_page", "chromium") else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let port = server.port;
    let urls = [
        format!("turn:127.0.0.1:{port}?transport=udp"),
        format!("turns:localhost:{port}?transport=tcp"),
    ];
    let page = |password: &str| {
        let ice_servers = json!([{ "urls": urls, "username": USER, "credential": password }]);
        let fragment = URL_SAFE_NO_PAD.encode(ice_servers.to_string());
        format!("http://127.0.0.1:{port}/test?{password}#{fragment}")
    };
    let browser = command(&chromium, server.dir());
    let mut tab = Tab::open(&browser, server.dir(), &page(PASSWORD));
    let mut found = || {
        let found = wait_for("window.turnixResult", CALL, || {
            tab.evaluate(FOUND).as_str().map(str::to_owned)
        });
        let found: Value = serde_json::from_str(&found).expect("JSON in turnixResult");
        tab.go(&page("wrong"));
        found
    };
    let right = found();
    assert_eq!(right["finding"], "all_work", "{right:#}");
    let results = right["results"].as_array().expect("results");
    assert_eq!(
        results
            .iter()
            .map(|result| result["url"].as_str())
            .collect::<Vec<_>>(),
        urls.each_ref().map(|url| Some(url.as_str()))
    );
    for result in results {
        assert_eq!(result["state"], "ok", "{right:#}");
        assert!(
            result["relayed"]
                .as_str()
                .is_some_and(|address| address.starts_with("127.0.0.1:")),
            "{right:#}"
        );
        assert!(
            number(result, "rtt_ms") >= 0.0 && number(result, "throughput_bits_per_second") > 0.0,
            "{right:#}"
        );
    }
    assert!(!right.to_string().contains(PASSWORD), "{right:#}");
    server.wait_until_idle();

    let wrong = found();
    assert_eq!(wrong["finding"], "refused", "{wrong:#}");
    let reason = wrong["results"][0]["reason"].as_str();
    assert!(
        reason.is_some_and(|text| text.contains("(401)")),
        "{wrong:#}"
    );
}

/// Shows that a tab can be driven, with a page of ours.
#[test]
fn tab_is_driven() {
    let Some(chromium) = find_tool("browser::tab_is_driven", "chromium") else {
        return;
    };
    let _turn = one_at_a_time();
    let dir = tempfile::tempdir().expect("temporary directory");
    let page = Page::serve(json!({}));
    let mut tab = Tab::open(
        &command(&chromium, dir.path()),
        dir.path(),
        &format!("http://127.0.0.1:{}/blank#words", page.port),
    );
    wait_for("the page", Duration::from_secs(20), || {
        (tab.evaluate("document.readyState + location.hash") == "complete#words").then_some(())
    });
}

pub fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key}: {value:#}"))
}

/// A web server on loopback with the page of the call; the page's reports arrive here.
pub struct Page {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    configuration: Value,
    reports: VecDeque<(String, Value)>,
    hang_up: bool,
}

impl Page {
    pub fn serve(configuration: Value) -> Page {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("page server");
        let port = listener.local_addr().expect("page server").port();
        let state = Arc::new(Mutex::new(State {
            configuration,
            reports: VecDeque::new(),
            hang_up: false,
        }));
        let shared = Arc::clone(&state);
        // Ends with the test process. A connection that breaks is the browser's to retry.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &shared);
            }
        });
        Page { port, state }
    }

    pub fn wait_for_report(&self, wanted: &str) -> Value {
        wait_for(&format!("the page reports {wanted}"), CALL, || {
            let (name, value) = self.state.lock().expect("page state").reports.pop_front()?;
            assert_eq!(name, wanted, "the page reports {value:#}");
            Some(value)
        })
    }

    pub fn hang_up(&self) {
        self.state.lock().expect("page state").hang_up = true;
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;

    let path = request.split(' ').nth(1).unwrap_or("");
    let mut state = state.lock().expect("page state");
    let (status, kind, content) = match path {
        "/" => ("200 OK", "text/html", include_str!("page.html").to_owned()),
        "/blank" => ("200 OK", "text/html", String::new()),
        "/configuration" => (
            "200 OK",
            "application/json",
            state.configuration.to_string(),
        ),
        "/hang-up" if state.hang_up => ("200 OK", "text/plain", String::new()),
        "/hang-up" => ("204 No Content", "text/plain", String::new()),
        _ => match path.strip_prefix("/report/") {
            Some(name) => {
                let value = serde_json::from_slice(&body).expect("JSON from the page");
                state.reports.push_back((name.to_owned(), value));
                ("200 OK", "text/plain", String::new())
            }
            None => ("404 Not Found", "text/plain", String::new()),
        },
    };
    drop(state);
    let length = content.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close"
    );
    write!(reader.get_mut(), "{head}\r\n\r\n{content}")
}
