//! The attackers: one thread each, on the calls' CPU at the least priority, until they are told to stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use turnix::net::host;

/// One way to be a nuisance.
pub struct Attack {
    /// For `--attacks`.
    pub name: &'static str,
    /// In the table.
    pub what: &'static str,
    run: fn(&Target<'_>),
}

/// Every attack.
pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "slow-loris",
        what: "slow loris: 2000 HTTP requests, a byte at a time",
        run: |target| {
            target.hold(
                2000,
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
                b"x",
            )
        },
    },
    Attack {
        name: "half-frames",
        what: "2000 TURN messages over TCP, a byte at a time",
        run: |target| target.hold(2000, &ENDLESS_MESSAGE, b"\0"),
    },
    Attack {
        name: "silent",
        what: "10 000 TCP connections that say nothing",
        run: |target| target.hold(10_000, b"", b""),
    },
    Attack {
        name: "half-hellos",
        what: "2000 ClientHellos, a byte at a time",
        run: |target| target.hold(2000, &[0x16, 3, 1, 0x20, 0, 1, 0, 0x1F, 0xFC, 3, 3], b"\0"),
    },
    Attack {
        name: "connects",
        what: "connections made and reset",
        run: |target| target.repeat(b"", false),
    },
    Attack {
        name: "tls-garbage",
        what: "TLS records of garbage",
        run: |target| target.repeat(&garbage(), false),
    },
    Attack {
        name: "hellos",
        what: "ClientHellos, each answered with a signature",
        run: |target| target.repeat(&client_hello(), true),
    },
    Attack {
        name: "never-reading",
        what: "500 TCP clients that ask and never read",
        run: |target| target.hold(500, &BINDING.repeat(64), &BINDING.repeat(64)),
    },
    Attack {
        name: "strangers",
        what: "20 000 Allocate requests a second over UDP, from 255 addresses without credentials",
        run: |target| target.strangers(),
    },
];

/// A Binding request.
const BINDING: [u8; 20] = *b"\x00\x01\x00\x00\x21\x12\xa4\x42a request of";
/// The header of a message that says it is 1000 bytes long.
const ENDLESS_MESSAGE: [u8; 20] = *b"\x00\x03\x03\xe8\x21\x12\xa4\x42half message";

/// Between two rounds over connections that are held open.
const ROUND: Duration = Duration::from_millis(100);
/// 20 000 a second.
const STRANGERS_PER_ROUND: usize = 40;
const STRANGERS_ROUND: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(1);

/// What an attacker and who watches it share.
#[derive(Default)]
pub struct Shared {
    /// Datagrams, connections, or further pieces of one.
    pub attempts: AtomicU64,
    stop: AtomicBool,
}

/// An attack in progress; dropping it ends it.
pub struct Running {
    /// Its counter.
    pub shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Lets `attack` loose on `server`, `scale` times smaller than it is.
    pub fn start(attack: &'static Attack, server: SocketAddr, cpu: usize, scale: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            // Where it may not be pinned, the figures say so.
            let _ = host::pin_thread(cpu);
            host::stand_back(19);
            (attack.run)(&Target {
                server,
                shared: &theirs,
                scale,
            });
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Target<'a> {
    server: SocketAddr,
    shared: &'a Shared,
    scale: usize,
}

impl Target<'_> {
    fn goes_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.shared.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection of the `number`th: 500 of one address, which is fewer than an address may have open.
    fn connect(&self, number: usize) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let [_, _, high, low] = (number as u32 / 500).to_be_bytes();
        let from = Ipv4Addr::new(127, 1, high, low.wrapping_add(1));
        socket.bind(&SockAddr::from(SocketAddr::from((from, 0))))?;
        // Closed, it leaves nothing behind that would use up ports.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect_timeout(&self.server.into(), PATIENCE)?;
        Ok(socket.into())
    }

    /// Keeps `most` connections that begin with `opening` and go on with `more` in every round.
    fn hold(&self, most: usize, opening: &[u8], more: &[u8]) {
        let most = (most / self.scale).max(2);
        let mut held: Vec<Option<TcpStream>> = (0..most).map(|_| None).collect();
        while self.goes_on() {
            for (number, place) in held.iter_mut().enumerate() {
                if !self.goes_on() {
                    break;
                }
                match place {
                    None => {
                        if let Ok(mut connection) = self.connect(number)
                            && connection.set_nonblocking(true).is_ok()
                            && connection.write_all(opening).is_ok()
                        {
                            self.count();
                            *place = Some(connection);
                        }
                    }
                    Some(connection) => {
                        let open = match more {
                            b"" => {
                                matches!(connection.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
                            }
                            more => match connection.write(more) {
                                Ok(_) => {
                                    self.count();
                                    true
                                }
                                Err(error) => error.kind() == ErrorKind::WouldBlock,
                            },
                        };
                        if !open {
                            *place = None;
                        }
                    }
                }
            }
            std::thread::sleep(ROUND);
        }
    }

    /// Connects, says `opening`, waits for an answer if there is one, and goes away; again and again.
    fn repeat(&self, opening: &[u8], answered: bool) {
        let mut number = 0;
        while self.goes_on() {
            number = (number + 1) % 16_000;
            let Ok(mut connection) = self.connect(number) else {
                continue;
            };
            if !opening.is_empty() && connection.write_all(opening).is_err() {
                continue;
            }
            if answered {
                let _ = connection.set_read_timeout(Some(PATIENCE));
                if !matches!(connection.read(&mut [0; 4096]), Ok(length) if length > 0) {
                    continue;
                }
            }
            self.count();
        }
    }

    /// At a pace: whoever fills a listener's queue makes all of its clients lose packets, and no latency tells of that.
    fn strangers(&self) {
        let sockets: Vec<UdpSocket> = (1..=255)
            .filter_map(|low| UdpSocket::bind((Ipv4Addr::new(127, 2, 0, low), 0)).ok())
            .collect();
        // Allocate with REQUESTED-TRANSPORT.
        let mut request =
            *b"\x00\x03\x00\x08\x21\x12\xa4\x42a stranger!!\x00\x19\x00\x04\x11\x00\x00\x00";
        let mut turn = 0_u64;
        let burst = (STRANGERS_PER_ROUND / self.scale).max(1);
        let mut sockets = sockets.iter().cycle();
        while self.goes_on() {
            for socket in sockets.by_ref().take(burst) {
                turn += 1;
                request[8..16].copy_from_slice(&turn.to_be_bytes());
                if socket.send_to(&request, self.server).is_ok() {
                    self.count();
                }
            }
            std::thread::sleep(STRANGERS_ROUND);
        }
    }
}

/// A record that claims to be a handshake, and is none.
fn garbage() -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 0x0F, 0x00, 0x63, 0xFF];
    bytes.resize(5 + 0x0F00, 0xA5);
    bytes
}

/// A ClientHello that a server answers (RFC 5246 §7.4.1.2): TLS 1.2, ECDHE with ECDSA over X25519 or P-256.
fn client_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 13, 0, 6, 0, 4, 4, 3, 8, 4, // signature_algorithms
        0, 10, 0, 6, 0, 4, 0, 29, 0, 23, // supported_groups
        0, 11, 0, 2, 1, 0, // ec_point_formats
        0, 23, 0, 0, // extended_master_secret
    ];
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2C, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1, length[1], length[2], length[3]], &body[..]].concat();
    let length = (message.len() as u16).to_be_bytes();
    [&[0x16, 3, 1, length[0], length[1]], &message[..]].concat()
}
