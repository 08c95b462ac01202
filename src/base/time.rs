//! Time as a value. The core never reads a clock: it is told what time it is.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks, taken once per batch of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time: every lifetime and timer counts on this one.
    pub mono: Instant,
    /// Time since the Unix epoch: only for what clients and operators see, such as the expiry of credentials.
    pub unix: Duration,
}

impl Now {
    /// Seconds since the Unix epoch.
    pub fn unix_secs(self) -> u64 {
        self.unix.as_secs()
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self {
            mono: self.mono + by,
            unix: self.unix + by,
        }
    }
}

/// The only reader of the machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Reads both clocks. A wall clock before 1970 reads as the epoch.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]
    pub fn now(self) -> Now {
        Now {
            mono: Instant::now(),
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

/// A duration such as `90s`, `10m`, `24h`, `7d`, `500ms`, `50us`, several in a row (`1h30m`), or `0`.
///
/// # Errors
/// What would do, if `text` is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "a duration such as \"90s\", \"10m\" or \"24h\"";
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(WANTED.into());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let number: u64 = number.parse().map_err(|_| WANTED)?;
        let part = match unit.trim() {
            "us" => Some(Duration::from_micros(number)),
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or(WANTED)?;
        rest = next;
    }
    Ok(total)
}
