//! Third-party authorization (RFC 7635): tokens that an authorization server made.
//!
//! Those of the first test were made by coturn's `turnutils_oauth`, the others here.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use stun::attributes::{ATTR_NONCE, ATTR_REALM, ATTR_USERNAME, AttrType};
use stun::integrity::MessageIntegrity;
use stun::message::Setter;
use turnix::access::oauth::{MAX_TOKEN_BYTES, TokenAlgorithm, TokenKey};
use turnix::access::{self, Access, Revocations, RevokedKind};
use turnix::base::{Family, FiveTuple, Secret};
use turnix::turn::{EndReason, Server, Settings, Snapshot};

use crate::common::wire::{REALM, Reply, Request};
use crate::common::world::{
    EPOCH, World, access_settings, addr, own_addresses, secs, seed, tcp, udp,
};

const ACCESS_TOKEN: u16 = 0x001B;
const THIRD_PARTY_AUTHORIZATION: AttrType = AttrType(0x802E);

const CLIENT: &str = "192.0.2.7:4000";
const SERVER: &str = "example.org";
const NORTH: &[u8; 32] = b"01234567890123456789012345678901";
const UNION: &[u8; 16] = b"1234567890123456";
/// The session key of tokens: 160 bits, as HMAC-SHA1 wants them.
const MAC_KEY: &[u8; 20] = b"12345678901234567890";

fn token_key(kid: &str, key: &[u8]) -> TokenKey {
    TokenKey {
        kid: kid.into(),
        algorithm: match key.len() {
            16 => TokenAlgorithm::A128Gcm,
            _ => TokenAlgorithm::A256Gcm,
        },
        key: Secret::new(key.to_vec()),
        not_before: None,
        not_after: None,
    }
}

fn with_keys(keys: Vec<TokenKey>) -> access::Settings {
    let mut settings = access_settings();
    settings.oauth.server_name = Some(SERVER.into());
    settings.oauth.keys = keys;
    settings
}

fn both_keys() -> access::Settings {
    with_keys(vec![token_key("north", NORTH), token_key("union", UNION)])
}

fn world() -> World {
    World::with(Settings::default(), &both_keys(), seed())
}

/// What an authorization server encrypts (RFC 7635 §6.2).
#[derive(Clone)]
struct Token {
    key: Vec<u8>,
    server: &'static str,
    nonce: Vec<u8>,
    mac_key: Vec<u8>,
    made: Duration,
    lifetime: u32,
}

impl Token {
    fn new(key: &[u8]) -> Self {
        Self {
            key: key.to_vec(),
            server: SERVER,
            nonce: b"h4j3k2l2n4b5".to_vec(),
            mac_key: MAC_KEY.to_vec(),
            made: EPOCH,
            lifetime: 3600,
        }
    }

    fn plain(&self) -> Vec<u8> {
        let mut plain = (self.mac_key.len() as u16).to_be_bytes().to_vec();
        plain.extend_from_slice(&self.mac_key);
        let fraction = u64::from(self.made.subsec_nanos()) * 0x1_0000 / 1_000_000_000;
        plain.extend_from_slice(&((self.made.as_secs() << 16) | fraction).to_be_bytes());
        plain.extend_from_slice(&self.lifetime.to_be_bytes());
        plain
    }

    fn seal(&self) -> Vec<u8> {
        self.seal_as(self.plain())
    }

    /// With another content.
    fn seal_as(&self, mut content: Vec<u8>) -> Vec<u8> {
        let algorithm = match self.key.len() {
            16 => &AES_128_GCM,
            _ => &AES_256_GCM,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &self.key).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&self.nonce).unwrap();
        key.seal_in_place_append_tag(nonce, Aad::from(self.server), &mut content)
            .unwrap();
        let mut token = (self.nonce.len() as u16).to_be_bytes().to_vec();
        token.extend_from_slice(&self.nonce);
        token.extend_from_slice(&content);
        token
    }
}

/// Signs with a session key.
#[derive(Clone)]
struct Bearer {
    kid: &'static str,
    mac_key: Vec<u8>,
    nonce: String,
}

fn bearer(world: &mut World, kid: &'static str) -> Bearer {
    Bearer {
        kid,
        mac_key: MAC_KEY.to_vec(),
        nonce: world.nonce(udp(CLIENT)),
    }
}

impl Bearer {
    fn sign(&self, request: Request) -> Request {
        let mut request = request
            .text(ATTR_USERNAME, self.kid)
            .text(ATTR_REALM, REALM)
            .text(ATTR_NONCE, &self.nonce);
        MessageIntegrity(self.mac_key.clone())
            .add_to(&mut request.0)
            .unwrap();
        request
    }

    fn with(&self, token: &[u8], request: Request) -> Request {
        self.sign(request.attr(ACCESS_TOKEN, token))
    }

    fn has_signed(&self, reply: &Reply) -> bool {
        MessageIntegrity(self.mac_key.clone())
            .check(&mut reply.0.clone())
            .is_ok()
    }
}

fn user_of_the_only_allocation(world: &World) -> String {
    let (views, _) = world.server.views(world.now, 0, usize::MAX);
    assert_eq!(views.len(), 1);
    views[0].user.to_string()
}

#[test]
fn tokens_of_turnutils_oauth_are_opened() {
    let tokens = [
        (
            "north",
            3600,
            "AAwa18XLRD6fgqVflFToo0CkHGw9W2qGFdkeT3j4KH+IX67e0uuTJGMvQttiM0IKl+hIyEMKfN9T7DBMExf0TQ==",
        ),
        (
            "union",
            600,
            "AAxoNGozazJoNDQ0YmvoNnlgghy9vn0cFbT/s7tRkCYr2d/aW4XxqfInPDMmCelZrqe52KQ+UxuOPfldiHhd9A==",
        ),
    ];
    for (kid, lifetime, token) in tokens {
        let mut world = world();
        let bearer = bearer(&mut world, kid);
        let token = STANDARD.decode(token).unwrap();
        let request = bearer.with(&token, Request::allocate().lifetime(3600));
        let reply = world.ask(udp(CLIENT), &request);
        assert_eq!(reply.code(), 0, "{kid}");
        assert!(bearer.has_signed(&reply));
        assert_eq!(reply.lifetime(), lifetime, "{kid}");
        assert_eq!(user_of_the_only_allocation(&world), kid);
    }
}

#[test]
fn rfc7635_6_1_the_challenge_names_the_server_where_there_are_keys() {
    let client = udp(CLIENT);
    let mut world = world();
    let reply = world.ask(client, &Request::allocate());
    assert_eq!(reply.code(), 401);
    assert_eq!(
        reply.text(THIRD_PARTY_AUTHORIZATION).as_deref(),
        Some(SERVER)
    );
    // A client whose nonce is over knows it.
    let alice = world.alice(client);
    world.pass(secs(3601));
    let reply = world.ask(client, &Request::allocate().sign(&alice));
    assert_eq!(
        (reply.code(), reply.attr(THIRD_PARTY_AUTHORIZATION)),
        (438, None)
    );

    // Without a name of its own it is the realm.
    let mut settings = both_keys();
    settings.oauth.server_name = None;
    let mut world = World::with(Settings::default(), &settings, seed());
    let reply = world.ask(client, &Request::allocate());
    assert_eq!(
        reply.text(THIRD_PARTY_AUTHORIZATION).as_deref(),
        Some(REALM)
    );

    let reply = World::new().ask(client, &Request::allocate());
    assert_eq!(
        (reply.code(), reply.attr(THIRD_PARTY_AUTHORIZATION)),
        (401, None)
    );
}

#[test]
fn rfc7635_7_without_keys_a_token_is_an_unknown_attribute() {
    let client = udp(CLIENT);
    let mut world = World::new();
    let alice = world.alice(client);
    let token = Token::new(NORTH).seal();
    let reply = world.ask(
        client,
        &Request::allocate().attr(ACCESS_TOKEN, &token).sign(&alice),
    );
    assert_eq!(reply.code(), 420);
    assert_eq!(
        reply.attr(AttrType(0x000A)),
        Some(ACCESS_TOKEN.to_be_bytes().to_vec())
    );
}

#[test]
fn users_with_passwords_come_beside_tokens() {
    let mut world = world();
    world.allocate(udp(CLIENT));
    assert_eq!(user_of_the_only_allocation(&world), "alice");
}

#[test]
fn rfc7635_9_only_allocate_and_refresh_carry_the_token() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        0
    );
    for request in [
        Request::create_permission(&[addr("203.0.114.9:1000")]),
        Request::channel_bind(0x4000, addr("203.0.114.9:1000")),
        Request::refresh(600),
    ] {
        let reply = world.ask(client, &bearer.sign(request));
        assert_eq!(reply.code(), 0);
        assert!(bearer.has_signed(&reply));
    }
    // Whoever does not know the session key has nothing of the token.
    let thief = Bearer {
        mac_key: vec![0; 20],
        ..bearer.clone()
    };
    for request in [
        thief.sign(Request::refresh(0)),
        thief.with(&token, Request::refresh(0)),
    ] {
        assert_eq!(world.code(client, &request), 401);
    }
    assert_eq!(world.server.len(), 1);
}

#[test]
fn rfc7635_7_the_clock_may_be_five_seconds_off_on_either_side() {
    // Seconds from the making of the token, its lifetime, and what it grants to a client that asks for an hour.
    let cases = [
        (0, 3600, Some(3600)),
        (4, 600, Some(600)),
        (5, 600, Some(600)),
        (65, 600, Some(540)),
        (604, 600, Some(1)),
        (605, 600, None),
        (-65, 600, Some(540)),
        (-604, 600, Some(1)),
        (-605, 600, None),
        (0, 1, Some(1)),
        (5, 1, Some(1)),
        (6, 1, None),
        (0, 0, None),
        (0, u32::MAX, Some(3600)),
    ];
    for (since, lifetime, granted) in cases {
        let mut world = world();
        let bearer = bearer(&mut world, "north");
        let by = Duration::from_secs(i64::unsigned_abs(since));
        let token = Token {
            made: if since < 0 { EPOCH + by } else { EPOCH - by },
            lifetime,
            ..Token::new(NORTH)
        };
        let request = bearer.with(&token.seal(), Request::allocate().lifetime(3600));
        let reply = world.ask(udp(CLIENT), &request);
        let got = (reply.code() == 0).then(|| reply.lifetime());
        assert_eq!(got, granted, "made {since} s ago for {lifetime} s");
        if granted.is_none() {
            assert_eq!(reply.code(), 401);
            assert!(reply.attr(THIRD_PARTY_AUTHORIZATION).is_some());
        }
    }
    // 1/65536 seconds count.
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let old = Token {
        made: EPOCH - secs(605) + Duration::from_micros(100),
        lifetime: 600,
        ..Token::new(NORTH)
    };
    assert_eq!(
        world.code(udp(CLIENT), &bearer.with(&old.seal(), Request::allocate())),
        0
    );
}

#[test]
fn rfc7635_9_an_allocation_lives_no_longer_than_its_tokens() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token {
        lifetime: 1000,
        ..Token::new(NORTH)
    }
    .seal();
    let reply = world.ask(
        client,
        &bearer.with(&token, Request::allocate().lifetime(3600)),
    );
    assert_eq!(reply.lifetime(), 1000);
    world.pass(secs(500));
    let reply = world.ask(client, &bearer.sign(Request::refresh(3600)));
    assert_eq!(reply.lifetime(), 500);
    // By the same token as well.
    let reply = world.ask(client, &bearer.with(&token, Request::refresh(3600)));
    assert_eq!((reply.code(), reply.lifetime()), (0, 500));

    // A new one, with a session key of its own, even of another key.
    let newer = Token {
        mac_key: b"09876543210987654321".to_vec(),
        made: EPOCH + secs(500),
        ..Token::new(UNION)
    };
    let second = Bearer {
        kid: "union",
        mac_key: newer.mac_key.clone(),
        ..bearer.clone()
    };
    let reply = world.ask(client, &second.with(&newer.seal(), Request::refresh(3600)));
    assert_eq!((reply.code(), reply.lifetime()), (0, 3600));
    assert!(second.has_signed(&reply));
    // The older session key is forgotten.
    assert_eq!(world.code(client, &bearer.sign(Request::refresh(600))), 401);
    let permission = Request::create_permission(&[addr("203.0.114.9:1000")]);
    assert_eq!(world.code(client, &second.sign(permission)), 0);
    // Quotas go on counting whom they counted.
    assert_eq!(user_of_the_only_allocation(&world), "north");

    world.pass(secs(3599));
    assert_eq!(world.server.len(), 1);
    world.pass(secs(1));
    assert_eq!(world.ended.last().unwrap().reason, EndReason::Expired);
}

#[test]
fn nobody_takes_an_allocation_over_with_another_kind_of_credential() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    let (alice, ..) = world.allocate(client);
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::refresh(600))),
        441
    );
    assert_eq!(world.code(client, &Request::refresh(0).sign(&alice)), 0);
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        0
    );
    assert_eq!(world.code(client, &Request::refresh(0).sign(&alice)), 441);
    // A time-limited user of the same name.
    let later = EPOCH.as_secs() + 3600;
    let secret = Secret::new(crate::common::world::SECRET.to_owned());
    let (user, password) = access::rest::mint(&secret, Some("north"), later);
    let minted = crate::common::wire::Signer::new(&user, &password, &alice.nonce);
    assert_eq!(world.code(client, &Request::refresh(0).sign(&minted)), 441);
    assert_eq!(world.server.len(), 1);
}

/// coturn keys HMAC-SHA1 with the first 16 bytes of whatever the token holds.
#[test]
fn clients_that_use_the_beginning_of_the_session_key_are_understood() {
    let client = udp(CLIENT);
    for mac_key in [MAC_KEY.to_vec(), vec![7; 32]] {
        let mut world = world();
        let token = Token {
            mac_key: mac_key.clone(),
            ..Token::new(NORTH)
        }
        .seal();
        let bearer = Bearer {
            mac_key: mac_key[..16].to_vec(),
            ..bearer(&mut world, "north")
        };
        let reply = world.ask(client, &bearer.with(&token, Request::allocate()));
        assert_eq!(reply.code(), 0);
        assert!(bearer.has_signed(&reply));
        let reply = world.ask(client, &bearer.sign(Request::refresh(0)));
        assert_eq!(reply.code(), 0);
        assert!(bearer.has_signed(&reply));
    }
}

/// A server that reads lengths before it knows who wrote them, or more than it has room for, is one that strangers crash.
#[test]
fn what_is_no_token_is_401() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let good = Token::new(NORTH);
    let sealed = good.seal();
    let mut cases: Vec<Vec<u8>> = Vec::new();
    cases.extend((0..sealed.len()).map(|length| sealed[..length].to_vec()));
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 0x01;
        cases.push(changed);
    }
    for length in [0, 1, 11, 13, 64, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF_u16] {
        let mut changed = sealed.clone();
        changed[..2].copy_from_slice(&length.to_be_bytes());
        cases.push(changed);
    }
    for longer in [1, MAX_TOKEN_BYTES, 1000, 1200] {
        let mut changed = sealed.clone();
        changed.resize(sealed.len() + longer, 0);
        cases.push(changed);
    }
    // Rightly encrypted, and nonsense.
    let plain = good.plain();
    for length in [0, 1, 15, 21, 33, 48, 0x7FFF, 0xFFFF_u16] {
        let mut changed = plain.clone();
        changed[..2].copy_from_slice(&length.to_be_bytes());
        cases.push(good.seal_as(changed));
    }
    for length in 0..plain.len() {
        cases.push(good.seal_as(plain[..length].to_vec()));
    }
    for longer in [1, 4, 100, 1000] {
        let mut changed = plain.clone();
        changed.resize(plain.len() + longer, 0);
        cases.push(good.seal_as(changed));
    }
    for size in [0, 15, 33, 64, 500] {
        cases.push(
            Token {
                mac_key: vec![b'1'; size],
                ..good.clone()
            }
            .seal(),
        );
    }
    // For another server, and of another key.
    cases.push(
        Token {
            server: "example.com",
            ..good.clone()
        }
        .seal(),
    );
    cases.push(Token::new(UNION).seal());
    for (number, token) in cases.iter().enumerate() {
        let reply = world.ask(client, &bearer.with(token, Request::allocate()));
        assert_eq!(reply.code(), 401, "case {number}: {token:?}");
        assert!(!bearer.has_signed(&reply));
        world.pass(secs(1));
    }
    let unknown = Bearer {
        kid: "south",
        ..bearer.clone()
    };
    assert_eq!(
        world.code(client, &unknown.with(&sealed, Request::allocate())),
        401
    );
    assert_eq!(world.server.len(), 0);
    assert_eq!(
        world.code(client, &bearer.with(&sealed, Request::allocate())),
        0
    );
}

#[test]
fn a_token_proves_no_address() {
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    let other = udp("192.0.2.8:4000");
    let request = bearer.with(&token, Request::allocate());
    assert_eq!(world.code(other, &request), 438);
    world.pass(secs(3601));
    let token = Token {
        made: world.now.unix,
        ..Token::new(NORTH)
    }
    .seal();
    assert_eq!(
        world.code(udp(CLIENT), &bearer.with(&token, Request::allocate())),
        438
    );
}

#[test]
fn keys_are_good_from_then_until_then() {
    let mut key = token_key("north", NORTH);
    key.not_before = Some(EPOCH + secs(100));
    key.not_after = Some(EPOCH + secs(200));
    let mut world = World::with(Settings::default(), &with_keys(vec![key]), seed());
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    let code_at = |world: &mut World, since: u64| {
        world.pass((EPOCH + secs(since)).saturating_sub(world.now.unix));
        let client: FiveTuple = udp(CLIENT);
        let code = world.code(client, &bearer.with(&token, Request::allocate()));
        if code == 0 {
            assert_eq!(world.code(client, &bearer.sign(Request::refresh(0))), 0);
        }
        code
    };
    let codes = [99, 100, 199, 200].map(|since| code_at(&mut world, since));
    assert_eq!(codes, [401, 0, 0, 401]);
}

#[test]
fn when_a_key_is_gone_its_tokens_end_by_themselves() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token {
        lifetime: 1000,
        ..Token::new(NORTH)
    }
    .seal();
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        0
    );
    let without = Arc::new(Access::new(&access_settings(), own_addresses()));
    assert_eq!(world.server.set_access(world.now, without), 0);
    world.drain();
    world.pass(secs(590));
    let reply = world.ask(client, &bearer.sign(Request::refresh(3600)));
    assert_eq!((reply.code(), reply.lifetime()), (0, 410));
    world.pass(secs(410));
    assert_eq!(world.server.len(), 0);
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        401
    );
}

#[test]
fn all_of_a_key_can_be_revoked() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        0
    );
    let mut revoked = Revocations::default();
    revoked.revoke(RevokedKind::User, "north", None, 0);
    let access = Access::new(&both_keys(), own_addresses()).with_revoked(revoked);
    assert_eq!(world.server.set_access(world.now, Arc::new(access)), 1);
    world.drain();
    let reply = world.ask(client, &bearer.with(&token, Request::allocate()));
    assert_eq!(reply.code(), 401);
}

#[test]
fn another_process_goes_on_with_them() {
    let client = udp(CLIENT);
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token {
        lifetime: 1000,
        ..Token::new(NORTH)
    }
    .seal();
    assert_eq!(
        world.code(client, &bearer.with(&token, Request::allocate())),
        0
    );
    let bytes = world.server.snapshot(world.now, |_| true).encode();
    let snapshot = Snapshot::decode(&bytes).unwrap();
    let families = vec![Family::V4, Family::V6];
    world.server = Server::restore(
        world.now,
        Settings::default(),
        families,
        Arc::clone(&world.access),
        snapshot,
    );
    world.pass(secs(400));
    let reply = world.ask(client, &bearer.sign(Request::refresh(3600)));
    assert_eq!((reply.code(), reply.lifetime()), (0, 600));
    let newer = Token {
        made: world.now.unix,
        ..Token::new(UNION)
    }
    .seal();
    let second = Bearer {
        kid: "union",
        ..bearer.clone()
    };
    let reply = world.ask(client, &second.with(&newer, Request::refresh(3600)));
    assert_eq!((reply.code(), reply.lifetime()), (0, 3600));
}

/// Whoever has a token of his own has not got the allocations of others: the data of a TCP allocation (RFC 6062) is for who knows
/// the session key that made it.
#[test]
fn a_token_vouches_for_its_five_tuple_and_no_other() {
    let (control, data) = (tcp(CLIENT), tcp("192.0.2.7:4001"));
    let mut world = world();
    let owner = Bearer {
        kid: "north",
        mac_key: MAC_KEY.to_vec(),
        nonce: world.nonce(control),
    };
    let token = Token::new(NORTH).seal();
    let request = owner.with(&token, Request::allocate_tcp());
    assert_eq!(world.code(control, &request), 0);
    let connect = owner.sign(Request::connect(addr("203.0.114.9:1000")));
    assert!(world.ask_raw(control, &connect.bytes()).is_empty());
    let (connection, ..) = *world.connects.last().unwrap();
    world.connected(connection, true);
    let thief = Bearer {
        kid: "north",
        mac_key: vec![9; 20],
        nonce: world.nonce(data),
    };
    let his = Token {
        mac_key: thief.mac_key.clone(),
        ..Token::new(NORTH)
    };
    let bind = || Request::connection_bind(connection.0);
    let stolen = thief.with(&his.seal(), bind());
    assert_eq!(world.code(data, &stolen), 441);
    let owner = Bearer {
        nonce: thief.nonce.clone(),
        ..owner
    };
    assert_eq!(world.code(data, &owner.sign(bind())), 0);
}

/// It does not move with its allocation (RFC 8016) either, and says so before anybody counts on it.
#[test]
fn an_allocation_by_token_does_not_move() {
    let mut world = world();
    let bearer = bearer(&mut world, "north");
    let token = Token::new(NORTH).seal();
    let mobile = Request::allocate().attr(0x8030, &[]);
    let reply = world.ask(udp(CLIENT), &bearer.with(&token, mobile));
    assert_eq!(reply.code(), 405);
    let request = bearer.with(&token, Request::allocate());
    assert_eq!(world.code(udp(CLIENT), &request), 0);
}
