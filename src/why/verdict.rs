//! The verdicts: a code that stays what it is, and words.

/// What is the matter. `docs/insight.md` has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Nobody ever came.
    NothingKnown,
    /// The TLS handshake failed.
    TlsFailed,
    /// Challenged, and never came back with credentials.
    NoCredentials,
    /// The password is wrong.
    BadPassword,
    /// Nobody is called so.
    UnknownUser,
    /// The credential was over when it was shown.
    CredentialExpired,
    /// Signed for another realm.
    WrongRealm,
    /// The credential or the user is revoked.
    Revoked,
    /// The token is no good here.
    BadToken,
    /// The client never takes the new nonce.
    StaleNonce,
    /// What it asks for is not offered, or asked for wrongly.
    BadRequest,
    /// A quota is used up.
    Quota,
    /// No port is left, or the allocation holds as much as it may.
    Capacity,
    /// The server is being emptied.
    Draining,
    /// Sent to another server.
    Redirected,
    /// Policy refuses the peers.
    PeerRefused,
    /// New peers come too fast.
    NewPeers,
    /// No connection to the peer (RFC 6062).
    ConnectFailed,
    /// An allocation, and no permission for anybody.
    NoPermission,
    /// Packets come from peers that nobody permitted.
    PeerNotPermitted,
    /// A permission, and no data from the client.
    ClientSilent,
    /// A router or the peer says that it cannot be reached.
    PeerUnreachable,
    /// The client sends, and the peer never answers.
    PeerSilent,
    /// The peer sends, and the client never answers.
    ClientUnanswering,
    /// The client answered for a while and then no more.
    ClientLost,
    /// The peer answered for a while and then no more.
    PeerLost,
    /// Checks were answered, and the call took another way.
    NotNominated,
    /// ICE is through, and there is no DTLS handshake.
    NoDtls,
    /// DTLS was begun, and there is no media.
    NoMedia,
    /// Media in one direction only.
    OneWayMedia,
    /// Nothing in either direction any more.
    Silent,
    /// Packets were dropped for want of bandwidth.
    BandwidthLimited,
    /// The client's TCP connection is too slow.
    SlowConnection,
    /// Packets are lost between client and relay.
    ClientLoss,
    /// Packets are lost between relay and peer.
    PeerLoss,
    /// The way is long.
    HighRtt,
    /// An operator ended it.
    EndedByOperator,
    /// It was ended for what it relayed.
    EndedAsAbuse,
    /// Its relay socket failed.
    RelayFailed,
    /// The server or its listener stopped.
    ServerStopped,
    /// The client did not refresh it.
    ClientGone,
    /// The client's connection closed.
    ConnectionClosed,
    /// It is early.
    Waiting,
    /// Nothing is wrong, as far as can be seen here.
    Fine,
}

impl Code {
    /// Every code, in the order of their discriminants.
    pub const ALL: [Self; 44] = [
        Self::NothingKnown,
        Self::TlsFailed,
        Self::NoCredentials,
        Self::BadPassword,
        Self::UnknownUser,
        Self::CredentialExpired,
        Self::WrongRealm,
        Self::Revoked,
        Self::BadToken,
        Self::StaleNonce,
        Self::BadRequest,
        Self::Quota,
        Self::Capacity,
        Self::Draining,
        Self::Redirected,
        Self::PeerRefused,
        Self::NewPeers,
        Self::ConnectFailed,
        Self::NoPermission,
        Self::PeerNotPermitted,
        Self::ClientSilent,
        Self::PeerUnreachable,
        Self::PeerSilent,
        Self::ClientUnanswering,
        Self::ClientLost,
        Self::PeerLost,
        Self::NotNominated,
        Self::NoDtls,
        Self::NoMedia,
        Self::OneWayMedia,
        Self::Silent,
        Self::BandwidthLimited,
        Self::SlowConnection,
        Self::ClientLoss,
        Self::PeerLoss,
        Self::HighRtt,
        Self::EndedByOperator,
        Self::EndedAsAbuse,
        Self::RelayFailed,
        Self::ServerStopped,
        Self::ClientGone,
        Self::ConnectionClosed,
        Self::Waiting,
        Self::Fine,
    ];

    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NothingKnown => "nothing_known",
            Self::TlsFailed => "tls_failed",
            Self::NoCredentials => "no_credentials",
            Self::BadPassword => "bad_password",
            Self::UnknownUser => "unknown_user",
            Self::CredentialExpired => "credential_expired",
            Self::WrongRealm => "wrong_realm",
            Self::Revoked => "revoked",
            Self::BadToken => "bad_token",
            Self::StaleNonce => "stale_nonce",
            Self::BadRequest => "bad_request",
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::Draining => "draining",
            Self::Redirected => "redirected",
            Self::PeerRefused => "peer_refused",
            Self::NewPeers => "new_peers",
            Self::ConnectFailed => "connect_failed",
            Self::NoPermission => "no_permission",
            Self::PeerNotPermitted => "peer_not_permitted",
            Self::ClientSilent => "client_silent",
            Self::PeerUnreachable => "peer_unreachable",
            Self::PeerSilent => "peer_silent",
            Self::ClientUnanswering => "client_unanswering",
            Self::ClientLost => "client_lost",
            Self::PeerLost => "peer_lost",
            Self::NotNominated => "not_nominated",
            Self::NoDtls => "no_dtls",
            Self::NoMedia => "no_media",
            Self::OneWayMedia => "one_way_media",
            Self::Silent => "silent",
            Self::BandwidthLimited => "bandwidth_limited",
            Self::SlowConnection => "slow_connection",
            Self::ClientLoss => "client_loss",
            Self::PeerLoss => "peer_loss",
            Self::HighRtt => "high_rtt",
            Self::EndedByOperator => "ended_by_operator",
            Self::EndedAsAbuse => "ended_as_abuse",
            Self::RelayFailed => "relay_failed",
            Self::ServerStopped => "server_stopped",
            Self::ClientGone => "client_gone",
            Self::ConnectionClosed => "connection_closed",
            Self::Waiting => "waiting",
            Self::Fine => "fine",
        }
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::NothingKnown => {
                "See whether the client has this server among its iceServers, whether its name resolves, and whether a firewall lets it through: `turnix probe` from the client's network tells."
            }
            Self::TlsFailed => {
                "The client does not trust the certificate, asks by a name that is not in it, or speaks no TLS that is served here: `turnix probe turns:NAME` shows the chain."
            }
            Self::NoCredentials => {
                "Give the client a username and a credential in iceServers; where it has them, something in between keeps the challenge from it."
            }
            Self::BadPassword => {
                "Compare the password with the server's; for time-limited credentials, the secret that signs them with auth.secrets, and whether the base64 is kept as it is."
            }
            Self::UnknownUser => {
                "Add the user to auth.users, or have the application send the name that it was given (EXPIRY:NAME for time-limited credentials)."
            }
            Self::CredentialExpired => {
                "Have the application ask for credentials right before each call, or make them last longer; compare the clocks of whoever mints and of this server."
            }
            Self::WrongRealm => {
                "The client signs for a realm of its own: it has to take the one of the challenge, and auth.realm must not differ between servers of one service."
            }
            Self::Revoked => "`turnix revoke` lists what is revoked, and lifts it.",
            Self::BadToken => {
                "Compare the key of the authorization server with auth.oauth.keys, and the server name that tokens are for."
            }
            Self::StaleNonce => {
                "The client has to repeat its request with the nonce of the 438; one that changes its port with each request never gets through: look for a NAT that does that."
            }
            Self::BadRequest => {
                "The client asks for what is not offered here, or gets the protocol wrong: `reason` and the log tell which attribute; update the client or switch it on under [protocol]."
            }
            Self::Quota => {
                "Raise [limits] for users, addresses or realms, or have the client give back allocations that it does not need."
            }
            Self::Capacity => {
                "Widen the range of relay ports or raise [limits]; `turn_capacity_ratio` shows how full the server is."
            }
            Self::Draining => {
                "Wait for it, take the server out of the client's list before it drains, or name others in drain.alternates."
            }
            Self::Redirected => {
                "See whether the client follows 300 (browsers do not), and whether it reached the other server."
            }
            Self::PeerRefused => {
                "If these peers are to be reached, name them in peers.allow; browsers name private addresses of each other as a matter of course, which is harmless where others work."
            }
            Self::NewPeers => {
                "An ordinary call has a handful of peers: look what this client does, or raise limits.new_peers_per_second."
            }
            Self::ConnectFailed => {
                "See whether the peer listens there and whether a firewall lets this server's relayed addresses through."
            }
            Self::NoPermission => {
                "The other side's candidates never got to this client: look at the signalling."
            }
            Self::PeerNotPermitted => {
                "The peer sends from an address that the client was not told of: its NAT gives each destination another one; give the peer this server as well, so that both relay."
            }
            Self::ClientSilent => {
                "The client stopped by itself, or another pair of candidates won: harmless if the call went another way."
            }
            Self::PeerUnreachable => {
                "The peer's address is wrong or its firewall refuses UDP: look whether the signalling carries its current candidates."
            }
            Self::PeerSilent => {
                "UDP from this server's relay addresses does not reach the peer, or its answers do not come back: look at the peer's firewall, at server.relay_ports in this host's firewall, and at server.external_ip behind NAT."
            }
            Self::ClientUnanswering => {
                "What goes from the relay to the client does not arrive: a firewall or NAT of the client lets UDP out and nothing in; give it turn: over TCP or turns: as well."
            }
            Self::ClientLost => {
                "The client's network went away, or a firewall forgot its UDP flow: offer TCP and TLS as well, and have the application restart ICE when the connection is lost."
            }
            Self::PeerLost => {
                "The peer's network or program went away: look there; have the application restart ICE when the connection is lost."
            }
            Self::NotNominated => {
                "If the call works, there is nothing to do: ICE checks the way over the relay in any case, and takes a shorter one where there is one. If it does not, look at the signalling, and at the selected pair in getStats()."
            }
            Self::NoDtls => {
                "Signalling has come to a halt, or the fingerprints in the SDP differ: look at the answer that each side has applied. Large handshake packets may be lost on the way as well."
            }
            Self::NoMedia => {
                "The relay is not to blame: no track was added, the microphone is not permitted, or encoders failed; look at outbound-rtp in getStats()."
            }
            Self::OneWayMedia => {
                "Look on the side that sends nothing: permission for the microphone, a direction of sendonly or recvonly in the SDP, a muted track."
            }
            Self::Silent => {
                "Both sides have stopped: the call is over, and nobody gave the allocation back."
            }
            Self::BandwidthLimited => {
                "Raise limits.bandwidth_*, or have the application send less (maxBitrate). If it was throttled as abuse, the log has the signals; if it was a call, set quality.abuse = \"note\"."
            }
            Self::SlowConnection => {
                "The client's connection takes less than is sent to it: UDP would serve it better; see why it came over TCP, or have the sender use less."
            }
            Self::ClientLoss => {
                "Between client and server packets are lost: Wi-Fi, a full uplink, or a policer; a server nearer to the client helps as well."
            }
            Self::PeerLoss => {
                "Between peer and server packets are lost: the peer's Wi-Fi or uplink, or this host's receive buffers (turn_dropped_packets_total{reason=\"receive_buffer\"})."
            }
            Self::HighRtt => {
                "Give clients a server nearer to them; over TCP, a queue in between adds to it."
            }
            Self::EndedByOperator => {
                "Somebody used `turnix disconnect` or the admin API: the log says so."
            }
            Self::EndedAsAbuse => {
                "The log has the signals; docs/insight.md tells what they mean. If it was a call, set quality.abuse = \"note\"."
            }
            Self::RelayFailed => "The log has the error of the socket: look at the host's network.",
            Self::ServerStopped => {
                "The server or its listener was stopped or restarted: drain it first, so that calls end by themselves."
            }
            Self::ClientGone => {
                "The client went away without a word: its program or its network ended. Nothing has to be done here."
            }
            Self::ConnectionClosed => {
                "The client's program, or something between, closed the connection: an idle timeout of a proxy, or the page was left."
            }
            Self::Waiting => "Ask again in some seconds.",
            Self::Fine => {
                "If somebody complains all the same, look at the clients: what the relay sees is sound."
            }
        }
    }
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is the matter.
    pub code: Code,
    /// The same in a sentence.
    pub text: String,
}

impl Verdict {
    pub(super) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// What to do.
    pub const fn advice(&self) -> &'static str {
        self.code.advice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_its_place() {
        for (place, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, place);
        }
    }
}
