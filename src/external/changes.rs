//! When to look again before the time is up: addresses of the host come and go.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::net::AddressChanges;

/// Addresses change several at a time, and may be of use only a moment later: they are looked at once it is quiet for so
/// long.
const QUIET: Duration = Duration::from_millis(500);

/// After so many changes without quiet they are looked at all the same.
const MOST: u32 = 10;

/// The host's changes of addresses, for a runtime.
pub struct Changes {
    told: AddressChanges,
    ready: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Listens from now on, in the current runtime.
    ///
    /// # Errors
    /// A sandbox without AF_NETLINK, or no more descriptors.
    pub fn listen() -> io::Result<Self> {
        let told = AddressChanges::listen()?;
        let ready = told.poller().watch()?;
        Ok(Self { told, ready })
    }

    /// Returns once addresses may have changed and it is quiet again.
    pub async fn settled(&mut self) {
        self.next().await;
        for _ in 0..MOST {
            if timeout(QUIET, self.next()).await.is_err() {
                return;
            }
        }
    }

    async fn next(&mut self) {
        loop {
            let Ok(mut ready) = self.ready.readable().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            ready.clear_ready();
            if self.told.take() {
                return;
            }
        }
    }
}
