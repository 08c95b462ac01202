//! Events in words.

use crate::access::AuthFailure;
use crate::base::{Pii, Printable};
use crate::stream::FailedHandshakes;
use crate::turn::{Direction, DropReason, EndReason, Event, Reject, What};

use super::{Evidence, Told};

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it happened first, in milliseconds since the Unix epoch.
    pub at: u64,
    /// When it happened last.
    pub last: u64,
    /// How often.
    pub count: u32,
    /// The word of the API.
    pub event: &'static str,
    /// What a machine reads beside: the reason of a refusal, the rule, why packets were dropped, why it ended.
    pub reason: Option<&'static str>,
    /// The error code that was answered.
    pub code: Option<u16>,
    /// The method that was asked for.
    pub method: Option<&'static str>,
    /// The name of the allocation.
    pub allocation: Option<String>,
    /// Who, or who somebody claims to be.
    pub user: Option<String>,
    /// Where the client was.
    pub client: String,
    /// How it came.
    pub transport: &'static str,
    /// About whom.
    pub peer: Option<String>,
    /// All of it in words.
    pub text: String,
}

/// What happened, in the order of time.
pub fn timeline(evidence: &Evidence) -> Vec<Line> {
    let mut lines: Vec<Line> = (evidence.events.iter().map(line))
        .chain(evidence.handshakes.iter().map(handshake))
        .collect();
    lines.sort_by_key(|line| line.at);
    lines
}

fn handshake(failed: &FailedHandshakes) -> Line {
    Line {
        at: failed.at * 1000,
        last: failed.last * 1000,
        count: failed.count,
        event: "tls_failed",
        reason: None,
        code: None,
        method: None,
        allocation: None,
        user: None,
        client: Pii(failed.client).to_string(),
        transport: "tls",
        peer: None,
        text: format!(
            "the TLS handshake failed: {}{}",
            Printable(&failed.error),
            times(failed.count)
        ),
    }
}

fn line(told: &Told) -> Line {
    let event = &told.event;
    let (reason, code, method) = match event.what {
        What::Refused { method, reject } => (
            Some(reject.label()),
            Some(reject.code().code()),
            Some(method.label()),
        ),
        What::Denied(rule) => (Some(rule.label()), None, None),
        What::Dropped(reason, _) => (Some(reason.label()), None, None),
        What::Ended(reason) => (Some(reason.label()), None, None),
        _ => (None, None, None),
    };
    let user = event.user.as_str();
    Line {
        at: event.at,
        last: event.last,
        count: event.count,
        event: event.what.label(),
        reason,
        code,
        method,
        allocation: told.allocation.clone(),
        user: (!user.is_empty()).then(|| user.to_owned()),
        client: Pii(event.client.client()).to_string(),
        transport: event.client.transport().label(),
        peer: event.peer.map(|peer| Pii(peer).to_string()),
        text: text(event),
    }
}

fn times(count: u32) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" ({count} times)"),
    }
}

fn text(event: &Event) -> String {
    let peer = match event.peer {
        Some(peer) => Pii(peer).to_string(),
        None => "a peer".to_owned(),
    };
    let client = Pii(event.client.client());
    let over = event.client.transport().label();
    let what = match event.what {
        What::Refused { method, reject } => match reject {
            Reject::Unauthenticated(AuthFailure::Missing) => {
                format!(
                    "{client} was challenged over {over}: ordinary, the first step of every client"
                )
            }
            Reject::StaleNonce => format!(
                "{} over {over} came with a nonce that is over, and got another one (438)",
                method.label()
            ),
            _ => {
                let detail = match reject.detail() {
                    Some(detail) => format!(": {detail}"),
                    None => String::new(),
                };
                format!(
                    "{}{} over {over} was refused with {}, {}{detail}",
                    method.label(),
                    claimed(event),
                    reject.code().code(),
                    reject.label(),
                )
            }
        },
        What::Allocated => format!("{client} got an allocation over {over}"),
        What::Permitted => format!("a permission for {peer} was created"),
        What::Bound => format!("a channel was bound to {peer}"),
        What::Denied(rule) => format!("{peer} was refused by policy, rule {}", rule.label()),
        What::Dropped(reason, direction) => dropped(reason, direction, event.count, &peer),
        What::Icmp { kind, code } => {
            format!("ICMP says that {peer} was not reached ({kind}/{code})")
        }
        What::Moved => format!("the client moves to {peer}"),
        What::ConnectFailed => format!("no connection to {peer} could be made"),
        What::Ended(reason) => ended(reason).to_owned(),
    };
    match event.what {
        What::Dropped(..) => what,
        _ => what + &times(event.count),
    }
}

/// Who somebody says to be, where no allocation says it.
fn claimed(event: &Event) -> String {
    match (event.allocation, event.user.as_str()) {
        (Some(_), _) | (None, "") => String::new(),
        (None, user) => format!(" by \"{}\"", Printable(user)),
    }
}

fn dropped(reason: DropReason, direction: Direction, count: u32, peer: &str) -> String {
    let packets = if count == 1 { "packet" } else { "packets" };
    let (way, from) = match direction {
        Direction::ToPeer => ("from the client", ""),
        Direction::ToClient => ("for the client", peer),
    };
    let why = match reason {
        DropReason::NoPermission if direction == Direction::ToClient => {
            return format!("{count} {packets} came from {from}, for whom there is no permission");
        }
        DropReason::NoPermission => "no permission for the peer",
        DropReason::NoChannel => "the channel is not bound",
        DropReason::PeerDenied => "policy refuses the peer",
        DropReason::StreamQueue => "its connection takes less than is sent to it",
        DropReason::BandwidthAllocation => "the allocation is over its bandwidth",
        DropReason::BandwidthUser => "the user is over the bandwidth of all its allocations",
        DropReason::BandwidthTotal => "the server is over its bandwidth",
        DropReason::Abuse => "it looks like abuse, and quality.abuse throttles it",
        DropReason::NewPeers => "it addresses new peers faster than it may",
        DropReason::TooLarge => "too large",
        other => other.label(),
    };
    format!("{count} {packets} {way} dropped: {why}")
}

const fn ended(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Released => "the client gave the allocation back",
        EndReason::Expired => "the allocation expired: the client did not refresh it",
        EndReason::ClientClosed => "the client's connection closed, and the allocation ended",
        EndReason::Administrative => "an operator ended the allocation",
        EndReason::Abuse => "the allocation looked like abuse and was ended",
        EndReason::Revoked => "the credential was revoked, and the allocation ended",
        EndReason::ListenerClosed => "the listener was closed, and the allocation ended",
        EndReason::RelayFailed => "the relay socket failed, and the allocation ended",
        EndReason::Shutdown => "the server stopped, and the allocation ended",
    }
}
