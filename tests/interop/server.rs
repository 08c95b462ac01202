//! The server under test: the built binary with a configuration of its own, on ports of its own, gone with the test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::tools::{Process, wait_for};

pub const REALM: &str = "turn.example.org";
pub const USER: &str = "alice";
pub const PASSWORD: &str = "wonderland";
pub const SECRET: &str = "looking-glass";
pub const TOKEN: &str = "down-the-rabbit-hole";
pub const API_ID: &str = "AC0123456789abcdef0123456789abcdef";
pub const API_SECRET: &str = "through-the-looking-glass";

pub const OTHER_REALM: &str = "b.example";
pub const OTHER_PASSWORD: &str = "tea-party";

/// The keys that are compiled into uclient, which makes tokens of any of them; it takes as much of each as the algorithm
/// wants.
const UCLIENT_KEYS: &str = r#"
[auth.oauth]
server_name = "relays.example.org"

[[auth.oauth.keys]]
kid = "north"
key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

[[auth.oauth.keys]]
kid = "union"
algorithm = "A128GCM"
key = "MTIzNDU2Nzg5MDEyMzQ1Ng=="

[[auth.oauth.keys]]
kid = "oldempire"
key = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
"#;

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];
const STARTUP: Duration = Duration::from_secs(15);

/// How a test wants its server.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// Peers on loopback that are not relayed addresses of the server itself.
    pub loopback_peers: bool,
    /// The clients use the shared secret. The server knows user and secret at once; only the stand-in has to choose.
    pub secret: bool,
    /// Log all there is to log.
    pub trace: bool,
    /// The admin listener asks for its token.
    pub token: bool,
    /// Everybody on IPv4's loopback is a proxy, and says so by the PROXY protocol.
    pub proxied: bool,
    /// The port of another server on loopback, which expects the PROXY protocol.
    pub upstream: Option<u16>,
    /// Clients may come with tokens that uclient makes for itself.
    pub oauth: bool,
    /// There is another realm, which TLS clients ask for as "localhost".
    pub realm: bool,
    /// `log.ip_privacy`, where it is not the default.
    pub privacy: Option<&'static str>,
}

/// A running server; dropping it ends it.
pub struct Server {
    pub port: u16,
    pub admin: u16,
    process: Process,
    dir: TempDir,
}

impl Server {
    /// Starts the server and waits until it serves.
    pub fn start(options: Options) -> Server {
        let dir = tempfile::tempdir().expect("temporary directory");
        let block = free_block();
        write_certificate(&dir);
        let mut command = if is_stand_in() {
            stand_in(&dir, block, options)
        } else {
            turnix(&dir, block, options)
        };
        command.current_dir(dir.path());
        let process = Process::start(&mut command, dir.path().join("server.log"));
        let mut server = Server {
            port: block.listen(),
            admin: block.admin(),
            process,
            dir,
        };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        wait_for("the server is ready", STARTUP, || {
            if let Some(status) = self.process.ended() {
                panic!("the server ended at once: {status}");
            }
            if is_stand_in() {
                return TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                    .ok()
                    .map(drop);
            }
            (get(self.admin, "/ready")?.status == 200).then_some(())
        });
    }

    /// A directory that lives as long as the server.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).expect("the log")
    }

    /// The body of `/metrics`, or `None` if this is the stand-in.
    pub fn metrics_text(&self) -> Option<String> {
        if is_stand_in() {
            return None;
        }
        let response = get(self.admin, "/metrics").expect("/metrics answers");
        assert_eq!(response.status, 200, "/metrics");
        Some(response.body)
    }

    /// What the server counts, or `None` if this is the stand-in.
    pub fn metrics(&self) -> Option<Metrics> {
        self.metrics_text().map(|text| Metrics::parse(&text))
    }

    /// What the server says of why calls of `whom` failed, or `None` if this is the stand-in.
    pub fn why(&self, kind: &str, whom: &str) -> Option<serde_json::Value> {
        if is_stand_in() {
            return None;
        }
        let path = format!("/api/v1/why?{kind}={whom}");
        let response = get(self.admin, &path).expect("the admin API answers");
        assert_eq!(response.status, 200, "{path}");
        Some(serde_json::from_str(&response.body).expect("JSON"))
    }

    /// Waits until the metrics satisfy `holds`; does nothing with the stand-in.
    pub fn wait_for_metrics(&self, what: &str, holds: impl Fn(&Metrics) -> bool) {
        if !is_stand_in() {
            wait_for(what, Duration::from_secs(10), || {
                self.metrics().filter(&holds).map(drop)
            });
        }
    }

    /// Waits until no allocation is left, in the gauge and in the series of their own.
    pub fn wait_until_idle(&self) {
        self.wait_for_metrics("the allocations are gone", |metrics| {
            metrics.sum("turn_allocations", &[]) == 0.0
                && metrics.count("turn_allocation_bytes_total", &[]) == 0
                && metrics.count("turn_allocation_packets_total", &[]) == 0
                && metrics.count("turn_allocation_bandwidth", &[]) == 0
        });
    }
}

/// What every test of these proves besides: whatever its clients do, none of it looks like abuse.
impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() || is_stand_in() {
            return;
        }
        const NOTED: &str = "looks like abuse";
        let log = self.log();
        let noted: Vec<_> = log.lines().filter(|line| line.contains(NOTED)).collect();
        assert!(noted.is_empty(), "ordinary clients are noted: {noted:#?}");
        // Where the admin listener asks for its token, and where the server has ended, the log is all there is.
        if let Some(response) = get(self.admin, "/metrics").filter(|it| it.status == 200) {
            let metrics = Metrics::parse(&response.body);
            assert!(metrics.count("turn_abuse_total", &[]) > 0, "it is counted");
            assert_eq!(metrics.sum("turn_abuse_total", &[]), 0.0);
        }
    }
}

/// Whether coturn stands in for the server, to try out the harness itself.
pub fn is_stand_in() -> bool {
    std::env::var("INTEROP_SERVER").is_ok_and(|name| name == "coturn")
}

/// The answer to a GET.
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// `GET path` from a port of this machine; `None` while nothing answers there.
pub fn get(port: u16, path: &str) -> Option<Response> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    assert!(
        !head.to_ascii_lowercase().contains("transfer-encoding"),
        "{path}: this client does not read chunks"
    );
    Some(Response {
        status,
        body: body.to_owned(),
    })
}

/// The ports of one server, below the kernel's ephemeral range so that no connection takes them.
#[derive(Clone, Copy)]
struct Block(u16);

impl Block {
    const SIZE: u16 = 200;
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 110;

    fn listen(self) -> u16 {
        self.0
    }
    fn admin(self) -> u16 {
        self.0 + 5
    }
    fn relays(self) -> (u16, u16) {
        (self.0 + 20, self.0 + Self::SIZE - 1)
    }
}

fn free_block() -> Block {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(31);
    for _ in 0..Block::COUNT {
        let index = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % Block::COUNT;
        let index = u16::try_from(index).expect("a small number");
        let block = Block(Block::FIRST + index * Block::SIZE);
        if is_free(block.listen()) && is_free(block.admin()) {
            return block;
        }
    }
    panic!("no free ports");
}

/// A free port for another server, the port ten above it included, and some for its relays.
pub fn free_ports() -> (u16, std::ops::RangeInclusive<u16>) {
    let block = free_block();
    let (first, last) = block.relays();
    (block.listen(), first..=last)
}

/// Whether `port` can be bound for UDP and TCP on both loopback addresses.
pub fn is_free(port: u16) -> bool {
    LOOPBACK.iter().all(|ip| {
        let address = SocketAddr::new(*ip, port);
        UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
    })
}

/// `cert.pem` and `key.pem` for loopback.
pub fn write_certificate(dir: &TempDir) {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).expect("certificate");
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("certificate");
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("key");
}

fn turnix(dir: &TempDir, block: Block, options: Options) -> Command {
    let path = dir.path().display();
    let (port, admin, (first, last)) = (block.listen(), block.admin(), block.relays());
    let allow = if options.loopback_peers {
        r#""loopback""#
    } else {
        ""
    };
    let level = if options.trace { "trace" } else { "info" };
    let token = if options.token { TOKEN } else { "" };
    let trusted = if options.proxied {
        r#""127.0.0.0/8""#
    } else {
        ""
    };
    let upstream = options.upstream.map_or_else(String::new, |port| {
        format!("upstream = \"127.0.0.1:{port}\"\nupstream_proxy_protocol = true")
    });
    let realm = if options.realm {
        format!(
            "[[realms]]\nname = \"{OTHER_REALM}\"\nserver_names = [\"localhost\"]\n\
             users = {{ {USER} = \"{OTHER_PASSWORD}\" }}\n"
        )
    } else {
        String::new()
    };
    let privacy = options.privacy.unwrap_or("full");
    let oauth = if options.oauth { UCLIENT_KEYS } else { "" };
    let config = format!(
        r#"
realm = "{REALM}"

[[listen]]
address = "127.0.0.1:{port}"
protocols = ["udp", "tcp", "tls", "http", "dtls"]
trusted_proxies = [{trusted}]
{upstream}

[[listen]]
address = "[::1]:{port}"
protocols = ["udp", "tcp", "tls", "http", "dtls"]

[relay]
addresses = ["127.0.0.1", "::1"]
ports = "{first}-{last}"

[auth]
users = {{ {USER} = "{PASSWORD}" }}
secrets = ["{SECRET}"]

[peers]
allow = [{allow}]

[protocol]
channels = "rfc5766"

[tls]
certificate = "{path}/cert.pem"
key = "{path}/key.pem"

[http]
admin = "127.0.0.1:{admin}"
token = "{token}"

[[api.keys]]
id = "{API_ID}"
secret = "{API_SECRET}"

[log]
level = "{level}"
ip_privacy = "{privacy}"
{oauth}
{realm}
"#
    );
    std::fs::write(dir.path().join("turnix.toml"), config).expect("configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command
        .args(["serve", "-c"])
        .arg(dir.path().join("turnix.toml"));
    command.env("STATE_DIRECTORY", dir.path());
    // Such variables are keys of the configuration.
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TURNIX_"))
    {
        command.env_remove(name);
    }
    command
}

fn stand_in(dir: &TempDir, block: Block, options: Options) -> Command {
    let path = dir.path().display();
    let (port, (first, last)) = (block.listen(), block.relays());
    // It cannot do both: with a shared secret, static users are not looked at.
    let credentials = if options.secret {
        format!("use-auth-secret\nstatic-auth-secret={SECRET}")
    } else {
        format!("lt-cred-mech\nuser={USER}:{PASSWORD}")
    };
    let config = format!(
        "listening-port={port}\ntls-listening-port={}\nlistening-ip=127.0.0.1\nlistening-ip=::1\n\
         relay-ip=127.0.0.1\nrelay-ip=::1\nmin-port={first}\nmax-port={last}\n{credentials}\nrealm={REALM}\n\
         allow-loopback-peers\ncli-password=unused\nno-cli\nno-software-attribute\nlog-file=stdout\n\
         cert={path}/cert.pem\npkey={path}/key.pem\npidfile={path}/pid\nuserdb={path}/users\n",
        port + 10
    );
    std::fs::write(dir.path().join("turnserver.conf"), config).expect("configuration");
    let mut command = Command::new("turnserver");
    command.arg("-c").arg(dir.path().join("turnserver.conf"));
    command
}
