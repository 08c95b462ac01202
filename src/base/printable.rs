//! Text of strangers, written so that it cannot be taken for anything else.
//!
//! A name may hold line breaks, which begin a line of their own in a log, escape sequences, which a terminal obeys, or
//! marks that turn the order of writing around. What prints somebody's text goes through here: [`Printable`] where a
//! value is written, [`json`] where JSON leaves, [`Lines`] under every log.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

/// A value whose text is shown as it is, but for what is not to be seen: that becomes `\n`, `\t`, `\r` or `\u{…}`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

        impl fmt::Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                escape(text, self.0, visibly)
            }
        }
        write!(Escaping(f), "{}", self.0)
    }
}

/// `text`, a JSON document, with everything that is not to be seen as `\uXXXX`: the same document to whoever parses it.
///
/// Line feeds stay: they stand between values, where the document is laid out for people, and never in one.
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, |c, out| match c {
        '\n' => out.write_char(c),
        _ => as_json(c, out),
    })
}

/// The beginning of `text`, no longer than `bytes`, that ends where a character does.
pub fn beginning(text: &str, bytes: usize) -> &str {
    let mut ends = (0..=bytes.min(text.len())).rev();
    ends.find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Whether `c` does something else than standing there: controls, and what Unicode calls format characters.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                // Of no width, direction marks, line and paragraph separators, embeddings and overrides.
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

fn is_plain(text: &str) -> bool {
    // Most of what is printed, told without decoding.
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || !text.chars().any(is_unseen)
}

type Replace = fn(char, &mut dyn fmt::Write) -> fmt::Result;

fn visibly(c: char, out: &mut dyn fmt::Write) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    }
}

/// RFC 8259 §7.
fn as_json(c: char, out: &mut dyn fmt::Write) -> fmt::Result {
    let mut units = [0; 2];
    (c.encode_utf16(&mut units).iter()).try_for_each(|unit| write!(out, "\\u{unit:04x}"))
}

fn escape(text: &str, out: &mut dyn fmt::Write, replace: Replace) -> fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(is_unseen) {
        let (plain, unseen) = rest.split_at(at);
        out.write_str(plain)?;
        let mut chars = unseen.chars();
        if let Some(c) = chars.next() {
            replace(c, out)?;
        }
        rest = chars.as_str();
    }
    out.write_str(rest)
}

fn escaped(text: &str, replace: Replace) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 2);
    // Writing to a `String` does not fail.
    let _ = escape(text, &mut out, replace);
    Cow::Owned(out)
}

/// What the lines of a log are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text.
    Text,
    /// Text for a terminal: sequences that set colours (ECMA-48 §8.3.117) pass, all others do not.
    Colour,
    /// A JSON document each.
    Json,
}

/// The last door of a log: one write is one line, whatever stands in it.
#[derive(Debug)]
pub struct Lines<W> {
    out: W,
    form: Form,
}

impl<W: io::Write> Lines<W> {
    /// Writes to `out`.
    pub const fn new(out: W, form: Form) -> Self {
        Self { out, form }
    }
}

impl<W: io::Write> io::Write for Lines<W> {
    /// Takes all of `record`, a whole line with its end.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let (line, end) = match record.strip_suffix(b"\n") {
            Some(line) => (line, "\n"),
            None => (record, ""),
        };
        let line = String::from_utf8_lossy(line);
        let mut safe = match self.form {
            Form::Text => escaped(&line, visibly),
            Form::Json => escaped(&line, as_json),
            Form::Colour if is_plain(&line) => Cow::Borrowed(&*line),
            Form::Colour => Cow::Owned(coloured(&line)),
        }
        .into_owned();
        safe.push_str(end);
        // In one piece, so that lines of several threads do not mix.
        self.out.write_all(safe.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Escapes all but colours.
fn coloured(line: &str) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    let mut rest = line;
    while let Some(at) = rest.find("\x1b[") {
        let (before, sequence) = rest.split_at(at);
        out.push_str(&escaped(before, visibly));
        let parameters = (sequence.bytes().skip(2))
            .take_while(|byte| byte.is_ascii_digit() || *byte == b';')
            .count();
        let length = 2 + parameters + 1;
        rest = match sequence.split_at_checked(length) {
            Some((colour, after)) if colour.ends_with('m') => {
                out.push_str(colour);
                after
            }
            _ => {
                out.push_str("\\u{1b}[");
                &sequence[2..]
            }
        };
    }
    out.push_str(&escaped(rest, visibly));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NASTY: &str = "a\r\n\x1b[31mb\x1b]0;t\x07\u{9b}2J\u{202e}\u{2028}\u{e0041}\0é%n\"\\{}";

    fn line(form: Form, record: &str) -> String {
        let mut out = Vec::new();
        Lines::new(&mut out, form)
            .write_all(record.as_bytes())
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_seen_stays() {
        for text in ["", "alice", "é 漢字 नमस्ते 👍", "a\"b\\c'%n{}"] {
            assert_eq!(Printable(text).to_string(), text);
            assert_eq!(json(text), text);
            assert_eq!(line(Form::Text, &format!("{text}\n")), format!("{text}\n"));
        }
    }

    #[test]
    fn what_is_not_seen_is_spelled_out() {
        let expected = "a\\r\\n\\u{1b}[31mb\\u{1b}]0;t\\u{7}\\u{9b}2J\\u{202e}\\u{2028}\\u{e0041}\\u{0}é%n\"\\{}";
        assert_eq!(Printable(NASTY).to_string(), expected);
        assert_eq!(line(Form::Text, NASTY), expected);
        assert_eq!(
            line(Form::Text, &format!("{NASTY}\n")),
            format!("{expected}\n")
        );
        // A colour of our own passes where there is a terminal, and nothing else does.
        assert_eq!(
            line(Form::Colour, NASTY),
            expected.replace("\\u{1b}[31m", "\x1b[31m")
        );
        assert_eq!(
            line(Form::Colour, "\x1b[2m\x1b[1;31"),
            "\x1b[2m\\u{1b}[1;31"
        );
        assert_eq!(line(Form::Colour, "\x1b[é"), "\\u{1b}[é");
    }

    #[test]
    fn json_stays_the_same_document() {
        let document = serde_json::to_string(NASTY).unwrap();
        let safe = json(&document);
        assert!(safe.bytes().all(|byte| byte >= b' '), "{safe}");
        assert!(!safe.contains(is_unseen), "{safe}");
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), NASTY);
        assert_eq!(line(Form::Json, &document), safe);
        let laid_out = format!("[\n  {document}\n]");
        assert_eq!(json(&laid_out), format!("[\n  {safe}\n]"));
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut out = Vec::new();
        Lines::new(&mut out, Form::Text)
            .write_all(b"a\xff\x1bb\n")
            .unwrap();
        assert_eq!(out, "a\u{fffd}\\u{1b}b\n".as_bytes());
    }
}
