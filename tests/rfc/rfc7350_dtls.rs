//! DTLS 1.2 (RFC 6347) as TURN uses it (RFC 7350): cookies and sessions as functions of their inputs, against the client
//! side of the library.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dimpl::{Dtls, Output};
use turnix::base::Clock;
use turnix::stream::dtls::{
    ClientHello, Cookies, Event, Identity, Over, RECORD_BYTES, Session, Terms, VERIFY_BYTES,
    is_dtls,
};

use super::common::dtls::{certificate, client, client_hello};

const CLIENT: &str = "192.0.2.7:4000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn cookies() -> Cookies {
    Cookies::new([7; 64])
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// When everything begins.
fn now() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| Clock.now().mono)
}

fn identity() -> Identity {
    let certificate = certificate();
    Identity::new(&certificate.certificate, &certificate.private_key).expect("an ECDSA key")
}

/// What a client does with what it got: what it sends, and application data that it has.
fn drive(client: &mut Dtls, arrived: &mut Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    let mut buffer = vec![0; RECORD_BYTES];
    loop {
        match client.poll_output(&mut buffer) {
            Output::Packet(packet) => sent.push(packet.to_vec()),
            Output::ApplicationData(data) => arrived.push(data.to_vec()),
            Output::CloseNotify => arrived.push(b"goodbye".to_vec()),
            Output::Timeout(_) => return sent,
            _ => {}
        }
    }
}

/// The same for a session; whether it wants to be closed, and when it wants to be looked at.
fn run(session: &mut Session, arrived: &mut Vec<Vec<u8>>) -> Result<(Vec<Vec<u8>>, Instant), Over> {
    let mut sent = Vec::new();
    let mut buffer = vec![0; RECORD_BYTES];
    loop {
        match session.poll(&mut buffer)? {
            Event::Packet(length) => sent.push(buffer[..length].to_vec()),
            Event::Data(length) => arrived.push(buffer[..length].to_vec()),
            Event::Connected => arrived.push(b"connected".to_vec()),
            Event::Closed => arrived.push(b"goodbye".to_vec()),
            Event::Sleep(at) => return Ok((sent, at)),
        }
    }
}

/// A client and its session, begun: what the session has sent.
fn begin(first_sequence: u64) -> (Dtls, Session, Vec<Vec<u8>>) {
    let mut client = client(now());
    client.handle_timeout(now()).unwrap();
    let mut arrived = Vec::new();
    let mut first = drive(&mut client, &mut arrived).remove(0);
    number(&mut first, first_sequence);
    let hello = ClientHello::read(&first).expect("a ClientHello");
    let request = cookies().verify_request(secs(0), address(CLIENT), &hello);
    client.handle_packet(&request).unwrap();
    let mut second = drive(&mut client, &mut arrived).remove(0);
    number(&mut second, first_sequence + 1);
    let hello = ClientHello::read(&second).expect("a ClientHello");
    let cookie = (cookies().verify(secs(1), address(CLIENT), &hello)).expect("a good cookie");
    let terms = Terms::new().unwrap();
    let mut session = Session::begin(&terms, &identity(), now(), &hello, cookie).unwrap();
    let (sent, _) = run(&mut session, &mut arrived).unwrap();
    (client, session, sent)
}

/// Both after the handshake.
fn connected() -> (Dtls, Session) {
    let (mut client, mut session, sent) = begin(0);
    let mut at_client = Vec::new();
    let mut at_server = Vec::new();
    for packet in sent {
        client.handle_packet(&packet).unwrap();
    }
    for packet in drive(&mut client, &mut at_client) {
        session.receive(&packet).unwrap();
    }
    let (sent, _) = run(&mut session, &mut at_server).unwrap();
    assert_eq!(at_server, [b"connected"]);
    for packet in sent {
        client.handle_packet(&packet).unwrap();
    }
    drive(&mut client, &mut at_client);
    (client, session)
}

fn sequence(record: &[u8]) -> u64 {
    u64::from_be_bytes([
        0, 0, record[5], record[6], record[7], record[8], record[9], record[10],
    ])
}

fn number(record: &mut [u8], sequence: u64) {
    record[5..11].copy_from_slice(&sequence.to_be_bytes()[2..]);
}

#[test]
fn rfc7983_first_bytes_tell_dtls_from_stun_and_channels() {
    let dtls: Vec<u8> = (0..=255).filter(|byte| is_dtls(*byte)).collect();
    assert_eq!(dtls, (20..=63).collect::<Vec<u8>>());
}

#[test]
fn rfc6347_4_2_1_the_first_answer_is_a_cookie_and_smaller_than_what_asked() {
    let mut hello = client_hello();
    number(&mut hello, 5);
    let read = ClientHello::read(&hello).unwrap();
    assert_eq!((read.sequence, read.message, read.cookie), (5, 0, &[][..]));
    let request = cookies().verify_request(secs(0), address(CLIENT), &read);
    assert!(request.len() == VERIFY_BYTES && request.len() < hello.len());
    // A handshake record of the same number, with message 0: HelloVerifyRequest.
    assert_eq!(request[0], 22);
    assert_eq!(sequence(&request), 5);
    assert_eq!(request[13], 3);
    assert_eq!(request[17..19], [0, 0]);
    // The same of everybody, always: nothing is kept.
    assert_eq!(
        request,
        cookies().verify_request(secs(1), address(CLIENT), &read)
    );
}

#[test]
fn rfc6347_4_2_1_a_cookie_is_good_for_one_client_one_hello_and_a_minute() {
    let mut client = client(now());
    client.handle_timeout(now()).unwrap();
    let first = drive(&mut client, &mut Vec::new()).remove(0);
    let hello = ClientHello::read(&first).unwrap();
    let made = secs(3600);
    let request = cookies().verify_request(made, address(CLIENT), &hello);
    client.handle_packet(&request).unwrap();
    let second = drive(&mut client, &mut Vec::new()).remove(0);
    let good = ClientHello::read(&second).unwrap();
    assert_eq!(good.message, 1);
    let verify = |since, from: &str, hello: &ClientHello<'_>| {
        cookies().verify(since, address(from), hello).is_some()
    };
    assert!(verify(made, CLIENT, &good));
    assert!(verify(made + secs(30), CLIENT, &good));
    assert!(!verify(made + secs(60), CLIENT, &good));
    assert!(!verify(made - secs(60), CLIENT, &good));
    assert!(!verify(made, "192.0.2.8:4000", &good));
    assert!(!verify(made, "192.0.2.7:4001", &good));
    assert!(!verify(made, "[2001:db8::7]:4000", &good));
    assert!(!verify(made, CLIENT, &hello));
    assert!(
        Cookies::new([8; 64])
            .verify(made, address(CLIENT), &good)
            .is_none()
    );
    // Version, random, session, cookie, suites, compression: another bit anywhere there, and it is none.
    let covered = 25..25 + 2 + 32 + 1 + 1 + 32 + 2;
    for at in covered {
        let mut changed = second.clone();
        changed[at] ^= 1;
        if let Some(read) = ClientHello::read(&changed) {
            assert!(!verify(made, CLIENT, &read), "byte {at}");
        }
    }
}

#[test]
fn what_is_no_whole_client_hello_is_not_read() {
    let hello = client_hello();
    assert!(ClientHello::read(&hello).is_some());
    for length in 0..hello.len() {
        assert!(ClientHello::read(&hello[..length]).is_none(), "{length}");
    }
    // Another type, epoch, message, fragment.
    for (at, value) in [(0, 23), (1, 3), (3, 1), (13, 2), (21, 1), (24, 1)] {
        let mut changed = hello.clone();
        changed[at] = value;
        assert!(ClientHello::read(&changed).is_none(), "byte {at}");
    }
    // Whatever lengths say.
    for at in 0..hello.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = hello.clone();
            changed[at] = value;
            if let Some(read) = ClientHello::read(&changed) {
                let _ = read.without_cookie();
                let _ = cookies().verify_request(secs(0), address(CLIENT), &read);
            }
        }
    }
}

#[test]
fn rfc6347_4_2_1_a_client_of_dtls_1_0_is_told_so() {
    let mut hello = client_hello();
    // client_version
    hello[26] = 0xff;
    number(&mut hello, 3);
    let read = ClientHello::read(&hello).unwrap();
    assert!(read.too_old);
    let alert = read.refusal();
    assert_eq!((alert[0], sequence(&alert)), (21, 3));
    assert_eq!(alert[11..], [0, 2, 2, 70]);
}

#[test]
fn data_goes_both_ways_once_and_in_whole_records() {
    let (mut client, mut session) = connected();
    let mut at_client = Vec::new();
    let mut at_server = Vec::new();
    client.send_application_data(b"from the client").unwrap();
    let packets = drive(&mut client, &mut at_client);
    for packet in packets.iter().chain(&packets) {
        // The second time it is a replay.
        session.receive(packet).unwrap();
        run(&mut session, &mut at_server).unwrap();
    }
    assert_eq!(at_server, [b"from the client"]);
    session.send(b"from the server").unwrap();
    let (packets, _) = run(&mut session, &mut at_server).unwrap();
    assert_eq!(packets.len(), 1);
    assert!(!packets[0].windows(6).any(|bytes| bytes == b"server"));
    client.handle_packet(&packets[0]).unwrap();
    drive(&mut client, &mut at_client);
    assert_eq!(at_client, [b"from the server"]);
}

#[test]
fn either_end_says_goodbye() {
    let (mut client, mut session) = connected();
    let mut heard = Vec::new();
    client.close().unwrap();
    for packet in drive(&mut client, &mut Vec::new()) {
        session.receive(&packet).unwrap();
    }
    run(&mut session, &mut heard).unwrap();
    assert_eq!(heard, [b"goodbye"]);

    let (mut client, mut session) = connected();
    let mut heard = Vec::new();
    session.close().unwrap();
    let (packets, _) = run(&mut session, &mut Vec::new()).unwrap();
    for packet in packets {
        client.handle_packet(&packet).unwrap();
    }
    drive(&mut client, &mut heard);
    assert_eq!(heard, [b"goodbye"]);
}

#[test]
fn rfc6347_4_2_1_records_are_numbered_on_from_the_clients() {
    // Three ClientHellos were lost or answered twice: what is numbered lower is a replay to the client.
    let (_, _, sent) = begin(3);
    assert_eq!(sequence(&sent[0]), 4);
    let (_, _, sent) = begin(0);
    assert_eq!(sequence(&sent[0]), 1);
}

#[test]
fn rfc6347_4_2_4_a_lost_flight_is_sent_again_and_silence_ends_it() {
    let (mut client, mut session, _lost) = begin(0);
    let mut heard = Vec::new();
    let (mut again, mut at) = (Vec::new(), now());
    while again.is_empty() {
        let (_, wake) = run(&mut session, &mut heard).unwrap();
        assert!(wake > at && wake <= now() + secs(5), "a timer is set");
        at = wake;
        session.tick(at).unwrap();
        again = run(&mut session, &mut heard).unwrap().0;
    }
    for packet in again {
        client.handle_packet(&packet).unwrap();
    }
    for packet in drive(&mut client, &mut Vec::new()) {
        session.receive(&packet).unwrap();
    }
    run(&mut session, &mut heard).unwrap();
    assert_eq!(heard, [b"connected"]);

    let (_, mut session, sent) = begin(0);
    let mut flights = 1;
    let mut at = now();
    let bytes: usize = sent.iter().map(Vec::len).sum();
    let mut all = bytes;
    let ended = loop {
        match session
            .tick(at)
            .and_then(|()| run(&mut session, &mut heard))
        {
            Ok((sent, wake)) => {
                flights += usize::from(!sent.is_empty());
                all += sent.iter().map(Vec::len).sum::<usize>();
                at = wake.max(at + Duration::from_millis(1));
            }
            Err(Over) => break at,
        }
    };
    assert!(ended <= now() + secs(10));
    assert!(flights <= 5 && all <= bytes * 5, "{flights} flights");
}

#[test]
fn rubbish_costs_the_session_nothing() {
    let (mut client, mut session) = connected();
    let mut heard = Vec::new();
    client.send_application_data(b"one").unwrap();
    let packet = drive(&mut client, &mut Vec::new()).remove(0);
    let mut state = 1_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for round in 0..4000 {
        let mut bytes = match round % 3 {
            // Bits of a record, of a ClientHello, or of nothing.
            0 => packet.clone(),
            1 => client_hello_of(&mut random),
            _ => (0..random() % 200).map(|_| random() as u8).collect(),
        };
        for _ in 0..1 + random() % 3 {
            if !bytes.is_empty() {
                let at = random() % bytes.len();
                bytes[at] ^= 1 << (random() % 8);
            }
        }
        if bytes == packet {
            continue;
        }
        bytes.truncate(random() % (bytes.len() + 1));
        session.receive(&bytes).expect("the session goes on");
        run(&mut session, &mut heard).expect("the session goes on");
    }
    // Records of every kind and epoch that nobody encrypted, each with a number of its own.
    for number in 1..200_u64 {
        for (kind, epoch) in (19..=24).flat_map(|kind| (0..3).map(move |epoch| (kind, epoch))) {
            let payload = [
                1,
                0,
                0,
                8,
                0,
                number as u8,
                0,
                0,
                0,
                0,
                0,
                8,
                1,
                2,
                3,
                4,
                5,
                6,
                7,
                8,
            ];
            let mut record = vec![kind, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, 0, 0, 20];
            record.extend(payload);
            record[5..11].copy_from_slice(&number.to_be_bytes()[2..]);
            session.receive(&record).expect("the session goes on");
            run(&mut session, &mut heard).expect("the session goes on");
        }
    }
    assert!(heard.is_empty());
    session.receive(&packet).unwrap();
    run(&mut session, &mut heard).unwrap();
    assert_eq!(heard, [b"one"]);
}

/// Some ClientHello, made once.
fn client_hello_of(random: &mut impl FnMut() -> usize) -> Vec<u8> {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let mut hello = MADE.get_or_init(client_hello).clone();
    number(&mut hello, random() as u64 % 100);
    hello
}

#[test]
fn only_ecdsa_keys_serve() {
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let leaf = certificate().certificate;
    assert!(Identity::new(&leaf, &made.serialize_der()).is_none());
    assert!(Identity::new(&leaf, b"no key at all").is_none());
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(Identity::new(&leaf, &made.serialize_der()).is_some());
}
