//! How far the credentials of an allocation reach.
//!
//! Visitors of the test page and the server's own canary come with credentials that nobody configured. What they
//! allocate exchanges data with relayed addresses of this server that the same visit allocated, and with nobody else: a
//! packet makes a loop back to where it came from.

use std::net::IpAddr;
use std::num::NonZeroU32;

use sha2::{Digest, Sha256};

use crate::base::addr::{bits, subscriber};

/// What the user ids of visits begin with. It tells names that are worth a look at the visits' secret; who knows only the
/// name gains nothing.
pub const VISIT_PREFIX: &str = "turnix-test:";

/// Whom an allocation may exchange data with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Whomever the peer policy permits.
    #[default]
    Policy,
    /// Relayed addresses of this server that the same visit allocated; of the canary also sockets of this host.
    Loop(Visit),
}

/// One visitor of the test page, or the canary. A hash: visitors that share one could send to each other, and cannot
/// choose to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Visit(NonZeroU32);

impl Visit {
    /// The server that looks at itself.
    pub const CANARY: Self = Self(NonZeroU32::MIN);

    /// The user id of [`CANARY`](Self::CANARY).
    pub const CANARY_USER: &str = "turnix-test:canary";

    /// The visit whose user id is `user`.
    pub fn of(user: &str) -> Self {
        if user == Self::CANARY_USER {
            return Self::CANARY;
        }
        Self::hashed(Sha256::digest(user).into())
    }

    /// The visit as `client` makes it: who passes its credentials on has nobody to talk to, because both ends of a loop are
    /// one visitor's. The canary comes from wherever it likes.
    #[must_use]
    pub fn at(self, client: IpAddr) -> Self {
        if self == Self::CANARY {
            return self;
        }
        let hash = Sha256::new()
            .chain_update(self.0.get().to_be_bytes())
            .chain_update(bits(subscriber(client)).to_be_bytes());
        Self::hashed(hash.finalize().into())
    }

    fn hashed(hash: [u8; 32]) -> Self {
        let [a, b, c, d, ..] = hash;
        // Two and above: one is the canary.
        Self(NonZeroU32::MIN.saturating_add(u32::from_be_bytes([a, b, c, d]).max(1)))
    }

    /// As a number, for another process.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// The inverse of [`number`](Self::number).
    pub const fn from_number(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl Scope {
    /// The word in access records.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Loop(_) => "loop",
        }
    }

    /// As it holds for `client`.
    #[must_use]
    pub fn at(self, client: IpAddr) -> Self {
        match self {
            Self::Policy => self,
            Self::Loop(visit) => Self::Loop(visit.at(client)),
        }
    }

    /// Whether it reaches relayed addresses of its own visit only.
    pub const fn is_loop(self) -> bool {
        matches!(self, Self::Loop(_))
    }

    /// Whether it is the server itself that looks.
    pub fn is_canary(self) -> bool {
        self == Self::Loop(Visit::CANARY)
    }
}

const _: () = assert!(size_of::<Scope>() == 4, "every channel's route carries one");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canary_is_the_canary() {
        assert_eq!(Visit::of(Visit::CANARY_USER), Visit::CANARY);
        assert!(Visit::CANARY_USER.starts_with(VISIT_PREFIX));
        for user in ["turnix-test:1", "turnix-test:2", ""] {
            let visit = Visit::of(user);
            assert_ne!(visit, Visit::CANARY);
            assert_eq!(Visit::from_number(visit.number()), Some(visit));
        }
        assert_eq!(Visit::from_number(0), None);
    }
}
