//! Revocation as operators and applications order it, and what an API key may ask for.

use std::time::Duration;

use serde_json::{Value, json};
use turnix::base::{Family, Transport};

use super::client::Client;
use super::common::wire::Request;
use super::server::{BOTH, Server, now, until};
use super::service::{Answer, KEY, ask, ask_with, bearer};

/// A second, and patience with a machine that has other things to do.
const PROMPT: Duration = Duration::from_secs(5);

const OTHER: &str = "another key that is long";

fn server() -> Server {
    let keys = format!(
        r#"api.keys=[{{ id = "web", secret = "{KEY}", ttl = "1h" }}, {{ id = "other", secret = "{OTHER}" }}]"#
    );
    Server::with(BOTH, &[&keys, "http.admin='127.0.0.1:0'"])
}

fn json_of(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap_or(Value::Null)
}

fn public(server: &Server, method: &str, path: &str, secret: &str, body: &str) -> Answer {
    let fields = [
        ("Content-Type", "application/json"),
        ("Authorization", &*bearer(secret)),
    ];
    ask_with(server.address(Family::V4), method, path, &fields, body)
}

fn admin(server: &Server, method: &str, path: &str, body: &str) -> Answer {
    let fields = [("Content-Type", "application/json")];
    ask_with(server.admin(), method, path, &fields, body)
}

fn revoke(server: &Server, order: &Value) -> Value {
    let order = order.to_string();
    json_of(&admin(server, "POST", "/api/v1/revocations", &order), 201)
}

fn config(server: &Server, secret: &str, user: &str) -> Answer {
    let path = format!("/api/webrtc/config?user={user}");
    public(server, "GET", &path, secret, "")
}

/// Username and password of an entry of `iceServers`.
fn credential(server: &Value) -> (String, String) {
    let text = |key: &str| server[key].as_str().unwrap().to_owned();
    (text("username"), text("credential"))
}

fn minted(server: &Server, secret: &str, user: &str) -> (String, String) {
    let answer = json_of(&config(server, secret, user), 200);
    credential(&answer["iceServers"][0])
}

fn client(server: &Server, transport: Transport, (user, password): &(String, String)) -> Client {
    let mut client = Client::new(server, transport, Family::V4);
    client.login(user, password);
    client
}

/// The credential is right, and no use.
fn is_refused(server: &Server, credential: &(String, String)) {
    let before = metric(server, r#"turn_auth_failures_total{reason="revoked"}"#);
    let mut client = client(server, Transport::Udp, credential);
    assert_eq!(client.code_of(Request::allocate()), 401);
    let after = metric(server, r#"turn_auth_failures_total{reason="revoked"}"#);
    assert!(after > before, "{before} {after}");
}

fn metric(server: &Server, series: &str) -> f64 {
    let answer = admin(server, "GET", "/metrics", "");
    let line = (answer.body.lines()).find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

fn percent(name: &str) -> String {
    name.replace(':', "%3A")
        .replace(';', "%3B")
        .replace('=', "%3D")
}

#[test]
fn an_operator_revokes_and_undoes_it() {
    let server = server();
    let carol = minted(&server, KEY, "carol");
    let dave = minted(&server, OTHER, "dave");
    let mut over_udp = client(&server, Transport::Udp, &carol);
    let mut over_tls = client(&server, Transport::Tls, &carol);
    let mut bystander = client(&server, Transport::Udp, &dave);
    for one in [&mut over_udp, &mut over_tls, &mut bystander] {
        one.allocate();
    }
    assert_eq!(server.live(), 3);

    let begin = now();
    let done = revoke(&server, &json!({ "user": "carol", "for": "1h" }));
    assert_eq!(done["ended"], 2, "{done}");
    assert_eq!(server.live(), 1);
    assert!(now() - begin < PROMPT);
    is_refused(&server, &carol);
    // Nor does the key mint for it.
    assert_eq!(config(&server, KEY, "carol").status, 403);
    assert_eq!(config(&server, KEY, "erin").status, 200);

    let listed = json_of(&admin(&server, "GET", "/api/v1/revocations", ""), 200);
    assert_eq!(
        (&listed[0]["kind"], &listed[0]["name"], &listed[0]["by"]),
        (&json!("user"), &json!("carol"), &json!("operator"))
    );
    let lasts = listed[0]["until"].as_u64().unwrap() - listed[0]["since"].as_u64().unwrap();
    assert_eq!(lasts, 3600);
    assert_eq!(metric(&server, r#"turn_revocations{kind="user"}"#), 1.0);
    let path = "/api/v1/revocations/user/carol";
    assert_eq!(admin(&server, "DELETE", path, "").status, 204);
    assert_eq!(admin(&server, "DELETE", path, "").status, 404);
    client(&server, Transport::Udp, &carol).allocate();
    assert_eq!(server.live(), 2);
}

#[test]
fn a_key_is_revoked_with_all_that_it_has_minted() {
    let server = server();
    let kept = minted(&server, OTHER, "carol");
    let by_key = [minted(&server, KEY, "carol"), minted(&server, KEY, "")];
    client(&server, Transport::Udp, &kept).allocate();
    for credential in &by_key {
        client(&server, Transport::Tcp, credential).allocate();
    }
    // The connections of the two are gone with the clients; what stays is over UDP.
    until("two of three are gone", || server.live() == 1);
    let mut live: Vec<Client> = by_key
        .iter()
        .map(|credential| client(&server, Transport::Tcp, credential))
        .collect();
    live.iter_mut().for_each(|one| {
        one.allocate();
    });
    assert_eq!(revoke(&server, &json!({ "key": "web" }))["ended"], 2);
    assert_eq!(server.live(), 1);
    for credential in &by_key {
        is_refused(&server, credential);
    }
    for path in [
        "/api/webrtc/config",
        "/api/webrtc/stats",
        "/?service=turn&key=",
    ] {
        let path = format!(
            "{path}{}",
            if path.ends_with('=') {
                KEY.replace(' ', "%20")
            } else {
                String::new()
            }
        );
        assert_eq!(public(&server, "GET", &path, KEY, "").status, 401, "{path}");
    }
    assert_eq!(config(&server, OTHER, "carol").status, 200);
    let counted = metric(
        &server,
        r#"turn_api_credentials_total{key="web",result="revoked"}"#,
    );
    assert_eq!(counted, 3.0);
    let path = "/api/v1/revocations/key/web";
    assert_eq!(admin(&server, "DELETE", path, "").status, 204);
    client(&server, Transport::Udp, &by_key[0]).allocate();
}

#[test]
fn orders_that_mean_nothing_are_refused() {
    let server = server();
    for order in [
        "{}",
        r#"{"user": "a", "key": "b"}"#,
        r#"{"user": ""}"#,
        r#"{"user": "a", "for": "soon"}"#,
        r#"{"user": "a", "for": "0s"}"#,
        "nonsense",
    ] {
        let answer = admin(&server, "POST", "/api/v1/revocations", order);
        assert_eq!(answer.status, 400, "{order}");
    }
    let unknown = admin(&server, "POST", "/api/v1/revocations", r#"{"who": "a"}"#);
    assert_eq!(unknown.status, 422);
    // No page of another origin gives orders.
    let plain = [("Content-Type", "text/plain")];
    let order = r#"{"user": "alice"}"#;
    let answer = ask_with(server.admin(), "POST", "/api/v1/revocations", &plain, order);
    assert_eq!(answer.status, 415);
    let page = [
        ("Origin", "https://evil.example"),
        ("Content-Type", "application/json"),
    ];
    let answer = ask_with(server.admin(), "POST", "/api/v1/revocations", &page, order);
    assert_eq!(answer.status, 403);
    for path in ["people/alice", "user/alice"] {
        let path = format!("/api/v1/revocations/{path}");
        assert_eq!(admin(&server, "DELETE", &path, "").status, 404);
    }
    assert_eq!(admin(&server, "GET", "/api/v1/revocations", "").body, "[]");
}

#[test]
fn cloudflare_revokes_what_its_key_has_minted() {
    let server = server();
    let generate = |key: &str, secret: &str| {
        let path = format!("/v1/turn/keys/{key}/credentials/generate-ice-servers");
        let answer = json_of(
            &public(&server, "POST", &path, secret, r#"{"ttl": 600}"#),
            201,
        );
        credential(&answer["iceServers"][1])
    };
    // Made in the same second for nobody in particular, and still two credentials.
    let (one, two) = (generate("web", KEY), generate("web", KEY));
    assert_ne!(one.0, two.0);
    let foreign = generate("other", OTHER);
    let mut first = client(&server, Transport::Udp, &one);
    let mut second = client(&server, Transport::Udp, &two);
    first.allocate();
    second.allocate();

    let revoke = |key: &str, secret: &str, name: &str| {
        let path = format!("/v1/turn/keys/{key}/credentials/{}/revoke", percent(name));
        public(&server, "POST", &path, secret, "").status
    };
    assert_eq!(revoke("web", "not the secret of it", &one.0), 401);
    assert_eq!(revoke("other", KEY, &one.0), 401);
    for others in [
        &*foreign.0,
        "alice",
        "1:x;key=other",
        "99999999999:x;key=web",
    ] {
        assert_eq!(revoke("web", KEY, others), 404, "{others}");
    }
    assert_eq!(server.live(), 2);
    assert_eq!(revoke("web", KEY, &one.0), 204);
    assert_eq!(server.live(), 1);
    is_refused(&server, &one);
    assert_eq!(second.ask_signed(Request::refresh(600)).code(), 0);
    // The same again, and one that is over.
    assert_eq!(revoke("web", KEY, &one.0), 204);
    assert_eq!(revoke("web", KEY, "1000:x;key=web"), 204);
    let listed = json_of(&admin(&server, "GET", "/api/v1/revocations", ""), 200);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["by"], "key:web");
}

/// What Metered's clients ask, with the secret of `web`.
fn metered(server: &Server, method: &str, path: &str, body: &Value) -> Answer {
    let mark = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{mark}secretKey={}", KEY.replace(' ', "%20"));
    let fields = [("Content-Type", "application/json")];
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    ask_with(server.address(Family::V4), method, &path, &fields, &body)
}

fn made(one: &Value) -> (String, String) {
    let text = |key: &str| one[key].as_str().unwrap().to_owned();
    (text("username"), text("password"))
}

#[test]
fn metered_manages_credentials() {
    let server = server();
    let create = |label: &str| {
        let order = json!({ "expiryInSeconds": 600, "label": label });
        json_of(
            &metered(&server, "POST", "/api/v1/turn/credential", &order),
            200,
        )
    };
    let ice = |token: &Value| {
        let path = format!(
            "/api/v1/turn/credentials?apiKey={}",
            token.as_str().unwrap()
        );
        ask(server.address(Family::V4), "GET", &path, &[])
    };
    let list = |query: &str| {
        let path = format!("/api/v2/turn/credentials{query}");
        json_of(&metered(&server, "GET", &path, &Value::Null), 200)
    };
    let (one, two, third) = (create("room-1"), create("room-1"), create("room-2"));
    assert_ne!(one["username"], two["username"]);
    assert_eq!(list("")["data"].as_array().unwrap().len(), 3);
    let found = list("?label=room-2");
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let shown = &found["data"][0];
    for key in ["username", "password", "apiKey", "label", "expiryInSeconds"] {
        assert_eq!(shown[key], third[key], "{key}");
    }
    assert_eq!(
        (&shown["expired"], &shown["enabled"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(found["pagination"]["total_records"], 1);

    // Disabled: it ends, its token fetches nothing, and it comes back by the same call's opposite.
    let mut live = client(&server, Transport::Udp, &made(&one));
    live.allocate();
    let named = json!({ "username": one["username"] });
    let call = |what: &str| {
        metered(
            &server,
            "POST",
            &format!("/api/v1/turn/credential/{what}"),
            &named,
        )
    };
    assert_eq!(call("enable").status, 400);
    assert_eq!(call("disable").status, 200);
    assert_eq!(server.live(), 0);
    is_refused(&server, &made(&one));
    assert_eq!(ice(&one["apiKey"]).status, 401);
    assert_eq!(ice(&two["apiKey"]).status, 200);
    assert_eq!(call("disable").status, 400);
    assert_eq!(call("enable").status, 200);
    client(&server, Transport::Udp, &made(&one)).allocate();
    let served = json_of(&ice(&one["apiKey"]), 200);
    let turn = (served.as_array().unwrap().iter()).find(|entry| entry["username"].is_string());
    assert_eq!(turn.unwrap()["username"], one["username"]);

    // What the operator has revoked the application cannot enable.
    revoke(&server, &json!({ "credential": one["username"] }));
    assert_eq!(call("enable").status, 400);

    let unknown = json!({ "username": "somebody" });
    for (method, path, status) in [
        ("POST", "/api/v1/turn/credential/disable", 401),
        ("POST", "/api/v1/turn/credential/enable", 401),
        ("DELETE", "/api/v1/turn/credential", 400),
    ] {
        assert_eq!(
            metered(&server, method, path, &unknown).status,
            status,
            "{path}"
        );
        let nobody = metered(&server, method, path, &json!({}));
        let body = json_of(&nobody, 400);
        assert!(body["message"].as_str().unwrap().contains("username"));
    }
    let mut live = client(&server, Transport::Udp, &made(&two));
    live.allocate();
    let named = json!({ "username": two["username"] });
    let deleted = metered(&server, "DELETE", "/api/v1/turn/credential", &named);
    assert_eq!(json_of(&deleted, 200)["success"], true);
    is_refused(&server, &made(&two));
    assert_eq!(ice(&two["apiKey"]).status, 401);
    create("room-2");
    let path = "/api/v2/turn/credential/by_label?label=room-2";
    let deleted = metered(&server, "DELETE", path, &Value::Null);
    assert_eq!(json_of(&deleted, 200)["deleted"], 2);
    is_refused(&server, &made(&third));
    let left = list("?all=true");
    assert_eq!(left["data"].as_array().unwrap().len(), 1, "{left}");

    for order in [
        json!({ "expiryInSeconds": 0 }),
        json!({ "expiryInSeconds": -5 }),
        json!({ "expiryInSeconds": "soon" }),
        json!({ "label": "x".repeat(100) }),
        json!({ "label": "a\nb" }),
    ] {
        let refused = metered(&server, "POST", "/api/v1/turn/credential", &order);
        assert_eq!(refused.status, 400, "{order}");
    }
    let path = format!(
        "/api/v2/turn/credentials?secretKey={}",
        OTHER.replace(' ', "%20")
    );
    let other = ask(server.address(Family::V4), "GET", &path, &[]);
    assert_eq!(json_of(&other, 200)["data"], json!([]));
    let path = "/api/v2/turn/credentials?secretKey=wrong";
    assert_eq!(
        ask(server.address(Family::V4), "GET", path, &[]).status,
        401
    );
}

#[test]
fn pages_of_a_long_list() {
    let server = server();
    for index in 0..51 {
        let order = json!({ "label": index.to_string() });
        let made = metered(&server, "POST", "/api/v1/turn/credential", &order);
        assert_eq!(made.status, 200);
    }
    let page = |query: &str| {
        let path = format!("/api/v2/turn/credentials{query}");
        json_of(&metered(&server, "GET", &path, &Value::Null), 200)
    };
    let (first, second) = (page(""), page("?page=2"));
    assert_eq!(first["data"].as_array().unwrap().len(), 50);
    assert_eq!(second["data"].as_array().unwrap().len(), 1);
    assert_eq!(first["pagination"]["next_page"], 2);
    assert_eq!(second["pagination"]["prev_page"], 1);
    assert_eq!(second["pagination"]["next_page"], Value::Null);
    for odd in ["?page=0", "?page=18446744073709551615"] {
        page(odd);
    }
}

#[test]
fn a_key_mints_no_faster_than_its_rate() {
    let keys = format!(
        r#"api.keys=[{{ id = "web", secret = "{KEY}", rate = 3 }}, {{ id = "other", secret = "{OTHER}" }}]"#
    );
    let server = Server::with(BOTH, &[&keys, "http.admin='127.0.0.1:0'"]);
    let paths = [
        ("GET", "/api/webrtc/config"),
        ("POST", "/v1/turn/keys/web/credentials/generate-ice-servers"),
        ("POST", "/v1/get-ice-server-config"),
    ];
    for (method, path) in paths {
        let status = public(&server, method, path, KEY, "").status;
        assert!([200, 201].contains(&status), "{path}: {status}");
    }
    let token = ("POST", "/2010-04-01/Accounts/web/Tokens.json");
    for (method, path) in paths.into_iter().chain([token]) {
        let basic = {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.encode(format!("web:{KEY}"))
        };
        let authorization = if path == token.1 {
            format!("Basic {basic}")
        } else {
            bearer(KEY)
        };
        let fields = [("Authorization", &*authorization)];
        let answer = ask(server.address(Family::V4), method, path, &fields);
        // AWS's own answer to it, which its SDKs know.
        let limited = if path == "/v1/get-ice-server-config" {
            400
        } else {
            429
        };
        assert_eq!(answer.status, limited, "{path}: {}", answer.body);
        let wait: u64 = answer
            .field("retry-after")
            .expect("Retry-After")
            .parse()
            .unwrap();
        assert!((1..=21).contains(&wait), "{wait}");
    }
    // Totals cost nothing, and other keys are not the worse for it.
    assert_eq!(
        public(&server, "GET", "/api/webrtc/stats", KEY, "").status,
        200
    );
    assert_eq!(config(&server, OTHER, "").status, 200);
    let of = |key: &str, result: &str| {
        let series = format!(r#"turn_api_credentials_total{{key="{key}",result="{result}"}}"#);
        metric(&server, &series)
    };
    assert_eq!((of("web", "minted"), of("web", "rate_limited")), (3.0, 4.0));
    assert_eq!(
        (of("other", "minted"), of("other", "rate_limited")),
        (1.0, 0.0)
    );
}

#[test]
fn a_client_whose_allocation_is_revoked_is_told_when_it_refreshes() {
    let server = server();
    let carol = minted(&server, KEY, "carol");
    let mut tcp = client(&server, Transport::Tcp, &carol);
    tcp.allocate();
    revoke(&server, &json!({ "credential": carol.0 }));
    assert_eq!(server.live(), 0);
    assert_eq!(tcp.code_of(Request::refresh(600)), 401);
}

#[test]
fn an_application_undoes_nothing_that_the_operator_has_revoked() {
    let server = server();
    let create = || {
        let order = json!({ "expiryInSeconds": 600 });
        let path = "/api/v1/turn/credential";
        made(&json_of(&metered(&server, "POST", path, &order), 200))
    };
    let by_cloudflare = |name: &str| {
        let path = format!("/v1/turn/keys/web/credentials/{}/revoke", percent(name));
        public(&server, "POST", &path, KEY, "").status
    };
    let listed = |name: &str| {
        let all = json_of(&admin(&server, "GET", "/api/v1/revocations", ""), 200);
        let found = (all.as_array().unwrap().iter()).find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {all}")).clone()
    };
    // Seconds until the credential ends, far more than the operator asked for.
    let lasts = |one: &Value| one["until"].as_u64().unwrap() - one["since"].as_u64().unwrap();

    let one = create();
    let done = revoke(&server, &json!({ "credential": one.0, "for": "10s" }));
    assert_eq!(lasts(&done), 10);
    assert_eq!(by_cloudflare(&one.0), 204);
    assert_eq!(listed(&one.0)["by"], "operator");
    assert!(lasts(&listed(&one.0)) > 300);
    let named = json!({ "username": one.0 });
    let path = "/api/v1/turn/credential/enable";
    assert_eq!(metered(&server, "POST", path, &named).status, 400);
    is_refused(&server, &one);
    // Nor is it shorter for what the operator says then, who is told so.
    let two = create();
    assert_eq!(by_cloudflare(&two.0), 204);
    let done = revoke(&server, &json!({ "credential": two.0, "for": "10s" }));
    assert!(lasts(&done) > 300, "{done}");

    // What is deleted stays away, whoever had revoked it for a while.
    let third = create();
    revoke(&server, &json!({ "credential": third.0, "for": "10s" }));
    let named = json!({ "username": third.0 });
    let deleted = metered(&server, "DELETE", "/api/v1/turn/credential", &named);
    assert_eq!(deleted.status, 200);
    assert!(lasts(&listed(&third.0)) > 300);

    let long = format!("{}:{};key=web", unix() + 600, "x".repeat(500));
    assert_eq!(by_cloudflare(&long), 400);
}

fn unix() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}
