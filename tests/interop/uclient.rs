//! coturn's `turnutils_uclient`, with coturn's echo peer or between two of its own clients.
//!
//! Without `-c` it asks for a port and the one above (EVEN-PORT with the R bit), and claims that by its token; with `-Z` for
//! both families in one allocation, by coturn's own number of the attribute, and has one of them deleted by chance. It picks
//! channel numbers from the whole range of RFC 5766, and asks for an even port (EVEN-PORT, without reserving
//! the next) in every second Allocate, by chance; no option turns that off. Over DTLS it tries
//! 1.0 as well until it is told that nobody speaks it. Over TLS it tries TLS 1.0 and 1.1 as well, one context at
//! a time, until the server accepts; and it takes what one TLS record carries for one message, however many there are,
//! hence the slower pace there. Clients that move are not tried over TLS: it goes on using a session that it has freed, in
//! one of four moves.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use crate::server::{
    OTHER_PASSWORD, OTHER_REALM, Options, PASSWORD, SECRET, Server, USER, is_free,
};
use crate::tools::{Process, find_tool, one_at_a_time, run};

const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Udp,
    Tcp,
    Tls,
    Dtls,
}

#[derive(Clone, Copy, PartialEq)]
enum Data {
    Channels,
    Indications,
}

#[derive(Clone, Copy, PartialEq)]
enum Peer {
    /// The clients' relayed addresses talk to each other.
    Clients,
    /// `turnutils_peer` on the loopback address of the relayed family.
    Echo,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, PartialEq)]
enum Credentials {
    LongTerm,
    Secret,
    /// Of one of three authorization servers, by chance, for each Allocate and Refresh.
    Token,
    /// Of another realm than the one that the server names, by the name of the user.
    Realm,
}

/// What each client allocates.
#[derive(Clone, Copy, PartialEq)]
enum Allocations {
    One,
    /// RTP's and RTCP's.
    Pair,
    /// IPv4 and IPv6 in one.
    Dual,
}

/// One run of the load generator.
#[derive(Clone, Copy)]
struct Run {
    transport: Transport,
    data: Data,
    peer: Peer,
    /// The address the server is reached at.
    server: Family,
    relayed: Family,
    credentials: Credentials,
    allocations: Allocations,
    /// DONT-FRAGMENT in Allocate and in Send.
    dont_fragment: bool,
    /// Clients take a ticket, go to another port, and send the Refresh that moves their allocation twice.
    moves: bool,
}

impl Run {
    const fn new(transport: Transport, data: Data, peer: Peer) -> Run {
        Run {
            transport,
            data,
            peer,
            server: Family::V4,
            relayed: Family::V4,
            credentials: Credentials::LongTerm,
            allocations: Allocations::One,
            dont_fragment: false,
            moves: false,
        }
    }

    const fn dont_fragment(self) -> Run {
        Run {
            dont_fragment: true,
            ..self
        }
    }

    const fn moving(self) -> Run {
        Run {
            moves: true,
            ..self
        }
    }

    const fn server(self, server: Family) -> Run {
        Run { server, ..self }
    }

    const fn relayed(self, relayed: Family) -> Run {
        Run { relayed, ..self }
    }

    const fn secret(self) -> Run {
        Run {
            credentials: Credentials::Secret,
            ..self
        }
    }

    const fn token(self) -> Run {
        Run {
            credentials: Credentials::Token,
            ..self
        }
    }

    /// A second allocation for each client on the port above, by RESERVATION-TOKEN.
    const fn rtcp(self) -> Run {
        Run {
            allocations: Allocations::Pair,
            ..self
        }
    }

    const fn realm(self) -> Run {
        Run {
            credentials: Credentials::Realm,
            ..self
        }
    }

    /// Allocations in both families; it relays by the second.
    const fn dual(self) -> Run {
        Run {
            allocations: Allocations::Dual,
            ..self
        }
    }

    /// Messages of each client, clients, and milliseconds between messages.
    fn load(&self) -> (u64, u64, u64) {
        if self.transport == Transport::Tls {
            (15, 2, 50)
        } else {
            (20, 2, 20)
        }
    }

    fn arguments(&self, server_port: u16, echo_port: u16) -> Vec<String> {
        let (messages, clients, interval) = self.load();
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &str| arguments.extend(words.split(' ').map(str::to_owned));
        match self.transport {
            Transport::Udp => {}
            Transport::Tcp => add("-t"),
            Transport::Tls => add("-t -S"),
            Transport::Dtls => add("-S"),
        }
        if self.data == Data::Indications {
            add("-s");
        }
        if self.dont_fragment {
            add("-g");
        }
        let relayed = address(self.relayed);
        match self.peer {
            Peer::Clients => add("-y"),
            Peer::Echo => add(&format!("-e {relayed} -r {echo_port}")),
        }
        match (self.allocations, self.relayed) {
            (Allocations::Dual, _) => {}
            (_, Family::V4) => add("-X"),
            (_, Family::V6) => add("-x"),
        }
        add(&match self.credentials {
            Credentials::LongTerm => format!("-u {USER} -w {PASSWORD}"),
            Credentials::Secret => format!("-u bob -W {SECRET}"),
            Credentials::Token => "-J".to_owned(),
            Credentials::Realm => format!("-u {USER}@{OTHER_REALM} -w {OTHER_PASSWORD}"),
        });
        add(match self.allocations {
            // No second, RTCP, allocation for each client.
            Allocations::One => "-c",
            Allocations::Pair => "-v",
            // An IPv6 peer is reached through the second address: without -x nothing else asks for it.
            Allocations::Dual => "-Z",
        });
        if self.moves {
            add("-M");
        }
        add(&format!(
            "-n {messages} -m {clients} -z {interval} -l 200 -p {server_port}"
        ));
        add(address(self.server));
        arguments
    }
}

fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "127.0.0.1",
        Family::V6 => "::1",
    }
}

fn check(test: &str, case: Run) {
    let Some(uclient) = find_tool(test, "turnutils_uclient") else {
        return;
    };
    let Some(echo) = find_tool(test, "turnutils_peer") else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        loopback_peers: case.peer == Peer::Echo,
        secret: case.credentials == Credentials::Secret,
        oauth: case.credentials == Credentials::Token,
        realm: case.credentials == Credentials::Realm,
        ..Options::default()
    });
    // It takes the port above its own as well.
    let echo_port = server.port + 15;
    assert!(
        is_free(echo_port) && is_free(echo_port + 1),
        "port of the echo peer"
    );
    let _echo = (case.peer == Peer::Echo).then(|| {
        let mut command = Command::new(echo);
        command.args(["-L", "127.0.0.1", "-L", "::1", "-p", &echo_port.to_string()]);
        let process = Process::start(&mut command, server.dir().join("peer.log"));
        // Its sockets are bound once nobody else can bind them.
        crate::tools::wait_for("the echo peer", Duration::from_secs(5), || {
            std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, echo_port + 1))
                .is_err()
                .then_some(())
        });
        process
    });

    let arguments = case.arguments(server.port, echo_port);
    let (status, output) = run(
        Command::new(uclient).args(&arguments),
        server.dir(),
        TIMEOUT,
    );

    let line = arguments.join(" ");
    assert!(
        status.is_some_and(|status| status.success()),
        "uclient {line}: {status:?}\n{output}"
    );
    let (messages, clients, _) = case.load();
    let total = match (case.allocations, case.peer) {
        // RTCP goes between clients only.
        (Allocations::Pair, Peer::Clients) => 2 * messages * clients,
        _ => messages * clients,
    };
    let received = format!("tot_send_msgs={total}, tot_recv_msgs={total}");
    assert!(
        output.contains(&received),
        "uclient {line}: no {received}\n{output}"
    );
    let no_loss = "Total lost packets 0 (0.000000%), total send dropped 0 (0.000000%)";
    assert!(output.contains(no_loss), "uclient {line}: loss\n{output}");

    let path = if case.peer == Peer::Clients {
        "hairpin"
    } else {
        "kernel"
    };
    // Every message is 200 bytes and crosses the relay once in each direction: out at the sender's allocation and in at
    // the receiver's, or to the echo peer and back.
    let packets = f64::from(u32::try_from(total).expect("a small number"));
    server.wait_for_metrics("exactly what was relayed is counted", |metrics| {
        ["to_peer", "to_client"].iter().all(|direction| {
            let labels = [("direction", *direction), ("path", path)];
            metrics.sum("turn_relayed_packets_total", &labels) == packets
                && metrics.sum("turn_relayed_bytes_total", &labels) == 200.0 * packets
        })
    });
    if case.moves {
        // The one to look around with moves as well.
        let moves = f64::from(u32::try_from(clients + 1).expect("a small number"));
        server.wait_for_metrics("all of them have moved", |metrics| {
            metrics.sum("turn_mobility_total", &[("result", "ok")]) >= moves
        });
    }
    if case.transport == Transport::Udp && case.allocations == Allocations::Dual {
        // It has one family or the other deleted, by chance, and forgets the rest.
        return;
    }
    let transport = match case.transport {
        Transport::Udp => "udp",
        Transport::Dtls => "dtls",
        // Whoever closes a connection may come back within half a minute.
        Transport::Tcp | Transport::Tls if case.moves => return,
        Transport::Tcp | Transport::Tls => return server.wait_until_idle(),
    };
    // Over UDP it gives back the allocations that relayed, and forgets the one it made for each to look around.
    let forgotten = if case.peer == Peer::Clients {
        clients / 2
    } else {
        clients
    };
    let forgotten = f64::from(u32::try_from(forgotten).expect("a small number"));
    server.wait_for_metrics("the allocations are given back", |metrics| {
        metrics.sum("turn_allocations", &[("transport", transport)]) == forgotten
    });
}

use Data::{Channels, Indications};
use Family::V6;
use Peer::{Clients, Echo};
use Transport::{Dtls, Tcp, Tls, Udp};

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(#[test]
        fn $name() {
            check(concat!("uclient::", stringify!($name)), $case);
        })*
    };
}

cases! {
    udp_channels_between_clients: Run::new(Udp, Channels, Clients);
    udp_indications_between_clients: Run::new(Udp, Indications, Clients);
    udp_channels_to_echo_peer: Run::new(Udp, Channels, Echo);
    udp_indications_to_echo_peer: Run::new(Udp, Indications, Echo);
    tcp_channels_between_clients: Run::new(Tcp, Channels, Clients);
    tcp_indications_to_echo_peer: Run::new(Tcp, Indications, Echo);
    tls_channels_between_clients: Run::new(Tls, Channels, Clients);
    tls_indications_to_echo_peer: Run::new(Tls, Indications, Echo);
    dtls_channels_between_clients: Run::new(Dtls, Channels, Clients);
    dtls_indications_to_echo_peer: Run::new(Dtls, Indications, Echo);
    dtls_over_ipv6: Run::new(Dtls, Channels, Clients).server(V6);
    ipv6_relay_for_ipv4_clients: Run::new(Udp, Channels, Clients).relayed(V6);
    ipv6_clients_of_ipv4_relay: Run::new(Udp, Channels, Clients).server(V6);
    ipv6_everywhere_to_echo_peer: Run::new(Udp, Indications, Echo).server(V6).relayed(V6);
    ipv6_tcp_to_ipv6_relay: Run::new(Tcp, Channels, Echo).server(V6).relayed(V6);
    rtcp_on_the_port_above_between_clients: Run::new(Udp, Channels, Clients).rtcp();
    rtcp_on_the_port_above_over_tcp: Run::new(Tcp, Indications, Echo).rtcp();
    both_families_to_ipv6_echo_peer: Run::new(Udp, Channels, Echo).relayed(V6).dual();
    both_families_to_ipv6_echo_peer_over_tcp: Run::new(Tcp, Indications, Echo).relayed(V6).dual();
    udp_dont_fragment_to_echo_peer: Run::new(Udp, Indications, Echo).dont_fragment();
    tcp_dont_fragment_to_echo_peer: Run::new(Tcp, Indications, Echo).dont_fragment();
    dont_fragment_to_ipv6_peer: Run::new(Udp, Indications, Echo).relayed(V6).dont_fragment();
    udp_clients_that_move: Run::new(Udp, Channels, Clients).moving();
    udp_clients_that_move_and_send_indications: Run::new(Udp, Indications, Echo).moving();
    tcp_clients_that_move: Run::new(Tcp, Channels, Clients).moving();
    secret_over_udp: Run::new(Udp, Channels, Clients).secret();
    secret_over_tcp: Run::new(Tcp, Channels, Clients).secret();
    secret_over_tls: Run::new(Tls, Channels, Echo).secret();
    realm_by_suffix: Run::new(Udp, Channels, Clients).realm();
    token_over_udp: Run::new(Udp, Channels, Clients).token();
    token_over_tcp: Run::new(Tcp, Channels, Echo).token();
    token_over_tls: Run::new(Tls, Indications, Clients).token();
}

/// TCP allocations (RFC 6062): its clients connect to each other's relayed addresses, each with a data connection.
///
/// It asks all of a client's connections at once and takes no note of which it was refused, so one pair is enough.
fn check_tcp_allocations(test: &str, flags: &[&str]) {
    const MESSAGES: u64 = 20;
    let Some(uclient) = find_tool(test, "turnutils_uclient") else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let (port, messages) = (server.port.to_string(), MESSAGES.to_string());
    let mut command = Command::new(uclient);
    command.arg("-T").args(flags).args(["-X", "-c", "-m", "2"]);
    command.args(["-u", USER, "-w", PASSWORD, "-n", &messages]);
    command.args(["-z", "20", "-l", "1000", "-p", &port, "127.0.0.1"]);
    let (status, output) = run(&mut command, server.dir(), TIMEOUT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );
    let total = 2 * MESSAGES;
    let received = format!("tot_send_msgs={total}, tot_recv_msgs={total}");
    assert!(output.contains(&received), "no {received}\n{output}");
    assert!(
        output.contains("Total lost packets 0 (0.000000%), total send dropped 0 (0.000000%)"),
        "{output}"
    );
    let bytes = 1000.0 * f64::from(u32::try_from(total).expect("a small number"));
    server.wait_for_metrics("what was relayed is counted", |metrics| {
        let relayed = |direction| {
            let labels = [("direction", direction), ("path", "kernel")];
            metrics.sum("turn_relayed_bytes_total", &labels)
        };
        relayed("to_peer") == bytes && relayed("to_client") == bytes
    });
    server.wait_for_metrics("requests are answered", |metrics| {
        ["connect", "connection_bind"].iter().all(|method| {
            let labels = [("method", *method), ("result", "ok")];
            metrics.sum("turn_requests_total", &labels) >= 1.0
        })
    });
    server.wait_until_idle();
    server.wait_for_metrics("no connection is left", |metrics| {
        metrics.sum("turn_peer_connections", &[]) == 0.0
            && metrics.sum("turn_stream_connections", &[]) == 0.0
    });
}

#[test]
fn tcp_allocations_over_tcp() {
    check_tcp_allocations("uclient::tcp_allocations_over_tcp", &[]);
}

#[test]
fn tcp_allocations_over_tls() {
    check_tcp_allocations("uclient::tcp_allocations_over_tls", &["-S"]);
}

/// The load generator must tell a refusal from a success, or the runs above would prove nothing.
#[test]
fn wrong_password_is_refused() {
    let Some(uclient) = find_tool("uclient::wrong_password_is_refused", "turnutils_uclient") else {
        return;
    };
    let server = Server::start(Options::default());
    let port = server.port.to_string();
    let arguments = [
        "-y",
        "-c",
        "-n",
        "5",
        "-m",
        "2",
        "-u",
        USER,
        "-w",
        "wrong",
        "-p",
        &port,
        "127.0.0.1",
    ];
    let (status, output) = run(Command::new(uclient).args(arguments), server.dir(), TIMEOUT);
    assert!(
        status.is_some_and(|status| !status.success()),
        "{status:?}\n{output}"
    );
    assert!(output.contains("Cannot complete Allocation"), "{output}");
    server.wait_for_metrics("the refusal is counted", |metrics| {
        metrics.sum("turn_auth_failures_total", &[("reason", "bad_password")]) >= 1.0
    });
    if let Some(why) = server.why("user", USER) {
        assert_eq!(why["verdict"]["code"], "bad_password", "{why}");
    }
}
