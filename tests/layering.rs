//! What ARCHITECTURE.md says about where things live and which way they point, as far as reading the source can tell.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules and their ranks; a module imports from strictly lower ranks only.
const RANKS: [(&str, u8); 24] = [
    ("base", 0),
    ("logging", 1),
    ("wire", 1),
    ("net", 1),
    ("access", 2),
    ("stream", 2),
    ("client", 2),
    ("quality", 2),
    ("turn", 3),
    ("capture", 3),
    ("acme", 3),
    ("metrics", 4),
    ("records", 4),
    ("why", 4),
    ("shard", 5),
    ("cluster", 5),
    ("external", 5),
    ("http", 6),
    ("lifecycle", 7),
    ("config", 8),
    ("app", 9),
    ("cli", 10),
    ("main", 11),
    ("lib", 12),
];

const TOKIO: [&str; 10] = [
    "acme",
    "records",
    "shard",
    "stream",
    "cluster",
    "external",
    "http",
    "lifecycle",
    "app",
    "cli",
];
const NO_UNWRAP: [&str; 5] = ["wire", "turn", "access", "shard", "stream"];
const WALKS: [&str; 13] = [
    "iter",
    "iter_mut",
    "into_iter",
    "keys",
    "into_keys",
    "values",
    "values_mut",
    "into_values",
    "drain",
    "retain",
    "extract_if",
    "for_each",
    "par_iter",
];
const MAX_LINES: usize = 800;
const MAX_LINES_MAIN: usize = 39;

#[test]
fn the_source_keeps_to_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 40, "the source is found: {}", files.len());
    let sources: Vec<(String, String)> = (files.iter())
        .map(|file| {
            let path = file.strip_prefix(&root).expect("below src");
            let source = fs::read_to_string(file).expect("readable source");
            (path.to_string_lossy().replace('\\', "/"), source)
        })
        .collect();
    let maps = maps(&sources);
    assert!(
        maps.iter().any(|map| map == "by_five_tuple"),
        "the hash maps of turn/ are found: {maps:?}"
    );
    let breaches: Vec<String> = (sources.iter())
        .flat_map(|(path, source)| check(path, source, &maps))
        .collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

fn rank(module: &str) -> Option<u8> {
    let known = RANKS.iter().find(|(name, _)| *name == module);
    known.map(|(_, rank)| *rank)
}

/// Names of the fields in `turn/` that are hash maps or sets.
fn maps(sources: &[(String, String)]) -> Vec<String> {
    let mut names = Vec::new();
    for (_, source) in sources.iter().filter(|(path, _)| path.starts_with("turn/")) {
        let code = code(source);
        let tokens = tokens(&code);
        for window in tokens.windows(4) {
            if let [(name, _), (":", _), ("HashMap" | "HashSet", _), ("<", _)] = window {
                names.push((*name).to_owned());
            }
        }
    }
    names
}

/// Every breach in one file; `path` is relative to src/.
fn check(path: &str, source: &str, maps: &[String]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut breach =
        |line: usize, what: String| breaches.push(format!("src/{path}:{line}: {what}"));
    let module = path.split('/').next().unwrap_or(path);
    let module = module.strip_suffix(".rs").unwrap_or(module);
    let Some(own) = rank(module) else {
        breach(1, format!("module {module} is not in the table of layers"));
        return breaches;
    };
    let lines = source.lines().count();
    let most = if path == "main.rs" {
        MAX_LINES_MAIN
    } else {
        MAX_LINES
    };
    if lines > most {
        breach(lines, format!("{lines} lines, at most {most}"));
    }

    // A module of its own that is compiled for tests only.
    if path.ends_with("/tests.rs") {
        return breaches;
    }
    let code = code(source);
    let tokens = tokens(&code);
    // Tokio's timers take tokio's instants.
    let tokio_instant = code.contains("use tokio::time::Instant")
        || (code.lines()).any(|line| {
            line.trim_start().starts_with("use tokio::time::{") && line.contains("Instant")
        });
    for at in 0..tokens.len() {
        let line = tokens[at].1;
        let token = |ahead: usize| tokens.get(at + ahead).map_or("", |(text, _)| *text);
        let before = |back: usize| at.checked_sub(back).map_or("", |at| tokens[at].0);
        match (token(0), token(1), token(2)) {
            ("crate" | "turnix", "::", _) => {
                for target in imports(&tokens[at + 2..]) {
                    match rank(target) {
                        _ if target == module || module == "lib" => {}
                        None if module == "main" || !is_module_name(target) => {}
                        None => breach(line, format!("{target} is not in the table of layers")),
                        Some(theirs) if theirs < own => {}
                        Some(theirs) => {
                            breach(
                                line,
                                format!("{module} (rank {own}) imports {target} (rank {theirs})"),
                            );
                        }
                    }
                }
            }
            ("super", "::", "super") => breach(line, "super::super".into()),
            ("unsafe", _, _) if module != "net" => breach(line, "unsafe outside net/".into()),
            ("tokio" | "tokio_rustls", _, _)
                if !TOKIO.contains(&module) && path != "net/poll.rs" =>
            {
                breach(line, format!("{} in {module}", token(0)));
            }
            ("anyhow", _, _) if module != "cli" && module != "app" => {
                breach(line, "anyhow outside cli/ and app.rs".into());
            }
            ("stun_types" | "turn_types", _, _) if module != "wire" => {
                breach(line, format!("{} outside wire/", token(0)));
            }
            ("Instant" | "SystemTime", "::", "now") if path != "base/time.rs" => {
                let tokios = TOKIO.contains(&module)
                    && token(0) == "Instant"
                    && (tokio_instant
                        || (before(2), before(1)) == ("time", "::") && before(4) == "tokio");
                if !tokios {
                    breach(line, format!("{}::now outside base/time.rs", token(0)));
                }
            }
            (".", "unwrap" | "expect", "(") if NO_UNWRAP.contains(&module) => {
                breach(line, format!("{}() in {module}", token(1)));
            }
            (field, ".", walk)
                if module == "turn" && WALKS.contains(&walk) && is_map(maps, field) =>
            {
                breach(
                    line,
                    format!("the order of {field} leaks through .{walk}()"),
                );
            }
            ("in", _, _) if module == "turn" => {
                // `for … in &mut self.field {`
                let path = tokens[at + 1..].iter().take_while(|(text, _)| *text != "{");
                let last = path.map(|(text, _)| *text).last().unwrap_or_default();
                if is_map(maps, last) {
                    breach(line, format!("the order of {last} leaks through a loop"));
                }
            }
            _ => {}
        }
    }
    breaches
}

fn is_map(maps: &[String], field: &str) -> bool {
    maps.iter().any(|map| map == field)
}

/// Modules are lower case; macros and re-exported items of the crate root are not modules.
fn is_module_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The modules named behind `crate::`: one, or those at the top level of a brace.
fn imports<'a>(tokens: &[(&'a str, usize)]) -> Vec<&'a str> {
    let Some((first, _)) = tokens.first() else {
        return Vec::new();
    };
    if *first != "{" {
        return vec![first];
    }
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), false);
    for (text, _) in tokens {
        match *text {
            "{" => {
                depth += 1;
                fresh = depth == 1;
            }
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," => fresh = depth == 1,
            name => {
                if std::mem::take(&mut fresh) {
                    names.push(name);
                }
            }
        }
    }
    names
}

/// Identifiers, `::` and single punctuation marks, with their lines.
fn tokens(code: &str) -> Vec<(&str, usize)> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if word(first) {
                rest.find(|c| !word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, behind) = rest.split_at(length);
            tokens.push((token, index + 1));
            rest = behind.trim_start();
        }
    }
    tokens
}

/// The source without comments, the contents of strings, and what is compiled for tests only. Lines stay lines.
fn code(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    let skip = |out: &mut String, text: &str| out.extend(text.chars().filter(|c| *c == '\n'));
    while let Some(first) = rest.chars().next() {
        let word_before = out
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_');
        let raw = rest.trim_start_matches(['r', 'b', 'c']);
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let length = if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            skip(&mut out, &rest[..length]);
            length
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").map_or(rest.len(), |at| at + 2);
            skip(&mut out, &rest[..length]);
            length
        } else if !word_before
            && rest.len() - raw.len() <= 2
            && rest[..rest.len() - raw.len()].contains('r')
            && raw[hashes..].starts_with('"')
        {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = rest.len() - raw.len() + hashes + 1;
            let length = rest[start..]
                .find(&end)
                .map_or(rest.len(), |at| start + at + end.len());
            skip(&mut out, &rest[..length]);
            length
        } else if first == '"' {
            let mut escaped = true;
            let end = rest.find(|c| {
                let end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                end
            });
            let length = end.map_or(rest.len(), |at| at + 1);
            skip(&mut out, &rest[..length]);
            length
        } else if first == '\'' {
            // A character rather than a lifetime: closed within two characters, or escaped.
            let mut chars = rest.char_indices().skip(1);
            let second = chars.next().map_or(' ', |(_, c)| c);
            let third = chars.next();
            match third {
                _ if second == '\\' => {
                    let close = rest[3.min(rest.len())..].find('\'');
                    close.map_or(rest.len(), |at| at + 4)
                }
                Some((at, '\'')) => at + 1,
                _ => {
                    out.push('\'');
                    1
                }
            }
        } else if rest.starts_with("#[cfg(test)]") {
            // An item with a body, or one that ends in a semicolon.
            let (mut depth, mut length) = (0, rest.len());
            for (at, c) in rest.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && (c == '}' || c == ';') {
                    length = at + 1;
                    break;
                }
            }
            skip(&mut out, &rest[..length]);
            length
        } else {
            out.push(first);
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    out
}

#[cfg(test)]
mod checker {
    use super::{check, code, maps};

    fn breaches(path: &str, source: &str) -> usize {
        check(path, source, &["by_five_tuple".into(), "to_peer".into()]).len()
    }

    #[test]
    fn ranks() {
        assert_eq!(
            breaches(
                "turn/server.rs",
                "use crate::access::Access;\nuse crate::base::Now;"
            ),
            0
        );
        assert_eq!(breaches("turn/server.rs", "use crate::turn::Server;"), 0);
        assert_eq!(breaches("turn/server.rs", "use crate::shard::Shard;"), 1);
        assert_eq!(
            breaches("wire/mod.rs", "use crate::net::Batch;"),
            1,
            "the same rank"
        );
        assert_eq!(
            breaches("wire/mod.rs", "fn f() -> crate::turn::Server {}"),
            1,
            "a path is an import"
        );
        assert_eq!(
            breaches(
                "shard/mod.rs",
                "use crate::{base::Now, net::{self, Batch}, turn};"
            ),
            0
        );
        assert_eq!(
            breaches(
                "shard/mod.rs",
                "use crate::{base::Now, net::{self, http}, cli, app};"
            ),
            2
        );
        assert_eq!(breaches("cli/mod.rs", "use crate::app;"), 0);
        assert_eq!(breaches("app.rs", "use crate::cli;"), 1);
        assert_eq!(breaches("main.rs", "use turnix::cli;"), 0);
        assert_eq!(breaches("helpers/mod.rs", ""), 1, "not in the table");
        assert_eq!(
            breaches("shard/mod.rs", "use crate::helpers::x;"),
            1,
            "not in the table"
        );
        assert_eq!(breaches("turn/x.rs", "use super::super::wire;"), 1);
    }

    #[test]
    fn words() {
        assert_eq!(breaches("wire/x.rs", "unsafe { }"), 1);
        assert_eq!(breaches("net/sys.rs", "unsafe { }"), 0);
        assert_eq!(breaches("turn/x.rs", "use tokio::time;"), 1);
        assert_eq!(breaches("net/batch.rs", "use tokio::io;"), 1);
        assert_eq!(breaches("net/poll.rs", "use tokio::io;"), 0);
        assert_eq!(breaches("shard/x.rs", "use tokio::io;"), 0);
        assert_eq!(breaches("shard/x.rs", "fn f() -> anyhow::Result<()> {}"), 1);
        assert_eq!(breaches("cli/x.rs", "fn f() -> anyhow::Result<()> {}"), 0);
        assert_eq!(
            breaches("turn/x.rs", "use stun_types::x; use turn_types::y;"),
            2
        );
        assert_eq!(breaches("wire/x.rs", "use stun_types::x;"), 0);
        assert_eq!(
            breaches(
                "wire/x.rs",
                "fn f() { a.unwrap(); b.expect(\"x\"); c.unwrap_or(1); }"
            ),
            2
        );
        assert_eq!(breaches("cli/x.rs", "fn f() { a.unwrap(); }"), 0);
    }

    #[test]
    fn clocks() {
        assert_eq!(
            breaches("base/time.rs", "Instant::now() SystemTime::now()"),
            0
        );
        assert_eq!(
            breaches("shard/x.rs", "let a = std::time::Instant::now();"),
            1
        );
        assert_eq!(
            breaches("shard/x.rs", "let a = tokio::time::Instant::now();"),
            0
        );
        assert_eq!(
            breaches("turn/x.rs", "let a = tokio::time::Instant::now();"),
            2
        );
        assert_eq!(
            breaches(
                "shard/x.rs",
                "use tokio::time::{Instant, sleep};\nlet a = Instant::now();"
            ),
            0
        );
        assert_eq!(
            breaches(
                "shard/x.rs",
                "use std::time::Instant;\nlet a = Instant::now();"
            ),
            1
        );
        assert_eq!(
            breaches(
                "shard/x.rs",
                "use tokio::time::Instant;\nlet a = SystemTime::now();"
            ),
            1
        );
    }

    #[test]
    fn hash_maps_are_not_walked() {
        for source in [
            "for x in &self.by_five_tuple { }",
            "for (a, b) in self.to_peer.iter() { }",
            "self.by_five_tuple\n    .keys()\n    .count()",
            "self.to_peer.values().sum()",
            "self.to_peer.drain()",
            "self.to_peer.retain(|_, _| true)",
        ] {
            assert!(breaches("turn/x.rs", source) > 0, "{source}");
            assert_eq!(breaches("shard/x.rs", source), 0, "{source}");
        }
        let harmless =
            "self.to_peer.get(&k); self.routes.to_peer(a); for x in &self.channels { x.iter() }";
        assert_eq!(breaches("turn/x.rs", harmless), 0);
        let source = "struct S { a: HashMap<u8, u8, R>, pub b: HashSet<u8>, c: Vec<u8> }";
        assert_eq!(maps(&[("turn/x.rs".into(), source.into())]), ["a", "b"]);
    }

    #[test]
    fn lengths() {
        assert_eq!(breaches("wire/x.rs", &"\n".repeat(800)), 0);
        assert_eq!(breaches("wire/x.rs", &"\n".repeat(801)), 1);
        assert_eq!(breaches("main.rs", &"\n".repeat(40)), 1);
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        for source in [
            "// unsafe { }",
            "/// unsafe\n//! unsafe",
            "/* unsafe\n unsafe */",
            "let a = \"unsafe \\\" unsafe\";",
            "let a = r#\"unsafe \" unsafe\"#;",
            "let a = b\"unsafe\";",
            "#[cfg(test)]\nmod tests {\n fn f() { unsafe { } }\n}",
            "let unsafe_code = 1;",
        ] {
            assert_eq!(breaches("wire/x.rs", source), 0, "{source}");
        }
        for source in [
            "let a = '\"'; unsafe { }",
            "let a = '\\''; unsafe { }",
            "fn f<'a>(a: &'a str) { unsafe { } }",
            "let a = \"\\\\\"; unsafe { }",
            "let a = \"\"; unsafe { }",
            "#[cfg(test)]\nmod tests { }\nunsafe { }",
            "/* */ unsafe { }",
        ] {
            assert_eq!(breaches("wire/x.rs", source), 1, "{source}");
        }
        assert_eq!(
            code("a // b\nc \"\n\" d").lines().count(),
            3,
            "lines stay lines"
        );
    }
}
