//! What the ledger keeps from one process to the next, and within which bounds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use turnix::access::{Revocation, RevokedKind};
use turnix::cluster::ledger::{
    By, Ledger, LedgerError, MAX_CREDENTIALS, MAX_REVOCATIONS, MAX_REVOCATIONS_OF_KEY, Managed,
};
use turnix::cluster::{Directory, RevokedFile};

const NOW: u64 = 1_800_000_000;

fn open(directory: &Path, now: u64) -> Ledger {
    let (ledger, problem) = Ledger::open(directory, now).unwrap();
    assert!(problem.is_none(), "{problem:?}");
    ledger
}

fn has(ledger: &Ledger, kind: RevokedKind, name: &str, at: u64) -> bool {
    (ledger.revoked()).has(kind, name.as_bytes(), Duration::from_secs(at))
}

fn revoke(ledger: &Ledger, kind: RevokedKind, name: &str, until: Option<u64>) {
    let changed = ledger.revoke(kind, name, until, By::Operator, NOW).unwrap();
    assert!(changed.written.is_some());
    assert!(!ledger.revoked().is_newer(&changed.revoked));
}

fn managed(username: &str, label: &str) -> Managed {
    Managed {
        username: username.to_owned(),
        label: label.to_owned(),
        made_unix: NOW,
        expires_unix: NOW + 600,
    }
}

fn keys(ids: &[&str]) -> BTreeMap<String, u64> {
    ids.iter().map(|id| ((*id).to_owned(), 3600)).collect()
}

#[test]
fn a_process_finds_what_the_one_before_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let first = open(&state, NOW);
    assert!(!state.exists(), "nothing is made before there is something");
    revoke(&first, RevokedKind::User, "alice", None);
    revoke(&first, RevokedKind::User, "bob", Some(NOW + 60));
    revoke(&first, RevokedKind::User, "carol\n\u{202e}\"", None);
    revoke(&first, RevokedKind::Key, "web", None);
    // It ends by itself, whatever was asked for.
    let limited = format!("{}:dave;key=web", NOW + 30);
    revoke(&first, RevokedKind::Credential, &limited, Some(NOW + 900));
    let lifted = first.lift(RevokedKind::Key, "web", None, NOW).unwrap();
    assert!(lifted.is_some());
    assert!(
        first
            .lift(RevokedKind::Key, "web", None, NOW)
            .unwrap()
            .is_none()
    );
    let file = |name: &str| state.join(name);
    let mode = |name: &str| fs::metadata(file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ledger"), mode("ledger.lock")), (0o600, 0o600));
    assert_eq!(
        fs::metadata(&state).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let listed = first.list(NOW);
    drop(first);

    let second = open(&state, NOW + 1);
    assert_eq!(second.list(NOW + 1), listed);
    assert!(has(&second, RevokedKind::User, "alice", NOW + 1_000_000));
    assert!(has(&second, RevokedKind::User, "carol\n\u{202e}\"", NOW));
    assert!(!has(&second, RevokedKind::Key, "web", NOW));
    for (kind, name, until) in [
        (RevokedKind::User, "bob", NOW + 60),
        (RevokedKind::Credential, &limited, NOW + 30),
    ] {
        assert!(has(&second, kind, name, until - 1));
        assert!(!has(&second, kind, name, until));
    }
    drop(second);
    // What is over is not carried along.
    let third = open(&state, NOW + 60);
    assert_eq!(third.list(0).len(), 2);
    let text = fs::read_to_string(file("ledger")).unwrap();
    assert!(!text.contains("bob") && !text.contains("dave"), "{text}");
}

#[test]
fn half_a_line_costs_that_line_and_damage_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), NOW);
    revoke(&first, RevokedKind::User, "alice", None);
    revoke(&first, RevokedKind::User, "bob", None);
    drop(first);
    let path = directory.path().join("ledger");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 4]).unwrap();
    let second = open(directory.path(), NOW);
    assert!(has(&second, RevokedKind::User, "alice", NOW));
    assert!(!has(&second, RevokedKind::User, "bob", NOW));
    assert!(!directory.path().join("ledger.damaged").exists());
    revoke(&second, RevokedKind::User, "carol", None);
    drop(second);

    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("alice", "al\u{7}ice")).unwrap();
    let third = open(directory.path(), NOW);
    assert!(has(&third, RevokedKind::User, "carol", NOW));
    let aside = fs::read_to_string(directory.path().join("ledger.damaged")).unwrap();
    assert!(aside.contains("al\u{7}ice"), "{aside}");
}

#[test]
fn one_process_at_a_time_writes_and_the_other_obeys() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), NOW);
    revoke(&first, RevokedKind::User, "alice", None);
    let (second, problem) = Ledger::open(directory.path(), NOW).unwrap();
    assert!(problem.is_some());
    assert!(has(&second, RevokedKind::User, "alice", NOW));
    let changed = second.revoke(RevokedKind::User, "bob", None, By::Operator, NOW);
    assert!(changed.unwrap().written.is_none());
    assert!(has(&second, RevokedKind::User, "bob", NOW));

    // A hand-over: the old one takes no change any more, and follows what the new one writes.
    first.leave();
    let refused = first.revoke(RevokedKind::User, "bob", None, By::Operator, NOW);
    assert_eq!(refused.unwrap_err(), LedgerError::Leaving);
    let third = open(directory.path(), NOW);
    revoke(&third, RevokedKind::User, "carol", None);
    let followed = first.follow(NOW).expect("news");
    assert!(followed.has(RevokedKind::User, b"carol", Duration::from_secs(NOW)));
    assert!(first.follow(NOW).is_none());
    // It did not come about: what the new one wrote does not count.
    drop(third);
    first.come_back();
    revoke(&first, RevokedKind::User, "dave", None);
    drop(first);
    assert!(has(
        &open(directory.path(), NOW),
        RevokedKind::User,
        "dave",
        NOW
    ));
}

#[test]
fn where_it_cannot_be_kept_it_holds_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("no-directory");
    fs::write(&file, "").unwrap();
    let (ledger, _) = Ledger::open(&file, NOW).unwrap();
    let changed = ledger.revoke(RevokedKind::User, "alice", None, By::Operator, NOW);
    assert!(changed.unwrap().written.is_none());
    assert!(has(&ledger, RevokedKind::User, "alice", NOW));
}

#[test]
fn an_api_key_that_is_gone_takes_along_what_it_minted() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path(), NOW);
    assert!(ledger.set_keys(keys(&["web", "app"]), NOW).is_empty());
    assert_eq!(ledger.set_keys(keys(&["app"]), NOW), ["web"]);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 3599));
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW + 3600));
    drop(ledger);
    // Gone while no process ran; and back again.
    let ledger = open(directory.path(), NOW);
    assert_eq!(ledger.set_keys(keys(&["web"]), NOW), ["app"]);
    assert!(has(&ledger, RevokedKind::Key, "app", NOW));
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW));
    // What the operator said is not lifted by the configuration.
    revoke(&ledger, RevokedKind::Key, "web", None);
    assert_eq!(ledger.set_keys(keys(&[]), NOW), ["web"]);
    assert!(ledger.set_keys(keys(&["web"]), NOW).is_empty());
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 1_000_000));
}

#[test]
fn a_file_of_the_operator_cannot_be_lifted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("revoked");
    fs::write(
        &path,
        "# leavers\n\nuser alice b\n key web \ncredential 1800000060:x;key=y\r\n",
    )
    .unwrap();
    let file = RevokedFile::new(&path);
    let version = file.version();
    let revoked = file.read().unwrap().revoked;
    let of = |kind, name: &str| Revocation {
        kind,
        name: name.to_owned(),
        until_unix: None,
    };
    assert_eq!(
        revoked,
        [
            of(RevokedKind::User, "alice b"),
            of(RevokedKind::Key, "web"),
            of(RevokedKind::Credential, "1800000060:x;key=y"),
        ]
    );
    let ledger = Ledger::default();
    let before = ledger.revoked();
    let after = ledger.configure(revoked, NOW);
    assert!(after.is_newer(&before));
    assert_eq!(
        ledger.revoked_by(RevokedKind::Key, "web", NOW),
        Some(By::File)
    );
    // Revoked by both, and lifted by one.
    ledger
        .revoke(RevokedKind::Key, "web", Some(NOW + 1), By::Operator, NOW)
        .unwrap();
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 2));
    ledger.lift(RevokedKind::Key, "web", None, NOW).unwrap();
    assert!(has(&ledger, RevokedKind::Key, "web", NOW));
    ledger.configure(Vec::new(), NOW);
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW));

    for wrong in [
        "alice\n",
        "user\n",
        "people alice\n",
        "user \n",
        &format!("user {}", "x".repeat(509)),
    ] {
        fs::write(&path, format!("user bob\n{wrong}")).unwrap();
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("revoked:2: "), "{error}");
    }
    assert_ne!(file.version(), version);
}

#[test]
fn what_an_api_key_may_keep_and_revoke_is_bounded() {
    let ledger = Ledger::default();
    let by = || By::Key("web".into());
    let name = |index: usize| format!("{}:{index};key=web", NOW + 60);
    for index in 0..MAX_REVOCATIONS_OF_KEY {
        ledger
            .revoke(RevokedKind::Credential, &name(index), None, by(), NOW)
            .unwrap();
    }
    let next = name(MAX_REVOCATIONS_OF_KEY);
    let more = |by, now| ledger.revoke(RevokedKind::Credential, &next, None, by, now);
    assert_eq!(more(by(), NOW).unwrap_err(), LedgerError::Full);
    // The same again takes no room; others have their own; and what is over makes some.
    ledger
        .revoke(RevokedKind::Credential, &name(0), None, by(), NOW)
        .unwrap();
    more(By::Key("other".into()), NOW).unwrap();
    assert!(more(by(), NOW + 60).is_ok());
    assert!(ledger.list(NOW + 60).len() < 3);

    for index in 0..MAX_CREDENTIALS {
        ledger.keep("web", managed(&name(index), ""), NOW).unwrap();
    }
    assert_eq!(
        ledger.keep("web", managed("another", ""), NOW).unwrap_err(),
        LedgerError::Full
    );
    ledger.keep("other", managed("another", ""), NOW).unwrap();
    ledger.forget("web", &name(7), NOW).unwrap();
    ledger.keep("web", managed("another", ""), NOW).unwrap();

    for wrong in ["", &"x".repeat(509)] {
        let refused = ledger.revoke(RevokedKind::User, wrong, None, By::Operator, NOW);
        assert_eq!(refused.unwrap_err(), LedgerError::Name);
    }
}

#[test]
fn the_file_stays_as_long_as_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(directory.path(), NOW);
    ledger.keep("web", managed("a", "label"), NOW).unwrap();
    for _ in 0..3000 {
        revoke(&ledger, RevokedKind::User, "alice", None);
        ledger.lift(RevokedKind::User, "alice", None, NOW).unwrap();
    }
    revoke(&ledger, RevokedKind::User, "bob", None);
    let lines = fs::read_to_string(directory.path().join("ledger")).unwrap();
    assert!(lines.lines().count() < 1100, "{}", lines.lines().count());
    drop(ledger);
    let ledger = open(directory.path(), NOW);
    assert_eq!(ledger.list(NOW).len(), 1);
    assert_eq!(ledger.managed("web"), [managed("a", "label")]);
    assert_eq!(ledger.find("web", "a"), Some(managed("a", "label")));
    assert_eq!(ledger.find("other", "a"), None);
}

#[test]
fn a_key_that_is_gone_is_revoked_for_as_long_as_what_it_minted_lasts() {
    // Longer than what the operator had said.
    let ledger = Ledger::default();
    ledger.set_keys(keys(&["web"]), NOW);
    let until = Some(NOW + 600);
    (ledger.revoke(RevokedKind::Key, "web", until, By::Operator, NOW)).unwrap();
    assert_eq!(ledger.set_keys(keys(&[]), NOW + 60), ["web"]);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 60 + 3599));
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW + 60 + 3600));
    // It is the operator's all the same, and no key that comes back lifts it.
    ledger.set_keys(keys(&["web"]), NOW + 61);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 62));

    // No shorter than what the operator had said.
    let ledger = Ledger::default();
    ledger.set_keys(keys(&["web"]), NOW);
    let until = Some(NOW + 100_000);
    (ledger.revoke(RevokedKind::Key, "web", until, By::Operator, NOW)).unwrap();
    ledger.set_keys(keys(&[]), NOW);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 99_999));
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW + 100_000));
}

#[test]
fn a_shorter_lifetime_does_not_shorten_what_was_minted_before() {
    let ledger = Ledger::default();
    let of = |secs: u64| BTreeMap::from([("web".to_owned(), secs)]);
    ledger.set_keys(of(48 * 3600), NOW);
    ledger.set_keys(of(60), NOW + 1);
    assert_eq!(ledger.set_keys(keys(&[]), NOW + 2), ["web"]);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 48 * 3600));
    // Gone, back, and gone again.
    ledger.set_keys(of(60), NOW + 3);
    assert!(!has(&ledger, RevokedKind::Key, "web", NOW + 3));
    ledger.set_keys(keys(&[]), NOW + 4);
    assert!(has(&ledger, RevokedKind::Key, "web", NOW + 48 * 3600));
}

#[test]
fn who_comes_second_makes_no_revocation_shorter_and_a_key_takes_none_over() {
    let web = || By::Key("web".into());
    let kind = RevokedKind::Credential;
    let name = format!("{}:x;key=web", NOW + 7200);
    let hour = Some(NOW + 3600);

    let ledger = Ledger::default();
    (ledger.revoke(kind, &name, hour, By::Operator, NOW)).unwrap();
    (ledger.revoke(kind, &name, None, web(), NOW + 1)).unwrap();
    assert_eq!(ledger.revoked_by(kind, &name, NOW + 1), Some(By::Operator));
    assert!(has(&ledger, kind, &name, NOW + 7199));
    let lifted = ledger.lift(kind, &name, Some(&web()), NOW + 1);
    assert!(lifted.unwrap().is_none());
    assert!(has(&ledger, kind, &name, NOW + 7199));

    let ledger = Ledger::default();
    (ledger.revoke(kind, &name, None, web(), NOW)).unwrap();
    (ledger.revoke(kind, &name, hour, By::Operator, NOW + 1)).unwrap();
    assert_eq!(ledger.revoked_by(kind, &name, NOW + 1), Some(By::Operator));
    assert!(has(&ledger, kind, &name, NOW + 7199));

    // Who has revoked something may say otherwise, and what is over is nobody's.
    let ledger = Ledger::default();
    for until in [None, hour] {
        (ledger.revoke(RevokedKind::User, "alice", until, By::Operator, NOW)).unwrap();
    }
    assert!(!has(&ledger, RevokedKind::User, "alice", NOW + 3600));
    (ledger.revoke(kind, &name, hour, By::Operator, NOW)).unwrap();
    (ledger.revoke(kind, &name, None, web(), NOW + 3600)).unwrap();
    assert_eq!(ledger.revoked_by(kind, &name, NOW + 3600), Some(web()));
}

#[test]
fn keys_leave_room_for_the_operator() {
    let ledger = Ledger::default();
    let mut taken = 0;
    for key in ["a", "b", "c", "d"] {
        for index in 0..MAX_REVOCATIONS_OF_KEY {
            let name = format!("{}:{index};key={key}", NOW + 60);
            let by = By::Key(key.to_owned());
            match ledger.revoke(RevokedKind::Credential, &name, None, by, NOW) {
                Ok(_) => taken += 1,
                Err(error) => {
                    assert_eq!(error, LedgerError::Full);
                    break;
                }
            }
        }
    }
    assert_eq!(taken, MAX_REVOCATIONS - 10_000);
    revoke_in_memory(&ledger, "alice");
}

fn revoke_in_memory(ledger: &Ledger, user: &str) {
    (ledger.revoke(RevokedKind::User, user, None, By::Operator, NOW)).unwrap();
    assert!(has(ledger, RevokedKind::User, user, NOW));
}

/// Names the directory to the process that may write little.
const LITTLE: &str = "LEDGER_OF_LITTLE_ROOM";

#[test]
fn what_did_not_fit_spoils_nothing_that_does() {
    if let Some(directory) = std::env::var_os(LITTLE) {
        let ledger = open(Path::new(&directory), NOW);
        let long = |index: usize| format!("{index}{}", "x".repeat(500));
        let kept = |name: &str| {
            let changed = ledger.revoke(RevokedKind::User, name, None, By::Operator, NOW);
            changed.unwrap().written.is_some()
        };
        let fitted = (0..9).take_while(|index| kept(&long(*index))).count();
        assert!((1..9).contains(&fitted), "{fitted}");
        assert!(kept("bob"), "there is room for less");
        return;
    }
    // A limit of the process stands for a full disk: what is written up to there is half a line.
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "what_did_not_fit_spoils_nothing_that_does"])
        .env(LITTLE, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let ledger = open(directory.path(), NOW);
    assert!(has(&ledger, RevokedKind::User, "bob", NOW));
    assert!(!directory.path().join("ledger.damaged").exists());
}

#[test]
fn a_ledger_that_cannot_be_read_is_not_taken_for_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    // It cannot be looked at; and it can, and not be read.
    std::os::unix::fs::symlink("ledger", &path).unwrap();
    assert!(Ledger::open(directory.path(), NOW).is_err());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(Ledger::open(directory.path(), NOW).is_err());
    fs::remove_dir(&path).unwrap();
    revoke(
        &open(directory.path(), NOW),
        RevokedKind::User,
        "alice",
        None,
    );
}
