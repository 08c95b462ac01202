//! Calls of browsers and of aiortc, as the server sees them while they go on: they have come about, and they are good ones.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::aiortc::python;
use crate::browser::Page;
use crate::firefox::Firefox;
use crate::server::{Options, PASSWORD, Server, USER, get, is_stand_in};
use crate::tools::{find_tool, now, one_at_a_time};

const PATIENCE: Duration = Duration::from_secs(30);

/// One end of a call with audio and video.
const END: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/accuracy/call.py");

/// Firefox with a fake camera and microphone, that gathers candidates on loopback.
const FAKE_MEDIA: [(&str, &str); 4] = [
    ("media.autoplay.default", "0"),
    ("media.navigator.permission.disabled", "true"),
    ("media.navigator.streams.fake", "true"),
    ("media.peerconnection.ice.loopback", "true"),
];

/// Both ends of the call that goes on are allocations of `server`; what it says of them is printed for whoever looks.
pub fn check_call_is_seen(server: &Server) {
    if is_stand_in() {
        return;
    }
    let end = now() + PATIENCE;
    let mut why = String::new();
    loop {
        let all = qualities(server);
        // The busiest two: before its media share a transport, a client has an allocation for each. It may go over to
        // another one once its handshake is done.
        let ends = &all[..all.len().min(2)];
        if ends.len() == 2 && ends.iter().all(is_good) && all.iter().any(has_handshake) {
            // Ends that share a busy machine may take long to answer a check or two.
            why = turnix(server, &["why", USER]);
            if why.contains("Verdict (fine)") {
                ends.iter().for_each(|end| println!("{end}"));
                break;
            }
        }
        assert!(
            now() < end,
            "no good call within {PATIENCE:?}: {all:#?}\n{why}"
        );
        thread::sleep(Duration::from_millis(200));
    }
    println!("{}{why}", turnix(server, &["top"]));
}

/// What a command says that asks `server`.
fn turnix(server: &Server, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_turnix"))
        .args(arguments)
        .args(["--admin", &format!("http://127.0.0.1:{}", server.admin)])
        .output()
        .expect("turnix");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The quality of the allocations that there are, the busiest first; none while the server is too busy to say.
fn qualities(server: &Server) -> Vec<Value> {
    let Some(answer) = get(server.admin, "/api/v1/allocations") else {
        return Vec::new();
    };
    let mut allocations: Vec<Value> = serde_json::from_str(&answer.body).expect("JSON");
    let packets = |allocation: &Value| {
        ["to_peer", "to_client"].map(|way| allocation["packets"][way].as_u64().unwrap_or(0))
    };
    allocations
        .sort_by_key(|allocation| std::cmp::Reverse(packets(allocation).iter().sum::<u64>()));
    (allocations.iter_mut())
        .map(|allocation| allocation["quality"].take())
        .collect()
}

fn both(of: &Value, holds: impl Fn(&Value) -> bool) -> bool {
    ["to_peer", "to_client"].iter().all(|way| holds(&of[way]))
}

fn has_handshake(quality: &Value) -> bool {
    both(&quality["dtls"], |seen| seen == true)
}

fn is_good(quality: &Value) -> bool {
    // There may be no media but reports of it in one direction.
    let lossless = |loss: &Value| loss.is_null() || loss.as_f64().is_some_and(|loss| loss < 0.01);
    let media = |kind: &str| {
        (quality["streams"].as_array().into_iter().flatten()).any(|stream| stream["media"] == kind)
    };
    quality["session"] == "established"
        && both(&quality["media"], |seen| seen == true)
        && both(&quality["loss"], lossless)
        && media("audio")
        && media("video")
        && ["client", "peer"].iter().all(|leg| {
            let smoothed = quality["rtt_ms"][leg]["smoothed"].as_f64();
            smoothed.is_some_and(|rtt| rtt > 0.0)
        })
}

#[test]
fn call_of_firefox() {
    let test = "quality::call_of_firefox";
    let (Some(firefox), Some(_)) = (find_tool(test, "firefox-esr"), find_tool(test, "certutil"))
    else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let page = Page::serve(json!({
        "iceServers": [{
            "urls": format!("turn:127.0.0.1:{}?transport=udp", server.port),
            "username": USER,
            "credential": PASSWORD,
        }],
        "iceTransportPolicy": "relay",
    }));
    let authority = server.dir().join("cert.pem");
    let mut browser = Firefox::start_with(&firefox, server.dir(), &authority, &FAKE_MEDIA);
    browser.go(&format!("http://127.0.0.1:{}/", page.port));
    page.wait_for_report("up");
    check_call_is_seen(&server);
    page.hang_up();
    page.wait_for_report("closed");
    server.wait_until_idle();
}

#[test]
fn call_of_aiortc() {
    let Some(python) = python("quality::call_of_aiortc", "aiortc") else {
        return;
    };
    let _turn = one_at_a_time();
    let server = Server::start(Options::default());
    let ends = ["answer", "offer"].map(|role| End::start(&python, role, &server));
    check_call_is_seen(&server);
    for end in ends {
        end.hang_up();
    }
    server.wait_until_idle();
}

/// One end of a call of aiortc, a process.
struct End(Child);

impl End {
    fn start(python: &Path, role: &str, server: &Server) -> Self {
        let mut command = Command::new(python);
        command.args([END, role]).arg(server.dir().join("meeting"));
        command.args([
            &format!("turn:127.0.0.1:{}?transport=udp", server.port),
            USER,
            PASSWORD,
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("python"))
    }

    /// It ends with its input.
    fn hang_up(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("child status");
        assert!(status.success(), "{status}");
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
