//! Static users and time-limited names.

use std::time::Duration;

use proptest::prelude::*;
use turnix::access::PasswordAlgorithm::{self, Md5, Sha256};
use turnix::access::credentials::{MAX_USERNAME_BYTES, long_term_key};
use turnix::access::rest::{self, ANONYMOUS, MAX_EXPIRY_UNIX};
use turnix::access::{AuthFailure, Credentials, Key, Verified, Who};
use turnix::base::Secret;
use turnix::wire::key::user_hash;

const REALM: &str = "turn.example.org";
const NOW: Duration = Duration::from_secs(1_700_000_000);

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.into())
}

fn credentials(users: &[(&str, &str)], secrets: &[&str]) -> Credentials {
    let users: Vec<_> = users
        .iter()
        .map(|(name, password)| ((*name).into(), secret(password)))
        .collect();
    let secrets: Vec<_> = secrets.iter().map(|text| secret(text)).collect();
    Credentials::new(REALM, &users, &secrets)
}

/// What a client that knows `password` gets.
fn log_in(
    credentials: &Credentials,
    username: &[u8],
    password: &[u8],
) -> Result<Verified, AuthFailure> {
    let right = long_term_key(username, REALM, password);
    credentials.verify(Who::Name(username), Md5, NOW, |key| *key == right)
}

/// What a client that minted for `username` itself gets.
fn log_in_minted(
    credentials: &Credentials,
    username: &str,
    by: &str,
) -> Result<Verified, AuthFailure> {
    let password = rest::password(&secret(by), username.as_bytes());
    log_in(credentials, username.as_bytes(), password.expose())
}

#[track_caller]
fn assert_failure(result: Result<Verified, AuthFailure>, expected: AuthFailure) {
    assert_eq!(result.map(|verified| verified.identity), Err(expected));
}

#[test]
fn shapes_of_time_limited_names() {
    let cases: &[(&str, Option<(u64, &str)>)] = &[
        ("1800000000:alice", Some((1_800_000_000, "alice"))),
        ("alice:1800000000", Some((1_800_000_000, "alice"))),
        ("1800000000", Some((1_800_000_000, ANONYMOUS))),
        ("1800000000:", Some((1_800_000_000, ANONYMOUS))),
        (":1800000000", Some((1_800_000_000, ANONYMOUS))),
        ("1800000000:a:b", Some((1_800_000_000, "a:b"))),
        ("a:b:1800000000", Some((1_800_000_000, "a:b"))),
        ("1800000000:42", Some((1_800_000_000, "42"))),
        ("1800000000::a", Some((1_800_000_000, ":a"))),
        ("0001800000000:a", Some((1_800_000_000, "a"))),
        ("0:a", Some((0, "a"))),
        ("9007199254740991:a", Some((MAX_EXPIRY_UNIX, "a"))),
        ("9007199254740992:a", None),
        ("9223372036854775807:a", None),
        ("9223372036854775808:a", None),
        ("18446744073709551615", None),
        ("18446744073709551616:a", None),
        ("99999999999999999999999999999999:a", None),
        ("a:99999999999999999999999999999999", None),
        // A user id that is a number too big for an expiry is a user id.
        (
            "99999999999999999999:1800000000",
            Some((1_800_000_000, "99999999999999999999")),
        ),
        ("-1800000000:a", None),
        ("+1800000000:a", None),
        ("a:-1", None),
        ("a:+1", None),
        // What an API key has minted, for a user who may call itself as it likes.
        ("1800000000:a;key=web", Some((1_800_000_000, "a"))),
        ("1800000000:;key=web;id=1", Some((1_800_000_000, ANONYMOUS))),
        (
            "1800000000:a;key=b;key=web;id=1",
            Some((1_800_000_000, "a;key=b")),
        ),
        ("a;key=web:1800000000", Some((1_800_000_000, "a"))),
        ("1800000000;key=web", None),
        (" 1800000000:a", None),
        ("1800000000 :a", None),
        ("1.8e9:a", None),
        ("0x10:a", None),
        ("١٢٣:a", None),
        ("a:1800000000:b", None),
        ("alice", None),
        ("", None),
        (":", None),
        ("::", None),
        (":alice", None),
        ("alice:", None),
    ];
    for &(name, expected) in cases {
        let read = rest::parse(name).map(|limited| (limited.expires_unix, limited.user));
        assert_eq!(read, expected, "{name:?}");
    }
    let key = |name| rest::parse(name).and_then(|limited| limited.key);
    assert_eq!(key("1800000000:a"), None);
    assert_eq!(key("1800000000:a;key=web"), Some("web"));
    assert_eq!(key("1800000000:a;key=b;key=web;id=1"), Some("web"));
}

#[test]
fn static_user_logs_in() {
    let credentials = credentials(&[("alice", "wonder")], &["north"]);
    let verified = log_in(&credentials, b"alice", b"wonder").unwrap();
    assert_eq!(&*verified.identity.user, "alice");
    assert_eq!(verified.identity.expires, None);
    assert_eq!(verified.key, long_term_key(b"alice", REALM, b"wonder"));
    assert_failure(
        log_in(&credentials, b"alice", b"x"),
        AuthFailure::BadPassword,
    );
    assert_failure(
        log_in(&credentials, b"bob", b"wonder"),
        AuthFailure::UnknownUser,
    );
}

#[test]
fn static_name_wins_over_the_time_limited_reading() {
    let credentials = credentials(&[("1800000000:alice", "p")], &["north"]);
    let verified = log_in(&credentials, b"1800000000:alice", b"p").unwrap();
    assert_eq!(&*verified.identity.user, "1800000000:alice");
    assert_eq!(verified.identity.expires, None);
    assert_failure(
        log_in_minted(&credentials, "1800000000:alice", "north"),
        AuthFailure::BadPassword,
    );
}

#[test]
fn expiry_is_told_to_whoever_knows_the_password_only() {
    let credentials = credentials(&[], &["north"]);
    for name in ["1600000000:alice", "1700000000", "0:alice"] {
        assert_failure(
            log_in_minted(&credentials, name, "north"),
            AuthFailure::Expired,
        );
        assert_failure(
            log_in_minted(&credentials, name, "south"),
            AuthFailure::BadPassword,
        );
    }
    let verified = log_in_minted(&credentials, "1700000001", "north").unwrap();
    assert_eq!(&*verified.identity.user, ANONYMOUS);
    assert_eq!(
        verified.identity.expires,
        Some(Duration::from_secs(1_700_000_001))
    );
}

#[test]
fn every_secret_is_tried() {
    let credentials = credentials(&[], &["new", "old", "older"]);
    for by in ["new", "old", "older"] {
        assert!(log_in_minted(&credentials, "1800000000:a", by).is_ok());
    }
    assert_failure(
        log_in_minted(&credentials, "1800000000:a", "oldest"),
        AuthFailure::BadPassword,
    );
}

#[test]
fn without_secrets_no_name_is_time_limited() {
    let credentials = credentials(&[("alice", "p")], &[]);
    assert_failure(
        log_in_minted(&credentials, "1800000000:a", "north"),
        AuthFailure::UnknownUser,
    );
}

#[test]
fn names_nobody_has() {
    let credentials = credentials(&[("alice", "p")], &["north"]);
    let long = format!("1800000000:{}", "a".repeat(MAX_USERNAME_BYTES));
    let names: [&[u8]; 6] = [
        b"",
        b"\xff\xfe",
        b"1800000000:\xff",
        b"1800000000\0",
        b"-1:alice",
        long.as_bytes(),
    ];
    for name in names {
        let password = rest::password(&secret("north"), name);
        assert_failure(
            log_in(&credentials, name, password.expose()),
            AuthFailure::UnknownUser,
        );
    }
    let longest = &long[..MAX_USERNAME_BYTES];
    assert!(log_in_minted(&credentials, longest, "north").is_ok());
}

/// RFC 8489 §9.2.2, RFC 4013: a soft hyphen maps to nothing, a no-break space to a space, a ligature to its letters.
#[test]
fn static_users_go_through_saslprep() {
    let credentials = credentials(&[("I\u{ad}X", "a\u{a0}b"), ("\u{7}bell", "\u{7}")], &[]);
    for name in ["IX", "I\u{ad}X"] {
        let right = long_term_key(b"IX", REALM, b"a b");
        let verified =
            credentials.verify(Who::Name(name.as_bytes()), Md5, NOW, |key| *key == right);
        assert_eq!(&*verified.unwrap().identity.user, "I\u{ad}X");
    }
    // SASLprep prohibits control characters: such a name counts as it is.
    assert!(log_in(&credentials, b"\x07bell", b"\x07").is_ok());
}

#[test]
fn failures_cost_the_same_whatever_the_name() {
    let configurations = [
        (
            &[("alice", "p"), ("1000", "p")][..],
            &["north", "south"][..],
        ),
        (&[("alice", "p"), ("1000", "p")], &[]),
        (&[], &["north"]),
        (&[], &["north", "south"]),
        (&[], &[]),
    ];
    for (users, secrets) in configurations {
        let credentials = credentials(users, secrets);
        let names: [&[u8]; 9] = [
            b"alice",
            b"1000",
            b"1001",
            b"bob",
            b"1800000000:bob",
            b"1600000000:bob",
            b"",
            b"\xff",
            "\u{fb01}".as_bytes(),
        ];
        let hashes = [
            user_hash(b"alice", REALM),
            user_hash(b"bob", REALM),
            user_hash(b"1800000000:bob", REALM),
            [0; 32],
        ];
        let who = (names.iter().map(|name| Who::Name(name))).chain(hashes.iter().map(Who::Hash));
        for (who, algorithm) in who.flat_map(|who| [(who, Md5), (who, Sha256)]) {
            let mut calls = 0;
            let result = credentials.verify(who, algorithm, NOW, |key| {
                assert_eq!(key.algorithm(), algorithm);
                calls += 1;
                false
            });
            assert!(result.is_err());
            let expected = (usize::from(!users.is_empty()) + secrets.len()).max(1);
            assert_eq!(calls, expected, "{who:?}");
        }
    }
}

/// A verifier that says yes to everything must not be believed about keys that belong to nobody.
#[test]
fn dummy_keys_open_nothing() {
    for (users, secrets) in [
        (&[("alice", "p")][..], &["north"][..]),
        (&[("alice", "p")], &[]),
        (&[], &["north"]),
        (&[], &[]),
    ] {
        let credentials = credentials(users, secrets);
        for who in [Who::Name(b"bob"), Who::Hash(&[0; 32])] {
            let result = credentials.verify(who, Md5, NOW, |_: &Key| true);
            assert_failure(result, AuthFailure::UnknownUser);
        }
    }
    // Nor those that stand in for a key that is not known.
    let stored = format!("md5:{}", "00".repeat(16));
    let credentials = credentials(&[("alice", &stored)], &[]);
    let result = credentials.verify(Who::Name(b"alice"), Sha256, NOW, |_: &Key| true);
    assert_failure(result, AuthFailure::BadPassword);
}

/// RFC 8489 §14.4, §18.5.1: users are found by the hash of their prepared name, with the key that the algorithm makes; names
/// that no list has are not.
#[test]
fn users_by_hash_and_by_algorithm() {
    let both = credentials(&[("I\u{ad}X", "p"), ("bob", "b")], &["north"]);
    fn log_in(
        credentials: &Credentials,
        name: &[u8],
        algorithm: PasswordAlgorithm,
        password: &[u8],
    ) -> Result<Verified, AuthFailure> {
        let right = algorithm.key(name, REALM, password);
        let hash = user_hash(name, REALM);
        credentials.verify(Who::Hash(&hash), algorithm, NOW, |key| *key == right)
    }
    for algorithm in [Md5, Sha256] {
        let verified = log_in(&both, b"IX", algorithm, b"p").unwrap();
        assert_eq!(&*verified.identity.user, "I\u{ad}X");
        assert_eq!(&*verified.identity.username, b"IX");
        assert_failure(
            log_in(&both, b"IX", algorithm, b"b"),
            AuthFailure::BadPassword,
        );
        assert_failure(
            log_in(&both, b"carol", algorithm, b"p"),
            AuthFailure::UnknownUser,
        );
        let minted = rest::password(&secret("north"), b"1800000000:a");
        assert_failure(
            log_in(&both, b"1800000000:a", algorithm, minted.expose()),
            AuthFailure::UnknownUser,
        );
    }
    assert!(!both.are_found_by_hash() && both.take_sha256());

    let digits =
        |key: Key| -> String { key.as_bytes().iter().map(|b| format!("{b:02x}")).collect() };
    let md5 = format!("md5:{}", digits(Md5.key(b"a", REALM, b"p")));
    let sha256 = format!("sha256:{}", digits(Sha256.key(b"a", REALM, b"p")));
    let old = credentials(&[("a", &md5)], &[]);
    assert!(old.are_found_by_hash() && !old.take_sha256());
    assert!(log_in(&old, b"a", Md5, b"p").is_ok());
    assert_failure(log_in(&old, b"a", Sha256, b"p"), AuthFailure::BadPassword);
    let new = credentials(&[("a", &sha256)], &[]);
    assert!(log_in(&new, b"a", Sha256, b"p").is_ok());
    assert_failure(log_in(&new, b"a", Md5, b"p"), AuthFailure::BadPassword);
    assert!(credentials(&[("a", &sha256), ("b", &md5)], &[]).take_sha256());
    assert!(new.holds(b"a", Some(&Sha256.key(b"a", REALM, b"p"))));
    assert!(!new.holds(b"a", Some(&Md5.key(b"a", REALM, b"p"))));
}

#[test]
fn nothing_secret_is_printed() {
    let credentials = credentials(&[("alice", "hunter2")], &["north"]);
    let verified = log_in(&credentials, b"alice", b"hunter2").unwrap();
    let printed = format!("{credentials:?} {verified:?}");
    let key = format!("{:?}", verified.key.as_bytes());
    let printed = format!("{printed} {:?}", verified.key);
    for secret in ["hunter2", "north", &key, key.trim_matches(['[', ']'])] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

proptest! {
    #[test]
    fn minted_credentials_verify_in_both_orders(
        user in prop_oneof!["[a-z0-9:@.-]{1,40}", "\\PC{1,40}"],
        by in "\\PC{1,200}",
        other in "\\PC{1,200}",
        ttl in 1_u64..1_000_000_000,
        decoy in any::<bool>(),
    ) {
        prop_assume!(by != other);
        let expires = NOW.as_secs() + ttl;
        let secrets: &[&str] = if decoy { &["decoy", &by] } else { &[&by] };
        let server = credentials(&[("static", "p")], secrets);
        let stranger = credentials(&[("static", "p")], &[&other]);

        let (username, password) = rest::mint(&secret(&by), Some(&user), expires);
        prop_assert_eq!(&username, &format!("{expires}:{user}"));
        let verified = log_in(&server, username.as_bytes(), password.as_bytes()).unwrap();
        prop_assert_eq!(&*verified.identity.user, user.as_str());
        prop_assert_eq!(verified.identity.expires, Some(Duration::from_secs(expires)));
        prop_assert_eq!(
            log_in(&stranger, username.as_bytes(), password.as_bytes()).unwrap_err(),
            AuthFailure::BadPassword
        );

        // The other order means the same unless the user id begins like an expiry.
        let first = user.split(':').next().unwrap_or_default();
        if !first.bytes().all(|byte| byte.is_ascii_digit()) || first.is_empty() {
            let username = format!("{user}:{expires}");
            let verified = log_in_minted(&server, &username, &by).unwrap();
            prop_assert_eq!(&*verified.identity.user, user.as_str());
            prop_assert_eq!(
                log_in_minted(&stranger, &username, &by).unwrap_err(),
                AuthFailure::BadPassword
            );
        }

        let (username, password) = rest::mint(&secret(&by), None, expires);
        let verified = log_in(&server, username.as_bytes(), password.as_bytes()).unwrap();
        prop_assert_eq!(&*verified.identity.user, ANONYMOUS);
    }

    #[test]
    fn any_name_is_read_without_panic(name in prop::collection::vec(any::<u8>(), 0..600)) {
        let server = credentials(&[("static", "p")], &["north"]);
        prop_assert!(server.verify(Who::Name(&name), Md5, NOW, |_| false).is_err());
    }

    #[test]
    fn any_text_is_read_without_panic(name in "[0-9:+-]{0,30}") {
        let _ = rest::parse(&name);
        let server = credentials(&[("static", "p")], &["north"]);
        let failure = log_in_minted(&server, &name, "south").unwrap_err();
        let shaped = rest::parse(&name).is_some();
        let expected = if shaped { AuthFailure::BadPassword } else { AuthFailure::UnknownUser };
        prop_assert_eq!(failure, expected);
    }
}
