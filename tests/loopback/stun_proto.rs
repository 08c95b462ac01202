//! The client's authentication of another project, which knows RFC 8489's security features, over real connections.

use stun_proto::auth::{Feature, LongTermClientAuth, LongTermClientValidation};
use stun_proto::types::message::{
    IntegrityAlgorithm, LongTermCredentials, Message, MessageWrite, MessageWriteExt,
    MessageWriteVec, Method,
};
use turn_types::attribute::{Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};
use turnix::access::AuthFailure;
use turnix::base::{Family, Transport};
use turnix::wire::attribute::{
    MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, PASSWORD_ALGORITHM, USERHASH, USERNAME,
};

use super::client::{Client, Frame};
use super::common::wire::{Reply, Request};
use super::common::world::{PASSWORD, USER};
use super::server::Server;

/// Whose integrity a client of the other project takes: what it knows first.
fn auth(knows: &[IntegrityAlgorithm], anonymous: Feature) -> LongTermClientAuth {
    let mut auth = LongTermClientAuth::new();
    auth.set_credentials(LongTermCredentials::new(USER.into(), PASSWORD.into()));
    auth.set_supported_integrity(knows[0]);
    for more in &knows[1..] {
        auth.add_supported_integrity(*more);
    }
    auth.set_anonymous_username(anonymous);
    auth
}

/// Asks until the other project's rules say that the answer is authentic: what was sent at last, and what came.
fn ask(
    client: &mut Client,
    auth: &mut LongTermClientAuth,
    method: Method,
    write: impl Fn(&mut MessageWriteVec),
) -> (Vec<u8>, Reply) {
    for _ in 0..3 {
        let mut request = Message::builder_request(method, MessageWriteVec::new());
        write(&mut request);
        let sent = auth.sign_outgoing_message(request).unwrap().finish();
        client.send(&sent);
        let Frame::Message(reply) = client.expect() else {
            panic!("an answer");
        };
        let message = Message::from_bytes(&reply.0.raw).unwrap();
        match auth.validate_incoming_message(&message).unwrap() {
            LongTermClientValidation::ResendRequest(_) => {}
            LongTermClientValidation::Validated(_) => return (sent, reply),
        }
    }
    panic!("challenged three times");
}

fn allocate(client: &mut Client, auth: &mut LongTermClientAuth) -> (Vec<u8>, Reply) {
    let (sent, reply) = ask(client, auth, ALLOCATE, |request| {
        let udp = RequestedTransport::new(RequestedTransport::UDP);
        request.add_attribute(&udp).unwrap();
    });
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.mapped(), client.local());
    let (_, refreshed) = ask(client, auth, REFRESH, |request| {
        request.add_attribute(&Lifetime::new(0)).unwrap();
    });
    assert_eq!((refreshed.code(), refreshed.lifetime()), (0, 0));
    (sent, reply)
}

fn has(bytes: &[u8], kind: u16) -> bool {
    let mut message = Request::binding().0;
    stun::message::Message::unmarshal_binary(&mut message, bytes).unwrap();
    message.contains(stun::attributes::AttrType(kind))
}

#[test]
fn a_foreign_client_negotiates_over_every_transport() {
    use IntegrityAlgorithm::{Sha1, Sha256};
    let server = Server::with(
        super::server::BOTH,
        &["auth.secrets=[]", "protocol.security_features='always'"],
    );
    for transport in Transport::ALL {
        for (knows, anonymous) in [
            (&[Sha256][..], Feature::Required),
            (&[Sha1, Sha256], Feature::Auto),
            (&[Sha256], Feature::Disabled),
        ] {
            let mut client = Client::new(&server, transport, Family::V4);
            let (sent, reply) = allocate(&mut client, &mut auth(knows, anonymous));
            assert!(has(&sent, MESSAGE_INTEGRITY_SHA256) && has(&sent, PASSWORD_ALGORITHM));
            let by_hash = anonymous != Feature::Disabled;
            assert_eq!(
                (has(&sent, USERHASH), has(&sent, USERNAME)),
                (by_hash, !by_hash)
            );
            assert!(has(&reply.0.raw, MESSAGE_INTEGRITY_SHA256));
            assert!(!has(&reply.0.raw, MESSAGE_INTEGRITY));
        }
        // One that knows of the features, and of MD5 only.
        let mut client = Client::new(&server, transport, Family::V4);
        let (sent, reply) = allocate(&mut client, &mut auth(&[Sha1], Feature::Auto));
        assert!(has(&sent, PASSWORD_ALGORITHM) && has(&sent, MESSAGE_INTEGRITY));
        assert!(has(&reply.0.raw, MESSAGE_INTEGRITY));
    }
    let failures = server.snapshot().stats.auth_failures;
    let challenges = 4 * Transport::ALL.len() as u64;
    assert_eq!(failures[AuthFailure::Missing as usize], challenges);
    assert_eq!(failures.iter().sum::<u64>(), challenges);
}
