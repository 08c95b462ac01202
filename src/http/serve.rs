//! Serves HTTP connections within bounds that a stranger cannot stretch.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::base::Pii;
use crate::stream::{Admission, HttpStream};

use super::refusal;

/// Bounds on the connections of one front.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; beyond it a new one is closed at once.
    pub connections: usize,
    /// Open connections of one IPv4 address or IPv6 /64, so that none takes all; 0 is no limit.
    pub per_address: u32,
    /// How long a client may take to send a request's header.
    pub header_timeout: Duration,
    /// After this time a connection takes no further request and closes.
    pub lifetime: Duration,
}

impl Limits {
    /// For the admin listener, where monitoring keeps connections open.
    pub const ADMIN: Self = Self {
        connections: 256,
        per_address: 64,
        header_timeout: Duration::from_secs(10),
        lifetime: Duration::from_secs(600),
    };

    /// For strangers, who fetch a page and leave.
    pub const PUBLIC: Self = Self {
        connections: 1024,
        per_address: 0,
        header_timeout: Duration::from_secs(10),
        lifetime: Duration::from_secs(60),
    };
}

/// A request's line and header together, in bytes.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// A request's body, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long a request may take to be read and answered.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;

/// What a request in progress gets to finish once its connection is to take no further one.
const GRACE: Duration = Duration::from_secs(10);

/// Between two attempts to accept while the system is out of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A router and the bounds under which connections may use it; cheap to clone, clones share the bounds and close together.
#[derive(Clone)]
pub struct Front {
    router: Router,
    limits: Limits,
    connections: Arc<Semaphore>,
    admission: Arc<Admission>,
    closing: watch::Sender<bool>,
}

/// Who a request comes from: the other end of its connection, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

/// The address that a request came to: our end of its connection, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local(pub SocketAddr);

/// Ends the connection that a request came by, whatever is on its way: for clients that do not read. An extension of
/// every request.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut(Arc<Notify>);

impl Cut {
    pub fn cut(&self) {
        self.0.notify_one();
    }
}

impl Front {
    /// Serves `router` within `limits`.
    pub fn new(router: Router, limits: Limits) -> Self {
        Self {
            router: (router.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)))
                .layer(middleware::from_fn(sound)),
            limits,
            connections: Arc::new(Semaphore::new(limits.connections)),
            admission: Admission::new(limits.per_address),
            closing: watch::Sender::new(false),
        }
    }

    /// Connections take no further request and close, those to come as well; requests in progress get 10 seconds to be
    /// answered.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Serves one connection, HTTP/1.1 or HTTP/2, until it ends; at once if there are too many.
    pub async fn serve(&self, stream: HttpStream) {
        let Ok(_permit) = self.connections.try_acquire() else {
            tracing::debug!("too many HTTP connections: a new one is closed");
            return;
        };
        let Some(_place) = self.admission.admit(stream.client.ip()) else {
            tracing::debug!(client = %Pii(stream.client), "too many HTTP connections of an address: a new one is closed");
            return;
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(self.limits.header_timeout)
            .keep_alive_timeout(self.limits.header_timeout);
        let cut = Cut::default();
        let mut closing = self.closing.subscribe();
        let over = async {
            tokio::select! {
                () = sleep(self.limits.lifetime) => {}
                // Never an error: `self` could close it.
                _ = closing.wait_for(|closing| *closing) => {}
            }
        };
        let router = (self.router.clone())
            .layer(Extension(cut.clone()))
            .layer(Extension(Peer(stream.client)))
            .layer(Extension(Local(stream.local)));
        let service = TowerToHyperService::new(router);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            // No request is taken once it is over, even one that is there already.
            biased;
            () = cut.0.notified() => {
                tracing::debug!("HTTP connection closed: its client does not read");
                return;
            }
            () = over => {
                connection.as_mut().graceful_shutdown();
                timeout(GRACE, connection).await
            }
            ended = connection.as_mut() => Ok(ended),
        };
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "HTTP connection failed"),
            Err(_) => tracing::debug!("HTTP connection closed: a request took too long"),
        }
    }

    /// Accepts plain HTTP connections of `listener`, which is bound and listening, and serves them on tasks of the
    /// current runtime.
    ///
    /// Runs until its future is dropped, which closes the port; connections in progress go on. Returns only if the runtime refuses to watch the socket.
    pub async fn listen(self, listener: std::net::TcpListener) -> io::Error {
        let listener =
            match (listener.set_nonblocking(true)).and_then(|()| TcpListener::from_std(listener)) {
                Ok(listener) => listener,
                Err(error) => return error,
            };
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let Ok(stream) = HttpStream::from_tcp(socket) else {
                        continue;
                    };
                    let front = self.clone();
                    tokio::spawn(async move { front.serve(stream).await });
                }
                // Out of files or memory: the connection stays in the queue, trying again at once would spin.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept an HTTP connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Refuses requests that are not what they seem, before anything looks at them.
///
/// Where a message ends must not be a matter of opinion between this server and a proxy in front of it: what the proxy
/// took for a body would be answered here as a request of somebody else. Hyper refuses folded headers, contradictory
/// lengths and unknown encodings; a request whose length only its encoding tells is the last of its connection
/// (RFC 9112 §6.1), so that nothing behind it is ever read as a request.
async fn sound(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let http1 = request.version() < Version::HTTP_2;
    let last = http1 && headers.contains_key(header::TRANSFER_ENCODING);
    let length = headers.get(header::CONTENT_LENGTH);
    let hosts = headers.get_all(header::HOST).iter().count();
    let refused = if request.version() == Version::HTTP_11 && hosts == 0 || hosts > 1 {
        // RFC 9112 §3.2.
        Some((StatusCode::BAD_REQUEST, "a request names one host"))
    } else if length
        .is_some_and(|length| body_bytes(length).is_none_or(|bytes| bytes > MAX_BODY_BYTES))
    {
        Some((
            StatusCode::PAYLOAD_TOO_LARGE,
            "no request has a body as long as this",
        ))
    } else {
        None
    };
    let close = last || (http1 && refused.is_some());
    let mut response = match refused {
        Some((code, message)) => refusal(code, message),
        None => (timeout(REQUEST_TIMEOUT, next.run(request)).await)
            .unwrap_or_else(|_| refusal(StatusCode::REQUEST_TIMEOUT, "the request took too long")),
    };
    if close {
        (response.headers_mut()).insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn body_bytes(length: &HeaderValue) -> Option<usize> {
    length.to_str().ok()?.parse().ok()
}
