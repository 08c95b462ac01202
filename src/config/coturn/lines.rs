//! The syntax of `turnserver.conf`: `name=value`, `name value` or `name` on each line.

use super::options::{self, Known};

/// One line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<'a> {
    /// Counted from 1.
    pub line: usize,
    /// The option as it is written.
    pub written: &'a str,
    /// What is set, without the quotes around it; empty where there is nothing.
    pub value: &'a str,
}

/// Every line of `text` that is neither empty nor a comment.
///
/// As coturn, this takes a `#` for a comment at the beginning of a line only, and lets a name end at the first blank or
/// equals sign.
pub fn settings(text: &str) -> Vec<Setting<'_>> {
    let separator = |c: char| matches!(c, ' ' | '\t' | '=');
    (1..)
        .zip(text.lines())
        .map(|(number, line)| (number, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (name, rest) = line.split_at(line.find(separator).unwrap_or(line.len()));
            let value = rest.trim_start_matches(separator);
            let value = match value.strip_prefix('"') {
                Some(inside) => inside.strip_suffix('"').unwrap_or(inside),
                None => value,
            };
            Setting {
                line: number,
                written: name,
                value,
            }
        })
        .collect()
}

impl Setting<'_> {
    /// The option that is meant, and whether it is written as on a command line, which coturn does not read in a file.
    pub(super) fn known(&self) -> Option<(&'static Known, bool)> {
        if let Some(known) = options::find(self.written) {
            return Some((known, false));
        }
        let name = self.written.trim_start_matches('-');
        let mut letters = name.chars();
        let known = match (letters.next(), letters.next()) {
            (Some(letter), None) => options::find_short(letter),
            _ => options::find(name),
        };
        known.map(|known| (known, true))
    }
}

/// Whether a switch is on; `None` where coturn takes the value for neither.
pub(super) fn is_on(value: &str) -> Option<bool> {
    match value.bytes().next() {
        None | Some(b'y' | b'Y' | b't' | b'T' | b'1'..=b'9') => Some(true),
        Some(b'0' | b'n' | b'N' | b'f' | b'F') => Some(false),
        _ => match value.to_ascii_lowercase().as_str() {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        },
    }
}

/// Whether `value` is a word for off and cannot be anything else, such as a name.
pub(super) fn says_off(value: &str) -> bool {
    ["0", "n", "no", "f", "false", "off"]
        .iter()
        .any(|word| value.eq_ignore_ascii_case(word))
}

/// The number that `value` begins with, which is how coturn reads numbers.
pub(super) fn number(value: &str) -> Option<u64> {
    let digits = value
        .find(|c: char| !c.is_ascii_digit())
        .map_or(value, |end| value.split_at(end).0);
    digits.parse().ok()
}
