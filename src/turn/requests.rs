//! One function per method; each reads as its section of the RFC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::{AuthFailure, Denied, PermittedIp};
use crate::base::{Family, FiveTuple, Now, RelayTransport};
use crate::wire::{ChannelNumber, DecodeError, Message, Method, Response, attribute};

use super::allocation::{
    Additional, Allocation, AllocationId, CHANNEL_LIFETIME, ChannelBinding, State,
};
use super::auth::Authenticated;
use super::flight::What;
use super::icmp::Told;
use super::mobility::Renewed;
use super::reject::Reject;
use super::relayed::Ask;
use super::server::Server;
use super::stats::{Direction, RateWindow, Traffic};
use super::{ChannelRange, DEFAULT_LIFETIME, DefaultFamily, EndReason};

/// REQUESTED-TRANSPORT's number for UDP (RFC 8656 §18.8).
const UDP: u8 = 17;

/// The same for TCP (RFC 6062 §4.1).
const TCP: u8 = 6;

const KNOWN_BINDING: &[u16] = &[
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::REALM,
    attribute::NONCE,
    attribute::MESSAGE_INTEGRITY_SHA256,
    attribute::PASSWORD_ALGORITHM,
    attribute::USERHASH,
];

const KNOWN_TURN: &[u16] = &[
    attribute::MAPPED_ADDRESS,
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::ERROR_CODE,
    attribute::UNKNOWN_ATTRIBUTES,
    attribute::CHANNEL_NUMBER,
    attribute::LIFETIME,
    attribute::XOR_PEER_ADDRESS,
    attribute::DATA,
    attribute::REALM,
    attribute::NONCE,
    attribute::XOR_RELAYED_ADDRESS,
    attribute::REQUESTED_ADDRESS_FAMILY,
    attribute::EVEN_PORT,
    attribute::REQUESTED_TRANSPORT,
    attribute::ACCESS_TOKEN,
    attribute::XOR_MAPPED_ADDRESS,
    attribute::RESERVATION_TOKEN,
    attribute::MESSAGE_INTEGRITY_SHA256,
    attribute::PASSWORD_ALGORITHM,
    attribute::USERHASH,
    attribute::CONNECTION_ID,
];

/// What an Allocate for TCP must not ask for (RFC 6062 §5.1).
const NOT_FOR_TCP: [u16; 3] = [
    attribute::EVEN_PORT,
    attribute::DONT_FRAGMENT,
    attribute::RESERVATION_TOKEN,
];

/// With what is understood where it is offered.
const KNOWN_TURN_DONT_FRAGMENT: &[u16] = &{
    let mut known = [attribute::DONT_FRAGMENT; KNOWN_TURN.len() + 1];
    let mut at = 0;
    while at < KNOWN_TURN.len() {
        known[at] = KNOWN_TURN[at];
        at += 1;
    }
    known
};

impl From<DecodeError> for Reject {
    fn from(_: DecodeError) -> Self {
        Self::BadRequest("an attribute is malformed")
    }
}

impl Server {
    /// Attributes that `method` understands, ACCESS-TOKEN among them whether tokens are taken or not; others below 0x8000 get
    /// 420 (RFC 8489 §6.3.1).
    pub(super) const fn known(&self, method: Method) -> &'static [u16] {
        match method {
            Method::Binding => KNOWN_BINDING,
            _ if self.settings.protocol.dont_fragment => KNOWN_TURN_DONT_FRAGMENT,
            _ => KNOWN_TURN,
        }
    }

    /// Binding (RFC 8489 §6.3.1): no credentials, no state. `None`: the answer is on its way, from where it was asked for.
    pub(super) fn binding(
        &mut self,
        from: FiveTuple,
        message: &Message<'_>,
    ) -> Result<Option<Response>, Reject> {
        if let Some(answered) = self.discovery(from, message)? {
            if answered {
                (self.stats).answered(Method::Binding, from.transport(), Ok(()));
            }
            return Ok(None);
        }
        self.refuse_unknown(message, Method::Binding)?;
        let response = Response::success(Method::Binding, message.transaction_id());
        Ok(Some(response.mapped_address(from.client())))
    }

    /// Allocate (RFC 8656 §7.2). `None`: the answer follows once the relay socket is open.
    pub(super) fn allocate(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        authenticated: Authenticated,
    ) -> Result<Option<Response>, Reject> {
        let existing = self.by_five_tuple.get(&from).copied();
        if let Some(allocation) = existing.and_then(|id| self.allocations.get(id)) {
            let same = allocation.transaction == message.transaction_id();
            if !same || authenticated.owns(allocation).is_err() {
                return Err(Reject::AllocationExists);
            }
            return Ok(allocation
                .relayed()
                .map(|relayed| self.allocate_success(allocation, relayed)));
        }
        let relay_transport = match message.requested_transport()? {
            None => return Err(Reject::BadRequest("REQUESTED-TRANSPORT is missing")),
            Some(UDP) => RelayTransport::Udp,
            // A loop is kept within this server by handing datagrams over in memory.
            Some(TCP) if self.relays_connections() && !authenticated.scope().is_loop() => {
                RelayTransport::Tcp
            }
            Some(_) => return Err(Reject::UnsupportedTransport),
        };
        if relay_transport == RelayTransport::Tcp {
            if !from.transport().is_stream() {
                return Err(Reject::BadRequest("TCP is relayed for TCP and TLS clients"));
            }
            if (NOT_FOR_TCP.iter()).any(|kind| message.attribute(*kind).is_some()) {
                return Err(Reject::BadRequest("not for a TCP allocation"));
            }
        }
        self.refuse_unknown(message, Method::Allocate)?;
        let (family, additional, ask) = self.wanted(from, message, relay_transport)?;
        // Whoever asks for it here wants to know whether it may be had in Send (RFC 8656 §7.2).
        message.dont_fragment()?;
        let mobile = self.asks_to_move(message, &authenticated, relay_transport)?;
        if !authenticated.scope().is_canary() {
            self.admit_newcomer(from)?;
        }
        let requested = message.lifetime()?;
        let key = *authenticated.key();
        let Some(identity) = authenticated.into_identity() else {
            // Only the owner of an allocation on this five-tuple has no identity, and there is none.
            return Err(Reject::ServerError);
        };
        let (by_token, realm) = (identity.by_token, identity.realm);
        let bounded = identity.scope.is_loop() || by_token;
        let granted_secs = self.granted_secs(now, requested, bounded, identity.expires);
        let scope = identity.scope;
        let id = self.allocations.insert(|id| Allocation {
            id,
            five_tuple: from,
            family,
            state: State::Opening,
            additional,
            token: ask.token,
            user: Arc::clone(&identity.user),
            username: identity.username,
            key,
            credential_expires: identity.expires,
            realm,
            by_token,
            scope,
            transaction: message.transaction_id(),
            fingerprint: message.has_fingerprint(),
            granted_secs,
            created: now,
            expires: now.mono + Duration::from_secs(granted_secs.into()),
            permissions: Vec::new(),
            channels: Vec::new(),
            permissions_made: 0,
            channels_made: 0,
            traffic: [Traffic::default(); Direction::ALL.len()],
            rates: [RateWindow::default(), RateWindow::default()],
            denial_logged: false,
            police: None,
            contacts: None,
            relay_transport,
            connections: Vec::new(),
            told: Told::default(),
            mobility: mobile.then(Box::default),
            watch: None,
            flight: 0,
            throttled: false,
            abused: false,
        });
        self.by_five_tuple.insert(from, id);
        self.touch(now, id, |_| {});
        self.open_relay(id, family, ask);
        Ok(None)
    }

    /// The relayed addresses that an Allocate asks for: the first one's family, the other one, and what the first has to
    /// be like (RFC 8656 §7.2).
    fn wanted(
        &self,
        from: FiveTuple,
        message: &Message<'_>,
        relays: RelayTransport,
    ) -> Result<(Family, Additional, Ask), Reject> {
        let token = message.reservation_token()?;
        let requested = message.requested_family()?;
        let even_port = message.even_port()?;
        // A TCP allocation listens once: what may be ignored is.
        let dual = self.settings.protocol.dual_allocation
            && relays == RelayTransport::Udp
            && message.additional_family()?;
        if token.is_some() && (even_port.is_some() || requested.is_some() || dual) {
            return Err(Reject::BadRequest("RESERVATION-TOKEN says it all"));
        }
        if requested.is_some() && dual {
            return Err(Reject::BadRequest(
                "both families are asked for, and one of them",
            ));
        }
        let ask = Ask {
            even_port: even_port.is_some(),
            reserve: even_port == Some(true),
            token,
        };
        if token.is_some() {
            if !self.settings.protocol.reservations {
                return Err(Reject::Capacity);
            }
            return Ok((Family::V4, Additional::None, ask));
        }
        let offers = |family: Family| self.seed.families.contains(&family);
        let (family, additional) = match requested {
            None if dual => {
                let refused = Additional::Refused(Reject::AddressFamily.code());
                let even_port = ask.even_port;
                match (offers(Family::V4), offers(Family::V6)) {
                    (true, true) => (Family::V4, Additional::Wanted { even_port }),
                    (false, _) => (Family::V6, refused),
                    (true, false) => (Family::V4, refused),
                }
            }
            None => (self.default_family(from), Additional::None),
            Some(Some(family)) => (family, Additional::None),
            Some(None) => return Err(Reject::AddressFamily),
        };
        if !offers(family) {
            return Err(Reject::AddressFamily);
        }
        if ask.reserve {
            if dual {
                return Err(Reject::BadRequest("a reservation is of one family"));
            }
            if !self.settings.protocol.reservations {
                // This is what the RFC answers when the port above cannot be had.
                return Err(Reject::Capacity);
            }
        }
        Ok((family, additional, ask))
    }

    /// Refresh (RFC 8656 §8.2); zero ends the allocation. `None`: the answer follows once a move is counted.
    pub(super) fn refresh(
        &mut self,
        now: Now,
        from: FiveTuple,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Option<Response>, Reject> {
        if message.mobility_ticket().is_some() {
            self.refuse_unknown(message, Method::Refresh)?;
            return self.refresh_by_ticket(now, from, id, message, authenticated);
        }
        let (id, allocation) = self.owned(id, authenticated)?;
        self.refuse_unknown(message, Method::Refresh)?;
        let (family, granted_secs) = self.renewal(now, allocation, message, authenticated)?;
        let response = Response::success(Method::Refresh, message.transaction_id());
        if granted_secs == 0 {
            match family {
                Some(family) => self.end_relayed(now, id, family, EndReason::Released),
                None => {
                    self.end(now, id, EndReason::Released);
                }
            }
            return Ok(Some(response.lifetime(0)));
        }
        let renewed = Renewed::of(authenticated);
        self.touch(now, id, |allocation| {
            allocation.refresh(family, now.mono + Duration::from_secs(granted_secs.into()));
            if let Some(renewed) = renewed {
                renewed.keep(allocation);
            }
        });
        Ok(Some(response.lifetime(granted_secs)))
    }

    /// The family that a Refresh of `allocation` is about, if not about all of it, and the LIFETIME that it is granted, in
    /// seconds; 0 where it asks for an end.
    ///
    /// # Errors
    /// 443 for a family that it has not, 401 if the credential is over.
    pub(super) fn renewal(
        &self,
        now: Now,
        allocation: &Allocation,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<(Option<Family>, u32), Reject> {
        let family = match message.requested_family()? {
            Some(Some(family)) if allocation.ends(family).is_some() => Some(family),
            Some(_) => return Err(Reject::PeerFamily),
            None => None,
        };
        let requested = message.lifetime()?;
        if requested == Some(0) {
            return Ok((family, 0));
        }
        let renewed = authenticated.renewed();
        let over = renewed.is_none()
            && (allocation.credential_expires).is_some_and(|expires| expires <= now.unix);
        // A secret that is gone vouches for nothing beyond the time that it signed for, and a token never does.
        if over
            && (allocation.by_token
                || self.access.strict_expiry
                || !(self.access).derive(allocation.realm, &allocation.username, &allocation.key))
        {
            return Err(Reject::Unauthenticated(AuthFailure::Expired));
        }
        let ends = match renewed {
            Some(identity) => identity.expires,
            None => allocation.credential_expires,
        };
        let bounded = allocation.scope.is_loop() || allocation.by_token;
        Ok((family, self.granted_secs(now, requested, bounded, ends)))
    }

    /// CreatePermission (RFC 8656 §10.2): all of the peers, or none.
    pub(super) fn create_permission(
        &mut self,
        now: Now,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Response, Reject> {
        let (id, allocation) = self.owned(id, authenticated)?;
        self.refuse_unknown(message, Method::CreatePermission)?;
        let peers: Vec<SocketAddr> = message.peer_addresses().collect::<Result<_, _>>()?;
        if peers.is_empty() {
            return Err(Reject::BadRequest("XOR-PEER-ADDRESS is missing"));
        }
        if !peers.iter().all(|peer| allocation.same_family(*peer)) {
            return Err(Reject::PeerFamily);
        }
        let scope = allocation.scope;
        let mut permitted: Vec<PermittedIp> = Vec::with_capacity(peers.len());
        for peer in &peers {
            let permit = (self.access.peers).permit_ip_within(scope, peer.ip());
            permitted.push(permit.map_err(|denied| self.denied(id, *peer, denied))?);
        }
        let Some(allocation) = self.allocations.get(id) else {
            return Err(Reject::NoAllocation);
        };
        let added = permitted.iter().enumerate().filter(|(index, new)| {
            let seen = permitted.iter().take(*index).any(|ip| ip.ip() == new.ip());
            !seen && !(allocation.permissions.iter()).any(|p| p.ip.ip() == new.ip())
        });
        let added: Vec<SocketAddr> = added
            .filter_map(|(index, _)| peers.get(index))
            .copied()
            .collect();
        let permissions = allocation.permissions.len() + added.len();
        if permissions > self.settings.permissions_per_allocation {
            return Err(Reject::Capacity);
        }
        self.expect_peers(now, id, permissions);
        if !self.admits_new_peers(now, id, added.len()) {
            return Err(Reject::NewPeers);
        }
        for peer in added {
            self.remember_peer(id, peer, false);
            self.note(id, What::Permitted, Some(peer));
        }
        self.touch(now, id, |allocation| {
            for ip in permitted {
                allocation.permit(ip, now.mono);
            }
        });
        Ok(Response::success(
            Method::CreatePermission,
            message.transaction_id(),
        ))
    }

    /// ChannelBind (RFC 8656 §12.2): binds or refreshes for 600 s and permits the peer's IP for 300 s.
    pub(super) fn channel_bind(
        &mut self,
        now: Now,
        id: Option<AllocationId>,
        message: &Message<'_>,
        authenticated: &Authenticated,
    ) -> Result<Response, Reject> {
        let (id, allocation) = self.owned(id, authenticated)?;
        self.refuse_unknown(message, Method::ChannelBind)?;
        if allocation.relay_transport == RelayTransport::Tcp {
            return Err(Reject::RelayTransport);
        }
        let Some(number) = message.channel_number()? else {
            return Err(Reject::BadRequest("CHANNEL-NUMBER is missing"));
        };
        let Some(peer) = message.peer_addresses().next().transpose()? else {
            return Err(Reject::BadRequest("XOR-PEER-ADDRESS is missing"));
        };
        let last = match self.settings.protocol.channels {
            ChannelRange::Rfc8656 => 0x4FFF,
            ChannelRange::Rfc5766 => 0x7FFE,
        };
        let Some(number) = ChannelNumber::new(number).filter(|n| n.number() <= last) else {
            return Err(Reject::BadRequest("CHANNEL-NUMBER is out of range"));
        };
        let elsewhere = |binding: &ChannelBinding| {
            (binding.number == number) != (binding.peer.address() == peer)
        };
        if allocation.binding(now.mono, elsewhere).is_some() {
            return Err(Reject::BadRequest("channel or peer is bound elsewhere"));
        }
        if !allocation.same_family(peer) {
            return Err(Reject::PeerFamily);
        }
        let permitted = (self.access.peers).permit_within(allocation.scope, peer);
        let permitted = permitted.map_err(|denied| self.denied(id, peer, denied))?;
        let Some(allocation) = self.allocations.get(id) else {
            return Err(Reject::NoAllocation);
        };
        let rebinds = (allocation.channels.iter()).any(|binding| binding.number == number);
        let permits = (allocation.permissions.iter()).any(|p| p.ip.ip() == peer.ip());
        if (!rebinds && allocation.channels.len() >= self.settings.channels_per_allocation)
            || (!permits
                && allocation.permissions.len() >= self.settings.permissions_per_allocation)
        {
            return Err(Reject::Capacity);
        }
        let permissions = allocation.permissions.len() + 1;
        if !rebinds {
            self.expect_peers(now, id, permissions);
            let hash = self.hasher.hash_one(peer);
            let contacts = (self.allocations.get(id)).and_then(|a| a.contacts.as_deref());
            let known = contacts.is_some_and(|contacts| contacts.knows(hash));
            if !known && !self.admits_new_peers(now, id, 1) {
                return Err(Reject::NewPeers);
            }
            // Data on channels is not looked at, and channels are few: a client binds them to those who answer.
            match self
                .allocations
                .get_mut(id)
                .and_then(|a| a.contacts.as_deref_mut())
            {
                Some(contacts) if known => contacts.answers(hash),
                _ => self.remember_peer(id, peer, true),
            }
            self.note(id, What::Bound, Some(peer));
        }
        self.begin_watch(now, id);
        self.touch(now, id, |allocation| {
            allocation.bind(ChannelBinding {
                number,
                peer: permitted,
                expires: now.mono + CHANNEL_LIFETIME,
            });
            allocation.permit(permitted.ip(), now.mono);
        });
        Ok(Response::success(
            Method::ChannelBind,
            message.transaction_id(),
        ))
    }

    /// # Errors
    /// Attributes that have to be understood and are not.
    pub(super) fn refuse_unknown(
        &self,
        message: &Message<'_>,
        method: Method,
    ) -> Result<(), Reject> {
        match message.unknown_required(self.known(method)).next() {
            None => Ok(()),
            Some(_) => Err(Reject::UnknownAttributes),
        }
    }

    /// The family of a relayed address where the client names none.
    fn default_family(&self, from: FiveTuple) -> Family {
        let client = Family::of(from.client().ip());
        match self.settings.protocol.default_family {
            DefaultFamily::SameAsClient if self.seed.families.contains(&client) => client,
            DefaultFamily::Ipv4 | DefaultFamily::SameAsClient => Family::V4,
        }
    }

    /// The live allocation on the request's five-tuple, if the request may act on it.
    pub(super) fn owned(
        &self,
        id: Option<AllocationId>,
        authenticated: &Authenticated,
    ) -> Result<(AllocationId, &Allocation), Reject> {
        let id = id.ok_or(Reject::NoAllocation)?;
        let allocation = self.allocations.get(id).ok_or(Reject::NoAllocation)?;
        // Until the relay socket is open there is nothing to act on yet.
        allocation.relayed().ok_or(Reject::NoAllocation)?;
        authenticated.owns(allocation)?;
        Ok((id, allocation))
    }

    /// Counts a peer that policy refuses.
    pub(super) fn denied(&mut self, id: AllocationId, peer: SocketAddr, denied: Denied) -> Reject {
        self.count_denied(id, peer, denied);
        Reject::PeerDenied(denied.rule)
    }

    /// Counts a peer that policy refuses, and logs the first of each allocation with the rule: one line finds the rule,
    /// and a flood of refused peers is no flood of lines.
    #[cold]
    pub(super) fn count_denied(&mut self, id: AllocationId, peer: SocketAddr, denied: Denied) {
        self.stats.peer_denied[denied.rule as usize] += 1;
        self.note(id, What::Denied(denied.rule), Some(peer));
        if let Some(allocation) = self.allocations.get_mut(id) {
            let first = !std::mem::replace(&mut allocation.denial_logged, true);
            if first {
                tracing::info!(
                    user = &*allocation.user,
                    client = %crate::base::Pii(allocation.five_tuple.client()),
                    peer = %crate::base::Pii(peer),
                    rule = denied.rule.label(),
                    "peer refused by policy; peers.allow makes exceptions"
                );
            }
        }
    }

    /// LIFETIME that is granted, in seconds: at least the default, at most the maximum (RFC 8656 §7.2), and where it is
    /// `bounded`, in a loop or by a token, no longer than the credential, which `ends` since the Unix epoch.
    fn granted_secs(
        &self,
        now: Now,
        requested: Option<u32>,
        bounded: bool,
        ends: Option<Duration>,
    ) -> u32 {
        let default = DEFAULT_LIFETIME.as_secs() as u32;
        let max = u32::try_from(self.settings.max_lifetime.as_secs()).unwrap_or(u32::MAX);
        let granted = requested.unwrap_or(default).max(default).min(max);
        match ends {
            Some(ends) if bounded => {
                let left = ends.saturating_sub(now.unix).as_secs().max(1);
                granted.min(u32::try_from(left).unwrap_or(u32::MAX))
            }
            _ => granted,
        }
    }
}
