//! Data bytes, counted where they are copied: none on the way out over TCP, each at most once on the way in.
//!
//! The counter belongs to the thread that copies, so it is read on the reactors themselves, before and after. It sees every copy
//! between private and shared memory that goes through a `View` or says so by `count_copy`. Other means exist; the last test here
//! knows every place that uses one, and fails when another comes.
use std::collections::BTreeMap;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::memory::{CopyCount, copy_count};
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{Buffer, Device, Disk, Group, GroupSpec, Stack, StackConfig, Transfer, block_on, wait_live};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use polypath_tests::lab::repository;

const NQN: &str = "nqn.2026-01.org.polypath:copies";
/// Requests of one size; so many are in flight at a time that several share a send and a receive.
const COUNT: u64 = 64;
const DEPTH: u64 = 32;
const SIZES: [u32; 2] = [4096, 128 << 10];
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn over_tcp_nothing_is_copied_on_the_way_out_and_each_byte_at_most_once_on_the_way_in() -> Result<()> {
    let rig = Rig::start("")?;
    let disk = Disk::builder().device(rig.group.clone()).stack(&rig.stack).open_blocking()?;
    let moved = rig.warm_up(&disk)?;
    for len in SIZES {
        let counted = measure(&disk, &[&rig.stack], len)?;
        counted.expect_zero_copy(len)?;
    }
    rig.check_moved(moved)?;
    rig.end(disk)
}

/// The positive control: a data digest must be that of the bytes that leave, so these are copied once, and the counter sees it.
#[test]
fn with_data_digests_each_byte_is_copied_once_on_the_way_out() -> Result<()> {
    let rig = Rig::start("&ddgst=on")?;
    let disk = Disk::builder().device(rig.group.clone()).stack(&rig.stack).open_blocking()?;
    let moved = rig.warm_up(&disk)?;
    for len in SIZES {
        let counted = measure(&disk, &[&rig.stack], len)?;
        let data = COUNT * u64::from(len);
        let want = CopyCount { copied_in: 0, copied_out: data };
        ensure!(counted.writes == want, "writes of {len} bytes, {data} in all: {:?}", counted.writes);
        ensure!(counted.reads.copied_out == 0 && counted.reads.copied_in == data, "reads: {:?}", counted.reads);
    }
    rig.check_moved(moved)?;
    rig.end(disk)
}

/// The whole way of a guest's data: its memory, the ring, the group, TCP.
#[test]
fn between_a_guest_and_tcp_nothing_more_is_copied() -> Result<()> {
    let rig = Rig::start("")?;
    let scratch = tempfile::tempdir()?;
    let socket = scratch.path().join("disk.sock");
    let mut server =
        Server::start(ServerConfig::new("copies", &socket, rig.group.clone(), rig.stack.hosts())).context("server")?;
    let guest = Stack::start(StackConfig::default())?;
    let uri = format!("vhost-user-blk://{}", socket.display());
    let disk = Disk::builder().uris([uri]).stack(&guest).open_blocking()?;
    let moved = rig.warm_up(&disk)?;
    for len in SIZES {
        let counted = measure(&disk, &[&rig.stack, &guest], len)?;
        counted.expect_zero_copy(len)?;
    }
    rig.check_moved(moved)?;
    block_on(disk.close());
    drop(disk);
    drop(guest);
    server.stop()?;
    rig.group.close();
    rig.target.stop();
    Ok(())
}

/// Where data could be copied without being counted: accesses to shared memory outside a `View`, and copies within private memory on
/// the way between the socket and a view. Every place that has one is here with the number of lines and what it is for; a new one must
/// show that what it copies is no data, or be counted.
#[test]
fn no_other_place_copies() -> Result<()> {
    const WAYS: [&str; 12] = [
        "copy_from_slice",
        "clone_from_slice",
        "extend_from_slice",
        "copy_within",
        "to_vec()",
        ".window()",
        ".copy_to(",
        "copy_nonoverlapping",
        "ptr::copy",
        "from_raw_parts",
        "read_volatile",
        "read_exact",
    ];
    // File (or folder, which ends in a slash), lines, what they copy.
    const KNOWN: [(&str, usize, &str); 15] = [
        ("net/src/list.rs", 1, "vm_copy: counted by its two callers"),
        ("net/src/stream.rs", 1, "send_copy, after EFAULT: counted by Gather::copy_to"),
        ("nvmf-tcp/src/pdu/", 7, "headers: commands, completions, the quote in a terminate request"),
        ("nvmf-tcp/src/proto/receive.rs", 3, "headers and digests that come in pieces"),
        ("nvmf-tcp/src/command.rs", 3, "the ranges of a discard"),
        ("nvmf-tcp/src/queue/mod.rs", 1, "the data of Connect"),
        ("nvmf-tcp/src/admin.rs", 2, "data of admin commands"),
        ("nvmf-tcp/src/attach.rs", 1, "log pages"),
        ("nvmf-tcp/src/config.rs", 2, "a host identifier"),
        ("iscsi/src/pdu/", 11, "headers, their digests, data of a PDU that is at hand"),
        ("iscsi/src/proto/receive.rs", 4, "headers and digests that come in pieces"),
        ("iscsi/src/link.rs", 4, "the login phase"),
        ("scsi/src/midlayer/probe.rs", 1, "a list of pages"),
        ("scsi/src/midlayer/queue/command.rs", 3, "a discard, data and parameters of a probe"),
        ("scsi/src/midlayer/scanner/relay.rs", 2, "data of a command that is passed through"),
    ];
    let root = repository().join("crates");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut files = Vec::new();
    for folder in ["net/src", "nvmf-tcp/src", "iscsi/src", "scsi/src/midlayer", "multipath/src/queue"] {
        collect(&root.join(folder), &mut files)?;
    }
    ensure!(files.len() > 20, "only {} source files were found: the guard guards nothing", files.len());
    for file in files {
        let name = file.strip_prefix(&root)?.display().to_string();
        // Control plane and tests.
        if ["/tests", "/login/", "/chap/", "/discover", "namespace.rs", "fuzzing"]
            .iter()
            .any(|part| name.contains(part))
        {
            continue;
        }
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.trim();
            if !line.starts_with("//") && WAYS.iter().any(|way| line.contains(way)) {
                let key = KNOWN.iter().find(|(k, ..)| name == *k || (k.ends_with('/') && name.starts_with(k)));
                let key = key.map_or(name.as_str(), |(k, ..)| *k).to_owned();
                found.entry(key).or_default().push(format!("{name}:{number}: {line}"));
            }
        }
    }
    let mut faults = Vec::new();
    for (place, lines) in &found {
        let known = KNOWN.iter().find(|(k, ..)| k == place).map_or(0, |(_, n, _)| *n);
        if lines.len() != known {
            faults.push(format!("{place}: {} lines copy, {known} are known:\n  {}", lines.len(), lines.join("\n  ")));
        }
    }
    for (place, ..) in KNOWN.iter().filter(|(k, ..)| !found.contains_key(*k)) {
        faults.push(format!("{place}: copies no more; take it off the list"));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// A target with two listeners, and a group over both.
struct Rig {
    target: TargetHandle,
    stack: Stack,
    group: std::sync::Arc<Group>,
}

impl Rig {
    fn start(options: &str) -> Result<Rig> {
        let mut config = TargetConfig::default();
        config.listeners.extend((0..2).map(|_| ListenerConfig::new("127.0.0.1:0")));
        config.subsystems.push(SubsystemConfig::new(NQN, vec![NamespaceConfig::new("ram://64MiB?bs=4096")]));
        let target = Target::start(config).context("target")?;
        let stack = Stack::start(StackConfig::default())?;
        let uris: Vec<_> = target
            .addresses()
            .iter()
            .map(|a| format!("nvme-tcp://{a}/{NQN}?ns=1{options}").parse())
            .collect::<Result<_, _>>()?;
        let group = stack.open_group(GroupSpec::new("copies", uris))?;
        wait_live(&*group, LIMIT)?;
        let start = Instant::now();
        while group.statistics().iter().any(|p| p.access.is_none()) {
            ensure!(start.elapsed() < LIMIT, "both paths must come up: {:?}", group.statistics());
            std::thread::yield_now();
        }
        Ok(Rig { target, stack, group })
    }

    /// Reads until both paths carry I/O: connecting copies too, and is over then. Returns the bytes moved so far.
    fn warm_up(&self, disk: &Disk) -> Result<u64> {
        let start = Instant::now();
        while self.group.statistics().iter().any(|p| p.ios == 0) {
            ensure!(start.elapsed() < LIMIT, "both paths must carry I/O: {:?}", self.group.statistics());
            all(disk, 4096, |_, buffer| disk.read(0, buffer))?;
        }
        Ok(self.moved())
    }

    fn moved(&self) -> u64 {
        self.group.statistics().iter().map(|p| p.bytes).sum()
    }

    /// The data went over the paths: what was counted is the whole of it.
    fn check_moved(&self, before: u64) -> Result<()> {
        let moved = self.moved() - before;
        let want: u64 = SIZES.iter().map(|&len| 2 * COUNT * u64::from(len)).sum();
        ensure!(moved == want, "{moved} bytes went over the paths, {want} should have");
        Ok(())
    }

    fn end(self, disk: Disk) -> Result<()> {
        block_on(disk.close());
        drop(disk);
        self.group.close();
        drop(self.stack);
        self.target.stop();
        Ok(())
    }
}

/// What all reactors together copied.
#[derive(Debug)]
struct Counted {
    writes: CopyCount,
    reads: CopyCount,
}

impl Counted {
    fn expect_zero_copy(&self, len: u32) -> Result<()> {
        let data = COUNT * u64::from(len);
        println!("{COUNT} writes and reads of {len} bytes, {data} bytes each way: {self:?}");
        ensure!(self.writes == CopyCount::default(), "{data} bytes written in {len}: {:?} copied", self.writes);
        ensure!(self.reads.copied_out == 0, "{data} bytes read in {len}: {:?} copied", self.reads);
        ensure!(self.reads.copied_in <= data, "{data} bytes read in {len}: {:?} copied", self.reads);
        Ok(())
    }
}

/// Writes and reads back [`COUNT`] times `len` bytes, and says what reactors copied meanwhile. What was read is what was written.
fn measure(disk: &Disk, stacks: &[&Stack], len: u32) -> Result<Counted> {
    let before = counts(stacks)?;
    let offset = |i: u64| i * u64::from(len);
    let fill = |i: u64| (i as u8).wrapping_mul(31).wrapping_add(len.leading_zeros() as u8) | 1;
    all(disk, len, |i, mut buffer| {
        buffer.fill(fill(i));
        disk.write(offset(i), buffer)
    })?;
    let between = counts(stacks)?;
    let back = all(disk, len, |i, mut buffer| {
        buffer.fill(0);
        disk.read(offset(i), buffer)
    })?;
    let after = counts(stacks)?;
    for (i, buffer) in (0..).zip(back) {
        ensure!(buffer.to_vec().iter().all(|&byte| byte == fill(i)), "request {i} of {len} bytes read something else");
    }
    let minus = |a: CopyCount, b: CopyCount| CopyCount {
        copied_in: a.copied_in - b.copied_in,
        copied_out: a.copied_out - b.copied_out,
    };
    Ok(Counted { writes: minus(between, before), reads: minus(after, between) })
}

/// Runs [`COUNT`] operations, [`DEPTH`] at a time, and gives their buffers back in order.
fn all(disk: &Disk, len: u32, start: impl Fn(u64, Buffer) -> Transfer) -> Result<Vec<Buffer>> {
    let mut buffers = Vec::new();
    for first in (0..COUNT).step_by(DEPTH as usize) {
        let mut open: Vec<Pin<Box<Transfer>>> = Vec::new();
        for i in first..first + DEPTH {
            open.push(Box::pin(start(i, disk.buffer(len)?)));
        }
        let mut results: Vec<Option<_>> = open.iter().map(|_| None).collect();
        block_on(poll_fn(|cx| {
            for (transfer, result) in open.iter_mut().zip(&mut results) {
                if result.is_none()
                    && let Poll::Ready(ready) = transfer.as_mut().poll(cx)
                {
                    *result = Some(ready);
                }
            }
            if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
        }));
        for (outcome, buffer) in results.into_iter().flatten() {
            outcome?;
            buffers.push(buffer);
        }
    }
    Ok(buffers)
}

/// Asks every reactor for its thread's counter.
fn counts(stacks: &[&Stack]) -> Result<CopyCount> {
    let mut sum = CopyCount::default();
    for reactor in stacks.iter().flat_map(|s| s.reactors()) {
        let (tell, told) = mpsc::sync_channel(1);
        // Whoever asks waits below; should it have given up, nobody misses the answer.
        ensure!(reactor.run(move |_| tell.send(copy_count()).unwrap_or(())), "{reactor:?} has ended");
        let one = told.recv_timeout(LIMIT).context("a reactor does not answer")?;
        sum.copied_in += one.copied_in;
        sum.copied_out += one.copied_out;
    }
    Ok(sum)
}

fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}
