//! systemd's journal, by its native protocol: one datagram for each record, every field by its name.
//!
//! The protocol is documented at <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. A record that does not fit into a
//! datagram is cut, since what fields hold here is short; one that the journal does not take at once is lost and
//! counted, since whoever logs must not wait.

use std::fmt::{self, Write};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::base::Printable;

/// Where systemd-journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// In front of the names of an event's fields.
const PREFIX: &str = "TURNIX_";

/// The longest name of a field that the journal takes.
const NAME_BYTES: usize = 64;

/// What is kept of one value.
const VALUE_BYTES: usize = 16 << 10;

/// A layer that writes every event to the journal.
pub struct Journal {
    socket: UnixDatagram,
    /// Records that the journal did not take, since the last one that it took.
    lost: AtomicU64,
}

impl Journal {
    /// Connects to the journal's socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            lost: AtomicU64::new(0),
        })
    }

    /// The layer, whatever subscriber it serves.
    pub fn boxed<S: Subscriber>(self) -> Box<dyn Layer<S> + Send + Sync> {
        Box::new(self)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = Record::default();
        event.record(&mut record);
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            record.field("journal_lost", &lost.to_string());
        }
        if self.socket.send(&record.finish(event)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

/// Whether standard error is connected to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5)).
pub fn is_standard_error() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let metadata = (io::stderr().as_fd().try_clone_to_owned())
        .and_then(|descriptor| File::from(descriptor).metadata());
    metadata.is_ok_and(|file| names(&named, file.dev(), file.ino()))
}

/// Whether `stream`, in the form of JOURNAL_STREAM, names this device and inode.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    let parsed = (stream.split_once(':'))
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    parsed == Some((device, inode))
}

/// One record while its fields are collected.
#[derive(Default)]
struct Record {
    /// Fields in the protocol's form.
    fields: Vec<u8>,
    message: String,
    /// The other fields as people read them behind the message.
    details: String,
}

impl Record {
    /// Adds a field of an event.
    fn field(&mut self, name: &str, value: &str) {
        let mut full = String::from(PREFIX);
        full.extend(name.chars().map(|c| match c.to_ascii_uppercase() {
            c @ ('A'..='Z' | '0'..='9') => c,
            _ => '_',
        }));
        full.truncate(NAME_BYTES);
        append(&mut self.fields, &full, value);
    }

    fn finish(mut self, event: &Event<'_>) -> Vec<u8> {
        let metadata = event.metadata();
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        self.message += &self.details;
        let mut record = Vec::with_capacity(self.message.len() + self.fields.len() + 256);
        append(&mut record, "MESSAGE", &self.message);
        append(&mut record, "PRIORITY", priority);
        append(&mut record, "SYSLOG_IDENTIFIER", "turnix");
        append(&mut record, "TURNIX_TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            append(&mut record, "CODE_FILE", file);
            append(&mut record, "CODE_LINE", &line.to_string());
        }
        record.append(&mut self.fields);
        record
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
            return;
        }
        // Quoted for people, so that no value looks like another field; as it is for the journal.
        let _ = write!(self.details, " {}={value:?}", field.name());
        self.field(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let _ = write!(self.details, " {}={}", field.name(), Printable(&value));
        self.field(field.name(), &value);
    }
}

/// `NAME=value` on a line, or, where the value has lines itself, its length in front of it: no value can end its field.
fn append(record: &mut Vec<u8>, name: &str, value: &str) {
    let value = super::cut(value, VALUE_BYTES).as_bytes();
    record.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        record.push(b'\n');
        record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        record.push(b'=');
    }
    record.extend_from_slice(value);
    record.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_stream_names_device_and_inode() {
        assert!(names("8:12345", 8, 12345));
        for other in [
            "",
            "8",
            "8:",
            ":12345",
            "8:12346",
            "9:12345",
            "8:12345:1",
            "-8:12345",
        ] {
            assert!(!names(other, 8, 12345), "{other:?}");
        }
    }
}
