//! A configuration in the making, and as it is written: every value with where it comes from.

use std::collections::HashSet;

use crate::base::Printable;

/// The order of tables, as in `conf/turnix.toml`.
const TABLES: [&str; 10] = [
    "relay", "auth", "limits", "peers", "protocol", "tls", "http", "drain", "server", "log",
];

/// A value and where it comes from.
type Noted = (String, String);

enum Value {
    One(Noted),
    List(Vec<Noted>),
}

/// What has been decided so far.
#[derive(Default)]
pub(super) struct Draft {
    keys: Vec<(&'static str, Value)>,
    listeners: Vec<(String, Vec<&'static str>, String)>,
    users: Vec<(String, Noted)>,
    names: HashSet<String>,
}

impl Draft {
    /// Sets the dotted `key` to `literal`, in TOML; the latest counts.
    pub fn set(&mut self, key: &'static str, literal: impl Into<String>, note: impl Into<String>) {
        let value = Value::One((literal.into(), note.into()));
        match self.keys.iter_mut().find(|(name, _)| *name == key) {
            Some((_, earlier)) => *earlier = value,
            None => self.keys.push((key, value)),
        }
    }

    /// Sets the dotted `key` to a text.
    pub fn set_text(&mut self, key: &'static str, text: &str, note: impl Into<String>) {
        self.set(key, quoted(text), note);
    }

    /// Adds `text` to the list at the dotted `key`; false if it is there.
    pub fn add(&mut self, key: &'static str, text: &str, note: &str) -> bool {
        let item = (quoted(text), note.to_owned());
        let known = self.keys.iter().position(|(name, _)| *name == key);
        let at = known.unwrap_or_else(|| {
            self.keys.push((key, Value::List(Vec::new())));
            self.keys.len() - 1
        });
        let Some((_, Value::List(items))) = self.keys.get_mut(at) else {
            return false;
        };
        let fresh = items.iter().all(|(literal, _)| *literal != item.0);
        if fresh {
            items.push(item);
        }
        fresh
    }

    /// Adds a port.
    pub fn listen(&mut self, address: String, protocols: Vec<&'static str>, note: String) {
        self.listeners.push((address, protocols, note));
    }

    /// Adds a user; false if one of that name is there.
    pub fn add_user(&mut self, name: &str, password: &str, note: &str) -> bool {
        let fresh = self.names.insert(name.to_owned());
        if fresh {
            let password = (quoted(password), note.to_owned());
            self.users.push((name.to_owned(), password));
        }
        fresh
    }

    /// Whether `key` has been set.
    pub fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(name, _)| *name == key)
    }

    /// Whether somebody can authenticate.
    pub fn has_access(&self) -> bool {
        !self.users.is_empty() || self.has("auth.secrets")
    }

    /// The configuration, behind `heading`, with `remarks` at its end: lines of comments, both.
    pub fn render(&self, heading: &[String], remarks: &[String]) -> String {
        let mut text = comments(heading);
        for (key, value) in self.keys.iter().filter(|(key, _)| !key.contains('.')) {
            text += "\n";
            write(&mut text, key, value);
        }
        for (address, protocols, note) in &self.listeners {
            let names: Vec<String> = protocols.iter().map(|name| quoted(name)).collect();
            text += "\n[[listen]]\n";
            text += &line(&format!("address = {}", quoted(address)), note);
            text += &format!("protocols = [{}]\n", names.join(", "));
        }
        for table in TABLES {
            let inside = |key: &str| {
                key.strip_prefix(table)
                    .and_then(|key| key.strip_prefix('.'))
                    .map(str::to_owned)
            };
            let keys: Vec<_> = (self.keys.iter())
                .filter_map(|(key, value)| Some((inside(key)?, value)))
                .collect();
            if !keys.is_empty() {
                text += &format!("\n[{table}]\n");
            }
            for (key, value) in keys {
                write(&mut text, &key, value);
            }
            if table == "auth" && !self.users.is_empty() {
                text += "\n[auth.users]\n";
                for (name, (password, note)) in &self.users {
                    text += &line(&format!("{} = {password}", quoted(name)), note);
                }
            }
        }
        if !remarks.is_empty() {
            text += "\n";
            text += &comments(remarks);
        }
        text
    }
}

fn write(text: &mut String, key: &str, value: &Value) {
    match value {
        Value::One((literal, note)) => *text += &line(&format!("{key} = {literal}"), note),
        Value::List(items) => {
            *text += &format!("{key} = [\n");
            for (literal, note) in items {
                *text += &line(&format!("    {literal},"), note);
            }
            *text += "]\n";
        }
    }
}

fn line(text: &str, note: &str) -> String {
    if note.is_empty() {
        format!("{text}\n")
    } else {
        format!("{text} # {}\n", Printable(note))
    }
}

fn comments(lines: &[String]) -> String {
    lines
        .iter()
        .map(|line| format!("# {}\n", Printable(line)))
        .collect()
}

/// `text` as a string of TOML, on one line.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
