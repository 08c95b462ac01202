//! What systemd is told, and what it gives.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use turnix::app;
use turnix::config::{Config, Sources};

use super::process::{CONFIG, Process};
use super::server::{PATIENCE, now, quiet_address, until};

const WATCHDOG: Duration = Duration::from_millis(1500);

#[test]
fn ready_comes_when_the_server_serves() {
    let process = Process::start(CONFIG);
    // No patience: ready means that all of it is there.
    process.client().allocate();
    let mut stream = process.tcp_client_on(3478);
    stream.allocate();
    assert_eq!(process.http("GET", "/ready").0, 200);
    until("how it goes is told", || {
        process.heard("STATUS=2 allocations, 0.0 Mbit/s")
    });
    let told = process.told();
    assert!(!told.concat().contains("WATCHDOG"), "nobody asked for it");
    assert_eq!(
        told.iter()
            .filter(|message| message.contains("READY=1"))
            .count(),
        1
    );
}

#[test]
fn a_server_that_cannot_start_is_never_ready() {
    let ip = quiet_address();
    let _taken = UdpSocket::bind((ip, 3478)).unwrap();
    let mut process = Process::spawn(CONFIG, ip, |_| {});
    assert_eq!(process.exit_code(), Some(2));
    assert!(!process.heard("READY=1"));
}

#[test]
fn a_shard_that_hangs_starves_the_watchdog() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "systemd::serves_with_a_shard_that_hangs",
        "--ignored",
    ]);
    let mut process = Process::run(command, CONFIG, quiet_address(), |command| {
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    });
    process.await_ready();
    let fed = || {
        let told = process.told();
        told.iter()
            .filter(|message| message.contains("WATCHDOG=1"))
            .count()
    };
    until("the watchdog is fed", || fed() >= 2);
    std::fs::write(process.file("hang"), "").unwrap();
    until("the shard hangs", || process.file("hangs").exists());
    // One question may have been answered just before.
    std::thread::sleep(WATCHDOG);
    let before = fed();
    std::thread::sleep(WATCHDOG * 2);
    assert_eq!(fed(), before, "it is fed though a shard hangs");
    // The other shard and the rest of the process are well: it is the one shard that counts.
    assert_eq!(process.http("GET", "/api/v1/nothing").0, 404);
    until("the watchdog is fed again", || fed() > before);
}

/// The process of the test above: serves until its file `hang` is there, then keeps one shard busy for a while.
#[test]
#[ignore = "a process that another test runs"]
fn serves_with_a_shard_that_hangs() {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sources = Sources {
        file: Some("turnix.toml".into()),
        ..Sources::default()
    };
    let running = app::start(Config::load(&sources).unwrap()).unwrap();
    let shards = running.shards().clone();
    std::thread::spawn(move || {
        let deadline = now() + PATIENCE * 4;
        while !std::path::Path::new("hang").exists() && now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        shards.hold(0, WATCHDOG * 6);
        std::fs::write("hangs", "").unwrap();
    });
    let set_log: app::SetLog = Box::new(|_| {});
    running.serve(&sources, &set_log).unwrap();
}

/// Gives the child `socket` as systemd would, apart from its number.
fn give(command: &mut Command, socket: &impl AsRawFd) {
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string());
}

#[test]
fn a_tcp_socket_of_systemd_is_listened_on() {
    let ip = quiet_address();
    let socket = TcpListener::bind((ip, 3478)).unwrap();
    SockRef::from(&socket).set_cloexec(false).unwrap();
    let mut process = Process::spawn(CONFIG, ip, |command| give(command, &socket));
    drop(socket);
    process.await_ready();
    process.tcp_client_on(3478).allocate();
    process.client().allocate();
}

fn udp_socket(ip: std::net::Ipv4Addr, reuse_port: bool) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_port(reuse_port).unwrap();
    socket
        .bind(&std::net::SocketAddr::from((ip, 3478)).into())
        .unwrap();
    socket.set_cloexec(false).unwrap();
    socket
}

#[test]
fn a_udp_socket_of_systemd_is_shared_by_the_shards() {
    let ip = quiet_address();
    let socket = udp_socket(ip, true);
    let mut process = Process::spawn(CONFIG, ip, |command| give(command, &socket));
    drop(socket);
    process.await_ready();
    let mut clients: Vec<_> = (0..32).map(|_| process.client()).collect();
    for client in &mut clients {
        client.allocate();
    }
    let (_, live) = process.http("GET", "/api/v1/allocations");
    let of_shard = |shard: &str| {
        (live.as_array().unwrap().iter())
            .filter(|one| one["id"].as_str().unwrap().starts_with(shard))
            .count()
    };
    // By chance all are in one shard once in 2^31.
    assert!(of_shard("0-") > 0 && of_shard("1-") > 0, "{live}");
}

#[test]
fn a_udp_socket_that_cannot_be_shared_is_refused_with_the_way_out() {
    let ip = quiet_address();
    let socket = udp_socket(ip, false);
    let mut process = Process::spawn(CONFIG, ip, |command| give(command, &socket));
    assert_eq!(process.exit_code(), Some(2));
    assert!(process.log().contains("ReusePort=yes"), "{}", process.log());
    let alone = CONFIG.replace("shards = 2", "shards = 1");
    let mut process = Process::spawn(&alone, ip, |command| give(command, &socket));
    process.await_ready();
    process.client().allocate();
}
