//! A TURN client that is a function of its inputs, for `probe`, `bench` and tests.
//!
//! It opens no socket and reads no clock. The caller sends what [`Client::poll_transmit`] yields, hands over what arrives,
//! and calls [`Client::handle_timeout`] when [`Client::poll_timeout`] says so. One client has at most one allocation:
//!
//! ```text
//! allocate ──401──▶ signed ──438──▶ signed anew ──▶ Allocated ──▶ kept alive by Refresh ──▶ release ──▶ Released
//! ```
//!
//! Over UDP requests are sent again as RFC 8489 §6.2.1 says; over streams never. Answers to signed requests count only
//! with a correct MESSAGE-INTEGRITY. What a server offers of RFC 8489's security features is used, and when it is missing from
//! a later challenge somebody took it away. Application data is neither copied nor queued: headers are made for the caller to
//! write, and what arrives is lent back as a slice of the input.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::base::{Family, Now, Secret, Transport};
use crate::wire::key::{self, user_hash};
use crate::wire::{
    ChannelNumber, Features, Header, Integrity, Key, Kind, Message, Method, PasswordAlgorithm,
    Request, TransactionId, attribute, channel_data, classify, features, indication,
};

/// The first retransmission comes after this time, every further one after twice the last (RFC 8489 §6.2.1).
const RTO: Duration = Duration::from_millis(500);
/// How often a request is sent over UDP: Rc of RFC 8489 §6.2.1.
const TRIES: u32 = 7;
/// After the last try a request waits this many [`RTO`]s: Rm of RFC 8489 §6.2.1.
const LAST_WAIT: u32 = 16;
/// How long a request over a stream waits for its answer: Ti of RFC 8489 §6.2.2.
const STREAM_WAIT: Duration = Duration::from_millis(39_500);
/// How often one request is signed anew before the server counts as unable to make up its mind.
const MAX_CHALLENGES: u8 = 3;
/// Permissions last 300 s (RFC 8656 §9); they and channels are renewed in time for several tries.
const RENEW_PEER: Duration = Duration::from_secs(240);

/// What a client needs to know from the start; realm and nonce it learns.
#[derive(Clone, Debug)]
pub struct Settings {
    /// USERNAME; empty for a server that wants none.
    pub username: String,
    /// The password that goes with it.
    pub password: Secret<String>,
    /// How messages travel: decides over retransmission and padding.
    pub transport: Transport,
    /// REQUESTED-ADDRESS-FAMILY; `None` leaves the attribute out, which means IPv4.
    pub family: Option<Family>,
    /// LIFETIME of the allocation in seconds; `None` leaves it to the server.
    pub lifetime_secs: Option<u32>,
}

/// One request that a client can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asks for the client's own address.
    Binding,
    /// Asks for an allocation.
    Allocate,
    /// Permits a peer's IP for 300 s; its port does not matter.
    CreatePermission(SocketAddr),
    /// Binds a channel to a peer for 600 s, and permits its IP.
    ChannelBind(ChannelNumber, SocketAddr),
    /// Asks for a lifetime in seconds; 0 ends the allocation.
    Refresh(u32),
}

impl Step {
    const fn method(self) -> Method {
        match self {
            Self::Binding => Method::Binding,
            Self::Allocate => Method::Allocate,
            Self::CreatePermission(_) => Method::CreatePermission,
            Self::ChannelBind(..) => Method::ChannelBind,
            Self::Refresh(_) => Method::Refresh,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Binding => "Binding",
            Self::Allocate => "Allocate",
            Self::CreatePermission(_) => "CreatePermission",
            Self::ChannelBind(..) => "ChannelBind",
            Self::Refresh(_) => "Refresh",
        })
    }
}

/// Why a request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server refused with this ERROR-CODE; 0 if it gave none.
    Refused(u16),
    /// No answer came.
    Timeout,
    /// All answers that came had a missing or wrong MESSAGE-INTEGRITY.
    Integrity,
    /// A challenge lacks what its nonce or an earlier one promises: somebody on the way has taken it out.
    BidDown,
    /// The answer lacks what it has to hold.
    Malformed,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Binding succeeded.
    Mapped {
        /// XOR-MAPPED-ADDRESS.
        mapped: SocketAddr,
        /// Time between the latest transmission and the answer.
        rtt: Duration,
    },
    /// Allocate succeeded. From now on the client keeps the allocation alive.
    Allocated {
        /// XOR-RELAYED-ADDRESS.
        relayed: SocketAddr,
        /// XOR-MAPPED-ADDRESS, where the server sent it.
        mapped: Option<SocketAddr>,
        /// LIFETIME in seconds.
        lifetime_secs: u32,
    },
    /// A permission is in place; the client renews it.
    Permitted(IpAddr),
    /// A channel is bound; the client renews it.
    ChannelBound(ChannelNumber, SocketAddr),
    /// The allocation lives on for this many seconds.
    Refreshed(u32),
    /// The allocation is gone, as asked.
    Released,
    /// A request failed.
    Failed(Step, Failure),
}

/// What a datagram or frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// Application data on a channel. Whether the channel is bound is for the caller to know.
    Channel(ChannelNumber, &'a [u8]),
    /// Application data in a Data indication, and the peer that sent it.
    Data(SocketAddr, &'a [u8]),
    /// An answer that took a request further: poll for what it led to.
    Answer,
    /// Nothing of ours, a duplicate, or an answer whose integrity is wrong.
    Ignored,
}

struct Transaction {
    id: TransactionId,
    step: Step,
    /// Kept for retransmission; empty over streams.
    bytes: Vec<u8>,
    signed: bool,
    sent: u32,
    sent_at: Instant,
    due: Instant,
    challenges: u8,
    /// An answer with wrong integrity came in.
    doubted: bool,
}

/// What the server challenged us with, and the key that follows from it.
struct Challenge {
    realm: String,
    nonce: String,
    key: Key,
    /// USERHASH, where the server wants that in place of USERNAME.
    user_hash: Option<[u8; 32]>,
    /// PASSWORD-ALGORITHMS as it came; empty if the server knows nothing of it.
    algorithms: Vec<u8>,
}

impl Challenge {
    fn new(
        settings: &Settings,
        realm: String,
        nonce: String,
        algorithms: &[u8],
        algorithm: PasswordAlgorithm,
    ) -> Self {
        let (username, password) = (settings.username.as_bytes(), &settings.password);
        let key = algorithm.key(username, &realm, password.expose().as_bytes());
        let features = Features::of(nonce.as_bytes()).unwrap_or_default();
        Self {
            key: key.signing(match algorithms {
                [] => Integrity::Sha1,
                _ => Integrity::Sha256,
            }),
            user_hash: (features.username_anonymity).then(|| user_hash(username, &realm)),
            algorithms: algorithms.to_vec(),
            realm,
            nonce,
        }
    }
}

struct Peer {
    address: SocketAddr,
    channel: Option<ChannelNumber>,
    renew: Instant,
}

/// A client with at most one allocation.
pub struct Client {
    settings: Settings,
    rng: StdRng,
    now: Instant,
    challenge: Option<Challenge>,
    transactions: Vec<Transaction>,
    peers: Vec<Peer>,
    relayed: Option<SocketAddr>,
    /// What the latest challenge named.
    realm: Option<String>,
    alternate: Option<SocketAddr>,
    refresh: Option<Instant>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

impl Client {
    /// A client that has asked for nothing yet. `seed` makes its transaction ids, so it has to be unpredictable outside
    /// tests.
    pub fn new(settings: Settings, now: Now, seed: [u8; 32]) -> Self {
        Self {
            settings: Settings {
                username: key::prepare(&settings.username).into_owned(),
                password: Secret::new(key::prepare(settings.password.expose()).into_owned()),
                ..settings
            },
            rng: StdRng::from_seed(seed),
            now: now.mono,
            challenge: None,
            transactions: Vec::new(),
            peers: Vec::new(),
            relayed: None,
            realm: None,
            alternate: None,
            refresh: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Signs from the first request on, for a server that this realm and nonce are known to be right for.
    #[must_use]
    pub fn challenged(mut self, realm: &str, nonce: &str) -> Self {
        self.challenge = Some(Challenge::new(
            &self.settings,
            realm.to_owned(),
            nonce.to_owned(),
            &[],
            PasswordAlgorithm::Md5,
        ));
        self
    }

    /// Begins a request. Its outcome is an [`Event`]; several may be under way.
    pub fn begin(&mut self, now: Now, step: Step) {
        self.advance(now);
        self.transmit(step, 0);
    }

    /// Ends the allocation; [`Event::Released`] follows.
    pub fn release(&mut self, now: Now) {
        self.refresh = None;
        self.peers.clear();
        self.begin(now, Step::Refresh(0));
    }

    /// The relayed transport address, while there is an allocation.
    pub const fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// The realm of the server, once it has asked for credentials.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// Where the latest refusal with 300 sends the client (RFC 8489 §10).
    pub const fn alternate(&self) -> Option<SocketAddr> {
        self.alternate
    }

    /// Takes one datagram, or one frame of a stream without its padding.
    pub fn handle_input<'a>(&mut self, now: Now, bytes: &'a [u8]) -> Input<'a> {
        self.advance(now);
        match classify(bytes) {
            Kind::ChannelData => channel_data::parse(bytes)
                .and_then(|(channel, data)| {
                    let data = bytes.get(usize::from(data.start)..usize::from(data.end))?;
                    Some(Input::Channel(channel, data))
                })
                .unwrap_or(Input::Ignored),
            Kind::Stun if indication::is_data(bytes) => indication::parse_data(bytes)
                .and_then(|data| {
                    let range = usize::from(data.data.start)..usize::from(data.data.end);
                    Some(Input::Data(data.peer, bytes.get(range)?))
                })
                .unwrap_or(Input::Ignored),
            Kind::Stun => self.handle_answer(bytes),
            Kind::Other => Input::Ignored,
        }
    }

    /// Sends requests again or gives them up, and renews what would end soon.
    pub fn handle_timeout(&mut self, now: Now) {
        self.advance(now);
        let mut index = 0;
        while let Some(transaction) = self.transactions.get_mut(index) {
            if transaction.due > self.now {
                index += 1;
            } else if self.settings.transport.is_stream() || transaction.sent >= TRIES {
                let transaction = self.transactions.swap_remove(index);
                let why = if transaction.doubted {
                    Failure::Integrity
                } else {
                    Failure::Timeout
                };
                self.fail(transaction.step, why);
            } else {
                self.transmits.push_back(transaction.bytes.clone());
                transaction.sent += 1;
                transaction.sent_at = self.now;
                transaction.due = self.now + wait(transaction.sent);
                index += 1;
            }
        }
        if self.refresh.is_some_and(|at| at <= self.now) {
            // Set again by the answer.
            self.refresh = None;
            self.transmit(Step::Refresh(self.settings.lifetime_secs.unwrap_or(600)), 0);
        }
        for index in 0..self.peers.len() {
            if let Some(peer) = self.peers.get_mut(index)
                && peer.renew <= self.now
            {
                peer.renew = self.now + RENEW_PEER;
                let step = match peer.channel {
                    Some(channel) => Step::ChannelBind(channel, peer.address),
                    None => Step::CreatePermission(peer.address),
                };
                self.transmit(step, 0);
            }
        }
    }

    /// When [`Self::handle_timeout`] has to be called; later than the latest `now` if it just was.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let transactions = self.transactions.iter().map(|one| one.due);
        let peers = self.peers.iter().map(|peer| peer.renew);
        transactions.chain(peers).chain(self.refresh).min()
    }

    /// The next message to send to the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What goes in front of `length` bytes of application data to `peer`: ChannelData where a channel is bound to it,
    /// else a Send indication. Good for any number of messages of that length.
    ///
    /// `None` if neither can carry that much.
    pub fn header_to(&mut self, peer: SocketAddr, length: usize) -> Option<Header> {
        let bound = self.peers.iter().find(|one| one.address == peer);
        match bound.and_then(|peer| peer.channel) {
            Some(channel) => {
                Header::channel_data(channel, length, self.settings.transport.is_stream())
            }
            None => {
                let id = self.transaction_id();
                Header::send_indication(peer, length, id.0)
            }
        }
    }

    fn handle_answer(&mut self, bytes: &[u8]) -> Input<'static> {
        let Ok(message) = Message::parse(bytes) else {
            return Input::Ignored;
        };
        let id = message.transaction_id();
        let Some(index) = self.transactions.iter().position(|one| one.id == id) else {
            return Input::Ignored;
        };
        let error = message.error_code();
        let Some(transaction) = self.transactions.get_mut(index) else {
            return Input::Ignored;
        };
        if message.method() != transaction.step.method()
            || !(message.is_success() || error.is_some())
        {
            return Input::Ignored;
        }
        let challenged = matches!(error, Some(401 | 438));
        let key = self.challenge.as_ref().map(|challenge| &challenge.key);
        if transaction.signed
            && !challenged
            && !key.is_some_and(|key| message.verify(key.integrity(), key))
        {
            // RFC 8489 §9.2.5: as if it had never come; on a stream no better one will.
            transaction.doubted = true;
            if self.settings.transport.is_stream() {
                let transaction = self.transactions.swap_remove(index);
                self.fail(transaction.step, Failure::Integrity);
                return Input::Answer;
            }
            return Input::Ignored;
        }
        let transaction = self.transactions.swap_remove(index);
        match error {
            Some(code) if challenged => self.handle_challenge(&message, &transaction, code),
            Some(code) => {
                if code == 300 {
                    self.alternate = message.alternate_server().ok().flatten();
                }
                self.fail(transaction.step, Failure::Refused(code));
            }
            None => {
                let rtt = self.now.saturating_duration_since(transaction.sent_at);
                match self.handle_success(&message, transaction.step, rtt) {
                    Some(event) => self.events.push_back(event),
                    None => self.fail(transaction.step, Failure::Malformed),
                }
            }
        }
        Input::Answer
    }

    /// 401 or 438: signs the request with what the server asks for, or gives it up.
    fn handle_challenge(&mut self, message: &Message<'_>, transaction: &Transaction, code: u16) {
        let text = |bytes: Option<&[u8]>| {
            bytes
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .map(str::to_owned)
        };
        let (realm, nonce) = (text(message.realm()), text(message.nonce()));
        if realm.is_some() {
            self.realm.clone_from(&realm);
        }
        let known = self.challenge.as_ref();
        // A 401 to what was signed for that very realm means wrong credentials.
        let hopeless = self.settings.username.is_empty()
            || transaction.challenges >= MAX_CHALLENGES
            || (code == 401
                && transaction.signed
                && known.is_some_and(|known| Some(&known.realm) == realm.as_ref()));
        let realm = realm.or_else(|| known.map(|known| known.realm.clone()));
        let (Some(realm), Some(nonce), false) = (realm, nonce, hopeless) else {
            return self.fail(transaction.step, Failure::Refused(code));
        };
        let promised = Features::of(nonce.as_bytes()).is_some_and(|said| said.password_algorithms)
            || known.is_some_and(|known| !known.algorithms.is_empty());
        let algorithms = message.attribute(attribute::PASSWORD_ALGORITHMS);
        let algorithm = match algorithms {
            None if promised => return self.fail(transaction.step, Failure::BidDown),
            None => PasswordAlgorithm::Md5,
            Some(list) => match features::first_known(list) {
                Some(algorithm) => algorithm,
                // RFC 8489 §9.2.5: not to be tried again.
                None => return self.fail(transaction.step, Failure::Refused(code)),
            },
        };
        let algorithms = algorithms.unwrap_or_default();
        let next = Challenge::new(&self.settings, realm, nonce, algorithms, algorithm);
        let weaker = known.is_some_and(|known| {
            (known.key.algorithm(), algorithm)
                == (PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5)
                || (known.user_hash.is_some() && next.user_hash.is_none())
        });
        if weaker {
            return self.fail(transaction.step, Failure::BidDown);
        }
        self.challenge = Some(next);
        self.transmit(transaction.step, transaction.challenges + 1);
    }

    /// `None` if the answer lacks something.
    fn handle_success(
        &mut self,
        message: &Message<'_>,
        step: Step,
        rtt: Duration,
    ) -> Option<Event> {
        Some(match step {
            Step::Binding => Event::Mapped {
                mapped: message.mapped_address().ok()??,
                rtt,
            },
            Step::Allocate => {
                let relayed = message.relayed_address().ok()??;
                let lifetime_secs = message.lifetime().ok()??;
                self.relayed = Some(relayed);
                self.refresh = Some(self.now + refresh_after(lifetime_secs));
                Event::Allocated {
                    relayed,
                    mapped: message.mapped_address().ok().flatten(),
                    lifetime_secs,
                }
            }
            Step::CreatePermission(peer) => {
                self.remember(peer, None);
                Event::Permitted(peer.ip())
            }
            Step::ChannelBind(channel, peer) => {
                self.remember(peer, Some(channel));
                Event::ChannelBound(channel, peer)
            }
            Step::Refresh(0) => {
                self.forget();
                Event::Released
            }
            Step::Refresh(_) => {
                let lifetime_secs = message.lifetime().ok()??;
                self.refresh = Some(self.now + refresh_after(lifetime_secs));
                Event::Refreshed(lifetime_secs)
            }
        })
    }

    fn remember(&mut self, address: SocketAddr, channel: Option<ChannelNumber>) {
        let renew = self.now + RENEW_PEER;
        match self.peers.iter_mut().find(|peer| peer.address == address) {
            Some(peer) => {
                peer.channel = channel.or(peer.channel);
                peer.renew = renew;
            }
            None => self.peers.push(Peer {
                address,
                channel,
                renew,
            }),
        }
    }

    /// There is no allocation any more, nor anything that hangs on it.
    fn forget(&mut self) {
        self.relayed = None;
        self.refresh = None;
        self.peers.clear();
    }

    fn fail(&mut self, step: Step, why: Failure) {
        match (step, why) {
            // The allocation was gone already, which is what was wanted.
            (Step::Refresh(0), Failure::Refused(437)) => {
                self.forget();
                self.events.push_back(Event::Released);
                return;
            }
            (Step::Refresh(_), Failure::Refused(437)) => self.forget(),
            (Step::CreatePermission(address) | Step::ChannelBind(_, address), _) => {
                self.peers.retain(|peer| peer.address != address);
            }
            _ => {}
        }
        self.events.push_back(Event::Failed(step, why));
    }

    /// Sends a request for the first time, signed if there is anything to sign with.
    fn transmit(&mut self, step: Step, challenges: u8) {
        let id = self.transaction_id();
        let request = Request::new(step.method(), id);
        let request = match step {
            Step::Binding => request,
            Step::Allocate => {
                let request = request.transport_udp();
                let request = match self.settings.family {
                    Some(family) => request.family(family),
                    None => request,
                };
                match self.settings.lifetime_secs {
                    Some(secs) => request.lifetime(secs),
                    None => request,
                }
            }
            Step::CreatePermission(peer) => request.peer(peer),
            Step::ChannelBind(channel, peer) => request.channel(channel).peer(peer),
            Step::Refresh(secs) => request.lifetime(secs),
        };
        let challenge = self
            .challenge
            .as_ref()
            .filter(|_| !matches!(step, Step::Binding));
        let bytes = match challenge {
            Some(challenge) => {
                let (realm, nonce) = (&challenge.realm, &challenge.nonce);
                let request = match challenge.user_hash {
                    Some(user) => request.anonymous_credentials(user, realm, nonce),
                    None => request.credentials(&self.settings.username, realm, nonce),
                };
                let request = match &challenge.algorithms[..] {
                    [] => request,
                    list => request.password_algorithms(list, challenge.key.algorithm()),
                };
                request.finish(Some(&challenge.key), false)
            }
            None => request.finish(None, false),
        };
        let stream = self.settings.transport.is_stream();
        self.transactions.push(Transaction {
            id,
            step,
            signed: challenge.is_some(),
            sent: 1,
            sent_at: self.now,
            due: self.now + if stream { STREAM_WAIT } else { wait(1) },
            challenges,
            doubted: false,
            bytes: if stream { Vec::new() } else { bytes.clone() },
        });
        self.transmits.push_back(bytes);
    }

    fn transaction_id(&mut self) -> TransactionId {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        TransactionId(id)
    }

    /// Time never goes back: it counts as the latest seen.
    fn advance(&mut self, now: Now) {
        self.now = self.now.max(now.mono);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("relayed", &self.relayed)
            .field("transactions", &self.transactions.len())
            .finish_non_exhaustive()
    }
}

/// How long the `sent`-th transmission waits for an answer (RFC 8489 §6.2.1): 500, 1000, 2000 ms and so on.
fn wait(sent: u32) -> Duration {
    if sent >= TRIES {
        RTO * LAST_WAIT
    } else {
        RTO * (1 << (sent - 1))
    }
}

/// A minute before the end leaves room for several tries; short lifetimes are refreshed half way.
fn refresh_after(lifetime_secs: u32) -> Duration {
    let lifetime = Duration::from_secs(lifetime_secs.max(2).into());
    lifetime
        .saturating_sub(Duration::from_secs(60))
        .max(lifetime / 2)
}
