//! How figures are shown in JSON, wherever they are.

use std::time::Duration;

use serde::Serialize;

use super::Leg;
use crate::base::Direction;

/// A value for each side of an allocation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Legs<T> {
    /// That of the client.
    pub client: T,
    /// That of its peers.
    pub peer: T,
}

impl<T> Legs<T> {
    /// `value` of each.
    pub fn of(value: impl Fn(Leg) -> T) -> Self {
        Self {
            client: value(Leg::Client),
            peer: value(Leg::Peer),
        }
    }
}

/// A value for each direction.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ways<T> {
    /// From the client.
    pub to_peer: T,
    /// From its peers.
    pub to_client: T,
}

impl<T> Ways<T> {
    /// `value` of each.
    pub fn of(value: impl Fn(Direction) -> T) -> Self {
        Self {
            to_peer: value(Direction::ToPeer),
            to_client: value(Direction::ToClient),
        }
    }
}

/// Milliseconds, to the microsecond.
pub fn millis(time: Duration) -> f64 {
    millis_of(time.as_secs_f64())
}

/// Milliseconds of seconds, to the microsecond.
pub fn millis_of(secs: f64) -> f64 {
    (secs * 1e6).round() / 1e3
}

/// A share, to the millionth.
pub fn share(ratio: f64) -> f64 {
    (ratio * 1e6).round() / 1e6
}
