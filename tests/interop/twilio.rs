//! Twilio's own library asks for a token.

use crate::vendor::{Library, check, text};

#[test]
fn a_token_of_the_unmodified_library_carries_a_call() {
    check(&Library {
        test: "twilio::a_token_of_the_unmodified_library_carries_a_call",
        package: "twilio",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/twilio_token.py"),
        read: |token, udp| {
            assert_eq!(token["ttl"], "600", "{token:#}");
            let urls = token["urls"].as_array().expect("urls");
            assert!(urls.iter().any(|url| *url == udp), "{urls:?}");
            [text(&token["username"]), text(&token["password"])]
        },
        refusal: "401",
    });
}
