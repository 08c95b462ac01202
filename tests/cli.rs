//! The commands as people run them.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use turnix::stream::certificates;

const ONE_LISTENER: &str =
    r#"listen=[{ address = "127.0.0.1:0", protocols = ["udp", "tcp", "tls", "http"] }]"#;

fn turnix(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnix"));
    command
        .args(arguments)
        .env_clear()
        .env("XDG_STATE_HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(home: &Path, arguments: &[&str]) -> Output {
    turnix(home, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn file(home: &Path, content: &str) -> PathBuf {
    let path = home.join("turnix.toml");
    std::fs::write(&path, content).unwrap();
    path
}

/// Standard output of a server until its last line, then the server is ended.
fn banner(home: &Path, arguments: &[&str]) -> String {
    let mut child = turnix(home, arguments).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut output = String::new();
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(10)) {
        let last = line.starts_with("Credentials that end");
        output += &line;
        output.push('\n');
        if last {
            break;
        }
    }
    let _ = child.kill();
    let mut errors = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    child.wait().unwrap();
    assert!(output.contains("Credentials that end"), "{output}{errors}");
    output
}

fn ice_servers(output: &str) -> Value {
    let start = output.find("\n[").map_or(0, |at| at + 1);
    let end = output.find("\n]").unwrap() + 2;
    serde_json::from_str(&output[start..end]).unwrap()
}

#[test]
fn help_names_the_commands() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in [
        "serve",
        "check",
        "credentials",
        "--config",
        "--set",
        "Exit codes",
    ] {
        assert!(help.contains(word), "{word} in {help}");
    }
    for command in ["serve", "check", "credentials", "probe", "top", "trace"] {
        let output = run(home.path(), &["help", command]);
        assert_eq!(output.status.code(), Some(0), "{command}");
    }
}

#[test]
fn a_bad_configuration_ends_with_2_and_every_problem() {
    let home = tempfile::tempdir().unwrap();
    let path = file(home.path(), "realm = \"\"\n[relay]\nport = \"1-2\"\n");
    let path = path.to_str().unwrap();
    let golden = format!(
        "error: {path}: auth: neither users nor secrets: without either, the server would be useless or an open \
         relay; add to [auth] either secrets = [\"a long random text\"] (`turnix credentials` then makes \
         time-limited credentials) or users = {{ alice = \"a password\" }}\n\
         error: {path}:1: realm: found \"\"; expected 1 to 127 characters, usually the server's domain name\n\
         error: {path}:3: relay.port: unknown key; did you mean relay.ports?\n"
    );
    for command in ["serve", "credentials"] {
        let output = run(home.path(), &[command, "-c", path]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert_eq!(text(&output.stderr), golden, "{command}");
        assert_eq!(text(&output.stdout), "", "{command}");
    }
    let output = run(home.path(), &["check", "-c", path]);
    assert_eq!(output.status.code(), Some(2));
    let report = text(&output.stdout);
    assert!(report.starts_with(&golden), "{report}");
    assert!(
        report.contains("turnix could not serve: 3 errors"),
        "{report}"
    );

    let output = run(home.path(), &["-c", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("error: /nonexistent: cannot be read"));
    let output = run(home.path(), &["--sat", "x"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn check_is_content_with_a_good_host() {
    let home = tempfile::tempdir().unwrap();
    let path = file(
        home.path(),
        "[auth]\nsecrets = [\"s\"]\n[http]\nadmin = \"\"\n[relay]\nexternal_address = \"203.0.113.7\"\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\nprotocols = [\"udp\", \"tcp\"]\n",
    );
    let output = run(home.path(), &["check", "-c", path.to_str().unwrap()]);
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(report.contains("turnix can serve: "), "{report}");
    assert!(!report.contains("error:"), "{report}");
}

#[test]
fn check_finds_every_problem_of_the_host() {
    let home = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = udp.local_addr().unwrap().port();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = tcp.local_addr().unwrap();
    let content = format!(
        "[auth]\nsecrets = [\"s\"]\n[http]\nadmin = \"{admin}\"\n[relay]\nports = \"{taken}-{taken}\"\n\
         addresses = [\"127.0.0.1\", \"192.0.2.77\"]\n[limits]\nallocations = 4000000000\n\
         [[listen]]\naddress = \"127.0.0.1:{taken}\"\nprotocols = [\"udp\"]\n",
    );
    let path = file(home.path(), &content);
    let output = run(home.path(), &["check", "-c", path.to_str().unwrap()]);
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{report}");
    for line in [
        format!("error: host: listen.address: 127.0.0.1:{taken} (UDP) is in use by "),
        format!("error: host: http.admin: {admin} (TCP) is in use by "),
        format!("error: host: relay.ports: no port of {taken}-{taken} on 127.0.0.1 can be bound"),
        "error: host: relay.addresses: 192.0.2.77 is not an address of this host".into(),
        "warning: host: relay.ports: 2 relay addresses have 2 ports, and limits.allocations is 4000000000".into(),
        "turnix could not serve: 4 errors".into(),
    ] {
        assert!(report.contains(&line), "{line}\nin\n{report}");
    }
}

#[test]
fn check_looks_at_what_an_acme_authority_would() {
    let home = tempfile::tempdir().unwrap();
    let certificate = certificates::self_signed(&["127.0.0.1".to_owned()], 1_800_000_000).unwrap();
    let authority = home.path().join("authority.pem");
    std::fs::write(&authority, certificate.certificate_pem).unwrap();
    let path = file(
        home.path(),
        &format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocols = [\"tls\"]\n\
             [auth]\nsecrets = [\"s3cret\"]\n[relay]\naddresses = [\"127.0.0.1\"]\n[http]\nadmin = \"\"\n\
             [tls]\nacme = {{ names = [\"localhost\"], directory = \"https://127.0.0.1:1/dir\", ca_file = {authority:?} }}\n"
        ),
    );
    let path = path.to_str().unwrap();
    let output = run(home.path(), &["check", "-c", path]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(
        report.contains(
            "holds no certificate for localhost yet: the server orders one when it starts"
        ),
        "{report}"
    );
    assert!(
        report.contains("authorities look at port 443 (tls-alpn-01)"),
        "{report}"
    );
    assert!(!report.contains("leads to"), "it leads here: {report}");
    assert!(!home.path().join("turnix").exists(), "nothing is made");

    let mut command = turnix(home.path(), &["check", "-c", path]);
    let output = command
        .env("STATE_DIRECTORY", "/proc/turnix")
        .output()
        .unwrap();
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{report}");
    assert!(
        report.contains("error: host: tls.acme: nothing can be kept in /proc/turnix/acme"),
        "{report}"
    );
    // A server says the same, and does not begin to serve.
    let mut command = turnix(home.path(), &["serve", "-c", path]);
    let output = command
        .env("STATE_DIRECTORY", "/proc/turnix")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(
        told.contains("cannot be kept in /proc/turnix/acme"),
        "{told}"
    );
}

#[test]
fn what_is_revoked_and_cannot_be_read_keeps_a_server_from_starting() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    std::fs::create_dir_all(state.join("ledger")).unwrap();
    let secret = "auth.secrets=['s3cret']";
    let of_admin = "http.admin=''";
    let arguments = [
        "serve",
        "--set",
        ONE_LISTENER,
        "--set",
        secret,
        "--set",
        of_admin,
    ];
    let output = turnix(home.path(), &arguments)
        .env("STATE_DIRECTORY", &state)
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("error: host: revocations: the ledger in "),
        "{told}"
    );
    assert!(told.contains("or move it away"), "{told}");
}

#[test]
fn check_counts_descriptors_against_allocations() {
    let home = tempfile::tempdir().unwrap();
    let content = "[auth]\nsecrets = [\"s\"]\n[http]\nadmin = \"\"\n[relay]\naddresses = [\"127.0.0.1\"]\n\
                   ports = \"40000-40999\"\n[[listen]]\naddress = \"127.0.0.1:0\"\nprotocols = [\"udp\"]\n";
    let path = file(home.path(), content);
    let path = path.to_str().unwrap();
    let check = |allocations: u32| {
        let set = format!("limits.allocations={allocations}");
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 612 && exec \"$@\"", "sh"])
            .args([env!("CARGO_BIN_EXE_turnix"), "check", "-c", path])
            .args(["--set", &set])
            .output()
            .unwrap();
        text(&output.stdout)
    };
    for (allocations, line) in [
        (
            0,
            "open files: at most 612, enough for 100 allocations, and there are relay ports for 1000; raise",
        ),
        (
            101,
            "open files: at most 612, enough for 100 allocations, and limits.allocations is 101; raise",
        ),
        (
            1001,
            "relay.ports: one relay address has 1000 ports, and limits.allocations is 1001; widen",
        ),
    ] {
        let report = check(allocations);
        let line = format!("warning: host: {line}");
        assert!(report.contains(&line), "{line}\nin\n{report}");
    }
    assert!(!check(100).contains("open files"));
}

#[test]
fn check_knows_the_running_server() {
    let home = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let path = file(
        home.path(),
        &format!(
            "[auth]\nsecrets = [\"s\"]\n[http]\nadmin = \"\"\n[[listen]]\naddress = \"{free}\"\n\
             protocols = [\"udp\", \"tcp\", \"http\"]\n"
        ),
    );
    let path = path.to_str().unwrap();
    let mut server = turnix(home.path(), &["serve", "-c", path])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let bound = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(25));
        std::net::TcpStream::connect(free).is_ok()
    });
    let output = run(home.path(), &["check", "-c", path]);
    let pid = server.id();
    server.kill().unwrap();
    server.wait().unwrap();
    let report = text(&output.stdout);
    assert!(bound, "the server did not start");
    assert_eq!(output.status.code(), Some(0), "{report}");
    for kind in ["UDP", "TCP"] {
        let line = format!(
            "warning: host: listen.address: {free} ({kind}) is in use by turnix (pid {pid});"
        );
        assert!(report.contains(&line), "{line}\nin\n{report}");
    }
}

#[test]
fn credentials_as_ice_servers() {
    let home = tempfile::tempdir().unwrap();
    let output = run(
        home.path(),
        &[
            "credentials",
            "--secret",
            "s3cret",
            "--user",
            "alice",
            "--ttl",
            "1h",
            "--host",
            "turn.example.org",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let servers = ice_servers(&text(&output.stdout));
    assert_eq!(
        servers[0]["urls"],
        serde_json::json!([
            "turn:turn.example.org:3478?transport=udp",
            "turn:turn.example.org:3478?transport=tcp"
        ])
    );
    let username = servers[0]["username"].as_str().unwrap();
    let (expires, user) = username.split_once(':').unwrap();
    assert_eq!(user, "alice");
    let secret = turnix::base::Secret::new("s3cret".to_owned());
    let minted = turnix::access::rest::mint(&secret, Some("alice"), expires.parse().unwrap());
    assert_eq!(servers[0]["credential"], minted.1);
}

#[test]
fn credentials_of_a_configuration() {
    let home = tempfile::tempdir().unwrap();
    let made = turnix::stream::certificates::self_signed(
        &["turn.example.org".into()],
        turnix::base::Clock.now().unix_secs(),
    )
    .unwrap();
    let pem = home.path().join("pem");
    std::fs::write(&pem, made.certificate_pem + made.key_pem.expose()).unwrap();
    let content = format!(
        "[auth]\nusers = {{ bob = \"builder\" }}\n[tls]\ncertificate = \"{0}\"\nkey = \"{0}\"\n\
         [[listen]]\naddress = \"[::]:3478\"\n[[listen]]\naddress = \"[::]:443\"\nprotocols = [\"tls\", \"udp\"]\n",
        pem.display()
    );
    let path = file(home.path(), &content);
    let path = path.to_str().unwrap();

    let output = run(home.path(), &["credentials", "-c", path, "--user", "bob"]);
    let servers = ice_servers(&text(&output.stdout));
    assert_eq!(
        servers,
        serde_json::json!([{
            "urls": [
                "turn:turn.example.org:3478?transport=udp",
                "turn:turn.example.org:443?transport=udp",
                "turn:turn.example.org:3478?transport=tcp",
                "turns:turn.example.org:3478?transport=tcp",
                "turns:turn.example.org:443?transport=tcp",
            ],
            "username": "bob",
            "credential": "builder",
        }])
    );

    let output = run(
        home.path(),
        &[
            "credentials",
            "-c",
            path,
            "--user",
            "bob",
            "--format",
            "env",
            "--host",
            "2001:db8::7",
        ],
    );
    let env = text(&output.stdout);
    assert!(
        env.starts_with("TURN_SERVER_URL=turn:[2001:db8::7]:3478?transport=udp\nTURN_URLS="),
        "{env}"
    );
    assert!(
        env.ends_with("TURN_USERNAME=bob\nTURN_CREDENTIAL=builder\n"),
        "{env}"
    );

    let output = run(
        home.path(),
        &[
            "credentials",
            "-c",
            path,
            "--user",
            "bob",
            "--format",
            "table",
        ],
    );
    let table = text(&output.stdout);
    assert!(
        table.starts_with(
            "username    bob\ncredential  builder\nexpires     never (static user)\nurls        turn:turn."
        ),
        "{table}"
    );

    for arguments in [vec![], vec!["--user", "alice"]] {
        let output = run(
            home.path(),
            &[&["credentials", "-c", path], &arguments[..]].concat(),
        );
        assert_eq!(output.status.code(), Some(2));
        let error = text(&output.stderr);
        assert!(error.contains("no secret"), "{error}");
        assert!(error.contains("--user (bob)"), "{error}");
    }

    let output = run(
        home.path(),
        &[
            "credentials",
            "-c",
            path,
            "--set",
            "auth.secrets=s",
            "--ttl",
            "90s",
            "--format",
            "table",
        ],
    );
    let table = text(&output.stdout);
    assert!(table.contains("UTC, in 0h 1m 30s\n"), "{table}");
}

#[test]
fn credentials_need_a_source() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["credentials"]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("start `turnix` once"), "{error}");
    let output = run(home.path(), &["credentials", "--secret", "s", "--ttl", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("a duration such as"));
}

#[test]
fn quick_start_keeps_what_it_makes() {
    let home = tempfile::tempdir().unwrap();
    let first = banner(
        home.path(),
        &["--set", ONE_LISTENER, "--set", "http.admin="],
    );
    let servers = ice_servers(&first);
    assert_eq!(servers[0]["username"], "turnix");
    assert!(servers[0]["credential"].as_str().unwrap().len() >= 20);
    let urls: Vec<&str> = servers[0]["urls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|url| url.as_str().unwrap())
        .collect();
    let schemes: Vec<&str> = urls
        .iter()
        .map(|url| url.split(':').next().unwrap())
        .collect();
    assert_eq!(schemes, ["turn", "turn", "turns"], "{urls:?}");
    // UDP goes without saying.
    let port = urls[0].strip_prefix("turn:127.0.0.1:").unwrap();
    assert!(port.parse::<u16>().is_ok(), "{urls:?}");
    assert!(!first.contains('\x1b'), "no colours in a pipe");

    let link = first.lines().find(|line| line.contains("/test#")).unwrap();
    let (_, fragment) = link.split_once('#').unwrap();
    use base64::Engine;
    let decoded = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(fragment)
        .unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&decoded).unwrap(), servers);

    let state = home.path().join("turnix");
    assert!(first.contains(state.to_str().unwrap()), "{first}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    // The socket for a take-over opens after the banner: the kill may come before it or after.
    names.retain(|name| name != "handover.sock");
    assert_eq!(names, ["certificate.pem", "secret", "turnix.toml", "user"]);

    let kept = |name: &str| std::fs::read(state.join(name)).unwrap();
    let before = (kept("secret"), kept("user"), kept("certificate.pem"));
    let second = banner(
        home.path(),
        &["serve", "--set", ONE_LISTENER, "--set", "http.admin="],
    );
    assert_eq!(
        ice_servers(&second)[0]["credential"],
        servers[0]["credential"]
    );
    assert_eq!(
        before,
        (kept("secret"), kept("user"), kept("certificate.pem"))
    );

    // The same secret makes time-limited credentials.
    let output = run(home.path(), &["credentials", "--user", "alice"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let minted = ice_servers(&text(&output.stdout));
    let username = minted[0]["username"].as_str().unwrap();
    let (expires, _) = username.split_once(':').unwrap();
    let secret = turnix::base::Secret::new(text(&before.0).trim().to_owned());
    let expected = turnix::access::rest::mint(&secret, Some("alice"), expires.parse().unwrap());
    assert_eq!(minted[0]["credential"], expected.1);
}

#[test]
fn quick_start_refuses_state_that_others_can_read() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("turnix");
    std::fs::create_dir(&state).unwrap();
    let secret = state.join("secret");
    std::fs::write(&secret, "known\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    let output = run(home.path(), &["--set", ONE_LISTENER]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        format!(
            "error: host: state {0}: may be read or changed by others (mode 0644); if nobody has used that: \
             chmod 600 {0}; else remove it and the next start makes another\n",
            secret.display()
        )
    );
}

#[test]
fn quick_start_adds_no_credentials_to_those_of_the_operator() {
    let home = tempfile::tempdir().unwrap();
    let output = banner(
        home.path(),
        &[
            "--set",
            ONE_LISTENER,
            "--set",
            "http.admin=",
            "--set",
            "auth.users.alice=wonder",
        ],
    );
    assert_eq!(ice_servers(&output)[0]["username"], "alice");
    let written = std::fs::read_to_string(home.path().join("turnix/turnix.toml")).unwrap();
    assert!(!written.contains("[auth]"), "{written}");

    let output = turnix(
        home.path(),
        &["check", "--set", ONE_LISTENER, "--set", "http.admin="],
    )
    .env("TURNIX_AUTH__USERS__ALICE", "wonder")
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn check_without_a_file_looks_at_the_quick_start() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["check", "--set", "http.admin="]);
    let report = text(&output.stdout);
    let state = home.path().join("turnix");
    let note = format!("quick start, with its state in {}", state.display());
    assert!(report.contains(&note), "{report}");
    assert!(
        !state.join("turnix.toml").exists(),
        "a check chooses nothing"
    );
}
