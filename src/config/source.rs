//! Reads file, environment and `--set` into one tree in which every value knows where it was written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem, Sources};

/// A TOML table; `key` is where its name was written.
pub(super) type Table = BTreeMap<String, Entry>;

/// One key of a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: Origin,
    pub node: Node,
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub value: Value,
    pub origin: Origin,
    /// The text outside a file, where quotes are optional: `TURNIX_AUTH__SECRETS=12345` means a text.
    pub raw: Option<String>,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    /// A float, a date or an integer beyond 64 bits, none of which any key takes.
    Other(String),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
}

impl Node {
    /// The value for an error message, shortened.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::Text(text) => {
                let short: String = text.chars().take(60).collect();
                let more = if short.len() < text.len() { "…" } else { "" };
                format!("{:?}", short + more)
            }
            Value::Integer(number) => number.to_string(),
            Value::Other(text) => text.clone(),
            Value::Boolean(on) => on.to_string(),
            Value::List(_) | Value::Table(_) => self.kind().to_owned(),
        }
    }

    /// The kind of the value, for messages about secrets.
    pub const fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(text) if text.is_empty() => "an empty text",
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Other(_) => "a float or date",
            Value::Boolean(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

impl Sources {
    /// Whether the environment or a `--set` decides `key` or something inside it.
    pub fn overrides(&self, key: &str) -> bool {
        let names = |name: &str| {
            name.strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let in_environment = self.environment.iter().any(|(name, text)| {
            name.strip_prefix("TURNIX_")
                .is_some_and(|suffix| !is_service_link(suffix, text) && names(&dotted(suffix)))
        });
        in_environment || self.sets(names)
    }

    /// Whether a `--set` says `key`, a part of it, or the section that it is in.
    pub(super) fn set_on_command_line(&self, key: &str) -> bool {
        let within = |inner: &str, outer: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.sets(|name| within(name, key) || within(key, name))
    }

    fn sets(&self, names: impl Fn(&str) -> bool) -> bool {
        self.set
            .iter()
            .filter_map(|assignment| assignment.split_once('='))
            .any(|(name, _)| names(name.trim()))
    }
}

fn dotted(suffix: &str) -> String {
    suffix.to_lowercase().replace("__", ".")
}

/// Merges every source: `--set` over environment over file over base.
///
/// The second value is false if the file could not be read as TOML, so that what is missing may be a consequence.
pub(super) fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> (Table, bool) {
    let mut root = Table::new();
    let mut whole = true;
    if let Some(base) = &sources.base {
        whole &= read_text(base, &mut root, problems, &|_| Origin::QuickStart);
    }
    if let Some(path) = &sources.file {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let shared: Arc<Path> = path.as_path().into();
                whole &= read_text(&text, &mut root, problems, &|at| {
                    let before = text.get(..at.start).unwrap_or(&text);
                    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
                    Origin::File(Arc::clone(&shared), Some(line))
                });
            }
            Err(error) => {
                whole = false;
                problems.push(Problem::file(
                    path,
                    format!("cannot be read: {error}"),
                    "name an existing, readable UTF-8 file with -c",
                ));
            }
        }
    }
    for (name, text) in &sources.environment {
        let Some(suffix) = name.strip_prefix("TURNIX_") else {
            continue;
        };
        if is_service_link(suffix, text) {
            continue;
        }
        let key = dotted(suffix);
        let origin = Origin::Environment(name.clone());
        put(&mut root, &key, outside_file(text, &origin), &origin);
    }
    for assignment in &sources.set {
        match assignment.split_once('=') {
            Some((key, text)) if !key.trim().is_empty() => {
                let node = outside_file(text.trim(), &Origin::Set);
                put(&mut root, key.trim(), node, &Origin::Set);
            }
            // What follows may be a secret whose key was forgotten, so it is not repeated.
            _ => problems.push(Problem {
                origin: Origin::Set,
                key: String::new(),
                found: "no key and value".into(),
                remedy: "write key=value, for example --set limits.allocations=1000".into(),
            }),
        }
    }
    super::preset::apply(&mut root, problems);
    (root, whole)
}

/// Kubernetes tells every container about services: a service called `turnix` sets `TURNIX_PORT=tcp://…` and friends.
fn is_service_link(suffix: &str, text: &str) -> bool {
    let link = text.starts_with("tcp://") || text.starts_with("udp://");
    suffix.ends_with("SERVICE_HOST")
        || suffix.contains("SERVICE_PORT")
        || ((suffix == "PORT" || suffix.ends_with("_PORT")) && link)
        || suffix.starts_with("PORT_")
        || suffix.contains("_PORT_") && (suffix.contains("_TCP") || suffix.contains("_UDP"))
}

/// Merges the TOML in `text` over `root`; false if it has syntax errors.
pub(super) fn read_text(
    text: &str,
    root: &mut Table,
    problems: &mut Vec<Problem>,
    origin: &dyn Fn(Range<usize>) -> Origin,
) -> bool {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // The parser's own rendering quotes the line, which may hold a secret.
        problems.push(Problem {
            origin: origin(error.span().unwrap_or(0..0)),
            key: String::new(),
            found: format!("not TOML: {}", error.message()),
            remedy: "correct the syntax of this line (texts are written in \"quotes\")".into(),
        });
    }
    overlay(root, convert_table(table.into_inner(), origin));
    errors.is_empty()
}

pub(super) fn overlay(under: &mut Table, over: Table) {
    for (name, entry) in over {
        match (under.get_mut(&name), entry.node.value) {
            (
                Some(Entry {
                    node:
                        Node {
                            value: Value::Table(below),
                            ..
                        },
                    ..
                }),
                Value::Table(above),
            ) => overlay(below, above),
            (_, value) => {
                let node = Node {
                    value,
                    origin: entry.node.origin,
                    raw: entry.node.raw,
                };
                under.insert(
                    name,
                    Entry {
                        key: entry.key,
                        node,
                    },
                );
            }
        }
    }
}

/// A value from the environment or `--set`: TOML if it can be read as such, else the text itself.
fn outside_file(text: &str, origin: &Origin) -> Node {
    let mut node = match DeValue::parse(text) {
        Ok(value) => convert(value.into_inner(), origin.clone(), &|_| origin.clone()),
        Err(_) => Node {
            value: Value::Text(text.to_owned()),
            origin: origin.clone(),
            raw: None,
        },
    };
    if !matches!(node.value, Value::Text(ref inner) if inner != text) {
        node.raw = Some(text.to_owned());
    }
    node
}

/// A value in its written form; `None` if it is not TOML.
pub(super) fn literal(written: &str) -> Option<Node> {
    let value = DeValue::parse(written).ok()?;
    Some(convert(value.into_inner(), Origin::Default, &|_| {
        Origin::Default
    }))
}

/// Puts `node` at the dotted `key`, making tables on the way.
fn put(root: &mut Table, key: &str, node: Node, origin: &Origin) {
    let (section, rest) = match key.split_once('.') {
        None => {
            let key_origin = origin.clone();
            root.insert(
                key.to_owned(),
                Entry {
                    key: key_origin,
                    node,
                },
            );
            return;
        }
        Some(parts) => parts,
    };
    let entry = root.entry(section.to_owned()).or_insert_with(|| Entry {
        key: origin.clone(),
        node: Node {
            value: Value::Table(Table::new()),
            origin: origin.clone(),
            raw: None,
        },
    });
    if !matches!(entry.node.value, Value::Table(_)) {
        entry.node.value = Value::Table(Table::new());
        entry.node.origin = origin.clone();
        entry.node.raw = None;
    }
    if let Value::Table(table) = &mut entry.node.value {
        put(table, rest, node, origin);
    }
}

fn convert_table(table: DeTable<'_>, origin: &dyn Fn(Range<usize>) -> Origin) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let key_origin = origin(key.span());
            let value_origin = origin(value.span());
            let node = convert(value.into_inner(), value_origin, origin);
            let key = key.into_inner().into_owned();
            (
                key,
                Entry {
                    key: key_origin,
                    node,
                },
            )
        })
        .collect()
}

fn convert(value: DeValue<'_>, at: Origin, origin: &dyn Fn(Range<usize>) -> Origin) -> Node {
    let value = match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(parsed) => Value::Integer(parsed),
            Err(_) => Value::Other(number.to_string()),
        },
        DeValue::Float(number) => Value::Other(number.to_string()),
        DeValue::Boolean(on) => Value::Boolean(on),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .map(|item| {
                    let at = origin(item.span());
                    convert(item.into_inner(), at, origin)
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, origin)),
    };
    Node {
        value,
        origin: at,
        raw: None,
    }
}
