//! One order, from the account to the certificate (RFC 8555 §7).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationHandle, AuthorizationStatus, ChallengeType, Error,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::client::Https;
use super::store::Store;
use super::trouble::{Trouble, is_gone};
use super::{Challenge, Settings};
use crate::base::{Clock, Secret};
use crate::stream::{Answer, Certificate, Challenges};

/// How often, and for how long, the authority is asked whether it has looked, or signed.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(300))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// The account's file. `email` is what the authority was told.
#[derive(Serialize, Deserialize)]
struct Kept {
    email: Option<String>,
    credentials: AccountCredentials,
}

/// An authority of several machines may refuse nonces of its own for a while (RFC 8555 §6.5). Every request is repeated
/// twice for that, and the whole order so often.
const TRIES: usize = 3;

/// Between two such tries.
const PAUSE: Duration = Duration::from_secs(1);

/// A chain and its key in PEM, and the same as it is served.
pub(super) type Issued = (Secret<String>, Certificate);

/// Orders a certificate and proves its names by `kind`. `told_unix` becomes the time before which the authority does not
/// want to be asked again.
pub(super) async fn place(
    settings: &Settings,
    store: &Store,
    challenges: &Arc<Challenges>,
    kind: Challenge,
    told_unix: &Arc<AtomicU64>,
) -> Result<Issued, Trouble> {
    let mut tries = 1;
    loop {
        match attempt(settings, store, challenges, kind, told_unix).await {
            Err(trouble) if trouble.passes && tries < TRIES => {
                tracing::debug!(%trouble, "tls.acme: trying again");
                tries += 1;
                sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}

async fn attempt(
    settings: &Settings,
    store: &Store,
    challenges: &Arc<Challenges>,
    kind: Challenge,
    told_unix: &Arc<AtomicU64>,
) -> Result<Issued, Trouble> {
    let explain = |error: Error| Trouble::of(&error, settings, kind);
    let https = || {
        Https::new(Arc::clone(&settings.roots), Arc::clone(told_unix))
            .map(Box::new)
            .map_err(|error| explain(Error::Other(error.into())))
    };
    let names: Vec<Identifier> = (settings.names.iter().cloned())
        .map(Identifier::Dns)
        .collect();
    let wanted = NewOrder::new(&names);
    let account = match restore(settings, store, https()?).await? {
        Some(account) => account,
        None => register(settings, store, https()?).await?,
    };
    let mut order = match account.new_order(&wanted).await {
        Err(error) if is_gone(&error) => {
            tracing::warn!("tls.acme: the authority does not know the account: making another");
            let account = register(settings, store, https()?).await?;
            account.new_order(&wanted).await.map_err(explain)?
        }
        ordered => ordered.map_err(explain)?,
    };
    // Taken back when this ends, however it ends.
    let answers = answer(&mut order, challenges, settings, kind).await?;
    match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(refused(&mut order, settings, kind, None).await),
        Err(error) => return Err(refused(&mut order, settings, kind, Some(error)).await),
    }
    drop(answers);
    let (request, key) = request(settings)?;
    order.finalize_csr(&request).await.map_err(explain)?;
    let chain = order.poll_certificate(&PATIENCE).await.map_err(explain)?;
    let chain = chain.trim_end();
    let pem = Secret::new(format!("{chain}\n{}", key.expose()));
    let certificate = Certificate::from_pem(chain.as_bytes(), key.expose().as_bytes())
        .map_err(|fault| Trouble::unusable(&fault))?;
    if certificate.not_after_unix() <= Clock.now().unix_secs() {
        return Err(Trouble::expired());
    }
    Ok((pem, certificate))
}

/// The account that is kept, if there is one; its email is brought up to date.
async fn restore(
    settings: &Settings,
    store: &Store,
    https: Box<Https>,
) -> Result<Option<Account>, Trouble> {
    let explain = |error: Error| Trouble::of(&error, settings, Challenge::Http01);
    let kept = store
        .account()
        .map_err(|error| Trouble::state(store, &error))?;
    let Some(text) = kept else {
        return Ok(None);
    };
    let kept: Kept = match serde_json::from_str(text.expose()) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, "tls.acme: the kept account cannot be read: making another");
            return Ok(None);
        }
    };
    let account = (Account::builder_with_http(https)
        .from_credentials(kept.credentials)
        .await)
        .map_err(explain)?;
    if kept.email != settings.email {
        let contact = contact(settings);
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        match account.update_contacts(&contact).await {
            Err(error) if is_gone(&error) => return Ok(None),
            updated => updated.map_err(explain)?,
        }
        // The credentials were taken apart: read once more.
        if let Ok(Kept { credentials, .. }) = serde_json::from_str(text.expose()) {
            keep(settings, store, credentials)?;
        }
    }
    Ok(Some(account))
}

/// A new account. Whoever configures ACME agrees to the authority's terms, as the documentation says.
async fn register(
    settings: &Settings,
    store: &Store,
    https: Box<Https>,
) -> Result<Account, Trouble> {
    let contact = contact(settings);
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let wanted = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let (account, credentials) = Account::builder_with_http(https)
        .create(&wanted, settings.directory.clone(), None)
        .await
        .map_err(|error| Trouble::of(&error, settings, Challenge::Http01))?;
    keep(settings, store, credentials)?;
    tracing::info!(
        account = account.id(),
        "tls.acme: registered with the authority"
    );
    Ok(account)
}

fn contact(settings: &Settings) -> Option<String> {
    settings
        .email
        .as_ref()
        .map(|email| format!("mailto:{email}"))
}

fn keep(
    settings: &Settings,
    store: &Store,
    credentials: AccountCredentials,
) -> Result<(), Trouble> {
    let kept = Kept {
        email: settings.email.clone(),
        credentials,
    };
    let text =
        serde_json::to_string(&kept).map_err(|error| Trouble::state(store, &error.into()))?;
    (store.keep_account(&Secret::new(text))).map_err(|error| Trouble::state(store, &error))
}

/// Has every challenge of `order` answered, and tells the authority to look.
async fn answer(
    order: &mut Order,
    challenges: &Arc<Challenges>,
    settings: &Settings,
    kind: Challenge,
) -> Result<Vec<Answer>, Trouble> {
    let explain = |error: Error| Trouble::of(&error, settings, kind);
    let mut answers = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(explain)?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            _ => return Err(Trouble::of_authorization(&authorization, settings, kind)),
        }
        let name = name(&authorization);
        if !settings.names.contains(&name) {
            return Err(Trouble::not_asked(&name));
        }
        let wanted = match kind {
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Http01 => ChallengeType::Http01,
        };
        let mut challenge =
            (authorization.challenge(wanted)).ok_or_else(|| Trouble::not_offered(&name, kind))?;
        let proof = challenge.key_authorization();
        if !is_token(&challenge.token) {
            return Err(Trouble::not_asked(&name));
        }
        let answer = match kind {
            Challenge::Http01 => challenges.answer_token(&challenge.token, proof.as_str()),
            Challenge::TlsAlpn01 => {
                let digest = proof.digest();
                let digest: &[u8; 32] =
                    (digest.as_ref().try_into()).map_err(|_| explain(Error::Crypto))?;
                (challenges.answer_handshake(&name, digest))
                    .map_err(|error| Trouble::request(&error))?
            }
        };
        answers.push(answer);
        challenge.set_ready().await.map_err(explain)?;
    }
    Ok(answers)
}

/// RFC 8555 §8.3: base64url.
fn is_token(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && (text.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn name(authorization: &AuthorizationHandle<'_>) -> String {
    authorization.identifier().to_string()
}

/// Why an order did not become ready: what the authority found when it looked, if that can be had.
async fn refused(
    order: &mut Order,
    settings: &Settings,
    kind: Challenge,
    error: Option<Error>,
) -> Trouble {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let failed = (authorization.refresh().await).is_ok_and(|state| {
            !matches!(
                state.status,
                AuthorizationStatus::Valid | AuthorizationStatus::Pending
            )
        });
        if failed {
            return Trouble::of_authorization(&authorization, settings, kind);
        }
    }
    match error {
        Some(error) => Trouble::of(&error, settings, kind),
        None => Trouble::of(&Error::Str("a reason"), settings, kind),
    }
}

/// What the authority is to sign, in DER, and the private key that goes with it, in PEM.
fn request(settings: &Settings) -> Result<(Vec<u8>, Secret<String>), Trouble> {
    let failed = |error: rcgen::Error| Trouble::request(&error.to_string());
    let mut params = rcgen::CertificateParams::new(settings.names.clone()).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((request.der().to_vec(), Secret::new(key.serialize_pem())))
}
