//! Pages that are part of the program: each one file when it is sent, no build step, nothing from elsewhere.

pub(super) mod dashboard;

use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Its script in the order of its parts: each uses what stands before it.
static TEST: LazyLock<String> = LazyLock::new(|| {
    let script = concat!(
        "'use strict';\n\n",
        include_str!("pages/test/measure.js"),
        "\n",
        include_str!("pages/test/verdict.js"),
        "\n",
        include_str!("pages/test/view.js"),
        "\n",
        include_str!("pages/test/result.js"),
        "\n",
        include_str!("pages/test/main.js"),
    );
    include_str!("pages/test/page.html")
        .replace("{{style}}", include_str!("pages/test/style.css"))
        .replace("{{script}}", script)
});

/// It asks this server for the credentials of a visit.
static TEST_POLICY: LazyLock<String> = LazyLock::new(|| policy(&TEST) + "; connect-src 'self'");

/// The connectivity test page.
pub(super) fn test() -> Response {
    page(&TEST, &TEST_POLICY)
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

/// Lets the page's own inline script and style run, and nothing else.
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
        assert!(!between(&TEST, "<script>", "</script>").is_empty());
        assert!(!between(&TEST, "<style>", "</style>").is_empty());
        assert!(!TEST.contains("{{"));
        for foreign in [
            "https://",
            "src=",
            "XMLHttpRequest",
            "sendBeacon",
            "innerHTML",
            " style=\"",
            " onclick=",
        ] {
            assert!(!TEST.contains(foreign), "{foreign}");
        }
        // The name of a markup language, and the one thing that the page asks for.
        assert_eq!(TEST.matches("http://").count(), 1);
        assert_eq!(TEST.matches("fetch(").count(), 1);
        assert!(TEST.contains("fetch('/test/session'"));
    }
}
