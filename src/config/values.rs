//! Values as people write them: `10m`, `8Mbit`, `64KiB`, port ranges, addresses.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::problem::Origin;
use super::source::{Node, Value};

pub use crate::base::time::duration;

/// A rate in bits per second such as `500kbit`, `8Mbit`, `1Gbit`, or `0`.
///
/// # Errors
/// What would do, if `text` is none of these.
pub fn rate(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [
        ("bit", 1),
        ("kbit", 1000),
        ("mbit", 1_000_000),
        ("gbit", 1_000_000_000),
    ];
    scaled(text, &UNITS)
        .ok_or_else(|| "a rate such as \"500kbit\", \"8Mbit\" or \"1Gbit\"".to_owned())
}

/// A size in bytes such as `512B`, `64KiB`, `2MiB`, `1GiB`, `10kB`, `10MB`, or `0`.
///
/// # Errors
/// What would do, if `text` is none of these.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("b", 1),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
    ];
    scaled(text, &UNITS).ok_or_else(|| "a size such as \"512B\", \"64KiB\" or \"2MiB\"".to_owned())
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    if text.trim() == "0" {
        return Some(0);
    }
    let (number, unit) = split_number(text.trim());
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Why a value cannot be meant.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub origin: Origin,
    /// What is there; never the value of a secret.
    pub found: String,
    /// What would do, where the key's own description does not say it.
    pub remedy: Option<String>,
}

/// The value, or everything that is wrong with it.
pub(super) type Converted<T> = Result<T, Vec<Fault>>;

impl Fault {
    /// The value is not of the wanted form.
    pub fn of(node: &Node) -> Vec<Self> {
        vec![Self {
            origin: node.origin.clone(),
            found: format!("found {}", node.shown()),
            remedy: None,
        }]
    }

    /// The value is of the wanted form and still cannot be meant.
    pub fn with(node: &Node, found: impl Into<String>, remedy: impl Into<String>) -> Vec<Self> {
        vec![Self {
            origin: node.origin.clone(),
            found: found.into(),
            remedy: Some(remedy.into()),
        }]
    }

    /// As `of`, for a value that must not be shown.
    pub fn masked(node: &Node) -> Vec<Self> {
        vec![Self {
            origin: node.origin.clone(),
            found: format!("found {}", node.kind()),
            remedy: None,
        }]
    }
}

/// Any text.
pub(super) fn text(node: &Node) -> Converted<String> {
    match (&node.value, &node.raw) {
        (Value::Text(text), _) => Ok(text.clone()),
        (_, Some(raw)) => Ok(raw.clone()),
        _ => Err(Fault::of(node)),
    }
}

/// A text that stays secret, of one character or more.
pub(super) fn secret(node: &Node) -> Converted<String> {
    match text(node) {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(Fault::masked(node)),
    }
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node) -> Converted<bool> {
    match node.value {
        Value::Boolean(on) => Ok(on),
        _ => Err(Fault::of(node)),
    }
}

/// A whole number within `bounds`.
pub(super) fn number(bounds: RangeInclusive<u32>) -> impl Fn(&Node) -> Converted<u32> {
    move |node| match node.value {
        Value::Integer(number) => u32::try_from(number)
            .ok()
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| Fault::of(node)),
        _ => Err(Fault::of(node)),
    }
}

/// A text that `parse` understands; its error says what would do.
pub(super) fn parsed<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&Node) -> Converted<T> {
    move |node| {
        let text = text(node)?;
        parse(text.trim())
            .map_err(|remedy| Fault::with(node, format!("found {}", node.shown()), remedy))
    }
}

/// A duration within bounds, given in seconds.
pub(super) fn duration_within(
    least_secs: u64,
    most_secs: u64,
) -> impl Fn(&Node) -> Converted<Duration> {
    move |node| {
        let value = parsed(duration)(node)?;
        if (Duration::from_secs(least_secs)..=Duration::from_secs(most_secs)).contains(&value) {
            Ok(value)
        } else {
            Err(Fault::of(node))
        }
    }
}

/// A size of `least` to `most` bytes.
pub(super) fn size_within(least: u64, most: u64) -> impl Fn(&Node) -> Converted<usize> {
    move |node| {
        let value = parsed(size)(node)?;
        if (least..=most).contains(&value) {
            Ok(value as usize)
        } else {
            Err(Fault::of(node))
        }
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&Node) -> Converted<T> {
    move |node| {
        let text = text(node)?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| Fault::of(node))
    }
}

/// A list; outside files, one text with commas will do.
pub(super) fn list<T>(item: impl Fn(&Node) -> Converted<T>) -> impl Fn(&Node) -> Converted<Vec<T>> {
    move |node| {
        let split;
        let items: &[Node] = match (&node.value, &node.raw) {
            (Value::List(items), _) => items,
            (Value::Table(_), _) | (_, None) => return Err(Fault::masked(node)),
            (_, Some(raw)) => {
                split = split_commas(raw, &node.origin);
                &split
            }
        };
        let mut values = Vec::with_capacity(items.len());
        let mut faults = Vec::new();
        for node in items {
            match item(node) {
                Ok(value) => values.push(value),
                Err(more) => faults.extend(more),
            }
        }
        if faults.is_empty() {
            Ok(values)
        } else {
            Err(faults)
        }
    }
}

/// The items of a comma-separated text; none in an empty one.
pub(super) fn split_commas(raw: &str, origin: &Origin) -> Vec<Node> {
    raw.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| Node {
            value: Value::Text(part.to_owned()),
            origin: origin.clone(),
            raw: Some(part.to_owned()),
        })
        .collect()
}

/// An address that packets can be sent from.
pub(super) fn unicast(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text
        .parse()
        .map_err(|_| "write an IP address such as \"192.0.2.10\" or \"2001:db8::10\"".to_owned())?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err("write an address of this host, not a wildcard or multicast address".into());
    }
    Ok(ip)
}

/// An IP address and a port.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port such as \"[::]:3478\", \"0.0.0.0:3478\" or \"192.0.2.10:443\""
            .to_owned()
    })
}

/// `first-last`.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    const WANTED: &str = "write the first and the last port, 1 to 65535, such as \"49152-65535\"";
    let (first, last) = text.split_once('-').ok_or(WANTED)?;
    let first: u16 = first.trim().parse().map_err(|_| WANTED)?;
    let last: u16 = last.trim().parse().map_err(|_| WANTED)?;
    if first == 0 || first > last {
        return Err(WANTED.into());
    }
    Ok(first..=last)
}
