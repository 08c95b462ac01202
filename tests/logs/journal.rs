//! The journal's native protocol, read by a socket of the test.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

use turnix::base::PiiMode;
use turnix::logging::journal::Journal;
use turnix::logging::{Format, Level, Settings, subscriber};

use super::server::PATIENCE;

const SETTINGS: Settings = Settings {
    format: Format::Journald,
    level: Level::Trace,
    events_per_second: 0,
    ip_privacy: PiiMode::Full,
};

/// The fields of one datagram.
fn parse(mut record: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = BTreeMap::new();
    while !record.is_empty() {
        let end = record
            .iter()
            .position(|b| matches!(b, b'=' | b'\n'))
            .unwrap();
        let name = text(&record[..end]);
        let valid = |b: u8| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_');
        assert!(name.bytes().all(valid) && name.len() <= 64, "{name:?}");
        let rest = &record[end + 1..];
        let (value, rest) = if record[end] == b'=' {
            let end = rest.iter().position(|b| *b == b'\n').unwrap();
            (&rest[..end], &rest[end..])
        } else {
            let (length, rest) = rest.split_at(8);
            rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize)
        };
        assert_eq!(rest[0], b'\n');
        record = &rest[1..];
        let before = fields.insert(name.clone(), text(value));
        assert_eq!(before, None, "{name} twice");
    }
    fields
}

struct Socket {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Socket {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, directory }
    }

    fn journal(&self) -> Journal {
        Journal::connect(&self.directory.path().join("socket")).unwrap()
    }

    fn next(&self) -> BTreeMap<String, String> {
        let mut buffer = vec![0; 256 << 10];
        let length = self.socket.recv(&mut buffer).expect("a record in time");
        parse(&buffer[..length])
    }
}

#[test]
fn events_become_fields() {
    let socket = Socket::new();
    let (subscriber, _control) = subscriber(SETTINGS, socket.journal().boxed());
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(user = "alice", to_peer_bytes = 1200_u64, reason = %"released", "allocation ended");
        tracing::warn!("wide\nMESSAGE=forged");
        tracing::error!(user = "eve\nPRIORITY=0\n", "hostile");
        tracing::debug!(target: "turnix::trace", "fine");
        tracing::trace!(huge = "x".repeat(1 << 20), "finest");
    });
    let first = socket.next();
    assert_eq!(first["PRIORITY"], "6");
    assert_eq!(first["SYSLOG_IDENTIFIER"], "turnix");
    assert_eq!(
        first["MESSAGE"],
        r#"allocation ended user="alice" to_peer_bytes=1200 reason=released"#
    );
    assert_eq!(first["TURNIX_USER"], "alice");
    assert_eq!(first["TURNIX_TO_PEER_BYTES"], "1200");
    assert_eq!(first["TURNIX_REASON"], "released");
    assert!(first["CODE_FILE"].ends_with("journal.rs"));
    assert!(first["CODE_LINE"].parse::<u32>().is_ok());
    let second = socket.next();
    assert_eq!(second["PRIORITY"], "4");
    assert_eq!(second["MESSAGE"], "wide\nMESSAGE=forged");
    let third = socket.next();
    assert_eq!(third["PRIORITY"], "3");
    assert_eq!(third["TURNIX_USER"], "eve\nPRIORITY=0\n");
    assert!(!third["MESSAGE"].contains('\n'), "{third:?}");
    let fourth = socket.next();
    assert_eq!(fourth["PRIORITY"], "7");
    assert_eq!(fourth["TURNIX_TARGET"], "turnix::trace");
    let fifth = socket.next();
    assert_eq!(fifth["PRIORITY"], "7");
    assert!(fifth["TURNIX_HUGE"].len() < 64 << 10);
}

#[test]
fn a_journal_that_does_not_read_stops_nobody_and_what_it_missed_is_told() {
    let socket = Socket::new();
    let (subscriber, _control) = subscriber(SETTINGS, socket.journal().boxed());
    tracing::subscriber::with_default(subscriber, || {
        for number in 0..5000 {
            tracing::info!(number, "flood");
        }
        socket.socket.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 4096];
        let mut read = 0;
        while let Ok(length) = socket.socket.recv(&mut buffer) {
            assert_eq!(parse(&buffer[..length])["TURNIX_NUMBER"], read.to_string());
            read += 1;
        }
        assert!(read < 5000);
        tracing::info!("after");
        socket.socket.set_nonblocking(false).unwrap();
        assert_eq!(
            socket.next()["TURNIX_JOURNAL_LOST"],
            (5000 - read).to_string()
        );
        tracing::info!("well");
        assert!(!socket.next().contains_key("TURNIX_JOURNAL_LOST"));
    });
}

#[test]
fn without_a_journal_there_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let error = Journal::connect(&directory.path().join("none"))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
