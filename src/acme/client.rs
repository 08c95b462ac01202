//! HTTPS to the authority: bounded in time and size, and an ear for "come back later".

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::base::Clock;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest answer: a chain of certificates is a few KiB.
const ANSWER_BYTES: usize = 256 << 10;

/// A client of one order.
pub(super) struct Https {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    /// Until when the authority asked not to be asked, in seconds since the Unix epoch.
    told_unix: Arc<AtomicU64>,
}

impl Https {
    /// # Errors
    /// The cryptographic provider lacks a protocol version, which would be a bug.
    pub fn new(
        roots: Arc<RootCertStore>,
        told_unix: Arc<AtomicU64>,
    ) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = (HttpsConnectorBuilder::new().with_tls_config(tls))
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, told_unix })
    }
}

type Answered = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

impl HttpClient for Https {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Answered {
        let sent = self.client.request(request);
        let told = Arc::clone(&self.told_unix);
        Box::pin(async move {
            let answer = async {
                let (parts, body) = sent
                    .await
                    .map_err(|error| Error::Other(error.into()))?
                    .into_parts();
                if parts.status.is_client_error() || parts.status.is_server_error() {
                    let now = Clock.now().unix_secs();
                    let until = retry_after_unix(&parts.headers, now).unwrap_or_default();
                    told.fetch_max(until, Ordering::Relaxed);
                }
                let body = Limited::new(body, ANSWER_BYTES)
                    .collect()
                    .await
                    .map_err(Error::Other)?;
                Ok(BytesResponse {
                    parts,
                    body: Box::new(body.to_bytes()),
                })
            };
            timeout(TIMEOUT, answer)
                .await
                .unwrap_or_else(|_| Err(Error::Other("no answer within 30 seconds".into())))
        })
    }
}

/// Seconds, or a date (RFC 9110 §10.2.3), as a time since the Unix epoch.
fn retry_after_unix(headers: &HeaderMap, now: u64) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u64>() {
        Ok(secs) => Some(now.saturating_add(secs)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(UNIX_EPOCH).ok().map(|at| at.as_secs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after_unix(&headers, 1_000)
        };
        assert_eq!(of("3600"), Some(4_600));
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), Some(946_684_799));
        assert_eq!(of("99999999999999999999"), None);
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after_unix(&HeaderMap::new(), 0), None);
    }
}
