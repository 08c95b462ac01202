//! Takes keys out of the tree. Reading a key is its declaration: name, default and meaning are written once, there.

use super::changes::Keys;
use super::problem::{Origin, Problem};
use super::source::{Node, Table, Value, literal};
use super::values::Converted;

/// A key that the configuration knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Dotted name; a key of `[[listen]]` is `listen.address`.
    pub name: &'static str,
    /// Default, as the file would write it.
    pub default: &'static str,
    /// What it takes.
    pub takes: &'static str,
}

pub(super) struct Reader<'a> {
    table: &'a Table,
    /// What names of keys begin with and the table does not know about: `listen.` inside `[[listen]]`.
    prefix: &'static str,
    /// Where a value that nobody wrote is reported.
    absent: Origin,
    /// Names of the lists of tables.
    lists: Vec<&'static str>,
    pub declared: Vec<Declared>,
    /// What the keys that could be read were given.
    pub keys: Keys,
    pub problems: Vec<Problem>,
    /// What works and should be put right all the same.
    pub warnings: Vec<Problem>,
}

/// What one of two keys gives: the value itself, or the file that holds it.
pub(super) enum Given<V, F> {
    Value(V),
    File(F),
}

impl<'a> Reader<'a> {
    pub fn new(table: &'a Table, absent: Origin) -> Self {
        Self {
            table,
            prefix: "",
            absent,
            lists: Vec::new(),
            declared: Vec::new(),
            keys: Keys::default(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Declares `name` and reads it; `None` after recording a problem.
    pub fn key<T>(
        &mut self,
        name: &'static str,
        default: &'static str,
        takes: &'static str,
        convert: impl Fn(&Node) -> Converted<T>,
    ) -> Option<T> {
        self.declare(Declared {
            name,
            default,
            takes,
        });
        let fallback;
        let node = match self.find(name) {
            Some(node) => node,
            None => {
                fallback = default_node(default);
                &fallback
            }
        };
        match convert(node) {
            Ok(value) => {
                self.keys.note(name, node);
                Some(value)
            }
            Err(faults) => {
                for fault in faults {
                    self.problems.push(Problem {
                        origin: fault.origin,
                        key: name.to_owned(),
                        found: fault.found,
                        remedy: fault.remedy.unwrap_or_else(|| format!("expected {takes}")),
                    });
                }
                None
            }
        }
    }

    /// Declares the list of tables `name` and reads each; the tables in `defaults` if nobody wrote the key.
    ///
    /// Without `defaults` the list may be empty. A text in place of a table sets the key `short`; outside files, several
    /// may be separated by commas.
    pub fn tables<T>(
        &mut self,
        name: &'static str,
        prefix: &'static str,
        short: &'static str,
        takes: &'static str,
        defaults: &[&'static str],
        each: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Option<Vec<(Origin, T)>> {
        self.lists.push(name);
        let items = match self.find(name) {
            None => defaults.iter().map(|table| default_node(table)).collect(),
            Some(node) => match (&node.value, &node.raw) {
                (Value::List(items), _) if !items.is_empty() || defaults.is_empty() => {
                    items.clone()
                }
                (Value::Table(_), _) if node.raw.is_some() => vec![node.clone()],
                (Value::Text(_), Some(raw)) if !raw.trim().is_empty() => {
                    super::values::split_commas(raw, &node.origin)
                }
                _ => {
                    let problem = Problem {
                        origin: node.origin.clone(),
                        key: name.to_owned(),
                        found: format!("found {}", found_list(node)),
                        remedy: format!("expected {takes}"),
                    };
                    self.problems.push(problem);
                    Vec::new()
                }
            },
        };
        let failed = items.is_empty() && !defaults.is_empty();
        let mut values = Vec::new();
        let mut complete = !failed;
        let empty = Table::new();
        for item in &items {
            let shorthand;
            let table = match &item.value {
                Value::Table(table) => table,
                Value::Text(_) => {
                    shorthand = Table::from([(
                        short.to_owned(),
                        super::source::Entry {
                            key: item.origin.clone(),
                            node: item.clone(),
                        },
                    )]);
                    &shorthand
                }
                _ => {
                    self.problems.push(Problem {
                        origin: item.origin.clone(),
                        key: name.to_owned(),
                        found: format!("found {}", item.shown()),
                        remedy: format!("expected {takes}"),
                    });
                    complete = false;
                    continue;
                }
            };
            let (value, problems) = self.nested(table, prefix, item.origin.clone(), &each);
            self.problems.extend(problems);
            match value {
                Some(value) => values.push((item.origin.clone(), value)),
                None => complete = false,
            }
        }
        if values.is_empty() {
            // The keys exist whether or not anything could be read, or they would be reported as unknown.
            self.nested(&empty, prefix, Origin::Default, &each);
        }
        complete.then_some(values)
    }

    fn nested<T>(
        &mut self,
        table: &Table,
        prefix: &'static str,
        absent: Origin,
        each: &impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> (Option<T>, Vec<Problem>) {
        let mut inner = Reader {
            table,
            prefix,
            absent,
            lists: Vec::new(),
            declared: Vec::new(),
            keys: Keys::default(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let value = each(&mut inner);
        inner.reject_unknown();
        for declared in inner.declared {
            self.declare(declared);
        }
        self.keys.extend(inner.keys);
        for warning in inner.warnings {
            self.warn(warning);
        }
        (value, inner.problems)
    }

    /// Where `name` was written, else where its absence is reported.
    pub fn origin(&self, name: &str) -> Origin {
        self.find(name)
            .map_or_else(|| self.absent.clone(), |node| node.origin.clone())
    }

    /// Whether anybody wrote `name`.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Whether somebody wrote `name`, and something else than its inert empty text.
    pub fn is_set(&self, name: &str) -> bool {
        let empty = |node: &Node| matches!(&node.value, Value::Text(text) if text.is_empty());
        self.find(name).is_some_and(|node| !empty(node))
    }

    /// Whether somebody wrote `name`, and something else than an empty text or list.
    pub fn is_filled(&self, name: &str) -> bool {
        let empty = |node: &Node| match &node.value {
            Value::List(items) => items.is_empty(),
            // A list as the environment has it, with nothing in it.
            Value::Text(text) => text.chars().all(|c| c == ',' || c.is_whitespace()),
            _ => false,
        };
        self.is_set(name) && !self.find(name).is_some_and(empty)
    }

    /// Whether somebody wrote `name`, a text that has been declared, and something else than its default.
    pub fn is_changed(&self, name: &str) -> bool {
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let declared = self.declared.iter().find(|declared| declared.name == name);
        let default = declared.and_then(|declared| text(&default_node(declared.default)));
        self.find(name).is_some_and(|node| text(node) != default)
    }

    /// Records a problem with `name`.
    pub fn problem(&mut self, name: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem {
            origin: self.origin(name),
            key: name.to_owned(),
            found: found.into(),
            remedy: remedy.into(),
        });
    }

    /// What `name` or `name_file` gives, of which one has to be there. If neither is, the remedy is to `give` one.
    pub fn one_of_both<V, F>(
        &mut self,
        name: &str,
        (value, file): (Option<V>, Option<F>),
        give: &str,
    ) -> Option<Given<V, F>> {
        let (found, remedy) = match (value, file) {
            (Some(value), None) => return Some(Given::Value(value)),
            (None, Some(file)) => return Some(Given::File(file)),
            (None, None) => ("missing".to_owned(), give),
            (Some(_), Some(_)) => {
                let leaf = name.rsplit('.').next().unwrap_or(name);
                (format!("given, and {leaf}_file too"), "keep one of them")
            }
        };
        self.problem(name, found, remedy);
        None
    }

    /// Records what works and should be put right all the same, once.
    pub fn warn(&mut self, warning: Problem) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Records every key that was not declared, with the nearest one that was.
    pub fn reject_unknown(&mut self) {
        let mut problems = Vec::new();
        self.unknown_in(self.table, self.prefix, &mut problems);
        self.problems.extend(problems);
    }

    fn unknown_in(&self, table: &Table, prefix: &str, problems: &mut Vec<Problem>) {
        for (key, entry) in table {
            let name = format!("{prefix}{key}");
            if self.declared.iter().any(|declared| declared.name == name) {
                continue;
            }
            let section = format!("{name}.");
            if self.knows_section(&section) {
                match &entry.node.value {
                    Value::Table(inner) => self.unknown_in(inner, &section, problems),
                    _ if self.lists.contains(&name.as_str()) => {}
                    _ => problems.push(Problem {
                        origin: entry.key.clone(),
                        key: name.clone(),
                        found: format!("found {}", entry.node.kind()),
                        remedy: format!("{name} is a section: write [{name}] and its keys below"),
                    }),
                }
                continue;
            }
            problems.push(Problem {
                origin: entry.key.clone(),
                key: name.clone(),
                found: "unknown key".into(),
                remedy: match self.nearest(&name) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "remove it; conf/turnix.toml lists every key".into(),
                },
            });
        }
    }

    fn knows_section(&self, section: &str) -> bool {
        self.declared
            .iter()
            .any(|declared| declared.name.starts_with(section))
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let leaf = name.rsplit('.').next().unwrap_or(name);
        let is_section = !name.contains('.');
        let mut best: Option<(usize, String)> = None;
        let mut offer = |distance: usize, candidate: String| {
            if best.as_ref().is_none_or(|(least, _)| distance < *least) {
                best = Some((distance, candidate));
            }
        };
        for declared in &self.declared {
            offer(distance(name, declared.name), declared.name.to_owned());
            if let Some((section, key)) = declared.name.rsplit_once('.') {
                // The right key in the wrong section is as near as a slip of the finger; in one of many tables, as two.
                let far = 1 + usize::from(self.lists.contains(&section));
                offer(distance(leaf, key) + far, declared.name.to_owned());
                if is_section {
                    offer(distance(name, section), format!("[{section}]"));
                }
            }
        }
        let allowed = 1 + leaf.len() / 3;
        best.filter(|(least, _)| *least <= allowed)
            .map(|(_, candidate)| candidate)
    }

    fn find(&self, name: &str) -> Option<&'a Node> {
        let mut table = self.table;
        let mut rest = name.strip_prefix(self.prefix).unwrap_or(name);
        while let Some((section, inner)) = rest.split_once('.') {
            match &table.get(section)?.node.value {
                Value::Table(next) => table = next,
                _ => return None,
            }
            rest = inner;
        }
        Some(&table.get(rest)?.node)
    }

    fn declare(&mut self, declared: Declared) {
        if !self.declared.contains(&declared) {
            self.declared.push(declared);
        }
    }
}

fn found_list(node: &Node) -> &'static str {
    match &node.value {
        Value::List(items) if items.is_empty() => "an empty list",
        _ => node.kind(),
    }
}

/// The default in its written form, as a value; what does not parse becomes one that no converter takes.
fn default_node(written: &str) -> Node {
    literal(written).unwrap_or_else(|| Node {
        value: Value::Other(written.to_owned()),
        origin: Origin::Default,
        raw: None,
    })
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            left = (diagonal + usize::from(x != *y))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}
