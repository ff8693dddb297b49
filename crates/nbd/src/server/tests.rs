use super::*;
use crate::testing::{Peer, SOON, Scripted};
use crate::wire::{Command, CommandFlags, OptionType};
use polypath::Disk;
use polypath::block::Op;
use polypath::{Code, Limits as DiskLimits};
use std::os::unix::fs::PermissionsExt;
use tokio::net::{TcpStream, UnixStream};

async fn ram() -> Disk {
    Disk::open("ram://1MiB").await.unwrap()
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

type UnixPeer = Peer<tokio::net::unix::OwnedReadHalf, tokio::net::unix::OwnedWriteHalf>;

async fn connect(path: &Path) -> UnixPeer {
    let (reader, writer) = UnixStream::connect(path).await.unwrap().into_split();
    Peer::new(reader, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_are_reached_over_tcp() {
    let server = Server::tcp(local(), Limits::default()).unwrap();
    server.add(ExportConfig::new("disk", ram().await)).unwrap();
    let Address::Tcp(address) = server.address().clone() else { panic!("a port") };
    assert_ne!(address.port(), 0);
    let (reader, writer) = TcpStream::connect(address).await.unwrap().into_split();
    let mut peer = Peer::new(reader, writer);
    peer.go("disk", true).await;
    let none = CommandFlags::empty();
    assert_eq!(peer.call(Command::Write, none, 0, 512, &[7; 512]).await.0, 0);
    assert_eq!(peer.call(Command::Read, none, 0, 512, &[]).await, (0, vec![7; 512]));
    let done = server.statistics("disk").unwrap();
    let expected =
        ExportStatistics { clients: 1, connections: 1, requests: 2, errors: 0, bytes_read: 512, bytes_written: 512 };
    assert_eq!((done, server.clients()), (expected, 1));
    assert!(server.stop().wait(SOON).await);
    assert!(peer.is_closed().await);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    // At once again, on the same port.
    assert!(Server::tcp(address, Limits::default()).is_ok());
    let taken = Server::tcp(local(), Limits::default()).unwrap();
    let Address::Tcp(address) = taken.address().clone() else { panic!("a port") };
    assert!(Server::tcp(address, Limits::default()).unwrap_err().to_string().contains(&address.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let access = SocketAccess { mode: 0o660, ..SocketAccess::default() };
    let server = Server::unix(&path, access, Limits::default()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut early = connect(&path).await;
    early.greet().await;
    let go = |name: &str| [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat();
    let unknown = 0x8000_0006;
    assert_eq!(early.option(OptionType::Info, &go("")).await.0, unknown, "there is none");
    let disk = ram().await;
    server.add(ExportConfig::new("one", disk.clone())).unwrap();
    assert!(matches!(server.add(ExportConfig::new("one", disk.clone())), Err(ServerError::Taken(_))));
    assert!(matches!(server.add(ExportConfig::new("a\0b", disk.clone())), Err(ServerError::Name { .. })));
    assert_eq!(early.option(OptionType::Info, &go("")).await.0, 1, "the only one is the default");
    server.add(ExportConfig::new("two", disk.clone())).unwrap();
    let (error, text) = early.option(OptionType::Info, &go("")).await;
    assert_eq!((error, String::from_utf8(text).unwrap().contains("name one")), (unknown, true));
    assert_eq!(server.exports(), ["one", "two"]);
    let (mut one, mut two) = (connect(&path).await, connect(&path).await);
    one.go("one", true).await;
    two.go("two", true).await;
    let ending = server.remove("one").unwrap();
    assert!(ending.wait(SOON).await && ending.is_quiet());
    assert!(one.is_closed().await && server.remove("one").is_none());
    assert_eq!(two.ask(Command::Flush, 0, 0).await, 0, "the other one stays");
    assert_eq!(early.option(OptionType::Info, &go("one")).await.0, unknown);
    assert_eq!(early.option(OptionType::Info, &go("")).await.0, 1, "the only one again");
    server.add(ExportConfig::new("", disk.clone())).unwrap();
    server.add(ExportConfig::new("three", disk)).unwrap();
    assert_eq!(early.option(OptionType::Info, &go("")).await.0, 1, "the one without a name is the default");
    let ending = server.stop();
    assert!(ending.wait(SOON).await);
    assert!(two.is_closed().await && early.is_closed().await);
    assert!(!path.exists());
    assert!(matches!(server.add(ExportConfig::new("late", ram().await)), Err(ServerError::Ending)));
    assert_eq!(server.exports(), [""; 0]);
}

/// A server that ended late must not remove the file of the one after it.
#[tokio::test]
async fn the_file_of_the_next_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let first = Server::unix(&path, SocketAccess::default(), Limits::default()).unwrap();
    assert!(Server::unix(&path, SocketAccess::default(), Limits::default()).is_err());
    assert!(first.stop().wait(SOON).await);
    let _second = Server::unix(&path, SocketAccess::default(), Limits::default()).unwrap();
    drop(first);
    assert!(UnixStream::connect(&path).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_handshake_open_makes_room_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let limits = Limits { clients: 3, ..Limits::default() };
    let server = Server::unix(&path, SocketAccess::default(), limits).unwrap();
    server.add(ExportConfig::new("disk", ram().await)).unwrap();
    let mut open = Vec::new();
    for _ in 0..50 {
        let mut peer = connect(&path).await;
        peer.octets(1).await;
        open.push(peer);
    }
    assert!(server.clients() <= 3);
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut peer = connect(&path).await;
        peer.go("disk", false).await;
        // An answer: its handshake is over on the other side, too.
        assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
        served.push(peer);
    }
    // Those at work stay.
    let mut last = connect(&path).await;
    assert!(last.is_closed().await);
    for peer in &mut served {
        assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
    }
    drop(open);
}

/// Over TCP, where anybody may be: it may have lost its power. Who waits for an answer keeps its place, and so does everybody while there are
/// places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_nothing_any_more_makes_room_for_others() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let limits = Limits { clients: 2, idle: Duration::ZERO, ..Limits::default() };
    let server = Server::tcp(local(), limits).unwrap();
    server.add(ExportConfig::new("disk", script.disk().await)).unwrap();
    let Address::Tcp(address) = server.address().clone() else { panic!("a port") };
    let connect = async || {
        let (reader, writer) = TcpStream::connect(address).await.unwrap().into_split();
        Peer::new(reader, writer)
    };
    let (mut waiting, mut idle) = (connect().await, connect().await);
    for peer in [&mut idle, &mut waiting] {
        peer.go("disk", false).await;
        assert_eq!(peer.call(Command::Read, CommandFlags::empty(), 0, 512, &[]).await.0, 0);
    }
    script.hold();
    waiting.request(1, Command::Read, CommandFlags::empty(), 0, 512).await;
    script.has_been_asked(3).await;
    // Its answer has come, and is counted as taken a moment later.
    let next = async {
        loop {
            let next = connect().await;
            if next.reader.readable().await.is_ok() && !matches!(next.reader.try_read(&mut [0]), Ok(0) | Err(_)) {
                return next;
            }
        }
    };
    let next = timeout(SOON, next).await.expect("there is room for one more");
    assert!(idle.is_closed().await);
    assert_eq!(server.clients(), 2);
    script.release();
    assert_eq!(waiting.reply(512).await.error, 0);
    drop(next);
}

/// What was answered on one connection is durable after a flush on another one, whichever reactor does it; here: all ask one disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_share_a_disk() {
    let script = Scripted::new(DiskLimits { write_cache: true, ..DiskLimits::UNLIMITED });
    let server = Server::tcp(local(), Limits::default()).unwrap();
    server.add(ExportConfig::new("disk", script.disk().await)).unwrap();
    let Address::Tcp(address) = server.address().clone() else { panic!("a port") };
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (reader, writer) = TcpStream::connect(address).await.unwrap().into_split();
        let mut peer = Peer::new(reader, writer);
        peer.go("disk", true).await;
        peers.push(peer);
    }
    assert_eq!(peers[0].call(Command::Write, CommandFlags::empty(), 0, 512, &[1; 512]).await.0, 0);
    assert_eq!(peers[1].ask(Command::Flush, 0, 0).await, 0);
    assert_eq!(script.asked(), [(Op::Write, false, 0, 512), (Op::Flush, false, 0, 0)]);
    script.answer(Op::Flush, Code::Medium);
    assert_eq!(peers[0].ask(Command::Flush, 0, 0).await, 5);
    assert_eq!(peers[1].ask(Command::Flush, 0, 0).await, 5, "it hears what the other one's flush has found");
    assert!(server.stop().wait(SOON).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_waits_for_the_disk_and_no_longer_than_it_may() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let server = Server::tcp(local(), Limits::default()).unwrap();
    server.add(ExportConfig::new("disk", script.disk().await)).unwrap();
    let Address::Tcp(address) = server.address().clone() else { panic!("a port") };
    let (reader, writer) = TcpStream::connect(address).await.unwrap().into_split();
    let mut peer = Peer::new(reader, writer);
    peer.go("disk", true).await;
    script.hold();
    peer.request(1, Command::Read, CommandFlags::empty(), 0, 512).await;
    script.has_been_asked(1).await;
    let ending = server.stop();
    assert!(!ending.wait(Duration::from_millis(20)).await && !ending.is_quiet());
    script.release();
    assert!(ending.wait(SOON).await && ending.is_quiet());
    assert_eq!(peer.reply(512).await.error, 0);
    assert_eq!(ending.statistics()[0].requests, 1);
}
