//! The futures' side: data, errors, many threads, dropped futures, limits, closing.

mod common;

use common::Gated;
use polypath::block::{Code, Limits};
use polypath::{Arena, Buffer, CpuList, Disk, Error, Stack, StackConfig, block_on};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

fn stack(reactors: usize) -> Stack {
    let cpus = (reactors > 1).then(|| CpuList(vec![0; reactors]));
    Stack::start(StackConfig { cpus, buffer_bytes: 16 << 20, ..StackConfig::default() }).expect("reactors")
}

fn open(stack: &Stack, uri: &str) -> Disk {
    block_on(Disk::builder().uris(uri).stack(stack).open()).unwrap_or_else(|e| panic!("{uri}: {e}"))
}

fn gated(stack: &Stack, depth: u16, limits: Limits) -> (Disk, Arc<Gated>) {
    let inner = stack.open_device(&"ram://1MiB".parse().unwrap()).unwrap();
    let device = Gated::new(inner, limits);
    let builder = Disk::builder().device(device.clone()).stack(stack).depth(depth);
    (block_on(builder.open()).expect("a gated disk"), device)
}

/// Waits for something another thread does, at most ten seconds.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
        std::thread::yield_now();
    }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counting() -> (Waker, Arc<Count>) {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    (Waker::from(count.clone()), count)
}

#[test]
fn what_was_written_is_read() {
    let stack = stack(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    for uri in ["ram://4MiB?bs=4096".to_owned(), format!("file://{}?bs=4096", file.path().display())] {
        let disk = open(&stack, &uri);
        assert_eq!((disk.size(), disk.geometry().block_size), (4 << 20, 4096));
        block_on(async {
            let mut buffer = disk.buffer(64 << 10).unwrap();
            let data: Vec<u8> = (0..65536u32).map(|n| ((n * 7) >> 3) as u8).collect();
            buffer.write_at(0, &data).unwrap();
            let (result, mut buffer) = disk.write(8192, buffer).await;
            result.unwrap();
            buffer.fill(0);
            let (result, buffer) = disk.read(8192, buffer).await;
            result.unwrap();
            assert!(buffer.to_vec() == data, "{uri}: read differs from what was written");
            disk.flush().await.unwrap();
            let (result, buffer) = disk.compare(8192, buffer).await;
            result.unwrap();
            let (result, buffer) = disk.compare(4096, buffer).await;
            assert_eq!(result.unwrap_err().code(), Some(Code::Miscompare));
            let (result, buffer) = disk.write_durable(0, buffer).await;
            result.unwrap();
            disk.write_zeroes(0, 4096).await.unwrap();
            disk.discard(1 << 20, 1 << 20).await.unwrap();
            let (result, buffer) = disk.read(0, buffer).await;
            result.unwrap();
            assert!(buffer.to_vec()[..4096].iter().all(|&b| b == 0) && buffer.to_vec()[4096..] == data[4096..]);
        });
    }
}

#[test]
fn errors_say_what_was_wrong_and_give_the_buffer_back() {
    let stack = stack(1);
    let disk = open(&stack, "ram://1MiB?bs=4096");
    let buffer = disk.buffer(4096).unwrap();
    let (result, buffer) = block_on(disk.read(512, buffer));
    assert!(result.unwrap_err().to_string().contains("4096"));
    let (result, buffer) = block_on(disk.write(1 << 20, buffer));
    assert!(matches!(result, Err(Error::OutOfRange { size: 0x10_0000, .. })), "{result:?}");
    let result = block_on(disk.discard(0, 0));
    assert!(matches!(result, Err(Error::Misaligned { .. })), "{result:?}");
    let result = block_on(disk.discard(u64::MAX - 4095, 4096));
    assert!(matches!(result, Err(Error::OutOfRange { .. })), "{result:?}");
    block_on(disk.close());
    let (result, _) = block_on(disk.read(0, buffer));
    assert!(matches!(result, Err(Error::Closed { .. })), "{result:?}");
    let error = |uri: &str| block_on(Disk::builder().uris(uri).stack(&stack).open()).expect_err(uri).to_string();
    assert!(error("nvme-pcie://0000:01:00.0").contains("no driver for nvme-pcie"));
    assert!(error("iscsi://h/iqn/0").contains("no iSCSI name"));
    assert!(error("ram:/x").contains("scheme"));
    assert!(block_on(Disk::open(Vec::<polypath::DiskUri>::new())).unwrap_err().to_string().contains("no URI"));
}

#[test]
fn a_dropped_future_leaves_its_buffer_with_the_device() {
    let stack = stack(1);
    let (disk, device) = gated(&stack, 8, Limits::UNLIMITED);
    let arena = Arena::new(4096, false).unwrap();
    let mut buffer = Buffer::new(&arena, 4096).unwrap();
    buffer.fill(0x5a);
    device.gate.shut.store(true, Ordering::SeqCst);
    let (waker, woken) = counting();
    {
        let mut write = pin!(disk.write(0, buffer));
        assert!(write.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        until("the write reaching the device", || device.gate.held.load(Ordering::SeqCst) == 1);
    }
    // The only chunk of the arena is still with the device, so nobody else can scribble over it.
    assert!(matches!(Buffer::new(&arena, 4096), Err(Error::NoBuffer { .. })));
    device.gate.shut.store(false, Ordering::SeqCst);
    let mut again = None;
    until("the buffer coming back", || {
        again = Buffer::new(&arena, 4096).ok();
        again.is_some()
    });
    // The write was carried out with what was in the buffer.
    let (result, buffer) = block_on(disk.read(0, disk.buffer(4096).unwrap()));
    result.unwrap();
    assert!(buffer.to_vec().iter().all(|&b| b == 0x5a));
    assert!(woken.0.load(Ordering::SeqCst) <= 1);
}

#[test]
fn a_future_that_was_never_polled_does_nothing() {
    let stack = stack(1);
    let (disk, device) = gated(&stack, 8, Limits::UNLIMITED);
    drop(disk.write(0, disk.buffer(512).unwrap()));
    block_on(disk.flush()).unwrap();
    assert_eq!(device.gate.submitted.load(Ordering::SeqCst), 1, "only the flush");
}

#[test]
fn many_threads_share_one_disk() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 300;
    let stack = stack(2);
    let disk = block_on(Disk::builder().uris("ram://8MiB").stack(&stack).depth(2).open()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let disk = disk.clone();
            scope.spawn(move || {
                let mut buffer = disk.buffer(4096).unwrap();
                for round in 0..ROUNDS {
                    let at = thread * (1 << 20) + (round * 37 % 256) * 4096;
                    let byte = (thread * 31 + round) as u8;
                    buffer.fill(byte);
                    let (result, mut back) = block_on(disk.write(at, buffer));
                    result.unwrap();
                    back.fill(!byte);
                    let (result, back) = block_on(disk.read(at, back));
                    result.unwrap();
                    assert!(back.to_vec().iter().all(|&b| b == byte), "thread {thread}, round {round}");
                    buffer = back;
                }
            });
        }
    });
}

#[test]
fn futures_wait_in_line_and_all_get_their_turn() {
    const DEPTH: usize = 4;
    const FUTURES: usize = 100;
    let stack = stack(1);
    let (disk, device) = gated(&stack, DEPTH as u16, Limits::UNLIMITED);
    device.gate.shut.store(true, Ordering::SeqCst);
    let (waker, woken) = counting();
    let mut cx = Context::from_waker(&waker);
    let mut open: Vec<_> =
        (0..FUTURES).map(|n| Box::pin(disk.write(n as u64 * 512, disk.buffer(512).unwrap()))).collect();
    open.iter_mut().for_each(|f| assert!(f.as_mut().poll(&mut cx).is_pending()));
    until("a full device", || device.gate.held.load(Ordering::SeqCst) == DEPTH);
    // Some lose patience: in line, in the channel, and with the device.
    for n in [90, 50, 5, 0] {
        drop(open.remove(n));
    }
    device.gate.shut.store(false, Ordering::SeqCst);
    let start = Instant::now();
    while !open.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "{} never completed", open.len());
        let seen = woken.0.load(Ordering::SeqCst);
        open.retain_mut(|f| match f.as_mut().poll(&mut cx) {
            Poll::Pending => true,
            Poll::Ready((result, _)) => {
                result.unwrap();
                false
            }
        });
        // Wakers only: without one, nothing more would come.
        until("a wake-up", || open.is_empty() || woken.0.load(Ordering::SeqCst) > seen);
    }
    assert!(device.gate.most.load(Ordering::SeqCst) <= DEPTH);
}

#[test]
fn large_operations_are_split_at_the_limits() {
    let stack = stack(1);
    let limits = Limits { max_transfer_bytes: 4096, max_discard_blocks: 16, ..Limits::UNLIMITED };
    let (disk, device) = gated(&stack, 4, limits);
    let mut buffer = disk.buffer(256 << 10).unwrap();
    let data: Vec<u8> = (0..256u32 << 10).map(|n| (n / 511) as u8).collect();
    buffer.write_at(0, &data).unwrap();
    let (result, mut buffer) = block_on(disk.write(512, buffer));
    result.unwrap();
    assert_eq!(device.gate.submitted.load(Ordering::SeqCst), 64);
    buffer.fill(0);
    let (result, buffer) = block_on(disk.read(512, buffer));
    result.unwrap();
    assert!(buffer.to_vec() == data);
    block_on(disk.discard(0, 1 << 20)).unwrap();
    assert_eq!(device.gate.submitted.load(Ordering::SeqCst), 64 + 64 + 128);
    let huge = open(&stack, "null://8TiB");
    block_on(huge.discard(0, 8 << 40)).unwrap();
}

#[test]
fn what_is_under_way_completes_when_the_disk_goes() {
    let stack = stack(1);
    let (disk, device) = gated(&stack, 8, Limits::UNLIMITED);
    device.gate.shut.store(true, Ordering::SeqCst);
    let (waker, _) = counting();
    let mut cx = Context::from_waker(&waker);
    let mut write = Box::pin(disk.write(0, disk.buffer(512).unwrap()));
    assert!(write.as_mut().poll(&mut cx).is_pending());
    let mut closing = pin!(disk.close());
    assert!(closing.as_mut().poll(&mut cx).is_pending(), "closed with a write under way");
    until("the write reaching the device", || device.gate.held.load(Ordering::SeqCst) == 1);
    device.gate.shut.store(false, Ordering::SeqCst);
    block_on(closing);
    let (result, _) = block_on(write);
    result.unwrap();
    drop(disk);
    drop(stack);
}

#[test]
fn a_stack_waits_for_what_is_under_way() {
    let stack = stack(1);
    let (disk, device) = gated(&stack, 8, Limits::UNLIMITED);
    device.gate.shut.store(true, Ordering::SeqCst);
    let mut write = Box::pin(disk.write(0, disk.buffer(512).unwrap()));
    let (waker, _) = counting();
    assert!(write.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    until("the write reaching the device", || device.gate.held.load(Ordering::SeqCst) == 1);
    let gate = device.gate.clone();
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        gate.shut.store(false, Ordering::SeqCst);
    });
    drop((write, disk, stack));
    assert_eq!(device.gate.held.load(Ordering::SeqCst), 0, "the stack went before its I/O");
    opener.join().unwrap();
}

#[test]
fn paths_to_one_medium_are_one_disk() {
    let stack = stack(2);
    let uri = "ram://1MiB?uuid=11111111-2222-4333-8444-555555555555";
    let open =
        |uris: [String; 2]| block_on(Disk::builder().uris(uris).stack(&stack).timeout(Duration::from_secs(5)).open());
    let named = |n: u8| format!("{uri}&nguid={:032x}", n);
    let disk = open([named(1), format!("{}&readonly=off", named(1))]).expect("two paths");
    let mut buffer = disk.buffer(4096).unwrap();
    for round in 0..50u8 {
        buffer.fill(round);
        let (result, mut back) = block_on(disk.write(0, buffer));
        result.unwrap();
        back.fill(!round);
        let (result, back) = block_on(disk.read(0, back));
        result.unwrap();
        assert!(back.to_vec().iter().all(|&b| b == round));
        buffer = back;
    }
    let twice = open([named(1), named(1)]).unwrap_err();
    assert!(twice.to_string().contains("name"), "{twice}");
    block_on(disk.close());
    drop((disk, buffer));
    assert!(stack.stop(Duration::from_secs(5)), "pollers were left behind");
}

#[test]
fn operations_wait_for_a_queue_that_is_being_connected_and_fail_when_the_device_is_lost() {
    let stack = stack(1);
    let (disk, device) = gated(&stack, 4, Limits::UNLIMITED);
    device.gate.down.store(true, Ordering::SeqCst);
    let (waker, _) = counting();
    let mut cx = Context::from_waker(&waker);
    let mut write = Box::pin(disk.write(0, disk.buffer(512).unwrap()));
    assert!(write.as_mut().poll(&mut cx).is_pending());
    let reactor = &stack.reactors()[0];
    let turns = reactor.statistics().turns;
    until("turns without an answer", || reactor.statistics().turns > turns + 3);
    assert!(write.as_mut().poll(&mut cx).is_pending(), "it must wait while the device says it is live");
    device.gate.down.store(false, Ordering::SeqCst);
    block_on(write).0.unwrap();
    device.gate.down.store(true, Ordering::SeqCst);
    device.gate.lost.store(true, Ordering::SeqCst);
    device.gate.version.fetch_add(1, Ordering::SeqCst);
    let (result, _) = block_on(disk.read(0, disk.buffer(512).unwrap()));
    assert_eq!(result.unwrap_err().code(), Some(Code::PathLost));
    let (busy, start) = (reactor.statistics().turns, Instant::now());
    until("an idle reactor", || start.elapsed() > Duration::from_millis(50));
    assert!(reactor.statistics().turns - busy < 50_000, "a lost device must not keep the reactor spinning");
}

#[test]
fn writes_nobody_waits_for_reach_a_group_that_is_let_go() {
    let stack = stack(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    // Two paths to one file, which is also opened again while writes are under way.
    let uri = format!("file://{}?lock=off&bs=4096", file.path().display());
    for round in 1..=20u8 {
        let disk =
            block_on(Disk::builder().uris([format!("{uri}&direct=off"), uri.clone()]).stack(&stack).open()).unwrap();
        for n in 0..32 {
            let mut buffer = disk.buffer(4096).unwrap();
            buffer.fill(round);
            let mut write = pin!(disk.write(n * 4096, buffer));
            let (waker, _) = counting();
            let _ = write.as_mut().poll(&mut Context::from_waker(&waker));
        }
        // The last clone: what is under way goes on.
        drop(disk);
        let written = || std::fs::read(file.path()).unwrap()[..32 * 4096].iter().all(|&b| b == round);
        until("the last of the writes", written);
    }
}
