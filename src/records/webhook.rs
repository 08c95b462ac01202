//! Posts records to a URL: in batches, signed, again until the receiver takes them.

use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode, Uri, header};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use sha2::Sha256;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout, timeout_at};

use crate::base::{Clock, Secret};

use super::{Counts, Outcome, Sink, ends_within};

/// The header of the signature: `t=<seconds since the Unix epoch>,v1=<hex>`.
pub const SIGNATURE: &str = "turnix-signature";

/// Records that may wait for the receiver, some tens of MB.
const WAITING: usize = 65_536;

/// Records in one request.
const BATCH: usize = 100;

/// How long records gather before they are posted.
const GATHER: Duration = Duration::from_secs(1);

/// How long a receiver may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is read of an answer's body, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 << 10;

/// Whom to post records to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https:`, or `http:` on this host.
    pub url: Uri,
    /// Keys the signature.
    pub secret: Secret<String>,
    /// Who may vouch for the receiver.
    pub roots: Arc<RootCertStore>,
    /// The first pause after a failure; [`Settings::FIRST_PAUSE`] unless a test is in a hurry.
    pub first_pause: Duration,
}

impl Settings {
    /// The first pause after a failure.
    pub const FIRST_PAUSE: Duration = FIRST_PAUSE;
}

/// The certificate authorities in the PEM file `path`; those that the host trusts if there is none.
///
/// # Errors
/// What is wrong with the file or the host.
pub fn roots(path: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        return if added > 0 {
            Ok(roots)
        } else {
            Err("this host has no list of certificate authorities".to_owned())
        };
    };
    let unreadable = |error| format!("{} cannot be read: {error}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        (roots.add(certificate)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if roots.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(roots)
}

/// The value of [`SIGNATURE`] for `body`: HMAC-SHA256 over the time, a dot and the body.
pub fn sign(secret: &Secret<String>, unix_secs: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC accepts every key length"));
    mac.update(format!("{unix_secs}.").as_bytes());
    mac.update(body);
    let hex: String = (mac.finalize().into_bytes().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("t={unix_secs},v1={hex}")
}

/// The way into a webhook.
#[derive(Clone)]
pub(super) struct Queue(mpsc::Sender<String>);

impl Queue {
    /// Leaves a record; false if there is no room.
    pub fn offer(&self, record: String) -> bool {
        self.0.try_send(record).is_ok()
    }
}

/// The thread that posts.
pub(super) struct Webhook {
    queue: Queue,
    abandon: watch::Sender<bool>,
    /// Behind a lock that nobody waits for, so that whoever holds a server may share it.
    done: Mutex<Receiver<()>>,
    thread: JoinHandle<()>,
}

impl Webhook {
    pub fn start(settings: &Settings, counts: Arc<Counts>) -> io::Result<Self> {
        let (sender, records) = mpsc::channel(WAITING);
        let (abandon, abandoned) = watch::channel(false);
        let (alive, done) = channel();
        let poster = Poster {
            client: client(settings)?,
            settings: settings.clone(),
            records,
            counts,
            abandoned,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("webhook".into())
            .spawn(move || {
                runtime.block_on(poster.run());
                drop(alive);
            })?;
        Ok(Self {
            queue: Queue(sender),
            abandon,
            done: Mutex::new(done),
            thread,
        })
    }

    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Ends the thread once everything is posted, or after `grace`.
    pub fn close(self, grace: Duration) {
        drop(self.queue);
        let done = self
            .done
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if !ends_within(&done, grace) {
            self.abandon.send_replace(true);
        }
        if self.thread.join().is_err() {
            tracing::error!(
                "the thread of the webhook had panicked: please report this as a bug of turnix"
            );
        }
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Follows no redirect, and trusts nobody but `settings.roots`.
fn client(settings: &Settings) -> io::Result<HttpClient> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(Arc::clone(&settings.roots))
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(connector))
}

/// What the receiver made of a request.
enum Answer {
    Taken,
    /// It will not take this one, however often it is asked.
    Refused(StatusCode),
    /// It may take it later.
    Later(String),
}

struct Poster {
    client: HttpClient,
    settings: Settings,
    records: mpsc::Receiver<String>,
    counts: Arc<Counts>,
    abandoned: watch::Receiver<bool>,
}

impl Poster {
    async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            let count = batch.len() as u64;
            let body = Bytes::from(format!("{{\"records\":[{}]}}", batch.join(",")));
            let mut abandoned = self.abandoned.clone();
            let outcome = tokio::select! {
                outcome = self.deliver(&body) => outcome,
                () = given_up(&mut abandoned) => Outcome::Dropped,
            };
            self.counts.add(Sink::Webhook, outcome, count);
            if outcome == Outcome::Dropped {
                self.drop_rest(count);
                return;
            }
        }
    }

    /// What is to be posted next; `None` at the end.
    async fn gather(&mut self) -> Option<Vec<String>> {
        let mut batch = vec![self.records.recv().await?];
        let deadline = tokio::time::Instant::now() + GATHER;
        while batch.len() < BATCH {
            match timeout_at(deadline, self.records.recv()).await {
                Ok(Some(record)) => batch.push(record),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    /// Posts `body` until it is taken or refused.
    async fn deliver(&self, body: &Bytes) -> Outcome {
        let mut pause = self.settings.first_pause;
        loop {
            match self.post(body).await {
                Answer::Taken => return Outcome::Ok,
                Answer::Refused(status) => {
                    tracing::error!(
                        status = status.as_u16(),
                        "the webhook refuses access records, which are lost: see what its receiver says"
                    );
                    return Outcome::Failed;
                }
                Answer::Later(why) => {
                    // Receivers that come back are not to be met by all servers at once.
                    let wait = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                    tracing::warn!(
                        why,
                        retry_secs = wait.as_secs_f64(),
                        waiting = self.records.len(),
                        "the webhook does not take access records"
                    );
                    sleep(wait).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn post(&self, body: &Bytes) -> Answer {
        let signature = sign(&self.settings.secret, Clock.now().unix_secs(), body);
        let request = Request::post(self.settings.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("turnix/", env!("CARGO_PKG_VERSION")),
            )
            .header(SIGNATURE, signature)
            .body(Full::new(body.clone()));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Answer::Later(error.to_string()),
        };
        let exchange = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            // What it says does not matter, only that it has said it.
            let _ = Limited::new(response.into_body(), ANSWER_BYTES)
                .collect()
                .await;
            Ok::<_, hyper_util::client::legacy::Error>(status)
        };
        match timeout(TIMEOUT, exchange).await {
            Err(_) => Answer::Later(format!("no answer within {} s", TIMEOUT.as_secs())),
            Ok(Err(error)) => Answer::Later(chain(&error)),
            Ok(Ok(status)) if status.is_success() => Answer::Taken,
            Ok(Ok(
                status @ (StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY),
            )) => Answer::Refused(status),
            Ok(Ok(status)) if status.is_redirection() => Answer::Later(format!(
                "it answers {}, and redirects are not followed: name the address it points to",
                status.as_u16()
            )),
            Ok(Ok(status)) => Answer::Later(format!("it answers {}", status.as_u16())),
        }
    }

    fn drop_rest(&mut self, mut lost: u64) {
        while self.records.try_recv().is_ok() {
            self.counts.add(Sink::Webhook, Outcome::Dropped, 1);
            lost += 1;
        }
        tracing::error!(
            records = lost,
            "the server ends before the webhook has taken all access records; the others are lost"
        );
    }
}

async fn given_up(abandoned: &mut watch::Receiver<bool>) {
    if abandoned.wait_for(|given_up| *given_up).await.is_err() {
        // Whoever could give up is gone: nobody will.
        pending::<()>().await;
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
