//! Users whose keys are known and whose passwords are not.

use std::time::Duration;

use turnix::access::PasswordAlgorithm::Md5;
use turnix::access::{AuthFailure, Credentials, Who};
use turnix::base::Secret;
use turnix::cluster::{Directory, UsersFile};
use turnix::config::{Config, Sources};

/// MD5 of alice:example.org:wonder.
fn key() -> String {
    let key = turnix::access::credentials::long_term_key(b"alice", "example.org", b"wonder");
    let digits: String = key
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("md5:{digits}")
}

fn credentials(realm: &str, password: &str) -> Credentials {
    let users = [("alice".to_owned(), Secret::new(password.to_owned()))];
    Credentials::new(realm, &users, &[])
}

#[test]
fn a_key_is_as_good_as_the_password_in_its_realm() {
    let wanted = turnix::access::credentials::long_term_key(b"alice", "example.org", b"wonder");
    let verify = |credentials: &Credentials| {
        credentials
            .verify(Who::Name(b"alice"), Md5, Duration::ZERO, |key| {
                *key == wanted
            })
            .map(|verified| verified.identity.user.to_string())
    };
    assert_eq!(
        verify(&credentials("example.org", "wonder")),
        Ok("alice".into())
    );
    assert_eq!(
        verify(&credentials("example.org", &key())),
        Ok("alice".into())
    );
    assert_eq!(
        verify(&credentials(
            "example.org",
            "md5:00000000000000000000000000000000"
        )),
        Err(AuthFailure::BadPassword)
    );
    // The key itself is no password.
    let as_password =
        turnix::access::credentials::long_term_key(b"alice", "example.org", key().as_bytes());
    let taken = credentials("example.org", &key()).verify(
        Who::Name(b"alice"),
        Md5,
        Duration::ZERO,
        |key| *key == as_password,
    );
    assert!(taken.is_err());
}

#[test]
fn what_is_no_key_is_refused_and_not_shown() {
    for wrong in ["md5:", "md5:hunter2", "md5:d644b13be02ec97ca3a494cb566c912"] {
        let sources = Sources {
            base: Some(format!("[auth]\nusers = {{ alice = \"{wrong}\" }}\n")),
            ..Sources::default()
        };
        let problems = Config::load(&sources).unwrap_err().to_string();
        assert!(
            problems.contains("begins with md5: or sha256: and is no key"),
            "{problems}"
        );
        assert!(!problems.contains("hunter2"), "{problems}");

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        std::fs::write(&file, format!("bob:builder\nalice:{wrong}\n")).unwrap();
        let error = UsersFile::new(&file).read().unwrap_err().to_string();
        assert!(
            error.contains(":2: a password that begins with md5: or sha256:"),
            "{error}"
        );
        std::fs::write(&file, format!("bob:builder\nalice:{}\n", key())).unwrap();
        assert_eq!(UsersFile::new(&file).read().unwrap().users.len(), 2);
    }
}
