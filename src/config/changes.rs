//! What differs between two configurations, key by key, without showing a secret.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::source::{Node, Value};
use crate::base::Secret;

/// Parts of names of keys whose values are secret, or may hold one.
const SECRET: [&str; 6] = ["users", "secret", "token", "password", "keys", "webhook"];

/// What each key was given, in the order they are read; a key of a list of tables has one value for each of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<(&'static str, Vec<Given>)>);

/// The value of a key.
#[derive(Clone, PartialEq, Eq)]
enum Given {
    /// As the file would write it.
    Open(String),
    /// A digest: enough to see that it changed.
    Hidden([u8; 32]),
}

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its dotted name.
    pub key: String,
    /// What it was; a secret is not shown.
    pub from: String,
    /// What it is now; a secret is not shown.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            write!(f, "{}: changed", self.key)
        } else {
            write!(f, "{}: {} -> {}", self.key, self.from, self.to)
        }
    }
}

impl Keys {
    /// Notes what `name` was given.
    pub(super) fn note(&mut self, name: &'static str, node: &Node) {
        let written = written(node);
        let given = if SECRET.iter().any(|part| name.contains(part)) {
            Given::Hidden(Sha256::digest(written).into())
        } else {
            Given::Open(written)
        };
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(given),
            None => self.0.push((name, vec![given])),
        }
    }

    /// Notes what lies behind `name`, such as the content of files.
    pub(super) fn note_secrets<'a>(
        &mut self,
        name: &'static str,
        secrets: impl Iterator<Item = &'a Secret<String>>,
    ) {
        let mut digest = Sha256::new();
        for secret in secrets {
            digest.update(Sha256::digest(secret.expose()));
        }
        if let Some((_, given)) = self.0.iter_mut().find(|(known, _)| *known == name) {
            given.push(Given::Hidden(digest.finalize().into()));
        }
    }

    /// Adds what the keys of one table of a list were given.
    pub(super) fn extend(&mut self, nested: Self) {
        for (name, given) in nested.0 {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.extend(given),
                None => self.0.push((name, given)),
            }
        }
    }

    /// What `next` changes.
    pub fn changes(&self, next: &Self) -> Vec<Change> {
        let value = |keys: &Self, name: &str| {
            (keys.0.iter())
                .find(|(known, _)| *known == name)
                .map_or_else(Vec::new, |(_, given)| given.clone())
        };
        (next.0.iter())
            .filter_map(|(name, to)| {
                let from = value(self, name);
                (from != *to).then(|| Change {
                    key: (*name).to_owned(),
                    from: shown(&from),
                    to: shown(to),
                })
            })
            .collect()
    }

    /// Keeps what `earlier` says of `name`: it takes a restart to change it.
    pub fn keep(&mut self, earlier: &Self, name: &str) {
        let old = earlier.0.iter().find(|(known, _)| *known == name);
        let new = self.0.iter_mut().find(|(known, _)| *known == name);
        if let (Some((_, old)), Some((_, new))) = (old, new) {
            new.clone_from(old);
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries((self.0.iter()).map(|(name, given)| (name, shown(given))))
            .finish()
    }
}

fn shown(given: &[Given]) -> String {
    let each: Vec<&str> = (given.iter())
        .map(|given| match given {
            Given::Open(text) => text.as_str(),
            Given::Hidden(_) => "(not shown)",
        })
        .collect();
    if each.contains(&"(not shown)") {
        return "(not shown)".into();
    }
    each.join(", ")
}

/// A value as the file would write it.
fn written(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => toml::Value::from(text.as_str()).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Other(text) => text.clone(),
        Value::Boolean(on) => on.to_string(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(written).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> = (table.iter())
                .map(|(name, entry)| format!("{name} = {}", written(&entry.node)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}
