//! Which program has a port, as far as `/proc` tells this user.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::base::Printable;

/// A running program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name, as the kernel shortens it.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

impl Holder {
    /// Whether it is another turnix.
    pub fn is_turnix(&self) -> bool {
        fs::read_to_string("/proc/self/comm").is_ok_and(|own| own.trim() == self.name)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A program chooses its name.
        write!(f, "{} (pid {})", Printable(&self.name), self.pid)
    }
}

/// The program that is bound to `port` on UDP, or listens on it on TCP; `None` if it belongs to somebody whose
/// processes this user may not look into.
pub fn of_port(udp: bool, port: u16) -> Option<Holder> {
    let tables = if udp {
        ["/proc/net/udp", "/proc/net/udp6"]
    } else {
        ["/proc/net/tcp", "/proc/net/tcp6"]
    };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            let inodes = table
                .lines()
                .skip(1)
                .filter_map(|line| inode(line, port, udp));
            inodes
                .map(|inode| format!("socket:[{inode}]"))
                .collect::<Vec<_>>()
        })
        .collect();
    if sockets.is_empty() {
        return None;
    }
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if holds(&process.path().join("fd"), &sockets) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(Holder {
                name: name.trim().to_owned(),
                pid,
            });
        }
    }
    None
}

/// The inode of a socket that is bound to `port`, out of one line of `/proc/net/{udp,tcp}` (proc_net(5)).
fn inode(line: &str, port: u16, udp: bool) -> Option<&str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let same = u16::from_str_radix(local_port, 16).is_ok_and(|local| local == port);
    (same && (udp || state == LISTEN)).then_some(inode)
}

fn holds(descriptors: &Path, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(descriptors) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| {
            sockets
                .iter()
                .any(|socket| target.as_os_str() == socket.as_str())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "  0: 00000000:0D96 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0   0 4711 1 0 100 0";
        assert_eq!(inode(line, 3478, false), Some("4711"));
        assert_eq!(inode(line, 3479, false), None);
        let connected = line.replace(" 0A ", " 01 ");
        assert_eq!(inode(&connected, 3478, false), None);
        assert_eq!(inode(&connected, 3478, true), Some("4711"));
        assert_eq!(inode("", 1, true), None);
    }
}
