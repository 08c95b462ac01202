//! The credential services of others, as their clients ask for them; what each hands out allocates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use turnix::base::Family;

use super::client::Client;
use super::server::{BOTH, Server};
use super::service::{Answer, KEY, ask_with, bearer, keys};

fn server() -> Server {
    Server::with(BOTH, &[&keys(r#"user_prefix = "app-""#)])
}

fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
}

fn query(secret: &str) -> String {
    secret.replace(' ', "%20")
}

fn ask(server: &Server, method: &str, path: &str, authorization: &str, body: &str) -> Answer {
    let fields = [
        ("Authorization", authorization),
        ("Content-Type", "application/json"),
    ];
    let fields = if authorization.is_empty() {
        &fields[1..]
    } else {
        &fields
    };
    ask_with(server.address(Family::V4), method, path, fields, body)
}

#[track_caller]
fn made(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

/// The credential allocates, for a user of that id.
#[track_caller]
fn allocates(server: &Server, username: &Value, password: &Value, user: &str) {
    let mut client = Client::udp(server);
    client.login(username.as_str().unwrap(), password.as_str().unwrap());
    let relayed = client.allocate();
    assert_eq!(&*server.allocation(relayed).view.user, user);
    client.release();
}

fn udp_of(server: &Server) -> String {
    format!(
        "turn:127.0.0.1:{}?transport=udp",
        server.address(Family::V4).port()
    )
}

#[test]
fn twilio() {
    let server = server();
    let path = "/2010-04-01/Accounts/web/Tokens.json";
    let form = [
        ("Authorization", &*basic("web", KEY)),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    let answer = ask_with(server.address(Family::V4), "POST", path, &form, "Ttl=600");
    let token = made(&answer, 201);
    assert_eq!(
        (&token["ttl"], &token["account_sid"]),
        (&json!("600"), &json!("web"))
    );
    let servers = token["ice_servers"].as_array().unwrap();
    assert!(servers[0]["url"].as_str().unwrap().starts_with("stun:"));
    assert_eq!(servers[0].get("credential"), None);
    let turn = servers
        .iter()
        .find(|one| one["url"] == json!(udp_of(&server)))
        .unwrap();
    assert_eq!(turn["url"], turn["urls"]);
    assert_eq!(
        (&turn["username"], &turn["credential"]),
        (&token["username"], &token["password"])
    );
    let created = token["date_created"].as_str().unwrap();
    assert!(
        created.ends_with(" +0000") && created.as_bytes()[3] == b',',
        "{created}"
    );
    allocates(&server, &token["username"], &token["password"], "app-");
    for authorization in [
        basic("web", "not the secret of it"),
        basic("other", KEY),
        bearer(KEY),
        String::new(),
    ] {
        let refused = ask(&server, "POST", path, &authorization, "");
        let body = made(&refused, 401);
        assert_eq!(
            (&body["code"], &body["status"]),
            (&json!(20_003), &json!(401))
        );
    }
}

#[test]
fn cloudflare() {
    let server = server();
    let path = "/v1/turn/keys/web/credentials/generate-ice-servers";
    let body = r#"{"ttl": 600, "customIdentifier": "room-7"}"#;
    let token = made(&ask(&server, "POST", path, &bearer(KEY), body), 201);
    let servers = token["iceServers"].as_array().unwrap();
    assert!(servers[0]["urls"][0].as_str().unwrap().starts_with("stun:"));
    assert!(
        servers[1]["urls"]
            .as_array()
            .unwrap()
            .contains(&json!(udp_of(&server)))
    );
    allocates(
        &server,
        &servers[1]["username"],
        &servers[1]["credential"],
        "app-room-7",
    );
    let older = "/v1/turn/keys/web/credentials/generate";
    let token = made(&ask(&server, "POST", older, &bearer(KEY), ""), 201);
    allocates(
        &server,
        &token["iceServers"]["username"],
        &token["iceServers"]["credential"],
        "app-",
    );
    let other = "/v1/turn/keys/other/credentials/generate-ice-servers";
    assert_eq!(ask(&server, "POST", other, &bearer(KEY), body).status, 401);
    assert_eq!(ask(&server, "POST", path, &bearer(KEY), "{").status, 400);
    assert_eq!(
        ask(&server, "POST", path, &bearer(KEY), r#"{"ttl": 0}"#).status,
        400
    );
}

#[test]
fn metered() {
    let server = server();
    let get = |token: &str| {
        ask(
            &server,
            "GET",
            &format!("/api/v1/turn/credentials?apiKey={token}"),
            "",
            "",
        )
    };
    let turn_of = |answer: &Answer| {
        let servers = made(answer, 200);
        assert!(servers[0]["urls"].as_str().unwrap().starts_with("stun:"));
        let turn = servers
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["urls"] == json!(udp_of(&server)));
        turn.unwrap().clone()
    };
    let turn = turn_of(&get(&query(KEY)));
    allocates(&server, &turn["username"], &turn["credential"], "app-");
    assert_eq!(get("not-the-secret-of-it").status, 401);

    let path = format!("/api/v1/turn/credential?secretKey={}", query(KEY));
    let made_one = made(
        &ask(
            &server,
            "POST",
            &path,
            "",
            r#"{"expiryInSeconds": 600, "label": "alice"}"#,
        ),
        200,
    );
    assert_eq!(
        (&made_one["expiryInSeconds"], &made_one["label"]),
        (&json!(600), &json!("alice"))
    );
    allocates(
        &server,
        &made_one["username"],
        &made_one["password"],
        "app-alice",
    );
    // What the application gives to its pages: it fetches ICE servers of this user, and nothing else.
    let token = made_one["apiKey"].as_str().unwrap();
    let turn = turn_of(&get(token));
    allocates(&server, &turn["username"], &turn["credential"], "app-alice");
    let path = format!("/api/v1/turn/credential?secretKey={token}");
    assert_eq!(ask(&server, "POST", &path, "", "{}").status, 401);
    for at in 0..token.len() {
        let mut forged = token.to_owned();
        forged.replace_range(at..=at, if &token[at..=at] == "A" { "B" } else { "A" });
        assert!([401, 429].contains(&get(&forged).status), "{forged}");
    }
}

#[test]
fn turn_rest() {
    let server = server();
    for method in ["GET", "POST"] {
        let path = format!("/?service=turn&username=mbzrxpgjys&key={}", query(KEY));
        let answer = made(&ask(&server, method, &path, "", ""), 200);
        assert_eq!(answer["ttl"], json!(3600));
        assert!(
            answer["uris"]
                .as_array()
                .unwrap()
                .contains(&json!(udp_of(&server)))
        );
        allocates(
            &server,
            &answer["username"],
            &answer["password"],
            "app-mbzrxpgjys",
        );
    }
    assert_eq!(
        ask(&server, "GET", "/?service=turn&key=x", "", "").status,
        401
    );
    assert_eq!(ask(&server, "GET", "/", "", "").status, 404);
}

#[test]
fn xirsys() {
    let server = server();
    let path = "/_turn/my-channel";
    let answer = made(
        &ask(
            &server,
            "PUT",
            path,
            &basic("web", KEY),
            r#"{"format": "urls"}"#,
        ),
        200,
    );
    assert_eq!(answer["s"], json!("ok"));
    let servers = &answer["v"]["iceServers"];
    assert!(
        servers["urls"]
            .as_array()
            .unwrap()
            .contains(&json!(udp_of(&server)))
    );
    allocates(
        &server,
        &servers["username"],
        &servers["credential"],
        "app-my-channel",
    );
    let refused = made(&ask(&server, "PUT", path, &basic("web", "wrong"), ""), 401);
    assert_eq!(refused["s"], json!("error"));
}

#[test]
fn kinesis() {
    let server = server();
    let path = "/v1/get-ice-server-config";
    let body = r#"{"ChannelARN": "arn:aws:kinesisvideo:a:b:channel/c/1", "ClientId": "camera"}"#;
    let answer = made(&ask(&server, "POST", path, &bearer(KEY), body), 200);
    let one = &answer["IceServerList"][0];
    assert_eq!(one["Ttl"], json!(3600));
    assert!(
        one["Uris"]
            .as_array()
            .unwrap()
            .contains(&json!(udp_of(&server)))
    );
    allocates(&server, &one["Username"], &one["Password"], "app-camera");
    assert_eq!(ask(&server, "POST", path, "", body).status, 401);
}
