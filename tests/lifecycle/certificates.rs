//! Certificates that are renewed under a running server.

use std::fs;
use std::path::Path;

use turnix::base::Clock;
use turnix::stream::certificates;

use super::process::{CONFIG, Process};
use super::server::{quiet_address, until};

/// A pair that expires `days` from now less than a new one would; the moment it expires.
fn write_pair(directory: &Path, days: u64) -> u64 {
    let made = Clock.now().unix_secs() - days * 86_400;
    let pair = certificates::self_signed(&["turn.example.org".to_owned()], made).unwrap();
    // As renewals do it: each file is replaced, one after the other.
    for (name, text) in [
        ("chain.pem", pair.certificate_pem.as_str()),
        ("key.pem", pair.key_pem.expose()),
    ] {
        fs::write(directory.join("new"), text).unwrap();
        fs::rename(directory.join("new"), directory.join(name)).unwrap();
    }
    let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
    certificates::load(&chain, &key).unwrap().not_after_unix()
}

fn served(process: &Process) -> u64 {
    let metrics = metrics(process);
    let line = (metrics.lines())
        .find(|line| line.starts_with("turn_certificate_expiry_timestamp_seconds"))
        .expect("the metric");
    line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64
}

fn metrics(process: &Process) -> String {
    use std::io::{Read, Write};
    let mut connection = std::net::TcpStream::connect(process.admin()).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        process.admin()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

fn start(files: &Path) -> Process {
    start_with(files, "")
}

fn start_with(files: &Path, more: &str) -> Process {
    let tls = format!(
        "[tls]\ncertificate = \"{0}/chain.pem\"\nkey = \"{0}/key.pem\"\n",
        files.display()
    );
    let config = CONFIG.replace("\"http\"]", "\"http\", \"tls\"]") + &tls + more;
    let mut process = Process::spawn(&config, quiet_address(), |_| {});
    process.await_ready();
    process
}

#[test]
fn a_renewed_certificate_is_served_without_being_asked() {
    let files = tempfile::tempdir().unwrap();
    let first = write_pair(files.path(), 100);
    let process = start(files.path());
    assert_eq!(served(&process), first);
    // Looked at once, so that it is known.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let second = write_pair(files.path(), 50);
    assert_ne!(first, second);
    until("the new one is served", || served(&process) == second);

    // A bad one is told, and the one before is served on.
    fs::write(files.path().join("key.pem"), "no key").unwrap();
    until("it is told", || {
        process.log().contains("the new certificate cannot be used")
    });
    assert_eq!(served(&process), second);
    let third = write_pair(files.path(), 10);
    until("the next good one is served", || served(&process) == third);
}

#[test]
fn certificates_for_other_names_are_renewed_as_well() {
    let (files, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = write_pair(files.path(), 100);
    let first = write_pair(others.path(), 90);
    let more = format!(
        "[[tls.certificates]]\ncertificate = \"{0}/chain.pem\"\nkey = \"{0}/key.pem\"\n",
        others.path().display()
    );
    let process = start_with(files.path(), &more);
    let expires = || {
        let metrics = metrics(&process);
        let name = "turn_certificate_expiry_timestamp_seconds{name=\"turn.example.org\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the metric").parse::<f64>().unwrap() as u64
    };
    assert_eq!((served(&process), expires()), (own, first));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let second = write_pair(others.path(), 50);
    until("the new one is served", || expires() == second);
    let third = write_pair(others.path(), 10);
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 200, "{body}");
    assert_eq!((served(&process), expires()), (own, third));
}

#[test]
fn sigusr2_and_a_reload_read_the_certificate() {
    let files = tempfile::tempdir().unwrap();
    write_pair(files.path(), 100);
    let process = start(files.path());
    let second = write_pair(files.path(), 50);
    process.signal("USR2");
    until("the new one is served", || served(&process) == second);
    let third = write_pair(files.path(), 10);
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 200, "{body}");
    assert_eq!(served(&process), third);
    assert!(
        body["notes"][0].as_str().unwrap().contains("certificate"),
        "{body}"
    );
    // One that fits nothing is refused with the whole reload.
    fs::write(files.path().join("key.pem"), "no key").unwrap();
    let (status, body) = process.http("POST", "/api/v1/reload");
    assert_eq!(status, 422, "{body}");
    assert_eq!(served(&process), third);
}
