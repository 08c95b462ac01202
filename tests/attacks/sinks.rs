//! Names that want to be something else where they are printed: a line of their own, a command to a terminal, a field, a
//! sample. Signed requests of real users, for every place where a name comes out.

use serde_json::Value;
use stun::attributes::{ATTR_NONCE, ATTR_REALM, ATTR_SOFTWARE, ATTR_USERNAME};
use turnix::access::rest;
use turnix::base::Secret;

use super::common::wire::{Request, Signer};
use super::process::{PASSWORD, Process, SECRET, configuration, said, turnix};

/// A date that no line of the log begins with.
const FORGED: &str = "1999-01-01T00:00:00.000000Z  INFO";

/// User ids; each behind an expiry is a name that the shared secret signs.
fn names() -> Vec<String> {
    let longest = |part: &str| part.repeat(490 / part.len());
    [
        "plain",
        "line\nfeed",
        "carriage\rreturn",
        "crlf\r\n1999-01-01T00:00:00.000000Z  INFO allocation ended user=\"forged\"",
        "\n1999-01-01T00:00:00.000000Z  INFO turnix serves\n",
        "colour\x1b[31;1mred\x1b[0m",
        "title\x1b]0;owned\x07\x1b\\",
        "clear\x1b[2J\x1b[H\x1bc",
        "c1\u{9b}2J\u{9d}0;owned\u{9c}\u{85}next",
        "backspace\x08\x08\x08\x7f\x0b\x0c",
        "%n%s%x%d{}{0}$(id)`id`",
        "quote\" user=\"root\" reason=\"none",
        "single'quote",
        "back\\slash\\n\\",
        "{\"user\":\"root\"}",
        "\"},{\"user\":\"root\",\"x\":\"",
        "\"} 1\nturn_build_info{version=\"forged\"} 1\n#",
        "label\",user=\"root\",x=\"",
        "nul\0byte",
        "bidi\u{202e}gpj.exe\u{202c}\u{2066}x\u{2069}\u{200f}",
        "separators\u{2028}line\u{2029}paragraph",
        "unseen\u{200b}\u{feff}\u{ad}\u{2060}\u{e0041}",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "漢字 é नमस्ते 👍",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        longest("\n"),
        longest("\x1b[A"),
        longest("\u{202e}"),
        longest("x"),
    ])
    .collect()
}

/// Whether a terminal, a pager or a splitter of lines does anything with `c` but show it.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || "\u{ad}\u{61c}\u{180e}\u{feff}".contains(c)
        || ('\u{200b}'..='\u{200f}').contains(&c)
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2060}'..='\u{206f}').contains(&c)
        || ('\u{e0000}'..='\u{e0fff}').contains(&c)
}

/// The text of `bytes`, in which nothing but line feeds is unseen.
#[track_caller]
fn clean<'a>(what: &str, bytes: &'a [u8]) -> &'a str {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    let bad = text
        .char_indices()
        .find(|(_, c)| *c != '\n' && is_unseen(*c));
    if let Some((at, c)) = bad {
        let around: String = text[..at].chars().rev().take(80).collect();
        let around: String = around.chars().rev().collect();
        panic!("{what}: {c:?} after {around:?}");
    }
    text
}

/// Sends what is refused, with `text` wherever a request has room for it.
fn refused(process: &Process, text: &[u8]) {
    let mut client = process.client();
    let nonce = client.ask(&Request::allocate()).nonce();
    let cut = |most: usize| &text[..text.len().min(most)];
    let signer = Signer::new("alice", PASSWORD, &nonce);
    let wrong = Signer::new("alice", "wrong", &nonce);
    for (name, realm, nonce) in [
        (cut(508), &b"example.org"[..], nonce.as_bytes()),
        (b"alice", cut(508), nonce.as_bytes()),
        (b"alice", b"example.org", cut(508)),
        (cut(508), cut(508), cut(508)),
    ] {
        for by in [&signer, &wrong] {
            let request = Request::allocate()
                .attr(ATTR_USERNAME.0, name)
                .attr(ATTR_REALM.0, realm)
                .attr(ATTR_NONCE.0, nonce)
                .attr(ATTR_SOFTWARE.0, cut(508))
                .integrity(by);
            assert!([400, 401, 438].contains(&client.ask(&request).code()));
        }
    }
    // Longer than any name, and an attribute that nobody knows.
    let request = Request::allocate()
        .attr(ATTR_SOFTWARE.0, &text.repeat(2))
        .attr(0x7F00, text);
    assert!(client.ask(&request).code() >= 400);
}

/// A server that logs everything in `format`, through which every name went, with what its sinks said meanwhile.
fn visited(format: &str) -> (Process, Vec<u8>, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let more = format!(
        "[auth]\nusers = {{ alice = \"{PASSWORD}\" }}\nsecrets = [\"{SECRET}\"]\n\
         [log]\nlevel = \"trace\"\nformat = \"{format}\"\n"
    );
    let process = Process::start(directory, &more, &[], &[]);
    let mut clients = Vec::new();
    for name in names() {
        let mut client = process.client_of(&name);
        client.allocate();
        // A peer that policy refuses is told with the user.
        let denied = Request::channel_bind(0x4000, "10.0.0.1:1000".parse().unwrap());
        assert_eq!(client.ask_signed(denied).code(), 403);
        clients.push(client);
        refused(&process, name.as_bytes());
    }
    let invalid: Vec<u8> = (0..=255).rev().collect();
    refused(&process, &invalid);
    let api = process.ask("GET", "/api/v1/allocations", "");
    let metrics = process.ask("GET", "/metrics", "");
    assert_eq!((api.0, metrics.0), (200, 200));
    for client in &mut clients {
        client.release();
    }
    super::server::until("every allocation is told", || {
        let log = process.log();
        let log = String::from_utf8_lossy(&log);
        log.lines()
            .filter(|line| line.contains("allocation ended"))
            .count()
            >= names().len()
    });
    (process, api.1.into_bytes(), metrics.1.into_bytes())
}

#[test]
fn a_name_is_part_of_one_line_of_text() {
    let (process, ..) = visited("text");
    let log = process.log();
    let log = clean("log", &log);
    let mut ended = 0;
    let mut denied = 0;
    let mut serving = 0;
    for line in log.lines() {
        let is_line = line.starts_with("20") && line.get(10..11) == Some("T");
        assert!(is_line && !line.starts_with(FORGED), "{line}");
        // What the event is stands before what anybody wrote.
        let event = line.get(28..).unwrap_or_default().trim_start();
        if event.starts_with("INFO allocation ended ") {
            ended += 1;
            // No name ends its own quotes: the fields behind it are the ones we wrote.
            let fields = line.rsplit_once(" reason=").unwrap();
            assert_eq!(fields.1, "\"released\"", "{line}");
        }
        serving += usize::from(event.starts_with("INFO turnix serves"));
        denied += usize::from(event.starts_with("INFO peer refused by policy"));
    }
    assert_eq!((ended, denied), (names().len(), names().len()));
    assert_eq!(serving, 1);
}

#[test]
fn a_name_is_one_string_of_json() {
    let (process, ..) = visited("json");
    let log = process.log();
    let mut ended = Vec::new();
    for line in clean("log", &log).lines() {
        let event: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let fields = &event["fields"];
        if fields["message"] == "allocation ended" {
            ended.push(fields["user"].as_str().unwrap().to_owned());
            assert_eq!(fields["reason"], "released");
        }
    }
    let mut expected = names();
    ended.sort();
    expected.sort();
    assert_eq!(ended, expected, "names are told as they are");
}

#[test]
fn a_name_is_one_string_of_the_api_and_one_label() {
    let (process, api, metrics) = visited("json");
    let listed: Value = serde_json::from_str(clean("API", &api)).unwrap();
    let mut users: Vec<_> = (listed.as_array().unwrap().iter())
        .map(|one| one["user"].as_str().unwrap().to_owned())
        .collect();
    let mut expected = names();
    users.sort();
    expected.sort();
    assert_eq!(users, expected);

    let mut own = 0;
    for line in clean("metrics", &metrics).lines() {
        assert!(
            line.starts_with("# ") || line.starts_with("turn_"),
            "{line}"
        );
        assert!(
            !line.contains("version=\"forged\"") || line.contains("user="),
            "{line}"
        );
        if line.starts_with("turn_allocation_packets_total{allocation=") {
            assert!(line.ends_with(" 0") && line.contains(",user=\""), "{line}");
            own += 1;
        }
    }
    assert_eq!(own, 2 * names().len());

    // A user is ended by name, whatever it is.
    let mut client = process.client_of("line\nfeed\x1b[31m");
    client.allocate();
    let (code, body) = process.ask(
        "DELETE",
        "/api/v1/users/line%0Afeed%1B%5B31m/allocations",
        "",
    );
    assert_eq!((code, body.as_str()), (200, "{\"ended\":1}"));
}

#[test]
fn commands_print_what_they_were_given_without_obeying_it() {
    let directory = tempfile::tempdir().unwrap();
    let nasty = "a\x1b[31m\u{202e}\rb";
    let more = format!(
        "[auth]\nusers = {{ \"x\\u001B]0;t\\u0007\" = 7 }}\n\
         [limits]\n\"un\\u001B[2Jknown\\u009B\" = 1\n[log]\nlevel = \"{}\"\n",
        "a\\u001B[31m\\u202E\\rb"
    );
    let file = configuration(directory.path(), &more);
    let file = file.to_str().unwrap();
    let missing = format!("{}/{nasty}.toml", directory.path().display());
    for arguments in [
        &["check", "-c", file][..],
        &["serve", "-c", file],
        &["check", "-c", &missing],
        &["serve", "-c", &missing],
        &["credentials", "--secret-file", &missing],
        &["check", "--set", &format!("{nasty}=1")],
        &[
            "check",
            "--set",
            &format!("tls.certificate={missing}"),
            "--set",
            "tls.key=x",
        ],
    ] {
        let output = turnix(directory.path(), arguments, &[]).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        let said = said(&output);
        assert!(!said.is_empty(), "{arguments:?}");
        clean(&format!("{arguments:?}"), said.as_bytes());
    }
    // What programs read is JSON, and people look at it, too.
    let user = "a\u{9b}31m\u{202e}b";
    let arguments = [
        "credentials",
        "--secret",
        SECRET,
        "--user",
        user,
        "--format",
    ];
    for format in ["ice", "table"] {
        let output = turnix(directory.path(), &[&arguments[..], &[format]].concat(), &[])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        clean(format, said(&output).as_bytes());
    }
    let (name, password) = rest::mint(&Secret::new(SECRET.into()), Some(user), 4_000_000_000);
    assert!(name.ends_with(user) && !password.is_empty());
}
