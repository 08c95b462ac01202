//! The preset `openrelay`: what applications have compiled in works, and whoever abuses it harms itself.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use turnix::base::{Family, Transport};
use turnix::config::{Config, Sources};

use super::client::Client;
use super::common::wire::Request;
use super::server::{BOTH, Server, until};

const USER: &str = "openrelayproject";

/// As applications have them, but for the host; the last one is ours.
const FORMS: [&str; 6] = [
    "turn:127.0.0.1:80",
    "turn:127.0.0.1:80?transport=tcp",
    "turn:127.0.0.1:443",
    "turn:127.0.0.1:443?transport=tcp",
    "turns:127.0.0.1:443?transport=tcp",
    "turn:127.0.0.1:3478",
];

/// The server, in a network of its own.
struct Host(Child);

impl Host {
    fn start(directory: &Path) -> Option<Self> {
        let networks = Command::new("unshare")
            .args(["--net", "ip", "link", "set", "lo", "up"])
            .stderr(Stdio::null())
            .status();
        if !networks.is_ok_and(|status| status.success()) {
            assert!(
                std::env::var_os("INTEROP_REQUIRE_TOOLS").is_none(),
                "unshare and ip make a network of the test's own, as root"
            );
            println!("skipped: no network of its own");
            return None;
        }
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c"])
            .arg("ip link set lo up && exec \"$0\" --preset openrelay")
            .arg(env!("CARGO_BIN_EXE_turnix"))
            .env("STATE_DIRECTORY", directory.join("state"))
            .stdin(Stdio::null())
            .stdout(File::create(directory.join("banner")).unwrap())
            .stderr(File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        Some(Self(child))
    }

    /// Runs `turnix` beside it.
    fn turnix(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.run(env!("CARGO_BIN_EXE_turnix"), arguments)
    }

    /// Runs coturn's client beside it: two clients that send five messages each way, through their relayed addresses.
    fn uclient(&self, options: &[&str]) -> (Option<i32>, String) {
        let load = [
            "-y", "-c", "-n", "5", "-m", "2", "-z", "20", "-u", USER, "-w", USER,
        ];
        let arguments = [
            &["60", "turnutils_uclient"],
            &load[..],
            options,
            &["127.0.0.1"],
        ]
        .concat();
        self.run("timeout", &arguments)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new("nsenter")
            .args(["--net", "--target", &self.0.id().to_string()])
            .arg(program)
            .args(arguments)
            .output()
            .unwrap();
        let text = [&*output.stdout, &*output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }
}

fn has_uclient() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join("turnutils_uclient").is_file());
    assert!(
        found || std::env::var_os("INTEROP_REQUIRE_TOOLS").is_none(),
        "turnutils_uclient comes with coturn"
    );
    found
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_url_form_relays_with_the_public_password() {
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = Host::start(directory.path()) else {
        return;
    };
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    until("the banner is there", || {
        read("banner").contains("Test it in a browser")
    });
    let banner = read("banner");
    assert!(
        banner.contains("the whole world knows the password"),
        "{banner}"
    );
    assert!(read("log").contains("the whole world knows the password"));
    assert!(
        banner.contains(&format!("\"username\": \"{USER}\"")),
        "{banner}"
    );
    for form in FORMS {
        // Two clients that send to each other through their relayed addresses.
        let (code, text) = host.turnix(&[
            "bench",
            form,
            "--user",
            USER,
            "--password",
            USER,
            "--insecure",
            "--direction",
            "hairpin",
            "--allocations",
            "2",
            "--rate",
            "100",
            "--seconds",
            "0.3",
            "--warmup",
            "0.1",
            "--json",
        ]);
        assert_eq!(code, Some(0), "{form}: {text}");
        let begin = text.find('{').expect("JSON");
        let report: Value = serde_json::Deserializer::from_str(&text[begin..])
            .into_iter()
            .next()
            .unwrap()
            .unwrap();
        let count = |name: &str| report[name].as_u64().expect(name);
        assert!(count("delivered_total") > 10, "{form}: {report:#}");
        assert_eq!(count("foreign"), 0, "{form}: {report:#}");
        assert!(banner.contains(form), "{form}: {banner}");
    }
    // A client that others wrote, and which chooses channels as RFC 5766 has them.
    if has_uclient() {
        let all = [
            &["-p", "80"][..],
            &["-t", "-p", "80"],
            &["-p", "443"],
            &["-t", "-p", "443"],
            &["-t", "-S", "-p", "443"],
            &["-p", "3478"],
        ];
        std::thread::scope(|scope| {
            for options in all {
                let host = &host;
                scope.spawn(move || {
                    let (code, text) = host.uclient(options);
                    assert_eq!(code, Some(0), "{options:?}: {text}");
                    let all = "tot_send_msgs=10, tot_recv_msgs=10";
                    assert!(text.contains(all), "{options:?}: {text}");
                });
            }
        });
    }
    let (code, text) = host.turnix(&["bench", FORMS[0], "--user", USER, "--password", "wrong"]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn one_address_takes_its_share_and_no_more() {
    let server = Server::with(BOTH, &["preset=openrelay"]);
    let to = server.address(Family::V4);
    let from = |last: u8| IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
    let client = |last: u8| {
        let mut client = Client::between(&server, Transport::Udp, from(last), to);
        client.login(USER, USER);
        client
    };
    let mut greedy = Vec::new();
    let refused = loop {
        let mut one = client(3);
        match one.try_allocate().code() {
            0 => greedy.push(one),
            code => break code,
        }
        assert!(greedy.len() <= 64, "no end");
    };
    assert_eq!((refused, greedy.len()), (486, 64));
    // That is loss for that address only.
    client(4).allocate();
    // Nor does it reach services on the peers that it may call.
    let mut one = client(5);
    one.allocate();
    for (channel, (peer, code)) in (0x4000..).zip([
        ("203.0.114.9:53", 403),
        ("203.0.114.9:1023", 403),
        ("203.0.114.9:40000", 0),
        ("10.0.0.1:40000", 403),
        ("169.254.169.254:40000", 403),
    ]) {
        let bind = Request::channel_bind(channel, peer.parse().unwrap());
        assert_eq!(one.ask_signed(bind).code(), code, "{peer}");
    }
}

#[test]
fn every_value_may_be_given_otherwise() {
    let load = |set: &[&str], environment: &[(&str, &str)]| {
        Config::load(&Sources {
            set: set.iter().map(|text| (*text).to_owned()).collect(),
            environment: (environment.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Sources::default()
        })
    };
    let plain = load(&["preset=openrelay"], &[]).unwrap();
    let ports: Vec<u16> = (plain.listeners.iter())
        .map(|listener| listener.address.port())
        .collect();
    assert_eq!(ports, [3478, 443, 80]);
    let limits = plain.access.limits;
    assert_eq!(
        (limits.allocations, limits.allocations_per_address),
        (4000, 64)
    );
    assert!(plain.warnings.iter().any(|warning| warning.key == "preset"));
    let own = load(
        &[
            "preset=openrelay",
            "limits.allocations=7",
            "listen=[::]:5000",
        ],
        &[("TURNIX_LIMITS__ALLOCATIONS_PER_ADDRESS", "3")],
    )
    .unwrap();
    let limits = own.access.limits;
    assert_eq!((limits.allocations, limits.allocations_per_address), (7, 3));
    assert_eq!(own.listeners.len(), 1);
    let by_environment = load(&[], &[("TURNIX_PRESET", "openrelay")]).unwrap();
    assert_eq!(by_environment.access.users[0].0, USER);
    let unknown = load(&["preset=openrly"], &[]).unwrap_err().to_string();
    assert!(unknown.contains("openrelay"), "{unknown}");
}
