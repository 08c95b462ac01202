//! Who accepts: one task of the control runtime for each TCP port, and one for the admin listener.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Listener;
use crate::http::Front;
use crate::shard::Shards;
use crate::stream::{self, Admission, Certificates};

/// An open TCP port.
pub(super) struct Door {
    /// Kept, so that what waits to be accepted survives a change of who accepts.
    socket: TcpListener,
    settings: stream::Settings,
    task: JoinHandle<()>,
}

/// How the streams of `wanted` are received.
pub(super) fn stream_settings(wanted: &Listener) -> stream::Settings {
    stream::Settings {
        protocols: wanted.streams,
        sharing: wanted.sharing.clone(),
        ..stream::Settings::default()
    }
}

/// A TCP port on which nobody accepts yet.
pub(super) struct Prepared {
    socket: TcpListener,
    settings: stream::Settings,
    listener: stream::Listener,
}

impl Prepared {
    /// # Errors
    /// Descriptors ran out, or `wanted` speaks TLS and there is no certificate.
    pub fn new(
        socket: TcpListener,
        wanted: &Listener,
        certificates: Option<Arc<Certificates>>,
    ) -> io::Result<Self> {
        let settings = stream_settings(wanted);
        let shared = socket.try_clone()?;
        Ok(Self {
            listener: stream::Listener::new(shared, settings.clone(), certificates)?,
            socket,
            settings,
        })
    }
}

/// What every TCP port needs.
pub(super) struct Lobby {
    pub shards: Shards,
    pub admission: Arc<Admission>,
    pub control: Handle,
    pub front: Front,
    accepts: watch::Sender<bool>,
}

impl Lobby {
    pub fn new(shards: Shards, admission: Arc<Admission>, control: Handle, front: Front) -> Self {
        Self {
            shards,
            admission,
            control,
            front,
            accepts: watch::Sender::new(true),
        }
    }

    /// Whether connections are accepted, at every door. Those that were go on.
    pub fn accept(&self, on: bool) {
        self.accepts.send_replace(on);
    }

    /// Accepts from now on.
    pub fn open(&self, prepared: Prepared) -> Door {
        let listener = (prepared.listener)
            .within(Arc::clone(&self.admission))
            .while_set(self.accepts.subscribe());
        let (shards, front) = (self.shards.clone(), self.front.clone());
        let task = self.control.spawn(async move {
            let serve_http = move |stream| {
                let front = front.clone();
                tokio::spawn(async move { front.serve(stream).await });
            };
            let error = listener
                .run(move |stream| shards.adopt(stream), serve_http)
                .await;
            tracing::error!(%error, "a stream listener cannot go on");
        });
        Door {
            socket: prepared.socket,
            settings: prepared.settings,
            task,
        }
    }
}

impl Door {
    /// Whether it receives the streams of `wanted` as they are to be.
    pub fn is_as(&self, wanted: &Listener) -> bool {
        self.settings == stream_settings(wanted)
    }

    /// The port itself, for a door that accepts otherwise.
    pub fn socket(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }

    /// Closes the port, unless it is shared, and whatever has not said yet what it is. Clients that the shards have go
    /// on.
    pub async fn close(self) {
        self.task.abort();
        // What it held is closed once it has ended.
        let _ = self.task.await;
    }
}

/// The open admin listener.
pub(super) struct AdminDoor {
    pub address: SocketAddr,
    /// Shared with the task, so that it outlives it.
    socket: TcpListener,
    /// What it answers by.
    front: Front,
    task: JoinHandle<()>,
}

/// The admin listener before anybody answers on it.
pub(super) struct PreparedAdmin {
    address: SocketAddr,
    socket: TcpListener,
    way: Way,
}

enum Way {
    Plain(TcpListener),
    Tls(Box<stream::Listener>),
}

impl PreparedAdmin {
    /// For `socket`, which is bound to `address`; HTTPS by `certificates`, if there are any, HTTP otherwise.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn new(
        address: SocketAddr,
        socket: TcpListener,
        certificates: Option<Arc<Certificates>>,
    ) -> io::Result<Self> {
        let shared = socket.try_clone()?;
        let way = match certificates {
            None => Way::Plain(shared),
            Some(certificates) => {
                Way::Tls(Box::new(stream::Listener::https(shared, certificates)?))
            }
        };
        Ok(Self {
            address,
            socket,
            way,
        })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Lobby {
    /// Answers by `front` from now on.
    pub fn open_admin(&self, prepared: PreparedAdmin, front: Front) -> AdminDoor {
        let told = |error| tracing::error!(%error, "the admin listener cannot go on");
        let kept = front.clone();
        let task = match prepared.way {
            Way::Plain(socket) => self.control.spawn(async move {
                let error: io::Error = front.listen(socket).await;
                told(error);
            }),
            Way::Tls(listener) => {
                let listener = listener.within(Arc::clone(&self.admission));
                self.control.spawn(async move {
                    let serve_http = move |stream| {
                        let front = front.clone();
                        tokio::spawn(async move { front.serve(stream).await });
                    };
                    told(listener.run(drop, serve_http).await);
                })
            }
        };
        AdminDoor {
            address: prepared.address,
            socket: prepared.socket,
            front: kept,
            task,
        }
    }
}

impl AdminDoor {
    /// The port itself, for one that answers otherwise.
    pub fn socket(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }

    /// Closes the port, unless it is shared, and its connections: who asks again is asked who it is again. Requests in
    /// progress are answered.
    pub async fn close(self) {
        self.front.close();
        self.task.abort();
        let _ = self.task.await;
    }
}
