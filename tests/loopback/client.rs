//! A raw client: blocking sockets, messages through the `stun` crate, streams cut into frames by code of its own.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use turnix::base::{Family, Transport};

use super::common::dtls::DtlsLink;
use super::common::wire::{Reply, Request, Signer, channel_data, padded_channel_data};
use super::common::world::{PASSWORD, USER};
use super::server::{PATIENCE, Server, loopback, now};

/// What the server sends.
#[derive(Debug)]
pub enum Frame {
    Message(Reply),
    Channel(u16, Vec<u8>),
}

/// Why there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The server closed the connection; over TLS it said so.
    Closed,
    /// The connection broke off.
    Cut,
    /// Nothing came in time.
    Silent,
}

pub enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Dtls(Box<DtlsLink>),
}

pub struct Client {
    pub link: Link,
    pub transport: Transport,
    pub family: Family,
    pub signer: Option<Signer>,
    /// Bytes of a stream that are no whole frame yet.
    partial: Vec<u8>,
    /// Application data that came while an answer was awaited.
    waiting: VecDeque<Frame>,
}

impl Client {
    /// From any port of loopback to the server's listener of `family`.
    pub fn new(server: &Server, transport: Transport, family: Family) -> Self {
        Self::between(server, transport, loopback(family), server.address(family))
    }

    pub fn udp(server: &Server) -> Self {
        Self::new(server, Transport::Udp, Family::V4)
    }

    pub fn tcp(server: &Server) -> Self {
        Self::new(server, Transport::Tcp, Family::V4)
    }

    /// From the address `from` to `to`.
    pub fn between(server: &Server, transport: Transport, from: IpAddr, to: SocketAddr) -> Self {
        Self::buffered(server, transport, from, to, None)
    }

    /// A stream client whose socket takes in little before it is read.
    pub fn with_little_room(server: &Server, transport: Transport) -> Self {
        let ip = loopback(Family::V4);
        let to = server.address(Family::V4);
        Self::buffered(server, transport, ip, to, Some(16 * 1024))
    }

    fn buffered(
        server: &Server,
        transport: Transport,
        from: IpAddr,
        to: SocketAddr,
        receive_bytes: Option<usize>,
    ) -> Self {
        let kind = if transport.is_stream() {
            Type::STREAM
        } else {
            Type::DGRAM
        };
        let socket = Socket::new(Domain::for_address(to), kind, None).unwrap();
        if let Some(bytes) = receive_bytes.or((!transport.is_stream()).then_some(4 << 20)) {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        if !(transport.is_stream() && from == loopback(Family::of(from))) {
            let any_port = SocketAddr::new(from, 0);
            socket.bind(&SockAddr::from(any_port)).unwrap();
        }
        socket.connect(&SockAddr::from(to)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let link = match transport {
            Transport::Udp => Link::Udp(socket.into()),
            Transport::Tcp => {
                socket.set_tcp_nodelay(true).unwrap();
                Link::Tcp(socket.into())
            }
            Transport::Tls => {
                socket.set_tcp_nodelay(true).unwrap();
                let name = ServerName::IpAddress(to.ip().into());
                let connection =
                    ClientConnection::new(std::sync::Arc::clone(&server.tls), name).unwrap();
                Link::Tls(Box::new(StreamOwned::new(connection, socket.into())))
            }
            Transport::Dtls => {
                let link = DtlsLink::connect(socket.into(), PATIENCE).expect("a handshake");
                Link::Dtls(Box::new(link))
            }
        };
        Self::over(link, transport, Family::of(to.ip()))
    }

    /// Over TLS from loopback, asking for the server called `name` and taking whatever certificate it shows.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn asking(server: &Server, family: Family, name: &str) -> Self {
        let socket = TcpStream::connect(server.address(family)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(turnix::stream::unverified().unwrap(), name);
        let link = Link::Tls(Box::new(StreamOwned::new(connection.unwrap(), socket)));
        Self::over(link, Transport::Tls, family)
    }

    /// On a socket that is connected to a server already.
    pub fn on(socket: UdpSocket) -> Self {
        let family = Family::of(socket.peer_addr().unwrap().ip());
        Self::over(Link::Udp(socket), Transport::Udp, family)
    }

    /// On a connection to a server.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn on_stream(connection: TcpStream) -> Self {
        let family = Family::of(connection.peer_addr().unwrap().ip());
        Self::over(Link::Tcp(connection), Transport::Tcp, family)
    }

    /// In a session with a server.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn on_dtls(link: DtlsLink) -> Self {
        let family = Family::of(link.socket.peer_addr().unwrap().ip());
        Self::over(Link::Dtls(Box::new(link)), Transport::Dtls, family)
    }

    /// Its session.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn dtls(&mut self) -> &mut DtlsLink {
        match &mut self.link {
            Link::Dtls(link) => link,
            _ => panic!("not over DTLS"),
        }
    }

    fn over(link: Link, transport: Transport, family: Family) -> Self {
        Self {
            family,
            link,
            transport,
            signer: None,
            partial: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    pub fn local(&self) -> SocketAddr {
        self.socket().local_addr().unwrap().as_socket().unwrap()
    }

    fn socket(&self) -> SockRef<'_> {
        match &self.link {
            Link::Udp(socket) => socket.into(),
            Link::Tcp(socket) => socket.into(),
            Link::Tls(stream) => stream.get_ref().into(),
            Link::Dtls(link) => (&link.socket).into(),
        }
    }

    /// Sends bytes as one datagram, or as they are in a stream.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("sent");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.link {
            Link::Udp(socket) => socket.send(bytes).map(|sent| assert_eq!(sent, bytes.len())),
            Link::Tcp(socket) => socket.write_all(bytes),
            Link::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Link::Dtls(link) => link.send(bytes),
        }
    }

    /// Says that nothing more comes, and goes on listening.
    pub fn finish(&mut self) {
        if let Link::Tls(stream) = &mut self.link {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
        self.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// Whatever comes next, within `patience`.
    pub fn next(&mut self, patience: Duration) -> Result<Frame, Ended> {
        if let Some(frame) = self.waiting.pop_front() {
            return Ok(frame);
        }
        self.next_from_link(patience)
    }

    fn next_from_link(&mut self, patience: Duration) -> Result<Frame, Ended> {
        let deadline = now() + patience;
        loop {
            if self.transport.is_stream()
                && let Some((message, total)) = first_frame(&self.partial)
            {
                let frame = parse(&self.partial[..message]);
                self.partial.drain(..total);
                return Ok(frame);
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Err(Ended::Silent);
            }
            self.socket().set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 65_536];
            let read = match &mut self.link {
                Link::Udp(socket) => socket.recv(&mut buffer),
                Link::Tcp(socket) => socket.read(&mut buffer),
                Link::Tls(stream) => stream.read(&mut buffer),
                Link::Dtls(link) => match link.receive(left) {
                    Ok(data) if data.is_empty() => return Err(Ended::Closed),
                    Ok(data) => {
                        buffer[..data.len()].copy_from_slice(&data);
                        Ok(data.len())
                    }
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(length) if !self.transport.is_stream() => return Ok(parse(&buffer[..length])),
                Ok(0) => return Err(Ended::Closed),
                Ok(length) => self.partial.extend_from_slice(&buffer[..length]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    io::ErrorKind::ConnectionReset
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe => return Err(Ended::Cut),
                    _ => panic!("{error}"),
                },
            }
        }
    }

    /// What follows on a stream that carries no messages any more: `length` bytes, fewer if it ends before.
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn read_raw(&mut self, length: usize) -> Vec<u8> {
        self.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 65_536];
        while self.partial.len() < length {
            let read = match &mut self.link {
                Link::Udp(_) | Link::Dtls(_) => panic!("datagrams"),
                Link::Tcp(socket) => socket.read(&mut buffer),
                Link::Tls(stream) => stream.read(&mut buffer),
            };
            match read {
                Ok(0) => break,
                Ok(read) => self.partial.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("silence"),
                Err(_) => break,
            }
        }
        let length = length.min(self.partial.len());
        self.partial.drain(..length).collect()
    }

    #[track_caller]
    pub fn expect(&mut self) -> Frame {
        self.next(PATIENCE).expect("a frame")
    }

    /// Sends a request and takes its answer; application data that comes first is kept.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.send(&request.bytes());
        self.answer_to(request)
    }

    #[track_caller]
    pub fn answer_to(&mut self, request: &Request) -> Reply {
        loop {
            match self.next_from_link(PATIENCE).expect("an answer") {
                Frame::Message(reply)
                    if reply.0.transaction_id == request.0.transaction_id
                        && reply.0.typ.method == request.0.typ.method =>
                {
                    return reply;
                }
                other => self.waiting.push_back(other),
            }
        }
    }

    /// A signed request; the answer is signed, too.
    #[track_caller]
    pub fn ask_signed(&mut self, request: Request) -> Reply {
        let signer = self.signer.clone().expect("logged in");
        let reply = self.ask(&request.sign(&signer));
        assert!(reply.is_signed_by(&signer));
        reply
    }

    /// The code that a signed request is answered with; challenges are not signed.
    #[track_caller]
    #[allow(dead_code, reason = "not every target that shares this file needs it")]
    pub fn code_of(&mut self, request: Request) -> u16 {
        let signer = self.signer.clone().expect("logged in");
        self.ask(&request.sign(&signer)).code()
    }

    /// Gets a nonce for `user`.
    #[track_caller]
    pub fn login(&mut self, user: &str, password: &str) {
        let challenge = self.ask(&Request::allocate());
        assert_eq!(challenge.code(), 401);
        self.signer = Some(Signer::new(user, password, &challenge.nonce()));
    }

    /// Alice asks for an allocation of the client's own family.
    #[track_caller]
    pub fn try_allocate(&mut self) -> Reply {
        if self.signer.is_none() {
            self.login(USER, PASSWORD);
        }
        let request = match self.family {
            Family::V4 => Request::allocate(),
            Family::V6 => Request::allocate().family(2),
        };
        self.ask_signed(request)
    }

    #[track_caller]
    pub fn allocate(&mut self) -> SocketAddr {
        let reply = self.try_allocate();
        assert_eq!(reply.code(), 0);
        assert_eq!(reply.mapped(), self.local());
        reply.relayed()
    }

    #[track_caller]
    pub fn permit(&mut self, peer: SocketAddr) {
        let reply = self.ask_signed(Request::create_permission(&[peer]));
        assert_eq!(reply.code(), 0);
    }

    #[track_caller]
    pub fn bind(&mut self, channel: u16, peer: SocketAddr) {
        let reply = self.ask_signed(Request::channel_bind(channel, peer));
        assert_eq!(reply.code(), 0);
    }

    #[track_caller]
    pub fn release(&mut self) {
        let reply = self.ask_signed(Request::refresh(0));
        assert_eq!((reply.code(), reply.lifetime()), (0, 0));
    }

    pub fn send_indication(&mut self, peer: SocketAddr, data: &[u8]) {
        self.send(&Request::send(peer, data).bytes());
    }

    pub fn send_channel(&mut self, channel: u16, data: &[u8]) {
        let frame = self.channel_frame(channel, data);
        self.send(&frame);
    }

    /// ChannelData as the transport wants it.
    pub fn channel_frame(&self, channel: u16, data: &[u8]) -> Vec<u8> {
        if self.transport.is_stream() {
            padded_channel_data(channel, data)
        } else {
            channel_data(channel, data)
        }
    }

    #[track_caller]
    pub fn expect_channel(&mut self, channel: u16) -> Vec<u8> {
        match self.expect() {
            Frame::Channel(number, data) => {
                assert_eq!(number, channel);
                data
            }
            other => panic!("{other:?}"),
        }
    }

    /// A Data indication: from whom, and what.
    #[track_caller]
    pub fn expect_data(&mut self) -> (SocketAddr, Vec<u8>) {
        match self.expect() {
            Frame::Message(reply) => {
                assert_eq!(reply.0.typ.to_string(), "Data indication");
                (reply.peer(), reply.data())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn parse(message: &[u8]) -> Frame {
    match message[0] {
        0x40..=0x7F => {
            let length = usize::from(u16::from_be_bytes([message[2], message[3]]));
            assert_eq!(message.len(), 4 + length, "no padding in datagrams");
            Frame::Channel(
                u16::from_be_bytes([message[0], message[1]]),
                message[4..].to_vec(),
            )
        }
        _ => Frame::Message(Reply::parse(message)),
    }
}

/// Length of the first frame without and with its padding.
fn first_frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    let message = match bytes[0] {
        0x40..=0x7F => 4 + length,
        _ => 20 + length,
    };
    let total = message.next_multiple_of(4);
    (bytes.len() >= total).then_some((message, total))
}
