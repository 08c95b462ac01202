//! Where URIs lead (RFC 5928; RFC 8489 §8.1 for `stun:`), by records that the test makes up.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;

use turnix::base::Transport::{self, Tcp, Tls, Udp};
use turnix::cluster::IceUri;
use turnix::cluster::locate::{Naptr, Srv, Zone, locate};

/// Every host is at 192.0.2.N, where N is its last letter's place in the alphabet.
#[derive(Default)]
struct Records {
    naptr: Vec<(
        &'static str,
        [u16; 2],
        &'static str,
        &'static str,
        &'static str,
    )>,
    srv: Vec<(&'static str, [u16; 3], &'static str)>,
    asked: RefCell<Vec<String>>,
}

impl Zone for Records {
    async fn naptr(&self, name: &str) -> Vec<Naptr> {
        self.asked.borrow_mut().push(format!("NAPTR {name}"));
        let ours = self.naptr.iter().filter(|record| record.0 == name);
        ours.map(
            |(_, [order, preference], flags, services, replacement)| Naptr {
                order: *order,
                preference: *preference,
                flags: (*flags).into(),
                services: (*services).into(),
                replacement: (*replacement).into(),
            },
        )
        .collect()
    }

    async fn srv(&self, name: &str) -> Vec<Srv> {
        self.asked.borrow_mut().push(format!("SRV {name}"));
        let ours = self.srv.iter().filter(|record| record.0 == name);
        ours.map(|(_, [priority, weight, port], target)| Srv {
            priority: *priority,
            weight: *weight,
            port: *port,
            target: (*target).into(),
        })
        .collect()
    }

    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        match host.as_bytes() {
            [.., letter @ b'a'..=b'z'] => Ok(vec![IpAddr::from([192, 0, 2, letter - b'a' + 1])]),
            _ => Err(io::Error::other("no such host")),
        }
    }
}

/// Where `uri` leads, and what was asked for that.
fn lead(records: &Records, uri: &str) -> io::Result<Vec<(String, Transport)>> {
    let uri: IceUri = uri.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let located = runtime.block_on(locate(&uri, records))?;
    Ok((located.into_iter())
        .map(|one| (one.address.to_string(), one.transport))
        .collect())
}

fn leads(records: &Records, uri: &str, to: &[(&str, Transport)]) {
    let to: Vec<_> = to
        .iter()
        .map(|(at, over)| ((*at).to_owned(), *over))
        .collect();
    assert_eq!(lead(records, uri).unwrap(), to, "{uri}");
}

#[test]
fn rfc5928_3_addresses_and_ports_are_taken_at_their_word() {
    let records = Records {
        srv: vec![("_turn._udp.x.a", [1, 1, 99], "z")],
        ..Records::default()
    };
    for (uri, at, over) in [
        ("turn:203.0.113.9", "203.0.113.9:3478", Udp),
        (
            "turn:[2001:db8::9]?transport=tcp",
            "[2001:db8::9]:3478",
            Tcp,
        ),
        ("turns:203.0.113.9", "203.0.113.9:5349", Tls),
        ("turn:x.a:3478", "192.0.2.1:3478", Udp),
        ("turns:x.a:443?transport=tcp", "192.0.2.1:443", Tls),
        ("stun:x.a:19302", "192.0.2.1:19302", Udp),
    ] {
        leads(&records, uri, &[(at, over)]);
    }
    assert_eq!(*records.asked.borrow(), [""; 0], "nobody was asked");
    // Nor are name servers asked for names that are never theirs.
    let _ = lead(&records, "turn:localhost");
    assert_eq!(*records.asked.borrow(), [""; 0]);
}

#[test]
fn rfc5928_3_naptr_then_srv_then_the_default_port() {
    let none = Records::default();
    leads(&none, "turn:x.a", &[("192.0.2.1:3478", Udp)]);
    assert_eq!(
        *none.asked.borrow(),
        ["NAPTR x.a", "SRV _turn._udp.x.a", "SRV _turn._tcp.x.a"]
    );
    none.asked.borrow_mut().clear();
    leads(&none, "turns:x.a", &[("192.0.2.1:5349", Tls)]);
    assert_eq!(*none.asked.borrow(), ["NAPTR x.a", "SRV _turns._tcp.x.a"]);
    none.asked.borrow_mut().clear();
    leads(&none, "turn:x.a?transport=tcp", &[("192.0.2.1:3478", Tcp)]);
    assert_eq!(*none.asked.borrow(), ["SRV _turn._tcp.x.a"]);

    let srv = Records {
        srv: vec![
            ("_turn._tcp.x.a", [1, 0, 80], "c"),
            ("_turn._udp.x.a", [2, 0, 34], "d"),
            ("_turn._udp.x.a", [1, 0, 35], "e"),
        ],
        ..Records::default()
    };
    let udp = [("192.0.2.5:35", Udp), ("192.0.2.4:34", Udp)];
    leads(&srv, "turn:x.a", &[udp[0], udp[1], ("192.0.2.3:80", Tcp)]);
    leads(&srv, "turn:x.a?transport=udp", &udp);
    leads(&srv, "turns:x.a", &[("192.0.2.1:5349", Tls)]);
}

/// Two steps of S-NAPTR, as in the RFC's own example.
#[test]
fn rfc5928_3_and_4_naptr_leads_by_way_of_others() {
    let records = Records {
        naptr: vec![
            ("x.a", [200, 10], "", "RELAY:turn.tcp:turn.tls", "stream.a"),
            ("x.a", [100, 10], "", "RELAY:turn.udp", "datagram.a"),
            ("x.a", [50, 10], "s", "SIP+D2U", "_sip._udp.a"),
            (
                "datagram.a",
                [100, 10],
                "S",
                "relay:TURN.UDP",
                "_turn._udp.a",
            ),
            ("stream.a", [100, 10], "S", "RELAY:turn.tcp", "_turn._tcp.a"),
            ("stream.a", [200, 10], "A", "RELAY:turn.tls", "t"),
        ],
        srv: vec![
            ("_turn._udp.a", [0, 0, 3479], "d"),
            ("_turn._tcp.a", [0, 0, 5000], "e"),
        ],
        ..Records::default()
    };
    leads(
        &records,
        "turn:x.a",
        &[("192.0.2.4:3479", Udp), ("192.0.2.5:5000", Tcp)],
    );
    leads(&records, "turns:x.a", &[("192.0.2.20:5349", Tls)]);
}

#[test]
fn records_that_lead_in_circles_lead_nowhere() {
    let records = Records {
        naptr: vec![
            ("x.a", [1, 1], "", "RELAY:turn.udp", "y.a"),
            ("y.a", [1, 1], "", "RELAY:turn.udp", "x.a"),
            ("x.a", [2, 1], "u", "RELAY:turn.udp", "y.a"),
        ],
        ..Records::default()
    };
    leads(&records, "turn:x.a", &[("192.0.2.1:3478", Udp)]);
    assert!(records.asked.borrow().len() < 20);
}

#[test]
fn rfc2782_a_dot_is_a_no() {
    let records = Records {
        srv: vec![
            ("_turns._tcp.x.a", [0, 0, 0], "."),
            ("_turn._tcp.x.a", [0, 0, 0], "."),
            ("_turn._udp.x.a", [0, 0, 3478], "nowhere."),
        ],
        ..Records::default()
    };
    let error = lead(&records, "turns:x.a").unwrap_err().to_string();
    assert!(error.contains("no such server"), "{error}");
    let error = lead(&records, "turn:x.a").unwrap_err().to_string();
    assert!(error.contains("no such host"), "{error}");
}

#[test]
fn rfc2782_weights_are_shares() {
    let records = Records {
        srv: vec![
            ("_stun._udp.x.a", [1, 90, 1], "a"),
            ("_stun._udp.x.a", [1, 10, 2], "b"),
            ("_stun._udp.x.a", [1, 0, 3], "c"),
            ("_stun._udp.x.a", [0, 0, 4], "d"),
        ],
        ..Records::default()
    };
    let mut second = [0; 4];
    for _ in 0..1000 {
        let order = lead(&records, "stun:x.a").unwrap();
        assert_eq!(order.len(), 4);
        assert_eq!(order[0].0, "192.0.2.4:4", "the better priority");
        let port: usize = order[1].0.rsplit(':').next().unwrap().parse().unwrap();
        second[port] += 1;
    }
    assert!((820..970).contains(&second[1]), "{second:?}");
    assert!((40..180).contains(&second[2]), "{second:?}");
}
