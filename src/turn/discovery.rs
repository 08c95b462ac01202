//! NAT behaviour discovery (RFC 5780) and classic STUN (RFC 3489): what a Binding tells from several addresses.

use std::net::{IpAddr, SocketAddr};

use crate::base::{FiveTuple, ListenerId, Transport};
use crate::wire::{ErrorCode, Message, Method, Response, attribute, classic};

use super::reject::Reject;
use super::server::Server;
use super::stats::DropReason;
use super::{Forward, Output};

/// Two addresses of one family and two ports, as an operator names them (RFC 5780 §6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatDiscovery {
    /// Addresses of this host.
    pub local: [IpAddr; 2],
    /// The same as clients see them.
    pub seen: [IpAddr; 2],
    /// UDP ports that both addresses have.
    pub ports: [u16; 2],
}

/// The four server transport addresses that one client may be answered from, by address, then by port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vantage {
    /// Where requests come in and answers leave.
    pub listeners: [[ListenerId; 2]; 2],
    /// The same as clients see them.
    pub seen: [[SocketAddr; 2]; 2],
}

/// One of the four: which address, which port.
type Place = (usize, usize);

impl Vantage {
    fn place(&self, listener: ListenerId) -> Option<Place> {
        let places = [(0, 0), (0, 1), (1, 0), (1, 1)];
        (places.into_iter()).find(|&(ip, port)| self.listeners[ip][port] == listener)
    }

    fn seen(&self, (ip, port): Place) -> SocketAddr {
        self.seen[ip][port]
    }

    /// The place that differs from `place` in what `change` says: address, port.
    const fn other((ip, port): Place, change: (bool, bool)) -> Place {
        (ip ^ change.0 as usize, port ^ change.1 as usize)
    }
}

/// Attributes that a Binding understands where a client may discover its NAT.
const KNOWN_DISCOVERY: &[u16] = &[
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::REALM,
    attribute::NONCE,
    attribute::CHANGE_REQUEST,
    attribute::PADDING,
    attribute::RESPONSE_PORT,
];

/// What PADDING of an answer comes to at most, in bytes: more than any link takes in one piece, which is what it is for
/// (RFC 5780 §7.6).
const LONGEST_PADDING: usize = 1500;

impl Server {
    /// Replaces the addresses that clients may discover their NAT by; none: nobody may.
    pub fn set_vantages(&mut self, vantages: Vec<Vantage>) {
        self.vantages = vantages;
    }

    /// Attributes that `method` understands on `from`.
    pub(super) fn understood(&self, from: FiveTuple, method: Method) -> &'static [u16] {
        match method {
            Method::Binding if self.vantage(from).is_some() => KNOWN_DISCOVERY,
            method => self.known(method),
        }
    }

    fn vantage(&self, from: FiveTuple) -> Option<(&Vantage, Place)> {
        if from.transport() != Transport::Udp {
            return None;
        }
        (self.vantages.iter()).find_map(|vantage| Some((vantage, vantage.place(from.listener())?)))
    }

    /// A Binding where there are four addresses: its answer may leave from another of them, or go to another port of the
    /// client (RFC 5780 §6.1). It goes out here; false if nobody may answer that, `None`
    /// if there are no four.
    ///
    /// MAPPED-ADDRESS is there as well, so that who compares both finds what rewrites addresses in payload (§3.7).
    /// PADDING is as long as that of the request, so that who sends little gets little.
    ///
    /// # Errors
    /// 420 with an unknown attribute; 400 with a malformed one, or with both RESPONSE-PORT and PADDING.
    pub(super) fn discovery(
        &mut self,
        from: FiveTuple,
        message: &Message<'_>,
    ) -> Result<Option<bool>, Reject> {
        let Some((vantage, place)) = self.vantage(from) else {
            return Ok(None);
        };
        if message.unknown_required(KNOWN_DISCOVERY).next().is_some() {
            return Err(Reject::UnknownAttributes);
        }
        let change = message.change_request()?.unwrap_or_default();
        let port = message.response_port()?;
        let padding = message.padding();
        if port.is_some() && padding.is_some() {
            return Err(Reject::BadRequest("both RESPONSE-PORT and PADDING"));
        }
        let answering = Vantage::other(place, change);
        let mut client = from.client();
        client.set_port(port.unwrap_or(client.port()));
        let to = FiveTuple::new(
            Transport::Udp,
            client,
            vantage.listeners[answering.0][answering.1],
        );
        let mut response = Response::success(Method::Binding, message.transaction_id())
            .mapped_address(from.client())
            .plain_mapped_address(from.client())
            .response_origin(vantage.seen(answering))
            .other_address(vantage.seen(Vantage::other(place, (true, true))));
        if let Some(length) = padding {
            response = response.padding(length.min(LONGEST_PADDING));
        }
        if client.port() == 0 || self.is_own(to) {
            return Ok(Some(false));
        }
        self.answer(to, response.finish(None, message.has_fingerprint()));
        Ok(Some(true))
    }

    /// A Binding request of a classic client (RFC 3489 §8.1), where that is on: those know no XOR, and no 420 by attribute.
    pub(super) fn classic(&mut self, from: FiveTuple, datagram: &[u8]) -> Forward {
        let request = match classic::Request::parse(datagram) {
            Some(request)
                if self.settings.protocol.rfc3489 && from.transport() == Transport::Udp =>
            {
                request
            }
            _ => return Forward::Drop(DropReason::NotStun),
        };
        if from.client().port() == 0 || self.is_own(from) {
            return Forward::Drop(DropReason::Unanswerable);
        }
        let now = self.latest;
        if !self.may_answer(now, from, None) {
            return Forward::Drop(DropReason::RateLimited);
        }
        let vantage = self.vantage(from);
        let change = request.change();
        let (outcome, to, answer) = match (request.refused(vantage.is_some()), vantage) {
            (Some(kind), _) => (
                Err(ErrorCode::UnknownAttribute),
                from,
                request.unknown_attribute(kind),
            ),
            (None, Some((vantage, place))) => {
                let answering = Vantage::other(place, change);
                let listener = vantage.listeners[answering.0][answering.1];
                let changed = vantage.seen(Vantage::other(place, (true, true)));
                let places = Some((vantage.seen(answering), changed));
                (
                    Ok(()),
                    FiveTuple::new(Transport::Udp, from.client(), listener),
                    request.answer(from.client(), places),
                )
            }
            (None, None) => (Ok(()), from, request.answer(from.client(), None)),
        };
        self.stats
            .answered(Method::Binding, Transport::Udp, outcome);
        self.outputs.push_back(Output::ToClient {
            five_tuple: to,
            message: answer,
        });
        Forward::Consumed
    }
}
