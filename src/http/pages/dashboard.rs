//! The dashboard: markup, style and script, joined into one page.

use std::sync::LazyLock;

use axum::response::Response;

/// What goes wrong in words, how calls go, and the page's doings.
const SCRIPT: &str = concat!(
    include_str!("dashboard/words.js"),
    include_str!("dashboard/calls.js"),
    include_str!("dashboard/script.js")
);

static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("dashboard/page.html")
        .replacen("{{style}}", include_str!("dashboard/style.css"), 1)
        .replacen("{{script}}", SCRIPT, 1)
});

/// Lets the page ask its own server, and nobody else; whatever makes markup of text is refused (Trusted Types).
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let policy = super::policy(&PAGE);
    format!(
        "{policy}; connect-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
});

/// The dashboard, the same for everybody: it holds nothing of this server.
pub(in crate::http) fn page() -> Response {
    super::page(&PAGE, &POLICY)
}
