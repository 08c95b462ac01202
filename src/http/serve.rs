//! Serves HTTP connections within bounds that a stranger cannot stretch.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::stream::HttpStream;

/// Bounds on the connections of one front.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; beyond it a new one is closed at once.
    pub connections: usize,
    /// How long a client may take to send a request's header.
    pub header_timeout: Duration,
    /// After this time a connection takes no further request and closes.
    pub lifetime: Duration,
}

impl Limits {
    /// For the admin listener, where monitoring keeps connections open.
    pub const ADMIN: Self = Self {
        connections: 256,
        header_timeout: Duration::from_secs(10),
        lifetime: Duration::from_secs(600),
    };

    /// For strangers, who fetch a page and leave.
    pub const PUBLIC: Self = Self {
        connections: 1024,
        header_timeout: Duration::from_secs(10),
        lifetime: Duration::from_secs(60),
    };
}

/// A request's line and header together, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;

/// What a request in progress gets to finish after its connection's lifetime.
const GRACE: Duration = Duration::from_secs(10);

/// Between two attempts to accept while the system is out of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A router and the bounds under which connections may use it; cheap to clone, clones share the bounds.
#[derive(Clone)]
pub struct Front {
    router: Router,
    limits: Limits,
    connections: Arc<Semaphore>,
}

impl Front {
    /// Serves `router` within `limits`.
    pub fn new(router: Router, limits: Limits) -> Self {
        Self {
            router,
            limits,
            connections: Arc::new(Semaphore::new(limits.connections)),
        }
    }

    /// Serves one connection, HTTP/1.1 or HTTP/2, until it ends; at once if there are too many.
    pub async fn serve(&self, stream: HttpStream) {
        let Ok(_permit) = self.connections.try_acquire() else {
            tracing::debug!("too many HTTP connections: a new one is closed");
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
        let service = TowerToHyperService::new(self.router.clone());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => Ok(ended),
            () = sleep(self.limits.lifetime) => {
                connection.as_mut().graceful_shutdown();
                timeout(GRACE, connection).await
            }
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
    /// Runs until its future is dropped. Returns only if the runtime refuses to watch the socket.
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
