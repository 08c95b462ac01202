//! `turnix import` as people run it, and a server on what it wrote, used by coturn's own client.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::tools::{Process, find_tool, run, skip, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn turnix(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

fn output(arguments: &[&str]) -> Output {
    turnix(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Ports in a row that nobody has, below those that the kernel hands out: where to listen, two more, and 40 to relay from.
#[derive(Clone, Copy)]
pub struct Ports(u16);

impl Ports {
    pub fn free() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = (std::process::id() % 100) as u16;
        for _ in 0..100 {
            let block = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 100;
            let ports = Self(21_000 + block * 50);
            let free = |port: u16| {
                let address = (Ipv4Addr::LOCALHOST, port);
                UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
            };
            if (0..3).all(|offset| free(ports.0 + offset)) {
                return ports;
            }
        }
        panic!("no free ports");
    }

    pub fn plain(self) -> u16 {
        self.0
    }

    pub fn tls(self) -> u16 {
        self.0 + 1
    }

    pub fn admin(self) -> u16 {
        self.0 + 2
    }

    pub fn relays(self) -> (u16, u16) {
        (self.0 + 5, self.0 + 45)
    }
}

/// Whether the server with its admin listener there is ready.
pub fn is_ready(admin: u16) -> Option<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, admin)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}

/// A folder with a file of coturn's and a certificate.
pub fn folder(conf: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    let key = folder.path().join("key.pem");
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = folder.path().join("turnserver.conf");
    std::fs::write(&file, conf).unwrap();
    (folder, file)
}

/// Who the load generator comes as.
enum Who<'a> {
    User(&'a str, &'a str),
    Secret(&'a str),
    /// The secret that the import made.
    Fresh,
}

/// Imports `file`, checks the result, serves with it and relays through it.
fn serves(test: &str, folder: &Path, file: &Path, ports: Ports, who: &Who<'_>, tls: bool) {
    let Some(uclient) = find_tool(test, "turnutils_uclient") else {
        return;
    };
    let imported = folder.join("turnix.toml");
    let written = output(&[
        "import",
        file.to_str().unwrap(),
        "-o",
        imported.to_str().unwrap(),
    ]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    let imported = imported.to_str().unwrap();
    let (first, last) = ports.relays();
    // What a file leaves to the host, or names of another host, is put where a test may be.
    let set = [
        "relay.addresses=127.0.0.1".to_owned(),
        format!("relay.ports={first}-{last}"),
        format!("http.admin=127.0.0.1:{}", ports.admin()),
    ];
    let text = std::fs::read_to_string(imported).unwrap();
    let listen = format!("listen=127.0.0.1:{}", ports.plain());
    let has_own_port = text.contains(&format!(":{}\"", ports.plain()));
    let mut arguments = vec!["-c", imported];
    for one in &set {
        arguments.extend(["--set", one]);
    }
    if !has_own_port {
        arguments.extend(["--set", &listen]);
    }
    let checked = output(&[&["check"], &arguments[..]].concat());
    assert_eq!(
        checked.status.code(),
        Some(0),
        "{}{}",
        String::from_utf8_lossy(&checked.stdout),
        stderr(&checked)
    );

    let mut command = turnix(&[&["serve"], &arguments[..]].concat());
    command.env("STATE_DIRECTORY", folder);
    let mut server = Process::start(&mut command, folder.join("server.log"));
    wait_for("the server is ready", PATIENCE, || {
        assert!(
            server.ended().is_none(),
            "the server ended: {}",
            server.output()
        );
        is_ready(ports.admin())
    });
    let fresh;
    let credentials = match who {
        Who::User(name, password) => ["-u", name, "-w", password],
        Who::Secret(secret) => ["-u", "bob", "-W", secret],
        Who::Fresh => {
            let table: toml::Table = text.parse().unwrap();
            fresh = table["auth"]["secrets"][0].as_str().unwrap().to_owned();
            ["-u", "bob", "-W", &fresh]
        }
    };
    let transports: &[(&[&str], u16)] = if tls {
        &[(&[], ports.plain()), (&["-t", "-S"], ports.tls())]
    } else {
        &[(&[], ports.plain())]
    };
    for (transport, port) in transports {
        let mut client = Command::new(&uclient);
        client
            .args([
                "-y", "-c", "-X", "-n", "5", "-m", "2", "-z", "20", "-l", "100",
            ])
            .args(*transport)
            .args(credentials)
            .args(["-p", &port.to_string(), "127.0.0.1"]);
        let (status, said) = run(&mut client, folder, PATIENCE);
        assert!(
            status.is_some_and(|status| status.success()),
            "{transport:?}: {said}"
        );
        assert!(
            said.contains("Total lost packets 0 (0.000000%)"),
            "{transport:?}: {said}"
        );
    }
}

#[test]
fn coturns_example_serves_with_a_fresh_secret() {
    const TEST: &str = "coturns_example_serves_with_a_fresh_secret";
    let paths = [
        "/usr/share/doc/coturn/examples/etc/turnserver.conf",
        "/etc/turnserver.conf",
    ];
    let Some(text) = paths
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
    else {
        return skip(TEST, "coturn's example");
    };
    let (folder, file) = folder(&text);
    serves(
        TEST,
        folder.path(),
        &file,
        Ports::free(),
        &Who::Fresh,
        false,
    );
}

#[test]
fn one_for_nextcloud_talk_serves() {
    let ports = Ports::free();
    let (folder, file) = folder(&format!(
        "listening-port={}\nlistening-ip=127.0.0.1\nfingerprint\nuse-auth-secret\nstatic-auth-secret=4f7d1c\nrealm=cloud.example.org\n\
         total-quota=0\nbps-capacity=0\nstale-nonce\nno-multicast-peers\nno-cli\n",
        ports.plain(),
    ));
    serves(
        "one_for_nextcloud_talk_serves",
        folder.path(),
        &file,
        ports,
        &Who::Secret("4f7d1c"),
        false,
    );
}

#[test]
fn one_for_matrix_synapse_serves() {
    let ports = Ports::free();
    let (folder, file) = folder(&format!(
        "listening-port={}\ntls-listening-port={}\nlistening-ip=127.0.0.1\nuse-auth-secret\nstatic-auth-secret=\"sydent and synapse\"\n\
         realm=matrix.example.org\nno-tcp-relay\ndenied-peer-ip=10.0.0.0-10.255.255.255\n\
         denied-peer-ip=192.168.0.0-192.168.255.255\ndenied-peer-ip=172.16.0.0-172.31.255.255\nallowed-peer-ip=10.0.0.1\n\
         user-quota=12 # 4 streams per video call\ntotal-quota=1200\ncert=cert.pem\npkey=key.pem\nno-tlsv1\nno-tlsv1_1\n\
         no-software-attribute\nprometheus\nsyslog\n",
        ports.plain(),
        ports.tls(),
    ));
    let who = Who::Secret("sydent and synapse");
    serves(
        "one_for_matrix_synapse_serves",
        folder.path(),
        &file,
        ports,
        &who,
        true,
    );
}

#[test]
fn one_for_jitsi_serves() {
    let ports = Ports::free();
    let (folder, file) = folder(&format!(
        "use-auth-secret\nkeep-address-family\nstatic-auth-secret=jicofo\nrealm=meet.example.org\ncert=cert.pem\npkey=key.pem\n\
         no-multicast-peers\nno-cli\nno-loopback-peers\nno-tcp-relay\nlistening-ip=127.0.0.1\nlistening-port={}\n\
         tls-listening-port={}\nno-tlsv1\nno-tlsv1_1\ncipher-list=ECDHE-ECDSA-AES128-GCM-SHA256\n\
         denied-peer-ip=0.0.0.0-0.255.255.255\ndenied-peer-ip=100.64.0.0-100.127.255.255\n\
         denied-peer-ip=2001::-2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff\nsyslog\nno-rfc5780\nno-stun-backward-compatibility\n\
         response-origin-only-with-rfc5780\n",
        ports.plain(),
        ports.tls(),
    ));
    serves(
        "one_for_jitsi_serves",
        folder.path(),
        &file,
        ports,
        &Who::Secret("jicofo"),
        true,
    );
}

#[test]
fn one_behind_nat_serves_users_and_keys() {
    let ports = Ports::free();
    let conf = |user: &str| {
        format!(
            "listening-ip=127.0.0.1\nlistening-port={}\nrelay-ip=127.0.0.1\nexternal-ip=203.0.113.7/127.0.0.1\nlt-cred-mech\n\
             realm=north.gov\nuser={user}\nuser-quota=10\nmax-bps=125000\nverbose\n",
            ports.plain(),
        )
    };
    let (folder, file) = folder(&conf("gorst:hero"));
    const TEST: &str = "one_behind_nat_serves_users_and_keys";
    serves(
        TEST,
        folder.path(),
        &file,
        ports,
        &Who::User("gorst", "hero"),
        false,
    );

    // As `turnadmin -k -u ninefingers -r north.gov -p youhavetoberealistic` prints it.
    std::fs::write(
        &file,
        conf("ninefingers:0xbc807ee29df3c9ffa736523fb2c4e8ee"),
    )
    .unwrap();
    std::fs::remove_file(folder.path().join("turnix.toml")).unwrap();
    let who = Who::User("ninefingers", "youhavetoberealistic");
    serves(TEST, folder.path(), &file, ports, &who, false);
}

#[test]
fn a_database_of_turnadmin_serves_its_users() {
    const TEST: &str = "a_database_of_turnadmin_serves_its_users";
    let (Some(turnadmin), Some(_)) = (find_tool(TEST, "turnadmin"), find_tool(TEST, "sqlite3"))
    else {
        return;
    };
    let ports = Ports::free();
    let (folder, file) = folder(&format!(
        "listening-ip=127.0.0.1\nlistening-port={}\nlt-cred-mech\nrealm=example.org\nuserdb=turn db\n",
        ports.plain(),
    ));
    let database = folder.path().join("turn db");
    let admin = |arguments: &[&str]| {
        let (status, said) = run(
            Command::new(&turnadmin)
                .arg("-b")
                .arg(&database)
                .args(arguments)
                .current_dir(folder.path()),
            folder.path(),
            PATIENCE,
        );
        assert!(
            status.is_some_and(|status| status.success()),
            "{arguments:?}: {said}"
        );
    };
    admin(&[
        "-a",
        "-u",
        "alice",
        "-r",
        "example.org",
        "-p",
        "wonder land",
    ]);
    admin(&["-a", "-u", "bob", "-r", "example.net", "-p", "builder"]);
    admin(&["-s", "sesame", "-r", "example.org"]);
    admin(&[
        "-g",
        "-r",
        "example.org",
        "--user-quota=20",
        "--max-bps=250000",
    ]);

    let json = output(&["import", "--json", file.to_str().unwrap()]);
    assert_eq!(json.status.code(), Some(0), "{}", stderr(&json));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let toml = json["toml"].as_str().unwrap();
    for expected in [
        "\"alice\" = \"md5:",
        "allocations_per_user = 20",
        "bandwidth_per_allocation = \"2Mbit\"",
    ] {
        assert!(toml.contains(expected), "{expected} in {toml}");
    }
    for absent in ["bob", "sesame", "wonder"] {
        assert!(!toml.contains(absent), "{absent} in {toml}");
    }
    serves(
        TEST,
        folder.path(),
        &file,
        ports,
        &Who::User("alice", "wonder land"),
        false,
    );

    // The secret counts where secrets do.
    std::fs::write(
        &file,
        format!(
            "listening-ip=127.0.0.1\nlistening-port={}\nuse-auth-secret\n",
            ports.plain()
        ),
    )
    .unwrap();
    let database = database.to_str().unwrap();
    let secret = output(&["import", file.to_str().unwrap(), "--database", database]);
    let toml = String::from_utf8(secret.stdout).unwrap();
    assert!(
        toml.contains("\"sesame\"") && !toml.contains("alice"),
        "{toml}"
    );
    assert!(toml.contains("realm = \"example.org\""), "{toml}");
    let without = output(&["import", file.to_str().unwrap(), "--no-database"]);
    assert!(
        !String::from_utf8(without.stdout)
            .unwrap()
            .contains("sesame")
    );
}

#[test]
fn what_cannot_be_read_or_written_is_said() {
    let (folder, file) = folder("realm=example.org\nuser=alice:wonder\n");
    let file = file.to_str().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let fails = |arguments: &[&str], with: &str| {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            stderr(&output).contains(with),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    };
    fails(&["import", &at("missing.conf")], "/etc/turnserver.conf");
    fails(
        &["import", file, "--database", &at("missing.db")],
        "--no-database leaves it out",
    );
    fails(
        &["import", file, "-o", &at("no/such/folder")],
        "cannot be written",
    );

    let target = at("turnix.toml");
    let written = output(&["import", file, "-o", &target]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    assert!(written.stdout.is_empty());
    assert!(stderr(&written).ends_with(&format!("next: turnix check -c {target}\n")));
    let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&target) & 0o137, 0, "{:o}", mode(&target));
    fails(&["import", file, "-o", &target], "--force");
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&target, "x".repeat(100_000)).unwrap();
    assert_eq!(
        output(&["import", file, "-o", &target, "--force"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(mode(&target), 0o600);
    assert!(
        std::fs::read_to_string(&target)
            .unwrap()
            .starts_with("# Imported")
    );

    // Nothing of a database is taken from a program that is not there.
    std::fs::write(at("db"), "").unwrap();
    let alone = turnix(&["import", file, "--database", &at("db")])
        .env("PATH", folder.path())
        .output()
        .unwrap();
    assert_eq!(alone.status.code(), Some(1));
    assert!(
        stderr(&alone).contains("apt-get install sqlite3"),
        "{}",
        stderr(&alone)
    );
    if find_tool("what_cannot_be_read_or_written_is_said", "sqlite3").is_some() {
        fails(
            &["import", file, "--database", &at("db")],
            "the tables of coturn",
        );
        std::fs::write(
            at("db"),
            "no database at all, and longer than a header of SQLite is, hunter2",
        )
        .unwrap();
        fails(&["import", file, "--database", &at("db")], "sqlite3 says");
    }
}

#[test]
fn a_result_that_needs_something_ends_with_2_and_says_what() {
    let (folder, file) = folder("user=alice:wonder\ncert=missing.pem\npkey=key.pem\n");
    let result = output(&["import", file.to_str().unwrap()]);
    assert_eq!(result.status.code(), Some(2));
    let missing = folder.path().join("missing.pem");
    assert!(
        stderr(&result).contains(&format!("error: tls.certificate: {}", missing.display())),
        "{}",
        stderr(&result)
    );
    assert!(String::from_utf8(result.stdout).unwrap().contains("[tls]"));
    let json = output(&["import", "--json", file.to_str().unwrap()]);
    assert_eq!(json.status.code(), Some(2));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["problems"][0]["key"], "tls.certificate");
    let total: u64 = json["counts"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(json["findings"].as_array().unwrap().len() as u64, total);
}

#[test]
fn a_file_may_come_from_standard_input() {
    use std::io::Write;
    let mut child = turnix(&["import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"user=alice:wonder\n\xff\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("\"alice\" = \"wonder\"")
    );
}
