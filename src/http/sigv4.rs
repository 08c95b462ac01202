//! Requests signed for AWS (Signature Version 4), so that its SDKs ask here as they are.
//!
//! The signature covers method, path, query, the headers that it names and the body. Unlike a Bearer token it does not show
//! the secret, so the secret itself has to be known here, not its hash.

use std::fmt::Write as _;
use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How far a request's clock may be from ours, as AWS has it.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// The most headers that a signature may cover: SDKs sign three to eight.
const MAX_SIGNED_HEADERS: usize = 32;

/// A request, as it came.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// As on the wire, percent-encoded.
    pub path: &'a str,
    /// As on the wire, without the question mark.
    pub query: &'a str,
    /// What HTTP/2 has in place of the header `host`.
    pub authority: Option<&'a str>,
    /// All of them.
    pub headers: &'a HeaderMap,
    /// To the last byte.
    pub body: &'a [u8],
}

/// The `Authorization` header of a signed request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    /// The access key's id.
    pub key_id: &'a str,
    /// Date, region, service and `aws4_request`, with slashes between.
    scope: &'a str,
    signed_headers: &'a str,
    signature: [u8; 32],
}

/// Reads `header`; `None` for another scheme, or one that is broken.
pub(super) fn authorization(header: &str) -> Option<Authorization<'_>> {
    let rest = header.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for part in rest.split(',') {
        let (name, value) = part.trim().split_once('=')?;
        match name {
            "Credential" => credential = Some(value),
            "SignedHeaders" => signed_headers = Some(value),
            "Signature" => signature = unhex(value),
            _ => return None,
        }
    }
    let credential = credential?;
    // Ids may hold slashes; the scope is the last four parts.
    let (at, _) = credential.rmatch_indices('/').nth(3)?;
    Some(Authorization {
        key_id: &credential[..at],
        scope: &credential[at + 1..],
        signed_headers: signed_headers?,
        signature: signature?,
    })
}

impl Authorization<'_> {
    /// Whether `secret` signed `request` for `service`, at a time that is not far from `unix_now`.
    pub fn verify(
        &self,
        request: Request<'_>,
        service: &str,
        secret: &str,
        unix_now: Duration,
    ) -> bool {
        let mut scope = self.scope.split('/');
        let (Some(date), Some(region), Some(asked), Some("aws4_request"), None) = (
            scope.next(),
            scope.next(),
            scope.next(),
            scope.next(),
            scope.next(),
        ) else {
            return false;
        };
        let time = request.headers.get("x-amz-date");
        let Some(time) = time.and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let Some(signed_at) = unix_secs(time) else {
            return false;
        };
        let fresh = unix_now.as_secs().abs_diff(signed_at) <= CLOCK_SKEW.as_secs();
        if !fresh || asked != service || !time.starts_with(date) || date.len() != 8 {
            return false;
        }
        let Some(canonical) = self.canonical(request) else {
            return false;
        };
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("{ALGORITHM}\n{time}\n{}\n{digest}", self.scope);
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [date, region, service, "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        mac(&key, to_sign.as_bytes())
            .as_slice()
            .ct_eq(&self.signature)
            .into()
    }

    /// The request as it was signed; `None` if what has to be signed is not.
    fn canonical(&self, request: Request<'_>) -> Option<String> {
        let names: Vec<&str> = self.signed_headers.split(';').collect();
        let has = |name| names.contains(&name);
        if names.len() > MAX_SIGNED_HEADERS || !has("host") || !has("x-amz-date") {
            return None;
        }
        let mut text = format!(
            "{}\n{}\n{}\n",
            request.method,
            request.path,
            sorted(request.query)
        );
        for name in &names {
            let mut values = Vec::new();
            for value in request.headers.get_all(*name) {
                let words: Vec<&str> = value.to_str().ok()?.split_ascii_whitespace().collect();
                values.push(words.join(" "));
            }
            if values.is_empty() && *name == "host" {
                values.extend(request.authority.map(str::to_owned));
            }
            if values.is_empty() {
                return None;
            }
            writeln!(text, "{name}:{}", values.join(",")).ok()?;
        }
        let body = hex(&Sha256::digest(request.body));
        write!(text, "\n{}\n{body}", self.signed_headers).ok()?;
        Some(text)
    }
}

/// Parameters in the order that they are signed in; each has a `=`.
fn sorted(query: &str) -> String {
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.contains('=') {
            true => pair.to_owned(),
            false => format!("{pair}="),
        })
        .collect();
    pairs.sort();
    pairs.join("&")
}

/// `YYYYMMDDTHHMMSSZ` as Unix time, in seconds.
fn unix_secs(time: &str) -> Option<u64> {
    let bytes = time.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = time.get(range)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse().ok()).flatten()
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March: the day that leap years have more is their last.
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // From March of the year 0 to the epoch.
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC accepts every key length"));
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// Of AWS's test suite for Signature Version 4: its key, and the time of all its requests.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const AT: Duration = Duration::from_secs(1_440_938_160);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn signed(signature: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature={signature}"
        )
    }

    fn verify(query: &str, signature: &str, secret: &str, now: Duration) -> bool {
        const HOST: &str = "example.amazonaws.com";
        let date = ("x-amz-date", "20150830T123600Z");
        let [one, two] = [
            (headers(&[("host", HOST), date]), None),
            (headers(&[date]), Some(HOST)),
        ]
        .map(|(headers, authority)| {
            verify_with(query, signature, secret, now, &headers, authority)
        });
        assert_eq!(one, two, "over HTTP/1 and HTTP/2");
        one
    }

    fn verify_with(
        query: &str,
        signature: &str,
        secret: &str,
        now: Duration,
        headers: &HeaderMap,
        authority: Option<&str>,
    ) -> bool {
        let request = Request {
            method: "GET",
            path: "/",
            query,
            authority,
            headers,
            body: b"",
        };
        let header = signed(signature);
        let authorization = authorization(&header).unwrap();
        assert_eq!(authorization.key_id, "AKIDEXAMPLE");
        authorization.verify(request, "service", secret, now)
    }

    /// `get-vanilla` and `get-vanilla-query-order-key-case` of the suite.
    const VANILLA: &str = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
    const QUERY: &str = "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";

    #[test]
    fn what_aws_signs_is_signed() {
        assert!(verify("", VANILLA, SECRET, AT));
        let query = "Param2=value2&Param1=value1";
        assert!(verify(query, QUERY, SECRET, AT));
    }

    #[test]
    fn anything_else_is_not() {
        assert!(!verify("a=b", VANILLA, SECRET, AT));
        assert!(!verify("", QUERY, SECRET, AT));
        assert!(!verify("", VANILLA, "another secret", AT));
        for far in [AT + 2 * CLOCK_SKEW, AT - 2 * CLOCK_SKEW] {
            assert!(!verify("", VANILLA, SECRET, far));
        }
    }

    #[test]
    fn a_signature_covers_host_and_date() {
        let bare = signed(VANILLA).replace("host;x-amz-date", "x-amz-date");
        let headers = headers(&[("x-amz-date", "20150830T123600Z")]);
        let request = Request {
            method: "GET",
            path: "/",
            query: "",
            authority: None,
            headers: &headers,
            body: b"",
        };
        let authorization = authorization(&bare).unwrap();
        assert!(!authorization.verify(request, "service", SECRET, AT));
        assert_eq!(authorization.canonical(request), None);
    }

    #[test]
    fn other_schemes_and_nonsense_are_nothing() {
        for header in [
            "",
            "Bearer x",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=00",
            &signed("zz"),
            &signed(&"é".repeat(32)),
            &signed(VANILLA).replace("us-east-1/service/aws4_request", "x"),
        ] {
            assert_eq!(authorization(header), None, "{header}");
        }
    }

    #[test]
    fn times_are_read_as_written() {
        for (time, secs) in [
            ("19700101T000000Z", 0),
            ("20150830T123600Z", 1_440_938_160),
            ("20240229T235959Z", 1_709_251_199),
            ("20261126T143354Z", 1_795_703_634),
        ] {
            assert_eq!(unix_secs(time), Some(secs), "{time}");
        }
        for time in [
            "20150830",
            "20151330T123600Z",
            "2015083éT12360Z",
            "+0150830T123600Z",
        ] {
            assert_eq!(unix_secs(time), None, "{time}");
        }
    }
}
