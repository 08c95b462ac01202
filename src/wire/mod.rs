//! The one door to the codec.
pub mod error_code;
pub use error_code::ErrorCode;

/// A method of STUN or TURN (RFC 8489 §18.2, RFC 8656 §17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Method {
    /// 0x001
    Binding,
    /// 0x003
    Allocate,
    /// 0x004
    Refresh,
    /// 0x006, indication only
    Send,
    /// 0x007, indication only
    Data,
    /// 0x008
    CreatePermission,
    /// 0x009
    ChannelBind,
    /// Any other method.
    Unknown,
}

impl Method {
    /// Every method, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::Binding,
        Self::Allocate,
        Self::Refresh,
        Self::Send,
        Self::Data,
        Self::CreatePermission,
        Self::ChannelBind,
        Self::Unknown,
    ];

    /// The label of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Binding => "binding",
            Self::Allocate => "allocate",
            Self::Refresh => "refresh",
            Self::Send => "send",
            Self::Data => "data",
            Self::CreatePermission => "create_permission",
            Self::ChannelBind => "channel_bind",
            Self::Unknown => "unknown",
        }
    }
}
