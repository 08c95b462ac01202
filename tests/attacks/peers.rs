//! Peers that must not be reached.
