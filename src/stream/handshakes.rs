//! TLS handshakes that failed of late, by address: what an operator asks whose client "does not connect".
//!
//! Bounded: an address has one entry, and of many addresses the latest are kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::addr::subscriber;
use crate::base::{Clock, Pii, printable};

/// Addresses that are kept.
const MOST: usize = 256;

/// Longest error that is kept, in bytes.
const ERROR_BYTES: usize = 120;

/// Handshakes of one address that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedHandshakes {
    /// When the first did, in seconds since the Unix epoch.
    pub at: u64,
    /// When the last did, likewise.
    pub last: u64,
    /// How many.
    pub count: u32,
    /// From where, at last.
    pub client: SocketAddr,
    /// What was wrong with the last.
    pub error: String,
}

/// The latest that failed.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<VecDeque<FailedHandshakes>>);

impl Handshakes {
    /// One of `client` failed with `error`.
    pub fn note(&self, client: SocketAddr, error: &str) {
        let now = Clock.now().unix_secs();
        let error = printable::beginning(error, ERROR_BYTES).to_owned();
        let mut failed = self.failed();
        let whose = subscriber(client.ip());
        let place = failed
            .iter()
            .position(|one| subscriber(one.client.ip()) == whose);
        let one = match place.and_then(|place| failed.remove(place)) {
            Some(before) => FailedHandshakes {
                last: now,
                count: before.count.saturating_add(1),
                client,
                error,
                ..before
            },
            None => FailedHandshakes {
                at: now,
                last: now,
                count: 1,
                client,
                error,
            },
        };
        if failed.len() >= MOST {
            failed.pop_front();
        }
        failed.push_back(one);
    }

    /// Those of `address`, with its port or without, as `log.ip_privacy` shows it.
    pub fn of(&self, address: &str) -> Vec<FailedHandshakes> {
        let plain = address.trim_start_matches('[').trim_end_matches(']');
        (self.failed().iter())
            .filter(|one| {
                Pii(one.client.ip()).to_string() == plain || Pii(one.client).to_string() == address
            })
            .cloned()
            .collect()
    }

    fn failed(&self) -> MutexGuard<'_, VecDeque<FailedHandshakes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_entry_and_the_latest_are_kept() {
        let handshakes = Handshakes::default();
        let at = |ip: u16, port: u16| SocketAddr::from(([192, 0, (ip >> 8) as u8, ip as u8], port));
        for port in 1..=3 {
            handshakes.note(at(0, port), &"ä".repeat(100));
        }
        let [one] = &handshakes.of("192.0.0.0")[..] else {
            panic!("one address, one entry");
        };
        assert_eq!((one.count, one.client.port(), one.error.len()), (3, 3, 120));
        for ip in 1..=1000 {
            handshakes.note(at(ip, 1), "eof");
        }
        assert_eq!(handshakes.failed().len(), MOST);
        assert!(handshakes.of("192.0.0.0").is_empty());
        assert_eq!(handshakes.of("192.0.3.232:1").len(), 1);
    }
}
