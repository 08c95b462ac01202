//! The test page in Chromium and Firefox, behind firewalls: what it finds, and what it says about it. And the quick start,
//! whose six URLs it tests.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use turnix::base::Clock;

use crate::chromium::{self, Tab};
use crate::firefox::Firefox;
use crate::network::{self, Firewall, NAME, Network, SERVER};
use crate::server::is_stand_in;
use crate::tools::{Process, find_tool, one_at_a_time, skip, wait_for};

const LOAD: Duration = Duration::from_secs(30);
const RUN: Duration = Duration::from_secs(90);

/// The page lives on a port of its own, so that the others can be blocked.
const CONFIG: &str = r#"
realm = "turn.example.org"
listen = [
  { address = "0.0.0.0:3478", protocols = ["udp"] },
  { address = "0.0.0.0:80", protocols = ["udp", "tcp"] },
  { address = "0.0.0.0:443", protocols = ["udp", "tcp", "tls"] },
  { address = "0.0.0.0:8080", protocols = ["http"] },
]

[relay]
addresses = ["198.51.100.1"]

[auth]
secrets = ["looking-glass"]

[tls]
certificate = "chain.pem"
key = "key.pem"
"#;

/// What the page says about a network.
struct Case {
    firewall: Firewall,
    verdict: &'static str,
    finding: &'static str,
    title: &'static str,
    summary: &'static str,
    /// Of UDP, TCP and TLS.
    transports: [&'static str; 3],
    /// Ports that work, of each.
    works: [&'static [u16]; 3],
    /// How the network translates addresses.
    mapping: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        firewall: Firewall::Symmetric,
        verdict: "ok",
        finding: "all_work",
        title: "Everything works",
        summary: "Calls from here go through, over UDP on ",
        transports: ["works"; 3],
        works: [&[80, 443, 3478], &[80, 443], &[443]],
        mapping: "changing",
    },
    Case {
        firewall: Firewall::NoUdp,
        verdict: "partial",
        finding: "udp_blocked",
        title: "Calls will work, without UDP",
        summary: "UDP is blocked here; TLS on 443 works: calls will go through it.",
        transports: ["blocked", "works", "works"],
        works: [&[], &[80, 443], &[443]],
        mapping: "unknown",
    },
    Case {
        firewall: Firewall::OnlyTcp(&[443, 8080]),
        verdict: "partial",
        finding: "only_port_443",
        title: "Calls will work, through port 443 alone",
        summary: "UDP is blocked here; TLS on 443 works: calls will go through it.",
        transports: ["blocked", "partly", "works"],
        works: [&[], &[443], &[443]],
        mapping: "unknown",
    },
    Case {
        firewall: Firewall::OnlyTcp(&[8080]),
        verdict: "failed",
        finding: "nothing_reachable",
        title: "Calls are blocked here",
        summary: "No relay address answers from this network, over UDP, TCP or TLS.",
        transports: ["blocked"; 3],
        works: [&[]; 3],
        mapping: "unknown",
    },
];

#[test]
fn verdicts_behind_firewalls() {
    let test = "test_page::verdicts_behind_firewalls";
    let Some([chromium, firefox]) = tools(test, ["chromium", "firefox-esr"]) else {
        return;
    };
    let _turn = one_at_a_time();
    if network::alone(test).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    let network = Network::new(dir);
    let authority = make_certificates(dir);
    fs::write(dir.join("turnix.toml"), CONFIG).expect("configuration");
    let _server = start(&network, dir, &["serve", "-c", "turnix.toml"], 8080);

    network::trust(&dir.join(".pki/nssdb"), &authority, "CT,,");
    let mut tab = Tab::open(&chromium::strict(&chromium, dir), dir, "about:blank");
    let mut fox = Firefox::start(&firefox, dir, &authority);
    for case in &CASES {
        network.set(Firewall::Open);
        let url = format!("http://{NAME}:8080/test?{}", case.finding);
        tab.go(&url);
        fox.go(&url);
        wait_for_page(&mut tab, case.finding);
        network.set(case.firewall);
        thread::scope(|scope| {
            let fox = scope.spawn(|| {
                let found = fox.run(
                    "window.document.getElementById('start').click(); \
                     window.turnixResult.then((found) => done(JSON.stringify(found)));",
                );
                serde_json::from_str::<Value>(found.as_str().expect("a result")).expect("JSON")
            });
            tab.evaluate("document.getElementById('start').click()");
            check(case, "Chromium", &result(&mut tab));
            check(case, "Firefox", &fox.join().expect("Firefox"));
        });
    }
    links_show_results_and_test_nothing(&mut tab);
}

fn check(case: &Case, browser: &str, found: &Value) {
    let told = format!("{browser}, {}: {found:#}", case.finding);
    assert_eq!(found["finding"], case.finding, "{told}");
    // A machine with more to do than it can makes calls suffer indeed.
    if found["quality"] == "poor" {
        assert_eq!(found["verdict"], "partial", "{told}");
    } else {
        assert_eq!(found["verdict"], case.verdict, "{told}");
        assert_eq!(found["title"], case.title, "{told}");
        let summary = found["summary"].as_str().expect("a summary");
        assert!(summary.starts_with(case.summary), "{told}");
    }
    let [udp, tcp, tls] = case.transports;
    let transports = json!({ "udp": udp, "tcp": tcp, "tls": tls });
    assert_eq!(found["transports"], transports, "{told}");
    assert_eq!(found["network"]["mapping"], case.mapping, "{told}");
    assert_eq!(found["server"]["version"], env!("CARGO_PKG_VERSION"));
    let results = found["results"].as_array().expect("results");
    assert_eq!(results.len(), 6, "{told}");
    for (transport, works) in ["udp", "tcp", "tls"].into_iter().zip(case.works) {
        let mut ports: Vec<u64> = (results.iter())
            .filter(|one| one["transport"] == transport && one["state"] == "ok")
            .filter_map(|one| one["port"].as_u64())
            .collect();
        ports.sort_unstable();
        let expected: Vec<u64> = works.iter().map(|port| u64::from(*port)).collect();
        assert_eq!(ports, expected, "{transport}: {told}");
    }
    for result in results {
        if result["state"] == "ok" {
            let measured = |name: &str| result[name].as_f64().expect("a measurement");
            assert!(
                measured("rtt_ms") >= 0.0 && measured("loss") < 1.0,
                "{told}"
            );
            assert!(measured("throughput_bits_per_second") > 0.0, "{told}");
            let relayed = result["relayed"].as_str().expect("an address");
            assert!(relayed.starts_with(SERVER), "{told}");
        } else {
            assert!(!result["reason"].is_null(), "{told}");
        }
    }
}

/// What the page put into its address bar shows the same result, and a link that somebody made up puts no markup in.
fn links_show_results_and_test_nothing(tab: &mut Tab) {
    let title = tab.evaluate("document.getElementById('title').textContent");
    let state = "document.documentElement.dataset.turnix ?? null";
    tab.evaluate("location.reload()");
    wait_for("the result again", LOAD, || {
        (tab.evaluate(state) == "shown").then_some(())
    });
    assert_eq!(
        tab.evaluate("document.getElementById('title').textContent"),
        title
    );
    let shown = "document.getElementById('cards').children.length";
    assert_eq!(tab.evaluate(shown), 6);
    tab.evaluate(
        "pack({ verdict: 'ok', title: '<b id=made>up</b>', summary: 7, advice: [{ to: 'toString', text: {} }], \
         results: [{ state: 'ok', rtt_ms: 'x', rtt_series_ms: [-1, 'x', 3], errors: [null] }, { name: [] }], network: {}, \
         devices: [{}] }).then((made) => { location.hash = 'r=' + made; })",
    );
    wait_for("what was made up", LOAD, || {
        (tab.evaluate("document.getElementById('title').textContent") == "<b id=made>up</b>")
            .then_some(())
    });
    assert!(tab.evaluate("document.getElementById('made')").is_null());
    assert_eq!(tab.evaluate(shown), 2);
    tab.evaluate("location.hash = 'r=AAAA'");
    let problem = "document.getElementById('problem').textContent";
    wait_for("a complaint", LOAD, || {
        tab.evaluate(problem)
            .as_str()
            .filter(|text| text.contains("cannot be read"))
            .map(drop)
    });
}

/// As root, where every port may be bound: what `turnix` prints is what a browser can use, all of it.
#[test]
fn quick_start_urls_in_chromium() {
    let test = "test_page::quick_start_urls_in_chromium";
    let Some([chromium]) = tools(test, ["chromium"]) else {
        return;
    };
    let _turn = one_at_a_time();
    if network::alone(test).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    let network = Network::new(dir);
    let server = start(&network, dir, &[], 443);
    let printed = wait_for("the banner", LOAD, || {
        Some(server.output()).filter(|text| text.contains("turnix credentials"))
    });
    let urls = [
        "turn:198.51.100.1:3478",
        "turn:198.51.100.1:443",
        "turn:198.51.100.1:80",
        "turn:198.51.100.1:443?transport=tcp",
        "turn:198.51.100.1:80?transport=tcp",
        "turns:198.51.100.1:443?transport=tcp",
    ];
    let listed: Vec<&str> = (printed.lines())
        .filter_map(|line| line.strip_prefix("  turn").map(|_| line.trim()))
        .collect();
    assert_eq!(listed, urls, "{printed}");
    let link = (printed.lines().map(str::trim))
        .find(|line| line.starts_with("http://198.51.100.1/test#"))
        .unwrap_or_else(|| panic!("no link: {printed}"));

    let store = dir.join(".pki/nssdb");
    network::trust(&store, &dir.join("state/certificate.pem"), "P,,");
    let mut tab = Tab::open(&chromium::strict(&chromium, dir), dir, link);
    let found = result(&mut tab);
    assert_eq!(found["finding"], "all_work", "{found:#}");
    let results = found["results"].as_array().expect("results");
    let tested: Vec<&str> = results
        .iter()
        .filter_map(|one| one["url"].as_str())
        .collect();
    assert_eq!(tested, urls);
    assert_eq!(found["network"]["mapping"], "stable", "{found:#}");
    let bar = tab.evaluate("location.hash");
    assert!(
        bar.as_str().is_some_and(|bar| bar.starts_with("#r=")),
        "{bar}"
    );
}

/// Programs that the test cannot do without; `None` after having said so.
fn tools<const N: usize>(test: &str, names: [&str; N]) -> Option<[PathBuf; N]> {
    if is_stand_in() {
        return None;
    }
    for name in ["certutil", "ip", "nft", "nsenter"] {
        find_tool(test, name)?;
    }
    if !network::possible() {
        skip(test, "a network of its own (unshare -rnm)");
        return None;
    }
    let found: Vec<PathBuf> = names
        .iter()
        .map_while(|name| find_tool(test, name))
        .collect();
    found.try_into().ok()
}

/// The server on its host, once it answers on `port`.
fn start(network: &Network, dir: &Path, arguments: &[&str], port: u16) -> Process {
    let mut command = network.on_server(env!("CARGO_BIN_EXE_turnix"));
    command.args(arguments).current_dir(dir).env_clear();
    let state = dir.join("state");
    command.env("STATE_DIRECTORY", &state);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let mut server = Process::start(&mut command, dir.join("server.log"));
    wait_for("the server", LOAD, || {
        assert!(server.ended().is_none(), "{}", server.output());
        TcpStream::connect((SERVER, port)).ok()
    });
    server
}

/// An authority, and a certificate of the server's by it.
fn make_certificates(dir: &Path) -> PathBuf {
    let make = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).expect("names");
        (params, rcgen::KeyPair::generate().expect("a key"))
    };
    let (mut authority, authority_key) = make(&[]);
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Authority of a test");
    let made = authority
        .self_signed(&authority_key)
        .expect("a certificate");
    let file = dir.join("authority.pem");
    fs::write(&file, made.pem()).expect("a file");
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let (mut server, key) = make(&[NAME]);
    // Browsers take nobody's word for longer.
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(Clock.now().unix_secs());
    server.not_before = now - Duration::from_secs(3600);
    server.not_after = now + Duration::from_secs(30 * 86_400);
    let chain = server.signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.join("chain.pem"), chain.pem()).expect("a file");
    fs::write(dir.join("key.pem"), key.serialize_pem()).expect("a file");
    file
}

fn wait_for_page(tab: &mut Tab, query: &str) {
    let ready = "document.readyState + location.search";
    let expected = format!("complete?{query}");
    wait_for("the page", LOAD, || {
        (tab.evaluate(ready) == expected).then_some(())
    });
}

fn result(tab: &mut Tab) -> Value {
    let found = wait_for("window.turnixResult", RUN, || {
        let found = tab.evaluate(crate::browser::FOUND);
        found.as_str().map(str::to_owned)
    });
    serde_json::from_str(&found).expect("JSON in turnixResult")
}
