//! Signals, as operators know them from other TURN servers.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: stop soon; the second one, at once.
    Terminate,
    /// SIGINT: stop at once.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: take no new allocations, and stop when the last one has ended.
    Drain,
    /// SIGUSR2: read the certificate again.
    Certificate,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals([(Signal, unix::Signal); 5]);

impl Signals {
    /// Takes them from now on: none of them ends the process by itself any more. Needs a runtime.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let of = |signal, kind| unix::signal(kind).map(|stream| (signal, stream));
        Ok(Self([
            of(Signal::Terminate, SignalKind::terminate())?,
            of(Signal::Interrupt, SignalKind::interrupt())?,
            of(Signal::Reload, SignalKind::hangup())?,
            of(Signal::Drain, SignalKind::user_defined1())?,
            of(Signal::Certificate, SignalKind::user_defined2())?,
        ]))
    }

    /// The next signal. Several of one kind that come together are one.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
