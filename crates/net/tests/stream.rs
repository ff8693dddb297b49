//! Streams against the kernel's own loopback.

use polypath_block::{Segment, Waits};
use polypath_memory::{Region, copy_count, with};
use polypath_net::{Dialer, IoList, Listener, Received, TcpDialer, TcpStream, Transport};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn patiently<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::yield_now();
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect_start(address).unwrap();
    let (server, peer) = patiently("a connection", || listener.accept().unwrap());
    patiently("connected", || client.poll_connected().unwrap().then_some(()));
    assert_eq!(peer, client.local_addr().unwrap());
    (client, server)
}

fn receive(stream: &mut impl Transport, list: &mut IoList, buffer: &mut [u8]) -> io::Result<Received> {
    let mut into = list.scatter();
    into.bytes(buffer);
    stream.receive(&mut into)
}

#[test]
fn segments_leave_and_arrive_without_a_copy_of_ours() {
    let (mut client, mut server) = pair();
    let (from, to) = (Region::allocate(1 << 20, false).unwrap(), Region::allocate(1 << 20, false).unwrap());
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    from.window(0, 1 << 20).unwrap().copy_in(0, &data).unwrap();
    let header = *b"header--";
    let before = copy_count();
    let total = header.len() + data.len();
    let (mut sent, mut got, mut head) = (0, 0, [0; 8]);
    let (mut out, mut into) = (IoList::new(), IoList::new());
    patiently("all bytes", || {
        with(|table| {
            let mut gather = out.gather();
            gather.bytes(&header[sent.min(8)..]);
            // In pieces of 5000 bytes from where we are, as many as fit in one call.
            let mut at = sent.saturating_sub(8) as u64;
            while at < 1 << 20 {
                let len = 5000.min((1 << 20) - at as u32);
                if !gather.view(table.view(Segment { offset: at, region: from.id(), len }).unwrap()) {
                    break;
                }
                at += u64::from(len);
            }
            sent += client.send(&gather).unwrap();
        });
        with(|table| {
            let mut scatter = into.scatter();
            scatter.bytes(&mut head[got.min(8)..]);
            let at = got.saturating_sub(8) as u64;
            let rest = Segment { offset: at, region: to.id(), len: (1 << 20) - at as u32 };
            scatter.view(table.view(rest).unwrap());
            if let Received::Bytes(n) = server.receive(&mut scatter).unwrap() {
                got += n;
            }
        });
        (got == total).then_some(())
    });
    assert_eq!(copy_count(), before, "the data must not have been copied by us");
    let mut back = vec![0; 1 << 20];
    to.window(0, 1 << 20).unwrap().copy_out(0, &mut back).unwrap();
    assert!(back == data && head == header);
    assert_eq!((client.counters().bytes_out, server.counters().bytes_in), (total as u64, total as u64));
}

#[test]
fn a_full_socket_takes_a_part_and_then_nothing() {
    let (mut client, mut server) = pair();
    let (mut list, data) = (IoList::new(), vec![3; 1 << 20]);
    let mut send = |client: &mut TcpStream| {
        let mut gather = list.gather();
        gather.bytes(&data);
        client.send(&gather).unwrap()
    };
    let mut total = 0;
    patiently("a full socket", || match send(&mut client) {
        0 => Some(()),
        n => {
            total += n;
            None
        }
    });
    assert!(client.counters().short_sends >= 1);
    let mut waits = Waits::default();
    client.arm(&mut waits, true);
    assert!(waits.interests[0].read && waits.interests[0].write);
    let (mut into, mut buffer) = (IoList::new(), vec![0; 1 << 18]);
    patiently("everything", || {
        if let Received::Bytes(n) = receive(&mut server, &mut into, &mut buffer).unwrap() {
            assert!(buffer[..n].iter().all(|&b| b == 3));
            total -= n;
        }
        (total == 0).then_some(())
    });
}

#[test]
fn more_pieces_than_one_call_takes_are_bounded() {
    let mut list = IoList::new();
    let byte = [7; 1];
    let mut gather = list.gather();
    assert_eq!((0..2000).filter(|_| gather.bytes(&byte)).count(), polypath_net::IOV_MAX);
    let mut copy = vec![1];
    assert_eq!(gather.copy_to(&mut copy, 10), 10);
    assert_eq!(copy, [1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    let (mut a, mut b) = ([0; 3], [0; 4]);
    let mut scatter = list.scatter();
    assert!(scatter.bytes(&mut a) && scatter.bytes(&mut b));
    assert_eq!(scatter.place(b"abcdefghi"), 7);
    assert_eq!((&a, &b), (b"abc", b"defg"));
}

/// A guest may cut the file behind its memory at any time. That costs its data, not the stream, which others' requests share.
#[test]
fn memory_that_is_cut_away_costs_the_stream_nothing() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let (mut client, mut server) = pair();
    let file = memfd_create("cut", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 1 << 16).unwrap();
    let region = Region::from_fd(file.try_clone().unwrap(), 0, 1 << 16).unwrap();
    ftruncate(&file, 0).unwrap();
    let (mut out, mut into) = (IoList::new(), IoList::new());
    let data: Vec<u8> = (0..8192u32).map(|i| i as u8).collect();
    let mut sent = 0;
    let (mut got, mut last) = (0usize, [0; 4096]);
    patiently("all bytes", || {
        if sent < data.len() {
            let mut gather = out.gather();
            gather.bytes(&data[sent..]);
            sent += client.send(&gather).unwrap();
        }
        let n = with(|table| {
            let mut scatter = into.scatter();
            if got < 4096 {
                let lost = Segment { offset: got as u64, region: region.id(), len: 4096 - got as u32 };
                scatter.view(table.view(lost).unwrap());
            }
            scatter.bytes(&mut last[got.saturating_sub(4096)..]);
            server.receive(&mut scatter).expect("the stream lives on")
        });
        if let Received::Bytes(n) = n {
            got += n;
        }
        (got == data.len()).then_some(())
    });
    assert_eq!(last, data[4096..], "what follows arrives whole and in place");
}

#[test]
fn an_end_and_a_reset_are_told_apart() {
    let (client, mut server) = pair();
    let (mut list, mut buffer) = (IoList::new(), [0; 16]);
    assert_eq!(receive(&mut server, &mut list, &mut buffer).unwrap(), Received::Nothing);
    drop(client);
    let end = patiently("the end", || match receive(&mut server, &mut list, &mut buffer).unwrap() {
        Received::Nothing => None,
        other => Some(other),
    });
    assert_eq!(end, Received::End);

    let (mut client, mut server) = pair();
    client.abort();
    client.abort();
    assert_eq!(receive(&mut client, &mut list, &mut buffer).unwrap_err().kind(), io::ErrorKind::NotConnected);
    let error = patiently("the reset", || receive(&mut server, &mut list, &mut buffer).err());
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let mut waits = Waits::default();
    client.arm(&mut waits, true);
    assert!(waits.interests.is_empty(), "an aborted stream has no descriptor to wait for");
}

#[test]
fn a_refused_connection_says_so() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let error = match TcpDialer::default().dial(address) {
        Err(error) => error,
        Ok(mut stream) => patiently("the refusal", || stream.poll_connected().err()),
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn names_resolve_or_say_why_not() {
    assert_eq!(polypath_net::resolve("127.0.0.1", 4420).unwrap(), ["127.0.0.1:4420".parse().unwrap()]);
    assert!(polypath_net::resolve("does-not-exist.invalid", 4420).is_err());
}

/// From now on the kernel drops whatever comes to `socket`, as if the way were cut.
fn cut(socket: &impl std::os::fd::AsRawFd) {
    let mut drop_all = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut drop_all };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel reads one `sock_fprog` and the one instruction it names.
    let done = unsafe {
        let value = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, len)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_cut_way_is_told_from_a_peer_that_does_not_read() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpDialer::default().dial(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let start = std::time::Instant::now();
    while !stream.poll_connected().unwrap() {}
    let mut list = IoList::new();
    let data = [7; 64 << 10];
    let mut send = |stream: &mut dyn Transport, len: usize| {
        let mut gather = list.gather();
        gather.bytes(&data[..len]);
        stream.send(&gather).unwrap()
    };
    // Until its window is shut, and on: its host answers every probe of it.
    while start.elapsed() < Duration::from_secs(2) {
        send(&mut *stream, data.len());
        assert_eq!(stream.unacknowledged(), None, "nobody reads, but all is acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut rest = peer.try_clone().unwrap();
    rest.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let drained = std::time::Instant::now();
    while drained.elapsed() < Duration::from_millis(300) {
        let _ = std::io::Read::read(&mut rest, &mut buffer);
    }
    cut(&peer);
    assert!(send(&mut *stream, 100) > 0);
    let before = std::time::Instant::now();
    let span = loop {
        if let Some(span) = stream.unacknowledged() {
            break span;
        }
        assert!(before.elapsed() < Duration::from_secs(10), "a cut way must be noticed");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(span >= Duration::from_millis(300), "only {span:?}");
    stream.abort();
    assert_eq!(stream.unacknowledged(), None);
}
