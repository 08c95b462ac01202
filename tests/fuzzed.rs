//! The fuzzer's targets over the inputs in the repository: seeds, and what once broke something.

mod common;
#[path = "properties/core/harness.rs"]
#[expect(dead_code, reason = "the properties use the rest of it")]
mod harness;
#[path = "properties/core/model.rs"]
mod model;
#[path = "properties/core/operations.rs"]
#[expect(dead_code, reason = "the properties use the rest of it")]
mod operations;
#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use targets::{ALL, Target};

/// Files of a target in `folder`, which may be missing.
fn inputs(folder: &Path, target: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder.join(target)) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs every file; how many of them reached what.
fn replay((name, run): Target, files: &[PathBuf]) -> BTreeMap<String, usize> {
    let mut reached = BTreeMap::new();
    for file in files {
        let data = std::fs::read(file).unwrap();
        let reach = std::panic::catch_unwind(|| run(&data));
        let reach = reach.unwrap_or_else(|_| panic!("{name}: {}", file.display()));
        for what in reach {
            *reached.entry(what).or_default() += 1;
        }
    }
    reached
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn what_once_broke_something_does_not() {
    for target in ALL {
        replay(target, &inputs(&fuzz().join("regressions"), target.0));
    }
}

/// Seeds that get nowhere are worth nothing.
#[test]
fn the_seeds_get_somewhere() {
    for target in ALL {
        let files = inputs(&fuzz().join("seeds"), target.0);
        assert!(files.len() > 5, "{} has seeds", target.0);
        let reached = replay(target, &files);
        let expected: &[&str] = match target.0 {
            "config" => &["accepted", "not TOML", "refused", "refused auth.secrets"],
            "message" => &[
                "ChannelData",
                "Send",
                "Data",
                "integrity",
                "fingerprint",
                "peer",
                "token",
            ],
            "peers" => &["rule", "nat64", "permitted", "metadata", "refused inside"],
            "stream" => &[
                "frame",
                "padded frame",
                "out of step",
                "half a frame",
                "proxy for a client",
                "proxy for itself",
                "half a proxy header",
            ],
            _ => &[
                "allocate 0",
                "allocate 486",
                "refresh 0",
                "create_permission 0",
                "create_permission 508",
                "channel_bind 508",
                "ledger: CreatePermission 508",
                "ledger: ChannelBind 508",
                "channel_bind 0",
                "to peer from channel",
                "to peer from send",
                "to client on channel",
                "to client as indication",
                "drop NoPermission",
                "drop NoChannel when late",
                "drop PeerDenied",
                "ended Expired",
                "ended ClientClosed",
                "retransmitted allocate",
                "ledger: allocate 0",
                "ledger: to peer from channel",
                "ledger: to peer from send",
                "ledger: to client on channel",
                "ledger: to client as indication",
                "ledger: ended Expired",
                "ledger: drop RateLimited",
            ],
        };
        for what in expected {
            assert!(
                reached.contains_key(*what),
                "{}: {what}: {reached:#?}",
                target.0
            );
        }
    }
}

/// The fuzzer is a package with a lock file of its own; what it fuzzes has to be what is released.
#[test]
fn the_fuzzer_is_built_from_the_same_dependencies() {
    let read = |path: &str| -> toml::Table {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    };
    let versions = |lock: &toml::Table| -> Vec<(String, String)> {
        let packages = lock["package"].as_array().unwrap().iter();
        let text = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
        packages
            .map(|package| (text(package, "name"), text(package, "version")))
            .collect()
    };
    let ours = versions(&read("Cargo.lock"));
    let fuzzed = versions(&read("fuzz/Cargo.lock"));
    let remedy = "cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null";
    for (name, version) in &fuzzed {
        let known = ours.iter().any(|(other, _)| other == name);
        let same = ours.contains(&(name.clone(), version.clone()));
        assert!(
            same || !known,
            "{name} {version} is another version: {remedy}"
        );
    }
    for name in read("Cargo.toml")["dependencies"]
        .as_table()
        .unwrap()
        .keys()
    {
        let there = fuzzed.iter().any(|(other, _)| other == name);
        assert!(there, "{name} is missing: {remedy}");
    }
}

/// Shows what a corpus reaches: `FUZZ_CORPUS=fuzz/corpus cargo test --test fuzzed corpus -- --ignored --nocapture`.
///
/// With `FUZZ_SEEDS=fuzz/seeds` it copies there what reaches something that no smaller input does.
#[test]
#[ignore = "there is a corpus only where the fuzzer ran"]
fn corpus() {
    let folder = std::env::var_os("FUZZ_CORPUS").expect("FUZZ_CORPUS names a folder");
    let seeds = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from);
    for target in ALL {
        let mut files = inputs(Path::new(&folder), target.0);
        println!("{}: {} inputs", target.0, files.len());
        files.sort_by_key(|file| std::fs::metadata(file).unwrap().len());
        let mut reached = BTreeMap::new();
        for file in &files {
            let one = replay(target, std::slice::from_ref(file));
            let new = one.keys().any(|what| !reached.contains_key(what));
            if let Some(seeds) = seeds.as_ref().filter(|_| new) {
                let folder = seeds.join(target.0);
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
            }
            for what in one.into_keys() {
                *reached.entry(what).or_default() += 1;
            }
        }
        for (what, count) in reached {
            let count: usize = count;
            println!("  {count:>6} {what}");
        }
    }
}
