//! What an operator does around the ends of a daemon, and what its start, its RPC and its tools then say: no wait is forgotten, no request
//! fails because something ends, and what is refused is refused before anything was begun.

mod asked;
mod guests;
mod marks;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use polypath::block::contract::Rig;
use polypath::block::{
    Code, Completion, Cx, Device, Done, Io, IoQueue, QueueConfig, SegRow, SegSpan, SegTable, Segment, Waits,
};
use polypath::local::testing::RealRig;
use polypath::memory::Region;
use polypath::vhost_user_client::{ClientConfig, VhostUserDisk};
use polypath_tests::products::{Daemon, Target, program, program_of};
use polypath_tests::{Lab, Process};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

const UNCLEAN: &str = "did not end in order";

const LEN: u32 = 4096;

/// A front-end with one queue, driven by hand: it sees what the back-end says of each request, and nothing is made of it.
struct FrontEnd {
    queue: Box<dyn IoQueue>,
    segs: SegTable,
    rows: SegRow,
    done: Done,
    rig: RealRig,
    _disk: std::sync::Arc<VhostUserDisk>,
}

impl FrontEnd {
    fn connect(daemon: &Daemon) -> Result<FrontEnd> {
        let uri = format!("vhost-user-blk://{}?io_timeout_ms=300000", daemon.socket.display());
        let disk = VhostUserDisk::connect(&ClientConfig::from_uri(&uri.parse()?)?)?;
        let queue = disk.open_queue(QueueConfig { depth: 8 })?;
        let mut segs = SegTable::new(64);
        let rows = segs.reserve(8, 1)?;
        let rig = RealRig::new(disk.clone(), true);
        Ok(FrontEnd { queue, segs, rows, done: Done::default(), rig, _disk: disk })
    }

    fn write(&mut self, tag: u64, region: &Region) -> Result<()> {
        self.transfer(Io::write, tag, region)
    }

    fn read(&mut self, tag: u64, region: &Region) -> Result<()> {
        self.transfer(Io::read, tag, region)
    }

    fn transfer(&mut self, io: fn(u64, u64, u32, SegSpan) -> Io, tag: u64, region: &Region) -> Result<()> {
        let span = self.rows.span(tag as u32, 1);
        self.segs.get_mut(span)[0] = Segment { offset: 0, region: region.id(), len: LEN };
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        let io = io(tag, 8 * tag, LEN / 512, span);
        self.queue.submit(&mut cx, io).map_err(|r| anyhow::anyhow!("{:?}", r.why))?;
        self.queue.kick(&mut cx);
        Ok(())
    }

    /// What completes within `limit`, as soon as something does; nothing if nothing does.
    fn wait(&mut self, limit: Duration) -> Vec<Completion> {
        let until = Instant::now() + limit;
        let mut waits = Waits::default();
        while Instant::now() < until {
            let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
            self.queue.kick(&mut cx);
            self.queue.poll(&mut cx, &mut self.done);
            if !self.done.completions.is_empty() {
                return self.done.completions.drain(..).collect();
            }
            waits.clear();
            // No sleep for as long as the queue would: the limit is this test's.
            self.queue.arm(&mut cx, &mut waits);
            thread::sleep(Duration::from_millis(1));
        }
        Vec::new()
    }
}

fn region() -> Result<Region> {
    Ok(Region::allocate(LEN.into(), false)?)
}

fn log(daemon: &mut Daemon) -> Result<String> {
    Ok(fs::read_to_string(daemon.process().log())?)
}

fn disk(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.rpc("disk_list", &json!({}))?[0].clone())
}

fn wait_for(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A daemon in a folder; `config` begins with keys of `[daemon]`.
fn start_in(dir: &Path, config: &str) -> Result<Daemon> {
    let (rpc, file) = (dir.join("rpc.sock"), dir.join("polypath.toml"));
    fs::write(&file, format!("[daemon]\nrpc_socket = \"{}\"\n{config}", rpc.display()))?;
    Daemon::start_with(&["-c".to_owned(), file.display().to_string()], dir.join("log"), rpc, dir.join("vm.sock"))
}

/// A disk of memory, and its socket `vm.sock`.
fn with_socket(dir: &Path) -> String {
    let socket = dir.join("vm.sock");
    format!("{WITHOUT_SOCKET}[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n", socket.display())
}

const WITHOUT_SOCKET: &str = "[[disk]]\nname = \"disk\"\npaths = [\"ram://8MiB\"]\n";

/// A front-end octet by octet.
struct Wire(UnixStream);

impl Wire {
    fn connect(socket: &Path) -> Result<Wire> {
        let mut wire = Wire(UnixStream::connect(socket)?);
        wire.0.set_read_timeout(Some(LIMIT))?;
        // REPLY_ACK and CONFIG; VERSION_1, PROTOCOL_FEATURES, FLUSH and CONFIG_WCE.
        wire.send(16, 1, &(1u64 << 3 | 1 << 9).to_ne_bytes())?;
        wire.send(2, 1, &(1u64 << 32 | 1 << 30 | 1 << 9 | 1 << 11).to_ne_bytes())?;
        Ok(wire)
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8]) -> Result<()> {
        let header = [request, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        Ok(self.0.write_all(&[&header, payload].concat())?)
    }

    fn set_writeback(&mut self, on: bool) -> Result<()> {
        let mut payload = [32u32, 1, 0].map(u32::to_ne_bytes).concat();
        payload.push(on.into());
        self.send(25, 1 | 8, &payload)?;
        let mut answer = [0; 20];
        self.0.read_exact(&mut answer)?;
        ensure!(answer[12..] == [0; 8], "refused: {answer:?}");
        Ok(())
    }
}

// No request fails because something ends.

/// A daemon whose only path is silent, and a front-end with a write that waits.
fn without_a_path(lab: &Lab) -> Result<(Target, Daemon, FrontEnd, Region)> {
    let target = Target::start(lab, 1, 16)?;
    let (rpc, socket, file) = (lab.path("rpc.sock"), lab.path("disk.sock"), lab.path("daemon.toml"));
    let text = format!(
        "[daemon]\nrpc_socket = \"{}\"\n[[disk]]\nname = \"disk\"\npaths = [\"{}\"]\nno_path_timeout_ms = -1\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n",
        rpc.display(),
        target.uri(0),
        socket.display()
    );
    fs::write(&file, text)?;
    let daemon = Daemon::start_with(&["-c".to_owned(), file.display().to_string()], lab.log("polypathd"), rpc, socket)?;
    let (mut guest, region) = (FrontEnd::connect(&daemon)?, region()?);
    guest.write(1, &region)?;
    let done = guest.wait(LIMIT);
    ensure!(done.len() == 1 && done[0].status.is_ok(), "{done:?}");
    target.drop_silently(0)?;
    guest.write(2, &region)?;
    wait_for("a write that waits for a path", || Ok(disk(&daemon)?["waiting"].as_u64() > Some(0)))?;
    ensure!(guest.wait(Duration::from_millis(10)).is_empty());
    Ok((target, daemon, guest, region))
}

/// Sends a call and does not wait for its answer.
fn call(daemon: &Daemon, method: &str, params: &Value) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(daemon.rpc_socket())?;
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    stream.write_all(call.to_string().as_bytes())?;
    Ok(stream)
}

impl FrontEnd {
    fn done(&mut self, tag: u64) -> Result<Code> {
        let done = self.wait(LIMIT);
        ensure!(done.len() == 1 && done[0].tag == tag, "{done:?}");
        Ok(done[0].status.code)
    }

    /// A write of block `tag`, which must succeed.
    fn written(&mut self, tag: u64, region: &Region) -> Result<()> {
        self.write(tag, region)?;
        ensure!(self.done(tag)? == Code::Ok);
        Ok(())
    }

    fn flush(&mut self) -> Result<Code> {
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, Io::flush(7)).map_err(|r| anyhow::anyhow!("{:?}", r.why))?;
        self.queue.kick(&mut cx);
        self.done(7)
    }
}
