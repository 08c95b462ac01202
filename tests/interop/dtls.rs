//! DTLS with OpenSSL's command line: verified handshakes of several kinds, and one of a version that is not spoken.

use std::process::Command;
use std::time::Duration;

use crate::server::{Options, Server};
use crate::tools::{find_tool, run};

const TIMEOUT: Duration = Duration::from_secs(15);

/// What `openssl s_client` says of the server; it leaves after the handshake.
fn s_client(openssl: &std::path::Path, server: &Server, arguments: &[&str]) -> String {
    let mut command = Command::new(openssl);
    command
        .args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", server.port),
        ])
        .args(["-CAfile", "cert.pem", "-verify_return_error"])
        .args(arguments)
        .current_dir(server.dir());
    run(&mut command, server.dir(), TIMEOUT).1
}

#[test]
fn openssl_shakes_hands_and_verifies() {
    let Some(openssl) = find_tool("dtls::openssl_shakes_hands_and_verifies", "openssl") else {
        return;
    };
    let server = Server::start(Options::default());
    for arguments in [
        &["-dtls1_2"][..],
        // The best that the client knows.
        &["-dtls"],
        // Flights in small datagrams, as on a path with a small MTU.
        &["-dtls1_2", "-mtu", "400"],
        &["-dtls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["-dtls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
        &["-dtls1_2", "-curves", "P-256"],
    ] {
        let said = s_client(&openssl, &server, arguments);
        assert!(
            said.contains("Verify return code: 0 (ok)") && said.contains("DTLSv1.2"),
            "{arguments:?}\n{said}"
        );
    }
    server.wait_for_metrics("their sessions have ended", |metrics| {
        metrics.sum("turn_stream_connections", &[("transport", "dtls")]) == 0.0
    });
}

#[test]
fn openssl_is_told_that_dtls_1_0_is_not_spoken() {
    let test = "dtls::openssl_is_told_that_dtls_1_0_is_not_spoken";
    let Some(openssl) = find_tool(test, "openssl") else {
        return;
    };
    let server = Server::start(Options::default());
    let said = s_client(&openssl, &server, &["-dtls1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(said.contains("alert protocol version"), "{said}");
}
