//! Many UDP clients with an allocation each, whose packets peers send back: what is lost, and how long nothing comes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use stun::attributes::AttrType;
use turnix::net::Poller;

use super::process::{PATIENCE, now};
use crate::common::wire::{Reply, Request, Signer, channel_data, padded_channel_data};
use crate::common::world::{PASSWORD, USER};

const CHANNEL: u16 = 0x4000;

/// MOBILITY-TICKET.
const TICKET: AttrType = AttrType(0x8030);

/// Clients that share a peer's socket, and with it its buffer.
const CLIENTS_PER_PEER: usize = 16;

/// Marks the poller's tokens of peers.
const PEER: u64 = 1 << 32;

/// What arrived after everything was sent has this long.
const SETTLE: Duration = Duration::from_secs(3);

pub struct Client {
    pub socket: UdpSocket,
    signer: Signer,
    pub relayed: SocketAddr,
}

impl Client {
    #[track_caller]
    pub fn allocate(server: SocketAddr) -> Self {
        Self::allocate_from(server, UdpSocket::bind((server.ip(), 0)).unwrap())
    }

    /// The same, from another port than `own`: nothing that comes from a number that is a service's of the server is
    /// answered, and of thousands of clients one may well get it.
    #[track_caller]
    pub fn allocate_beside(server: SocketAddr, own: u16) -> Self {
        let mut taken = Vec::new();
        loop {
            let socket = UdpSocket::bind((server.ip(), 0)).unwrap();
            if socket.local_addr().unwrap().port() != own {
                return Self::allocate_from(server, socket);
            }
            taken.push(socket);
        }
    }

    /// With a relayed address in each family: the client has the IPv4 one, and this is the other.
    #[track_caller]
    pub fn allocate_both(server: SocketAddr) -> (Self, SocketAddr) {
        let mut client = Self::enter(server, UdpSocket::bind((server.ip(), 0)).unwrap());
        let reply = client.ask_signed(Request::allocate().attr(0x8000, &[2, 0, 0, 0]));
        let both = reply.all_relayed();
        assert!(both.len() == 2 && both[0].is_ipv4());
        client.relayed = both[0];
        (client, both[1])
    }

    /// One that may move (RFC 8016), and its ticket.
    #[track_caller]
    pub fn allocate_mobile(server: SocketAddr) -> (Self, Vec<u8>) {
        let mut client = Self::enter(server, UdpSocket::bind((server.ip(), 0)).unwrap());
        let reply = client.ask_signed(Request::allocate().attr(TICKET.0, &[]));
        assert_eq!(reply.code(), 0);
        client.relayed = reply.relayed();
        (client, reply.attr(TICKET).expect("a ticket"))
    }

    /// Moves to another port: who it is there, and its next ticket.
    #[track_caller]
    pub fn go(&self, ticket: &[u8]) -> (Self, Vec<u8>) {
        let server = self.socket.peer_addr().unwrap();
        let mut client = Self::enter(server, UdpSocket::bind((server.ip(), 0)).unwrap());
        let reply = client.ask_signed(Request::refresh(600).attr(TICKET.0, ticket));
        assert_eq!(reply.code(), 0);
        client.relayed = self.relayed;
        (client, reply.attr(TICKET).expect("a ticket"))
    }

    #[track_caller]
    fn allocate_from(server: SocketAddr, socket: UdpSocket) -> Self {
        let mut client = Self::enter(server, socket);
        let reply = client.ask_signed(Request::allocate());
        assert_eq!(reply.code(), 0);
        client.relayed = reply.relayed();
        client
    }

    /// One that has a nonce.
    #[track_caller]
    fn enter(server: SocketAddr, socket: UdpSocket) -> Self {
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            socket,
            signer: Signer::new(USER, PASSWORD, ""),
            relayed: server,
        };
        let challenge = client.ask(&Request::allocate());
        assert_eq!(challenge.code(), 401);
        client.signer = Signer::new(USER, PASSWORD, &challenge.nonce());
        client
    }

    #[track_caller]
    pub fn ask_signed(&self, request: Request) -> Reply {
        self.ask(&request.sign(&self.signer))
    }

    /// The answer to a request; data and ICMP errors that come first are passed over.
    #[track_caller]
    fn ask(&self, request: &Request) -> Reply {
        self.socket.send(&request.bytes()).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let length = self.socket.recv(&mut buffer).expect("an answer");
            // The bits of the class: neither a request nor an indication (RFC 8489 §5).
            if buffer[0] >> 6 == 0 && buffer[0] & 1 == 1 {
                return Reply::parse(&buffer[..length]);
            }
        }
    }

    /// Whether a packet gets to `peer`, which is bound to the channel, and back.
    #[track_caller]
    pub fn bind(&self, peer: SocketAddr) {
        assert_eq!(
            self.ask_signed(Request::channel_bind(CHANNEL, peer)).code(),
            0
        );
    }

    /// Sends application data on the channel.
    pub fn send(&self, data: &[u8]) {
        self.socket.send(&channel_data(CHANNEL, data)).unwrap();
    }

    /// The next application data on the channel.
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).expect("application data");
        assert_eq!(buffer[..2], CHANNEL.to_be_bytes());
        buffer[4..length].to_vec()
    }

    /// The code of a refresh with the nonce of the first request.
    #[track_caller]
    pub fn refresh(&self) -> u16 {
        self.ask_signed(Request::refresh(600)).code()
    }

    /// Whether data goes to the bound `peer` and back within a while.
    pub fn echoes(&self, peer: &UdpSocket) -> bool {
        self.echoes_by(CHANNEL, peer, self.relayed)
    }

    /// The same on another channel, by one of its relayed addresses.
    pub fn echoes_by(&self, channel: u16, peer: &UdpSocket, relayed: SocketAddr) -> bool {
        let mut buffer = [0; 2048];
        let patience = Some(Duration::from_secs(2));
        self.socket.set_read_timeout(patience).unwrap();
        peer.set_read_timeout(patience).unwrap();
        self.socket.send(&channel_data(channel, b"there")).unwrap();
        let there = peer.recv_from(&mut buffer);
        let Ok((_, from)) = there else { return false };
        assert_eq!(from, relayed);
        peer.send_to(b"back", from).unwrap();
        let back = self.socket.recv(&mut buffer);
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        back.is_ok_and(|length| buffer[..length] == channel_data(channel, b"back"))
    }
}

pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A client on TCP or TLS.
pub struct StreamClient {
    connection: Box<dyn Stream>,
    signer: Signer,
    pub relayed: SocketAddr,
}

impl StreamClient {
    #[track_caller]
    pub fn tcp(server: SocketAddr) -> Self {
        Self::allocate(server, Box::new(connect(server)))
    }

    /// Behind a proxy, which begins with `header`.
    #[track_caller]
    pub fn behind(server: SocketAddr, header: &[u8]) -> Self {
        let mut connection = connect(server);
        connection.write_all(header).unwrap();
        Self::allocate(server, Box::new(connection))
    }

    #[track_caller]
    pub fn tls(server: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::IpAddress(server.ip().into());
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self::allocate(
            server,
            Box::new(StreamOwned::new(connection, connect(server))),
        )
    }

    #[track_caller]
    fn allocate(server: SocketAddr, connection: Box<dyn Stream>) -> Self {
        let mut client = Self {
            connection,
            signer: Signer::new(USER, PASSWORD, ""),
            relayed: server,
        };
        let challenge = client.ask(&Request::allocate());
        client.signer = Signer::new(USER, PASSWORD, &challenge.nonce());
        let reply = client.ask_signed(Request::allocate());
        assert_eq!(reply.code(), 0);
        client.relayed = reply.relayed();
        client
    }

    /// With an allocation that relays connections.
    #[track_caller]
    pub fn relaying_tcp(server: SocketAddr) -> Self {
        let mut client = Self {
            connection: Box::new(connect(server)),
            signer: Signer::new(USER, PASSWORD, ""),
            relayed: server,
        };
        let challenge = client.ask(&Request::allocate());
        client.signer = Signer::new(USER, PASSWORD, &challenge.nonce());
        let reply = client.ask_signed(Request::allocate_tcp());
        assert_eq!(reply.code(), 0);
        client.relayed = reply.relayed();
        client
    }

    /// The data connection of this client's connection `id` with a peer.
    #[track_caller]
    pub fn data(&self, server: SocketAddr, id: u32) -> Self {
        let mut data = Self {
            connection: Box::new(connect(server)),
            signer: self.signer.clone(),
            relayed: self.relayed,
        };
        assert_eq!(data.ask_signed(Request::connection_bind(id)).code(), 0);
        data
    }

    /// The next `length` bytes, fewer if it ends before.
    pub fn read(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = self.connection.as_mut().take(length);
        let _ = rest.read_to_end(&mut bytes);
        bytes
    }

    #[track_caller]
    pub fn bind(&mut self, peer: SocketAddr) {
        let reply = self.ask_signed(Request::channel_bind(CHANNEL, peer));
        assert_eq!(reply.code(), 0);
    }

    pub fn send(&mut self, data: &[u8]) {
        self.write(&padded_channel_data(CHANNEL, data));
    }

    /// Any bytes, such as half a frame.
    pub fn write(&mut self, bytes: &[u8]) {
        self.connection.write_all(bytes).unwrap();
        self.connection.flush().unwrap();
    }

    /// The next application data on the channel.
    #[track_caller]
    pub fn receive(&mut self) -> Vec<u8> {
        let frame = self.frame();
        assert_eq!(frame[..2], CHANNEL.to_be_bytes());
        frame[4..].to_vec()
    }

    pub fn ask_signed(&mut self, request: Request) -> Reply {
        let request = self.signed(request);
        self.ask(&request)
    }

    pub fn signed(&self, request: Request) -> Request {
        request.sign(&self.signer)
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.write(&request.bytes());
        self.answer()
    }

    /// The next frame, which has to be an answer.
    #[track_caller]
    pub fn answer(&mut self) -> Reply {
        Reply::parse(&self.frame())
    }

    /// The next frame, without its padding.
    #[track_caller]
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 4];
        self.connection.read_exact(&mut frame).expect("a frame");
        let length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
        let message = length + if frame[0] >> 6 == 1 { 4 } else { 20 };
        frame.resize(message.next_multiple_of(4), 0);
        self.connection
            .read_exact(&mut frame[4..])
            .expect("the rest of a frame");
        frame.truncate(message);
        frame
    }
}

fn connect(server: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(server).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.set_nodelay(true).unwrap();
    connection
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub sent: u64,
    pub received: u64,
    pub duplicates: u64,
    /// The longest way of a packet there and back.
    pub longest_trip: Duration,
    /// The longest time between two packets of one client.
    pub longest_gap: Duration,
}

/// Traffic that goes on until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Traffic {
    /// `rate` packets a second in all from `clients`, one after the other.
    pub fn start(clients: Vec<Client>, rate: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let peers: Vec<UdpSocket> = (0..clients.len().div_ceil(CLIENTS_PER_PEER))
            .map(|_| UdpSocket::bind((clients[0].relayed.ip(), 0)).unwrap())
            .collect();
        for (index, client) in clients.iter().enumerate() {
            client.bind(peers[index / CLIENTS_PER_PEER].local_addr().unwrap());
        }
        let thread = std::thread::spawn(move || run(&clients, &peers, rate, &stopped));
        Self { stop, thread }
    }

    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn run(clients: &[Client], peers: &[UdpSocket], rate: u64, stop: &AtomicBool) -> Tally {
    let mut poller = Poller::new(512).unwrap();
    for (index, client) in clients.iter().enumerate() {
        client.socket.set_nonblocking(true).unwrap();
        poller.add(&client.socket, index as u64).unwrap();
    }
    for (index, peer) in peers.iter().enumerate() {
        peer.set_nonblocking(true).unwrap();
        poller.add(peer, PEER | index as u64).unwrap();
    }
    let begin = now();
    let mut tally = Tally::default();
    // When each packet was sent, until it came back; packet k is of client k % n.
    let mut sent: Vec<Option<Instant>> = Vec::new();
    let mut last: Vec<Option<Instant>> = vec![None; clients.len()];
    let mut stopped_at = None;
    let mut buffer = [0; 2048];
    loop {
        let at = now();
        if stopped_at.is_none() && stop.load(Ordering::Relaxed) {
            stopped_at = Some(at);
        }
        if stopped_at.is_none() {
            let elapsed = at.saturating_duration_since(begin);
            let due = (elapsed.as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
            // A generator that was held up sends late rather than all at once.
            for number in tally.sent..due.min(tally.sent + 64) {
                let client = &clients[number as usize % clients.len()];
                let packet = channel_data(CHANNEL, &number.to_be_bytes());
                client.socket.send(&packet).unwrap();
                sent.push(Some(now()));
                tally.sent += 1;
            }
        }
        let over = |since: Instant| {
            tally.received == tally.sent || at.saturating_duration_since(since) > SETTLE
        };
        if stopped_at.is_some_and(over) {
            return tally;
        }
        poller.wait(Duration::from_millis(1));
        for &token in poller.tokens() {
            if token & PEER != 0 {
                let peer = &peers[(token & !PEER) as usize];
                while let Ok((length, from)) = peer.recv_from(&mut buffer) {
                    // A full buffer here would be no loss of the server's.
                    while peer.send_to(&buffer[..length], from).is_err() {
                        std::thread::yield_now();
                    }
                }
                continue;
            }
            let index = token as usize;
            while let Ok(length) = clients[index].socket.recv(&mut buffer) {
                assert_eq!(length, 12, "ChannelData of eight bytes");
                let number = u64::from_be_bytes(buffer[4..12].try_into().unwrap());
                assert_eq!(number as usize % clients.len(), index, "another client's");
                let at = now();
                match sent[number as usize].take() {
                    Some(began) => {
                        let trip = at.saturating_duration_since(began);
                        tally.longest_trip = tally.longest_trip.max(trip);
                        tally.received += 1;
                    }
                    None => tally.duplicates += 1,
                }
                if let Some(last) = last[index].replace(at) {
                    let gap = at.saturating_duration_since(last);
                    tally.longest_gap = tally.longest_gap.max(gap);
                }
            }
        }
    }
}
