//! The keys of `[protocol]`: what of the protocols is offered.

use crate::turn::{ChannelRange, DefaultFamily, Protocol};

use super::reader::Reader;
use super::values;

pub(super) fn read_protocol(r: &mut Reader<'_>) -> Option<Protocol> {
    let channels = r.key(
        "protocol.channels",
        r#""rfc8656""#,
        r#""rfc8656" or "rfc5766""#,
        values::one_of(&[
            ("rfc8656", ChannelRange::Rfc8656),
            ("rfc5766", ChannelRange::Rfc5766),
        ]),
    );
    let default_family = r.key(
        "protocol.default_family",
        r#""ipv4""#,
        r#""ipv4" or "same-as-client""#,
        values::one_of(&[
            ("ipv4", DefaultFamily::Ipv4),
            ("same-as-client", DefaultFamily::SameAsClient),
        ]),
    );
    let mobility = r.key(
        "protocol.mobility",
        "true",
        "true or false",
        values::boolean,
    );
    Some(Protocol {
        channels: channels?,
        default_family: default_family?,
        mobility: mobility?,
    })
}
