//! The stream of events: who gets it, what it holds, and what it costs.

use tokio::net::TcpSocket;

use super::*;

/// An admin listener that tells its watchers every `pace`, and what it tells them by.
fn watched(shards: Fake, pace: Duration) -> (Admin, Events) {
    let events = Events::paced(pace, 5 * pace);
    let known = events.clone();
    let admin = admin_with(shards, Limits::ADMIN, |state| state.with_events(known));
    (admin, events)
}

/// What is told of the time before.
async fn past_of(admin: &Admin) -> Vec<Value> {
    let mut stream = Stream::open(admin.address, "").await;
    let (name, past) = stream.next().await.unwrap();
    assert_eq!(name, "past");
    past.as_array().unwrap().clone()
}

/// A stream of events as it arrives.
struct Stream {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Stream {
    async fn open(address: SocketAddr, headers: &str) -> Self {
        Self::ask(TcpStream::connect(address).await.unwrap(), headers).await
    }

    async fn ask(mut socket: TcpStream, headers: &str) -> Self {
        let address = socket.peer_addr().unwrap();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        Self {
            socket,
            received: Vec::new(),
        }
    }

    /// Everything up to `end` and with it; `None` once the server has closed.
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            let text = String::from_utf8_lossy(&self.received);
            if let Some(at) = text.find(end) {
                let rest = text[at + end.len()..].as_bytes().to_vec();
                let found = text[..at + end.len()].to_owned();
                self.received = rest;
                return Some(found);
            }
            let mut bytes = [0; 65536];
            let read = timeout(Duration::from_secs(20), self.socket.read(&mut bytes));
            match read.await.expect("the stream goes on or ends") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.received.extend_from_slice(&bytes[..read]),
            }
        }
    }

    /// The name and data of the next event.
    async fn next(&mut self) -> Option<(String, Value)> {
        self.until("event: ").await?;
        let event = self.until("\n\n").await?;
        let (name, data) = event.split_once("\ndata: ").unwrap();
        // The chunks of the transfer begin and end with events.
        Some((name.to_owned(), serde_json::from_str(data.trim()).unwrap()))
    }
}

fn asked(shards: &Fake) -> usize {
    shards.0.asked.load(Ordering::Relaxed)
}

#[tokio::test]
async fn watchers_are_told_and_without_them_no_shard_is_asked() {
    let shards = Fake::with(&[
        ("0-0-0", "alice\ndata: {}\n\n<b>\u{202e}"),
        ("0-1-0", "bob"),
    ]);
    let (admin, _events) = watched(shards.clone(), Duration::from_millis(20));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(asked(&shards), 0);

    let mut stream = Stream::open(admin.address, "").await;
    let head = stream.until("\r\n\r\n").await.unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/event-stream\r\n"),
        "{head}"
    );
    assert!(head.contains("cache-control: no-store\r\n"), "{head}");
    assert_eq!(stream.next().await.unwrap(), ("past".to_owned(), json!([])));
    for round in 0..3 {
        let (name, told) = stream.next().await.unwrap();
        assert_eq!(name, "now");
        assert_eq!(
            (
                &told["status"],
                &told["node"],
                &told["region"],
                &told["version"]
            ),
            (
                &json!("ok"),
                &json!("node-1"),
                &json!("eu"),
                &json!("9.9.9")
            )
        );
        assert_eq!(told["allocations"], 2);
        assert_eq!(told["busiest"][0]["user"], "alice\ndata: {}\n\n<b>\u{202e}");
        assert_eq!(told["busiest"][1]["user"], "bob");
        assert_eq!(told["capacity"]["ratio"], 0.5);
        assert_eq!(
            told["capacity"]["ports"]["ipv6"],
            json!({"in_use": 50, "total": 100})
        );
        assert_eq!(told["capacity"]["allocations_per_user"], 7);
        assert_eq!(told["transports"][0]["allocations"]["ipv6"], 2);
        assert_eq!(told["allocated"]["succeeded"], 9);
        assert_eq!(told["allocated"]["failed"], 4);
        let failures = told["failures"].as_array().unwrap();
        let failure = |kind: &str, reason: &str| {
            failures
                .iter()
                .find(|one| one["kind"] == kind && one["reason"] == reason)
                .map(|one| one["total"].clone())
        };
        assert_eq!(failure("allocate", "486"), Some(json!(3)));
        assert_eq!(failure("credentials", "bad_password"), Some(json!(1)));
        // Challenges are no failures.
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert_eq!(told["traffic"]["bits_per_second"].is_null(), round == 0);
    }
    drop(stream);
    let mut last = asked(&shards);
    assert!(last >= 3);
    // Once the server has found out that the client is gone.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if std::mem::replace(&mut last, asked(&shards)) == asked(&shards) {
            return;
        }
    }
    panic!("the shards are asked for nobody");
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_nobody_waits_for_it() {
    let long = "x".repeat(60_000);
    let shards = Fake::with(&[("0-0-0", &long), ("0-0-1", &long), ("0-0-2", &long)]);
    let (admin, _events) = watched(shards, Duration::from_millis(100));
    let socket = TcpSocket::new_v4().unwrap();
    // The kernel is to hold little for it.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let socket = socket.connect(admin.address).await.unwrap();
    let mut idle = Stream::ask(socket, "").await;
    idle.until("event: past").await.unwrap();
    let mut reader = Stream::open(admin.address, "").await;
    // Far more than the kernel holds for the idle one.
    for _ in 0..40 {
        reader.until("\n\n").await.expect("who reads goes on");
    }
    let end = async { while idle.until("\n\n").await.is_some() {} };
    timeout(Duration::from_secs(20), end)
        .await
        .expect("the idle one was cut off");
    // Not by an end of the answer, which would wait for the client as well.
    assert!(!idle.received.ends_with(b"\r\n0\r\n\r\n"));
    reader.until("\n\n").await.expect("who reads goes on");
}

#[tokio::test]
async fn watchers_are_bounded() {
    let (admin, _events) = watched(Fake::default(), Duration::from_millis(20));
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = Stream::open(admin.address, "").await;
        stream.until("event: now").await.unwrap();
        streams.push(stream);
    }
    let refused = ask(admin.address, "GET", "/api/v1/events").await;
    assert_eq!(refused.code, 503);
    assert!(refused.json()["error"].is_string() && refused.head.contains("retry-after: 1"));
    streams.pop();
    for _ in 0..100 {
        let mut stream = Stream::open(admin.address, "").await;
        if stream.until("\r\n\r\n").await.unwrap().contains(" 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("there is room for nobody");
}

#[tokio::test]
async fn another_configuration_ends_the_streams_of_the_one_before() {
    let (admin, events) = watched(Fake::default(), Duration::from_millis(20));
    let mut stream = Stream::open(admin.address, "").await;
    stream.until("event: now").await.unwrap();
    events.dismiss();
    while stream.next().await.is_some_and(|(name, _)| name == "now") {}
    // Who was let in by the one before is let in no more, on connections that are still open.
    let refused = ask(admin.address, "GET", "/api/v1/events").await;
    assert_eq!(refused.code, 503);
}

#[tokio::test]
async fn connections_of_a_front_that_closes_end_whole_and_take_no_request() {
    let (admin, events) = watched(Fake::default(), Duration::from_millis(20));
    let address = admin.address;
    let live = format!("GET /live HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut idle = Stream {
        socket: TcpStream::connect(address).await.unwrap(),
        received: Vec::new(),
    };
    idle.socket.write_all(live.as_bytes()).await.unwrap();
    idle.until("}").await.unwrap();
    let mut watcher = Stream::open(address, "").await;
    watcher.until("event: now").await.unwrap();
    admin.front.close();
    // The connection may be gone by then.
    let _ = idle.socket.write_all(live.as_bytes()).await;
    assert_eq!(idle.until("HTTP/1.1").await, None);
    let mut late = Stream::open(address, "").await;
    assert_eq!(late.until("HTTP/1.1").await, None);
    // What is in progress goes on, and its end is that of the connection.
    for _ in 0..3 {
        watcher.until("event: now").await.unwrap();
    }
    events.dismiss();
    while watcher.until("\n\n").await.is_some() {}
    assert!(watcher.received.ends_with(b"\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn watchers_are_told_how_calls_go() {
    let shards = Fake::with_calls(&[("0-0-0", "alice"), ("0-1-0", "bob")]);
    let (admin, _events) = watched(shards, Duration::from_millis(20));
    let mut stream = Stream::open(admin.address, "").await;
    assert_eq!(stream.next().await.unwrap().0, "past");
    let (_, told) = stream.next().await.unwrap();
    let calls = &told["calls"];
    assert_eq!(calls["sessions"], json!({"established": 2}));
    assert_eq!(calls["rtt_ms"]["client"]["p50"], 23.456);
    assert_eq!(calls["rtt_ms"]["peer"]["allocations"], 2);
    assert_eq!(calls["loss"]["to_client"]["mean"], 0.125);
    assert_eq!(calls["jitter_ms"]["to_client"], Value::Null);
    assert_eq!(calls["ended"]["established"], 6);
    assert_eq!(calls["ended"]["success_ratio"], 0.75);
    assert_eq!(told["busiest"][0]["quality"]["session"], "established");
}

#[tokio::test]
async fn what_was_before_is_told_first_and_bounded() {
    let shards = Fake::with_calls(&[("0-0-0", "alice")]);
    let (admin, events) = watched(shards.clone(), Duration::from_millis(10));
    let lookout = Lookout::default();
    let remembering =
        (events.clone()).remember_forever(shards.clone(), Admission::new(0), lookout.clone());
    let remembering = tokio::spawn(remembering);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked(&shards), 0, "nothing is to be remembered");
    let looking = tokio::spawn(lookout.observe_every(Duration::from_millis(10), shards.clone()));
    let past = async || past_of(&admin).await;
    events.set_history(Duration::from_millis(200));
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if past().await.len() == 4 {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let readings = past().await;
    assert_eq!(readings.len(), 4, "one for each 50 ms");
    assert_eq!(readings[0]["allocations"], 1);
    assert_eq!(
        readings[0]["bits_per_second"],
        json!({"to_peer": 0, "to_client": 0})
    );
    assert_eq!(
        readings[0]["calls"],
        json!({
            "rtt_ms": {"client": 23.456, "peer": 170.0},
            "loss": {"to_peer": 0.0, "to_client": 0.125},
        })
    );
    assert!(readings[0]["at_ms"].as_u64() < readings[3]["at_ms"].as_u64());
    events.set_history(Duration::ZERO);
    assert!(past().await.is_empty());
    remembering.abort();
    looking.abort();
}

#[tokio::test]
async fn a_shard_that_does_not_answer_is_told_of() {
    let shards = Fake::default();
    shards.0.dead.store(true, Ordering::Relaxed);
    let (admin, _events) = watched(shards, Duration::from_millis(20));
    let mut stream = Stream::open(admin.address, "").await;
    stream.next().await.unwrap();
    let (_, told) = stream.next().await.unwrap();
    assert_eq!(told["status"], "degraded");
    assert!(told["allocations"].is_null() && told["capacity"]["ratio"] == 0.5);
}

#[tokio::test]
async fn pages_from_elsewhere_get_no_stream_and_links_get_the_page() {
    let (admin, _events) = watched(Fake::default(), Duration::from_millis(20));
    for (headers, code) in [
        ("sec-fetch-site: same-origin\r\n", "200"),
        ("sec-fetch-site: none\r\n", "200"),
        (
            "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
            "403",
        ),
        (
            "sec-fetch-site: same-site\r\nsec-fetch-dest: iframe\r\n",
            "403",
        ),
        (
            "sec-fetch-site: cross-site\r\nsec-fetch-dest: empty\r\n",
            "403",
        ),
        ("origin: https://page.example\r\n", "403"),
    ] {
        let mut stream = Stream::open(admin.address, headers).await;
        let head = stream.until("\r\n\r\n").await.unwrap();
        assert_eq!(&head[9..12], code, "{headers}");
    }
    let address = admin.address;
    let link = format!(
        "GET / HTTP/1.1\r\nhost: {address}\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n\
         sec-fetch-dest: document\r\nconnection: close\r\n\r\n"
    );
    let socket = TcpStream::connect(address).await.unwrap();
    assert_eq!(exchange(socket, link.as_bytes()).await.code, 200);
}

#[tokio::test]
async fn the_dashboard_is_one_page_that_asks_its_own_server_only() {
    let (admin, _events) = watched(Fake::default(), Duration::from_millis(20));
    let answer = ask(admin.address, "GET", "/").await;
    assert_eq!(answer.code, 200);
    assert!(answer.head.contains("content-type: text/html"));
    let policy = (answer.head.lines())
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "require-trusted-types-for 'script'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(answer.head.contains("referrer-policy: no-referrer"));
    let page = answer.body;
    for open in ["<script", "<style"] {
        assert_eq!(page.matches(open).count(), 1, "{open}");
    }
    for foreign in [
        "://",
        "src=",
        "innerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        " style=\"",
        " onclick=",
        "localStorage",
        "{{style}}",
        "{{script}}",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // It is the same for everybody.
    assert!(!page.contains("node-1") && !page.contains("9.9.9"));
}

#[tokio::test]
async fn allocations_are_searched() {
    let admin = admin(Fake::with(&[
        ("0-0-0", "alice"),
        ("0-1-0", "Malice & co"),
        ("1-0-3", "bob"),
    ]));
    let found = async |query: &str| {
        let answer = ask(
            admin.address,
            "GET",
            &format!("/api/v1/allocations?{query}"),
        )
        .await;
        assert_eq!(answer.code, 200, "{query}");
        let ids = answer.json();
        let ids = ids.as_array().unwrap().iter();
        let ids: Vec<String> = ids
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        let total = answer
            .head
            .lines()
            .find_map(|line| line.strip_prefix("x-total-count: "));
        (ids.join(" "), total.unwrap().parse::<usize>().unwrap())
    };
    for (query, ids, total) in [
        ("", "0-0-0 0-1-0 1-0-3", 3),
        ("limit=1", "0-0-0", 3),
        ("limit=0", "", 3),
        ("user=alice", "0-0-0", 1),
        ("user=ALICE", "", 0),
        ("user=Malice%20%26%20co", "0-1-0", 1),
        ("search=ALICE", "0-0-0 0-1-0", 2),
        ("search=ALICE&limit=1", "0-0-0", 2),
        ("search=100.7:4", "0-0-0 0-1-0 1-0-3", 3),
        ("search=2001:db8", "0-0-0 0-1-0 1-0-3", 3),
        ("address=198.51.100.7", "0-0-0 0-1-0 1-0-3", 3),
        ("address=198.51.100.7:4000&user=bob", "1-0-3", 1),
        ("address=198.51.100", "", 0),
        ("address=2001:db8::7", "0-0-0 0-1-0 1-0-3", 3),
        ("address=[2001:db8::7]:50000", "0-0-0 0-1-0 1-0-3", 3),
        ("address=[2001:db8::7]:50001", "", 0),
    ] {
        assert_eq!(found(query).await, (ids.to_owned(), total), "{query}");
    }
    for bad in ["limit=-1", "limit=x", "name=alice", "user=a&user=b"] {
        let answer = ask(admin.address, "GET", &format!("/api/v1/allocations?{bad}")).await;
        assert_eq!(answer.code, 400, "{bad}");
        assert!(answer.json()["error"].is_string(), "{bad}");
    }
    let one = ask(admin.address, "GET", "/api/v1/allocations/1-0-3").await;
    assert_eq!((one.code, &one.json()["user"]), (200, &json!("bob")));
    let none = ask(admin.address, "GET", "/api/v1/allocations/1-0-4").await;
    assert_eq!(none.code, 404);
}
