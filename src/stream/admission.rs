//! How many connections one address may have open at once, and how many were turned away.
//!
//! Counted from accepting on, so that connections which never say anything, shake hands forever or speak HTTP count
//! like any other. Shared by all listeners; locked when a connection begins or ends, never for a packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::addr::subscriber;

use super::handshakes::Handshakes;
use super::passage::Passages;

/// Why a connection was closed before anybody got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// Its address has as many connections open as it may.
    Address,
    /// Too many connections have not identified themselves yet.
    Pending,
    /// It said nothing in time.
    Silent,
    /// Its TLS handshake failed or took too long.
    Handshake,
    /// It speaks nothing that the port speaks.
    Protocol,
    /// Its PROXY protocol header is missing or malformed, or it is none to believe.
    Proxy,
}

impl Refusal {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::Address,
        Self::Pending,
        Self::Silent,
        Self::Handshake,
        Self::Protocol,
        Self::Proxy,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Pending => "pending",
            Self::Silent => "silent",
            Self::Handshake => "handshake",
            Self::Protocol => "protocol",
            Self::Proxy => "proxy",
        }
    }
}

/// Refused connections by [`Refusal`].
pub type Refused = [u64; Refusal::ALL.len()];

/// Admits connections of one address up to a limit.
///
/// Holds one entry for each IPv4 address or IPv6 /64 with an open connection, none for anyone else.
#[derive(Debug, Default)]
pub struct Admission {
    /// 0 is no limit.
    limit: AtomicU32,
    // Strangers choose these keys: std's hasher is seeded from the kernel.
    open: Mutex<HashMap<IpAddr, u32>>,
    refused: [AtomicU64; Refusal::ALL.len()],
    passages: Arc<Passages>,
    handshakes: Handshakes,
}

impl Admission {
    /// At most `limit` connections at once from one address; 0 is no limit. None of them for another server yet:
    /// [`Passages::set_limit`].
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicU32::new(limit),
            ..Self::default()
        })
    }

    /// Replaces the limit. Connections that are open stay, even above it.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Counts a connection from `client` for as long as the guard lives; `None`, counted as refused, beyond the limit.
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Admitted> {
        let address = subscriber(client);
        let limit = self.limit.load(Ordering::Relaxed);
        {
            let mut open = self.open();
            let count = open.entry(address).or_default();
            if limit == 0 || *count < limit {
                *count += 1;
                return Some(Admitted {
                    admission: Arc::clone(self),
                    address,
                });
            }
        }
        self.refuse(Refusal::Address);
        None
    }

    /// Counts a refused connection.
    pub fn refuse(&self, reason: Refusal) {
        if let Some(count) = self.refused.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many connections were refused.
    pub fn refused(&self) -> Refused {
        std::array::from_fn(|reason| {
            let count = self.refused.get(reason);
            count.map_or(0, |count| count.load(Ordering::Relaxed))
        })
    }

    /// TLS handshakes that failed of late.
    pub const fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// Those of them that are another server's.
    pub const fn passages(&self) -> &Arc<Passages> {
        &self.passages
    }

    /// Addresses that have a connection open.
    pub fn addresses(&self) -> usize {
        self.open().len()
    }

    /// Counts are whole whatever panicked while they were locked.
    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted connection; dropping it gives its place back.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.open();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}
