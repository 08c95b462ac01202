//! What AWS Kinesis Video Streams tells a client of a signalling channel, for its SDKs as they are: their endpoint is this
//! server, the access key is the API key's id, the secret access key its secret.

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use crate::base::Clock;
use crate::http::ice::{ApiKey, Minted, Refusal, Service};
use crate::http::serve::Peer;
use crate::http::{ShardControl, sigv4};

use super::{Shown, Wanted, answer, minted, read_json};

/// What requests are signed for.
const SERVICE: &str = "kinesisvideo";

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Asked {
    client_id: Option<String>,
    username: Option<String>,
}

/// GetIceServerConfig.
pub(super) async fn ice_server_config<S: ShardControl>(
    State(service): State<Service<S>>,
    Extension(peer): Extension<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = sigv4::Request {
        method: method.as_str(),
        path: uri.path(),
        query: uri.query().unwrap_or_default(),
        authority: uri.authority().map(|authority| authority.as_str()),
        headers: &headers,
        body: &body,
    };
    match config(&service, peer, request) {
        Ok(minted) => {
            let server = json!({
                "Uris": minted.urls,
                "Username": minted.username,
                "Password": minted.credential,
                "Ttl": minted.ttl.as_secs(),
            });
            answer(StatusCode::OK, json!({ "IceServerList": [server] }))
        }
        Err(refused) => {
            // SDKs make an exception of the type.
            let (code, kind) = match refused.code {
                StatusCode::UNAUTHORIZED => (refused.code, "NotAuthorizedException"),
                StatusCode::TOO_MANY_REQUESTS => {
                    (StatusCode::BAD_REQUEST, "ClientLimitExceededException")
                }
                code if code.is_client_error() => (code, "InvalidArgumentException"),
                code => (code, "ServiceUnavailableException"),
            };
            let mut response = answer(code, json!({ "Message": refused.why }));
            (response.headers_mut()).insert("x-amzn-errortype", HeaderValue::from_static(kind));
            refused.mark(response)
        }
    }
}

fn config<S: ShardControl>(
    service: &Service<S>,
    peer: Peer,
    request: sigv4::Request<'_>,
) -> Result<Minted, Refusal> {
    let asked: Asked = read_json(request.body)?;
    let user = asked.username.or(asked.client_id).unwrap_or_default();
    let wanted = Wanted {
        user: &user,
        ..Wanted::default()
    };
    let signed = request.headers.get(header::AUTHORIZATION);
    let signed = signed.and_then(|value| sigv4::authorization(value.to_str().ok()?));
    let Some(signed) = signed else {
        return minted(service, peer, &Shown::bearer(request.headers), wanted);
    };
    let offer = service.offer();
    let client = peer.0.ip();
    let signer = |key: &&ApiKey| {
        let secret = key.secret.as_ref().filter(|_| key.id == signed.key_id);
        secret.is_some_and(|secret| {
            signed.verify(request, SERVICE, secret.expose(), Clock.now().unix)
        })
    };
    let key = service.known(client, offer.keys.iter().find(signer))?;
    service.mint(&offer, key, wanted.order(client))
}
