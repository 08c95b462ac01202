//! The keys of `[http]`: where the admin listener is and who may use it, and which pages everybody may see.

use std::net::SocketAddr;

use super::auth::secret_file;
use super::exposure;
use super::problem::Sources;
use super::reader::Reader;
use super::source::Node;
use super::values::{self, Converted, Fault};
use super::{Http, Tls};
use crate::base::Secret;
use crate::http::events::LONGEST_HISTORY;
use crate::http::{MIN_TOKEN_CHARS, Token};

/// What `[http]` says.
pub(super) struct Keys {
    pub admin: Option<SocketAddr>,
    pub http: Http,
}

pub(super) fn read_http(r: &mut Reader<'_>, sources: &Sources) -> Option<Keys> {
    let admin = r.key(
        "http.admin",
        r#""127.0.0.1:9641""#,
        r#"an address and port such as "127.0.0.1:9641", or "" to turn it off"#,
        admin,
    );
    let tls = r.key("http.tls", "false", "true or false", values::boolean);
    let token = r.key(
        "http.token",
        r#""""#,
        "a text of 16 characters or more",
        token,
    );
    let token_file = r.key(
        "http.token_file",
        r#""""#,
        r#"the path of a file that holds the token, or "cred:name" for a systemd credential"#,
        |node| match values::text(node)?.as_str() {
            "" => Ok(None),
            _ => {
                let file = secret_file(node, sources)?;
                let token = usable(node, file.secret)?;
                Ok(Some((file.path, token)))
            }
        },
    );
    let hosts = r.key(
        "http.hosts",
        "[]",
        r#"a list of names or IP addresses, without port, such as "turn.example.org""#,
        values::list(values::parsed(host)),
    );
    let history = r.key(
        "http.history",
        r#""10m""#,
        r#"a duration up to "1h", or "0" to remember nothing"#,
        |node| match values::parsed(values::duration)(node)? {
            history if history > LONGEST_HISTORY => Err(Fault::of(node)),
            history => Ok(history),
        },
    );
    let test_page = r.key("http.test_page", "true", "true or false", values::boolean);
    let status_page = r.key("http.status_page", "true", "true or false", values::boolean);
    let (token, token_file) = (token?, token_file?);
    if let Some((path, token)) = &token_file {
        (r.keys).note_secrets("http.token_file", std::iter::once(token));
        exposure::warn_of_file(r, "http.token_file", path);
    }
    if token.is_some() && token_file.is_some() {
        r.problem(
            "http.token",
            "given, and so is http.token_file",
            "keep one of them",
        );
        return None;
    }
    let token = token.or(token_file.map(|(_, token)| token));
    let (admin, tls) = (admin?, tls?);
    if let Some(address) = admin.filter(|address| !address.ip().to_canonical().is_loopback()) {
        let missing = match (token.is_some(), tls) {
            (true, true) => None,
            (false, true) => Some("and everybody may: there is no token"),
            (true, false) => Some("and its token would travel unprotected: there is no TLS"),
            (false, false) => Some("and there is neither TLS nor a token"),
        };
        if let Some(missing) = missing {
            r.problem(
                "http.admin",
                format!("{address} can be asked from outside, {missing}"),
                "set http.tls = true and http.token_file (or http.token), or use \"127.0.0.1:9641\" and reach it by \
                 ssh -L 9641:127.0.0.1:9641",
            );
            return None;
        }
    }
    Some(Keys {
        admin,
        http: Http {
            tls,
            token: token.map(|token| Token::new(&token)),
            hosts: hosts?,
            history: history?,
            test_page: test_page?,
            status_page: status_page?,
        },
    })
}

/// TLS needs a certificate.
pub(super) fn check_http(r: &mut Reader<'_>, tls: Option<&Option<Tls>>, keys: Option<&Keys>) {
    if let (Some(None), Some(Keys { http, .. })) = (tls, keys)
        && http.tls
    {
        r.problem(
            "http.tls",
            "true, and tls.certificate is empty",
            "name tls.certificate and tls.key",
        );
    }
}

fn admin(node: &Node) -> Converted<Option<SocketAddr>> {
    match values::text(node)?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| Fault::of(node)),
    }
}

fn token(node: &Node) -> Converted<Option<Secret<String>>> {
    match values::text(node).map_err(|_| Fault::masked(node))? {
        text if text.is_empty() => Ok(None),
        text => usable(node, Secret::new(text)).map(Some),
    }
}

/// What nobody guesses and a header can carry (RFC 6750 §2.1; anything visible in ASCII is taken).
fn usable(node: &Node, token: Secret<String>) -> Converted<Secret<String>> {
    let text = token.expose();
    if text.chars().count() < MIN_TOKEN_CHARS {
        return Err(Fault::with(
            node,
            format!("a token of fewer than {MIN_TOKEN_CHARS} characters, which can be guessed"),
            "use a long random text (openssl rand -hex 32)",
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Fault::with(
            node,
            "a token with characters that a header does not carry",
            "use letters, digits and -._~+/= (openssl rand -hex 32)",
        ));
    }
    Ok(token)
}

fn host(text: &str) -> Result<String, String> {
    let is_ip = text.parse::<std::net::IpAddr>().is_ok();
    let is_name = !text.is_empty()
        && (text.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_ip || is_name {
        Ok(text.to_owned())
    } else {
        Err("write a host name or an IP address, without scheme, port or brackets".into())
    }
}
