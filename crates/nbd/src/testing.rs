//! For tests: a disk that does what it is told, and a client that says what it is told.

use crate::wire::option::{CLIENT_FLAGS_LEN, OPTION_REPLY_MAGIC};
use crate::wire::reply::{SIMPLE_MAGIC, STRUCTURED_MAGIC};
use crate::wire::{Command, CommandFlags, GREETING, OptionHeader, OptionType, Request};
use polypath::block::{
    Access, Armed, Cx, Done, Flags, Health, Identity, Io, IoQueue, OpenError, QueueConfig, Refused, Waits,
};
use polypath::{Code, Device, DeviceInfo, DeviceState, Disk, Geometry, Limits, Stack, Status};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::time::timeout;

/// What must happen does within this time.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A disk that keeps what it is asked for until it may answer, and answers as it is told.
#[derive(Clone)]
pub(crate) struct Scripted(Arc<Script>);

struct Script {
    info: Arc<DeviceInfo>,
    losses: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: bool,
    asked: Vec<Io>,
    /// The next one of this kind is answered like that.
    answers: VecDeque<(polypath::block::Op, Status)>,
}

impl Scripted {
    pub(crate) fn new(limits: Limits) -> Scripted {
        let geometry = Geometry { block_size: 512, blocks: 8192 };
        let (identity, access) = (Identity::default(), Access::Optimized);
        let info = DeviceInfo { geometry, limits, identity, access, max_queues: 1, max_depth: 256 };
        Scripted(Arc::new(Script { info: Arc::new(info), losses: AtomicU64::new(0), state: Mutex::default() }))
    }

    pub(crate) async fn disk(&self) -> Disk {
        let stack = Stack::shared().unwrap();
        Disk::builder().device(Arc::new(self.clone())).stack(&stack).open().await.unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Answers nothing until [`Scripted::release`].
    pub(crate) fn hold(&self) {
        self.lock().held = true;
    }

    pub(crate) fn release(&self) {
        self.lock().held = false;
    }

    pub(crate) fn answer(&self, op: polypath::block::Op, code: Code) {
        self.lock().answers.push_back((op, code.into()));
    }

    pub(crate) fn lose(&self) {
        self.0.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// What it was asked for since the last time: operation, FUA, first byte, bytes.
    pub(crate) fn asked(&self) -> Vec<(polypath::block::Op, bool, u64, u64)> {
        let asked = std::mem::take(&mut self.lock().asked);
        let told = |io: Io| (io.op, io.flags.contains(Flags::FUA), io.lba * 512, u64::from(io.blocks) * 512);
        asked.into_iter().map(told).collect()
    }

    /// Waits until it was asked for `count` things that nobody has looked at.
    pub(crate) async fn has_been_asked(&self, count: usize) {
        let asked = async {
            while self.lock().asked.len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, asked).await.expect("it is asked in time");
    }
}

impl Device for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn state(&self) -> DeviceState {
        DeviceState::Live(self.0.info.clone())
    }

    fn version(&self) -> u64 {
        1
    }

    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Ok(Box::new(Queue { script: self.clone(), pending: Vec::new() }))
    }

    fn losses(&self) -> u64 {
        self.0.losses.load(Ordering::Relaxed)
    }

    fn close(&self) {}
}

struct Queue {
    script: Scripted,
    pending: Vec<Io>,
}

impl IoQueue for Queue {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.script.lock().asked.push(io);
        self.pending.push(io);
        Ok(())
    }

    fn kick(&mut self, _: &mut Cx<'_>) {}

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        let mut state = self.script.lock();
        if state.held {
            return;
        }
        for io in self.pending.drain(..) {
            let at = state.answers.iter().position(|(op, _)| *op == io.op);
            let status = at.and_then(|at| state.answers.remove(at)).map_or(Status::OK, |(_, status)| status);
            done.complete(io.tag, status);
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        if self.pending.is_empty() { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn close(&mut self, _: &mut Cx<'_>) {}

    fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }
}

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// Zero: done.
    pub(crate) error: u32,
    /// Data of a read, text of an error, descriptors of a status.
    pub(crate) data: Vec<u8>,
}

/// The client's end of a connection.
pub(crate) struct Peer<R, W> {
    pub(crate) reader: R,
    pub(crate) writer: W,
    structured: bool,
}

pub(crate) type DuplexPeer = Peer<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

/// A connection in memory which takes `room` octets each way: both ends.
pub(crate) fn connection(room: usize) -> (DuplexPeer, (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>)) {
    let (ours, theirs) = tokio::io::duplex(room);
    let (reader, writer) = tokio::io::split(ours);
    (Peer::new(reader, writer), tokio::io::split(theirs))
}

impl<R: AsyncRead + Unpin> Peer<R, tokio::io::Sink> {
    /// One that hears structured replies, and says nothing.
    pub(crate) fn hearing(reader: R) -> Self {
        Peer { reader, writer: tokio::io::sink(), structured: true }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<R, W> {
    pub(crate) fn new(reader: R, writer: W) -> Peer<R, W> {
        Peer { reader, writer, structured: false }
    }

    pub(crate) async fn octets(&mut self, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        timeout(SOON, self.reader.read_exact(&mut octets))
            .await
            .expect("octets come in time")
            .expect("as many as these");
        octets
    }

    /// Is the connection over?
    pub(crate) async fn is_closed(&mut self) -> bool {
        let read = timeout(SOON, self.reader.read(&mut [0])).await;
        matches!(read.expect("the end comes in time"), Ok(0) | Err(_))
    }

    pub(crate) async fn send(&mut self, octets: &[u8]) {
        timeout(SOON, self.writer.write_all(octets)).await.expect("it is taken in time").expect("it is taken");
    }

    pub(crate) async fn greet(&mut self) {
        assert_eq!(self.octets(GREETING.len()).await, GREETING);
        self.send(&[0, 0, 0, 3]).await;
        assert_eq!(CLIENT_FLAGS_LEN, 4);
    }

    /// Sends an option; answers with type and data of the last reply.
    pub(crate) async fn option(&mut self, option: OptionType, data: &[u8]) -> (u32, Vec<u8>) {
        self.send(&OptionHeader { option, length: data.len() as u32 }.to_bytes()).await;
        self.send(data).await;
        loop {
            let head = self.octets(20).await;
            assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let data = self.octets(word(16) as usize).await;
            if word(12) == 1 || word(12) >= 1 << 31 {
                return (word(12), data);
            }
        }
    }

    /// Goes through the handshake to the export `name`.
    pub(crate) async fn go(&mut self, name: &str, structured: bool) {
        self.greet().await;
        self.structured = structured;
        let counted = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
        if structured {
            assert_eq!(self.option(OptionType::StructuredReply, &[]).await.0, 1);
            let contexts = [&counted[..], b"\0\0\0\x01\0\0\0\x0fbase:allocation"].concat();
            assert_eq!(self.option(OptionType::SetMetaContext, &contexts).await.0, 1);
        }
        let go = [&counted[..], &[0, 0]].concat();
        assert_eq!(self.option(OptionType::Go, &go).await.0, 1);
    }

    pub(crate) async fn request(
        &mut self,
        cookie: u64,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u32,
    ) {
        self.send(&Request { flags, command, cookie, offset, length }.to_bytes()).await;
    }

    /// The next reply; `data`: octets that follow a simple one which is no error.
    pub(crate) async fn reply(&mut self, data: usize) -> Reply {
        let head = self.octets(16).await;
        let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        if !self.structured {
            assert_eq!(word(0), SIMPLE_MAGIC);
            let data = if word(4) == 0 { self.octets(data).await } else { Vec::new() };
            return Reply { cookie: long(8), error: word(4), data };
        }
        assert_eq!((word(0), word(4) >> 16), (STRUCTURED_MAGIC, 1), "one chunk is all");
        let kind = word(4) & 0xffff;
        let len = self.octets(4).await;
        let payload = self.octets(u32::from_be_bytes(len.try_into().unwrap()) as usize).await;
        let cookie = long(8);
        match kind {
            0 => Reply { cookie, error: 0, data: Vec::new() },
            1 => Reply { cookie, error: 0, data: payload[8..].to_vec() },
            5 => Reply { cookie, error: 0, data: payload },
            0x8001 => {
                let error = u32::from_be_bytes(payload[..4].try_into().unwrap());
                Reply { cookie, error, data: payload[6..].to_vec() }
            }
            other => panic!("chunk of type {other}"),
        }
    }

    /// Asks, and hears the reply: its error, and its data.
    pub(crate) async fn call(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> (u32, Vec<u8>) {
        self.request(7, command, flags, offset, length).await;
        self.send(data).await;
        let reply = self.reply(if command == Command::Read { length as usize } else { 0 }).await;
        assert_eq!(reply.cookie, 7);
        (reply.error, reply.data)
    }

    /// As [`Peer::call`] without flags and data to send; answers with the error.
    pub(crate) async fn ask(&mut self, command: Command, offset: u64, length: u32) -> u32 {
        self.call(command, CommandFlags::empty(), offset, length, &[]).await.0
    }
}
