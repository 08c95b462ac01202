//! Values that must not reach a log by accident.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use zeroize::Zeroize;

/// A secret: masked when printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes custody of `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The secret itself; callers keep it no longer than they need it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// How much of the address of a client or peer logs, records and the admin API show. The server's own are no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum PiiMode {
    /// The whole address.
    #[default]
    Full,
    /// The /24 or /48 prefix.
    Truncate,
    /// A keyed hash, stable for the life of the process.
    Hash,
    /// Nothing at all.
    Off,
}

static MODE: AtomicU8 = AtomicU8::new(PiiMode::Full as u8);

impl PiiMode {
    /// Sets what `Pii` prints in this process.
    pub fn install(self) {
        MODE.store(self as u8, Ordering::Relaxed);
    }

    /// What `Pii` prints in this process.
    pub fn current() -> Self {
        match MODE.load(Ordering::Relaxed) {
            1 => Self::Truncate,
            2 => Self::Hash,
            3 => Self::Off,
            _ => Self::Full,
        }
    }
}

/// An address of a person, printed as the operator's privacy mode allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pii<T>(pub T);

impl fmt::Display for Pii<IpAddr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PiiMode::current() {
            PiiMode::Full => write!(f, "{}", self.0),
            PiiMode::Truncate => match self.0.to_canonical() {
                IpAddr::V4(ip) => {
                    let [a, b, c, _] = ip.octets();
                    write!(f, "{}", Ipv4Addr::new(a, b, c, 0))
                }
                IpAddr::V6(ip) => {
                    write!(f, "{}", Ipv6Addr::from_bits(ip.to_bits() & (!0 << 80)))
                }
            },
            PiiMode::Hash => write!(f, "ip-{:016x}", hash(self.0)),
            PiiMode::Off => f.write_str("-"),
        }
    }
}

impl fmt::Display for Pii<SocketAddr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PiiMode::current() {
            PiiMode::Full => write!(f, "{}", self.0),
            PiiMode::Off => f.write_str("-"),
            PiiMode::Truncate | PiiMode::Hash => {
                write!(f, "{}:{}", Pii(self.0.ip()), self.0.port())
            }
        }
    }
}

impl<T> fmt::Debug for Pii<T>
where
    Self: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Keyed by the process: no table of all addresses reverses it, and it says nothing after a restart.
fn hash(ip: IpAddr) -> u64 {
    use std::hash::BuildHasher;
    use std::sync::OnceLock;
    static KEY: OnceLock<std::hash::RandomState> = OnceLock::new();
    KEY.get_or_init(std::hash::RandomState::new)
        .hash_one(ip.to_canonical())
}
