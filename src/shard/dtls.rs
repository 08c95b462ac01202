//! DTLS sessions of one shard: how many there may be, and when each has to be looked at.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;

use crate::base::addr::subscriber;
use crate::base::{FiveTuple, Now};
use crate::stream::dtls::{
    ALERT_BYTES, ClientHello, Cookies, HANDSHAKE_TIMEOUT, RECORD_BYTES, Session, Terms,
    VERIFY_BYTES,
};
use crate::stream::{Admission, Admitted, Certificates};

/// Handshakes of one shard that are not complete; who comes then has to come again.
const HANDSHAKES: usize = 256;

/// The same of one address; those of others have places left then.
const HANDSHAKES_OF_ONE: u32 = 16;

/// Sessions of one shard. Each has proven its address, and is let go of when it does nothing.
const SESSIONS: usize = 16_384;

/// How long a session without an allocation may say nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Looks at one session are at least so far apart, whatever it wants.
const SOONEST: Duration = Duration::from_millis(5);

/// What is spoken with datagrams on a UDP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    /// TURN as it is.
    pub plain: bool,
    /// TURN inside of DTLS.
    pub dtls: bool,
}

impl Speaks {
    /// Whether datagrams have to be told apart.
    pub(super) const fn is_plain(self) -> bool {
        self.plain && !self.dtls
    }
}

impl Default for Speaks {
    fn default() -> Self {
        Self {
            plain: true,
            dtls: false,
        }
    }
}

/// What DTLS needs from others.
#[derive(Clone, Default)]
pub struct Dtls {
    /// What the server shows for itself; without one that is ECDSA nobody is answered.
    pub certificates: Option<Arc<Certificates>>,
    /// Sessions count as connections of their address.
    pub admission: Arc<Admission>,
}

impl std::fmt::Debug for Dtls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dtls")
            .field("certificates", &self.certificates.is_some())
            .finish_non_exhaustive()
    }
}

/// One session and what the shard knows about it.
pub(super) struct Guest {
    pub session: Session,
    /// Whether the handshake is complete.
    pub connected: bool,
    began: Instant,
    /// When anything came last.
    pub heard: Instant,
    /// The library gave it up.
    pub failed: bool,
    /// What it has decrypted is being handled: nobody else is to take anything from it.
    pub busy: bool,
    /// When it is looked at; its place among the deadlines.
    looked_at: Instant,
    _admitted: Admitted,
}

/// What becomes of a ClientHello.
pub(super) enum Greeting {
    /// An answer that anybody gets.
    Verify([u8; VERIFY_BYTES]),
    /// It asks for a version that is not spoken; the answer says so.
    Refuse([u8; ALERT_BYTES]),
    /// A session has begun.
    Begun,
    /// It is of the session that there is.
    Known,
    /// A session would take the place of the one that there is, which has to end first.
    Replaces,
    /// Nothing comes of it.
    Nothing,
}

/// All sessions of a shard.
pub(super) struct Sessions {
    settings: Dtls,
    /// Made with the first session.
    terms: Option<Terms>,
    cookies: Cookies,
    started: Instant,
    guests: HashMap<FiveTuple, Guest, RandomState>,
    deadlines: BTreeSet<(Instant, FiveTuple)>,
    /// Handshakes that are not complete, by address; an entry for each that has one.
    shaking: HashMap<IpAddr, u32, RandomState>,
    handshakes: usize,
    /// What sessions write into: as large as a record may be, once there is a session.
    pub buffer: Vec<u8>,
    /// Header and payload of what is sent next, side by side.
    pub plain: Vec<u8>,
}

impl Sessions {
    pub fn new(settings: Dtls, now: Instant, hasher: RandomState) -> Self {
        let mut key = [0; 64];
        for part in key.chunks_exact_mut(8) {
            part.copy_from_slice(&rand::random::<u64>().to_ne_bytes());
        }
        Self {
            settings,
            terms: None,
            cookies: Cookies::new(key),
            started: now,
            guests: HashMap::with_hasher(hasher.clone()),
            shaking: HashMap::with_hasher(hasher),
            deadlines: BTreeSet::new(),
            handshakes: 0,
            buffer: Vec::new(),
            plain: Vec::new(),
        }
    }

    /// New sessions show another certificate from now on.
    pub fn set_certificates(&mut self, certificates: Option<Arc<Certificates>>) {
        self.settings.certificates = certificates;
    }

    /// How many sessions there are whose handshake is complete.
    pub fn connected(&self) -> u64 {
        (self.guests.len() - self.handshakes) as u64
    }

    pub fn get_mut(&mut self, five_tuple: FiveTuple) -> Option<&mut Guest> {
        self.guests.get_mut(&five_tuple)
    }

    /// A session and the buffers beside it.
    pub fn work(&mut self, five_tuple: FiveTuple) -> Option<(&mut Guest, &mut [u8], &mut Vec<u8>)> {
        let guest = self.guests.get_mut(&five_tuple)?;
        Some((guest, &mut self.buffer, &mut self.plain))
    }

    /// All five-tuples for which `which` is true.
    pub fn of(&self, which: impl Fn(FiveTuple) -> bool) -> Vec<FiveTuple> {
        (self.guests.keys().copied())
            .filter(|five_tuple| which(*five_tuple))
            .collect()
    }

    /// Takes the ClientHello of `from`. Nothing is kept before its cookie is good.
    pub fn greet(&mut self, now: Now, from: FiveTuple, hello: &ClientHello<'_>) -> Greeting {
        let since = now.mono.saturating_duration_since(self.started);
        let client = from.client();
        if hello.too_old {
            return Greeting::Refuse(hello.refusal());
        }
        if hello.message == 0 {
            if hello.record().len() < VERIFY_BYTES {
                return Greeting::Nothing;
            }
            return Greeting::Verify(self.cookies.verify_request(since, client, hello));
        }
        if let Some(guest) = self.guests.get(&from)
            && guest.session.began_with(hello)
        {
            return Greeting::Known;
        }
        let good = (hello.message == 1).then(|| self.cookies.verify(since, client, hello));
        let Some(cookie) = good.flatten() else {
            return Greeting::Nothing;
        };
        if self.guests.contains_key(&from) {
            return Greeting::Replaces;
        }
        let of_one = (self.shaking.get(&subscriber(client.ip()))).copied();
        if self.handshakes >= HANDSHAKES
            || of_one.is_some_and(|count| count >= HANDSHAKES_OF_ONE)
            || self.guests.len() >= SESSIONS
        {
            return Greeting::Nothing;
        }
        let identity = (self.settings.certificates.as_ref()).and_then(|served| served.identity());
        let (Some(identity), Some(terms)) = (identity, self.terms()) else {
            return Greeting::Nothing;
        };
        let Some(admitted) = self.settings.admission.admit(client.ip()) else {
            return Greeting::Nothing;
        };
        let Ok(session) = Session::begin(&terms, &identity, now.mono, hello, cookie) else {
            return Greeting::Nothing;
        };
        self.buffer.resize(RECORD_BYTES, 0);
        self.handshakes += 1;
        *self.shaking.entry(subscriber(client.ip())).or_default() += 1;
        self.deadlines.insert((now.mono, from));
        let guest = Guest {
            session,
            connected: false,
            began: now.mono,
            heard: now.mono,
            failed: false,
            busy: false,
            looked_at: now.mono,
            _admitted: admitted,
        };
        self.guests.insert(from, guest);
        Greeting::Begun
    }

    fn terms(&mut self) -> Option<Terms> {
        if self.terms.is_none() {
            match Terms::new() {
                Ok(terms) => self.terms = Some(terms),
                Err(error) => tracing::error!(%error, "DTLS cannot be spoken"),
            }
        }
        self.terms.clone()
    }

    /// The handshake of `five_tuple` is complete.
    pub fn connect(&mut self, five_tuple: FiveTuple) {
        if let Some(guest) = self.guests.get_mut(&five_tuple)
            && !std::mem::replace(&mut guest.connected, true)
        {
            self.shaken(five_tuple);
        }
    }

    /// A handshake of the client on `five_tuple` is complete or over.
    fn shaken(&mut self, five_tuple: FiveTuple) {
        self.handshakes -= 1;
        let address = subscriber(five_tuple.client().ip());
        if let Some(count) = self.shaking.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.shaking.remove(&address);
            }
        }
    }

    /// Looks at `five_tuple` again at `wanted`, or when its time may be over. A look that comes earlier will do: packets
    /// put nothing off.
    pub fn look_again(&mut self, five_tuple: FiveTuple, now: Instant, wanted: Instant) {
        let Some(guest) = self.guests.get_mut(&five_tuple) else {
            return;
        };
        let latest = if guest.connected {
            // Whoever has an allocation is looked at as well, and stays.
            guest.heard.max(now) + IDLE
        } else {
            guest.began + HANDSHAKE_TIMEOUT
        };
        let next = wanted.min(latest).max(now + SOONEST);
        if guest.looked_at <= now || next < guest.looked_at {
            self.deadlines.remove(&(guest.looked_at, five_tuple));
            self.deadlines.insert((next, five_tuple));
            guest.looked_at = next;
        }
    }

    /// Whether the time of `guest` is over.
    pub fn is_over(guest: &Guest, now: Instant, allocated: bool) -> bool {
        match (guest.connected, allocated) {
            (false, _) => now >= guest.began + HANDSHAKE_TIMEOUT,
            (true, false) => now >= guest.heard + IDLE,
            (true, true) => false,
        }
    }

    /// Looks no more at what is not there.
    pub fn forget_deadline(&mut self, deadline: (Instant, FiveTuple)) {
        self.deadlines.remove(&deadline);
    }

    /// The session that has to be looked at first, and when.
    pub fn next(&self) -> Option<(Instant, FiveTuple)> {
        self.deadlines.first().copied()
    }

    /// Forgets a session; false if there was none.
    pub fn remove(&mut self, five_tuple: FiveTuple) -> bool {
        let Some(guest) = self.guests.remove(&five_tuple) else {
            return false;
        };
        self.deadlines.remove(&(guest.looked_at, five_tuple));
        if !guest.connected {
            self.shaken(five_tuple);
        }
        true
    }
}
