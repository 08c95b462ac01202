//! What an ACME authority finds when it looks whether a name leads to this server: a token over HTTP (HTTP-01, RFC 8555
//! §8.3), or a certificate of one handshake (TLS-ALPN-01, RFC 8737).
//!
//! Only while an order is under way is there anything to be found, and only what belongs to it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// The ALPN name of TLS-ALPN-01 (RFC 8737 §6.2).
pub(super) const ALPN_ACME: &[u8] = b"acme-tls/1";

/// Whether a client offers [`ALPN_ACME`] and nothing else, as an authority has to (RFC 8737 §3).
pub(super) fn names_acme_alone<'a>(mut offered: impl Iterator<Item = &'a [u8]>) -> bool {
    offered.next() == Some(ALPN_ACME) && offered.next().is_none()
}

/// The answers to challenges that are under way; whoever makes one holds it as an [`Answer`].
#[derive(Debug, Default)]
pub struct Challenges(RwLock<Pending>);

#[derive(Debug, Default)]
struct Pending {
    /// Key authorizations by token.
    tokens: HashMap<String, String>,
    /// Certificates by name, in lower case.
    certificates: HashMap<String, Arc<CertifiedKey>>,
}

/// One answer; dropping it takes it back.
#[derive(Debug)]
pub struct Answer {
    challenges: Arc<Challenges>,
    to: To,
}

#[derive(Debug)]
enum To {
    Token(String),
    Name(String),
}

impl Challenges {
    /// Answers whoever asks for `token` over HTTP with `key_authorization` (HTTP-01).
    #[must_use]
    pub fn answer_token(self: &Arc<Self>, token: &str, key_authorization: &str) -> Answer {
        let token = token.to_owned();
        let mut pending = self.write();
        (pending.tokens).insert(token.clone(), key_authorization.to_owned());
        self.answer(To::Token(token))
    }

    /// Answers whoever offers `acme-tls/1` for `name` with a certificate that holds `digest`, the SHA-256 of the key
    /// authorization (TLS-ALPN-01).
    ///
    /// # Errors
    /// Why no such certificate can be made: a name that certificates cannot carry.
    pub fn answer_handshake(
        self: &Arc<Self>,
        name: &str,
        digest: &[u8; 32],
    ) -> Result<Answer, String> {
        let name = name.to_ascii_lowercase();
        let key = certificate(&name, digest)?;
        self.write().certificates.insert(name.clone(), key);
        Ok(self.answer(To::Name(name)))
    }

    /// The key authorization of `token`, if it belongs to a challenge that is under way.
    pub fn key_authorization(&self, token: &str) -> Option<String> {
        self.read().tokens.get(token).cloned()
    }

    /// What TLS-ALPN-01 finds for `name`.
    pub(super) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.read().certificates.get(&name).cloned()
    }

    fn answer(self: &Arc<Self>, to: To) -> Answer {
        Answer {
            challenges: Arc::clone(self),
            to,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Pending> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pending> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut pending = self.challenges.write();
        match &self.to {
            To::Token(token) => drop(pending.tokens.remove(token)),
            To::Name(name) => drop(pending.certificates.remove(name)),
        }
    }
}

/// Self-signed, for `name` alone, with `digest` in the extension acmeIdentifier (RFC 8737 §3).
fn certificate(name: &str, digest: &[u8; 32]) -> Result<Arc<CertifiedKey>, String> {
    let failed = |error: rcgen::Error| error.to_string();
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing =
        aws_lc_rs::sign::any_supported_type(&private).map_err(|error| error.to_string())?;
    let chain = vec![certificate.der().clone()];
    Ok(Arc::new(CertifiedKey::new(chain, signing)))
}
