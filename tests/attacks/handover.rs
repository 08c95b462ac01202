//! The socket by which another process takes over: who may use it, and what whoever does gets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::sync::mpsc;
use turnix::lifecycle::handover::{self, Approach, Inventory, Knock};
use turnix::net::{Channel, Doorway, Peer};

/// Somebody who listens at `path`, and answers what is open: nothing.
fn listen(path: &Path) -> Doorway {
    let (sender, mut knocks) = mpsc::channel(4);
    let doorway = handover::listen(path, false, sender).unwrap();
    std::thread::spawn(move || {
        while let Some(knock) = knocks.blocking_recv() {
            if let Knock::Inventory(answer) = knock {
                let _ = answer.send(Inventory {
                    shards: 1,
                    ..Inventory::default()
                });
            }
        }
    });
    doorway
}

#[test]
fn only_this_user_and_root_are_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let doorway = listen(&path);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let own = Channel::connect(&path).unwrap().peer().unwrap();
    assert_eq!(own.pid, std::process::id() as i32);
    assert!(own.is_trusted());
    assert!(Peer { uid: 0, ..own }.is_trusted());
    assert!(
        !Peer {
            uid: own.uid + 4711,
            ..own
        }
        .is_trusted()
    );
    drop(doorway);
    assert!(!path.exists());
}

#[test]
fn another_user_gets_nothing_even_where_the_socket_lets_him_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let _doorway = listen(&path);
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    open(directory.path());
    open(&path);
    let script = "
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
except PermissionError:
    sys.exit(43)
try:
    s.sendall(b'\\x01\\0\\0\\0\\0')
    sys.exit(42 if s.recv(1) else 0)
except (BrokenPipeError, ConnectionResetError):
    sys.exit(0)
";
    let stranger = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .uid(65_534)
        .status();
    match stranger.map(|status| status.code()) {
        Ok(Some(43)) => println!("skipped: another user does not get as far as the socket"),
        Ok(code) => assert_eq!(code, Some(0), "hung up on"),
        Err(error) => println!("skipped: needs root and python3: {error}"),
    }
    // Whoever may is served all the same.
    assert!(Approach::to(&path).unwrap().is_some());
}

#[test]
fn nonsense_is_hung_up_on_and_the_next_one_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let _doorway = listen(&path);
    let nonsense: [&[u8]; 6] = [
        b"",
        b"\x01",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        // A hello that is none, one without end, and words out of turn.
        b"\x01\0\0\0\x04\xde\xad\xbe\xef",
        b"\x01\xff\xff\xff\xff",
        b"\x06\0\0\0\0",
    ];
    for bytes in nonsense {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // It may be closed with what was not read, which is an error here.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"");
        assert!(Approach::to(&path).unwrap().is_some(), "{bytes:?}");
    }
}

#[test]
fn a_socket_in_use_is_not_taken_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let _doorway = listen(&path);
    let (sender, _knocks) = mpsc::channel(1);
    let second = handover::listen(&path, false, sender).expect_err("in use");
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    assert!(Approach::to(&path).unwrap().is_some());
}
