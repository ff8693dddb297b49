use super::*;
use crate::export::ExportConfig;
use crate::server::Clients;
use crate::testing::{DuplexPeer, SOON, Scripted, connection};
use crate::wire::CommandFlags;
use polypath::block::Op;
use polypath::{Code, Limits as DiskLimits};
use tokio::task::JoinHandle;

const NONE: CommandFlags = CommandFlags::empty();
/// As much as goes over the wire before somebody reads.
const ROOM: usize = 1 << 20;

type Served = JoinHandle<Result<End, SessionError>>;

fn limits() -> Limits {
    Limits { stall: Duration::from_secs(10), linger: Duration::from_millis(50), ..Limits::default() }
}

fn exports(configs: impl IntoIterator<Item = ExportConfig>) -> Arc<Exports> {
    Arc::new(Exports::of(configs))
}

fn connect(exports: &Arc<Exports>, room: usize, limits: Limits) -> (DuplexPeer, Served) {
    let (peer, (reader, writer)) = connection(room);
    let exports = exports.clone();
    let client = Clients::new(limits, true).enter().expect("there is room");
    (peer, tokio::spawn(async move { serve(reader, writer, &exports, limits, &client).await }))
}

async fn over(served: Served) -> Result<End, SessionError> {
    timeout(SOON, served).await.expect("a session ends in time").expect("without panic")
}

async fn ram() -> Arc<Exports> {
    exports([ExportConfig::new("disk", Disk::open("ram://4MiB").await.unwrap())])
}

fn scripted(script: &Scripted, disk: Disk) -> (Scripted, Arc<Exports>) {
    (script.clone(), exports([ExportConfig::new("disk", disk)]))
}

/// A write-back cache, and neither FUA nor zeroes nor discards.
const POOR: DiskLimits = DiskLimits {
    write_cache: true,
    fua: false,
    max_write_zeroes_blocks: 0,
    max_discard_blocks: 0,
    ..DiskLimits::UNLIMITED
};

#[tokio::test]
async fn what_is_written_is_read() {
    let exports = ram().await;
    for structured in [false, true] {
        let (mut peer, served) = connect(&exports, ROOM, limits());
        peer.go("disk", structured).await;
        let data: Vec<u8> = (0..1_u32 << 20).map(|n| (n / 7) as u8).collect();
        assert_eq!(peer.call(Command::Write, CommandFlags::FUA, 4096, 1 << 20, &data).await, (0, vec![]));
        assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
        assert_eq!(peer.call(Command::Read, NONE, 4096, 1 << 20, &[]).await, (0, data.clone()));
        for (flags, offset) in [(NONE, 8192), (CommandFlags::NO_HOLE, 16384), (CommandFlags::FAST_ZERO, 32768)] {
            assert_eq!(peer.call(Command::WriteZeroes, flags, offset, 4096, &[]).await, (0, vec![]), "{flags:?}");
            assert_eq!(peer.call(Command::Read, NONE, offset, 4096, &[]).await, (0, vec![0; 4096]));
        }
        assert_eq!(peer.ask(Command::Trim, 65536, 4096).await, 0);
        let around = peer.call(Command::Read, NONE, 12288, 4096, &[]).await;
        assert_eq!(around, (0, data[8192..12288].to_vec()), "nothing else was touched");
        if structured {
            // Context 1, one extent of data.
            let status = [[0, 0, 0, 1], (1_u32 << 22).to_be_bytes(), [0; 4]].concat();
            let flags = CommandFlags::REQ_ONE;
            assert_eq!(peer.call(Command::BlockStatus, flags, 0, 1 << 22, &[]).await, (0, status));
            assert_eq!(peer.call(Command::Read, CommandFlags::DF, 0, 512, &[]).await.0, 0);
        } else {
            assert_eq!(peer.ask(Command::BlockStatus, 0, 512).await, 22);
        }
        peer.request(9, Command::Disconnect, NONE, 0, 0).await;
        assert!(peer.is_closed().await);
        assert_eq!(over(served).await.unwrap(), End::Left);
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_the_rest_goes_on() {
    let exports = ram().await;
    for structured in [false, true] {
        let (mut peer, served) = connect(&exports, ROOM, limits());
        peer.go("", structured).await;
        let (size, most) = (4_u64 << 20, 32 << 20);
        let all = [
            (Command::Read, 0, 0, 22),
            (Command::Read, 1, 512, 22),
            (Command::Read, 0, 100, 22),
            (Command::Read, size, 512, 22),
            (Command::Read, u64::MAX, 512, 22),
            (Command::Read, 0, most + 512, 22),
            (Command::Write, size - 512, 1024, 28),
            (Command::Write, 3, 512, 22),
            // Longer than anything may be: it is passed over all the same.
            (Command::Write, 0, most + 512, 22),
            (Command::WriteZeroes, size, 512, 28),
            (Command::Trim, size, 512, 22),
            (Command::Other(5), 0, 512, 22),
            (Command::Other(1234), 0, 512, 22),
        ];
        for (command, offset, length, errno) in all {
            let data = if command == Command::Write { vec![0xee; length as usize] } else { Vec::new() };
            let (error, text) = peer.call(command, NONE, offset, length, &data).await;
            assert_eq!(error, errno, "{command} {offset} {length}");
            let text = String::from_utf8(text).unwrap();
            assert!(!structured || text.contains(&command.to_string()), "{command}: {text}");
        }
        assert_eq!(peer.call(Command::Read, NONE, 0, 512, &[]).await, (0, vec![0; 512]), "nothing was written");
        drop(peer);
        assert_eq!(over(served).await.unwrap(), End::Closed);
    }
}

#[tokio::test]
async fn a_read_only_export_takes_no_changes() {
    let disk = Disk::open("ram://1MiB").await.unwrap();
    let exports = exports([ExportConfig { read_only: true, ..ExportConfig::new("disk", disk) }]);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    assert_eq!(peer.call(Command::Write, NONE, 0, 512, &[1; 512]).await.0, 1);
    assert_eq!(peer.ask(Command::Trim, 0, 512).await, 1);
    assert_eq!(peer.ask(Command::WriteZeroes, 0, 512).await, 1);
    assert_eq!(peer.call(Command::Read, NONE, 0, 512, &[]).await, (0, vec![0; 512]));
    assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
}

#[tokio::test]
async fn more_than_may_be_in_flight_is_answered_in_any_order() {
    let exports = ram().await;
    // Seven places, and a wire on which nothing but a piece of a reply fits.
    let (mut peer, served) = connect(&exports, 4096, Limits { requests: 7, ..limits() });
    peer.go("disk", true).await;
    let crate::testing::Peer { reader, mut writer, .. } = peer;
    let sending = tokio::spawn(async move {
        for cookie in 0..300_u64 {
            let length = [512, 1 << 20, 65536][cookie as usize % 3];
            let request = Request { flags: NONE, command: Command::Read, cookie, offset: 0, length };
            writer.write_all(&request.to_bytes()).await.unwrap();
        }
        writer
    });
    let mut peer = crate::testing::Peer::hearing(reader);
    let mut seen = vec![false; 300];
    for _ in 0..300 {
        let reply = peer.reply(0).await;
        let length = [512, 1 << 20, 65536][reply.cookie as usize % 3];
        assert_eq!((reply.error, reply.data.len()), (0, length));
        assert!(!std::mem::replace(&mut seen[reply.cookie as usize], true), "{} was answered twice", reply.cookie);
    }
    drop((sending.await.unwrap(), peer));
    assert!(over(served).await.is_ok());
}

#[tokio::test]
async fn octets_that_are_no_request_end_it() {
    let exports = ram().await;
    let (mut peer, served) = connect(&exports, ROOM, limits());
    peer.go("disk", false).await;
    peer.send(&[0x55; 28]).await;
    assert!(peer.is_closed().await);
    assert!(matches!(over(served).await, Err(SessionError::Wire(WireError::Magic { .. }))));
}

#[tokio::test]
async fn who_goes_in_the_middle_of_a_message_is_let_go() {
    let exports = ram().await;
    let write = Request { flags: NONE, command: Command::Write, cookie: 1, offset: 0, length: 4096 }.to_bytes();
    for len in [1, 27, 28, 28 + 4095] {
        let (mut peer, served) = connect(&exports, ROOM, limits());
        peer.go("disk", false).await;
        peer.send(&[&write[..], &[0xee; 4096]].concat()[..len]).await;
        drop(peer);
        assert!(matches!(over(served).await, Err(SessionError::Cut)), "{len}");
    }
    let (mut peer, served) = connect(&exports, ROOM, limits());
    peer.go("disk", false).await;
    assert_eq!(peer.call(Command::Read, NONE, 0, 4096, &[]).await, (0, vec![0; 4096]), "nothing was written");
    drop(peer);
    assert_eq!(over(served).await.unwrap(), End::Closed);
}

#[tokio::test]
async fn who_is_slow_is_let_go() {
    let exports = ram().await;
    let quick = Limits { handshake: Duration::from_millis(50), stall: Duration::from_millis(50), ..limits() };
    // In the handshake: says nothing, and says half of it.
    for flags in [&[][..], &[0, 0]] {
        let (mut peer, served) = connect(&exports, ROOM, quick);
        peer.send(flags).await;
        assert!(matches!(over(served).await, Err(SessionError::Slow)));
    }
    let quick = Limits { handshake: limits().handshake, ..quick };
    let write = Request { flags: NONE, command: Command::Write, cookie: 1, offset: 0, length: 4096 }.to_bytes();
    // A request that does not come, and data that do not.
    for len in [1, 28, 100] {
        let (mut peer, served) = connect(&exports, ROOM, quick);
        peer.go("disk", false).await;
        peer.send(&[&write[..], &[0; 4096]].concat()[..len]).await;
        assert!(matches!(over(served).await, Err(SessionError::Slow)), "{len}");
        assert!(peer.is_closed().await);
    }
    // Replies that nobody takes.
    let (mut peer, served) = connect(&exports, 64, quick);
    peer.go("disk", false).await;
    peer.request(1, Command::Read, NONE, 0, 4096).await;
    assert!(matches!(over(served).await, Err(SessionError::Slow)));
}

#[tokio::test]
async fn who_asks_for_nothing_may_take_his_time() {
    let exports = ram().await;
    let stall = Duration::from_millis(20);
    let (mut peer, _served) = connect(&exports, ROOM, Limits { stall, ..limits() });
    peer.go("disk", false).await;
    tokio::time::sleep(stall * 5).await;
    assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
}

/// What it asks for when its place is somebody else's is not begun, and what it has not heard hears the next one.
#[tokio::test]
async fn who_has_lost_its_place_is_hung_up_on_in_order() {
    let script = Scripted::new(POOR);
    let (script, exports) = scripted(&script, script.disk().await);
    let limits = Limits { clients: 1, idle: Duration::ZERO, ..limits() };
    let clients = Clients::new(limits, true);
    let (mut peer, (reader, writer)) = connection(ROOM);
    let (client, shared) = (clients.enter().unwrap(), exports.clone());
    let served = tokio::spawn(async move { serve(reader, writer, &shared, limits, &client).await });
    peer.go("disk", false).await;
    assert_eq!(peer.ask(Command::Flush, 0, 0).await, 0);
    script.lose();
    script.asked();
    let next = async {
        loop {
            match clients.enter() {
                Some(client) => return client,
                None => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let _next = timeout(SOON, next).await.expect("its answer is taken");
    // Nobody else has a turn before this is sent.
    peer.request(7, Command::WriteZeroes, NONE, 0, 512).await;
    assert!(peer.is_closed().await);
    assert_eq!(over(served).await.unwrap(), End::Unwanted);
    assert_eq!(script.asked(), []);
    let (mut again, _served) = connect(&exports, ROOM, limits);
    again.go("disk", false).await;
    assert_eq!((again.ask(Command::Flush, 0, 0).await, again.ask(Command::Flush, 0, 0).await), (5, 0));
}

#[tokio::test]
async fn a_client_that_takes_no_replies_holds_up_nobody_else() {
    let exports = ram().await;
    let (mut deaf, _served) = connect(&exports, 4096, limits());
    deaf.go("disk", false).await;
    let read = Request { flags: NONE, command: Command::Read, cookie: 1, offset: 0, length: 4 << 20 }.to_bytes();
    // More than its buffer memory.
    for _ in 0..20 {
        deaf.send(&read).await;
    }
    for _ in 0..10 {
        let (mut peer, _served) = connect(&exports, ROOM, limits());
        peer.go("disk", false).await;
        assert_eq!(peer.call(Command::Read, NONE, 0, 4 << 20, &[]).await, (0, vec![0; 4 << 20]));
    }
}

#[tokio::test]
async fn what_the_disk_does_not_do_itself_is_done_for_it() {
    let script = Scripted::new(POOR);
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    let (fua, kept) = (CommandFlags::FUA, CommandFlags::NO_HOLE);
    let flush = (Op::Flush, false, 0, 0);
    assert_eq!(peer.call(Command::Write, fua, 512, 512, &[1; 512]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Write, false, 512, 512), flush]);
    assert_eq!(peer.call(Command::WriteZeroes, fua, 0, 3 << 20, &[]).await.0, 0);
    let pieces = [0_u64, 1 << 20, 2 << 20].map(|at| (Op::Write, false, at, 1 << 20));
    assert_eq!(script.asked(), [&pieces[..], &[flush]].concat());
    assert_eq!(peer.call(Command::WriteZeroes, kept, 512, 512, &[]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Write, false, 512, 512)]);
    assert_eq!(peer.call(Command::WriteZeroes, CommandFlags::FAST_ZERO, 0, 512, &[]).await.0, 95);
    assert_eq!(peer.ask(Command::Trim, 0, 512).await, 0, "a hint");
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn what_the_disk_does_itself_is_left_to_it() {
    let script = Scripted::new(DiskLimits { write_cache: true, ..DiskLimits::UNLIMITED });
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    let (fua, fast, kept) = (CommandFlags::FUA, CommandFlags::FAST_ZERO, CommandFlags::NO_HOLE);
    assert_eq!(peer.call(Command::Write, fua, 512, 512, &[1; 512]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Write, true, 512, 512)]);
    assert_eq!(peer.call(Command::WriteZeroes, fast, 0, 1 << 20, &[]).await.0, 0);
    assert_eq!(script.asked(), [(Op::WriteZeroes, false, 0, 1 << 20)]);
    assert_eq!(peer.call(Command::WriteZeroes, kept, 0, 512, &[]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Write, false, 0, 512)]);
    assert_eq!(peer.call(Command::Trim, fua, 0, 512, &[]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Discard, false, 0, 512), (Op::Flush, false, 0, 0)]);
    // A path has joined that does less.
    script.answer(Op::Write, Code::Unsupported);
    assert_eq!(peer.call(Command::Write, fua, 0, 512, &[1; 512]).await.0, 0);
    assert_eq!(script.asked(), [(Op::Write, true, 0, 512), (Op::Write, false, 0, 512), (Op::Flush, false, 0, 0)]);
    script.answer(Op::WriteZeroes, Code::Unsupported);
    assert_eq!(peer.call(Command::WriteZeroes, fast, 0, 512, &[]).await.0, 95);
    script.asked();
    script.answer(Op::WriteZeroes, Code::Unsupported);
    assert_eq!(peer.ask(Command::WriteZeroes, 0, 512).await, 0);
    assert_eq!(script.asked(), [(Op::WriteZeroes, false, 0, 512), (Op::Write, false, 0, 512)]);
    script.answer(Op::Discard, Code::Unsupported);
    assert_eq!(peer.ask(Command::Trim, 0, 512).await, 0);
}

#[tokio::test]
async fn errors_of_the_disk_are_told_with_their_reason() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    for (code, errno) in [(Code::Medium, 5), (Code::NoSpace, 28), (Code::WriteProtected, 1), (Code::Gone, 108)] {
        script.answer(Op::Write, code);
        let (error, text) = peer.call(Command::Write, NONE, 0, 512, &[1; 512]).await;
        assert_eq!(error, errno);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("write of 512 bytes at offset 0"), "{text}");
    }
    // A durable write whose flush fails is not durable.
    let poor = Scripted::new(POOR);
    let (poor, exports) = scripted(&poor, poor.disk().await);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    poor.answer(Op::Flush, Code::PathLost);
    assert_eq!(peer.call(Command::Write, CommandFlags::FUA, 0, 512, &[1; 512]).await.0, 5);
}

#[tokio::test]
async fn every_connection_hears_of_a_loss() {
    let script = Scripted::new(POOR);
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut one, _served) = connect(&exports, ROOM, limits());
    one.go("disk", true).await;
    let (mut two, _served) = connect(&exports, ROOM, limits());
    two.go("disk", true).await;
    let (mut broken, served) = connect(&exports, ROOM, limits());
    broken.go("disk", true).await;
    assert_eq!(two.ask(Command::Flush, 0, 0).await, 0);
    script.answer(Op::Flush, Code::Medium);
    assert_eq!(one.ask(Command::Flush, 0, 0).await, 5, "the disk says so");
    assert_eq!((one.ask(Command::Flush, 0, 0).await, two.ask(Command::Flush, 0, 0).await), (0, 5));
    assert_eq!(two.ask(Command::Flush, 0, 0).await, 0);
    drop(broken);
    assert_eq!(over(served).await.unwrap(), End::Closed);
    let (mut again, _served) = connect(&exports, ROOM, limits());
    again.go("disk", true).await;
    assert_eq!((again.ask(Command::Flush, 0, 0).await, again.ask(Command::Flush, 0, 0).await), (5, 0));
    // What the device counts.
    script.lose();
    assert_eq!((one.ask(Command::Flush, 0, 0).await, one.ask(Command::Flush, 0, 0).await), (5, 0));
    // A path that is lost has dropped nothing.
    script.answer(Op::Flush, Code::PathLost);
    assert_eq!(one.ask(Command::Flush, 0, 0).await, 5);
    assert_eq!((two.ask(Command::Flush, 0, 0).await, two.ask(Command::Flush, 0, 0).await), (5, 0), "of the device");
}

#[tokio::test]
async fn an_export_that_ends_answers_what_was_begun() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut peer, served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    script.hold();
    peer.request(1, Command::Write, NONE, 0, 512).await;
    peer.send(&[1; 512]).await;
    script.has_been_asked(1).await;
    let export = exports.find("disk").unwrap();
    export.end();
    // What comes now is refused, data and all.
    peer.request(2, Command::Write, NONE, 0, 4096).await;
    peer.send(&[1; 4096]).await;
    let refused = peer.reply(0).await;
    assert_eq!((refused.cookie, refused.error), (2, 108));
    assert!(!export.is_quiet());
    script.release();
    let done = peer.reply(0).await;
    assert_eq!((done.cookie, done.error), (1, 0));
    assert!(peer.is_closed().await);
    assert_eq!(over(served).await.unwrap(), End::Ended);
    assert!(export.is_quiet());
    assert_eq!(script.asked().len(), 1);
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let (script, exports) = scripted(&script, script.disk().await);
    let (mut peer, served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    script.hold();
    peer.request(1, Command::Write, NONE, 0, 512).await;
    peer.send(&[1; 512]).await;
    script.has_been_asked(1).await;
    drop(peer);
    let export = exports.find("disk").unwrap();
    assert!(!export.is_quiet() && !served.is_finished(), "the disk has a write of it");
    script.release();
    assert!(over(served).await.is_err(), "its reply could not be sent");
    assert!(export.is_quiet());
}

#[tokio::test]
async fn changes_wait_for_what_may_still_land_and_reads_do_not() {
    let script = Scripted::new(DiskLimits::UNLIMITED);
    let hold = polypath::vhost_user_blk::Hold::for_time(Duration::from_millis(1500));
    let config = ExportConfig { hold_changes: hold.clone(), ..ExportConfig::new("disk", script.disk().await) };
    let exports = exports([config]);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.go("disk", true).await;
    peer.request(1, Command::WriteZeroes, NONE, 0, 512).await;
    peer.request(2, Command::Read, NONE, 0, 512).await;
    assert_eq!(peer.reply(512).await.cookie, 2);
    assert_eq!(peer.reply(0).await.cookie, 1);
    assert_eq!(hold.left(), Duration::ZERO);
    // One that waits when the export ends is not begun.
    hold.extend(std::time::Instant::now() + Duration::from_secs(60));
    script.asked();
    peer.request(3, Command::Trim, NONE, 0, 512).await;
    peer.request(4, Command::Read, NONE, 0, 512).await;
    assert_eq!(peer.reply(512).await.cookie, 4);
    exports.find("disk").unwrap().end();
    let refused = peer.reply(0).await;
    assert_eq!((refused.cookie, refused.error), (3, 108));
    assert_eq!(script.asked(), [(Op::Read, false, 0, 512)]);
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_no_export_yet() {
    struct Silent;
    impl polypath::Device for Silent {
        fn name(&self) -> &str {
            "silent"
        }
        fn state(&self) -> polypath::DeviceState {
            polypath::DeviceState::Gone { reason: "it was switched off".into() }
        }
        fn version(&self) -> u64 {
            1
        }
        fn open_queue(
            &self,
            _: polypath::block::QueueConfig,
        ) -> Result<Box<dyn polypath::block::IoQueue>, polypath::block::OpenError> {
            Err(polypath::block::OpenError::NoQueue { name: "silent".into(), granted: 0 })
        }
        fn close(&self) {}
    }
    let stack = polypath::Stack::shared().unwrap();
    let exports = exports([ExportConfig::of_device("disk", Arc::new(Silent), &stack)]);
    let (mut peer, _served) = connect(&exports, ROOM, limits());
    peer.greet().await;
    let (error, text) = peer.option(crate::wire::OptionType::Go, b"\0\0\0\x04disk\0\0").await;
    assert_eq!(error, 0x8000_0006);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("it was switched off"), "{text}");
}

/// Who asks for more than his places or his buffer memory hold, and takes no replies, is let go of in time all the same when the export ends.
#[tokio::test]
async fn a_client_that_takes_no_replies_does_not_hold_up_the_end() {
    let exports = exports([ExportConfig::new("disk", Disk::open("ram://32MiB").await.unwrap())]);
    let patient = Limits { stall: Duration::from_secs(3600), requests: 2, ..limits() };
    let (read, zero) = (Command::Read, Command::WriteZeroes);
    let mut all = Vec::new();
    for (asked, answered) in [
        // Both places and one more request.
        ([(read, 64 << 10), (read, 64 << 10), (read, 64 << 10)], 2),
        // All of the buffer memory and more of it; for what is with the disk already, too.
        ([(read, 32 << 20), (read, 512), (read, 512)], 1),
        ([(read, 32 << 20), (zero, 512), (read, 512)], 1),
    ] {
        let (mut peer, served) = connect(&exports, 4096, patient);
        peer.go("disk", false).await;
        for (cookie, (command, length)) in (0..).zip(asked) {
            let flags = if command == zero { CommandFlags::NO_HOLE } else { NONE };
            peer.request(cookie, command, flags, 0, length).await;
        }
        all.push((asked, answered, peer, served));
    }
    let export = exports.find("disk").unwrap();
    let most: u64 = all.iter().map(|(_, answered, ..)| answered).sum();
    let begun = async {
        while export.counters.requests.load(Ordering::Relaxed) < most {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, begun).await.expect("the disk answers");
    export.end();
    for (asked, _, _peer, served) in all {
        assert!(timeout(SOON, served).await.is_ok(), "{asked:?}");
    }
    assert!(export.is_quiet());
}
