//! Take-overs that fail: whatever ends when, exactly one process serves.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;

use turnix::net::Channel;

use super::flows::Client;
use super::process::{Server, Site, until};

const FAULT: &str = "HANDOVER_FAULT";

/// Fault points are compiled in with debug assertions only.
fn has_fault_points() -> bool {
    if !cfg!(debug_assertions) {
        println!("skipped: a release build has no fault points");
    }
    cfg!(debug_assertions)
}

struct Call {
    peer: UdpSocket,
    clients: Vec<Client>,
}

impl Call {
    fn new(site: &Site, server: &Server) -> Self {
        let peer = UdpSocket::bind((site.address(), 0)).unwrap();
        let clients: Vec<_> = (0..8)
            .map(|_| Client::allocate(server.listener()))
            .collect();
        let call = Self { peer, clients };
        for client in &call.clients {
            client.bind(call.peer.local_addr().unwrap());
        }
        call.assert_goes_on();
        call
    }

    #[track_caller]
    fn assert_goes_on(&self) {
        for client in &self.clients {
            assert!(client.echoes(&self.peer));
            assert_eq!(client.refresh(), 0);
        }
    }
}

#[test]
fn a_successor_that_ends_leaves_the_old_one_serving() {
    if !has_fault_points() {
        return;
    }
    let site = Site::new();
    let mut old = site.start(&[]);
    let call = Call::new(&site, &old);
    for point in ["new:ready", "new:taken", "new:granted"] {
        let mut new = site.successor(&[(FAULT, point)]);
        assert_eq!(new.ended(), None, "{point}: {}", new.log());
        call.assert_goes_on();
        assert!(old.is_running(), "{point}");
        assert_eq!(old.metric("turn_allocations"), 8.0, "{point}");
    }
    // It served for a moment, and said nothing of it.
    let mut new = site.successor(&[(FAULT, "new:serving")]);
    assert_eq!(new.ended(), None, "{}", new.log());
    call.assert_goes_on();
    Client::allocate(old.listener());
    // And the next one takes over.
    let new = site.successor(&[]);
    new.serves();
    assert_eq!(old.ended(), Some(0), "{}", old.log());
    call.assert_goes_on();
}

#[test]
fn a_predecessor_that_ends_leaves_the_new_one_with_what_it_gave() {
    if !has_fault_points() {
        return;
    }
    for (point, goes_on) in [
        ("old:frozen", false),
        ("old:listeners", false),
        ("old:relays", false),
        ("old:given", true),
        ("old:granted", true),
    ] {
        let site = Site::new();
        let mut old = site.start(&[(FAULT, point)]);
        let call = Call::new(&site, &old);
        let new = site.successor(&[]);
        assert_eq!(old.ended(), None, "{point}: {}", old.log());
        new.serves();
        if goes_on {
            assert_eq!(new.listener(), old.listener(), "{point}");
            call.assert_goes_on();
        }
        Client::allocate(new.listener());
    }
}

#[test]
fn a_successor_that_halts_is_not_waited_for() {
    if !has_fault_points() {
        return;
    }
    let site = Site::new();
    let mut old = site.start(&[]);
    let call = Call::new(&site, &old);
    let halted = site.successor(&[(FAULT, "hang:new:taken")]);
    old.says("no take-over: serving on");
    call.assert_goes_on();
    drop(halted);
    call.assert_goes_on();
    assert!(old.is_running());
}

#[test]
fn a_configuration_that_does_not_fit_leaves_the_old_one_serving() {
    let site = Site::new();
    let old = site.start(&[]);
    let call = Call::new(&site, &old);
    for (more, wants) in [
        ("shards = 3", "set server.shards = 2 or 0"),
        ("shards = \"many\"", "server.shards"),
        (
            "[[listen]]\naddress = \"192.0.2.77:0\"\nprotocols = [\"udp\"]",
            "192.0.2.77",
        ),
    ] {
        let mut new = site.spawn(more, &["--takeover"], &[]);
        assert_eq!(new.ended(), Some(2), "{}", new.log());
        assert!(new.log().contains(wants), "{}", new.log());
        call.assert_goes_on();
    }
}

#[test]
fn strangers_to_the_protocol_are_refused() {
    let site = Site::new();
    let old = site.start(&[]);
    let call = Call::new(&site, &old);
    let mode = std::fs::metadata(site.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Another version's state.
    let strange = Channel::connect(&site.socket()).unwrap();
    let versions = serde_json::json!({ "protocol": 1, "snapshot": 9, "program": "9.9.9" });
    strange
        .send(1, &rmp_serde::to_vec_named(&versions).unwrap(), &[])
        .unwrap();
    let refusal = strange.receive().unwrap();
    let reason = String::from_utf8_lossy(&refusal.body).into_owned();
    assert!(reason.contains("9.9.9 has 9"), "{reason}");
    assert!(strange.receive().is_err(), "nothing more is said");
    // Nonsense, and nothing at all.
    for bytes in [
        &b"\xff\xff\xff\xff\xff\xff"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ] {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(site.socket()).unwrap();
        stream.write_all(bytes).unwrap();
    }
    call.assert_goes_on();
    // A second server of this user keeps its hands off the socket.
    let other = site.spawn("", &[], &[]);
    other.says("no other process can take over from this one");
    until("the first can still be taken over from", || {
        site.socket().exists()
    });
    let new = site.successor(&[]);
    new.serves();
    call.assert_goes_on();
}
