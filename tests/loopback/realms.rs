//! Realms on a real server: by the name that TLS asks for, by the names of users, with quotas of their own.

use std::io::{Read, Write};
use std::net::TcpStream;

use turnix::base::{Family, Transport};

use super::client::Client;
use super::common::wire::{REALM, Request, Signer};
use super::common::world::{PASSWORD, USER};
use super::server::{BOTH, PATIENCE, Server};

const REALMS: &str = r#"realms=[{ name = "b.example", server_names = ["TURN.b.example"], users = { alice = "of b", bob = "of b", carol = "of b" }, allocations = 3, allocations_per_user = 2 }]"#;

/// Logs in for the realm that the server names.
fn log_in(client: &mut Client, user: &str, password: &str) -> String {
    let challenge = client.ask(&Request::allocate());
    assert_eq!(challenge.code(), 401);
    let realm = challenge.text(stun::attributes::ATTR_REALM).unwrap();
    client.signer = Some(Signer {
        realm: realm.clone(),
        ..Signer::new(user, password, &challenge.nonce())
    });
    realm
}

/// A client that asks for `name`, whatever the certificate says.
fn asking(server: &Server, name: &str) -> Client {
    Client::asking(server, Family::V4, name)
}

#[test]
fn by_the_server_name_and_by_the_name_of_the_user() {
    let server = Server::with(BOTH, &[REALMS]);
    let mut by_name = asking(&server, "turn.B.example");
    assert_eq!(log_in(&mut by_name, USER, "of b"), "b.example");
    let relayed = by_name.allocate();
    assert_eq!(&*server.allocation(relayed).view.user, "alice@b.example");

    let mut by_suffix = Client::udp(&server);
    assert_eq!(log_in(&mut by_suffix, "bob@b.example", "of b"), REALM);
    let relayed = by_suffix.allocate();
    assert_eq!(&*server.allocation(relayed).view.user, "bob@b.example");

    // Of the default realm: other names, and none.
    for mut client in [
        asking(&server, "turn.example.org"),
        Client::new(&server, Transport::Tls, Family::V4),
    ] {
        assert_eq!(log_in(&mut client, USER, PASSWORD), REALM);
        let relayed = client.allocate();
        assert_eq!(&*server.allocation(relayed).view.user, USER);
        client.release();
    }
    // A connection does not change sides, and users of one are nobody in the other.
    let mut stranger = asking(&server, "turn.b.example");
    log_in(&mut stranger, USER, PASSWORD);
    assert_eq!(stranger.code_of(Request::allocate()), 401);
    let mut stranger = Client::udp(&server);
    log_in(&mut stranger, USER, "of b");
    assert_eq!(stranger.code_of(Request::allocate()), 401);

    by_name.release();
    log_in(&mut by_name, "alice@b.example", "of b");
    by_name.allocate();
}

#[test]
fn quotas_of_a_realm_are_its_own() {
    let server = Server::with(BOTH, &[REALMS]);
    let come = |user: &str, password: &str| {
        let mut client = Client::udp(&server);
        log_in(&mut client, user, password);
        let code = client.code_of(Request::allocate());
        (code, client)
    };
    let (code, mut first) = come("alice@b.example", "of b");
    assert_eq!(code, 0);
    let (code, _second) = come("alice@b.example", "of b");
    assert_eq!(code, 0);
    assert_eq!(
        come("alice@b.example", "of b").0,
        486,
        "allocations_per_user"
    );
    assert_eq!(come("bob@b.example", "of b").0, 0);
    assert_eq!(come("carol@b.example", "of b").0, 486, "allocations");
    assert_eq!(server.realms(), [("b.example".to_owned(), 3)]);
    // Others notice nothing.
    for _ in 0..4 {
        assert_eq!(come(USER, PASSWORD).0, 0);
    }
    first.release();
    assert_eq!(server.realms(), [("b.example".to_owned(), 2)]);
    assert_eq!(come("carol@b.example", "of b").0, 0);
}

#[test]
fn api_keys_mint_for_their_realm() {
    let realms = r#"realms=[{ name = "b.example", secrets = ["of b"] }]"#;
    let keys =
        r#"api.keys=[{ id = "b", secret = "through the rabbit hole", realm = "b.example" }]"#;
    let server = Server::with(BOTH, &[realms, keys]);
    let to = server.address(Family::V4);
    let mut http = TcpStream::connect(to).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        http,
        "GET /api/webrtc/config?user=dave HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer through the rabbit hole\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    let find = |name: &str| {
        let servers = body["iceServers"].as_array().unwrap().iter();
        let mut found = servers.filter_map(|server| server[name].as_str());
        found.next().unwrap_or_else(|| panic!("{body}")).to_owned()
    };
    let (user, password) = (find("username"), find("credential"));
    assert!(user.ends_with(":dave@b.example;key=b"), "{user}");
    let mut client = Client::udp(&server);
    assert_eq!(log_in(&mut client, &user, &password), REALM);
    let relayed = client.allocate();
    assert_eq!(&*server.allocation(relayed).view.user, "dave@b.example");
}
