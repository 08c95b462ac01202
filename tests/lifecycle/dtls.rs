//! DTLS under a server whose configuration and certificate change.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use turnix::base::Clock;
use turnix::stream::certificates;

use super::client::{Client, Ended};
use super::common::dtls::DtlsLink;
use super::common::wire::Request;
use super::process::{CONFIG, Process};
use super::server::{PATIENCE, quiet_address, until};

fn write_pair(directory: &Path) {
    let now = Clock.now().unix_secs();
    let pair = certificates::self_signed(&["turn.example.org".to_owned()], now).unwrap();
    fs::write(directory.join("key.pem"), pair.key_pem.expose()).unwrap();
    fs::write(directory.join("chain.pem"), &pair.certificate_pem).unwrap();
}

fn config(files: &Path, protocols: &str) -> String {
    let tls = format!(
        "[tls]\ncertificate = \"{0}/chain.pem\"\nkey = \"{0}/key.pem\"\n",
        files.display()
    );
    CONFIG.replace(r#"["udp", "tcp", "http"]"#, protocols) + &tls
}

fn link(process: &Process) -> DtlsLink {
    let socket = UdpSocket::bind((process.ip, 0)).unwrap();
    socket.connect((process.ip, 3478)).unwrap();
    DtlsLink::connect(socket, PATIENCE).unwrap()
}

#[test]
fn it_comes_and_goes_with_a_reload_and_shows_the_certificate_in_use() {
    let files = tempfile::tempdir().unwrap();
    write_pair(files.path());
    let with = config(files.path(), r#"["udp", "tcp", "tls", "dtls"]"#);
    let without = config(files.path(), r#"["udp", "tcp", "tls"]"#);
    let mut process = Process::spawn(&without, quiet_address(), |_| {});
    process.await_ready();
    let mut plain = process.client();
    plain.allocate();

    process.reload(&with);
    let mut first = Client::on_dtls(link(&process));
    first.allocate();
    process.until_live(2);
    let shown = first.dtls().server.clone();
    assert!(!shown.is_empty());

    // Another certificate is for those who come, and ends nobody's session.
    write_pair(files.path());
    process.signal("USR2");
    until("the new certificate is shown", || {
        link(&process).server != shown
    });
    assert_eq!(first.ask(&Request::binding()).code(), 0);

    process.reload(&without);
    assert_eq!(first.next(PATIENCE).unwrap_err(), Ended::Closed);
    process.until_live(1);
    assert_eq!(plain.ask(&Request::binding()).code(), 0);
}

#[test]
fn a_listener_may_speak_nothing_else() {
    let files = tempfile::tempdir().unwrap();
    write_pair(files.path());
    let only = config(files.path(), r#"["dtls"]"#);
    let mut process = Process::spawn(&only, quiet_address(), |_| {});
    process.await_ready();
    Client::on_dtls(link(&process)).allocate();
    let mut plain = process.client();
    plain.send(&Request::binding().bytes());
    let ended = plain.next(std::time::Duration::from_millis(300));
    assert_eq!(ended.unwrap_err(), Ended::Silent);
}
