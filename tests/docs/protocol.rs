//! `docs/protocol.md` says what is proven by which test: the tests have to be there.

use std::fs;
use std::path::Path;

use crate::read;

const PAGE: &str = "docs/protocol.md";

/// Rows of the tables whose first column is "section", by cell, without heads and rules.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    let mut counts = false;
    for line in page.lines() {
        let cells = || line.trim_matches('|').split('|').map(str::trim);
        if !line.starts_with('|') {
            counts = false;
        } else if cells().next() == Some("section") {
            counts = true;
        } else if counts && !line.starts_with("|---") {
            rows.push(cells().collect());
        }
    }
    rows
}

/// What is wrong with a test named as `tests/file.rs` or `tests/file.rs::function`.
fn fault(name: &str) -> Option<&'static str> {
    let (file, function) = match name.split_once("::") {
        Some((file, function)) => (file, Some(function)),
        None => (name, None),
    };
    let Ok(source) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)) else {
        return Some("no such file");
    };
    match function {
        Some(function) if !source.contains(&format!("fn {function}(")) => Some("no such test"),
        _ => None,
    }
}

#[test]
fn what_is_supported_is_proven_by_a_test_that_exists() {
    let page = read(PAGE);
    let rows = rows(&page);
    assert!(rows.len() > 100, "{} rows", rows.len());
    for row in rows {
        let [_, _, support, proof] = row[..] else {
            panic!("{row:?}: section, what, support, proof");
        };
        let names: Vec<&str> = (proof.split('`'))
            .filter(|word| word.starts_with("tests/"))
            .collect();
        assert!(
            support.starts_with("no") || !names.is_empty(),
            "{row:?} names no test"
        );
        for name in names {
            assert_eq!(fault(name), None, "{name}, of {row:?}");
        }
    }
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    assert_eq!(fault("tests/docs/protocol.rs"), None);
    assert_eq!(
        fault("tests/docs/protocol.rs::a_test_that_is_not_there_is_noticed"),
        None
    );
    assert_eq!(
        fault("tests/docs/protocol.rs::another"),
        Some("no such test")
    );
    assert_eq!(fault("tests/none.rs"), Some("no such file"));
    let table =
        "| section | what | | proven by |\n|---|---|---|---|\n| 1 | a | yes | `tests/x.rs` |";
    assert_eq!(rows(table), [["1", "a", "yes", "`tests/x.rs`"]]);
}
