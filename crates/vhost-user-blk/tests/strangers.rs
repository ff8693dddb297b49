//! Descriptors and sizes of a front-end that means harm: what it takes from others, and whether the server still ends when it is told to.

use crate::common::client::{Client, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, IN, serve};
use crate::common::fds::{lingering, send_with};
use crate::common::ram::RamDevice;
use polypath_block::Limits;
use polypath_memory::FOREIGN_LIMIT;
use rustix::net::SendFlags;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;

/// In a process of its own: it takes all the address space there is.
#[test]
fn one_front_end_leaves_room_for_the_memory_of_others() {
    const NAME: &str = "strangers::one_front_end_leaves_room_for_the_memory_of_others";
    if std::env::var_os("POLYPATH_ALL_MEMORY").is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", NAME, "--nocapture"]).env("POLYPATH_ALL_MEMORY", "1").output().unwrap();
        return assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let disk = || RamDevice::new(512, 4096, Limits::UNLIMITED);
    let (hostile, neighbour) = (serve(disk(), |_| ()), serve(disk(), |_| ()));
    let mut client = Client::connect(hostile.server.socket_path(), ALL, 1, 64);
    client.set_more_features(VhostUserProtocolFeatures::LOG_SHMFD);
    let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let size = FOREIGN_LIMIT - (6 << 20);
    rustix::fs::ftruncate(&file, size).unwrap();
    // Where written pages would be marked, of a guest that had two million terabytes.
    let log = VhostUserDirtyLogRegion { mmap_size: size, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
    let taken = client.fe.set_log_base(0, Some(log)).is_ok();
    let mut other = Client::connect(neighbour.server.socket_path(), ALL, 1, 64);
    assert_eq!(other.run(0, IN, 0, &mut [0; 512]), 0);
    assert!(!taken, "a guest has a quarter at most");
}

/// SET_VRING_ERR of vring 0, with `fds`.
fn send_err(path: &Path, fds: &[BorrowedFd<'_>]) -> UnixStream {
    let mut front_end = UnixStream::connect(path).unwrap();
    let header = [14u32, 1, 8].map(u32::to_ne_bytes).concat();
    // It may be refused before it has said anything, while the one before it is still being left, or have gone by the header.
    let _ = send_with(&front_end, &header, fds, SendFlags::empty());
    let _ = front_end.write_all(&0u64.to_ne_bytes());
    front_end
}

/// Descriptors that take long to close pile up: the next front-end waits until there is room again, and is served then. Whoever stops the
/// server does not wait.
#[test]
fn who_comes_after_descriptors_that_take_long_to_close_is_served_in_the_end() {
    let mut served = serve(RamDevice::new(512, 4096, Limits::UNLIMITED), |c| c.drain_timeout = Duration::from_secs(1));
    let path = served.server.socket_path().to_owned();
    let file = rustix::fs::memfd_create("no eventfd", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let pile_up = || {
        let (lingers, listener, reads_nothing) = lingering();
        let first = send_err(&path, &[lingers.as_fd()]);
        // At once: whoever closes it last waits.
        drop((lingers, first));
        for _ in 0..10 {
            let mut front_end = send_err(&path, &[file.as_fd(); 8]);
            front_end.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            // Until it is refused, or left to wait.
            let _ = front_end.read(&mut [0; 1]);
        }
        (listener, reads_nothing)
    };
    let (_listener, reads_nothing) = pile_up();
    let (tell, told) = mpsc::channel();
    let at = path.clone();
    std::thread::spawn(move || {
        let mut client = Client::connect(&at, ALL, 1, 64);
        let _ = tell.send(client.run(0, IN, 0, &mut [0; 512]));
    });
    assert!(told.recv_timeout(Duration::from_millis(500)).is_err(), "there is no room");
    // What is unread resets the connection, and the close ends.
    drop(reads_nothing);
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(0));
    let _held = pile_up();
    served.server.stop().unwrap();
}

/// Another front-end hears at once that there is one; that one is served meanwhile and afterwards.
#[test]
fn another_front_end_is_refused_and_costs_the_first_nothing() {
    let served = serve(RamDevice::new(512, 4096, Limits::UNLIMITED), |_| ());
    let mut client = Client::connect(served.server.socket_path(), ALL, 1, 64);
    for _ in 0..3 {
        let mut other = UnixStream::connect(served.server.socket_path()).unwrap();
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(other.read(&mut [0; 1]).unwrap(), 0, "it would wait for ever");
        assert_eq!(client.run(0, IN, 0, &mut [0; 512]), 0);
    }
}

/// Whoever closes the last descriptor of a TCP connection that lingers waits for its peer. A server that is told to stop has a limit.
#[test]
fn a_descriptor_whose_close_waits_does_not_keep_the_server_from_ending() {
    let mut served = serve(RamDevice::new(512, 4096, Limits::UNLIMITED), |c| c.drain_timeout = Duration::from_secs(1));
    let (lingers, _listener, _reads_nothing) = lingering();
    let _front_end = send_err(served.server.socket_path(), &[lingers.as_fd()]);
    drop(lingers);
    std::thread::sleep(Duration::from_millis(500));
    let (tell, stopped) = mpsc::channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        let outcome = served.server.stop().map_err(|e| e.to_string());
        let _ = tell.send((outcome, begun.elapsed()));
        std::mem::forget(served);
    });
    let ended = stopped.recv_timeout(Duration::from_secs(15));
    assert!(ended.is_ok(), "a stop of at most a second is held up by a descriptor of the front-end");
}

/// Messages in any order, with sizes, indices, addresses and descriptors that are right, nearly right, or neither, over memory with rings of
/// random octets: whatever comes of it, the next front-end is served.
#[test]
fn random_messages_end_nothing_but_their_connection() {
    let seeds: u64 = std::env::var("POLYPATH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let served = serve(RamDevice::new(512, 4096, Limits::UNLIMITED), |c| (c.num_queues, c.queue_size) = (3, 1024));
    let path = served.server.socket_path().to_owned();
    for seed in 0..seeds {
        random_front_end(&path, seed);
        if seed % 10 == 9 {
            let mut next = Client::connect(&path, ALL, 1, 64);
            assert_eq!(next.run(0, IN, 0, &mut [0; 512]), 0, "after seed {seed}");
        }
    }
}

fn random_front_end(path: &std::path::Path, seed: u64) {
    use crate::common::ram::Rng;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fd::OwnedFd;
    const LEN: u64 = 0x10_0000;
    let mut rng = Rng(seed);
    let memory = || {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, LEN).unwrap();
        file
    };
    let (guest, record) = (memory(), memory());
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let send = |stream: &mut UnixStream, request: u32, flags: u32, payload: &[u8], fds: &[&OwnedFd]| {
        let header = [request, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        }
        let whole = [&header, payload].concat();
        rustix::net::sendmsg(&*stream, &[IoSlice::new(&whole)], &mut control, rustix::net::SendFlags::NOSIGNAL).is_ok()
    };
    let words = |words: &[u64]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
    let state = |index: u32, n: u32| [index.to_ne_bytes(), n.to_ne_bytes()].concat();
    let packed = rng.one_in(2);
    let features =
        1u64 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9 | 1 << 11 | 1 << 26 | if packed { 1 << 34 } else { 0 };
    send(&mut stream, 16, 1, &words(&[1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15]), &[]);
    send(&mut stream, 2, 1, &words(&[features]), &[]);
    send(&mut stream, 5, 1, &words(&[1, 0x10_0000, LEN, 0x7000_0000, 0]), &[&guest]);
    for _ in 0..rng.below(120) + 20 {
        // Something plausible or random in the rings.
        for _ in 0..rng.below(40) {
            let at = rng.below(LEN / 16) * 16;
            let desc = [0x10_0000 + rng.below(LEN), rng.next() & 0x8087_0007_0000_ffff];
            let bytes = if rng.one_in(3) { words(&[rng.next(), rng.next()]) } else { words(&desc) };
            rustix::io::pwrite(&guest, &bytes, if rng.one_in(2) { at % 0x8000 } else { at }).unwrap();
        }
        for _ in 0..rng.below(6) {
            let bytes = if rng.one_in(2) { rng.below(4).to_ne_bytes() } else { rng.next().to_ne_bytes() };
            let at = if rng.one_in(2) { rng.below(64) * 8 } else { rng.below(LEN / 8) * 8 };
            rustix::io::pwrite(&record, &bytes, at).unwrap();
        }
        let index = if rng.one_in(20) { rng.next() as u32 } else { rng.below(3) as u32 };
        let size = if rng.one_in(8) { rng.next() as u32 } else { 1u32 << rng.below(11) };
        let ring = |rng: &mut Rng| 0x7000_0000 + if rng.one_in(6) { rng.below(LEN) } else { rng.below(8) * 0x1000 };
        let bell = eventfd(rng.below(3) as u32, EventfdFlags::NONBLOCK).unwrap();
        let flags = 1 | if rng.one_in(2) { 8 } else { 0 };
        let which = rng.below(26);
        let sent = match which {
            0 => send(&mut stream, 8, flags, &state(index, size), &[]),
            1 => {
                let addr = [u64::from(index), ring(&mut rng), ring(&mut rng), ring(&mut rng), 0];
                send(&mut stream, 9, flags, &words(&addr), &[])
            }
            2 => send(
                &mut stream,
                10,
                flags,
                &state(index, if rng.one_in(2) { 0 } else { rng.next() as u32 & 0x83ff_83ff }),
                &[],
            ),
            3 => send(&mut stream, 11, 1, &state(index, 0), &[]),
            4 => send(&mut stream, 12, flags, &words(&[u64::from(index & 0xff)]), &[&bell]),
            5 => send(&mut stream, 13, flags, &words(&[u64::from(index & 0xff)]), &[&bell]),
            6 => send(&mut stream, 12, flags, &words(&[u64::from(index & 0xff) | 0x100]), &[]),
            7 | 8 => send(&mut stream, 18, flags, &state(index, rng.below(2) as u32), &[]),
            9 => send(&mut stream, 24, 1, &[state(rng.below(64) as u32, 60), vec![0; 64]].concat(), &[]),
            10 => {
                let data = [32u32, 1, 0].map(u32::to_ne_bytes).concat();
                send(&mut stream, 25, flags, &[data, vec![rng.below(2) as u8]].concat(), &[])
            }
            11 | 12 => {
                let (queues, of) = (rng.below(5) as u32, size & 0xffff);
                let payload = [words(&[LEN, rng.below(4) * 64]), (queues | of << 16).to_ne_bytes().to_vec()].concat();
                send(&mut stream, 32, flags, &payload, &[&record])
            }
            13 => send(&mut stream, 31, 1, &[words(&[0, 0]), (1u32 | size << 16).to_ne_bytes().to_vec()].concat(), &[]),
            14 => send(&mut stream, 34, flags, &[], &[]),
            15 => send(&mut stream, 4, flags, &[], &[]),
            16 => {
                let at = 0x40_0000 + rng.below(4) * LEN;
                send(&mut stream, 37, flags, &words(&[0, at, LEN, 0x9000_0000 + at, 0]), &[&record])
            }
            17 => {
                let at = 0x40_0000 + rng.below(4) * LEN;
                send(&mut stream, 38, flags, &words(&[0, at, LEN, 0x9000_0000 + at, 0]), &[])
            }
            18 => send(&mut stream, 6, 1, &words(&[rng.below(LEN), rng.below(2) * 4096]), &[&record]),
            19 => send(
                &mut stream,
                2,
                flags,
                &words(&[if rng.one_in(2) { features } else { features & !(1 << 26 | 1 << 34) }]),
                &[],
            ),
            20 => send(&mut stream, 14, flags, &words(&[u64::from(index & 0xff)]), &[&bell]),
            21 => send(&mut stream, 5, flags, &words(&[1, 0x10_0000, LEN, 0x7000_0000, 0]), &[&guest]),
            22 if rng.one_in(4) => {
                send(&mut stream, rng.below(45) as u32, flags, &words(&[rng.next(), rng.next()]), &[])
            }
            23 if rng.one_in(8) => {
                rustix::fs::ftruncate(if rng.one_in(2) { &guest } else { &record }, rng.below(2) * LEN).unwrap();
                true
            }
            _ => {
                // A whole ring.
                let at = 0x7000_0000 + u64::from(index & 3) * 0x4000;
                let mut all = send(&mut stream, 8, flags, &state(index, size & 0x3ff), &[]);
                all &= send(&mut stream, 9, flags, &words(&[u64::from(index), at, at + 0x5000, at + 0x4000, 0]), &[]);
                all &= send(&mut stream, 10, flags, &state(index, if packed { 0x8000_8000 } else { 0 }), &[]);
                all &= send(&mut stream, 12, flags, &words(&[u64::from(index & 0xff)]), &[&bell]);
                all & send(&mut stream, 18, flags, &state(index, 1), &[])
            }
        };
        // What it answers is of no interest, as long as there is room for it.
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        if !sent {
            break;
        }
    }
}
