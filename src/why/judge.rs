//! From evidence to a verdict.
//!
//! What kept a call from coming about is looked for first, what ended it next, and what made it bad last. Where there are
//! several allocations, as browsers make one over each transport, those of the latest attempt are judged together: the one
//! that carried the most speaks for all.

use std::time::Duration;

use crate::access::{AuthFailure, DeniedRule};
use crate::base::{Pii, Printable, RelayTransport};
use crate::quality::{Leg, Quality, Session};
use crate::turn::{Direction, DropReason, EndReason, Event, Reject, What};

use super::verdict::{Code, Verdict};
use super::way::{beyond_stun, carried, is_kept};
use super::{Call, Evidence, Told};

/// How long it may take until somebody sends, or answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Allocations that are made within this time belong to one attempt.
const ATTEMPT: Duration = Duration::from_secs(30);

/// How much longer than the other side one has to be silent for it to be the one that went first.
const FIRST_TO_GO: Duration = Duration::from_secs(10);

/// Challenges with 438 before it looks like a loop.
const STALE: u32 = 3;

/// Dropped packets that are worth a word, as a share of those that passed.
const DROPPED: f64 = 0.01;

/// Lost packets that are worth a word, as a share of all, and how many have to have been looked at.
const LOSS: f64 = 0.03;
const LOOKED_AT: u64 = 50;

/// A round trip that people notice.
const LONG_WAY: Duration = Duration::from_millis(400);

/// Packets beyond STUN that no handshake needs: something flows.
pub(super) const FLOWS: u64 = 40;

/// What became of all of it.
pub(super) fn all(evidence: &Evidence, now: Duration) -> Verdict {
    let latest = evidence.calls.last();
    let allocated = evidence.events.iter().filter_map(|told| {
        let is = told.event.what == What::Allocated;
        is.then_some(told.event.last)
    });
    let made = latest.map_or(0, |call| millis(call.view.created_unix));
    let made = allocated.fold(made, u64::max);
    // A refusal that came after the latest allocation is what somebody complains about.
    let refusal = (evidence.events.iter().rev())
        .filter(|told| told.allocation.is_none() && told.event.last > made)
        .max_by_key(|told| (weight(&told.event), told.event.last));
    let handshake = evidence.handshakes.last();
    let handshake = handshake.filter(|failed| {
        let seen = refusal.map_or(0, |told| told.event.last).max(made);
        failed.last * 1000 >= seen
    });
    if let Some(failed) = handshake {
        return Verdict::new(
            Code::TlsFailed,
            format!(
                "The TLS handshake failed: {}.",
                Printable(failed.error.trim_end_matches('.'))
            ),
        );
    }
    if let Some(told) = refusal
        && (latest.is_none() || weight(&told.event) > 1)
    {
        return refused(&told.event);
    }
    let Some(latest) = latest else {
        // Events of an allocation that is forgotten.
        let Some(told) = evidence.events.last() else {
            return Verdict::new(
                Code::NothingKnown,
                "Nothing is known: nobody of that name or address came here, or it is too long ago.",
            );
        };
        return match told.event.what {
            What::Refused { .. } => refused(&told.event),
            _ => Verdict::new(
                Code::NothingKnown,
                "The allocation is over, and too long ago to tell how it went.",
            ),
        };
    };
    let attempt = (evidence.calls.iter()).filter(|call| {
        let apart = latest
            .view
            .created_unix
            .saturating_sub(call.view.created_unix);
        apart <= ATTEMPT
    });
    let judged = attempt.map(|one| {
        let packets: u64 = one.view.traffic.iter().map(|traffic| traffic.packets).sum();
        let verdict = call(one, &evidence.events, now);
        // Of those that relayed nothing, the one that was refused something tells the most.
        let telling = match verdict.code {
            Code::Waiting => 0,
            Code::NoPermission | Code::ClientSilent => 1,
            _ => 2,
        };
        ((packets, telling), verdict)
    });
    match judged.max_by_key(|(weight, _)| *weight) {
        Some((_, verdict)) => verdict,
        None => call(latest, &evidence.events, now),
    }
}

/// How much a refusal says: challenges are steps on the way, and so is asking again.
fn weight(event: &Event) -> u8 {
    match event.what {
        What::Refused { reject, .. } => match reject {
            Reject::Unauthenticated(AuthFailure::Missing) => 1,
            Reject::StaleNonce if event.count < STALE => 1,
            Reject::AllocationExists | Reject::NoAllocation | Reject::AddressFamily => 1,
            _ => 2,
        },
        _ => 0,
    }
}

/// Why a request was refused, in a sentence.
fn refused(event: &Event) -> Verdict {
    let What::Refused { method, reject } = event.what else {
        return Verdict::new(Code::NothingKnown, "Nothing was refused.");
    };
    let who = match event.user.as_str() {
        "" => "The client".to_owned(),
        user => format!("\"{}\"", Printable(user)),
    };
    let code = reject.code().code();
    let times = match event.count {
        0 | 1 => String::new(),
        count => format!(", {count} times"),
    };
    match reject {
        Reject::Unauthenticated(AuthFailure::Missing) => Verdict::new(
            Code::NoCredentials,
            format!(
                "The client at {} was challenged{times} and never came back with credentials.",
                Pii(event.client.client())
            ),
        ),
        Reject::Unauthenticated(AuthFailure::BadPassword) | Reject::BidDown => Verdict::new(
            Code::BadPassword,
            format!("{who} came with a wrong password{times} ({code})."),
        ),
        Reject::Unauthenticated(AuthFailure::UnknownUser) => Verdict::new(
            Code::UnknownUser,
            format!("Nobody is called {who} here; it was tried{times} ({code})."),
        ),
        Reject::Unauthenticated(AuthFailure::Expired) => {
            let tried = event.last / 1000;
            let over = match event.credential_ends {
                Some(ends) if ends <= tried => format!(
                    "it ended {} before it was shown",
                    span(Duration::from_secs(tried - ends))
                ),
                _ => "it is over".to_owned(),
            };
            Verdict::new(
                Code::CredentialExpired,
                format!(
                    "{who} came with a credential that is over{times} ({code}): {over}. If it was fresh, the clock of whoever minted it and this server's differ."
                ),
            )
        }
        Reject::Unauthenticated(AuthFailure::WrongRealm) => Verdict::new(
            Code::WrongRealm,
            format!(
                "{who} signs for another realm than the one it is challenged with{times} ({code})."
            ),
        ),
        Reject::Unauthenticated(AuthFailure::Revoked) => Verdict::new(
            Code::Revoked,
            format!("What {who} shows is revoked; it was tried{times} ({code})."),
        ),
        Reject::Unauthenticated(AuthFailure::BadToken) => Verdict::new(
            Code::BadToken,
            format!(
                "The token of {who} is no authorization server's of ours, or not for this server ({code})."
            ),
        ),
        Reject::Unauthenticated(AuthFailure::StaleNonce) | Reject::StaleNonce => Verdict::new(
            Code::StaleNonce,
            format!(
                "{who} came{times} with a nonce that is over ({code}), and does not use the one it is given."
            ),
        ),
        Reject::Unauthenticated(AuthFailure::WrongUser | AuthFailure::BidDown)
        | Reject::WrongCredentials => Verdict::new(
            Code::BadPassword,
            format!("{who} is not the user who made the allocation ({code})."),
        ),
        Reject::Quota => Verdict::new(
            Code::Quota,
            format!(
                "{who} has as many allocations as its quota allows, and was refused another{times} ({code})."
            ),
        ),
        Reject::Capacity => Verdict::new(
            Code::Capacity,
            format!("There was no free relay port for {who}, or no room for more{times} ({code})."),
        ),
        Reject::Draining => Verdict::new(
            Code::Draining,
            format!(
                "The server is being emptied and takes nobody new; {who} was refused{times} ({code})."
            ),
        ),
        Reject::TryAlternate(alternate) => Verdict::new(
            Code::Redirected,
            format!("{who} was sent to {alternate} ({code})."),
        ),
        Reject::NewPeers => Verdict::new(
            Code::NewPeers,
            format!(
                "{who} addresses new peers faster than limits.new_peers_per_second allows ({code})."
            ),
        ),
        Reject::PeerDenied(rule) => peer_refused(rule, 1),
        Reject::BadRequest(_)
        | Reject::UnknownAttributes
        | Reject::NoAllocation
        | Reject::AllocationExists
        | Reject::AddressFamily
        | Reject::UnsupportedTransport
        | Reject::PeerFamily
        | Reject::ServerError
        | Reject::RelayTransport
        | Reject::ConnectionExists
        | Reject::MobilityForbidden
        | Reject::Elsewhere(_) => {
            let detail = match reject.detail() {
                Some(detail) => format!(": {detail}"),
                None => String::new(),
            };
            Verdict::new(
                Code::BadRequest,
                format!(
                    "{who} asked for {} and was refused{times} with {code}, {}{detail}.",
                    method.label(),
                    reject.label()
                ),
            )
        }
    }
}

fn peer_refused(rule: DeniedRule, count: u32) -> Verdict {
    let what = match rule {
        DeniedRule::Private | DeniedRule::UniqueLocal | DeniedRule::Cgnat => {
            "The application names private addresses as peers"
        }
        DeniedRule::Loopback | DeniedRule::LinkLocal => {
            "The application names addresses as peers that exist on the peer's own host or link only"
        }
        DeniedRule::OwnAddress => "The application names this server itself as a peer",
        DeniedRule::Configured => "The application names peers that peers.deny covers",
        DeniedRule::Metadata => "The application names an address where clouds keep credentials",
        _ => "The application names peers that are no hosts of the Internet",
    };
    let times = match count {
        0 | 1 => String::new(),
        count => format!(", {count} times"),
    };
    Verdict::new(
        Code::PeerRefused,
        format!(
            "{what}, and policy refuses them (403, rule {}{times}).",
            rule.label()
        ),
    )
}

/// What a call's own events say.
struct Seen<'e> {
    events: Vec<&'e Event>,
}

impl Seen<'_> {
    /// The count of what `wanted` picks.
    fn count(&self, wanted: impl Fn(What) -> bool) -> u64 {
        let events = self.events.iter().filter(|event| wanted(event.what));
        events.map(|event| u64::from(event.count)).sum()
    }

    fn dropped(&self, direction: Direction, wanted: impl Fn(DropReason) -> bool) -> u64 {
        self.count(|what| match what {
            What::Dropped(reason, way) => way == direction && wanted(reason),
            _ => false,
        })
    }

    fn denied(&self) -> Option<(DeniedRule, u32)> {
        let denied = self.events.iter().filter_map(|event| match event.what {
            What::Denied(rule) => Some((rule, event.count, event.last)),
            _ => None,
        });
        (denied.max_by_key(|(_, count, last)| (*count, *last)))
            .map(|(rule, count, _)| (rule, count))
    }

    /// The latest refusal that says something.
    fn refusal(&self) -> Option<&Event> {
        let refused = self.events.iter().filter(|event| weight(event) > 1);
        refused.max_by_key(|event| event.last).copied()
    }
}

/// What became of one allocation.
pub(super) fn call(call: &Call, events: &[Told], now: Duration) -> Verdict {
    let own = |told: &&Told| told.allocation.as_ref() == Some(&call.name);
    let seen = Seen {
        events: events.iter().filter(own).map(|told| &told.event).collect(),
    };
    let lived = match call.ended {
        Some((lived, _)) => lived,
        None => now.saturating_sub(call.view.created_unix),
    };
    decided(call)
        .or_else(|| never_came_about(call, &seen, lived))
        .or_else(|| broke_off(call))
        .or_else(|| went_away(call))
        .or_else(|| went_badly(call, &seen, lived))
        .unwrap_or_else(|| {
            let text = match call.ended {
                Some((_, EndReason::Released)) => {
                    "Data went both ways, and the client gave the allocation back: all is well."
                }
                _ => "Data goes both ways: all is well, as far as the relay sees.",
            };
            Verdict::new(Code::Fine, text)
        })
}

/// Somebody ended it, or something outside of the call did.
fn decided(call: &Call) -> Option<Verdict> {
    let (lived, reason) = call.ended?;
    let (code, text) = match reason {
        EndReason::Administrative => (Code::EndedByOperator, "An operator ended it"),
        EndReason::Abuse => (
            Code::EndedAsAbuse,
            "It looked like a scan, a tunnel or a transfer rather than a call, and was ended for it",
        ),
        EndReason::Revoked => (
            Code::Revoked,
            "It ended because the credential was revoked, or the user's password changed",
        ),
        EndReason::RelayFailed => (Code::RelayFailed, "Its relay socket failed"),
        EndReason::ListenerClosed => (Code::ServerStopped, "The client's listener was closed"),
        EndReason::Shutdown => (Code::ServerStopped, "The server stopped"),
        EndReason::Released | EndReason::Expired | EndReason::ClientClosed => return None,
    };
    Some(Verdict::new(
        code,
        format!("{text}, after {}.", span(lived)),
    ))
}

/// Data never went both ways.
fn never_came_about(call: &Call, seen: &Seen<'_>, lived: Duration) -> Option<Verdict> {
    let view = &call.view;
    let packets = view.traffic.map(|traffic| traffic.packets);
    let [to_peer, to_client] = packets;
    let early = call.ended.is_none() && lived < PATIENCE;
    let waiting = || {
        early.then(|| {
            Verdict::new(
                Code::Waiting,
                format!(
                    "The allocation is {} old: it is too early to tell.",
                    span(lived)
                ),
            )
        })
    };
    if view.relay_transport == RelayTransport::Tcp {
        let failed = seen.count(|what| what == What::ConnectFailed);
        return (failed > 0 && view.connections == 0 && to_peer + to_client == 0).then(|| {
            Verdict::new(
                Code::ConnectFailed,
                format!("No connection to the peer could be made, in {failed} attempts (447)."),
            )
        });
    }
    if to_peer > 0 && to_client > 0 {
        return unanswered(view.quality.as_deref()?, lived);
    }
    if to_peer == 0 && to_client == 0 && view.permissions_made == 0 {
        if let Some((rule, count)) = seen.denied() {
            return Some(peer_refused(rule, count));
        }
        if let Some(event) = seen.refusal() {
            return Some(refused(event));
        }
        if let Some(verdict) = waiting() {
            return Some(verdict);
        }
        let sent = seen.dropped(Direction::ToPeer, |reason| {
            matches!(reason, DropReason::NoPermission | DropReason::NoChannel)
        });
        let sent = match sent {
            0 => String::new(),
            sent => format!(" It sent {sent} packets without, which were dropped."),
        };
        return Some(Verdict::new(
            Code::NoPermission,
            format!("The client got an allocation and never a permission for any peer.{sent}"),
        ));
    }
    let strangers = seen.dropped(Direction::ToClient, |reason| {
        reason == DropReason::NoPermission
    });
    let unreachable = seen.count(|what| matches!(what, What::Icmp { .. }));
    let policed = seen.dropped(Direction::ToPeer, |reason| reason == DropReason::NewPeers);
    if to_client == 0 && strangers > 0 {
        return Some(Verdict::new(
            Code::PeerNotPermitted,
            format!(
                "{strangers} packets came from peers for whom the client has no permission, and none from those it has permitted."
            ),
        ));
    }
    if let Some(verdict) = waiting() {
        return Some(verdict);
    }
    if to_client > 0 {
        return Some(Verdict::new(
            Code::ClientUnanswering,
            format!(
                "{to_client} packets came from the peer, and the client never sent any: what the relay sends to it does not arrive."
            ),
        ));
    }
    if to_peer == 0 {
        if policed > 0 {
            return Some(Verdict::new(
                Code::NewPeers,
                format!(
                    "{policed} packets were dropped because the client addresses new peers too fast."
                ),
            ));
        }
        if let Some(event) = seen.refusal() {
            return Some(refused(event));
        }
        return Some(Verdict::new(
            Code::ClientSilent,
            "The client has a permission for a peer and never sent anything to it.",
        ));
    }
    if unreachable > 0 {
        return Some(Verdict::new(
            Code::PeerUnreachable,
            format!(
                "The client sent {to_peer} packets, nothing came back, and ICMP said {unreachable} times that the peer cannot be reached."
            ),
        ));
    }
    Some(Verdict::new(
        Code::PeerSilent,
        format!("The client sent {to_peer} packets and the peer never answered."),
    ))
}

/// Packets went both ways, and the checks of one side never got an answer.
fn unanswered(quality: &Quality, lived: Duration) -> Option<Verdict> {
    let [to_peer, to_client] = quality.checks;
    let media = quality.media.contains(&true) || quality.dtls.contains(&true);
    if media || lived < PATIENCE {
        return None;
    }
    if to_client.sent > 0 && to_client.answered == 0 {
        return Some(Verdict::new(
            Code::ClientUnanswering,
            format!(
                "The client never answered the {} checks of the peer: UDP from the relay to the client is blocked.",
                to_client.sent
            ),
        ));
    }
    if to_peer.sent > 0 && to_peer.answered == 0 {
        return Some(Verdict::new(
            Code::PeerSilent,
            format!(
                "The peer never answered the {} checks of the client, although it sends checks of its own.",
                to_peer.sent
            ),
        ));
    }
    None
}

/// It worked, and one side went silent before the other.
fn broke_off(call: &Call) -> Option<Verdict> {
    let quality = call.view.quality.as_deref()?;
    if !carried(call, quality) {
        return None;
    }
    let [to_peer, to_client] = quality.idle;
    let (to_peer, to_client) = (to_peer?, to_client?);
    // Without a goodbye nobody knows who went: both are silent for long.
    if call
        .ended
        .is_some_and(|(_, reason)| reason == EndReason::Expired)
    {
        return None;
    }
    if to_peer > to_client + FIRST_TO_GO {
        let checks = quality.checks[Direction::ToClient as usize];
        let answered = match checks.answered {
            0 => String::new(),
            answered => format!(", after it had answered {answered} checks"),
        };
        return Some(Verdict::new(
            Code::ClientLost,
            format!(
                "The client went silent {} before the peer did{answered}: its network went away, or UDP from the relay to the client is blocked after a while.",
                span(to_peer - to_client)
            ),
        ));
    }
    if to_client > to_peer + FIRST_TO_GO {
        return Some(Verdict::new(
            Code::PeerLost,
            format!(
                "The peer went silent {} before the client did.",
                span(to_client - to_peer)
            ),
        ));
    }
    None
}

/// The client went away, without a word or by its connection.
fn went_away(call: &Call) -> Option<Verdict> {
    let (lived, reason) = call.ended?;
    match reason {
        EndReason::Expired => Some(Verdict::new(
            Code::ClientGone,
            format!(
                "The allocation expired after {}: the client did not refresh it.",
                span(lived)
            ),
        )),
        _ => None,
    }
}

/// It came about, and not all of it, or badly.
fn went_badly(call: &Call, seen: &Seen<'_>, lived: Duration) -> Option<Verdict> {
    let view = &call.view;
    let packets: u64 = view.traffic.iter().map(|traffic| traffic.packets).sum();
    if let Some(quality) = view.quality.as_deref()
        && let Some(verdict) = incomplete(call, quality, lived)
    {
        return Some(verdict);
    }
    let is_bandwidth = |reason| {
        matches!(
            reason,
            DropReason::BandwidthAllocation
                | DropReason::BandwidthUser
                | DropReason::BandwidthTotal
                | DropReason::Abuse
        )
    };
    let share = |count: u64| count as f64 / (packets + count).max(1) as f64;
    let dropped = |wanted: fn(DropReason) -> bool| -> u64 {
        let directions = Direction::ALL.into_iter();
        directions
            .map(|direction| seen.dropped(direction, wanted))
            .sum()
    };
    let policed = dropped(is_bandwidth);
    let throttled = dropped(|reason| reason == DropReason::Abuse);
    if share(policed) >= DROPPED {
        let throttled = match throttled {
            0 => String::new(),
            count => {
                format!(" {count} of them because quality.abuse throttles what looks like abuse.")
            }
        };
        return Some(Verdict::new(
            Code::BandwidthLimited,
            format!(
                "{policed} packets were dropped for want of bandwidth, {} of all.{throttled}",
                percent(share(policed))
            ),
        ));
    }
    let queued = seen.dropped(Direction::ToClient, |reason| {
        reason == DropReason::StreamQueue
    });
    if share(queued) >= DROPPED {
        return Some(Verdict::new(
            Code::SlowConnection,
            format!(
                "{queued} packets were dropped, {} of all, because the client's connection takes less than is sent to it.",
                percent(share(queued))
            ),
        ));
    }
    if let Some(verdict) = view.quality.as_deref().and_then(degraded) {
        return Some(verdict);
    }
    match call.ended {
        Some((lived, EndReason::ClientClosed)) => Some(Verdict::new(
            Code::ConnectionClosed,
            format!(
                "The client's {} connection closed after {}; data had gone both ways.",
                view.transport.label(),
                span(lived)
            ),
        )),
        _ => None,
    }
}

/// ICE is through, and what has to follow did not.
fn incomplete(call: &Call, quality: &Quality, lived: Duration) -> Option<Verdict> {
    let checks = quality.checks;
    let answered = checks.iter().any(|checks| checks.answered > 0);
    let rest = beyond_stun(call, quality);
    let first = quality.first.iter().flatten().max().copied();
    let open = lived.saturating_sub(first.unwrap_or_default());
    let patient = open >= PATIENCE;
    if answered && patient && !quality.media.contains(&true) {
        let dtls = quality.dtls;
        if !dtls.contains(&true) && rest.iter().all(|rest| *rest <= FLOWS) {
            return Some(if is_kept(quality, open) {
                Verdict::new(
                    Code::NoDtls,
                    "ICE connected both sides, and neither began a DTLS handshake.",
                )
            } else {
                Verdict::new(
                    Code::NotNominated,
                    "Only checks passed, and they were answered: the call took another way, or never began.",
                )
            });
        }
        if dtls.contains(&true) && dtls.contains(&false) && rest.iter().all(|rest| *rest <= FLOWS) {
            let silent = if dtls[Direction::ToPeer as usize] {
                "peer"
            } else {
                "client"
            };
            return Some(Verdict::new(
                Code::NoDtls,
                format!(
                    "ICE connected both sides, and the {silent} never answered the DTLS handshake."
                ),
            ));
        }
        if dtls == [true; 2] && rest.iter().all(|rest| *rest <= FLOWS) {
            return Some(Verdict::new(
                Code::NoMedia,
                "ICE and DTLS are through, and neither side sent media or data.",
            ));
        }
    }
    // RTCP goes the other way as well: it is no media to people.
    let [to_peer, to_client] = quality.flows.map(|flow| flow.received);
    match (to_peer, to_client) {
        (FLOWS.., 0) if patient => {
            return Some(Verdict::new(
                Code::OneWayMedia,
                "Media goes from the client to the peer only: the peer sends none.",
            ));
        }
        (0, FLOWS..) if patient => {
            return Some(Verdict::new(
                Code::OneWayMedia,
                "Media goes from the peer to the client only: the client sends none.",
            ));
        }
        _ => {}
    }
    if call.ended.is_none()
        && let [Some(to_peer), Some(to_client)] = quality.media_idle
    {
        let (side, other, silence, idle) = if to_peer > to_client {
            ("client", "peer", to_peer, to_client)
        } else {
            ("peer", "client", to_client, to_peer)
        };
        if silence > idle + FIRST_TO_GO && idle < PATIENCE {
            return Some(Verdict::new(
                Code::OneWayMedia,
                format!(
                    "The {side} has sent no media for {}, and the {other} still does.",
                    span(silence)
                ),
            ));
        }
    }
    if call.ended.is_none() && quality.session == Session::Silent {
        let idle = quality.idle.iter().flatten().min().copied();
        return Some(Verdict::new(
            Code::Silent,
            format!(
                "Data went both ways, and nothing has for {}.",
                span(idle.unwrap_or_default())
            ),
        ));
    }
    None
}

/// Loss and the length of the way.
fn degraded(quality: &Quality) -> Option<Verdict> {
    let lost = |direction: Direction| {
        let flow = &quality.flows[direction as usize];
        let ratio = flow.loss_ratio().unwrap_or_default();
        (flow.received + flow.lost >= LOOKED_AT && ratio >= LOSS).then_some(ratio)
    };
    // What arrives here was lost before: the client's media between client and relay, the peer's between peer and relay.
    let (client, peer) = (lost(Direction::ToPeer), lost(Direction::ToClient));
    let worse = match (client, peer) {
        (Some(client), Some(peer)) if peer > client => Some((Code::PeerLoss, "peer", peer)),
        (Some(client), _) => Some((Code::ClientLoss, "client", client)),
        (None, Some(peer)) => Some((Code::PeerLoss, "peer", peer)),
        (None, None) => None,
    };
    if let Some((code, side, ratio)) = worse {
        return Some(Verdict::new(
            code,
            format!(
                "{} of the {side}'s media is lost between the {side} and the relay.",
                percent(ratio)
            ),
        ));
    }
    let slow = Leg::ALL.into_iter().filter_map(|leg| {
        let rtt = quality.rtt[leg as usize]?.smoothed;
        (rtt >= LONG_WAY).then_some((leg, rtt))
    });
    slow.max_by_key(|(_, rtt)| *rtt).map(|(leg, rtt)| {
        Verdict::new(
            Code::HighRtt,
            format!(
                "A packet to the {} and back takes {} ms.",
                leg.label(),
                rtt.as_millis()
            ),
        )
    })
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time as people say it.
fn span(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} days", secs / 86_400),
    }
}
