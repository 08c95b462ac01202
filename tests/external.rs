//! How relay addresses look from outside: metadata services and STUN servers that answer right, wrong or not at all.
//! Whole servers behind a NAT are in `tests/nat/run`.

#[path = "common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stun::message::{BINDING_SUCCESS, Message, Setter};
use stun::xoraddr::XorMappedAddress;
use turnix::app;
use turnix::base::Clock;
use turnix::base::addr::is_private;
use turnix::config::{Config, Sources};
use turnix::external::{Cloud, Look, PATIENCE, Seen, Settings, Source, look, stun_server};
use turnix::net::{AddressChanges, host};

const LOCAL: [u8; 4] = [10, 0, 0, 5];
const PUBLIC: [u8; 4] = [203, 0, 113, 7];

fn find(settings: &Settings, locals: &[IpAddr]) -> Look {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let found = runtime.block_on(look(settings, locals));
    runtime.shutdown_background();
    found
}

fn own(local: IpAddr) -> Seen {
    Seen {
        local,
        external: local,
        source: Source::Interface,
    }
}

/// The only trouble that a look had, as people read it.
#[track_caller]
fn trouble(found: &Look) -> String {
    let [trouble] = &found.troubles[..] else {
        panic!("{found:?}");
    };
    format!("{}: {}; {}", trouble.key, trouble.found, trouble.remedy)
}

/// What clouds answer with, in a process that ends with the test.
struct Service {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Service {
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("python3")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/nat/metadata.py"
            ))
            .args(["127.0.0.1", "0"])
            .arg(directory.path().join("addresses"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            assert!(
                std::env::var_os("INTEROP_REQUIRE_TOOLS").is_none_or(|value| value != "1"),
                "python3 not found"
            );
            println!("SKIPPED: python3 not found");
            return None;
        };
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("port ").unwrap().parse().unwrap();
        // It goes on writing what it is asked.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Some(Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            directory,
        })
    }

    fn knows(&self, addresses: &str) {
        std::fs::write(self.directory.path().join("addresses"), addresses).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn of(cloud: Cloud, metadata_address: SocketAddr) -> Settings {
    Settings {
        metadata: vec![cloud],
        metadata_address,
        ..Settings::default()
    }
}

#[test]
fn every_cloud_tells_its_way() {
    let Some(service) = Service::start() else {
        return;
    };
    service.knows(r#"{"10.0.0.5": "203.0.113.7"}"#);
    for (name, cloud) in Cloud::ALL {
        let found = find(&of(cloud, service.address), &[LOCAL.into()]);
        let expected = Seen {
            local: LOCAL.into(),
            external: PUBLIC.into(),
            source: Source::Metadata(cloud),
        };
        assert_eq!(found.seen, [expected], "{name}: {:?}", found.troubles);
        assert_eq!(found.troubles, []);
        assert_eq!(Source::from_label(name), Some(Source::Metadata(cloud)));
    }
    // Several are asked at once; the one that it is answers.
    let both = Settings {
        metadata: vec![Cloud::Oracle, Cloud::Aws],
        ..of(Cloud::Aws, service.address)
    };
    service.knows(r#"{"10.0.0.5": "203.0.113.7", "10.0.0.6": "203.0.113.8"}"#);
    let locals = [[10, 0, 0, 6].into(), LOCAL.into(), [10, 0, 0, 7].into()];
    let found = find(&both, &locals);
    let externals: Vec<IpAddr> = found.seen.iter().map(|seen| seen.external).collect();
    assert_eq!(
        externals[..2],
        [IpAddr::from([203, 0, 113, 8]), PUBLIC.into()],
        "{found:?}"
    );
    assert!(found.out_of_reach(), "nobody knows 10.0.0.7: {found:?}");
    // Interfaces' own public addresses need nobody.
    let public = find(&of(Cloud::Aws, service.address), &[PUBLIC.into()]);
    assert_eq!(public.seen, [own(PUBLIC.into())]);
    // What is private outside as well is no answer.
    service.knows(r#"{"10.0.0.5": "192.168.1.1"}"#);
    let found = find(&of(Cloud::Gcp, service.address), &[LOCAL.into()]);
    assert_eq!(found.seen, [own(LOCAL.into())]);
    assert!(
        trouble(&found)
            .starts_with("relay.metadata: the service knows no public address of 10.0.0.5; "),
        "{found:?}"
    );
}

#[test]
fn what_a_service_told_is_kept_while_it_is_silent_and_configured() {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = of(Cloud::Aws, silent.local_addr().unwrap());
    let begin = Clock.now().mono;
    let found = find(&settings, &[LOCAL.into()]);
    let took = Clock.now().mono.saturating_duration_since(begin);
    assert!(took < PATIENCE * 5, "{took:?}");
    let said = trouble(&found);
    assert!(said.contains("no answer within 1.5 s; "), "{said}");
    assert!(said.contains("--http-put-response-hop-limit 2"), "{said}");

    let before = [Seen {
        local: LOCAL.into(),
        external: PUBLIC.into(),
        source: Source::Metadata(Cloud::Aws),
    }];
    let kept = found.clone().keeping(&settings, &before);
    assert_eq!(kept.seen, before);
    let asks_no_more = found.keeping(&Settings::default(), &before);
    assert_eq!(asks_no_more.seen, [own(LOCAL.into())]);
}

#[test]
fn a_service_sends_nobody_elsewhere() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let elsewhere = other.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let found = find(&of(Cloud::Hetzner, address), &[LOCAL.into()]);
    let said = trouble(&found);
    assert!(said.contains("is answered 302"), "{said}");
    assert!(other.accept().is_err(), "a redirect was followed");
}

/// An address of this host that somebody outside would see otherwise.
fn private() -> Option<IpAddr> {
    let link_local = turnix::base::addr::is_link_local;
    let found = (host::interface_addresses().into_iter())
        .find(|ip| is_private(*ip) && !link_local(*ip) && UdpSocket::bind((*ip, 0)).is_ok());
    if found.is_none() {
        println!("SKIPPED: this host has no private address");
    }
    found
}

/// A STUN server on `ip` that tells everybody `external`; one that says nothing if there is none.
fn server(ip: IpAddr, external: Option<IpAddr>) -> String {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let Some(ip) = external else {
                continue;
            };
            let mut request = Message::new();
            request.unmarshal_binary(&buffer[..length]).unwrap();
            let mut answer = Message::new();
            answer.set_type(BINDING_SUCCESS);
            answer.transaction_id = request.transaction_id;
            answer.write_header();
            let mapped = XorMappedAddress { ip, port: 4321 };
            mapped.add_to(&mut answer).unwrap();
            socket.send_to(&answer.raw, client).unwrap();
        }
    });
    address
}

#[test]
fn stun_servers_have_to_agree() {
    let Some(local) = private() else {
        return;
    };
    let external = |last: u8| -> IpAddr {
        match local {
            IpAddr::V4(_) => [203, 0, 113, last].into(),
            IpAddr::V6(_) => format!("2001:db8::{last}").parse().unwrap(),
        }
    };
    let ask = |servers: &[Option<IpAddr>]| {
        let servers = servers.iter().map(|external| server(local, *external));
        let settings = Settings {
            stun_servers: servers.collect(),
            ..Settings::default()
        };
        find(&settings, &[local])
    };
    let (seven, eight) = (Some(external(7)), Some(external(8)));
    let found = ask(&[seven, seven, None]);
    let by_stun = Seen {
        local,
        external: external(7),
        source: Source::Stun,
    };
    assert_eq!(found.seen, [by_stun], "two of three: {:?}", found.troubles);
    assert_eq!(found.troubles, []);
    for (servers, says) in [
        (vec![seven, eight], "neither is believed"),
        (vec![seven, seven, eight], "neither is believed"),
        (vec![seven, None], "is not believed; name a second server"),
        (vec![None, None], "does not answer"),
        (vec![Some(local), Some(local)], "in the same network"),
    ] {
        let found = ask(&servers);
        assert_eq!(found.seen, [own(local)]);
        let said = trouble(&found);
        assert!(
            said.starts_with(&format!("relay.stun_servers: about {local}: ")),
            "{said}"
        );
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn names_of_servers_are_resolved_and_told_when_they_cannot_be() {
    let Some(local) = private() else {
        return;
    };
    let servers = ["one.invalid", "two.invalid"].map(|name| stun_server(name).unwrap());
    let settings = Settings {
        stun_servers: servers.to_vec(),
        ..Settings::default()
    };
    let said = trouble(&find(&settings, &[local]));
    assert!(said.contains("one.invalid:3478"), "{said}");
}

/// The answer to a request without a body.
fn ask(admin: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_running_server_looks_again_and_again() {
    let (Some(service), Some(local)) = (Service::start(), private()) else {
        return;
    };
    let external = |last: u8| match local {
        IpAddr::V4(_) => format!("203.0.113.{last}"),
        IpAddr::V6(_) => format!("2001:db8::{last}"),
    };
    let knows = |last| service.knows(&format!("{{\"{local}\": \"{}\"}}", external(last)));
    knows(7);
    let sources = Sources {
        set: [
            "auth.secrets=secret",
            "http.admin=127.0.0.1:0",
            "server.shards=1",
            "relay.metadata=gcp",
            &format!("relay.addresses={local}"),
            &format!("listen=[{{ address = \"{}\" }}]", SocketAddr::new(local, 0)),
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Sources::default()
    };
    let mut config = Config::load(&sources).unwrap();
    config.relay.discovery.metadata_address = service.address;
    config.relay.discovery.every = Duration::from_millis(50);
    let running = app::start(config).unwrap();
    let admin = running.started.admin.unwrap();
    assert_eq!(running.started.outside[0].external.to_string(), external(7));
    let set_log: app::SetLog = Box::new(|_| {});
    let served = std::thread::spawn(move || running.serve(&sources, &set_log));
    let shows = |last| {
        let series = format!(
            "{{local=\"{local}\",external=\"{}\",source=\"gcp\"}} 1",
            external(last)
        );
        let deadline = Clock.now().mono + Duration::from_secs(30);
        loop {
            let metrics = ask(admin, "GET /metrics");
            if metrics.contains(&series) {
                return metrics;
            }
            assert!(Clock.now().mono < deadline, "never {series}: {metrics}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert!(shows(7).contains("turn_external_address_changes_total 0"));
    knows(8);
    assert!(shows(8).contains("turn_external_address_changes_total 1"));
    let drained = ask(admin, "POST /api/v1/drain?deadline=0s");
    assert!(
        drained.contains(" 200 ") || drained.contains(" 202 "),
        "{drained}"
    );
    served.join().unwrap().unwrap();
}

#[test]
fn the_kernel_is_asked_for_changes_of_addresses() {
    let mut changes = AddressChanges::listen().unwrap();
    // Others on this machine may change theirs; what was told is taken and not told again.
    while changes.take() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
