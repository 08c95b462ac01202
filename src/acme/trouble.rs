//! Why there is no certificate, and what to do about it, in words for whoever runs the server.

use std::fmt;
use std::io;
use std::time::Duration;

use instant_acme::{AuthorizationState, Error, Problem};

use super::store::Store;
use super::{Challenge, LETS_ENCRYPT, Settings};
use crate::stream::certificates::Fault;

/// What the types of problems begin with (RFC 8555 §6.7).
const PREFIX: &str = "urn:ietf:params:acme:error:";

/// What happened, and what helps.
#[derive(Debug)]
pub(super) struct Trouble {
    found: String,
    remedy: String,
    /// It is worth another try at once.
    pub passes: bool,
    /// The authority has not heard of it, so that it costs nothing to ask again soon: a network that comes up late.
    pub unheard: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found, self.remedy)
    }
}

/// The type of a problem, less what all begin with.
fn kind_of(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix(PREFIX).unwrap_or(kind)
}

/// Whether the authority does not know our account.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind_of(problem) == "accountDoesNotExist")
}

impl Trouble {
    fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            remedy: remedy.into(),
            passes: false,
            unheard: false,
        }
    }

    /// What came of a request.
    pub fn of(error: &Error, settings: &Settings, challenge: Challenge) -> Self {
        let directory = &settings.directory;
        match error {
            Error::Api(problem) => Self::of_problem(problem, None, settings, challenge),
            Error::Timeout(_) => Self::new(
                format!("{directory} has not come to a decision in time"),
                "it may be busy: nothing needs to be done",
            ),
            Error::Json(error) => Self::new(
                format!("{directory} does not answer as ACME has it ({error})"),
                "check tls.acme.directory: it is the URL of a directory, and no proxy may answer in its place",
            ),
            // What lies beneath names the cause: a name, a refused connection, a certificate.
            Error::Other(cause) => Self {
                unheard: true,
                ..Self::new(
                    format!("{directory} cannot be asked ({})", chain(cause.as_ref())),
                    "this host has to resolve its name and connect to its port, by HTTPS; a private authority's root belongs \
                     in tls.acme.ca_file",
                )
            },
            error => Self::new(
                format!("{directory}: {error}"),
                "check tls.acme.directory; report this as a bug of turnix if other ACME clients can use it",
            ),
        }
    }

    /// What the authority found when it looked whether a name leads here.
    pub fn of_authorization(
        state: &AuthorizationState,
        settings: &Settings,
        challenge: Challenge,
    ) -> Self {
        let name = state.identifier().to_string();
        match state.challenges.iter().find_map(|one| one.error.as_ref()) {
            Some(problem) => Self::of_problem(problem, Some(&name), settings, challenge),
            None => Self::new(
                format!("the authorization of {name} is {:?}", state.status).to_lowercase(),
                "the next order asks for another",
            ),
        }
    }

    fn of_problem(
        problem: &Problem,
        name: Option<&str>,
        settings: &Settings,
        challenge: Challenge,
    ) -> Self {
        let kind = kind_of(problem);
        // Some say that of a name without an address.
        let resolves = kind != "malformed" || name.is_none();
        let name = name.unwrap_or("a name of tls.acme.names");
        let port = challenge.port();
        let mut found = format!(
            "{kind}: {}",
            problem.detail.as_deref().unwrap_or("no detail")
        );
        if let [first, ..] = problem.subproblems.as_slice() {
            found += &format!(" ({first})");
        }
        let remedy = match kind {
            "connection" => format!(
                "the authority has to reach TCP port {port} of {name} from the internet: open it in every firewall, forward \
                 it where there is a NAT, and see that A and AAAA records name this host"
            ),
            _ if kind == "dns" || !resolves => format!(
                "{name} needs an A or AAAA record with the public address of this host, and name servers that answer"
            ),
            "caa" => format!(
                "a CAA record of {name} or of a domain above names other authorities: add this one, for Let's Encrypt \
                 0 issue \"letsencrypt.org\""
            ),
            "unauthorized" | "incorrectResponse" | "tls" => format!(
                "something else than this server answers on port {port} of {name}: another host that a record names, a web \
                 server, a proxy that ends TLS; {}",
                match challenge {
                    Challenge::TlsAlpn01 => "behind such a proxy use challenge = \"http-01\"",
                    Challenge::Http01 => "let it pass /.well-known/acme-challenge/ on, or use challenge = \"tls-alpn-01\"",
                }
            ),
            "rateLimited" => "wait: it is tried again by itself when the authority allows it. For experiments there is \
                 tls.acme.staging = true".to_owned(),
            "rejectedIdentifier" | "unsupportedIdentifier" => {
                "the authority does not issue for that name: correct tls.acme.names".to_owned()
            }
            "invalidContact" | "unsupportedContact" => "correct tls.acme.email, or leave it empty".to_owned(),
            "externalAccountRequired" => "this authority wants an account that was made by hand first, which turnix \
                 does not support: choose another, or use its own client and name the files in tls.certificate".to_owned(),
            "userActionRequired" => "the authority wants something done by hand, see above".to_owned(),
            "serverInternal" | "badNonce" => "that is the authority's own trouble: nothing needs to be done".to_owned(),
            _ if settings.directory == LETS_ENCRYPT => {
                "https://letsencrypt.status.io tells whether it has trouble of its own".to_owned()
            }
            _ => "the authority's documentation may tell more".to_owned(),
        };
        Self {
            passes: kind == "badNonce",
            ..Self::new(found, remedy)
        }
    }

    /// The authority does not prove names in the way that we can.
    pub fn not_offered(name: &str, challenge: Challenge) -> Self {
        Self::new(
            format!(
                "the authority does not prove {name} by {}",
                challenge.label()
            ),
            "set tls.acme.challenge to another one",
        )
    }

    /// The authority wants something proven that nobody asked for.
    pub fn not_asked(name: &str) -> Self {
        Self::new(
            format!("the authority sent a challenge for {name} that belongs to no order of ours"),
            "check tls.acme.directory",
        )
    }

    /// The state directory cannot be used.
    pub fn state(store: &Store, error: &io::Error) -> Self {
        Self::new(
            format!(
                "nothing can be kept in {} ({error})",
                store.directory().display()
            ),
            "make room there, and let the user that turnix runs as write",
        )
    }

    /// An order took longer than anybody waits.
    pub fn slow(after: Duration) -> Self {
        Self::new(
            format!(
                "the order was not done after {} minutes",
                after.as_secs() / 60
            ),
            "the authority may be busy: nothing needs to be done",
        )
    }

    /// The certificate does not fit its key, or is none.
    pub fn unusable(fault: &Fault) -> Self {
        Self::new(
            format!("the authority issued what cannot be served ({fault})"),
            "choose another in tls.acme.directory",
        )
    }

    /// The certificate is over already.
    pub fn expired() -> Self {
        Self::new(
            "the certificate that was issued has expired by this host's clock",
            "set the clock (timedatectl set-ntp true)",
        )
    }

    /// The request could not be made.
    pub fn request(error: &str) -> Self {
        Self::new(
            format!("the request for a certificate cannot be made ({error})"),
            "correct tls.acme.names",
        )
    }
}

/// An error and what it came from.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}
