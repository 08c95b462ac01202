//! SECURITY.md names tests and counts `unsafe`: what it says is there.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_tests_it_names_exist() {
    let document = read("SECURITY.md");
    let mut checked = 0;
    for row in document.lines().filter(|line| line.starts_with("| ")) {
        let mut source = None;
        for name in row.split('`').skip(1).step_by(2) {
            if name.starts_with("tests/") {
                source = Some((name, read(name)));
            } else if let Some((file, source)) = &source
                && name.contains('_')
                && name
                    .bytes()
                    .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
            {
                let function = format!("fn {name}(");
                assert!(source.contains(&function), "{file} has no {name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "{checked} names were found");
}

#[test]
fn every_row_says_what_holds_it_or_what_is_missing() {
    let document = read("SECURITY.md");
    for number in 1..=35 {
        let row = (document.lines())
            .find(|line| line.starts_with(&format!("| {number} |")))
            .unwrap_or_else(|| panic!("no row {number}"));
        let says = ["tests/", "ot yet", "there is none", "deny.toml"];
        assert!(says.iter().any(|word| row.contains(word)), "{row}");
    }
}

#[test]
fn unsafe_is_counted() {
    let document = read("SECURITY.md");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/net");
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("src/net/{name}");
        let source = read(&path);
        let blocks = source.matches("unsafe {").count();
        let others = source.matches("unsafe impl").count() + source.matches("unsafe fn").count();
        if blocks + others > 0 {
            let row = format!("| `{path}` | {blocks} | {others} |");
            assert!(document.contains(&row), "the row of {path} begins: {row}");
        }
    }
}
