//! Certificates: loading, self-signing, expiry.
