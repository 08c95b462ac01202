//! Messages with descriptors beside them, over a Unix stream socket (unix(7), SCM_RIGHTS).

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use zeroize::Zeroizing;

/// Descriptors that one message can carry (SCM_MAX_FD of linux/net/scm.h).
pub const MAX_DESCRIPTORS: usize = 253;

/// The longest body, in bytes: the state of a shard with some hundred thousand allocations.
const MAX_BODY: usize = 512 << 20;

/// Kind, and length of the body.
const HEADER: usize = 1 + 4;

const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// One end of a connection between two processes of this host.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// One message as it came. Its body is wiped when dropped.
#[derive(Debug)]
pub struct Parcel {
    /// What it is, as the sender says.
    pub kind: u8,
    /// What it says.
    pub body: Zeroizing<Vec<u8>>,
    /// What came with it, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

/// Who is at the other end, as the kernel knows it (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// The user it runs as.
    pub uid: u32,
}

impl Peer {
    /// Whether it may have what this process has: the same user, or root.
    pub fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

impl Channel {
    /// Takes an open connection.
    pub const fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or not for us.
    pub fn connect(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).map(Self)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peer(&self) -> io::Result<Peer> {
        let credentials = sockopt::socket_peercred(&self.0)?;
        Ok(Peer {
            pid: credentials.pid.as_raw_nonzero().get(),
            uid: credentials.uid.as_raw(),
        })
    }

    /// How long each wait for the other end may take; `None` is for ever.
    ///
    /// # Errors
    /// Zero is not a time to wait.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(patience)?;
        self.0.set_write_timeout(patience)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other end is gone or does not read, or there are more than [`MAX_DESCRIPTORS`].
    pub fn send(&self, kind: u8, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut header = [kind; HEADER];
        header[1..].copy_from_slice(&length.to_be_bytes());
        let mut room = [MaybeUninit::uninit(); CONTROL];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The descriptors travel with the header's first byte; the rest of the header follows if it has to.
        let sent = loop {
            match sendmsg(
                &self.0,
                &[IoSlice::new(&header)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                sent => break sent?,
            }
        };
        let mut stream = &self.0;
        stream.write_all(header.get(sent..).unwrap_or_default())?;
        stream.write_all(body)
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// `UnexpectedEof` once the other end is gone, `WouldBlock` when it says nothing in time, `InvalidData` for what is
    /// no message.
    pub fn receive(&self) -> io::Result<Parcel> {
        let mut header = [0; HEADER];
        let mut room = [MaybeUninit::uninit(); CONTROL];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut header)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                // What the other end had not read when it went.
                Err(rustix::io::Errno::CONNRESET) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                received => break received?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other(
                "descriptors were lost: this process may not open as many, raise LimitNOFILE",
            ));
        }
        let mut stream = &self.0;
        stream.read_exact(header.get_mut(received.bytes..).unwrap_or_default())?;
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_BODY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = Zeroizing::new(vec![0; length]);
        stream.read_exact(&mut body)?;
        Ok(Parcel {
            kind,
            body,
            descriptors,
        })
    }
}

/// Makes room for descriptors up to number `most`. The kernel would make it step by step while they come, and halts a
/// process with several threads for each step (`expand_files` waits for a grace period of RCU).
pub fn expect_descriptors(most: usize) {
    let most = RawFd::try_from(most).unwrap_or(RawFd::MAX);
    // One that lies beyond the limit of open files would be refused, and so will be those that come.
    if let Ok(any) = fs::File::open("/dev/null") {
        drop(rustix::io::fcntl_dupfd_cloexec(any, most));
    }
}

/// Takes a descriptor that whoever started this process gave it, as `listenfd` has found it.
///
/// # Errors
/// It is not open.
pub fn given(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: LISTEN_FDS says that the descriptor is this process's, and `listenfd` gives each of them once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// Memory behind a descriptor, which no file system knows of.
///
/// # Errors
/// The system has none.
pub fn sealable_memory(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(memfd_create(name, flags)?)
}

/// Nobody can change it from now on.
///
/// # Errors
/// It is not of [`sealable_memory`].
pub fn seal(memory: impl AsFd) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(fcntl_add_seals(memory, seals)?)
}

/// Waits until something can be read, or the other end is closed.
///
/// # Errors
/// `TimedOut` if that takes longer than `patience`.
pub fn wait_readable(descriptor: impl AsFd, patience: Duration) -> io::Result<()> {
    let mut wanted = [PollFd::new(&descriptor, PollFlags::IN)];
    let patience = Timespec::try_from(patience).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut wanted, Some(&patience))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// A listening Unix socket that only its owner and root may connect to. Its file goes with it, unless another process
/// has put its own in the place.
#[derive(Debug)]
pub struct Doorway {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Doorway {
    /// Listens at `path`, in the place of whoever did before.
    ///
    /// # Errors
    /// The directory cannot be written, or the path is too long for a socket.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        // Nobody knows this name until its mode is right.
        let listener = UnixListener::bind(&temporary)?;
        let placed = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&temporary))
            .and_then(|metadata| fs::rename(&temporary, path).map(|()| metadata.ino()));
        match placed {
            Ok(inode) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode,
            }),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// Whether its path still leads here.
    pub fn is_in_place(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Where connections are accepted.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn listener(&self) -> io::Result<Reception> {
        self.listener.try_clone().map(Reception)
    }
}

/// Accepts connections of a [`Doorway`].
#[derive(Debug)]
pub struct Reception(UnixListener);

impl Reception {
    /// Waits for the next process that may have what this one has; others are turned away.
    ///
    /// # Errors
    /// The system cannot accept.
    pub fn accept(&self) -> io::Result<(Channel, Peer)> {
        loop {
            let (stream, _) = self.0.accept()?;
            let channel = Channel::new(stream);
            match channel.peer() {
                Ok(peer) if peer.is_trusted() => return Ok((channel, peer)),
                Ok(peer) => tracing::warn!(?peer, "a process of another user wants to take over"),
                Err(error) => {
                    tracing::warn!(%error, "a process that nobody knows wants to take over")
                }
            }
        }
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
