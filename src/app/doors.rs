//! Who accepts: one task of the control runtime for each TCP port, and one for the admin listener.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::http::{self, Front};
use crate::shard::Shards;
use crate::stream::{self, Admission, Certificates, Protocols};

/// An open TCP port. Dropping it closes the port and whatever has not said yet what it is; clients that the shards have
/// go on.
pub(super) struct Door {
    /// Kept, so that what waits to be accepted survives a change of who accepts.
    socket: TcpListener,
    protocols: Protocols,
    task: AbortHandle,
}

/// What every TCP port needs; clones share it.
#[derive(Clone)]
pub(super) struct Lobby {
    pub shards: Shards,
    pub admission: Arc<Admission>,
    pub control: Handle,
    front: Arc<RwLock<Front>>,
    accepts: Arc<watch::Sender<bool>>,
}

impl Lobby {
    pub fn new(shards: Shards, admission: Arc<Admission>, control: Handle, front: Front) -> Self {
        Self {
            shards,
            admission,
            control,
            front: Arc::new(RwLock::new(front)),
            accepts: Arc::new(watch::Sender::new(true)),
        }
    }

    /// Whether connections are accepted, at every door. Those that were go on.
    pub fn accept(&self, on: bool) {
        self.accepts.send_replace(on);
    }

    /// Serves HTTP by `front` from the next connection on.
    pub fn set_front(&self, front: Front) {
        *self.front.write().unwrap_or_else(PoisonError::into_inner) = front;
    }

    /// Accepts on `socket` from now on.
    pub fn open(
        &self,
        socket: TcpListener,
        protocols: Protocols,
        certificates: Option<Arc<Certificates>>,
    ) -> anyhow::Result<Door> {
        let settings = stream::Settings {
            protocols,
            ..stream::Settings::default()
        };
        let shared = socket.try_clone().context("cannot share a listener")?;
        let listener = stream::Listener::new(shared, settings, certificates)?
            .within(Arc::clone(&self.admission))
            .while_set(self.accepts.subscribe());
        let (shards, front) = (self.shards.clone(), Arc::clone(&self.front));
        let task = self.control.spawn(async move {
            let serve_http = move |stream| {
                let front = front.read().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(async move { front.serve(stream).await });
            };
            let error = listener
                .run(move |stream| shards.adopt(stream), serve_http)
                .await;
            tracing::error!(%error, "a stream listener cannot go on");
        });
        Ok(Door {
            socket,
            protocols,
            task: task.abort_handle(),
        })
    }
}

impl Door {
    pub fn protocols(&self) -> Protocols {
        self.protocols
    }

    /// The port itself, for a door that accepts otherwise.
    pub fn socket(&self) -> std::io::Result<TcpListener> {
        self.socket.try_clone()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The open admin listener.
pub(super) struct AdminDoor {
    pub address: SocketAddr,
    socket: TcpListener,
    task: AbortHandle,
}

impl AdminDoor {
    /// Answers on `socket` from now on.
    pub fn open(
        socket: TcpListener,
        state: http::admin::AdminState<Shards>,
        control: &Handle,
    ) -> anyhow::Result<Self> {
        let address = socket
            .local_addr()
            .context("cannot read the admin address")?;
        let shared = socket.try_clone().context("cannot share a listener")?;
        let front = Front::new(http::admin::router(state), http::Limits::ADMIN);
        let task = control.spawn(async move {
            let error = front.listen(shared).await;
            tracing::error!(%error, "the admin listener cannot go on");
        });
        Ok(Self {
            address,
            socket,
            task: task.abort_handle(),
        })
    }

    /// The port itself, for one that answers otherwise.
    pub fn socket(&self) -> std::io::Result<TcpListener> {
        self.socket.try_clone()
    }
}

impl Drop for AdminDoor {
    /// Closes the port; requests in progress are answered.
    fn drop(&mut self) {
        self.task.abort();
    }
}
