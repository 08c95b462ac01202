//! Ports shared with others: proxies in front, certificates by name, another server behind.

use std::net::IpAddr;

use proptest::prelude::*;
use tokio::net::TcpListener;
use turnix::stream::proxy::{self, LOCAL, MOST_BYTES, Route, Step};
use turnix::stream::{Outcome, Refusal, Sharing, Upstream, Way};

use super::*;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2, put together by hand.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    let fixed = [command, family, (length >> 8) as u8, length as u8];
    [SIGNATURE, &fixed, body].concat()
}

/// IPv4: source, destination, ports.
const V4_BODY: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x30, 0x39, 0x01, 0xBB];

fn v6_body() -> Vec<u8> {
    let ip = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    [&ip("2001:db8::7")[..], &ip("2001:db8::1"), &V4_BODY[8..]].concat()
}

fn route(client: &str, server: &str) -> Route {
    Route {
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
    }
}

fn v4_route() -> Route {
    route("203.0.113.7:12345", "192.0.2.1:443")
}

/// Reads as a listener does, from `bytes`; what came of it, and how much was read.
fn read(bytes: &[u8]) -> (Step, usize) {
    let mut at = 0;
    loop {
        match proxy::step(&bytes[..at]) {
            Step::Read(more) if at + more > bytes.len() => return (Step::Read(more), at),
            Step::Read(more) => {
                assert!(more > 0);
                at += more;
            }
            step => return (step, at),
        }
    }
}

#[test]
fn headers_tell_for_whom_a_proxy_speaks() {
    let tlv = |kind: u8, length: u16| {
        let mut tlv = vec![kind];
        tlv.extend(length.to_be_bytes());
        tlv.resize(3 + usize::from(length), 0xA5);
        tlv
    };
    let v6 = Step::Whole(Some(route("[2001:db8::7]:12345", "[2001:db8::1]:443")));
    let v4 = Step::Whole(Some(v4_route()));
    let own = Step::Whole(None);
    let with = |tlvs: &[u8]| v2(0x21, 0x11, &[&V4_BODY[..], tlvs].concat());
    let cases: Vec<(Vec<u8>, Step)> = vec![
        (
            b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
            v4,
        ),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n".to_vec(),
            v6,
        ),
        (
            b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:192.0.2.1 12345 443\r\n".to_vec(),
            v4,
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), own),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), own),
        (v2(0x21, 0x11, &V4_BODY), v4),
        (v2(0x21, 0x21, &v6_body()), v6),
        (with(&tlv(0x04, 9)), v4),
        (
            with(&[tlv(0x01, 9), tlv(0xEA, 30), tlv(0x20, 300)].concat()),
            v4,
        ),
        // Nobody reads what they say.
        (with(&[0x01, 0xFF, 0xFF]), v4),
        (with(&tlv(0x04, 2000)), v4),
        (v2(0x20, 0x00, &[]), own),
        (v2(0x20, 0x11, &V4_BODY), own),
        (v2(0x21, 0x00, &[]), own),
        (v2(0x21, 0x00, &tlv(0x04, 40)), own),
        (LOCAL.to_vec(), own),
    ];
    for (header, expected) in cases {
        let followed = [&header[..], &BINDING].concat();
        assert_eq!(read(&followed), (expected, header.len()), "{header:02x?}");
        // None of its beginnings is a whole one, or no header at all.
        for length in 0..header.len() {
            let (step, at) = read(&header[..length]);
            assert!(
                matches!(step, Step::Read(_)) && at <= length,
                "{length} of {header:02x?}"
            );
        }
    }
}

#[test]
fn what_is_no_header_is_refused() {
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 120]].concat();
    let cases: Vec<Vec<u8>> = vec![
        BINDING.to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00".to_vec(),
        b"proxy tcp4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 99999\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::7 2001:db8::1 12345 443\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443 1\r\n".to_vec(),
        b"PROXY UDP4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
        b"PROXY TCP4  203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
        long,
        // Version 1 or 3, a command that is none, families and transports that are none.
        v2(0x11, 0x11, &V4_BODY),
        v2(0x31, 0x11, &V4_BODY),
        v2(0x22, 0x11, &V4_BODY),
        v2(0x21, 0x41, &V4_BODY),
        v2(0x21, 0x13, &V4_BODY),
        // Datagrams, Unix sockets, addresses cut short, and a length that no proxy needs.
        v2(0x21, 0x12, &V4_BODY),
        v2(0x21, 0x31, &[0; 216]),
        v2(0x21, 0x11, &V4_BODY[..11]),
        v2(0x21, 0x21, &V4_BODY),
        v2(0x21, 0x11, &[0; MOST_BYTES]),
    ];
    for header in cases {
        let (step, at) = read(&[&header[..], &[0; 64]].concat());
        assert!(matches!(step, Step::Refuse(_)), "{header:02x?}: {step:?}");
        assert!(at <= MOST_BYTES);
    }
    // Its length alone says so: nobody waits for the rest.
    let endless = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat();
    assert!(matches!(read(&endless), (Step::Refuse(_), 16)));
}

proptest! {
    #[test]
    fn a_written_header_is_read(client: (IpAddr, u16), server: (IpAddr, u16)) {
        let own = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
        let route = Route { client: own(client), server: own(server) };
        let header = proxy::header(route);
        prop_assert!(proxy::begins(&header));
        prop_assert_eq!(read(&header), (Step::Whole(Some(route)), header.len()));
    }

    #[test]
    fn no_bytes_are_read_for_ever(start in 0..3usize, bytes: Vec<u8>) {
        let start = [&b""[..], b"PROXY ", SIGNATURE][start];
        let (_, at) = read(&[start, &bytes, &[b'1'; 70_000]].concat());
        prop_assert!(at <= MOST_BYTES);
    }
}

// Proxies in front.

fn behind_proxies(networks: &[&str]) -> Sharing {
    Sharing {
        trusted_proxies: networks.iter().map(|one| one.parse().unwrap()).collect(),
        upstream: None,
    }
}

fn start_behind(networks: &[&str]) -> Server {
    start(Settings {
        sharing: behind_proxies(networks),
        ..settings(ALL)
    })
}

fn refused(server: &Server, reason: Refusal) -> u64 {
    server.admission.refused()[reason as usize]
}

/// Waits until so many connections were refused for `reason`.
async fn wait_refused(server: &Server, reason: Refusal, count: u64) {
    soon(async {
        while refused(server, reason) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(refused(server, reason), count, "{reason:?}");
}

#[tokio::test]
async fn the_client_is_who_a_trusted_proxy_says() {
    let mut server = start_behind(&["127.0.0.0/8"]);
    for (header, client) in [
        (v2(0x21, 0x11, &V4_BODY), Some("203.0.113.7:12345")),
        (v2(0x21, 0x21, &v6_body()), Some("[2001:db8::7]:12345")),
        (
            b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
            Some("203.0.113.7:12345"),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (LOCAL.to_vec(), None),
    ] {
        let mut proxy = TcpStream::connect(server.address).await.unwrap();
        proxy
            .write_all(&[&header[..], &BINDING].concat())
            .await
            .unwrap();
        let stream = soon(server.turn.recv()).await.unwrap();
        let own = proxy.local_addr().unwrap();
        assert_eq!(
            stream.client,
            client.map_or(own, |client| client.parse().unwrap())
        );
        assert_eq!(
            stream.local, server.address,
            "the five-tuple has our own end"
        );
        let mut message = [0; 20];
        soon(stream.into_io().unwrap().read_exact(&mut message))
            .await
            .unwrap();
        assert_eq!(message, BINDING, "nothing behind the header is taken");
    }
    // HTTP knows the client as well.
    let mut proxy = TcpStream::connect(server.address).await.unwrap();
    proxy
        .write_all(&[&v2(0x21, 0x11, &V4_BODY)[..], b"GET / HTTP/1.1\r\n\r\n"].concat())
        .await
        .unwrap();
    let stream = soon(server.http.recv()).await.unwrap();
    assert_eq!(stream.client, "203.0.113.7:12345".parse().unwrap());
    assert_eq!(refused(&server, Refusal::Proxy), 0);
}

#[tokio::test]
async fn a_header_comes_before_tls_and_in_any_pieces() {
    let mut server = start_behind(&["127.0.0.1/32"]);
    for header in [
        v2(0x21, 0x11, &[&V4_BODY[..], &[0x04, 0, 2, 0, 0]].concat()),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
    ] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        for byte in header {
            socket.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let config = client_config(&server.root, &["stun.turn"]);
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, socket);
        let mut client = soon(connecting).await.unwrap();
        client.write_all(&BINDING).await.unwrap();
        client.flush().await.unwrap();
        let stream = soon(server.turn.recv()).await.unwrap();
        assert_eq!(stream.transport, Transport::Tls);
        assert_eq!(stream.client, "203.0.113.7:12345".parse().unwrap());
        assert_eq!(stream.server_name.as_deref(), Some("localhost"));
    }
}

#[tokio::test]
async fn who_is_no_proxy_is_not_believed() {
    let mut server = start_behind(&["127.9.0.0/16"]);
    let headers = [
        v2(0x21, 0x11, &V4_BODY),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\r\n".to_vec(),
        LOCAL.to_vec(),
    ];
    for (index, header) in headers.iter().enumerate() {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client
            .write_all(&[&header[..], &BINDING].concat())
            .await
            .unwrap();
        assert!(closed(&mut client).await);
        wait_refused(&server, Refusal::Proxy, index as u64 + 1).await;
    }
    // Whoever has nothing to tell is welcome.
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    let stream = soon(server.turn.recv()).await.unwrap();
    assert_eq!(stream.client, client.local_addr().unwrap());
    assert!(server.turn.try_recv().is_err());
}

#[tokio::test]
async fn a_proxy_has_to_say_for_whom_it_speaks() {
    let mut server = start_behind(&["127.0.0.1/32"]);
    let openings = [
        BINDING.to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        v2(0x21, 0x31, &[0; 216]),
        [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
    ];
    for (index, opening) in openings.iter().enumerate() {
        let mut proxy = TcpStream::connect(server.address).await.unwrap();
        proxy.write_all(opening).await.unwrap();
        assert!(closed(&mut proxy).await);
        wait_refused(&server, Refusal::Proxy, index as u64 + 1).await;
    }
    // Half a header is waited for as long as any first byte, and one a byte at a time no longer.
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"PROXY TCP4 203.0").await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.set_nodelay(true).unwrap();
    let dripping = async {
        for byte in b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 443\r\n" {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (half, ()) = tokio::join!(closed(&mut half), dripping);
    assert!(half && closed(&mut slow).await);
    wait_refused(&server, Refusal::Silent, 2).await;
    // A look whether the port is open is no offence.
    drop(TcpStream::connect(server.address).await.unwrap());
    let mut proxy = TcpStream::connect(server.address).await.unwrap();
    proxy
        .write_all(&[&LOCAL[..], &BINDING].concat())
        .await
        .unwrap();
    assert!(soon(server.turn.recv()).await.is_some());
    assert_eq!(refused(&server, Refusal::Proxy), openings.len() as u64);
}

#[tokio::test]
async fn connections_count_for_the_client_and_not_for_the_proxy() {
    let mut server = start_behind(&["127.0.0.1/32"]);
    server.admission.set_limit(2);
    let mut open = Vec::new();
    for (last, accepted) in [
        (7, true),
        (8, true),
        (7, true),
        (7, false),
        (8, true),
        (9, true),
    ] {
        let mut body = V4_BODY;
        body[3] = last;
        let mut proxy = TcpStream::connect(server.address).await.unwrap();
        let _ = proxy
            .write_all(&[&v2(0x21, 0x11, &body)[..], &BINDING].concat())
            .await;
        if accepted {
            let stream = soon(server.turn.recv()).await.unwrap();
            assert_eq!(stream.client.ip(), IpAddr::from([203, 0, 113, last]));
            open.push((proxy, stream));
        } else {
            assert!(closed(&mut proxy).await);
        }
    }
    assert_eq!(refused(&server, Refusal::Address), 1);
    assert_eq!(server.admission.addresses(), 3);
    drop(open);
    assert_eq!(server.admission.addresses(), 0);
}

// ALPN and SNI.

#[tokio::test]
async fn rfc7443_both_names_lead_to_stun() {
    let mut server = start(settings(ALL));
    for alpn in ["stun.turn", "stun.nat-discovery"] {
        let config = client_config(&server.root, &["smtp", alpn]);
        let mut client = soon(tls(&server, config)).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        client.write_all(&BINDING).await.unwrap();
        client.flush().await.unwrap();
        assert!(soon(server.turn.recv()).await.is_some());
    }
    // RFC 7301 §3.2: no_application_protocol.
    let error = soon(tls(&server, client_config(&server.root, &["stun"])))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("NoApplicationProtocol"), "{text}");
}

#[tokio::test]
async fn each_name_has_its_certificate() {
    let own = signed(&["turn.example.org", "localhost"]);
    let others = [
        signed(&["www.example.org", "Api.Example.org"]),
        signed(&["*.example.org"]),
        signed(&["*.example.net", "turn.example.org"]),
    ];
    let certificates = Certificates::new(certificate(&own));
    assert!(certificates.replace_others(others.iter().map(certificate).collect()));
    assert!(!certificates.replace_others(others.iter().map(certificate).collect()));
    let leaves: Vec<_> = (std::iter::once(&own).chain(&others))
        .map(|pair| certificate(pair).leaf().to_vec())
        .collect();
    let server = start_with(settings(ALL), own, Arc::clone(&certificates));
    for (name, expected) in [
        ("www.example.org", 1),
        ("WWW.Example.ORG", 1),
        ("api.example.org", 1),
        ("mail.example.org", 2),
        ("mail.example.net", 3),
        // The name itself before any wildcard, and the first to have it.
        ("turn.example.org", 0),
        // A wildcard is for one label, and not for none.
        ("a.mail.example.org", 0),
        ("example.org", 0),
        ("example.net", 0),
        ("unknown.example.com", 0),
        ("127.0.0.1", 0),
    ] {
        let found = soon(leaf(&server, name, &[])).await.unwrap();
        assert_eq!(found, leaves[expected], "{name}");
    }
    assert_eq!(
        certificates.others_not_after_unix()[1],
        (
            "*.example.org".to_owned(),
            certificate(&others[1]).not_after_unix()
        )
    );
    // Another one at once, without a connection being touched.
    let renewed = signed(&["www.example.org"]);
    assert!(certificates.replace_others(vec![certificate(&renewed)]));
    let found = soon(leaf(&server, "www.example.org", &[])).await.unwrap();
    assert_eq!(found, certificate(&renewed).leaf());
    assert_eq!(
        soon(leaf(&server, "mail.example.org", &[])).await.unwrap(),
        leaves[0]
    );

    assert!(certificates.knows("WWW.example.org") && !certificates.knows("mail.example.org"));
    certificates.claim(["Realm.example.org".to_owned()]);
    assert!(certificates.knows("realm.example.org"));
}

// Another server behind.

/// A web server of its own, with a certificate of its own.
struct Behind {
    socket: TcpListener,
    pair: SelfSigned,
}

impl Behind {
    async fn start(names: &[&str]) -> Self {
        Self {
            socket: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            pair: signed(names),
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            address: self.socket.local_addr().unwrap(),
            proxy_protocol: true,
            idle: Duration::from_secs(60),
        }
    }

    /// The next connection and what its header tells.
    async fn accept(&self) -> (TcpStream, Route) {
        let (mut connection, _) = soon(self.socket.accept()).await.unwrap();
        let mut received = Vec::new();
        loop {
            match proxy::step(&received) {
                Step::Read(bytes) => {
                    let begin = received.len();
                    received.resize(begin + bytes, 0);
                    soon(connection.read_exact(&mut received[begin..]))
                        .await
                        .unwrap();
                }
                Step::Whole(route) => return (connection, route.expect("whom it is from")),
                Step::Refuse(why) => panic!("{why}: {received:02x?}"),
            }
        }
    }

    /// Shakes hands on `connection`.
    async fn shake(&self, connection: TcpStream) -> tokio_rustls::server::TlsStream<TcpStream> {
        let certificates = Certificates::new(certificate(&self.pair));
        let alpn = vec![b"http/1.1".to_vec()];
        let config = certificates::server_config(certificates, alpn).unwrap();
        let accepting = tokio_rustls::TlsAcceptor::from(config).accept(connection);
        soon(accepting).await.unwrap()
    }
}

/// A server for "localhost" that shares its port with `upstream`.
fn start_before(protocols: Protocols, upstream: Upstream) -> Server {
    start(Settings {
        sharing: Sharing {
            upstream: Some(upstream),
            ..Sharing::default()
        },
        hello_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
        ..settings(protocols)
    })
}

async fn connect_tls(
    server: &Server,
    root: &str,
    name: &str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = client_config(root, alpn);
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anybody));
    let socket = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

#[tokio::test]
async fn a_connection_for_another_name_is_passed_through_whole() {
    let behind = Behind::start(&["www.example.org"]).await;
    let server = start_before(ALL, behind.upstream());
    let socket = TcpStream::connect(server.address).await.unwrap();
    let own = socket.local_addr().unwrap();
    // It trusts the other server's certificate only: TLS ends there.
    let config = client_config(&behind.pair.certificate_pem, &["h2", "http/1.1"]);
    let name = ServerName::try_from("www.example.org").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let answering = async {
        let (connection, route) = behind.accept().await;
        assert_eq!(
            route,
            Route {
                client: own,
                server: server.address
            }
        );
        behind.shake(connection).await
    };
    let (client, answered) = tokio::join!(soon(connector.connect(name, socket)), answering);
    let (mut client, mut answered) = (client.unwrap(), answered);
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let (mut there, mut back) = (vec![0; sent.len()], vec![0; sent.len()]);
    let to_and_fro = async {
        let upload = async {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
        };
        tokio::join!(upload, async {
            answered.read_exact(&mut there).await.unwrap()
        });
        let download = async {
            answered.write_all(&sent).await.unwrap();
            answered.flush().await.unwrap();
        };
        tokio::join!(download, async {
            client.read_exact(&mut back).await.unwrap()
        });
    };
    soon(to_and_fro).await;
    assert!(there == sent && back == sent);

    let passed = server.admission.passages().read();
    assert_eq!(passed.open, 1);
    assert_eq!(passed.connections[Outcome::Passed as usize], 1);
    assert!(passed.bytes[Way::ToUpstream as usize] > 300_000);
    assert!(passed.bytes[Way::ToClient as usize] > 300_000);
    // Half of it ends, and the other half goes on.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(answered.read_to_end(&mut rest)).await.unwrap();
    answered.write_all(b"bye").await.unwrap();
    answered.shutdown().await.unwrap();
    drop(answered);
    soon(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye");
    drop(client);
    wait_open(&server, 0).await;
    assert_eq!(server.admission.addresses(), 0);
}

async fn wait_open(server: &Server, open: u32) {
    soon(async {
        while server.admission.passages().read().open != open {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn names_and_protocols_decide_whose_a_connection_is() {
    const STUN_ONLY: Protocols = Protocols { http: false, ..ALL };
    let behind = Behind::start(&["www.example.org"]).await;
    let stun: &[&str] = &["stun.turn"];
    let web: &[&str] = &["h2", "http/1.1"];
    for (protocols, name, alpn, passes) in [
        (ALL, "localhost", &[][..], false),
        (ALL, "localhost", stun, false),
        (ALL, "localhost", web, false),
        (ALL, "LOCALHOST", web, false),
        (ALL, "claimed.example.org", web, false),
        // STUN is for us by whatever name.
        (ALL, "www.example.org", stun, false),
        (ALL, "www.example.org", &["stun.nat-discovery", "h2"], false),
        // No name is no other name.
        (ALL, "127.0.0.1", &[], false),
        (ALL, "127.0.0.1", web, false),
        (ALL, "www.example.org", &[], true),
        (ALL, "www.example.org", web, true),
        (ALL, "www.example.org", &["acme-tls/1"], true),
        (ALL, "localhost.example.org", &[], true),
        // Our name, and what is not spoken here.
        (STUN_ONLY, "localhost", web, true),
        (STUN_ONLY, "localhost", &[], false),
        (STUN_ONLY, "localhost", &["h2", "stun.turn"], false),
        (ALL, "localhost", &["smtp"], true),
    ] {
        let server = start_before(protocols, behind.upstream());
        server
            .certificates
            .claim(["claimed.example.org".to_owned()]);
        let answering = async {
            let (connection, _) = behind.accept().await;
            drop(connection);
        };
        let connecting = connect_tls(&server, &server.root, name, alpn);
        let case = format!("{name} {alpn:?}");
        if passes {
            let (client, ()) = tokio::join!(soon(connecting), answering);
            assert!(client.is_err(), "{case}: nobody shakes hands there");
        } else {
            assert!(soon(connecting).await.is_ok(), "{case}");
        }
        let passed = server.admission.passages().read();
        let count = passed.connections[Outcome::Passed as usize];
        assert_eq!(count, u64::from(passes), "{case}");
    }
}

#[tokio::test]
async fn what_the_port_does_not_speak_goes_through_as_it_is() {
    let behind = Behind::start(&["www.example.org"]).await;
    let plain = Protocols {
        tcp: true,
        ..Protocols::default()
    };
    let hello = [0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    for opening in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &hello] {
        let server = start_before(plain, behind.upstream());
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(opening).await.unwrap();
        let (mut connection, _) = behind.accept().await;
        let mut received = vec![0; opening.len()];
        soon(connection.read_exact(&mut received)).await.unwrap();
        assert_eq!(received, opening);
        connection.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
    // TURN is ours, and what is neither is nobody's.
    let mut server = start_before(plain, behind.upstream());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    assert!(soon(server.turn.recv()).await.is_some());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert!(closed(&mut client).await);
}

/// A ClientHello for `name`, as a client sends it.
fn client_hello(name: &str) -> Vec<u8> {
    let config = Arc::new(client_config(&signed(&["x"]).certificate_pem, &["h2"]));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_hello_in_any_pieces_is_passed_on_as_it_came() {
    let behind = Behind::start(&["www.example.org"]).await;
    let server = start_before(ALL, behind.upstream());
    let hello = client_hello("www.example.org");
    // Two records of TLS in place of one, as well.
    let (first, second) = hello[5..].split_at(50);
    let record =
        |part: &[u8]| [&[0x16, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    for hello in [hello.clone(), [record(first), record(second)].concat()] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        for piece in hello.chunks(7) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (mut connection, _) = behind.accept().await;
        let mut received = vec![0; hello.len()];
        soon(connection.read_exact(&mut received)).await.unwrap();
        assert_eq!(received, hello);
    }
}

#[tokio::test]
async fn garbage_for_a_name_reaches_nobody() {
    let behind = Behind::start(&["www.example.org"]).await;
    let server = start_before(ALL, behind.upstream());
    let hello = client_hello("www.example.org");
    let at = (hello.windows(15))
        .position(|part| part == b"www.example.org")
        .unwrap();
    let mut wrong = vec![hello.clone(); 3];
    // No name at all, one longer than its extension, and no list of names.
    wrong[0][at..at + 15].fill(0xFF);
    wrong[1][at - 1] = 0xFF;
    wrong[2][at - 4] = 0xFF;
    for hello in wrong {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(&hello).await.unwrap();
        client.shutdown().await.unwrap();
        let mut said = Vec::new();
        let _ = soon(client.read_to_end(&mut said)).await;
    }
    // One that does not end.
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let _ = client
        .write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xFF])
        .await;
    let endless = [&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let mut sent = 0;
    while sent < 40 && client.write_all(&endless).await.is_ok() {
        sent += 1;
    }
    assert!(closed(&mut client).await);
    let passed = server.admission.passages().read();
    assert_eq!(passed.connections, [0, 0, 0]);
}

#[tokio::test]
async fn while_the_other_server_is_down_clients_are_closed_in_order() {
    let gone = {
        let behind = Behind::start(&["www.example.org"]).await;
        behind.upstream()
    };
    let mut server = start_before(ALL, gone);
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client
        .write_all(&client_hello("www.example.org"))
        .await
        .unwrap();
    let mut said = Vec::new();
    soon(client.read_to_end(&mut said))
        .await
        .expect("an end, not a reset");
    assert!(said.is_empty());
    let passed = server.admission.passages().read();
    assert_eq!(passed.connections[Outcome::Unreachable as usize], 1);
    assert_eq!(passed.open, 0);
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    assert!(soon(server.turn.recv()).await.is_some());
}

#[tokio::test]
async fn idle_passages_are_bounded_in_number_and_in_time() {
    let behind = Behind::start(&["www.example.org"]).await;
    let idle = Duration::from_secs(1);
    let upstream = Upstream {
        idle,
        ..behind.upstream()
    };
    let server = start_before(ALL, upstream);
    let hello = client_hello("www.example.org");
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(&hello).await.unwrap();
        clients.push((client, behind.accept().await));
    }
    for _ in 0..64 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(&hello).await.unwrap();
        assert!(closed(&mut client).await);
    }
    let passed = server.admission.passages().read();
    assert_eq!(passed.open, 64);
    assert_eq!(passed.connections[Outcome::Limit as usize], 64);
    // They end by themselves, but for the one that speaks now and then.
    let (mut busy, (mut other, _)) = clients.pop().unwrap();
    let mut received = vec![0; hello.len()];
    soon(other.read_exact(&mut received)).await.unwrap();
    let until = tokio::time::Instant::now() + 3 * idle;
    while tokio::time::Instant::now() < until || server.admission.passages().read().open > 1 {
        assert!(tokio::time::Instant::now() < until + Duration::from_secs(20));
        other.write_all(b"still here").await.unwrap();
        let mut word = [0; 10];
        soon(busy.read_exact(&mut word)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(server.admission.passages().read().open, 1);
    assert!(closed(&mut clients[0].0).await);
    // The server ends: so do they, once they have nothing more to say.
    let ending = server.admission.passages().end(Duration::from_secs(20));
    soon(ending).await;
    assert!(closed(&mut busy).await);
}

#[tokio::test]
async fn passages_outlive_their_listener() {
    let behind = Behind::start(&["www.example.org"]).await;
    let server = start_before(ALL, behind.upstream());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client
        .write_all(&client_hello("www.example.org"))
        .await
        .unwrap();
    let (mut other, _) = behind.accept().await;
    drop(server);
    other.write_all(b"still here").await.unwrap();
    let mut word = [0; 10];
    soon(client.read_exact(&mut word)).await.unwrap();
}
