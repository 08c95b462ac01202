//! The status page: one file without a script, filled in here.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};

use super::{Report, SLOT, SLOTS, State};
use crate::base::Now;
use crate::http::pages;

const PAGE: &str = include_str!("../pages/status.html");

const TEST: &str =
    r#"What your own network lets through, the <a href="/test">connectivity test</a> tells."#;

static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        pages::hash(pages::between(PAGE, "<style>", "</style>")),
    )
});

pub(super) fn html(report: &Report, now: Now) -> Response {
    let (title, lead) = match report.state {
        State::Online => ("Online", "Calls go through."),
        State::Degraded => ("Degraded", "Some calls may not go through."),
        State::Offline => ("Offline", "Calls do not go through."),
    };
    let text = PAGE
        .replace("{{state}}", report.state.label())
        .replace("{{title}}", title)
        .replace("{{lead}}", lead)
        .replace("{{since}}", &ago(report.since_unix, now))
        .replace("{{checked}}", &ago(report.checked_unix, now))
        .replace("{{reasons}}", &reasons(report, now))
        .replace("{{paths}}", &paths(report))
        .replace("{{history}}", &history(report))
        .replace("{{test}}", if report.test_page { TEST } else { "" })
        .replace(
            "{{hours}}",
            &(SLOT.as_secs() * SLOTS as u64 / 3600).to_string(),
        );
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(text)).into_response()
}

fn ago(unix: u64, now: Now) -> String {
    let secs = now.unix_secs().saturating_sub(unix);
    let (count, unit) = match secs {
        0..=1 => return "just now".to_owned(),
        2..120 => (secs, "seconds"),
        120..7200 => (secs / 60, "minutes"),
        7200..172_800 => (secs / 3600, "hours"),
        _ => (secs / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}

fn reasons(report: &Report, now: Now) -> String {
    if report.reasons.is_empty() {
        return String::new();
    }
    let mut html = "<ul class=\"card reasons\">".to_owned();
    for reason in &report.reasons {
        let class = match reason.state {
            State::Online => "notice",
            state => state.label(),
        };
        let text = escaped(&reason.text);
        let since = ago(reason.since_unix, now);
        let _ = write!(
            html,
            "<li class=\"{class}\">{text} <small>Since {since}.</small></li>"
        );
    }
    html + "</ul>"
}

fn paths(report: &Report) -> String {
    if report.paths.is_empty() {
        return String::new();
    }
    let mut html =
        "<table class=\"card\"><caption>Ways in</caption><thead><tr><th scope=\"col\">Way</th>\
                    <th scope=\"col\">Works</th><th scope=\"col\">Echo</th></tr></thead><tbody>"
            .to_owned();
    for path in &report.paths {
        let (class, word) = match path.fault() {
            None => ("online", "yes"),
            Some(_) => ("offline", "no"),
        };
        let echo = match path.last {
            Some(Ok(seen)) => format!("{:.1} ms", seen.echo.as_secs_f64() * 1e3),
            _ => "–".to_owned(),
        };
        let name = escaped(&path.way.name());
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{name}</th><td><span class=\"badge {class}\">{word}</span></td><td>{echo}</td></tr>"
        );
    }
    html + "</tbody></table>"
}

/// One bar for each slot, the latest on the right.
fn history(report: &Report) -> String {
    let missing = SLOTS.saturating_sub(report.history.len());
    let slots = std::iter::repeat_n(&None, missing).chain(&report.history);
    let mut html = format!(
        "<svg viewBox=\"0 0 {} 28\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
        SLOTS * 4,
        summary(report),
    );
    for (index, slot) in slots.enumerate() {
        let class = slot.map_or("none", State::label);
        let x = index * 4;
        let _ = write!(
            html,
            "<rect class=\"{class}\" x=\"{x}\" width=\"3\" height=\"28\"/>"
        );
    }
    html + "</svg>"
}

/// The history in words.
fn summary(report: &Report) -> String {
    let known = report.history.iter().flatten().count();
    let online = (report.history.iter().flatten())
        .filter(|state| **state == State::Online)
        .count();
    match known {
        0 => "Nothing is known yet".to_owned(),
        _ => format!("Online in {online} of the last {known} five-minute periods"),
    }
}

fn escaped(text: &str) -> String {
    (text.chars()).fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_page_is_one_style_and_nothing_from_elsewhere() {
        assert_eq!(PAGE.matches("<style>").count(), 1);
        for foreign in [
            "<script",
            "http://",
            "https://",
            "src=",
            " style=\"",
            " onload=",
        ] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        assert_eq!(escaped("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
    }
}
