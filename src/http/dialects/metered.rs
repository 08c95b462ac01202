//! Metered: credentials that an application makes, lists, disables, enables and deletes, each with a token of its own that
//! asks for ICE servers and nothing else.
//!
//! The ledger knows which there are. That one is disabled is a revocation by its key; what the operator has revoked the key
//! cannot enable.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::access::{RevokedKind, rest};
use crate::base::Clock;
use crate::cluster::ledger::{By, LedgerError, Managed};
use crate::http::ShardControl;
use crate::http::ice::{ApiKey, Minted, Offer, Refusal, Service, synchronise};
use crate::http::serve::Peer;

use super::{Shown, Wanted, answer, minted, one_by_one};

/// Credentials on one page of a list.
const PAGE: usize = 50;

/// Bytes of a token's MAC.
const TOKEN_MAC: usize = 16;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Asked {
    api_key: Option<String>,
    secret_key: Option<String>,
    region: Option<String>,
    label: Option<String>,
    page: Option<usize>,
    all: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Order {
    expiry_in_seconds: Value,
    label: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    username: Option<String>,
}

fn refused(refusal: impl Into<Refusal>) -> Response {
    let refusal = refusal.into();
    refusal.mark(answer(refusal.code, json!({ "message": refusal.why })))
}

impl Asked {
    /// The key whose secret the request shows.
    fn key<'a, S: ShardControl>(
        &self,
        service: &Service<S>,
        offer: &'a Offer,
        client: IpAddr,
    ) -> Result<&'a ApiKey, Refusal> {
        service.key(&offer.keys, client, None, self.secret_key.as_deref())
    }
}

/// ICE servers for the secret of a key, or for a credential that was made before; with the secret as `secretKey`, the
/// credentials there are.
pub(super) async fn ice_servers<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
) -> Response {
    let offer = service.offer();
    if asked.api_key.is_none() && asked.secret_key.is_some() {
        return match asked.key(&service, &offer, peer.0.ip()) {
            Ok(key) => {
                let (shown, _) = listed(&service, &offer, key, &asked);
                answer(StatusCode::OK, Value::Array(shown))
            }
            Err(why) => refused(why),
        };
    }
    let region = asked.region.as_deref();
    let made = asked
        .api_key
        .as_deref()
        .and_then(|token| redeem(&offer, token));
    let result = match made {
        Some((key, username)) => redeemed(&service, &offer, key, username, region, peer.0.ip()),
        None => {
            let shown = Shown::secret_alone(asked.api_key.clone());
            let wanted = Wanted {
                region,
                ..Wanted::default()
            };
            minted(&service, peer, &shown, wanted)
        }
    };
    match result {
        Ok(minted) => {
            let servers = one_by_one(&minted, |url, turn| match turn {
                None => json!({ "urls": url }),
                Some(turn) => json!({
                    "urls": url,
                    "username": turn.username,
                    "credential": turn.credential,
                }),
            });
            answer(StatusCode::OK, Value::Array(servers))
        }
        Err(why) => refused(why),
    }
}

/// The credential that a token speaks for, unless it is over or revoked.
fn redeemed<S: ShardControl>(
    service: &Service<S>,
    offer: &Offer,
    key: &ApiKey,
    username: String,
    region: Option<&str>,
    client: IpAddr,
) -> Result<Minted, Refusal> {
    let now = Clock.now();
    let limited = rest::parse(&username);
    let left = limited.map_or(0, |limited| {
        limited.expires_unix.saturating_sub(now.unix_secs())
    });
    let user = limited.map_or(rest::ANONYMOUS, |limited| limited.user);
    let revoked = service.ledger().revoked();
    let realm = key.realm.as_ref().map(|(realm, _)| *realm);
    if (revoked.find(realm, username.as_bytes(), user, true, now.unix)).is_some() {
        return Err((StatusCode::UNAUTHORIZED, "this credential is disabled").into());
    }
    if left == 0 {
        return Err((StatusCode::UNAUTHORIZED, "this credential is over").into());
    }
    debug_assert!(limited.is_some_and(|limited| limited.key == Some(&key.id)));
    offer.minted(username, Duration::from_secs(left), region, client)
}

pub(super) async fn create<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
    body: Bytes,
) -> Response {
    let order: Order = match super::read_json(&body) {
        Ok(order) => order,
        Err(why) => return refused(why),
    };
    let ttl_secs = match &order.expiry_in_seconds {
        Value::Null => None,
        secs => match secs.as_u64().filter(|secs| *secs > 0) {
            Some(secs) => Some(secs),
            None => {
                return refused((
                    StatusCode::BAD_REQUEST,
                    "expiryInSeconds is a whole number of seconds above 0",
                ));
            }
        },
    };
    let label = order.label.unwrap_or_default();
    if let Err(why) = usable_label(&label) {
        return refused(why);
    }
    let offer = service.offer();
    let key = match asked.key(&service, &offer, peer.0.ip()) {
        Ok(key) => key,
        Err(why) => return refused(why),
    };
    let wanted = Wanted {
        user: &label,
        ttl_secs,
        ..Wanted::default()
    };
    let order = wanted.order(peer.0.ip());
    let minted = match service.mint(&offer, key, order) {
        Ok(minted) => minted,
        Err(why) => return refused(why),
    };
    let now_unix = Clock.now().unix_secs();
    let expires_unix =
        rest::parse(&minted.username).map_or(now_unix, |limited| limited.expires_unix);
    let managed = Managed {
        username: minted.username.clone(),
        label: label.clone(),
        made_unix: expires_unix.saturating_sub(minted.ttl.as_secs()),
        expires_unix,
    };
    match service.ledger().keep(&key.id, managed, now_unix) {
        Ok(Some(file)) => synchronise(file).await,
        Ok(None) => {}
        Err(LedgerError::Full) => {
            return refused((
                StatusCode::FORBIDDEN,
                "this key has as many credentials as it may: delete some",
            ));
        }
        Err(error) => return refused(error),
    }
    answer(
        StatusCode::OK,
        json!({
            "username": minted.username,
            "password": minted.credential,
            "expiryInSeconds": minted.ttl.as_secs(),
            "label": label,
            "apiKey": token(&offer, key, &minted.username),
        }),
    )
}

fn usable_label(label: &str) -> Result<(), Refusal> {
    if label.chars().count() < 100 && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err((
        StatusCode::BAD_REQUEST,
        "a label has fewer than 100 characters, none of them a control character",
    )
        .into())
}

/// Page by page.
pub(super) async fn list<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
) -> Response {
    let offer = service.offer();
    let key = match asked.key(&service, &offer, peer.0.ip()) {
        Ok(key) => key,
        Err(why) => return refused(why),
    };
    let (shown, total) = listed(&service, &offer, key, &asked);
    let page = asked.page.unwrap_or(1).max(1);
    let pages = total.div_ceil(PAGE).max(1);
    answer(
        StatusCode::OK,
        json!({
            "data": shown,
            "pagination": {
                "total_records": total,
                "current_page": page,
                "total_pages": pages,
                "next_page": (page < pages).then(|| page + 1),
                "prev_page": (page > 1).then(|| page - 1),
            },
        }),
    )
}

/// One page of the key's credentials, and how many there are on all of them.
fn listed<S: ShardControl>(
    service: &Service<S>,
    offer: &Offer,
    key: &ApiKey,
    asked: &Asked,
) -> (Vec<Value>, usize) {
    let now = Clock.now();
    let with_expired = asked.all.as_deref() == Some("true");
    let mut all = service.ledger().managed(&key.id);
    all.retain(|one| {
        (with_expired || one.expires_unix > now.unix_secs())
            && (asked.label.as_ref()).is_none_or(|label| *label == one.label)
    });
    let revoked = service.ledger().revoked();
    let page = asked.page.unwrap_or(1).max(1);
    let shown = (all.iter().skip((page - 1).saturating_mul(PAGE)).take(PAGE)).map(|one| {
        let disabled = revoked.has(RevokedKind::Credential, one.username.as_bytes(), now.unix);
        let password = offer.secret_of(&one.username).map(|secret| {
            let password = rest::password(secret, one.username.as_bytes());
            (password.expose().iter().copied())
                .map(char::from)
                .collect::<String>()
        });
        json!({
            "username": one.username,
            "password": password,
            "apiKey": token(offer, key, &one.username),
            "expiryInSeconds": one.expires_unix.saturating_sub(one.made_unix),
            "label": one.label,
            "expired": one.expires_unix <= now.unix_secs(),
            "enabled": !disabled,
        })
    });
    (shown.collect(), all.len())
}

/// The key and the credential of it that a request names. `missing` is what an unknown name is answered.
fn named<'a, S: ShardControl>(
    service: &Service<S>,
    offer: &'a Offer,
    peer: Peer,
    asked: &Asked,
    body: &[u8],
    missing: StatusCode,
) -> Result<(&'a ApiKey, Managed), Refusal> {
    let key = asked.key(service, offer, peer.0.ip())?;
    let named: Named = super::read_json(body)?;
    let username = named.username.ok_or((
        StatusCode::BAD_REQUEST,
        "the body has no username: {\"username\": \"…\"}",
    ))?;
    let found = service.ledger().find(&key.id, &username);
    let found = found.ok_or((missing, "this key has no credential of this username"))?;
    Ok((key, found))
}

pub(super) async fn disable<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
    body: Bytes,
) -> Response {
    let offer = service.offer();
    let unknown = StatusCode::UNAUTHORIZED;
    let (key, managed) = match named(&service, &offer, peer, &asked, &body, unknown) {
        Ok(found) => found,
        Err(why) => return refused(why),
    };
    let unix = Clock.now().unix;
    let revoked = service.ledger().revoked();
    if revoked.has(RevokedKind::Credential, managed.username.as_bytes(), unix) {
        return refused((StatusCode::BAD_REQUEST, "it is disabled already"));
    }
    match service.revoke(key, &managed.username).await {
        Ok(_) => answer(StatusCode::OK, json!({ "message": "credential disabled" })),
        Err(why) => refused(why),
    }
}

pub(super) async fn enable<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
    body: Bytes,
) -> Response {
    let offer = service.offer();
    let unknown = StatusCode::UNAUTHORIZED;
    let (key, managed) = match named(&service, &offer, peer, &asked, &body, unknown) {
        Ok(found) => found,
        Err(why) => return refused(why),
    };
    let (kind, now_unix) = (RevokedKind::Credential, Clock.now().unix_secs());
    let own = By::Key(key.id.clone());
    match (service.ledger()).revoked_by(kind, &managed.username, now_unix) {
        Some(by) if by == own => {}
        Some(_) => {
            return refused((
                StatusCode::BAD_REQUEST,
                "it cannot be enabled: the operator has revoked it",
            ));
        }
        None => return refused((StatusCode::BAD_REQUEST, "it is enabled already")),
    }
    match (service.ledger()).lift(kind, &managed.username, Some(&own), now_unix) {
        Ok(Some(changed)) => {
            service.put_into_effect(changed).await;
            answer(StatusCode::OK, json!({ "message": "credential enabled" }))
        }
        Ok(None) => refused((StatusCode::BAD_REQUEST, "it is enabled already")),
        Err(error) => refused(error),
    }
}

pub(super) async fn delete<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
    body: Bytes,
) -> Response {
    let offer = service.offer();
    let unknown = StatusCode::BAD_REQUEST;
    let (key, managed) = match named(&service, &offer, peer, &asked, &body, unknown) {
        Ok(found) => found,
        Err(why) => return refused(why),
    };
    match remove(&service, key, &[managed]).await {
        Ok(_) => answer(
            StatusCode::OK,
            json!({ "success": true, "message": "credential removed" }),
        ),
        Err(why) => refused(why),
    }
}

pub(super) async fn delete_by_label<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    Query(asked): Query<Asked>,
) -> Response {
    let offer = service.offer();
    let key = match asked.key(&service, &offer, peer.0.ip()) {
        Ok(key) => key,
        Err(why) => return refused(why),
    };
    let label = asked.label.as_deref().unwrap_or_default();
    if label.is_empty() {
        return refused((StatusCode::BAD_REQUEST, "name a label: ?label="));
    }
    let now_unix = Clock.now().unix_secs();
    let mut all = service.ledger().managed(&key.id);
    all.retain(|one| one.label == label && one.expires_unix > now_unix);
    match remove(&service, key, &all).await {
        Ok(deleted) => answer(StatusCode::OK, json!({ "deleted": deleted })),
        Err(why) => refused(why),
    }
}

/// Revokes and forgets `all` of `key`; how many that were.
async fn remove<S: ShardControl>(
    service: &Service<S>,
    key: &ApiKey,
    all: &[Managed],
) -> Result<usize, Refusal> {
    let (kind, now_unix) = (RevokedKind::Credential, Clock.now().unix_secs());
    let ledger = service.ledger();
    let later = |_| {
        Refusal::from((
            StatusCode::SERVICE_UNAVAILABLE,
            "the server cannot take it down now; ask again in a while",
        ))
    };
    let mut last = None;
    let mut result = Ok(all.len());
    for one in all {
        let by = By::Key(key.id.clone());
        let done = match ledger.revoked_by(kind, &one.username, now_unix) {
            Some(known) if known == by => Ok(()),
            // What another has revoked may be lifted before the credential ends.
            Some(_) | None => (ledger.revoke(kind, &one.username, None, by, now_unix))
                .map(|changed| last = Some(changed)),
        };
        let done = done.and_then(|()| ledger.forget(&key.id, &one.username, now_unix));
        if let Err(error) = done {
            result = Err(later(error));
            break;
        }
    }
    if let Some(changed) = last {
        let ended = service.put_into_effect(changed).await;
        tracing::info!(
            key = key.id,
            credentials = all.len(),
            ended,
            "credentials deleted"
        );
    }
    result
}

/// A token that speaks for `username`: signed, so that every server of the service knows it.
fn token(offer: &Offer, key: &ApiKey, username: &str) -> Option<String> {
    let mac = token_mac(offer, key, username)?;
    let raw = [&mac[..], username.as_bytes()].concat();
    Some(URL_SAFE_NO_PAD.encode(raw))
}

fn token_mac(offer: &Offer, key: &ApiKey, username: &str) -> Option<[u8; TOKEN_MAC]> {
    let secret = offer.secret_of(username)?.expose().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    // With the key in it, a token ends with its key.
    for part in [b"token".as_slice(), &key.secret_hash, username.as_bytes()] {
        mac.update(part);
    }
    mac.finalize().into_bytes().first_chunk().copied()
}

/// The key and the name of the credential that `token` speaks for.
fn redeem<'a>(offer: &'a Offer, token: &str) -> Option<(&'a ApiKey, String)> {
    let raw = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (mac, username) = raw.split_first_chunk::<TOKEN_MAC>()?;
    let username = std::str::from_utf8(username).ok()?;
    let genuine = |key: &&ApiKey| {
        token_mac(offer, key, username).is_some_and(|ours| bool::from(ours.ct_eq(mac)))
    };
    let key = offer.keys.iter().find(genuine)?;
    Some((key, username.to_owned()))
}
