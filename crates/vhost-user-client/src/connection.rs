//! The control connection: one question at a time, and every wait with a limit.

use crate::wire::{self, F_PROTOCOL_FEATURES, HEADER_LEN, RequestId, WireError, protocol_feature as protocol, request};
use polypath_block::Code;
use polypath_net::Closer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_oobinline, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv, recvmsg, sendmsg, shutdown,
    socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// Bytes of `struct virtio_blk_config` that we look at: up to `write_zeroes_may_unmap` and its padding.
pub(crate) const CONFIG_LEN: u32 = 60;

/// Most descriptors that Linux passes at once (`SCM_MAX_FD`). Those that there is no room for would be closed by the call that receives.
const SCM_MAX_FD: usize = 253;

/// What went wrong on the way to an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}; is a back-end listening there?")]
    Connect(Errno),
    #[error("no answer within {} s: the back-end is stopped, busy with another front-end, or hangs", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the back-end closed the connection")]
    Closed,
    #[error("{call} on the control connection: {source}")]
    System { call: &'static str, source: Errno },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the back-end refused it with {0}")]
    Refused(u64),
    #[error("the back-end sent something that nobody asked for")]
    Unasked,
    #[error("{0}")]
    Unfit(String),
}

impl Trouble {
    /// What it means for I/O.
    pub(crate) fn code(&self) -> Code {
        match self {
            Trouble::Silent(_) => Code::PathTimeout,
            Trouble::Wire(_) | Trouble::Unasked => Code::PathProtocol,
            _ => Code::PathLost,
        }
    }
}

/// A question that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {trouble}")]
pub(crate) struct ControlError {
    pub(crate) step: &'static str,
    pub(crate) trouble: Trouble,
}

/// What a back-end offers, once it was agreed.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Virtio features that both sides have.
    pub(crate) features: u64,
    /// Most queues, if the back-end says.
    pub(crate) queues: Option<u64>,
    /// Most memory regions at a time.
    pub(crate) slots: u64,
    /// The configuration space.
    pub(crate) config: [u8; CONFIG_LEN as usize],
}

/// A socket to a back-end. After any [`Trouble`] but [`Trouble::Refused`] it is out of step and of no use.
pub(crate) struct Connection {
    /// `None` while it is dropped.
    socket: Option<OwnedFd>,
    /// For what the back-end sends unasked.
    closer: Closer,
    limit: Duration,
    /// Requests without an answer of their own are acknowledged (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
    acknowledged: bool,
}

impl Connection {
    /// Connects to the socket at `path`. `limit` is for this and each question that follows.
    pub(crate) fn open(path: &str, limit: Duration) -> Result<Connection, ControlError> {
        let failed = |trouble| ControlError { step: "connecting", trouble };
        let system = |call| move |source| failed(Trouble::System { call, source });
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(system("socket"))?;
        // The time that connect(2) waits for a place in the queue of a listener that accepts nobody.
        set_socket_timeout(&socket, Timeout::Send, Some(limit)).map_err(system("setsockopt"))?;
        // Octets out of band would be dropped by the call that receives what comes after them, which closes their descriptors itself.
        set_socket_oobinline(&socket, true).map_err(system("setsockopt"))?;
        let address = SocketAddrUnix::new(path).map_err(system("the name of the socket"))?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(failed(Trouble::Silent(limit))),
            Err(error) => return Err(failed(Trouble::Connect(error))),
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(system("ioctl"))?;
        Ok(Connection { socket: Some(socket), closer: Closer::default(), limit, acknowledged: false })
    }

    /// Agrees on features, of which `wanted` are those of virtio that we can do.
    pub(crate) fn negotiate(&mut self, wanted: u64) -> Result<Offer, ControlError> {
        let offered = self.ask_word(request::GET_FEATURES)?;
        let unfit = |what: String| ControlError { step: "agreeing on features", trouble: Trouble::Unfit(what) };
        if offered & F_PROTOCOL_FEATURES == 0 {
            return Err(unfit("the back-end has no protocol features (bit 30); we need them".into()));
        }
        let have = self.ask_word(request::GET_PROTOCOL_FEATURES)?;
        let missing = protocol::REQUIRED & !have;
        if missing != 0 {
            let needed = "REPLY_ACK (bit 3), CONFIG (bit 9) and CONFIGURE_MEM_SLOTS (bit 15)";
            return Err(unfit(format!("the back-end lacks protocol features {missing:#x}; we need {needed}")));
        }
        let chosen = have & (protocol::REQUIRED | protocol::MQ);
        self.tell(request::SET_PROTOCOL_FEATURES, &chosen.to_ne_bytes(), None)?;
        self.acknowledged = true;
        self.tell(request::SET_OWNER, &[], None)?;
        let features = offered & (wanted | F_PROTOCOL_FEATURES);
        self.tell(request::SET_FEATURES, &features.to_ne_bytes(), None)?;
        let queues = match chosen & protocol::MQ {
            0 => None,
            _ => Some(self.ask_word(request::GET_QUEUE_NUM)?),
        };
        let slots = self.ask_word(request::GET_MAX_MEM_SLOTS)?;
        Ok(Offer { features, queues, slots, config: self.config()? })
    }

    fn config(&self) -> Result<[u8; CONFIG_LEN as usize], ControlError> {
        let asked = request::GET_CONFIG;
        let answer = self.ask(asked, &wire::config_question(CONFIG_LEN))?;
        let mut config = [0; CONFIG_LEN as usize];
        let space = wire::config_answer(&answer, CONFIG_LEN).map_err(|e| at(asked, e.into()))?;
        config.copy_from_slice(space);
        Ok(config)
    }

    /// A question whose answer is one number.
    fn ask_word(&self, asked: RequestId) -> Result<u64, ControlError> {
        let answer = self.ask(asked, &[])?;
        wire::word(asked, &answer).map_err(|e| at(asked, e.into()))
    }

    /// A question that has an answer of its own.
    pub(crate) fn ask(&self, asked: RequestId, payload: &[u8]) -> Result<Vec<u8>, ControlError> {
        let until = Instant::now() + self.limit;
        self.send(&wire::message(asked, false, payload), None, until)
            .and_then(|()| self.answer(asked, until))
            .map_err(|trouble| at(asked, trouble))
    }

    /// A request that has no answer but an acknowledgement, and a descriptor that goes with it.
    pub(crate) fn tell(
        &self,
        asked: RequestId,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ControlError> {
        let until = Instant::now() + self.limit;
        self.send(&wire::message(asked, self.acknowledged, payload), fd, until).map_err(|t| at(asked, t))?;
        if !self.acknowledged {
            return Ok(());
        }
        let answer = self.answer(asked, until).map_err(|t| at(asked, t))?;
        match wire::word(asked, &answer).map_err(|e| at(asked, e.into()))? {
            0 => Ok(()),
            other => Err(at(asked, Trouble::Refused(other))),
        }
    }

    /// Ends it for both sides. A back-end that is stopped sees it when it goes on.
    pub(crate) fn shut(&self) {
        // The peer may have been first.
        let _ = shutdown(self.as_fd(), Shutdown::Both);
    }

    /// What a socket that became readable unasked means: nothing (it was not), its end, or octets that no back-end may send.
    pub(crate) fn overheard(&self) -> Result<(), Trouble> {
        let mut byte = [0u8];
        match recv(self.as_fd(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(Trouble::Closed),
            Ok(_) => Err(Trouble::Unasked),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(source) => Err(Trouble::System { call: "recv", source }),
        }
    }

    fn send(&self, bytes: &[u8], mut fd: Option<BorrowedFd<'_>>, until: Instant) -> Result<(), Trouble> {
        let mut sent = 0;
        while sent < bytes.len() {
            let fds: &[BorrowedFd<'_>] = fd.as_slice();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // There is room for one.
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Trouble::System { call: "sendmsg", source: Errno::NOBUFS });
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(self.as_fd(), &[IoSlice::new(&bytes[sent..])], &mut control, flags) {
                // Descriptors go with the first bytes.
                Ok(n) => (sent, fd) = (sent + n, None),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Trouble::Closed),
                Err(source) => return Err(Trouble::System { call: "sendmsg", source }),
            }
        }
        Ok(())
    }

    fn answer(&self, asked: RequestId, until: Instant) -> Result<Vec<u8>, Trouble> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header, until)?;
        let mut payload = vec![0; wire::answer_len(asked, &header)?];
        self.fill(&mut payload, until)?;
        Ok(payload)
    }

    fn fill(&self, into: &mut [u8], until: Instant) -> Result<(), Trouble> {
        let mut have = 0;
        while have < into.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(self.as_fd(), &mut [IoSliceMut::new(&mut into[have..])], &mut control, flags) {
                Ok(got) if got.bytes == 0 => return Err(Trouble::Closed),
                Ok(got) => have += got.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, until)?,
                Err(Errno::CONNRESET) => return Err(Trouble::Closed),
                Err(source) => return Err(Trouble::System { call: "recvmsg", source }),
            }
            // No answer that we ask for has descriptors. To close them may take as long as the back-end likes.
            let mut unasked = false;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    unasked = true;
                    fds.for_each(|fd| self.closer.close(fd));
                }
            }
            if unasked {
                return Err(Trouble::Unasked);
            }
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags, until: Instant) -> Result<(), Trouble> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::from_borrowed_fd(self.as_fd(), flags)], limit.as_ref()) {
                Ok(0) if left.is_zero() => return Err(Trouble::Silent(self.limit)),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(source) => return Err(Trouble::System { call: "poll", source }),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("it is there until it is dropped").as_fd()
    }
}

impl Drop for Connection {
    /// What lies unread in it may hold up a close.
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.closer.end(socket);
        }
    }
}

fn at(asked: RequestId, trouble: Trouble) -> ControlError {
    ControlError { step: asked.name, trouble }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// Of who is silent.
    const LIMIT: Duration = Duration::from_millis(200);
    /// Of who answers, on a machine that stalls now and then.
    const PATIENT: Duration = Duration::from_secs(60);

    fn listener() -> (tempfile::TempDir, String, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_owned();
        let listener = UnixListener::bind(&path).unwrap();
        (dir, path, listener)
    }

    /// Answers the first question with `bytes`, then closes.
    fn answered(bytes: &[u8]) -> String {
        let (_dir, path, listener) = listener();
        let connection = Connection::open(&path, PATIENT).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(bytes).unwrap();
        let mut question = [0; HEADER_LEN];
        let back_end = std::thread::spawn(move || peer.read_exact(&mut question).unwrap());
        let said = connection.ask(request::GET_FEATURES, &[]).unwrap_err().to_string();
        back_end.join().unwrap();
        said
    }

    #[test]
    fn nobody_there() {
        let (dir, path, listener) = listener();
        drop(listener);
        let said = |path: &str| Connection::open(path, PATIENT).err().unwrap().to_string();
        assert!(said(&path).contains("Connection refused"), "{}", said(&path));
        let missing = dir.path().join("other");
        assert!(said(missing.to_str().unwrap()).contains("No such file"));
        assert!(said(&"x".repeat(200)).contains("the name of the socket"));
    }

    /// Also when so many wait for the listener that connect(2) itself would wait.
    #[test]
    fn a_listener_that_accepts_nobody_costs_the_limit() {
        let (_dir, path, listener) = listener();
        rustix::net::listen(&listener, 1).unwrap();
        let start = Instant::now();
        let mut open = Vec::new();
        let refused = loop {
            match Connection::open(&path, LIMIT) {
                Ok(connection) => open.push(connection),
                Err(error) => break error,
            }
            assert!(open.len() < 100, "the backlog is of one");
        };
        assert!(matches!(refused.trouble, Trouble::Silent(_)), "{refused}");
        let silent = open[0].ask(request::GET_FEATURES, &[]).unwrap_err();
        assert_eq!((silent.step, silent.trouble.code()), ("GET_FEATURES", Code::PathTimeout));
        assert!(silent.to_string().contains("no answer within 0.2 s"), "{silent}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn answers_that_are_none() {
        let header = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();
        for (bytes, part) in [
            (vec![], "closed the connection"),
            (header([1, 5, 8])[..7].to_vec(), "closed the connection"),
            (header([1, 5, 8]), "closed the connection"),
            (header([2, 5, 8]), "answered request 2"),
            (header([1, 5, 1 << 20]), "1048576 bytes long"),
            ([header([1, 5, 2]), vec![0; 2]].concat(), "2 bytes long"),
        ] {
            if part == "2 bytes long" {
                // The length is right by itself; only a number must have eight.
                assert!(wire::word(request::GET_FEATURES, &[0; 2]).unwrap_err().to_string().contains(part));
                continue;
            }
            let said = answered(&bytes);
            assert!(said.contains(part) && said.starts_with("GET_FEATURES"), "{bytes:?}: {said}");
        }
    }

    #[test]
    fn a_back_end_without_what_we_need_is_named() {
        let (_dir, path, listener) = listener();
        let mut connection = Connection::open(&path, PATIENT).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let reply = |request: u32, word: u64| {
            [[request, 5, 8].map(u32::to_ne_bytes).concat(), word.to_ne_bytes().to_vec()].concat()
        };
        peer.write_all(&reply(1, F_PROTOCOL_FEATURES)).unwrap();
        peer.write_all(&reply(15, protocol::REPLY_ACK | protocol::CONFIG)).unwrap();
        let said = connection.negotiate(0).unwrap_err().to_string();
        assert!(said.contains("lacks protocol features 0x8000"), "{said}");
    }

    /// The descriptor of a TCP connection that lingers comes with an octet out of band. Nobody reads that: the call that receives what comes
    /// next drops it, and closes the descriptor itself.
    #[test]
    fn a_descriptor_out_of_band_does_not_stretch_the_limit() {
        use std::net::{TcpListener, TcpStream};
        let (_dir, path, listener) = listener();
        let connection = Connection::open(&path, LIMIT).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let reads_nothing = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingers = TcpStream::connect(reads_nothing.local_addr().unwrap()).unwrap();
        lingers.set_nonblocking(true).unwrap();
        while lingers.write(&[0; 65536]).is_ok() {}
        rustix::net::sockopt::set_socket_linger(&lingers, Some(Duration::from_secs(30))).unwrap();
        let fds = [lingers.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&peer, &[IoSlice::new(b"!")], &mut control, SendFlags::OOB).unwrap();
        drop(lingers);
        peer.write_all(&[[1u32, 5, 8].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat()).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = tell.send(connection.ask(request::GET_FEATURES, &[]).is_ok());
        });
        assert!(
            told.recv_timeout(Duration::from_secs(10)).is_ok(),
            "a question of {LIMIT:?} takes as long as the back-end likes"
        );
    }
}
