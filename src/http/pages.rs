//! Pages that are part of the program: each one file, no build step, nothing from elsewhere.

use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const TEST: &str = include_str!("pages/test.html");

static TEST_POLICY: LazyLock<String> = LazyLock::new(|| policy(TEST));

/// The connectivity test page.
pub(super) fn test() -> Response {
    page(TEST, &TEST_POLICY)
}

fn page(html: &'static str, policy: &'static str) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(html)).into_response()
}

/// Lets the page's own inline script and style run, and nothing else: it may not even fetch.
fn policy(html: &str) -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash(between(html, "<script>", "</script>")),
        hash(between(html, "<style>", "</style>")),
    )
}

pub(super) fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

pub(super) fn between<'a>(html: &'a str, open: &str, close: &str) -> &'a str {
    (html.split_once(open))
        .and_then(|(_, rest)| rest.split_once(close))
        .map_or("", |(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_page_is_one_script_one_style_and_nothing_from_elsewhere() {
        for open in ["<script", "<style"] {
            assert_eq!(TEST.matches(open).count(), 1, "{open}");
        }
        assert!(!between(TEST, "<script>", "</script>").is_empty());
        assert!(!between(TEST, "<style>", "</style>").is_empty());
        for foreign in [
            "http://",
            "https://",
            "src=",
            "fetch(",
            "XMLHttpRequest",
            "sendBeacon",
            " style=\"",
            " onclick=",
        ] {
            assert!(!TEST.contains(foreign), "{foreign}");
        }
    }
}
