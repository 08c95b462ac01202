//! Requests and answers through the `stun` crate, which shares no code with the server's codec.

use std::net::SocketAddr;

use stun::attributes::*;
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message::*;
use stun::textattrs::TextAttribute;
use stun::xoraddr::XorMappedAddress;

pub const REALM: &str = "example.org";

/// Who signs a request.
#[derive(Clone, Debug)]
pub struct Signer {
    pub user: String,
    pub password: String,
    pub realm: String,
    pub nonce: String,
}

impl Signer {
    pub fn new(user: &str, password: &str, nonce: &str) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
            realm: REALM.into(),
            nonce: nonce.into(),
        }
    }

    pub fn nonce(&self, nonce: &str) -> Self {
        Self {
            nonce: nonce.into(),
            ..self.clone()
        }
    }
}

/// A request under construction.
#[derive(Clone)]
pub struct Request(pub Message);

impl Request {
    pub fn new(method: Method) -> Self {
        Self::of_class(method, CLASS_REQUEST)
    }

    pub fn of_class(method: Method, class: MessageClass) -> Self {
        let mut message = Message::new();
        message.set_type(MessageType::new(method, class));
        message.new_transaction_id().unwrap();
        message.write_header();
        Self(message)
    }

    pub fn binding() -> Self {
        Self::new(METHOD_BINDING)
    }

    /// Allocate with REQUESTED-TRANSPORT UDP.
    pub fn allocate() -> Self {
        Self::new(METHOD_ALLOCATE).attr(ATTR_REQUESTED_TRANSPORT.0, &[17, 0, 0, 0])
    }

    /// Allocate with REQUESTED-TRANSPORT TCP.
    pub fn allocate_tcp() -> Self {
        Self::new(METHOD_ALLOCATE).attr(ATTR_REQUESTED_TRANSPORT.0, &[6, 0, 0, 0])
    }

    pub fn connect(peer: SocketAddr) -> Self {
        Self::new(METHOD_CONNECT).peer(peer)
    }

    pub fn connection_bind(id: u32) -> Self {
        Self::new(METHOD_CONNECTION_BIND).attr(ATTR_CONNECTION_ID.0, &id.to_be_bytes())
    }

    pub fn refresh(lifetime: u32) -> Self {
        Self::new(METHOD_REFRESH).lifetime(lifetime)
    }

    pub fn create_permission(peers: &[SocketAddr]) -> Self {
        let request = Self::new(METHOD_CREATE_PERMISSION);
        peers
            .iter()
            .fold(request, |request, peer| request.peer(*peer))
    }

    pub fn channel_bind(channel: u16, peer: SocketAddr) -> Self {
        Self::new(METHOD_CHANNEL_BIND).channel(channel).peer(peer)
    }

    pub fn send(peer: SocketAddr, data: &[u8]) -> Self {
        Self::of_class(METHOD_SEND, CLASS_INDICATION)
            .peer(peer)
            .attr(ATTR_DATA.0, data)
    }

    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.add(AttrType(kind), value);
        self
    }

    pub fn lifetime(self, secs: u32) -> Self {
        self.attr(ATTR_LIFETIME.0, &secs.to_be_bytes())
    }

    pub fn family(self, family: u8) -> Self {
        self.attr(ATTR_REQUESTED_ADDRESS_FAMILY.0, &[family, 0, 0, 0])
    }

    pub fn channel(self, channel: u16) -> Self {
        let [high, low] = channel.to_be_bytes();
        self.attr(ATTR_CHANNEL_NUMBER.0, &[high, low, 0, 0])
    }

    pub fn peer(mut self, peer: SocketAddr) -> Self {
        XorMappedAddress {
            ip: peer.ip(),
            port: peer.port(),
        }
        .add_to_as(&mut self.0, ATTR_XOR_PEER_ADDRESS)
        .unwrap();
        self
    }

    pub fn text(mut self, kind: AttrType, text: &str) -> Self {
        TextAttribute::new(kind, text.into())
            .add_to(&mut self.0)
            .unwrap();
        self
    }

    /// USERNAME, REALM, NONCE and MESSAGE-INTEGRITY.
    pub fn sign(self, signer: &Signer) -> Self {
        self.text(ATTR_USERNAME, &signer.user)
            .text(ATTR_REALM, &signer.realm)
            .text(ATTR_NONCE, &signer.nonce)
            .integrity(signer)
    }

    pub fn integrity(mut self, signer: &Signer) -> Self {
        MessageIntegrity::new_long_term_integrity(
            signer.user.clone(),
            signer.realm.clone(),
            signer.password.clone(),
        )
        .add_to(&mut self.0)
        .unwrap();
        self
    }

    pub fn fingerprint(mut self) -> Self {
        FINGERPRINT.add_to(&mut self.0).unwrap();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.raw.clone()
    }
}

/// An answer or indication as the `stun` crate reads it.
#[derive(Clone, Debug)]
pub struct Reply(pub Message);

impl Reply {
    pub fn parse(bytes: &[u8]) -> Self {
        let mut message = Message::new();
        message.unmarshal_binary(bytes).expect("a STUN message");
        assert_eq!(message.raw, bytes, "the whole datagram is the message");
        Self(message)
    }

    pub fn is_success(&self) -> bool {
        self.0.typ.class == CLASS_SUCCESS_RESPONSE
    }

    /// The error code, or 0 for success.
    pub fn code(&self) -> u16 {
        if self.is_success() {
            return 0;
        }
        assert_eq!(self.0.typ.class, CLASS_ERROR_RESPONSE);
        let value = self.0.get(ATTR_ERROR_CODE).expect("ERROR-CODE");
        assert_eq!(value.len(), 4, "no reason phrase");
        u16::from(value[2]) * 100 + u16::from(value[3])
    }

    pub fn attr(&self, kind: AttrType) -> Option<Vec<u8>> {
        self.0.get(kind).ok()
    }

    pub fn text(&self, kind: AttrType) -> Option<String> {
        self.attr(kind)
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    pub fn nonce(&self) -> String {
        self.text(ATTR_NONCE).expect("NONCE")
    }

    pub fn lifetime(&self) -> u32 {
        let value = self.attr(ATTR_LIFETIME).expect("LIFETIME");
        u32::from_be_bytes(value.try_into().unwrap())
    }

    pub fn address(&self, kind: AttrType) -> SocketAddr {
        let mut address = XorMappedAddress::default();
        address.get_from_as(&self.0, kind).expect("an address");
        SocketAddr::new(address.ip, address.port)
    }

    pub fn mapped(&self) -> SocketAddr {
        self.address(ATTR_XORMAPPED_ADDRESS)
    }

    pub fn relayed(&self) -> SocketAddr {
        self.address(ATTR_XOR_RELAYED_ADDRESS)
    }

    /// Every XOR-RELAYED-ADDRESS, in order.
    pub fn all_relayed(&self) -> Vec<SocketAddr> {
        let mut message = self.0.clone();
        let is_relayed = |one: &RawAttribute| one.typ == ATTR_XOR_RELAYED_ADDRESS;
        let mut found = Vec::new();
        while let Some(first) = message.attributes.0.iter().position(is_relayed) {
            found.push(Self(message.clone()).relayed());
            message.attributes.0.remove(first);
        }
        found
    }

    pub fn peer(&self) -> SocketAddr {
        self.address(ATTR_XOR_PEER_ADDRESS)
    }

    pub fn connection_id(&self) -> u32 {
        let value = self.attr(ATTR_CONNECTION_ID).expect("CONNECTION-ID");
        u32::from_be_bytes(value.try_into().unwrap())
    }

    pub fn data(&self) -> Vec<u8> {
        self.attr(ATTR_DATA).expect("DATA")
    }

    pub fn attribute_types(&self) -> Vec<u16> {
        (self.0.attributes.0.iter())
            .map(|attribute| attribute.typ.0)
            .collect()
    }

    /// Whether MESSAGE-INTEGRITY is there and right.
    pub fn is_signed_by(&self, signer: &Signer) -> bool {
        self.0.contains(ATTR_MESSAGE_INTEGRITY)
            && MessageIntegrity::new_long_term_integrity(
                signer.user.clone(),
                signer.realm.clone(),
                signer.password.clone(),
            )
            .check(&mut self.0.clone())
            .is_ok()
    }
}

/// ChannelData with `data`, not padded.
pub fn channel_data(channel: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = channel.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// ChannelData padded to four bytes, as streams carry it.
pub fn padded_channel_data(channel: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = channel_data(channel, data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
