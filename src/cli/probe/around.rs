//! A look around after something failed: what the port does over the other transports, what it speaks, what time the
//! server has.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Method, Request, header};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::facts::{Knock, Speech, Stage, Trouble};
use super::path::{Leg, Path, Tls};
use crate::base::{Secret, Transport};
use crate::cli::tls::{Certificate, Trust};
use crate::client::{Settings, Step};

/// How long one look may take.
const PATIENCE: Duration = Duration::from_millis(2500);

/// How STUN does at `server` over `transport`, without TLS.
pub async fn knock(transport: Transport, server: SocketAddr) -> Knock {
    let settings = Settings {
        username: String::new(),
        password: Secret::new(String::new()),
        transport,
        family: None,
        lifetime_secs: None,
    };
    let opened = match Path::open(transport, server, None, PATIENCE).await {
        Ok(opened) => opened,
        Err((_, Trouble::Closed)) => return Knock::Closed,
        Err(_) => return Knock::Silent,
    };
    let mut leg = Leg::new(settings, opened.path);
    match leg.ask(Step::Binding, PATIENCE).await {
        Ok(_) | Err(Trouble::Refused { .. }) => Knock::Answers,
        Err(Trouble::Closed) => Knock::Closed,
        Err(_) if transport.is_stream() => Knock::Opens,
        Err(_) => Knock::Silent,
    }
}

/// What the TCP port of `server` speaks, other than `asked`.
pub async fn speech(server: SocketAddr, asked: Transport, tls: &Tls) -> Option<Speech> {
    if asked != Transport::Tcp && knock(Transport::Tcp, server).await == Knock::Answers {
        return Some(Speech::Turn);
    }
    if asked != Transport::Tls {
        match Path::open(Transport::Tls, server, Some(tls), PATIENCE).await {
            Ok(_) | Err((Stage::Tls, Trouble::Certificate(_) | Trouble::Handshake { .. })) => {
                return Some(Speech::Tls);
            }
            Err(_) => {}
        }
    }
    timeout(PATIENCE, speaks_http(server))
        .await
        .unwrap_or(false)
        .then_some(Speech::Http)
}

async fn speaks_http(server: SocketAddr) -> bool {
    let Ok(mut tcp) = TcpStream::connect(server).await else {
        return false;
    };
    let mut answer = [0; 5];
    (tcp.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
        .await
        .is_ok()
        && tcp.read_exact(&mut answer).await.is_ok()
        && &answer == b"HTTP/"
}

/// The certificate that `server` shows, whatever it is worth.
pub async fn certificate(server: SocketAddr, tls: &Tls) -> Option<Certificate> {
    let anybody = Tls {
        config: Trust::Anybody.config().ok()?,
        name: tls.name.clone(),
    };
    let opened = Path::open(Transport::Tls, server, Some(&anybody), PATIENCE).await;
    opened.ok()?.certificate
}

/// The server's clock, in seconds since the Unix epoch, where the port speaks HTTP: the Date of an answer (RFC 9110
/// §6.6.1).
pub async fn server_unix(server: SocketAddr, transport: Transport) -> Option<u64> {
    // Nothing is told the server but that somebody asks, and a clock that is wrong convinces nobody of anything.
    let config = Trust::Anybody.config().ok()?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(std::sync::Arc::unwrap_or_clone(config))
        .https_or_http()
        .enable_http1()
        .build();
    let scheme = match transport {
        Transport::Tls => "https",
        Transport::Udp | Transport::Tcp | Transport::Dtls => "http",
    };
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(format!("{scheme}://{server}/health"))
        .body(Body::empty())
        .ok()?;
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let answer = timeout(PATIENCE, client.request(request))
        .await
        .ok()?
        .ok()?;
    let date = answer.headers().get(header::DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
