//! The port shared with others: HAProxy and nginx in front of it, nginx behind it on the same port as the calls.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::{Page, number};
use crate::chromium::command;
use crate::server::{Options, PASSWORD, Server, USER, free_ports, is_stand_in, write_certificate};
use crate::tools::{Process, find_tool, one_at_a_time, run, wait_for};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the clients come from: neither the proxy's address nor the server's.
const CLIENT: &str = "127.0.0.3";

/// Starts `command`, a server that listens on `ports` of loopback once it is ready.
fn start(command: &mut Command, log: &Path, ports: &[u16]) -> Process {
    let mut process = Process::start(command, log.to_path_buf());
    for port in ports {
        wait_for("the other server listens", TIMEOUT, || {
            if let Some(status) = process.ended() {
                panic!("it ended at once: {status}");
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).ok()
        });
    }
    process
}

fn haproxy(program: &Path, dir: &Path, frontends: &[(u16, &str)], server: u16) -> Process {
    let mut text = String::from(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n",
    );
    for (port, how) in frontends {
        text += &format!(
            "listen p{port}\n bind 127.0.0.1:{port}\n server turnix 127.0.0.1:{server} {how}\n"
        );
    }
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, text).expect("configuration");
    let ports: Vec<u16> = frontends.iter().map(|(port, _)| *port).collect();
    let mut haproxy = Command::new(program);
    haproxy.args(["-db", "-f"]).arg(file);
    start(&mut haproxy, &dir.join("haproxy.log"), &ports)
}

/// nginx in one process, with `body` beside its events.
fn nginx(program: &Path, dir: &Path, body: &str, ports: &[u16]) -> Process {
    let stream = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if body.contains("stream {") && Path::new(stream).exists() {
        format!("load_module {stream};")
    } else {
        String::new()
    };
    let text = format!(
        "{load}\ndaemon off; master_process off; pid {dir}/nginx.pid; error_log stderr;\nevents {{}}\n{body}",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).expect("configuration");
    let mut nginx = Command::new(program);
    nginx.arg("-e").arg("stderr").arg("-c").arg(file);
    start(&mut nginx, &dir.join("nginx.log"), ports)
}

/// A call of two clients through `port` while somebody looks at the server; where they come from as it sees them.
fn call(uclient: &Path, server: &Server, port: u16, tls: bool) -> Vec<String> {
    let port = port.to_string();
    let mut load = Command::new(uclient);
    if tls {
        load.arg("-S");
    }
    load.args([
        "-t", "-y", "-c", "-n", "15", "-m", "2", "-z", "50", "-l", "200",
    ]);
    load.args([
        "-u",
        USER,
        "-w",
        PASSWORD,
        "-L",
        CLIENT,
        "-p",
        &port,
        "127.0.0.1",
    ]);
    let (status, output) = run(&mut load, server.dir(), TIMEOUT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{output}"
    );
    assert!(
        output.contains("tot_send_msgs=30, tot_recv_msgs=30"),
        "{output}"
    );
    server.wait_until_idle();
    let transport = if tls { "tls" } else { "tcp" };
    let ended = |line: &&str| line.contains("allocation ended");
    (server.log().lines().filter(ended))
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["fields"]["transport"] == transport)
        .filter_map(|line| line["fields"]["client"].as_str().map(str::to_owned))
        .collect()
}

fn from_client(clients: &[String]) {
    assert!(!clients.is_empty());
    for client in clients {
        assert!(client.starts_with(&format!("{CLIENT}:")), "{clients:?}");
    }
}

/// The server's own looks go through its listeners as well, and have to introduce themselves there.
fn is_well(server: &Server) {
    server.wait_for_metrics("its looks lead through", |metrics| {
        ["tcp", "tls"]
            .iter()
            .all(|way| metrics.sum("turn_canary_success", &[("transport", *way)]) == 1.0)
    });
}

#[test]
fn haproxy_in_front_tells_who_the_clients_are() {
    let test = "sharing::haproxy_in_front_tells_who_the_clients_are";
    let (Some(program), Some(uclient)) = (
        find_tool(test, "haproxy"),
        find_tool(test, "turnutils_uclient"),
    ) else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        proxied: true,
        ..Options::default()
    });
    let (first, _) = free_ports();
    let ports = [first, first + 1, first + 2];
    let _haproxy = haproxy(
        &program,
        server.dir(),
        &[
            (ports[0], "send-proxy check check-send-proxy inter 200"),
            (ports[1], "send-proxy-v2 check inter 200"),
            // No header.
            (ports[2], ""),
        ],
        server.port,
    );
    from_client(&call(&uclient, &server, ports[0], false));
    from_client(&call(&uclient, &server, ports[1], true));
    server.wait_for_metrics("nobody was taken for somebody else", |metrics| {
        metrics.sum("turn_stream_refused_total", &[("reason", "proxy")]) == 0.0
    });
    is_well(&server);

    // Who comes without a header is not let in, and the log says what to do.
    let mut plain = Command::new(&uclient);
    plain.args([
        "-t", "-y", "-c", "-n", "1", "-m", "2", "-u", USER, "-w", PASSWORD,
    ]);
    plain.args(["-p", &ports[2].to_string(), "127.0.0.1"]);
    let (status, output) = run(&mut plain, server.dir(), Duration::from_secs(3));
    assert!(!status.is_some_and(|status| status.success()), "{output}");
    server.wait_for_metrics("it is counted", |metrics| {
        metrics.sum("turn_stream_refused_total", &[("reason", "proxy")]) >= 1.0
    });
    assert!(server.log().contains("send-proxy-v2"), "{}", server.log());
}

#[test]
fn nginx_in_front_tells_who_the_clients_are() {
    let test = "sharing::nginx_in_front_tells_who_the_clients_are";
    let (Some(program), Some(uclient)) = (
        find_tool(test, "nginx"),
        find_tool(test, "turnutils_uclient"),
    ) else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let server = Server::start(Options {
        proxied: true,
        ..Options::default()
    });
    let (port, _) = free_ports();
    let body = format!(
        "stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{}; proxy_protocol on; }} }}",
        server.port
    );
    let _nginx = nginx(&program, server.dir(), &body, &[port]);
    from_client(&call(&uclient, &server, port, true));
}

/// One browser session: the page comes over HTTPS from nginx, the call over TLS through the relay, both on one port.
#[test]
fn a_page_of_nginx_and_a_call_share_one_port() {
    let test = "sharing::a_page_of_nginx_and_a_call_share_one_port";
    let (Some(program), Some(chromium)) = (find_tool(test, "nginx"), find_tool(test, "chromium"))
    else {
        return;
    };
    if is_stand_in() {
        return;
    }
    let _turn = one_at_a_time();
    let (behind, _) = free_ports();
    let server = Server::start(Options {
        upstream: Some(behind),
        ..Options::default()
    });
    let uri = format!("turns:localhost:{}?transport=tcp", server.port);
    let page = Page::serve(json!({
        "iceServers": [{ "urls": uri, "username": USER, "credential": PASSWORD }],
        "iceTransportPolicy": "relay",
    }));
    let site = tempfile::tempdir().expect("temporary directory");
    write_certificate(&site);
    let body = format!(
        "http {{\n\
         log_format ends '$proxy_protocol_addr $proxy_protocol_server_port $ssl_server_name $uri';\n\
         access_log {dir}/access.log ends;\n\
         client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;\n\
         uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         server {{ listen 127.0.0.1:{behind} ssl http2 proxy_protocol;\n\
         ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;\n\
         location / {{ proxy_pass http://127.0.0.1:{}; }} }}\n}}\n",
        page.port,
        dir = site.path().display(),
    );
    let _nginx = nginx(&program, site.path(), &body, &[behind]);

    let url = format!("https://www.example.org:{}/", server.port);
    let mut browser = command(&chromium, server.dir());
    browser
        .arg("--host-resolver-rules=MAP www.example.org 127.0.0.1")
        .arg(url);
    let _browser = Process::start(&mut browser, server.dir().join("chromium.log"));
    let up = page.wait_for_report("up");
    for end in ["caller", "callee"] {
        assert_eq!(up["after"][end]["local"], "relay", "{up:#}");
        assert_eq!(up["after"][end]["relayProtocol"], "tls", "{up:#}");
    }
    assert!(
        number(&up["after"]["media"], "framesDecoded") > 20.0,
        "{up:#}"
    );
    assert_eq!(number(&up, "echoedBytes"), 16.0 * 4096.0, "{up:#}");

    server.wait_for_metrics("both are there", |metrics| {
        metrics.sum("turn_upstream_connections", &[]) >= 1.0
            && metrics.sum("turn_upstream_connections_total", &[("result", "ok")]) >= 1.0
            && metrics.sum("turn_allocations", &[("transport", "tls")]) >= 2.0
    });
    let seen = std::fs::read_to_string(site.path().join("access.log")).expect("access log");
    let page_line = format!("127.0.0.1 {} www.example.org /", server.port);
    assert!(
        seen.lines().any(|line| line == page_line),
        "{page_line}:\n{seen}"
    );
    // Under its own name the server answers itself.
    page.hang_up();
    page.wait_for_report("closed");
    server.wait_until_idle();
}
