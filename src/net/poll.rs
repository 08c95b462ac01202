//! The sockets a shard waits for, behind one descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;

/// A set of sockets that reports the readable ones; its own descriptor is readable while any of them is.
///
/// Level-triggered: a socket that is not drained is reported again, after the others, so a caller may take a bounded
/// number of datagrams from each. A runtime that watches the set's descriptor edge-triggered (tokio's `AsyncFd` does)
/// may be told to sleep only after [`ready`](Self::ready) reported nothing.
#[derive(Debug)]
pub struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
    tokens: Vec<u64>,
}

impl Poller {
    /// An empty set that reports at most `capacity` sockets at a time, at least one.
    ///
    /// # Errors
    /// The kernel refuses another descriptor.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let capacity = capacity.clamp(1, 65_536);
        // SAFETY: epoll_create1(2) takes no pointers.
        let fd = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just opened `fd` for us and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; capacity],
            tokens: Vec::with_capacity(capacity),
        })
    }

    /// Reports `token` whenever `socket` has something to read, until it is removed or closed.
    ///
    /// # Errors
    /// The socket is in the set already, or the kernel's limit of watches is reached.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: epoll_ctl(2) reads one `struct epoll_event`, which outlives the call.
        sys::check(unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_fd().as_raw_fd(),
                &raw mut event,
            )
        })
        .map(drop)
    }

    /// Takes `socket` out of the set; nothing happens if it is not in it. Closing a socket does the same by itself.
    pub fn remove(&self, socket: impl AsFd) {
        // SAFETY: epoll_ctl(2): "the event argument is ignored and can be NULL" for EPOLL_CTL_DEL.
        unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                socket.as_fd().as_raw_fd(),
                std::ptr::null_mut(),
            );
        }
    }

    /// Tokens of the sockets that are readable now, at most `capacity` of them. Never waits.
    ///
    /// A token may belong to a socket that the caller removes while it walks the list.
    pub fn ready(&mut self) -> &[u64] {
        self.tokens.clear();
        let count = loop {
            // SAFETY: epoll_wait(2) writes at most `maxevents` structures into `events`, which has that many.
            let count = unsafe {
                libc::epoll_wait(
                    self.fd.as_raw_fd(),
                    self.events.as_mut_ptr(),
                    self.events.len() as libc::c_int,
                    0,
                )
            };
            match usize::try_from(count) {
                Ok(count) => break count,
                Err(_) if sys::last_errno() == libc::EINTR => {}
                // EBADF, EFAULT and EINVAL: only a bug of ours makes these.
                Err(_) => {
                    debug_assert!(false, "epoll_wait: {}", io::Error::last_os_error());
                    break 0;
                }
            }
        };
        self.tokens
            .extend(self.events.iter().take(count).map(|event| event.u64));
        &self.tokens
    }

    /// Whether the socket of token `index` of the last report has an error to tell (epoll_ctl(2), EPOLLERR).
    pub fn has_error(&self, index: usize) -> bool {
        (self.events.get(index)).is_some_and(|event| event.events & libc::EPOLLERR as u32 != 0)
    }

    /// Like [`ready`](Self::ready), but waits up to `timeout` for a first socket.
    pub fn wait(&mut self, timeout: Duration) -> &[u64] {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(3600) as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as _,
        };
        // The system call wants 64-bit times everywhere.
        if cfg!(not(target_pointer_width = "64")) {
            return self.wait_by_poll(&timeout);
        }
        // epoll_wait counts in milliseconds, which is too coarse for pacing packets.
        // SAFETY: epoll_pwait2(2) writes at most `maxevents` structures into `events`, which has that many, and reads
        // one `struct timespec`; a null signal mask leaves the mask alone.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if count < 0 && sys::last_errno() != libc::EINTR {
            return self.wait_by_poll(&timeout);
        }
        let count = usize::try_from(count).unwrap_or(0);
        self.tokens.clear();
        self.tokens
            .extend(self.events.iter().take(count).map(|event| event.u64));
        &self.tokens
    }

    /// Linux before 5.11 and some sandboxes have no epoll_pwait2; the set's own descriptor can be waited for as well.
    fn wait_by_poll(&mut self, timeout: &libc::timespec) -> &[u64] {
        let mut fd = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: ppoll(2) reads and writes `nfds` structures at `fds`, here the one on our stack, and reads one
        // `struct timespec`; a null signal mask leaves the mask alone. A failure, as by a signal, is an early end.
        unsafe { libc::ppoll(&raw mut fd, 1, timeout, std::ptr::null()) };
        self.ready()
    }

    /// The set's own descriptor for the current tokio runtime to watch.
    ///
    /// # Errors
    /// The system or the runtime refuses another descriptor.
    pub fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let fd = self.fd.try_clone()?;
        // SAFETY: the contract of `register_with_interest`: the descriptor is open and stays so until the `AsyncFd` is
        // dropped. The `AsyncFd` owns this duplicate of the epoll instance, and hands nobody the means to close it.
        Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
    }

    /// What the last [`ready`](Self::ready) reported, for callers that change the set while they walk it.
    pub fn tokens(&self) -> &[u64] {
        &self.tokens
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
