//! What is secret comes out nowhere: logs of every level, the admin listener, errors, what the host shows of a process.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use turnix::base::Clock;
use turnix::stream::certificates;

use super::super::common::wire::{Request, Signer};
use super::super::process::{PASSWORD, Process, SECRET, configuration, said, turnix};
use super::exchange;

const FROM_FILE: &str = "file-secret-4e0f6b7a9d";
const FROM_ENVIRONMENT: &str = "env-password-77ab01c3e5";
const TOKEN: &str = "token-0c2b1f9e8d7a6b5c4d3e2f1a";
const KEY: &str = "api-key-secret-6a7b8c9d0e1f";
const GUESS: &str = "guess-9f8e7d6c5b4a39281706f5e4";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn tells_none(what: &str, text: &str, secrets: &[String]) {
    for secret in secrets {
        assert!(
            !text.contains(secret.as_str()),
            "{what} tells {secret}: {text}"
        );
    }
}

#[test]
fn secrets_come_out_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let signed =
        certificates::self_signed(&["127.0.0.1".to_owned()], Clock.now().unix_secs()).unwrap();
    write(&path("chain.pem"), &signed.certificate_pem, 0o644);
    write(&path("key.pem"), signed.key_pem.expose(), 0o644);
    write(&path("secret"), &format!("{FROM_FILE}\n"), 0o644);
    let more = format!(
        "[auth]\nsecrets = [\"{SECRET}\"]\nsecret_files = [{:?}]\n[tls]\ncertificate = {:?}\nkey = {:?}\n\
         [log]\nlevel = \"trace\"\n[[api.keys]]\nid = \"web\"\nsecret = \"{KEY}\"\n",
        path("secret"),
        path("chain.pem"),
        path("key.pem"),
    );
    let users = format!("{{ alice = \"{PASSWORD}\", bob = \"{FROM_ENVIRONMENT}\" }}");
    let token = format!("http.token={TOKEN}");
    let listen =
        r#"listen=[{ address = "127.0.0.1:0", protocols = ["udp", "tcp", "tls", "http"] }]"#;
    let (minted, derived) = turnix::access::rest::mint(
        &turnix::base::Secret::new(SECRET.into()),
        Some("carol"),
        4_000_000_000,
    );
    let key_line = (signed.key_pem.expose().lines().nth(1)).unwrap().to_owned();
    let secrets: Vec<String> = [
        PASSWORD,
        SECRET,
        FROM_FILE,
        FROM_ENVIRONMENT,
        TOKEN,
        KEY,
        GUESS,
        &derived,
        &key_line,
    ]
    .map(str::to_owned)
    .into();
    let file = configuration(directory.path(), &more);
    let process = Process::start(
        directory,
        &more,
        &["--set", &token, "--set", listen],
        &[("TURNIX_AUTH__USERS", &users)],
    );

    // Traffic that succeeds and traffic that fails.
    for (user, password) in [
        ("alice", PASSWORD),
        ("bob", FROM_ENVIRONMENT),
        (&minted, &derived),
        ("alice", GUESS),
        ("nobody", GUESS),
        ("1:late", GUESS),
    ] {
        let mut client = process.client();
        client.login(user, password);
        let request = Request::allocate().sign(client.signer.as_ref().unwrap());
        let allocated = client.ask(&request).code() == 0;
        assert_eq!(allocated, password != GUESS, "{user}");
        if allocated {
            client.ask_signed(Request::create_permission(&["10.0.0.1:1".parse().unwrap()]));
            client.release();
        }
    }
    let mut client = process.client();
    let nonce = client.ask(&Request::allocate()).nonce();
    let signer = Signer {
        realm: GUESS.into(),
        ..Signer::new("alice", PASSWORD, &nonce)
    };
    assert_eq!(client.ask(&Request::allocate().sign(&signer)).code(), 401);
    let with = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let mut answers = String::new();
    for path in [
        "/metrics",
        "/live",
        "/ready",
        "/health",
        "/status",
        "/api/v1/allocations",
        "/",
    ] {
        for headers in [String::new(), with(TOKEN), with(GUESS), with(&TOKEN[1..])] {
            answers += &process.ask("GET", path, &headers).1;
        }
    }
    assert_eq!(process.ask("GET", "/metrics", "").0, 401);
    assert_eq!(process.ask("GET", "/metrics", &with(TOKEN)).0, 200);
    for request in [
        format!(
            "GET /{GUESS}?key={TOKEN} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "GET /api/webrtc/config?key={KEY}&user=dave HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ),
        format!(
            "GET /api/webrtc/config?key={GUESS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ),
        format!("GET {TOKEN}\r\n\r\n"),
        format!("\x16\x03\x01\x00\x10{TOKEN}"),
    ] {
        answers += &String::from_utf8_lossy(&exchange(process.turn, request.as_bytes()));
    }
    tells_none("an answer", &answers, &secrets);

    // What was said of it at start, and how to do better.
    process.logs("\"request refused\"");
    let log = String::from_utf8(process.log()).unwrap();
    tells_none("the log", &log, &secrets);
    for warning in [
        "--set: http.token: a secret on the command line",
        "use http.token_file, or TURNIX_HTTP__TOKEN in the environment",
        "secret may be read or changed by others (mode 0644)",
        "key.pem may be read or changed by others (mode 0644)",
        "turnix.toml: holds secrets and may be read or changed by others",
    ] {
        assert!(log.contains(warning), "{warning}: {log}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let mut bounds = core.split_ascii_whitespace().skip(4).take(2);
    // The hard limit, too: nothing in the process raises it again.
    assert!(bounds.all(|bound| ["0", "1"].contains(&bound)), "{core}");

    // The same is said by `check`, and none of it once it is put right.
    let check = |arguments: &[&str]| {
        let all = [&["check", "-c", file.to_str().unwrap()], arguments].concat();
        let output = turnix(
            process.directory.path(),
            &all,
            &[("TURNIX_HTTP__TOKEN", TOKEN)],
        )
        .output()
        .unwrap();
        said(&output)
    };
    let admin = "http.admin=127.0.0.1:0";
    let told = check(&[
        "--set",
        admin,
        "--set",
        &format!("auth.users={users}"),
        "--set",
        listen,
    ]);
    tells_none("check", &told, &secrets);
    assert_eq!(
        told.matches("may be read or changed by others").count(),
        3,
        "{told}"
    );
    assert_eq!(
        told.matches("a secret on the command line").count(),
        1,
        "{told}"
    );
    for name in ["secret", "key.pem", "turnix.toml"] {
        let path = process.directory.path().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let told = check(&["--set", admin, "--set", listen]);
    assert!(
        !told.contains("others") && !told.contains("command line"),
        "{told}"
    );
}

#[test]
fn a_refused_configuration_tells_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let two_lines = directory.path().join("two");
    write(&two_lines, &format!("{SECRET}\n{FROM_FILE}\n"), 0o600);
    let secrets: Vec<String> = [PASSWORD, SECRET, FROM_FILE, FROM_ENVIRONMENT, &TOKEN[..12]]
        .map(str::to_owned)
        .into();
    for more in [
        format!("[auth]\nusers = {{ alice = [\"{PASSWORD}\"] }}\n"),
        format!("[auth]\nusers = \"{PASSWORD}\"\n"),
        format!("[auth]\nsecrets = \"{SECRET}\"\n"),
        format!("[auth]\nsecrets = [[\"{SECRET}\"]]\n"),
        format!("[auth]\nsecrets = [\"{SECRET}\n"),
        format!("[auth]\nsecrets = [\"x\"]\nsecret_files = [{two_lines:?}]\n"),
        format!(
            "[auth]\nsecrets = [\"x\"]\n[http]\ntoken = \"{}\"\n",
            &TOKEN[..12]
        ),
        format!("[auth]\nsecrets = [\"x\"]\n[http]\ntoken = [\"{TOKEN}\"]\n"),
        format!("[auth]\nsecrets = [\"x\"]\n[http]\ntoken = \"{TOKEN} {TOKEN}\"\n"),
        format!("[auth]\nsecrets = [\"x\"]\n[http]\ntoken_file = {two_lines:?}\n"),
        format!(
            "[auth]\nsecrets = [\"x\"]\n[http]\ntoken = \"{TOKEN}\"\ntoken_file = {two_lines:?}\n"
        ),
    ] {
        let file = configuration(directory.path(), &more);
        for command in ["serve", "check"] {
            let arguments = [command, "-c", file.to_str().unwrap()];
            let output = turnix(directory.path(), &arguments, &[]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{more}");
            tells_none(command, &said(&output), &secrets);
        }
    }
    // Credentials without a secret on the command line.
    let one_line = directory.path().join("one");
    write(&one_line, &format!("{SECRET}\n"), 0o600);
    let from = |arguments: &[&str], environment: &[(&str, &str)]| {
        let all = [
            &["credentials", "--user", "carol", "--format", "env"],
            arguments,
        ]
        .concat();
        let output = turnix(directory.path(), &all, environment)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        tells_none("credentials", &said(&output), &[SECRET.to_owned()]);
        said(&output)
    };
    let by_file = from(&["--secret-file", one_line.to_str().unwrap()], &[]);
    let by_environment = from(&[], &[("TURNIX_AUTH__SECRETS", SECRET)]);
    for told in [by_file, by_environment] {
        assert!(told.contains("TURN_CREDENTIAL="), "{told}");
    }
}
