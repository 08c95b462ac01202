//! Somebody on the way who wants a client and the server to agree on less than both can do (RFC 8489 §9.2.1, §16.1.2): every
//! single thing that may be taken out or changed, in the challenge, in the request and in the answer, and who notices it.

use turnix::access::{AuthFailure, PasswordAlgorithm};
use turnix::base::{FiveTuple, Secret, Transport};
use turnix::client::{self, Event, Failure, Step};
use turnix::turn::{SecurityFeatures, Settings};
use turnix::wire::attribute::*;
use turnix::wire::key::user_hash;

use super::common::security::{MD5, Modern, SHA256, sha256};
use super::common::wire::{REALM, Reply, Request};
use super::common::world::{PASSWORD, USER, World, access_settings, secs, seed, tcp, udp};

const CLIENT: &str = "192.0.2.7:4000";

/// A message as whoever is on the way takes it apart.
struct Held {
    head: [u8; 20],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Held {
    fn new(bytes: &[u8]) -> Self {
        let mut attributes = Vec::new();
        let mut rest = &bytes[20..];
        while let Some((&[a, b, high, low], behind)) = rest.split_first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            attributes.push((u16::from_be_bytes([a, b]), behind[..length].to_vec()));
            rest = &behind[length.next_multiple_of(4)..];
        }
        Self {
            head: bytes[..20].try_into().unwrap(),
            attributes,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.to_vec();
        for (kind, value) in &self.attributes {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn has(&self, kind: u16) -> bool {
        self.attributes.iter().any(|(one, _)| *one == kind)
    }

    fn code(&self) -> Option<u16> {
        let code = self.attributes.iter().find(|(one, _)| *one == ERROR_CODE)?;
        Some(u16::from(code.1[2]) * 100 + u16::from(code.1[3]))
    }

    fn strip(&mut self, kind: u16) {
        self.attributes.retain(|(one, _)| *one != kind);
    }

    fn set(&mut self, kind: u16, value: &[u8]) {
        self.change(kind, |old| *old = value.to_vec());
    }

    fn change(&mut self, kind: u16, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((_, value)) = self.attributes.iter_mut().find(|(one, _)| *one == kind) {
            change(value);
        }
    }

    /// An error in place of what it was, without anything else.
    fn forge(&mut self, code: u16) {
        self.head[0] |= 0x01;
        self.head[1] |= 0x10;
        let value = vec![0, 0, (code / 100) as u8, (code % 100) as u8];
        self.attributes = vec![(ERROR_CODE, value)];
    }

    fn challenge(&mut self, code: u16, realm: &str, nonce: &str, algorithms: &[u8]) {
        self.forge(code);
        self.attributes.push((REALM_, realm.into()));
        self.attributes.push((NONCE, nonce.into()));
        if !algorithms.is_empty() {
            self.attributes
                .push((PASSWORD_ALGORITHMS, algorithms.to_vec()));
        }
    }
}

/// REALM's number; its text is [`REALM`].
const REALM_: u16 = turnix::wire::attribute::REALM;

/// Where a message is on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Challenge,
    Request,
    Answer,
}

/// Who notices.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Noticed {
    /// The client reads the challenge and asks no more.
    ClientAtChallenge,
    /// The server refuses the signed request.
    Server(u16),
    /// The client reads the answer to its signed request.
    ClientAtAnswer,
    /// Nobody: the client has its allocation.
    Nobody,
}

/// A server with static users only, which offers all it can on every transport.
fn world() -> World {
    let mut settings = Settings::default();
    settings.protocol.security_features = SecurityFeatures::Always;
    let mut access = access_settings();
    access.secrets.clear();
    World::with(settings, &access, seed())
}

/// Lets our client allocate while `alter` has each message in hand: what came of it, and who noticed.
fn allocate(from: FiveTuple, mut alter: impl FnMut(Stage, &mut Held)) -> (Event, Noticed) {
    let mut world = world();
    let settings = client::Settings {
        username: USER.into(),
        password: Secret::new(PASSWORD.into()),
        transport: from.transport(),
        family: None,
        lifetime_secs: None,
    };
    let mut client = client::Client::new(settings, world.now, [1; 32]);
    client.begin(world.now, Step::Allocate);
    let mut noticed = Noticed::ClientAtChallenge;
    for _ in 0..200 {
        while let Some(request) = client.poll_transmit() {
            let mut request = Held::new(&request);
            let signed = request.has(USERNAME) || request.has(USERHASH);
            if signed {
                alter(Stage::Request, &mut request);
            }
            for answer in world.ask_raw(from, &request.bytes()) {
                let mut answer = Held::new(&answer);
                match (signed, answer.code()) {
                    (true, Some(code)) if noticed != Noticed::ClientAtAnswer => {
                        noticed = Noticed::Server(code);
                    }
                    (true, None) => noticed = Noticed::ClientAtAnswer,
                    _ => {}
                }
                let challenge = matches!(answer.code(), Some(401 | 438));
                let stage = if challenge {
                    Stage::Challenge
                } else {
                    Stage::Answer
                };
                alter(stage, &mut answer);
                client.handle_input(world.now, &answer.bytes());
            }
        }
        if let Some(event) = client.poll_event() {
            if let Event::Allocated { .. } = event {
                return (event, Noticed::Nobody);
            }
            if noticed != Noticed::ClientAtAnswer {
                assert_eq!(world.server.len(), 0, "nothing was made");
            }
            return (event, noticed);
        }
        world.pass(secs(1));
        client.handle_timeout(world.now);
    }
    panic!("nothing came of it");
}

fn failed(why: Failure) -> Event {
    Event::Failed(Step::Allocate, why)
}

/// The transports, and what becomes of an answer that is not authentic there.
fn ways() -> [FiveTuple; 2] {
    [tcp(CLIENT), udp(CLIENT)]
}

#[test]
fn left_alone_both_agree_on_all_that_they_can() {
    for from in ways() {
        let (event, noticed) = allocate(from, |stage, held| match stage {
            Stage::Challenge => assert!(held.has(PASSWORD_ALGORITHMS)),
            Stage::Request => {
                assert!(held.has(USERHASH) && !held.has(USERNAME));
                assert!(held.has(MESSAGE_INTEGRITY_SHA256) && !held.has(MESSAGE_INTEGRITY));
                assert!(
                    held.attributes
                        .contains(&(PASSWORD_ALGORITHM, SHA256.to_vec()))
                );
            }
            Stage::Answer => assert!(held.has(MESSAGE_INTEGRITY_SHA256)),
        });
        assert!(matches!(event, Event::Allocated { .. }), "{event:?}");
        assert_eq!(noticed, Noticed::Nobody);
    }
}

#[test]
fn whatever_is_changed_in_the_challenge_is_noticed() {
    type Alter = fn(&mut Held);
    let cases: &[(&str, Alter, Noticed, Option<Failure>)] = &[
        (
            "the list is gone",
            |held| held.strip(PASSWORD_ALGORITHMS),
            Noticed::ClientAtChallenge,
            Some(Failure::BidDown),
        ),
        (
            "the list is gone, and the bit of the nonce",
            |held| {
                held.strip(PASSWORD_ALGORITHMS);
                held.change(NONCE, |nonce| nonce[9..13].copy_from_slice(b"QAAA"));
            },
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the list is gone, and all bits of the nonce",
            |held| {
                held.strip(PASSWORD_ALGORITHMS);
                held.change(NONCE, |nonce| nonce[9..13].copy_from_slice(b"AAAA"));
            },
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the list is gone, and the cookie of the nonce",
            |held| {
                held.strip(PASSWORD_ALGORITHMS);
                held.change(NONCE, |nonce| drop(nonce.drain(..13)));
            },
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the bit of the list is gone",
            |held| held.change(NONCE, |nonce| nonce[9..13].copy_from_slice(b"QAAA")),
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the bit of anonymity is gone",
            |held| held.change(NONCE, |nonce| nonce[9..13].copy_from_slice(b"gAAA")),
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "a bit that nobody has assigned is set",
            |held| held.change(NONCE, |nonce| nonce[9..13].copy_from_slice(b"wAAB")),
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the cookie is gone, the list is not",
            |held| held.change(NONCE, |nonce| drop(nonce.drain(..13))),
            Noticed::Server(438),
            Some(Failure::Refused(438)),
        ),
        (
            "the list is MD5 only",
            |held| held.set(PASSWORD_ALGORITHMS, &MD5),
            Noticed::Server(400),
            None,
        ),
        (
            "the list is SHA-256 only",
            |held| held.set(PASSWORD_ALGORITHMS, &SHA256),
            Noticed::Server(400),
            None,
        ),
        (
            "the list prefers MD5",
            |held| held.set(PASSWORD_ALGORITHMS, &[MD5, SHA256].concat()),
            Noticed::Server(400),
            None,
        ),
        (
            "the list is longer",
            |held| held.change(PASSWORD_ALGORITHMS, |list| list.extend([0, 3, 0, 0])),
            Noticed::Server(400),
            None,
        ),
        (
            "the list is as long as a message may be",
            |held| held.change(PASSWORD_ALGORITHMS, |list| list.extend([0; 60_000])),
            Noticed::Server(400),
            None,
        ),
        (
            "the list has nothing that the client knows",
            |held| held.set(PASSWORD_ALGORITHMS, &[0x7F, 0xFF, 0, 0]),
            Noticed::ClientAtChallenge,
            Some(Failure::Refused(401)),
        ),
        (
            "the list is empty",
            |held| held.set(PASSWORD_ALGORITHMS, &[]),
            Noticed::ClientAtChallenge,
            Some(Failure::Refused(401)),
        ),
        (
            "the realm is another",
            |held| held.set(REALM_, b"example.com"),
            Noticed::Server(401),
            Some(Failure::Refused(401)),
        ),
        (
            "all of it is made up",
            |held| held.challenge(401, REALM, "f//499k954d6OL34oL9FSTvy64sA", &[]),
            // The server's 438 as well, and to a client a 401 to what it has signed says that its password is wrong.
            Noticed::Server(438),
            Some(Failure::Refused(401)),
        ),
    ];
    for from in ways() {
        for (what, change, who, why) in cases {
            let (event, noticed) = allocate(from, |stage, held| {
                if stage == Stage::Challenge {
                    change(held);
                }
            });
            assert_eq!(noticed, *who, "{what}: {event:?}");
            // The server's 400 is not signed, so it never came (RFC 8489 §9.2.5).
            assert_eq!(event, failed(why.unwrap_or(Failure::Integrity)), "{what}");
        }
    }
}

/// Nonces that the server gave elsewhere, or before it offered as much, are no help either.
#[test]
fn a_nonce_that_promises_less_is_no_good() {
    let mut world = world();
    // Of the time before a reload, for the same client.
    set(&mut world, SecurityFeatures::Off);
    let bare = world.nonce(tcp(CLIENT));
    assert_eq!(bare.len(), turnix::turn::NONCE_LENGTH);
    set(&mut world, SecurityFeatures::Streams);
    // Of UDP, from the same address and port.
    let udp_nonce = world.nonce(udp(CLIENT));
    assert_eq!(udp_nonce.len(), turnix::turn::NONCE_LENGTH);
    for nonce in [bare, udp_nonce] {
        let legacy = super::common::wire::Signer::new(USER, PASSWORD, &nonce);
        let reply = world.ask(tcp(CLIENT), &Request::allocate().sign(&legacy));
        assert_eq!(reply.code(), 438);
        assert!(reply.nonce().starts_with("obMatJos2"));
        assert!(reply.attribute_types().contains(&PASSWORD_ALGORITHMS));
    }
    assert_eq!(world.server.len(), 0);
}

fn set(world: &mut World, wanted: SecurityFeatures) {
    let mut settings = Settings::default();
    settings.protocol.security_features = wanted;
    world.server.set_settings(settings);
}

#[test]
fn whatever_is_changed_in_the_request_is_refused() {
    for from in ways() {
        let mut world = world();
        let reply = world.ask(from, &Request::allocate());
        let alice = Modern::answering(&reply, USER, PASSWORD);
        let good = alice.sign(Request::allocate().lifetime(900)).bytes();
        let md5 = PasswordAlgorithm::Md5.key(USER.as_bytes(), REALM, PASSWORD.as_bytes());
        let other_nonce = {
            world.pass(secs(1));
            world.nonce(from)
        };
        assert_ne!(other_nonce, alice.nonce);
        type Alter<'a> = &'a dyn Fn(&mut Held);
        let cases: &[(&str, Alter<'_>, u16)] = &[
            ("no list", &|held| held.strip(PASSWORD_ALGORITHMS), 400),
            ("no choice", &|held| held.strip(PASSWORD_ALGORITHM), 400),
            (
                "neither",
                &|held| {
                    held.strip(PASSWORD_ALGORITHMS);
                    held.strip(PASSWORD_ALGORITHM);
                },
                401,
            ),
            ("MD5", &|held| held.set(PASSWORD_ALGORITHM, &MD5), 401),
            (
                "an unknown choice",
                &|held| held.set(PASSWORD_ALGORITHM, &[0, 3, 0, 0]),
                400,
            ),
            (
                "a choice with parameters",
                &|held| held.set(PASSWORD_ALGORITHM, &[0, 2, 0, 4, 1, 2, 3, 4]),
                400,
            ),
            (
                "an empty choice",
                &|held| held.set(PASSWORD_ALGORITHM, &[]),
                400,
            ),
            (
                "MD5 in the list and the choice",
                &|held| {
                    held.set(PASSWORD_ALGORITHMS, &MD5);
                    held.set(PASSWORD_ALGORITHM, &MD5);
                },
                400,
            ),
            (
                "a list of 60 000 bytes",
                &|held| held.set(PASSWORD_ALGORITHMS, &[0; 60_000]),
                400,
            ),
            (
                "no integrity",
                &|held| held.strip(MESSAGE_INTEGRITY_SHA256),
                401,
            ),
            (
                "MESSAGE-INTEGRITY in its place",
                &|held| {
                    held.strip(MESSAGE_INTEGRITY_SHA256);
                    held.attributes.push((MESSAGE_INTEGRITY, vec![0; 20]));
                },
                401,
            ),
            (
                "MESSAGE-INTEGRITY as well",
                &|held| {
                    let last = held.attributes.len() - 1;
                    held.attributes
                        .insert(last, (MESSAGE_INTEGRITY, vec![0; 20]));
                },
                401,
            ),
            (
                "another user by name",
                &|held| {
                    held.strip(USERHASH);
                    held.attributes.insert(1, (USERNAME, b"bob".to_vec()));
                },
                401,
            ),
            (
                "the same user by name",
                &|held| {
                    held.strip(USERHASH);
                    held.attributes.insert(1, (USERNAME, USER.into()));
                },
                401,
            ),
            (
                "both names",
                &|held| held.attributes.insert(1, (USERNAME, USER.into())),
                400,
            ),
            (
                "a short USERHASH",
                &|held| held.change(USERHASH, |hash| hash.truncate(28)),
                400,
            ),
            (
                "another user's hash",
                &|held| held.set(USERHASH, &user_hash(b"bob", REALM)),
                401,
            ),
            ("nobody's hash", &|held| held.set(USERHASH, &[7; 32]), 401),
            ("no nonce", &|held| held.strip(NONCE), 400),
            (
                "another nonce of the same client",
                &|held| held.set(NONCE, other_nonce.as_bytes()),
                401,
            ),
            (
                "another lifetime",
                &|held| held.set(LIFETIME, &[0, 0, 3, 0]),
                401,
            ),
        ];
        for (what, change, code) in cases {
            let mut held = Held::new(&good);
            change(&mut held);
            let answers = world.ask_raw(from, &held.bytes());
            assert_eq!(Reply::parse(&answers[0]).code(), *code, "{what}");
        }
        // Cut off, as RFC 8489 §14.6 lets other usages have it.
        for length in [0, 4, 12, 16, 20, 28, 30, 36] {
            let mut held = Held::new(&good);
            held.change(MESSAGE_INTEGRITY_SHA256, |mac| mac.resize(length, 0));
            let answers = world.ask_raw(from, &held.bytes());
            assert_eq!(Reply::parse(&answers[0]).code(), 400, "{length}");
        }
        for length in [16, 20, 24, 28] {
            let cut = sha256(alice.unsigned(Request::allocate()), &alice.key(), length);
            assert_eq!(world.ask(from, &cut).code(), 400, "{length}");
        }
        // Signed by the weaker key under the stronger name, and the other way round.
        let wrong = sha256(alice.unsigned(Request::allocate()), md5.as_bytes(), 32);
        assert_eq!(world.ask(from, &wrong).code(), 401);
        let weaker = Modern {
            algorithm: Some(MD5),
            ..alice.clone()
        };
        let wrong = sha256(weaker.unsigned(Request::allocate()), &alice.key(), 32);
        assert_eq!(world.ask(from, &wrong).code(), 401);
        // A list without its nonce, after a challenge that nobody knows any more.
        let elsewhere = Modern {
            nonce: "obMatJos2wAAA".to_owned() + &"A".repeat(24),
            algorithms: Some(MD5.to_vec()),
            ..alice.clone()
        };
        let reply = world.ask(from, &elsewhere.sign(Request::allocate()));
        assert_eq!(reply.code(), 438);
        // Every byte.
        for at in 20..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            for answer in world.ask_raw(from, &bytes) {
                let code = Reply::parse(&answer).code();
                assert!([400, 401, 438].contains(&code), "byte {at}: {code}");
            }
        }
        assert_eq!(world.server.len(), 0);
        let failures = world.server.stats().auth_failures;
        assert!(failures[AuthFailure::BidDown as usize] > 5);
        let answers = world.ask_raw(from, &good);
        assert_eq!(
            Reply::parse(&answers[0]).code(),
            0,
            "nothing else was wrong"
        );
    }
}

#[test]
fn whatever_is_changed_in_the_answer_is_not_believed() {
    type Alter = fn(&mut Held);
    let cases: &[(&str, Alter, Failure)] = &[
        (
            "no integrity",
            |held| held.strip(MESSAGE_INTEGRITY_SHA256),
            Failure::Integrity,
        ),
        (
            "MESSAGE-INTEGRITY in its place",
            |held| {
                held.strip(MESSAGE_INTEGRITY_SHA256);
                held.attributes.push((MESSAGE_INTEGRITY, vec![0; 20]));
            },
            Failure::Integrity,
        ),
        (
            "cut off",
            |held| held.change(MESSAGE_INTEGRITY_SHA256, |mac| mac.truncate(16)),
            Failure::Integrity,
        ),
        (
            "another relayed address",
            |held| held.change(XOR_RELAYED_ADDRESS, |address| address[7] ^= 1),
            Failure::Integrity,
        ),
        (
            "another lifetime",
            |held| held.set(LIFETIME, &[0, 0, 0, 1]),
            Failure::Integrity,
        ),
        (
            "a refusal in its place",
            |held| held.forge(400),
            Failure::Integrity,
        ),
        (
            "a quota in its place",
            |held| held.forge(486),
            Failure::Integrity,
        ),
        // A challenge is not signed, so it can end the attempt; but not make the client weaker.
        (
            "a challenge in its place",
            |held| held.challenge(401, REALM, "nonce", &[]),
            Failure::Refused(401),
        ),
        (
            "a stale nonce without a list",
            |held| held.challenge(438, REALM, "nonce", &[]),
            Failure::BidDown,
        ),
        (
            "a stale nonce with a list that lacks SHA-256",
            |held| held.challenge(438, REALM, "obMatJos2wAAA", &MD5),
            Failure::BidDown,
        ),
        (
            "a stale nonce without anonymity",
            |held| held.challenge(438, REALM, "obMatJos2gAAA", &SHA256),
            Failure::BidDown,
        ),
        (
            "a challenge of another realm without a list",
            |held| held.challenge(401, "example.com", "nonce", &[]),
            Failure::BidDown,
        ),
    ];
    for from in ways() {
        for (what, change, why) in cases {
            let (event, noticed) = allocate(from, |stage, held| {
                if stage == Stage::Answer {
                    change(held);
                }
            });
            assert_eq!(noticed, Noticed::ClientAtAnswer, "{what}");
            assert_eq!(event, failed(*why), "{what}");
        }
    }
}

/// USERHASH guessing is slowed as any other.
#[test]
fn guesses_by_hash_are_counted_as_others() {
    let mut world = world();
    let reply = world.ask(udp(CLIENT), &Request::allocate());
    let mut guess = Modern::answering(&reply, USER, "guess");
    let answered = |world: &mut World, guess: &Modern| {
        (0..300)
            .filter(|_| {
                !world
                    .ask_raw(udp(CLIENT), &guess.sign(Request::allocate()).bytes())
                    .is_empty()
            })
            .count()
    };
    let known = answered(&mut world, &guess);
    assert!(known < 200, "{known}");
    world.pass(secs(60));
    guess.user = "nobody".into();
    assert_eq!(answered(&mut world, &guess), known);
    let failures = world.server.stats().auth_failures;
    assert_eq!(failures[AuthFailure::BadPassword as usize], 300);
    assert_eq!(failures[AuthFailure::UnknownUser as usize], 300);
}

/// What is offered enlarges the answers to whoever has not proven its address only where the operator says so.
#[test]
fn challenges_are_as_small_as_what_they_offer() {
    let mut world = world();
    for (wanted, transport, length) in [
        (SecurityFeatures::Off, Transport::Udp, 72),
        (SecurityFeatures::Off, Transport::Tcp, 72),
        (SecurityFeatures::Streams, Transport::Udp, 72),
        (SecurityFeatures::Streams, Transport::Tcp, 100),
        (SecurityFeatures::Streams, Transport::Tls, 100),
        (SecurityFeatures::Always, Transport::Udp, 100),
        (SecurityFeatures::Always, Transport::Tcp, 100),
    ] {
        set(&mut world, wanted);
        let from = FiveTuple::new(
            transport,
            CLIENT.parse().unwrap(),
            turnix::base::ListenerId(0),
        );
        let answers = world.ask_raw(from, &Request::allocate().bytes());
        assert_eq!(answers[0].len(), length, "{wanted:?} over {transport:?}");
    }
}
