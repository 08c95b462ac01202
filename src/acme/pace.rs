//! When to order: for a certificate that will end, and after a failure. Pure.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::stream::Certificate;

/// How long to wait after what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// After the first failure; each further one takes three times as long. Authorities take few failures an hour.
    pub first_pause: Duration,
    /// The longest pause after a failure.
    pub longest_pause: Duration,
    /// The longest pause that an authority may ask for.
    pub longest_told: Duration,
    /// From one certificate to the next order at least, whatever its lifetime.
    pub between: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(120),
            longest_pause: Duration::from_secs(12 * 3600),
            longest_told: Duration::from_secs(7 * 86_400),
            between: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// The pause after the last of `failures` in a row. `draw` lengthens it by up to a quarter, so that servers which fail
    /// together do not come back together.
    pub fn pause(&self, failures: u32, draw: u16) -> Duration {
        let times = 3_u32.saturating_pow(failures.saturating_sub(1));
        let pause = self
            .first_pause
            .saturating_mul(times)
            .min(self.longest_pause);
        pause + pause / 4 * u32::from(draw) / u32::from(u16::MAX)
    }
}

/// When `certificate` is to be replaced, in seconds since the Unix epoch: after two thirds of its lifetime, or up to a
/// thirtieth earlier, which its own hash decides. So certificates that were issued together are renewed apart, and
/// restarts do not draw again.
pub fn renewal_unix(certificate: &Certificate) -> u64 {
    let hash = Sha256::digest(certificate.leaf());
    let draw = hash
        .iter()
        .take(2)
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let begin = certificate.not_before_unix();
    let lifetime = certificate.not_after_unix().saturating_sub(begin);
    let earlier = lifetime / 30 * draw / u64::from(u16::MAX);
    (begin + lifetime / 3 * 2).saturating_sub(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::certificates::{SELF_SIGNED_LIFETIME, self_signed};

    #[test]
    fn pauses_grow_to_their_bound_and_are_drawn_apart() {
        let pace = Pace::default();
        let minutes = |failures| pace.pause(failures, 0).as_secs() / 60;
        assert_eq!([1, 2, 3, 4, 5].map(minutes), [2, 6, 18, 54, 162]);
        assert_eq!(minutes(7), 12 * 60);
        assert_eq!(minutes(u32::MAX), 12 * 60);
        assert_eq!(pace.pause(1, u16::MAX), Duration::from_secs(150));
        // Let's Encrypt takes five failures an hour.
        let first_hour = (1..).map(minutes).scan(0, |at, pause| {
            *at += pause;
            Some(*at)
        });
        assert_eq!(1 + first_hour.take_while(|at| *at < 60).count(), 4);
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let now = 1_800_000_000;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..8 {
            let made = self_signed(&["turn.example.org".to_owned()], now).unwrap();
            let pem = made.certificate_pem + made.key_pem.expose();
            let certificate = Certificate::from_pem(pem.as_bytes(), pem.as_bytes()).unwrap();
            let due = renewal_unix(&certificate);
            assert_eq!(due, renewal_unix(&certificate), "drawn once");
            let lived =
                (due - certificate.not_before_unix()) as f64 / SELF_SIGNED_LIFETIME.as_secs_f64();
            assert!((0.63..0.667).contains(&lived), "{lived}");
            seen.insert(due);
        }
        assert!(seen.len() > 4, "{seen:?}");
    }
}
