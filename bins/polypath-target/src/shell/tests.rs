//! The loop of a thread over real sockets, with a clock that is driven.

use super::*;
use crate::config::{ListenerConfig, TargetConfig};
use crate::mail::ThreadHandle;
use crate::shared::{ConnInfo, HostLog};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

/// More than may wait to be sent while PDUs are taken.
const MUCH: usize = 8 << 20;

fn shell(listeners: Vec<TcpListener>) -> Shell {
    let config = TargetConfig { listeners: vec![ListenerConfig::new("127.0.0.1:1")], ..TargetConfig::default() };
    let rooms = Arc::new(Rooms::driven(config, &["127.0.0.1:1".parse().unwrap()]).unwrap());
    assert!(rooms.threads.set(vec![ThreadHandle::new().unwrap()]).is_ok());
    Shell::new(Seat::new(0, rooms, listeners).unwrap())
}

/// A shell with one connection, and the host's end of it.
fn connected() -> (Shell, UnixStream) {
    let mut shell = shell(Vec::new());
    let (ours, host) = UnixStream::pair().unwrap();
    for end in [&ours, &host] {
        end.set_nonblocking(true).unwrap();
    }
    let info = Arc::new(ConnInfo { id: 1, queue: u32::MAX.into(), ..ConnInfo::default() });
    shell.adopt(ours.into(), info, 0);
    (shell, host)
}

/// With much to say.
fn talkative() -> (Shell, UnixStream) {
    let (mut shell, host) = connected();
    shell.socks[0].as_mut().unwrap().conn.out_mut().zeroes(MUCH);
    shell.turn(0);
    (shell, host)
}

/// While as much as may be is read beneath: no room is left for what the host sends.
fn busy() -> (Shell, UnixStream) {
    let (mut shell, host) = connected();
    read_beneath(&mut shell.socks[0].as_mut().unwrap().conn, true);
    fill(&mut shell, &host);
    assert_eq!(ready(&mut shell), 0, "there is nothing to be done");
    (shell, host)
}

fn read_beneath(conn: &mut Conn, most: bool) {
    let Conn::Nvme(conn) = conn else { panic!("another protocol") };
    conn.read_beneath(most);
}

/// Sends until nobody takes any more.
fn fill(shell: &mut Shell, mut host: &UnixStream) {
    for _ in 0..10_000 {
        let sent = host.write(&[0; 16 << 10]);
        if !shell.turn(0) && sent.is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            return;
        }
    }
    panic!("all of it is taken");
}

/// Sockets that epoll would wake the thread for.
fn ready(shell: &mut Shell) -> usize {
    shell.calm_down();
    let mut list = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
    epoll::wait(&shell.epoll, &mut list[..], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
}

#[test]
fn a_host_that_sends_and_does_not_read_wakes_nobody() {
    let (mut shell, mut host) = talkative();
    fill(&mut shell, &host);
    assert_eq!(ready(&mut shell), 0, "there is nothing to be done");
    // When it reads, what it has sent is looked at: it is no NVMe/TCP, and that is said last.
    let (mut got, mut buffer) = (0, vec![0; 1 << 20]);
    for _ in 0..10_000 {
        // No turn that polls it as well: what comes is all there is to go by.
        shell.calm_down();
        shell.wait(0, 0);
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(got > MUCH, "{got} octets came, and nothing after what waited");
}

#[test]
fn a_host_that_has_gone_is_noticed_without_room_to_read() {
    let (mut shell, host) = busy();
    drop(host);
    shell.calm_down();
    shell.wait(0, 0);
    assert!(shell.socks[0].is_none());
}

#[test]
fn what_was_left_is_gone_on_with_when_something_is_over() {
    let (mut shell, mut host) = busy();
    shell.on(1, 0, |conn| read_beneath(conn, false));
    assert!(host.read(&mut [0; 64]).unwrap() > 0, "it is no NVMe/TCP, and that is said");
}

#[test]
fn a_connection_that_ends_does_not_wait_for_ever_to_be_read() {
    let (mut shell, host) = talkative();
    shell.socks[0].as_mut().unwrap().conn.end(Ending::AfterFlush);
    shell.settle(0, 0);
    for (now_us, there) in [(1, true), (FLUSH_US - 1, true), (FLUSH_US, false)] {
        shell.turn(now_us);
        assert_eq!(shell.socks[0].is_some(), there, "after {now_us} µs");
    }
    drop(host);
}

#[test]
fn a_listener_that_takes_nobody_is_left_alone_for_a_while() {
    // Something is to be read, and nobody to be taken: as where there are no descriptors left.
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.write_all(b"x").unwrap();
    let mut shell = shell(vec![OwnedFd::from(ours).into()]);
    assert_eq!(ready(&mut shell), 1);
    for now_us in [0, NAP_US] {
        shell.wait(0, now_us);
        assert_eq!(ready(&mut shell), 0, "not at once");
        shell.timers(now_us);
        assert_eq!(ready(&mut shell), 1, "once more");
    }
    assert_eq!(HostLog::may(&shell.rooms.log.accept, 1_000_000), Some(1), "one line for both");
}
