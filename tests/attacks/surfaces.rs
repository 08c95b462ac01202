//! Connections and requests made to hang, to grow, to confuse or to learn secrets.

mod admin;
mod capture;
mod cardinality;
mod dtls;
mod http;
mod secrets;
mod sharing;
mod tcp;
mod tls;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::common::wire::Request;
use super::server::{PATIENCE, Server};

/// A connection that says what the test wants, byte for byte.
fn connect(to: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(to).unwrap();
    connection.set_nodelay(true).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Reads until the server closes; what it said, or `None` if it neither closes nor says anything for `patience`.
fn until_closed(
    connection: &mut impl Read,
    socket: &TcpStream,
    patience: Duration,
) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 16_384];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Some(said),
            Ok(length) => said.extend_from_slice(&buffer[..length]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return None,
                ErrorKind::ConnectionReset
                | ErrorKind::UnexpectedEof
                | ErrorKind::BrokenPipe
                | ErrorKind::ConnectionAborted => return Some(said),
                _ => panic!("{error}"),
            },
        }
    }
}

/// Sends `bytes`, of which the server may not want all, and reads until it closes.
#[track_caller]
fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut connection = connect(to);
    let _ = connection.write_all(bytes);
    let socket = connection.try_clone().unwrap();
    until_closed(&mut connection, &socket, PATIENCE)
        .unwrap_or_else(|| panic!("not closed after {}", String::from_utf8_lossy(bytes)))
}

/// The series `name` of the admin listener's metrics.
fn metric(server: &Server, name: &str) -> f64 {
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        server.admin()
    );
    let answer = String::from_utf8(exchange(server.admin(), request.as_bytes())).unwrap();
    let line = (answer.lines()).find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// A Binding is answered to `client`.
#[track_caller]
fn answers(client: &mut super::client::Client) {
    assert_eq!(client.ask(&Request::binding()).code(), 0);
}
