//! Stream listeners on loopback: telling protocols apart, TLS, timeouts, and moving a connection between runtimes.

#[path = "stream/sharing.rs"]
mod sharing;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use turnix::base::{Clock, Transport};
use turnix::stream::certificates::{self, Fault, SELF_SIGNED_LIFETIME, SelfSigned};
use turnix::stream::sniff::{DECISIVE_BYTES, Verdict, sniff};
use turnix::stream::{
    Admission, Certificate, Certificates, Challenges, ClientStream, HttpStream, Listener,
    Protocols, Settings,
};

const ALL: Protocols = Protocols {
    tcp: true,
    tls: true,
    http: true,
};

const BINDING: [u8; 20] = [
    0x00, 0x01, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
];

// Sniffing.

#[test]
fn first_bytes_decide() {
    let only = |tcp, tls, http| Protocols { tcp, tls, http };
    let cases: &[(&[u8], Protocols, Verdict)] = &[
        (b"", ALL, Verdict::More),
        (&BINDING, ALL, Verdict::Turn),
        (&[0x00], ALL, Verdict::Turn),
        (&[0x3F], ALL, Verdict::Turn),
        (&[0x00], only(false, true, true), Verdict::Close),
        (&[0x16], ALL, Verdict::Tls),
        (&[0x16, 3, 1], only(true, false, true), Verdict::Close),
        // ChannelData is never first; its range is that of letters.
        (&[0x40, 0x00, 0, 4], ALL, Verdict::Close),
        (&[0x47, 0x00, 0, 4], ALL, Verdict::Close),
        (&[0x4F, 0xFF], ALL, Verdict::Close),
        (&[0x7F], ALL, Verdict::Close),
        (&[0x80], ALL, Verdict::Close),
        (&[0xFF; 20], ALL, Verdict::Close),
        (b"G", ALL, Verdict::More),
        (b"GET", ALL, Verdict::More),
        (b"GET ", ALL, Verdict::Http),
        (b"GET /", only(true, true, false), Verdict::Close),
        (b"GETS", ALL, Verdict::Close),
        (b"P", ALL, Verdict::More),
        (b"PUT /x", ALL, Verdict::Http),
        (b"POST /x", ALL, Verdict::Http),
        (b"PATCH ", ALL, Verdict::Http),
        (b"HEAD /", ALL, Verdict::Http),
        (b"DELETE /", ALL, Verdict::Http),
        (b"OPTIONS *", ALL, Verdict::Http),
        (b"CONNECT x", ALL, Verdict::Close),
        (b"get /", ALL, Verdict::Close),
        (b"PRI * HTTP/2.", ALL, Verdict::More),
        (b"PRI * HTTP/2.0\r\n", ALL, Verdict::Http),
        (b"PROXY TCP4 ", ALL, Verdict::Close),
        (b"SSH-2.0-", ALL, Verdict::Close),
    ];
    for (first, speaks, verdict) in cases {
        assert_eq!(sniff(first, *speaks), *verdict, "{first:02x?} {speaks:?}");
    }
}

#[test]
fn enough_bytes_never_ask_for_more() {
    for seed in 0..=255u8 {
        let first: Vec<u8> = (0..DECISIVE_BYTES as u8).map(|n| seed ^ (n * 7)).collect();
        assert_ne!(sniff(&first, ALL), Verdict::More);
    }
    assert_ne!(
        sniff(&b"PRI * HTTP/2.0"[..DECISIVE_BYTES], ALL),
        Verdict::More
    );
}

#[test]
fn inside_tls_no_second_handshake() {
    let inside = ALL.inside_tls();
    assert_eq!(sniff(&[0x16, 3, 1], inside), Verdict::Close);
    assert_eq!(sniff(&BINDING, inside), Verdict::Turn);
    assert_eq!(sniff(b"GET /", inside), Verdict::Http);
    // Plain TURN over TCP being off does not turn off TURN over TLS.
    let inside = Protocols { tcp: false, ..ALL }.inside_tls();
    assert_eq!(sniff(&BINDING, inside), Verdict::Turn);
}

#[test]
fn alpn_offers_what_is_spoken() {
    let stun = [&b"stun.turn"[..], b"stun.nat-discovery"];
    assert_eq!(ALL.alpn(), [&stun[..], &[&b"h2"[..], b"http/1.1"]].concat());
    assert_eq!(Protocols { http: false, ..ALL }.alpn(), stun);
    assert!(Protocols { tls: false, ..ALL }.alpn().is_empty());
}

// A listener under test.

struct Server {
    address: SocketAddr,
    turn: mpsc::UnboundedReceiver<ClientStream>,
    http: mpsc::UnboundedReceiver<HttpStream>,
    certificates: Arc<Certificates>,
    root: String,
    admission: Arc<Admission>,
    running: tokio::task::JoinHandle<std::io::Error>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn signed(names: &[&str]) -> SelfSigned {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    certificates::self_signed(&names, Clock.now().unix_secs()).unwrap()
}

fn certificate(of: &SelfSigned) -> Certificate {
    Certificate::from_pem(
        of.certificate_pem.as_bytes(),
        of.key_pem.expose().as_bytes(),
    )
    .unwrap()
}

fn settings(protocols: Protocols) -> Settings {
    Settings {
        protocols,
        hello_timeout: Duration::from_millis(300),
        handshake_timeout: Duration::from_millis(600),
        max_pending: 64,
        ..Settings::default()
    }
}

fn start(settings: Settings) -> Server {
    let pair = signed(&["localhost", "127.0.0.1"]);
    let certificates = Certificates::new(certificate(&pair));
    start_with(settings, pair, certificates)
}

fn start_with(settings: Settings, pair: SelfSigned, certificates: Arc<Certificates>) -> Server {
    let socket = StdListener::bind("127.0.0.1:0").unwrap();
    let admission = Admission::new(0);
    admission.passages().set_limit(64);
    let listener = Listener::new(socket, settings, Some(Arc::clone(&certificates)))
        .unwrap()
        .within(Arc::clone(&admission));
    let address = listener.local_addr().unwrap();
    let (to_turn, turn) = mpsc::unbounded_channel();
    let (to_http, http) = mpsc::unbounded_channel();
    let running = tokio::spawn(listener.run(
        move |stream| to_turn.send(stream).unwrap(),
        move |stream| to_http.send(stream).unwrap(),
    ));
    Server {
        address,
        turn,
        http,
        certificates,
        root: pair.certificate_pem,
        admission,
        running,
    }
}

fn client_config(root: &str, alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn tls(server: &Server, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future)
        .await
        .expect("took longer than five seconds")
}

/// Waits until the other side closes; a reset counts.
async fn closed(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.is_err() || rest.is_empty()
}

/// Hands `stream` to a current-thread runtime of another thread, which sends back whatever it receives.
fn echo_elsewhere(mut stream: ClientStream) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let received = std::mem::take(&mut stream.received);
            let mut io = stream.into_io().unwrap();
            io.write_all(&received).await.unwrap();
            let mut buffer = vec![0; 4096];
            loop {
                let length = io.read(&mut buffer).await.unwrap();
                if length == 0 {
                    break;
                }
                let (head, tail) = buffer[..length].split_at(length / 2);
                let slices = [std::io::IoSlice::new(head), std::io::IoSlice::new(tail)];
                let written = io.write_vectored(&slices).await.unwrap();
                io.write_all(&buffer[written..length]).await.unwrap();
                io.flush().await.unwrap();
            }
            io.shutdown().await.unwrap();
        });
    })
}

/// Sends in pieces and expects the same back, after what was sent already.
async fn check_echo(client: &mut (impl AsyncRead + AsyncWrite + Unpin), sent: &[u8]) {
    let mut back = vec![0; sent.len()];
    soon(client.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, sent);
    for round in 0..50u32 {
        let message: Vec<u8> = (0..997 + round).map(|n| (n ^ round) as u8).collect();
        client.write_all(&message).await.unwrap();
        client.flush().await.unwrap();
        let mut back = vec![0; message.len()];
        soon(client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, message);
    }
}

// Plain TCP.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_over_tcp_moves_to_another_runtime_unread() {
    let mut server = start(settings(ALL));
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    let stream = soon(server.turn.recv()).await.unwrap();
    assert_eq!(stream.transport, Transport::Tcp);
    assert_eq!(stream.client, client.local_addr().unwrap());
    assert_eq!(stream.local, server.address);
    assert!(stream.received.is_empty(), "peeking consumes nothing");
    let echo = echo_elsewhere(stream);
    check_echo(&mut client, &BINDING).await;
    drop(client);
    echo.join().unwrap();
}

#[tokio::test]
async fn one_byte_is_enough_for_turn() {
    let mut server = start(settings(ALL));
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING[..1]).await.unwrap();
    let stream = soon(server.turn.recv()).await.unwrap();
    client.write_all(&BINDING[1..]).await.unwrap();
    let mut io = stream.into_io().unwrap();
    let mut message = [0; 20];
    soon(io.read_exact(&mut message)).await.unwrap();
    assert_eq!(message, BINDING);
}

#[tokio::test]
async fn http_arrives_whole_even_in_pieces() {
    let mut server = start(settings(ALL));
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.set_nodelay(true).unwrap();
    let request = b"POST /x HTTP/1.1\r\n\r\n";
    for piece in [&request[..1], &request[1..2], &request[2..4], &request[4..]] {
        client.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut stream = soon(server.http.recv()).await.unwrap();
    assert!(!stream.tls);
    assert_eq!(stream.client, client.local_addr().unwrap());
    // A small buffer first: what was read ahead must not be lost.
    let mut received = vec![0; request.len()];
    let (start, rest) = received.split_at_mut(3);
    soon(stream.read_exact(start)).await.unwrap();
    soon(stream.read_exact(rest)).await.unwrap();
    assert_eq!(received, request);
    stream.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    soon(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
}

#[tokio::test]
async fn what_is_not_spoken_is_closed() {
    let server = start(settings(ALL));
    for first in [
        &b"SSH-2.0-x\r\n"[..],
        &[0x40, 0, 0, 4, 1, 2, 3, 4],
        b"GEX",
        &[0xFF; 64],
    ] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(first).await.unwrap();
        assert!(closed(&mut client).await, "{first:?}");
    }
    let turn_only = start(settings(Protocols {
        tcp: true,
        ..Protocols::default()
    }));
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0, 5]] {
        let mut client = TcpStream::connect(turn_only.address).await.unwrap();
        client.write_all(first).await.unwrap();
        assert!(closed(&mut client).await, "{first:?}");
    }
}

#[tokio::test]
async fn silence_and_dawdling_end_at_the_deadline() {
    let server = start(settings(ALL));
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"GE").await.unwrap();
    let mut half_hello = TcpStream::connect(server.address).await.unwrap();
    half_hello.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert!(closed(&mut silent).await);
    assert!(closed(&mut half).await);
    assert!(closed(&mut half_hello).await);
}

#[tokio::test]
async fn a_client_that_leaves_early_is_forgotten() {
    let mut server = start(settings(ALL));
    drop(TcpStream::connect(server.address).await.unwrap());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GE").await.unwrap();
    drop(client);
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    assert!(soon(server.turn.recv()).await.is_some());
    assert!(server.http.try_recv().is_err());
}

#[tokio::test]
async fn silent_connections_are_bounded_and_identified_ones_do_not_count() {
    let mut server = start(Settings {
        max_pending: 2,
        hello_timeout: Duration::from_secs(60),
        ..settings(ALL)
    });
    let mut identified = Vec::new();
    for _ in 0..5 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(&BINDING).await.unwrap();
        identified.push((soon(server.turn.recv()).await.unwrap(), client));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let first = TcpStream::connect(server.address).await.unwrap();
    let second = TcpStream::connect(server.address).await.unwrap();
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert!(closed(&mut third).await);
    drop((first, second));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut fourth = TcpStream::connect(server.address).await.unwrap();
    fourth.write_all(&BINDING).await.unwrap();
    assert!(soon(server.turn.recv()).await.is_some());
}

#[tokio::test]
async fn dropping_the_listener_closes_what_it_still_holds() {
    let server = start(Settings {
        hello_timeout: Duration::from_secs(60),
        ..settings(ALL)
    });
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let address = server.address;
    drop(server);
    assert!(closed(&mut silent).await);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn mapped_addresses_take_their_ipv4_form() {
    let Ok(socket) = StdListener::bind("[::]:0") else {
        println!("skipped: no IPv6 here");
        return;
    };
    let port = socket.local_addr().unwrap().port();
    let listener = Listener::new(
        socket,
        settings(Protocols {
            tcp: true,
            ..Protocols::default()
        }),
        None,
    )
    .unwrap();
    let (to_turn, mut turn) = mpsc::unbounded_channel();
    let running = tokio::spawn(listener.run(move |stream| to_turn.send(stream).unwrap(), |_| {}));
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(&BINDING).await.unwrap();
    let stream = soon(turn.recv()).await.unwrap();
    assert!(stream.client.is_ipv4() && stream.local.is_ipv4());
    running.abort();
}

#[test]
fn from_tcp_takes_any_connected_socket() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let stream = ClientStream::from_tcp(accepted).unwrap();
    assert_eq!(stream.client, client.local_addr().unwrap());
    assert_eq!(stream.transport, Transport::Tcp);
    fn sendable(_: &impl Send) {}
    sendable(&stream);
}

// TLS.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_over_tls_moves_to_another_runtime() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in [&["stun.turn"][..], &[]] {
            let mut server = start(settings(ALL));
            let mut config = client_config(&server.root, alpn);
            config = {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_slice(server.root.as_bytes()).unwrap())
                    .unwrap();
                let mut narrowed =
                    ClientConfig::builder_with_provider(Arc::clone(config.crypto_provider()))
                        .with_protocol_versions(&[version])
                        .unwrap()
                        .with_root_certificates(roots)
                        .with_no_client_auth();
                narrowed.alpn_protocols = config.alpn_protocols;
                narrowed
            };
            let mut client = soon(tls(&server, config)).await.unwrap();
            let chosen = client.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(chosen, alpn.first().map(|name| name.as_bytes().to_vec()));
            // More than a record at once: part of it may be decrypted before the hand-over, part after.
            let sent = [&BINDING[..], &[7; 30_000]].concat();
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
            let stream = soon(server.turn.recv()).await.unwrap();
            assert_eq!(stream.transport, Transport::Tls);
            assert_eq!(stream.received.is_empty(), !alpn.is_empty());
            let echo = echo_elsewhere(stream);
            check_echo(&mut client, &sent).await;
            client.shutdown().await.unwrap();
            assert!(closed(&mut client).await);
            echo.join().unwrap();
        }
    }
}

#[tokio::test]
async fn https_by_alpn_and_by_first_bytes() {
    let mut server = start(settings(ALL));
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let config = client_config(&server.root, alpn);
        let mut client = soon(tls(&server, config)).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        client.flush().await.unwrap();
        let mut stream = soon(server.http.recv()).await.unwrap();
        assert!(stream.tls);
        let mut received = [0; 18];
        soon(stream.read_exact(&mut received)).await.unwrap();
        assert_eq!(&received, b"GET / HTTP/1.1\r\n\r\n");
    }
}

#[tokio::test]
async fn a_foreign_alpn_and_garbage_inside_tls_end() {
    let server = start(settings(ALL));
    assert!(
        soon(tls(&server, client_config(&server.root, &["smtp"])))
            .await
            .is_err()
    );
    let config = client_config(&server.root, &[]);
    let mut client = soon(tls(&server, config.clone())).await.unwrap();
    client.write_all(b"EHLO x\r\n").await.unwrap();
    client.flush().await.unwrap();
    assert!(closed(&mut client).await);
    // Silence after the handshake is bounded too.
    let mut client = soon(tls(&server, config)).await.unwrap();
    assert!(closed(&mut client).await);
}

#[tokio::test]
async fn a_replaced_certificate_serves_the_next_handshake() {
    let server = start(settings(ALL));
    let old = client_config(&server.root, &["stun.turn"]);
    assert!(soon(tls(&server, old.clone())).await.is_ok());
    let renewed = signed(&["localhost"]);
    server.certificates.replace(certificate(&renewed));
    let new = client_config(&renewed.certificate_pem, &["stun.turn"]);
    assert!(soon(tls(&server, new)).await.is_ok());
    let old = client_config(&server.root, &["stun.turn"]);
    assert!(soon(tls(&server, old)).await.is_err());
}

#[test]
fn tls_without_a_certificate_is_refused_at_start() {
    let socket = StdListener::bind("127.0.0.1:0").unwrap();
    let error = Listener::new(socket, settings(ALL), None).err().unwrap();
    assert!(error.to_string().contains("tls.certificate"), "{error}");
}

// Certificates.

#[test]
fn self_signed_certificates_load_and_know_their_expiry() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let names = ["turn.example.org".to_owned(), "192.0.2.1".to_owned()];
    let pair = certificates::self_signed(&names, 1_800_000_000).unwrap();
    std::fs::write(&chain, &pair.certificate_pem).unwrap();
    std::fs::write(&key, pair.key_pem.expose()).unwrap();
    let certificate = certificates::load(&chain, &key).unwrap();
    assert_eq!(
        certificate.not_after_unix(),
        1_800_000_000 - 3600 + SELF_SIGNED_LIFETIME.as_secs()
    );
    assert_eq!(
        Certificates::new(certificate.clone()).not_after_unix(),
        certificate.not_after_unix()
    );
}

#[test]
fn unusable_certificates_say_which_file_and_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let (mine, other) = (signed(&["a.example"]), signed(&["b.example"]));
    let chain = write("chain.pem", &mine.certificate_pem);
    let key = write("key.pem", mine.key_pem.expose());
    let other_key = write("other.pem", other.key_pem.expose());
    let empty = write("empty.pem", "");
    let locked = write(
        "locked.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let broken = write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----\n",
    );
    let hollow = write(
        "hollow.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let missing = folder.path().join("missing.pem");

    type Is = fn(&Fault) -> bool;
    let cases: &[(_, _, _, &str, Is)] = &[
        (
            &chain,
            &other_key,
            &other_key,
            "belongs to another",
            |fault| matches!(fault, Fault::KeyMismatch),
        ),
        (&missing, &key, &missing, "cannot be read", |fault| {
            matches!(fault, Fault::Read(_))
        }),
        (&chain, &missing, &missing, "cannot be read", |fault| {
            matches!(fault, Fault::Read(_))
        }),
        (&empty, &key, &empty, "BEGIN CERTIFICATE", |fault| {
            matches!(fault, Fault::NoCertificate)
        }),
        (&key, &key, &key, "BEGIN CERTIFICATE", |fault| {
            matches!(fault, Fault::NoCertificate)
        }),
        (&chain, &chain, &chain, "BEGIN PRIVATE KEY", |fault| {
            matches!(fault, Fault::NoKey)
        }),
        (&chain, &locked, &locked, "openssl pkey", |fault| {
            matches!(fault, Fault::EncryptedKey)
        }),
        (&broken, &key, &broken, "damaged", |fault| {
            matches!(fault, Fault::CertificatePem(_))
        }),
        (&hollow, &key, &hollow, "cannot be used", |fault| {
            matches!(fault, Fault::Leaf(_))
        }),
    ];
    for (chain, key, at_fault, says, is) in cases {
        let error = certificates::load(chain, key).unwrap_err();
        assert_eq!(&error.file, *at_fault, "{error}");
        assert!(is(&error.fault), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains(at_fault.to_str().unwrap()),
            "{text}"
        );
    }
}

#[test]
fn names_that_certificates_cannot_carry_are_refused() {
    assert!(certificates::self_signed(&["bücher.example".to_owned()], 0).is_err());
}

/// The leaf that a handshake for `name` brings where the client offers `alpn`.
async fn leaf(server: &Server, name: &str, alpn: &[&str]) -> std::io::Result<Vec<u8>> {
    let mut config = client_config(&server.root, alpn);
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anybody));
    let socket = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    let leaf = chain[0].to_vec();
    if stream.get_ref().1.alpn_protocol() == Some(b"acme-tls/1") {
        assert!(closed(&mut stream).await, "there is nothing more to say");
    }
    Ok(leaf)
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn rfc8737_an_authority_finds_the_certificate_of_its_challenge_and_nobody_else_does() {
    let challenges = Arc::new(Challenges::default());
    let pair = signed(&["localhost", "127.0.0.1"]);
    let served = Certificates::answering(certificate(&pair), Arc::clone(&challenges));
    let ordinary = certificate(&pair).leaf().to_vec();
    let server = start_with(settings(ALL), pair, served);
    let looks = |name: &'static str, alpn: &'static [&'static str]| soon(leaf(&server, name, alpn));
    let acme: &[&str] = &["acme-tls/1"];

    assert!(
        looks("turn.example.org", acme).await.is_err(),
        "nothing was ordered"
    );
    let digest = [7; 32];
    let answer = challenges
        .answer_handshake("Turn.example.org", &digest)
        .unwrap();
    let found = looks("turn.example.org", acme).await.unwrap();
    assert_ne!(found, ordinary);
    // An octet string of an octet string, critical: id-pe-acmeIdentifier is 1.3.6.1.5.5.7.1.31.
    let mut extension = vec![6, 8, 0x2b, 6, 1, 5, 5, 7, 1, 31, 1, 1, 0xff, 4, 34, 4, 32];
    extension.extend(digest);
    assert!(found.windows(extension.len()).any(|part| part == extension));
    assert!(found.windows(16).any(|part| part == b"turn.example.org"));
    // Any other name, and any other client, sees what it would see without.
    assert!(looks("other.example.org", acme).await.is_err());
    assert_eq!(
        looks("turn.example.org", &["stun.turn"]).await.unwrap(),
        ordinary
    );
    assert_eq!(looks("turn.example.org", &[]).await.unwrap(), ordinary);
    let among_others: &[&str] = &["acme-tls/1", "stun.turn"];
    assert_eq!(
        looks("turn.example.org", among_others).await.unwrap(),
        ordinary
    );
    drop(answer);
    assert!(
        looks("turn.example.org", acme).await.is_err(),
        "the order is over"
    );
}
