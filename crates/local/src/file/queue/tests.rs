//! A queue over a kernel that answers what a test likes: parts, errors, and what no kernel should.

use super::*;
use crate::FileDevice;
use crate::file::engine::Scripted;
use crate::testing::RealRig;
use polypath_block::contract::Rig as _;
use polypath_block::{Completion, QueueConfig, SegSpan, Time};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

const DISK: u64 = 1 << 20;
const BLOCK: u32 = 512;

struct Rig {
    queue: FileQueue,
    segs: SegTable,
    memory: RealRig,
    done: Done,
    settled: Rc<Cell<u32>>,
    _file: tempfile::NamedTempFile,
}

impl Rig {
    fn new(depth: u16) -> Rig {
        Rig::aligned(depth, 1)
    }

    /// Over a file that takes only memory and lengths that are multiples of `align`.
    fn aligned(depth: u16, align: usize) -> Rig {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK).unwrap();
        let device =
            FileDevice::open(&format!("file://{}?direct=off", file.path().display()).parse().unwrap()).unwrap();
        let (open, depth) = device.base.open(QueueConfig { depth }).unwrap();
        let script = Scripted::default();
        let settled = script.settled.clone();
        let fd = device.file.fd.try_clone().unwrap();
        let (memory_align, offset_align, direct) = (align, align, align > 1);
        let engine = crate::file::FileEngine::Auto;
        let opened = File { fd, block_device: false, direct, memory_align, offset_align, engine, _used: None };
        let queue = FileQueue::new(open, Arc::new(opened), Engine::Scripted(script), None, depth);
        let (segs, done) = (SegTable::new(1024), Done::with_capacity(depth.into()));
        Rig { queue, segs, memory: RealRig::new(device, true), done, settled, _file: file }
    }

    fn script(&mut self) -> &mut Scripted {
        match &mut self.queue.engine {
            Engine::Scripted(script) => script,
            _ => unreachable!("made with a script"),
        }
    }

    fn span(&mut self, len: u32, pieces: u32) -> SegSpan {
        self.memory.memory(&mut self.segs, len, pieces)
    }

    fn submit(&mut self, io: Io) -> Result<(), RefusedWhy> {
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|refused| refused.why)
    }

    fn kick(&mut self) {
        self.queue.kick(&mut Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 });
    }

    fn poll(&mut self) -> Vec<Completion> {
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        self.queue.poll(&mut cx, &mut self.done);
        std::mem::take(&mut self.done.completions)
    }

    /// The one job that was handed over since the last time.
    fn job(&mut self) -> Job {
        let sent = std::mem::take(&mut self.script().sent);
        assert_eq!((sent.len(), self.script().waiting.len()), (1, 0), "one job, and it has left");
        sent[0]
    }

    /// Answers the one job that was handed over, and polls.
    fn answer(&mut self, result: i32) -> Vec<Completion> {
        let job = self.job();
        self.script().answers.push((job.user, result));
        self.poll()
    }
}

/// The addresses that a job names, byte by byte.
fn bytes_of(job: &Job) -> Vec<usize> {
    // SAFETY: the job is open, and so its vectors are in place.
    let vectors = unsafe { std::slice::from_raw_parts(job.iov, job.iov_len as usize) };
    vectors.iter().flat_map(|v| (0..v.iov_len).map(|n| v.iov_base as usize + n)).collect()
}

fn ended(completions: &[Completion]) -> Vec<(u64, Code, u32)> {
    completions.iter().map(|c| (c.tag, c.status.code, c.status.detail)).collect()
}

/// Wherever the kernel stops, it is asked for the rest, in the same turn, and for nothing else.
#[test]
fn a_transfer_goes_on_where_the_kernel_has_stopped() {
    for write in [false, true] {
        for stop in [1, 511, 4095, 4096, 4097, 8191] {
            let mut rig = Rig::new(4);
            let span = rig.span(8192 + 512, 3);
            let io = Io { skip: 512, ..Io::read(7, 5, 16, span) };
            rig.submit(if write { Io { op: Op::Write, ..io } } else { io }).unwrap();
            rig.kick();
            let whole = rig.job();
            let addresses = bytes_of(&whole);
            assert_eq!((whole.offset, whole.len, addresses.len()), (5 * 512, 8192, 8192));
            rig.script().answers.push((whole.user, stop));
            assert_eq!(rig.poll(), [], "{stop} of 8192 bytes");
            let rest = rig.job();
            assert_eq!((rest.offset, rest.len), (5 * 512 + stop as u64, 8192 - stop as u64));
            assert_eq!(bytes_of(&rest), addresses[stop as usize..]);
            rig.script().answers.push((rest.user, 8192 - stop));
            assert_eq!(ended(&rig.poll()), [(7, Code::Ok, 0)]);
        }
    }
}

/// Zeroes that must be written go on likewise, up to their end.
#[test]
fn zeroes_that_are_written_go_on_where_the_kernel_has_stopped() {
    let mut rig = Rig::new(1);
    rig.submit(Io::range(1, Op::WriteZeroes, 8, 300).with_flags(Flags::UNMAP | Flags::FUA)).unwrap();
    rig.kick();
    let refused = -libc::EOPNOTSUPP;
    for mode in [PUNCH, ZERO] {
        let job = rig.job();
        assert_eq!((job.call, job.offset, job.len), (Call::Allocate { mode }, 4096, 153_600));
        rig.script().answers.push((job.user, refused));
        assert_eq!(rig.poll(), []);
    }
    for (from, moved) in [(0, 100), (100, 70_000), (70_100, 83_500)] {
        let job = rig.job();
        assert_eq!((job.call, job.offset), (Call::Write { durable: true }, 4096 + from));
        assert_eq!(bytes_of(&job).len() as u64, 153_600 - from, "no more than the range");
        rig.script().answers.push((job.user, moved));
        let ended = ended(&rig.poll());
        assert_eq!(ended, if from == 70_100 { vec![(1, Code::Ok, 0)] } else { vec![] });
    }
    // What was refused once is not asked again.
    rig.submit(Io::range(2, Op::WriteZeroes, 8, 1).with_flags(Flags::UNMAP)).unwrap();
    rig.kick();
    let job = rig.job();
    assert_eq!(job.call, Call::Write { durable: false });
    rig.script().answers.push((job.user, 512));
    assert_eq!(ended(&rig.poll()), [(2, Code::Ok, 0)]);
}

/// Zeroes by allocation that are to be durable are made so, and an error of that is theirs.
#[test]
fn zeroes_with_fua_end_with_a_sync() {
    for (result, code) in [(0, Code::Ok), (-libc::EIO, Code::Medium)] {
        let mut rig = Rig::new(1);
        rig.submit(Io::range(1, Op::WriteZeroes, 8, 8).with_flags(Flags::FUA)).unwrap();
        rig.kick();
        assert_eq!(rig.answer(0), [], "not durable yet");
        let sync = rig.job();
        assert_eq!(sync.call, Call::Sync);
        rig.script().answers.push((sync.user, result));
        assert_eq!(ended(&rig.poll()), [(1, code, (-result) as u32)]);
    }
}

/// Interruptions are no errors, unless nothing but they come: what has moved something begins anew.
#[test]
fn a_call_is_interrupted_so_often_and_no_more() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let mut rig = Rig::new(1);
        let span = rig.span(8192, 1);
        rig.submit(Io::read(3, 0, 16, span)).unwrap();
        rig.kick();
        for part in [4096, 4095] {
            for n in 0..RETRIES {
                assert_eq!(rig.answer(-errno), [], "interruption {n}");
            }
            assert_eq!(rig.answer(part), []);
        }
        for n in 0..RETRIES {
            assert_eq!(rig.answer(-errno), [], "interruption {n}");
        }
        assert_eq!(ended(&rig.answer(-errno)), [(3, Code::Medium, errno as u32)]);
    }
}

#[test]
fn an_error_says_what_it_is() {
    let read = |result| {
        let mut rig = Rig::new(1);
        let span = rig.span(8192, 1);
        rig.submit(Io::read(1, 0, 16, span)).unwrap();
        rig.kick();
        assert_eq!(rig.answer(4096), []);
        ended(&rig.answer(result))
    };
    let write = |result| {
        let mut rig = Rig::new(1);
        let span = rig.span(8192, 1);
        rig.submit(Io::write(1, 0, 16, span)).unwrap();
        rig.kick();
        assert_eq!(rig.answer(4096), []);
        ended(&rig.answer(result))
    };
    assert_eq!((read(0), write(0)), (vec![(1, Code::Medium, 0)], vec![(1, Code::NoSpace, 0)]), "no more can be moved");
    for (errno, code) in [
        (libc::ENOSPC, Code::NoSpace),
        (libc::EDQUOT, Code::NoSpace),
        (libc::EROFS, Code::WriteProtected),
        (libc::EIO, Code::Medium),
        (libc::EINVAL, Code::Medium),
        (libc::ENODEV, Code::Gone),
        (libc::EFAULT, Code::BadMemory),
    ] {
        assert_eq!(write(-errno), [(1, code, errno as u32)]);
    }
    let mut rig = Rig::new(1);
    rig.submit(Io::range(1, Op::Discard, 0, 8)).unwrap();
    rig.kick();
    assert_eq!(ended(&rig.answer(-libc::EOPNOTSUPP)), [(1, Code::Unsupported, libc::EOPNOTSUPP as u32)]);
}

/// More than was asked for, and answers to nobody: no kernel says so, and nothing comes of it.
#[test]
fn a_kernel_that_talks_nonsense_harms_nobody() {
    let mut rig = Rig::new(2);
    let span = rig.span(8192, 1);
    rig.submit(Io::read(1, 0, 8, span)).unwrap();
    rig.kick();
    let job = rig.job();
    rig.script().answers.extend([(job.user ^ 1, 4096), (job.user, i32::MAX), (job.user, 4096)]);
    assert_eq!(ended(&rig.poll()), [(1, Code::Ok, 0)]);
    rig.submit(Io::read(2, 0, 8, span)).unwrap();
    rig.kick();
    let next = rig.job();
    assert_ne!(next.user, job.user, "an answer that comes late is not taken for one of another request");
    rig.script().answers.push((job.user, 4096));
    assert_eq!(rig.poll(), []);
    rig.script().answers.push((next.user, 4096));
    assert_eq!(ended(&rig.poll()), [(2, Code::Ok, 0)]);
}

/// Memory that the kernel may touch stays, whoever lets go of its region; what is answered holds nothing.
#[test]
fn memory_is_held_for_as_long_as_the_kernel_may_touch_it() {
    let mut rig = Rig::new(2);
    let region = polypath_memory::Region::allocate(4096, false).unwrap();
    let span = rig.span(4096, 1);
    (rig.segs.get_mut(span)[0].region, rig.segs.get_mut(span)[0].offset) = (region.id(), 0);
    rig.submit(Io::write(1, 0, 8, span)).unwrap();
    rig.kick();
    let pins = |rig: &Rig| rig.queue.slot_buffers.iter().map(|b| b.pins.len()).sum::<usize>();
    assert_eq!(pins(&rig), 1);
    drop(region);
    let job = rig.job();
    // SAFETY: the queue holds the memory, which is what is tested: without that this ends with a signal.
    let byte = unsafe { std::ptr::read_volatile((*job.iov).iov_base.cast::<u8>()) };
    assert_eq!(byte, 0);
    // Part of it has moved; of the rest nothing can be reached any more.
    rig.script().answers.push((job.user, 512));
    assert_eq!(ended(&rig.poll()), [(1, Code::BadMemory, 0)]);
    assert_eq!(pins(&rig), 0, "nobody touches it any more");
}

#[test]
fn a_queue_that_is_dropped_waits_for_the_kernel() {
    let mut rig = Rig::new(2);
    let span = rig.span(4096, 1);
    rig.submit(Io::write(1, 0, 8, span)).unwrap();
    let settled = rig.settled.clone();
    assert_eq!(settled.get(), 0);
    drop(rig);
    assert_eq!(settled.get(), 1);
}

/// What is refused at once takes a place in the list of completions, which never grows.
#[test]
fn a_queue_takes_as_many_as_it_can_tell_the_end_of() {
    let mut rig = Rig::new(2);
    let span = rig.span(4096, 1);
    let outside = Io::read(1, DISK / u64::from(BLOCK), 8, span);
    assert_eq!(rig.submit(outside), Ok(()));
    assert_eq!(rig.submit(Io::read(2, 0, 8, span)), Ok(()));
    assert_eq!(rig.submit(outside), Err(RefusedWhy::Full));
    assert_eq!(rig.submit(Io::read(3, 0, 8, span)), Err(RefusedWhy::Full));
    rig.kick();
    assert_eq!(ended(&rig.poll()), [(1, Code::OutOfRange, 0)]);
    assert_eq!(ended(&rig.answer(4096)), [(2, Code::Ok, 0)]);
}

/// Memory that begins where the file does not want it, behind some that suits it.
#[test]
fn memory_that_does_not_suit_the_file_goes_through_a_buffer_of_ours() {
    for write in [false, true] {
        let mut rig = Rig::aligned(1, 512);
        let span = rig.span(8192, 2);
        let straight = Io::read(1, 0, 16, span);
        rig.submit(straight).unwrap();
        rig.kick();
        assert_eq!(rig.job().iov_len, 2, "each piece suits it");
        let user = rig.queue.slots.key_at(0).unwrap().as_u32();
        rig.script().answers.push((user, 8192));
        assert_eq!(ended(&rig.poll()), [(1, Code::Ok, 0)]);

        rig.segs.get_mut(span)[1].offset += 1;
        let data: Vec<u8> = (0..8192u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
        if write {
            rig.memory.fill(&rig.segs, span, &data);
        }
        rig.submit(if write { Io { op: Op::Write, ..straight } } else { straight }).unwrap();
        rig.kick();
        let job = rig.job();
        assert_eq!((job.iov_len, bytes_of(&job).len()), (1, 8192), "one buffer, and nothing beside it");
        for (address, byte) in bytes_of(&job).into_iter().zip(&data) {
            // SAFETY: the job is open: its memory is there, and only the kernel, which is us, may touch it.
            let cell = unsafe { std::sync::atomic::AtomicU8::from_ptr(address as *mut u8) };
            match write {
                true => assert_eq!(cell.load(Relaxed), *byte),
                false => cell.store(*byte, Relaxed),
            }
        }
        rig.script().answers.push((job.user, 8192));
        assert_eq!(ended(&rig.poll()), [(1, Code::Ok, 0)]);
        assert_eq!(rig.memory.bytes(&rig.segs, span, 8192), data);
    }
}
