//! A restart under a service manager that keeps descriptors: played by the test.

use std::collections::HashSet;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use turnix::net::{MAX_DESCRIPTORS, host};

use super::flows::Client;
use super::process::{Server, Site, until};
use crate::common::wire::Request;

/// Where the descriptors of the next process begin: above those that the tests of this process have.
const FIRST: i32 = 3000;

#[derive(Default)]
struct Kept {
    descriptors: Vec<(String, OwnedFd)>,
    ready: usize,
}

/// What systemd does with `FileDescriptorStoreMax=`.
struct Manager {
    directory: tempfile::TempDir,
    kept: Arc<Mutex<Kept>>,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let theirs = Arc::clone(&kept);
        // Ends with the process of the test.
        std::thread::spawn(move || {
            while let Some((text, descriptors)) = receive(&socket) {
                note(&mut theirs.lock().unwrap(), &text, descriptors);
            }
        });
        Self { directory, kept }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let socket = self.directory.path().join("notify");
        vec![
            ("NOTIFY_SOCKET".into(), socket.display().to_string()),
            ("FDSTORE".into(), "1000".into()),
        ]
    }

    fn names(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        kept.descriptors
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn ready(&self) -> usize {
        self.kept.lock().unwrap().ready
    }

    /// Starts a process with what is kept, the last one first.
    fn start(&self, site: &Site) -> Server {
        self.start_with(site, "shards = 2")
    }

    /// The same, with `more` in its configuration.
    fn start_with(&self, site: &Site, more: &str) -> Server {
        let mut environment = self.environment();
        let mut names = Vec::new();
        let mut given = Vec::new();
        for (name, descriptor) in self.kept.lock().unwrap().descriptors.iter().rev() {
            let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, FIRST).unwrap();
            rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).unwrap();
            assert_eq!(copy.as_raw_fd(), FIRST + given.len() as i32);
            given.push(copy);
            names.push(name.clone());
        }
        environment.push(("LISTEN_FDS".into(), given.len().to_string()));
        environment.push(("LISTEN_FDS_FIRST_FD".into(), FIRST.to_string()));
        environment.push(("LISTEN_FDNAMES".into(), names.join(":")));
        let environment: Vec<_> = (environment.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        site.spawn(more, &[], &environment)
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = received.ok()?.bytes;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Some((
        String::from_utf8(bytes[..length].to_vec()).unwrap(),
        descriptors,
    ))
}

fn note(kept: &mut Kept, text: &str, descriptors: Vec<OwnedFd>) {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let name = value("FDNAME=").unwrap_or("stored");
    if value("FDSTORE=").is_some() {
        assert_eq!(
            value("FDPOLL="),
            Some("0"),
            "an ICMP error is no reason to drop a socket"
        );
        let named = descriptors.into_iter().map(|one| (name.to_owned(), one));
        kept.descriptors.extend(named);
    } else if value("FDSTOREREMOVE=").is_some() {
        kept.descriptors.retain(|(known, _)| known != name);
    }
    kept.ready += usize::from(value("READY=").is_some());
}

fn terminate(server: &Server) {
    let pid = Pid::from_raw(server.pid() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[test]
fn calls_outlive_a_restart() {
    host::raise_open_files().unwrap();
    let site = Site::new();
    let manager = Manager::new();
    let mut old = manager.start(&site);
    old.serves();
    until("the first is ready", || manager.ready() == 1);
    let listener = old.listener();
    let peer = UdpSocket::bind((site.address(), 0)).unwrap();
    let clients: Vec<_> = (0..12).map(|_| Client::allocate(listener)).collect();
    for client in &clients {
        client.bind(peer.local_addr().unwrap());
        assert!(client.echoes(&peer));
    }
    let before = old.metric("turn_allocations_total");
    terminate(&old);
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    assert!(!old.log().contains("allocation ended"), "{}", old.log());
    let names = manager.names();
    assert!(names.contains(&"turnix-state".to_owned()), "{names:?}");
    // Two shards on one listener, its TCP socket, the admin listener, the state, and the relays.
    assert_eq!(names.len(), 2 + 1 + 1 + 1 + clients.len());
    // Nobody serves, and nothing is lost.
    for client in &clients {
        client.send(b"meanwhile");
    }

    let mut new = manager.start(&site);
    new.serves();
    assert_eq!(new.listener(), listener);
    peer.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut from = HashSet::new();
    for _ in &clients {
        let mut buffer = [0; 64];
        let (length, relayed) = peer
            .recv_from(&mut buffer)
            .expect("what was sent meanwhile");
        assert_eq!(&buffer[..length], b"meanwhile");
        from.insert(relayed);
    }
    assert_eq!(from.len(), clients.len());
    for client in &clients {
        assert_eq!(client.refresh(), 0);
        assert!(client.echoes(&peer));
    }
    assert_eq!(new.metric("turn_allocations_total"), before);
    until("nothing is kept any more", || manager.names().is_empty());

    // And once more, into a process that cannot use it: it starts anew.
    terminate(&new);
    assert_eq!(new.ended(), Some(0), "{}", new.log());
    assert!(!manager.names().is_empty());
    manager
        .kept
        .lock()
        .unwrap()
        .descriptors
        .retain(|(name, _)| name != "turnix-state");
    let anew = manager.start(&site);
    anew.serves();
    assert!(
        anew.log().contains("what systemd kept is of no use"),
        "{}",
        anew.log()
    );
    until("nothing is kept any more", || manager.names().is_empty());
    Client::allocate(anew.listener());
}

#[test]
fn both_addresses_of_an_allocation_outlive_a_restart() {
    let site = Site::new();
    let relay = format!("[relay]\naddresses = [\"{}\", \"::1\"]", site.address());
    let manager = Manager::new();
    let more = format!("shards = 2\n{relay}");
    let mut old = manager.start_with(&site, &more);
    old.serves();
    until("the first is ready", || manager.ready() == 1);
    let peers = ["127.0.0.1:0", "[::1]:0"].map(|at| UdpSocket::bind(at).unwrap());
    let (client, second) = Client::allocate_both(old.listener());
    client.bind(peers[0].local_addr().unwrap());
    let bind = Request::channel_bind(0x4001, peers[1].local_addr().unwrap());
    assert_eq!(client.ask_signed(bind).code(), 0);
    terminate(&old);
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    let new = manager.start_with(&site, &more);
    new.serves();
    assert!(client.echoes(&peers[0]));
    assert!(client.echoes_by(0x4001, &peers[1], second));
    assert_eq!(new.metric("turn_allocations"), 1.0);
    until("nothing is kept any more", || manager.names().is_empty());
}

#[test]
fn without_room_for_them_calls_end_as_ever() {
    let site = Site::new();
    let manager = Manager::new();
    let mut environment = manager.environment();
    environment[1].1 = "3".into();
    let environment: Vec<_> = (environment.iter())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut server = site.spawn("shards = 2\n[drain]\ngrace = \"0\"", &[], &environment);
    server.serves();
    until("it is ready", || manager.ready() == 1);
    Client::allocate(server.listener());
    terminate(&server);
    assert_eq!(server.ended(), Some(0), "{}", server.log());
    assert!(
        server.log().contains("raise FileDescriptorStoreMax"),
        "{}",
        server.log()
    );
    assert!(
        server.log().contains("allocation ended"),
        "{}",
        server.log()
    );
    assert!(manager.names().is_empty());
}
