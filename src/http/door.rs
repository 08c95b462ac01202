//! Who may use the admin listener: whoever knows its token, and how often an address may be wrong about it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ahash::RandomState;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::access::AddressRate;
use crate::base::Secret;

/// The least that a token has, in characters: beyond guessing at any rate that a network carries.
pub const MIN_TOKEN_CHARS: usize = 16;

/// Wrong tokens per second that one address may show, ten times as many at once.
const FAILURES_PER_SECOND: u32 = 1;

/// A token that is compared and never shown: its digest, so that a comparison tells nothing about its length either.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Keeps what is needed to recognize `token`.
    pub fn new(token: &Secret<String>) -> Self {
        Self(Sha256::digest(token.expose()).into())
    }

    fn is(&self, guess: &[u8]) -> bool {
        Sha256::digest(guess).as_slice().ct_eq(&self.0).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// It shows no token.
    Missing,
    /// It shows another one.
    Wrong,
    /// Its address was wrong so often that its tokens are not looked at for a while.
    Limited,
}

impl Refusal {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Wrong, Self::Limited];

    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Limited => "limited",
        }
    }
}

/// Asks for the token and counts who was turned away; memory does not depend on who comes.
#[derive(Debug)]
pub struct Door {
    token: Option<Token>,
    failures: Mutex<AddressRate>,
    started: Instant,
    refused: [AtomicU64; Refusal::ALL.len()],
}

impl Door {
    /// Open to everybody if there is no token.
    pub fn new(token: Option<Token>) -> Self {
        let [a, b, c, d] = rand::random();
        let rate = if token.is_some() {
            FAILURES_PER_SECOND
        } else {
            0
        };
        Self {
            token,
            failures: Mutex::new(AddressRate::new(rate, RandomState::with_seeds(a, b, c, d))),
            started: Instant::now(),
            refused: Default::default(),
        }
    }

    /// Whether a request of `client` with `headers` may do everything (RFC 6750 §2.1).
    ///
    /// Loopback has no limit: a proxy there speaks for everybody behind it, and one guesser would lock out all of them.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, client: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        match (shown.next(), shown.next()) {
            (None, _) => Err(Refusal::Missing),
            (Some(shown), None) => self.look(client, || {
                bearer(shown.as_bytes()).is_some_and(|guess| token.is(guess))
            }),
            // Which of two a proxy in front looked at is anybody's guess.
            (Some(_), Some(_)) => self.look(client, || false),
        }
    }

    /// Counts a request that was turned away.
    pub fn refuse(&self, reason: Refusal) {
        if let Some(count) = self.refused.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn look(&self, client: IpAddr, is_right: impl FnOnce() -> bool) -> Result<(), Refusal> {
        let limited = !client.to_canonical().is_loopback();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.started.elapsed();
        if limited && !failures.would_admit(at, client) {
            return Err(Refusal::Limited);
        }
        if is_right() {
            return Ok(());
        }
        if limited {
            failures.admit(at, client);
        }
        Err(Refusal::Wrong)
    }

    /// How many requests were turned away, each reason with its label.
    pub fn refused(&self) -> [(&'static str, u64); Refusal::ALL.len()] {
        Refusal::ALL.map(|reason| {
            let count = self.refused.get(reason as usize);
            let count = count.map_or(0, |count| count.load(Ordering::Relaxed));
            (reason.label(), count)
        })
    }
}

/// The token of `Bearer TOKEN`; the word is written as anybody likes (RFC 9110 §11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-the-tests";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn door() -> Door {
        Door::new(Some(Token::new(&Secret::new(TOKEN.into()))))
    }

    #[test]
    fn only_the_token_opens_it() {
        let door = door();
        let ask = |values: &[&str]| door.admit(IpAddr::from([127, 0, 0, 1]), &headers(values));
        let right = format!("Bearer {TOKEN}");
        for shown in [right.as_str(), &format!("bearer  {TOKEN} ")] {
            assert_eq!(ask(&[shown]), Ok(()), "{shown}");
        }
        assert_eq!(ask(&[]), Err(Refusal::Missing));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            "Bearer a-token-of-the-test",
            "Bearer a-token-of-the-testsx",
            "Bearer A-TOKEN-OF-THE-TESTS",
            "Basic YS10b2tlbi1vZi10aGUtdGVzdHM=",
        ] {
            assert_eq!(ask(&[wrong]), Err(Refusal::Wrong), "{wrong}");
        }
        assert_eq!(ask(&[&right, &right]), Err(Refusal::Wrong));
        door.refuse(Refusal::Wrong);
        assert_eq!(
            door.refused(),
            [("missing", 0), ("wrong", 1), ("limited", 0)]
        );
    }

    #[test]
    fn guesses_are_few() {
        let door = door();
        let guesser = IpAddr::from([198, 51, 100, 7]);
        let (wrong, right) = (
            headers(&["Bearer x"]),
            headers(&[&format!("Bearer {TOKEN}")]),
        );
        let guesses = (0..10_000).map(|_| door.admit(guesser, &wrong));
        let looked_at = guesses.filter(|verdict| *verdict == Err(Refusal::Wrong));
        let looked_at = looked_at.count();
        // Ten at once, and one a second on a machine that is busy.
        assert!((10..100).contains(&looked_at), "{looked_at}");
        assert_eq!(door.admit(guesser, &right), Err(Refusal::Limited));
        // Nobody else waits, and who shows nothing guesses nothing.
        assert_eq!(door.admit(IpAddr::from([203, 0, 113, 1]), &right), Ok(()));
        for _ in 0..1000 {
            let other = IpAddr::from([192, 0, 2, 1]);
            assert_eq!(door.admit(other, &HeaderMap::new()), Err(Refusal::Missing));
        }
        assert_eq!(door.admit(IpAddr::from([192, 0, 2, 1]), &right), Ok(()));
    }

    #[test]
    fn without_a_token_it_is_open() {
        let door = Door::new(None);
        assert_eq!(
            door.admit(IpAddr::from([198, 51, 100, 7]), &headers(&["Bearer x"])),
            Ok(())
        );
        assert_eq!(
            format!("{:?}", Token::new(&Secret::new(TOKEN.into()))),
            "***"
        );
    }
}
