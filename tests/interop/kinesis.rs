//! AWS's own library asks for ICE servers, by a signed request.

use crate::vendor::{Library, check, text};

#[test]
fn ice_servers_of_the_unmodified_library_carry_a_call() {
    check(&Library {
        test: "kinesis::ice_servers_of_the_unmodified_library_carry_a_call",
        package: "boto3",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/kinesis_ice.py"),
        read: |servers, udp| {
            let one = &servers[0];
            let uris = one["Uris"].as_array().expect("URIs");
            assert!(uris.iter().any(|uri| *uri == udp), "{servers:#}");
            [text(&one["Username"]), text(&one["Password"])]
        },
        refusal: "NotAuthorizedException",
    });
}
