//! Certificates: loading and checking what an operator names, self-signing, and serving one that may change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::challenges::{Challenges, names_acme_alone};
use super::dtls::Identity;
use crate::base::Secret;

/// How long a self-signed certificate is good for: the longest that browsers accept.
pub const SELF_SIGNED_LIFETIME: Duration = Duration::from_secs(397 * 24 * 3600);

/// Certificate files are small; anything larger is another file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A certificate chain and its private key, known to belong together.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// The same for DTLS, if it can serve there.
    identity: Option<Arc<Identity>>,
    /// DNS names it is for, in lower case; those that begin with `*.` stand for one label more.
    names: Arc<[String]>,
    not_before_unix: u64,
    not_after_unix: u64,
}

impl Certificate {
    /// Takes a PEM chain, leaf first, and its key in PEM (PKCS #8, SEC 1 or PKCS #1).
    ///
    /// # Errors
    /// What is wrong with either; without the name of a file.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Fault> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(Fault::CertificatePem)?;
        let leaf = chain.first().ok_or(Fault::NoCertificate)?;
        let (names, not_before_unix, not_after_unix) = facts(leaf)?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound if holds(key, b"ENCRYPTED PRIVATE KEY") => Fault::EncryptedKey,
            pem::Error::NoItemsFound => Fault::NoKey,
            error => Fault::KeyPem(error),
        })?;
        let signing = aws_lc_rs::sign::any_supported_type(&private).map_err(Fault::KeyKind)?;
        let identity = Identity::new(leaf, private.secret_der()).map(Arc::new);
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            // A key that cannot tell its public half cannot be compared: a handshake shows whether it fits.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Self {
                    key: Arc::new(certified),
                    identity,
                    names,
                    not_before_unix,
                    not_after_unix,
                })
            }
            Err(rustls::Error::InconsistentKeys(_)) => Err(Fault::KeyMismatch),
            Err(error) => Err(Fault::Leaf(error.to_string())),
        }
    }

    /// The DNS names that the leaf is for (subjectAltName), in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// From when on the leaf is good, in seconds since the Unix epoch.
    pub const fn not_before_unix(&self) -> u64 {
        self.not_before_unix
    }

    /// When the leaf expires, in seconds since the Unix epoch.
    pub const fn not_after_unix(&self) -> u64 {
        self.not_after_unix
    }

    /// Whether DTLS can be spoken with it: it takes an ECDSA key.
    pub const fn serves_dtls(&self) -> bool {
        self.identity.is_some()
    }

    /// Whether certificates of others come with it, which DTLS does not show.
    pub fn has_intermediates(&self) -> bool {
        self.key.cert.len() > 1
    }

    /// The server's own certificate in DER.
    pub fn leaf(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |leaf| leaf.as_ref())
    }
}

fn holds(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// For whom, from when and until when the leaf is good.
fn facts(leaf: &CertificateDer<'_>) -> Result<(Arc<[String]>, u64, u64), Fault> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| Fault::Leaf(error.to_string()))?;
    let unix = |time: i64| u64::try_from(time).unwrap_or_default();
    let validity = parsed.validity();
    // A certificate whose names cannot be read serves all the same, as the one for every name.
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = (names.iter())
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    Ok((
        names,
        unix(validity.not_before.timestamp()),
        unix(validity.not_after.timestamp()),
    ))
}

/// Reads a certificate chain and its key.
///
/// # Errors
/// Which file is at fault, why, and what helps.
pub fn load(certificate: &Path, key: &Path) -> Result<Certificate, CertificateError> {
    let failed = |file: &Path, fault| CertificateError {
        file: file.to_path_buf(),
        fault,
    };
    let chain = read(certificate).map_err(|error| failed(certificate, Fault::Read(error)))?;
    let private = read(key).map_err(|error| failed(key, Fault::Read(error)))?;
    let private = Secret::new(private);
    Certificate::from_pem(&chain, private.expose()).map_err(|fault| {
        let file = if fault.concerns_key() {
            key
        } else {
            certificate
        };
        failed(file, fault)
    })
}

/// Reads a file of bounded size.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let length = std::fs::metadata(file)?.len();
    if length > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 1 MiB, which no certificate or key is",
        ));
    }
    std::fs::read(file)
}

/// A certificate or key that cannot be used: which file, why, what helps.
#[derive(Debug)]
pub struct CertificateError {
    /// The file at fault.
    pub file: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.fault)
    }
}

impl std::error::Error for CertificateError {}

/// What is wrong with a certificate or a key.
#[derive(Debug)]
pub enum Fault {
    /// The file cannot be read.
    Read(io::Error),
    /// No certificate in the file.
    NoCertificate,
    /// A certificate's PEM is damaged.
    CertificatePem(pem::Error),
    /// The leaf is no certificate that TLS can use.
    Leaf(String),
    /// No private key in the file.
    NoKey,
    /// The key is protected by a passphrase.
    EncryptedKey,
    /// The key's PEM is damaged.
    KeyPem(pem::Error),
    /// A key of a kind that TLS has no use for.
    KeyKind(rustls::Error),
    /// The key belongs to another certificate.
    KeyMismatch,
}

impl Fault {
    /// Whether the key's file is at fault, rather than the certificate's. A mismatch is told of the key.
    const fn concerns_key(&self) -> bool {
        match self {
            Self::Read(_) | Self::NoCertificate | Self::CertificatePem(_) | Self::Leaf(_) => false,
            Self::NoKey
            | Self::EncryptedKey
            | Self::KeyPem(_)
            | Self::KeyKind(_)
            | Self::KeyMismatch => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot be read ({error}); let the user that turnix runs as read it, for instance through its group"
            ),
            Self::Read(error) => write!(f, "cannot be read ({error})"),
            Self::NoCertificate => f.write_str(
                "holds no certificate: expected PEM, \"-----BEGIN CERTIFICATE-----\", the server's own first; \
                 convert DER with: openssl x509 -inform der -in FILE",
            ),
            Self::CertificatePem(error) => write!(
                f,
                "holds a damaged certificate ({error}); copy the file again from where it was issued"
            ),
            Self::Leaf(error) => write!(
                f,
                "its first certificate cannot be used for TLS ({error}); the server's own has to come first"
            ),
            Self::NoKey => f.write_str(
                "holds no private key: expected PEM, \"-----BEGIN PRIVATE KEY-----\" (or RSA or EC PRIVATE KEY)",
            ),
            Self::EncryptedKey => f.write_str(
                "the private key has a passphrase, which a server cannot type; \
                 remove it with: openssl pkey -in FILE -out NEW",
            ),
            Self::KeyPem(error) => write!(
                f,
                "holds a damaged private key ({error}); copy the file again from where it was made"
            ),
            Self::KeyKind(error) => write!(
                f,
                "the private key is of a kind that TLS has no use for ({error}); \
                 use ECDSA P-256 or P-384, RSA from 2048 bits, or Ed25519"
            ),
            Self::KeyMismatch => f.write_str(
                "the private key belongs to another certificate; name the pair that was issued together",
            ),
        }
    }
}

impl std::error::Error for Fault {}

/// A new certificate that nobody vouches for, and its key.
#[derive(Debug)]
pub struct SelfSigned {
    /// The certificate in PEM.
    pub certificate_pem: String,
    /// The private key in PEM, PKCS #8.
    pub key_pem: Secret<String>,
}

/// Makes an ECDSA P-256 certificate for `names` (host names and IP addresses, at least one), good for 397 days from
/// an hour before `now_unix` (seconds since the Unix epoch), so that clients whose clocks are behind take it too.
///
/// # Errors
/// A name that certificates cannot carry.
pub fn self_signed(names: &[String], now_unix: u64) -> Result<SelfSigned, SelfSignError> {
    let failed = |error: rcgen::Error| SelfSignError(error.to_string());
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    let not_before = rcgen::date_time_ymd(1970, 1, 1)
        + Duration::from_secs(now_unix).saturating_sub(Duration::from_secs(3600));
    params.not_before = not_before;
    params.not_after = not_before + SELF_SIGNED_LIFETIME;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = names.first() {
        // Subjects are limited to 64 characters; clients look at the alternative names anyway.
        let common_name: String = name.chars().take(64).collect();
        (params.distinguished_name).push(rcgen::DnType::CommonName, common_name);
    }
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(SelfSigned {
        certificate_pem: certificate.pem(),
        key_pem: Secret::new(key.serialize_pem()),
    })
}

/// A self-signed certificate could not be made.
#[derive(Debug)]
pub struct SelfSignError(String);

impl fmt::Display for SelfSignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no self-signed certificate could be made: {}; its names must be ASCII host names or IP addresses",
            self.0
        )
    }
}

impl std::error::Error for SelfSignError {}

/// The certificates that handshakes use from now on; replaced without touching a connection.
#[derive(Debug)]
pub struct Certificates {
    /// For every name that no other is for, and for clients that ask for none.
    current: RwLock<Certificate>,
    others: RwLock<Vec<Certificate>>,
    /// Names that are this server's whatever certificates say, in lower case.
    claimed: RwLock<Vec<String>>,
    challenges: Arc<Challenges>,
}

impl Certificates {
    /// Serves `certificate`.
    pub fn new(certificate: Certificate) -> Arc<Self> {
        Self::answering(certificate, Arc::default())
    }

    /// Serves `certificate`, and to an authority that looks for it (TLS-ALPN-01) what `challenges` hold.
    pub fn answering(certificate: Certificate, challenges: Arc<Challenges>) -> Arc<Self> {
        Arc::new(Self {
            current: RwLock::new(certificate),
            others: RwLock::default(),
            claimed: RwLock::default(),
            challenges,
        })
    }

    /// Serves `certificate` from the next handshake on; whether its chain is another one.
    pub fn replace(&self, certificate: Certificate) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let differs = current.key.cert != certificate.key.cert;
        *current = certificate;
        differs
    }

    /// What DTLS shows from the next handshake on; `None` if the certificate cannot serve there.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.identity.clone()
    }

    /// Serves `certificates` beside it, each to clients that ask for one of its names; whether they are other ones.
    pub fn replace_others(&self, certificates: Vec<Certificate>) -> bool {
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        let chains = |all: &[Certificate]| -> Vec<_> {
            all.iter().map(|one| one.key.cert.clone()).collect()
        };
        let differ = chains(&others) != chains(&certificates);
        *others = certificates;
        differ
    }

    /// Makes `names` this server's, beside those of its certificates: see [`knows`](Self::knows).
    pub fn claim(&self, names: impl IntoIterator<Item = String>) {
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        *claimed = (names.into_iter())
            .map(|name| name.to_ascii_lowercase())
            .collect();
    }

    /// Whether `name` is one of this server's: a certificate is for it, it was claimed, or an authority is about to look
    /// whether it leads here.
    pub fn knows(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let claimed = self.claimed.read().unwrap_or_else(PoisonError::into_inner);
        claimed.contains(&name)
            || self.find(&name).is_some()
            || self.challenges.certificate(&name).is_some()
    }

    /// When the served certificate expires, in seconds since the Unix epoch.
    pub fn not_after_unix(&self) -> u64 {
        (self.current.read().unwrap_or_else(PoisonError::into_inner)).not_after_unix
    }

    /// The first name of each certificate beside it, and when that expires, in seconds since the Unix epoch.
    pub fn others_not_after_unix(&self) -> Vec<(String, u64)> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let first = |one: &Certificate| one.names.first().cloned().unwrap_or_default();
        (others.iter())
            .map(|one| (first(one), one.not_after_unix))
            .collect()
    }

    /// The certificate for `name`, which is in lower case: one that has it as it is before one that has a wildcard, in
    /// the order they were given.
    fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let wildcard = (name.split_once('.')).map(|(_, parent)| format!("*.{parent}"));
        let all = || std::iter::once(&*current).chain(others.iter());
        [Some(name), wildcard.as_deref()]
            .into_iter()
            .flatten()
            .find_map(|wanted| {
                let is_for = |one: &&Certificate| one.names.iter().any(|name| name == wanted);
                all().find(is_for)
            })
            .map(|one| Arc::clone(&one.key))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(names_acme_alone) {
            return self.challenges.certificate(hello.server_name()?);
        }
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        if let Some(found) = asked.and_then(|name| self.find(&name)) {
            return Some(found);
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.key))
    }
}

/// TLS 1.2 and 1.3 with whatever `certificates` serve, offering `alpn` in that order; no early data.
///
/// # Errors
/// The cryptographic provider lacks a protocol version, which would be a bug.
pub fn server_config(
    certificates: Arc<Certificates>,
    alpn: Vec<Vec<u8>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn;
    Ok(Arc::new(config))
}
