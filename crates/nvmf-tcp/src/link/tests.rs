//! A link over a wire in memory: what it asks of a socket and when, where data lie, and what it says of commands.

use super::*;
use crate::pdu::{C2hData, CapsuleResp, Framing, IcReq, IcResp, digest};
use polypath_memory::{Arena, Region};
use polypath_net::{Gather, Scatter};
use polypath_nvme::StatusField;
use std::sync::{Arc, Mutex, MutexGuard};

struct Wire {
    connected: bool,
    to_host: Vec<u8>,
    sent: Vec<u8>,
    /// Octets that it still takes.
    room: usize,
    /// The next receive ends like this.
    end: Option<io::Result<Received>>,
    /// Of every receive: the room there was.
    rooms: Vec<usize>,
    /// Of every send: the octets that were offered.
    offers: Vec<usize>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Wire>>);

impl Transport for Fake {
    fn poll_connected(&mut self) -> io::Result<bool> {
        Ok(self.wire().connected)
    }
    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        let mut wire = self.wire();
        wire.rooms.push(into.len());
        let n = into.place(&wire.to_host);
        wire.to_host.drain(..n);
        match wire.end.take() {
            Some(end) if n == 0 => end,
            end => {
                wire.end = end;
                Ok(if n > 0 { Received::Bytes(n) } else { Received::Nothing })
            }
        }
    }
    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        let mut wire = self.wire();
        wire.offers.push(from.len());
        let room = wire.room;
        let n = from.copy_to(&mut wire.sent, room);
        wire.room -= n;
        Ok(n)
    }
    fn arm(&self, _: &mut Waits, _: bool) {}
    fn unacknowledged(&self) -> Option<Duration> {
        Some(Duration::from_secs(7))
    }
    fn counters(&self) -> Counters {
        Counters { syscalls: 7, ..Counters::default() }
    }
    fn abort(&mut self) {}
}

impl Dialer for Fake {
    fn dial(&self, _: SocketAddr) -> io::Result<Box<dyn Transport>> {
        Ok(Box::new(self.clone()))
    }
}

impl Fake {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }
}

/// A link that is ready, its wire, and the memory of its commands.
struct Rig {
    wire: Fake,
    link: Link,
    framing: Framing,
    segs: SegTable,
    arena: Arena,
    chunks: Vec<polypath_memory::Chunk>,
    done: Vec<Finished>,
}

const RX: usize = 8192;
/// Octets of a command capsule without data, of a completion, and of the head of data.
const CAPSULE: usize = 72;
const HEAD: usize = 24;

impl Rig {
    fn dial(depth: u16, data_digest: bool) -> Rig {
        let wire = Fake(Arc::new(Mutex::new(Wire {
            connected: true,
            to_host: Vec::new(),
            sent: Vec::new(),
            room: usize::MAX,
            end: None,
            rooms: Vec::new(),
            offers: Vec::new(),
        })));
        let request = IcReq { data_digest, ..IcReq::default() };
        let config = HostConfig { request, ..HostConfig::new(depth) };
        let link = Link::dial(&wire, "127.0.0.1:1".parse().unwrap(), config, RX).unwrap();
        Rig {
            wire,
            link,
            framing: Framing { data_digest, ..Framing::NONE },
            segs: SegTable::new(1 << 16),
            arena: Arena::new(8 << 20, false).unwrap(),
            chunks: Vec::new(),
            done: Vec::new(),
        }
    }

    fn ready(depth: u16, data_digest: bool) -> Rig {
        let mut rig = Rig::dial(depth, data_digest);
        rig.receive();
        rig.link.flush(&rig.segs).unwrap();
        let alignment = Default::default();
        let resp = IcResp { alignment, header_digest: false, data_digest, max_h2c_data: 8192 };
        let mut octets = [0; 128];
        resp.encode(&mut octets).unwrap();
        rig.wire.wire().to_host.extend_from_slice(&octets);
        rig.receive();
        assert!(rig.link.is_ready());
        let mut wire = rig.wire.wire();
        wire.sent.clear();
        wire.rooms.clear();
        wire.offers.clear();
        drop(wire);
        rig
    }

    fn receive(&mut self) -> bool {
        self.link.receive(&self.segs, |finished| self.done.push(finished)).unwrap()
    }

    fn broken(&mut self) -> Broken {
        self.link.receive(&self.segs, |finished| self.done.push(finished)).unwrap_err()
    }

    fn flush(&mut self) -> bool {
        self.link.flush(&self.segs).unwrap()
    }

    /// Memory in `pieces` of `len` octets each.
    fn memory(&mut self, pieces: u32, len: u32, fill: u8) -> SegSpan {
        let chunk = self.arena.chunk(pieces * len).unwrap();
        chunk.window().copy_in(0, &vec![fill; (pieces * len) as usize]).unwrap();
        let whole = chunk.segment();
        let span = self.segs.reserve(1, pieces).unwrap().span(0, pieces);
        for (i, seg) in (0..).zip(self.segs.get_mut(span)) {
            *seg = polypath_block::Segment { offset: whole.offset + i * u64::from(len), len, ..whole };
        }
        self.chunks.push(chunk);
        span
    }

    /// What the last memory holds.
    fn holds(&self) -> Vec<u8> {
        let chunk = self.chunks.last().unwrap();
        let mut bytes = vec![0; chunk.len() as usize];
        chunk.window().copy_out(0, &mut bytes).unwrap();
        bytes
    }

    fn submit(&mut self, transfer: Transfer, user: u64) -> u16 {
        let sqe = match transfer {
            Transfer::None => Sqe::flush(0, 1),
            Transfer::In { .. } => Sqe::read(0, 1, 0, 0, false),
            Transfer::Out { .. } => Sqe::write(0, 1, 0, 0, false),
        };
        self.link.submit(&sqe, transfer, user).unwrap()
    }

    /// Submits and sends.
    fn send(&mut self, transfer: Transfer, user: u64) -> u16 {
        let slot = self.submit(transfer, user);
        assert!(self.flush());
        slot
    }

    /// Says the data of the command in `slot`, a part of which goes to the host; what is left to say.
    fn say_data(&mut self, slot: u16, data: &[u8]) -> Vec<u8> {
        let cccid = self.link.cid(slot).unwrap();
        let pdu = C2hData { cccid, offset: 0, length: data.len() as u32, last: true, success: false };
        let mut octets = vec![0; 256];
        let n = pdu.encode(&self.framing, &mut octets).unwrap();
        octets.truncate(n);
        octets.extend_from_slice(data);
        if self.framing.data_digest {
            octets.extend_from_slice(&digest(0, data).to_le_bytes());
        }
        octets
    }

    fn answer(&mut self, slot: u16) {
        let cqe = Cqe::new(self.link.cid(slot).unwrap(), StatusField::SUCCESS);
        let mut octets = vec![0; 256];
        let n = CapsuleResp { cqe }.encode(&self.framing, &mut octets).unwrap();
        self.say(&octets[..n]);
    }

    fn say(&self, octets: &[u8]) {
        self.wire.wire().to_host.extend_from_slice(octets);
    }

    fn rooms(&self) -> Vec<usize> {
        std::mem::take(&mut self.wire.wire().rooms)
    }

    fn offers(&self) -> Vec<usize> {
        std::mem::take(&mut self.wire.wire().offers)
    }
}

/// Octets of which no two neighbours, and no two pages, are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn nothing_is_said_before_the_stream_is_connected() {
    let mut rig = Rig::dial(4, false);
    rig.wire.wire().connected = false;
    assert!(!rig.receive() && rig.flush());
    assert!(rig.rooms().is_empty() && rig.offers().is_empty());
    rig.wire.wire().connected = true;
    assert!(!rig.receive(), "connected, and nothing has come");
    assert!(rig.flush());
    assert_eq!(rig.offers(), [128], "ICReq");
    assert!(!rig.link.is_ready(), "not answered yet");
    rig.wire.wire().connected = false;
    assert!(!rig.receive(), "a stream that was connected is not asked again");
    assert_eq!(rig.rooms().len(), 2);
}

#[test]
fn a_socket_is_asked_again_only_if_it_gave_all_there_was_room_for() {
    let mut rig = Rig::ready(8, false);
    assert!(!rig.receive(), "nothing has come");
    assert_eq!(rig.rooms(), [RX]);
    let slot = rig.send(Transfer::None, 1);
    rig.answer(slot);
    assert!(rig.receive());
    assert_eq!((rig.rooms(), rig.done.len()), (vec![RX], 1));
    // Four answers of 12 KiB: a turn takes what fits into a few receives, so that others have theirs, and the next one the rest.
    let len = 12 << 10;
    let slots: Vec<u16> = (0..4)
        .map(|user| {
            let span = rig.memory(1, len, 0);
            rig.send(Transfer::In { span, skip: 0, len, exact: true }, user)
        })
        .collect();
    for slot in slots {
        let octets = rig.say_data(slot, &pattern(len as usize));
        rig.say(&octets);
        rig.answer(slot);
    }
    assert!(rig.receive());
    assert_eq!(rig.rooms(), [RX; RX_ROUNDS]);
    assert!(rig.receive());
    assert_eq!((rig.rooms(), rig.done.len()), (vec![RX; 3], 5));
    assert_eq!(rig.holds(), pattern(len as usize));
}

#[test]
fn the_kernel_places_what_is_missing_of_a_large_pdu_and_only_that() {
    for data_digest in [false, true] {
        let mut rig = Rig::ready(4, data_digest);
        // The second half of a request whose segments do not end where the halves do.
        let (skip, len) = (5000, 40_000);
        let span = rig.memory(3, 15_000, 0xee);
        let slot = rig.send(Transfer::In { span, skip, len, exact: true }, 1);
        let data = pattern(len as usize);
        let octets = rig.say_data(slot, &data);
        let (first, rest) = octets.split_at(HEAD + 1000);
        let (second, third) = rest.split_at(30_000);
        let mut rooms = Vec::new();
        for part in [first, second, third] {
            rig.say(part);
            while rig.receive() {}
            rooms.push(rig.rooms()[0]);
        }
        let missing = len as usize - 1000;
        let want = if data_digest { [RX, RX, RX] } else { [RX, missing + RX, RX] };
        assert_eq!(rooms, want, "9000 octets are not worth it, and a digest must see what comes");
        rig.answer(slot);
        rig.receive();
        assert_eq!((rig.done.len(), rig.done[0].bad_memory), (1, false));
        let holds = rig.holds();
        assert!(holds[skip as usize..] == data[..], "digest {data_digest}");
        assert!(holds[..skip as usize].iter().all(|&b| b == 0xee), "what lies before them is another part's");
    }
}

#[test]
fn more_pieces_of_memory_than_one_call_takes_are_filled_and_sent() {
    let mut rig = Rig::ready(4, false);
    let (pieces, len) = (1500, 16);
    let data = pattern((pieces * len) as usize);
    let span = rig.memory(pieces, len, 0);
    let slot = rig.send(Transfer::In { span, skip: 0, len: pieces * len, exact: true }, 1);
    let octets = rig.say_data(slot, &data);
    rig.say(&octets[..HEAD + 1]);
    rig.receive();
    rig.say(&octets[HEAD + 1..]);
    rig.answer(slot);
    while rig.receive() {}
    assert_eq!((rig.done.len(), rig.holds() == data), (1, true));

    let (pieces, len) = (2000, 4);
    let span = rig.memory(pieces, len, 9);
    rig.wire.wire().sent.clear();
    rig.send(Transfer::Out { span, skip: 0, len: pieces * len }, 2);
    let sent = std::mem::take(&mut rig.wire.wire().sent);
    assert!(sent.len() == CAPSULE + 8000 && sent[CAPSULE..].iter().all(|&b| b == 9));
}

#[test]
fn memory_that_goes_while_data_come_costs_its_command() {
    let mut rig = Rig::ready(4, false);
    let region = Region::allocate(4096, false).unwrap();
    let span = rig.memory(1, 512, 0);
    rig.segs.get_mut(span)[0].region = region.id();
    rig.segs.get_mut(span)[0].offset = 0;
    let slot = rig.send(Transfer::In { span, skip: 0, len: 512, exact: true }, 1);
    drop(region);
    let octets = rig.say_data(slot, &pattern(512));
    let (first, rest) = octets.split_at(HEAD + 100);
    for part in [first, rest] {
        rig.say(part);
        rig.receive();
    }
    rig.answer(slot);
    rig.receive();
    let good = rig.send(Transfer::None, 2);
    rig.answer(good);
    rig.receive();
    let done: Vec<_> = rig.done.iter().map(|f| (f.user, f.bad_memory)).collect();
    assert_eq!(done, [(1, true), (2, false)]);
}

/// What can be placed of a read does not make up for what could not.
#[test]
fn memory_that_is_gone_for_a_part_of_a_read_is_gone_for_all_of_it() {
    for (gone, at_once) in [(0, true), (0, false), (1, true), (1, false)] {
        let mut rig = Rig::ready(4, false);
        let region = Region::allocate(4096, false).unwrap();
        let span = rig.memory(2, 512, 0);
        (rig.segs.get_mut(span)[gone].region, rig.segs.get_mut(span)[gone].offset) = (region.id(), 0);
        let slot = rig.send(Transfer::In { span, skip: 0, len: 1024, exact: true }, 1);
        drop(region);
        let octets = rig.say_data(slot, &pattern(1024));
        if at_once {
            rig.say(&octets);
            rig.receive();
        } else {
            for part in octets.chunks(HEAD + 512) {
                rig.say(part);
                rig.receive();
            }
        }
        rig.answer(slot);
        rig.receive();
        assert_eq!(rig.done.iter().map(|f| f.bad_memory).collect::<Vec<_>>(), [true], "segment {gone}, {at_once}");
    }
}

/// The first takes the long way, since its data come in two parts, and the second the short one.
#[test]
fn commands_are_told_in_the_order_in_which_they_were_answered() {
    let mut rig = Rig::ready(4, false);
    let spans = [0, 1].map(|_| rig.memory(1, 1024, 0));
    let slots =
        [0, 1].map(|n: usize| rig.send(Transfer::In { span: spans[n], skip: 0, len: 1024, exact: true }, n as u64));
    let cids = slots.map(|slot| rig.link.cid(slot).unwrap());
    for (cccid, offset, length, last) in [(cids[0], 0, 512, false), (cids[0], 512, 512, true), (cids[1], 0, 1024, true)]
    {
        let mut octets = vec![0; 256];
        let n = C2hData { cccid, offset, length, last, success: last }.encode(&rig.framing, &mut octets).unwrap();
        octets.truncate(n);
        octets.extend(vec![7; length as usize]);
        rig.say(&octets);
    }
    rig.receive();
    assert_eq!(rig.done.iter().map(|f| f.user).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(rig.holds(), [7; 1024]);
}

#[test]
fn a_write_whose_memory_is_too_short_is_not_sent() {
    for data_digest in [false, true] {
        let mut rig = Rig::ready(4, data_digest);
        let span = rig.memory(1, 512, 0);
        rig.submit(Transfer::Out { span, skip: 1, len: 512 }, 1);
        let broken = rig.link.flush(&rig.segs).unwrap_err();
        assert_eq!(broken.code, Code::BadMemory, "{}", broken.reason);
        assert!(rig.wire.wire().sent.is_empty());
    }
}

#[test]
fn all_that_waits_leaves_in_one_call() {
    for data_digest in [false, true] {
        let mut rig = Rig::ready(4, data_digest);
        let span = rig.memory(2, 512, 3);
        let digest_len = if data_digest { 4 } else { 0 };
        rig.submit(Transfer::None, 1);
        rig.submit(Transfer::Out { span, skip: 100, len: 800 }, 2);
        assert!(rig.flush());
        assert_eq!(rig.offers(), [2 * CAPSULE + 800 + digest_len]);
        assert!(rig.flush() && rig.offers().is_empty(), "nothing waits");
        // A socket that took less than it was offered is full.
        rig.wire.wire().room = 100;
        rig.submit(Transfer::Out { span, skip: 100, len: 800 }, 3);
        assert!(!rig.flush());
        assert_eq!(rig.offers(), [CAPSULE + 800 + digest_len]);
        rig.wire.wire().room = usize::MAX;
        assert!(rig.flush());
        assert_eq!(rig.offers(), [CAPSULE + 800 + digest_len - 100]);
    }
}

#[test]
fn a_capsule_that_leaves_in_pieces_is_the_same_as_in_one() {
    for data_digest in [false, true] {
        let write = |room: usize| {
            let mut rig = Rig::ready(4, data_digest);
            let span = rig.memory(1, 1024, 0);
            rig.chunks[0].window().copy_in(0, &pattern(1024)).unwrap();
            rig.submit(Transfer::Out { span, skip: 24, len: 1000 }, 1);
            loop {
                rig.wire.wire().room = room;
                if rig.flush() {
                    break;
                }
            }
            assert_eq!(rig.link.copies.octets(), 0);
            std::mem::take(&mut rig.wire.wire().sent)
        };
        let whole = write(usize::MAX);
        assert_eq!(whole[CAPSULE..CAPSULE + 1000], pattern(1024)[24..]);
        for room in [1, 7, 71, 72, 73, 200, 1071, 1072, 1073] {
            assert!(write(room) == whole, "{room} octets at a time");
        }
    }
}

#[test]
fn a_copy_for_a_digest_is_let_go_with_the_last_octet_of_its_data() {
    let mut rig = Rig::ready(4, true);
    let span = rig.memory(1, 4096, 5);
    rig.submit(Transfer::Out { span, skip: 0, len: 4096 }, 1);
    for (room, copied) in [(CAPSULE + 4095, 4096), (1, 0)] {
        rig.wire.wire().room = room;
        assert!(!rig.flush());
        assert_eq!(rig.link.copies.octets(), copied);
    }
}

#[test]
fn no_more_is_copied_for_digests_than_may_wait() {
    let (count, len) = (160, 8192);
    let mut rig = Rig::ready(count, true);
    rig.wire.wire().room = 0;
    let span = rig.memory(1, len, 5);
    for user in 0..count {
        rig.submit(Transfer::Out { span, skip: 0, len }, user.into());
    }
    assert!(!rig.flush());
    assert!(rig.link.copies.is_full() && rig.link.copies.octets() == 1 << 20);
    rig.offers();
    rig.wire.wire().room = usize::MAX;
    assert!(rig.flush(), "all of it leaves, a part at a time");
    let capsule = CAPSULE + len as usize + 4;
    assert_eq!(rig.offers(), [128 * capsule, 32 * capsule]);
}

#[test]
fn how_a_stream_ends_says_what_became_of_the_way() {
    let cases = [
        (Err(io::ErrorKind::TimedOut.into()), Code::PathTimeout),
        (Err(io::ErrorKind::ConnectionReset.into()), Code::PathLost),
        (Ok(Received::End), Code::PathLost),
    ];
    for (end, code) in cases {
        let mut rig = Rig::ready(4, false);
        rig.wire.wire().end = Some(end);
        assert_eq!(rig.broken().code, code);
    }
    let mut rig = Rig::ready(4, false);
    rig.say(&[0xff; 64]);
    assert_eq!(rig.broken().code, Code::PathProtocol);
}

#[test]
fn a_command_belongs_to_its_user_until_it_is_over() {
    let mut rig = Rig::ready(4, false);
    let slots = [7, 8, 7].map(|user| rig.send(Transfer::None, user));
    assert_eq!(
        (rig.link.slots_of(7), rig.link.slots_of(8), rig.link.slots_of(0)),
        (vec![slots[0], slots[2]], vec![slots[1]], vec![])
    );
    assert_eq!(rig.link.in_flight(), 3);
    let cid = rig.link.cid(slots[0]).unwrap();
    rig.link.abort_sent(slots[0]);
    assert!(!rig.link.awaits_aborts(), "the command is not over");
    rig.answer(slots[0]);
    rig.receive();
    assert_eq!((rig.link.slots_of(7), rig.link.in_flight()), (vec![slots[2]], 2));
    assert!(rig.link.awaits_aborts());
    assert_eq!(rig.link.abort_answered(slots[0], cid, false), 7, "whose command it was");
    assert!(!rig.link.awaits_aborts());
}

#[test]
fn what_the_stream_says_of_itself_is_passed_on() {
    let rig = Rig::ready(4, false);
    assert_eq!((rig.link.counters().syscalls, rig.link.unacknowledged()), (7, Some(Duration::from_secs(7))));
}

#[test]
fn a_proof_of_abortion_belongs_to_one_command() {
    let mut rig = Rig::ready(4, false);
    let slots = [1, 2].map(|user| rig.send(Transfer::None, user));
    let cids = slots.map(|slot| rig.link.cid(slot).unwrap());
    rig.link.abort_answered(slots[0], cids[0] ^ 1 << 10, true);
    rig.link.abort_answered(slots[1], cids[1], true);
    rig.link.abort();
    let ended: Vec<_> = std::iter::from_fn(|| rig.link.next_outcome()).map(|e| (e.user, e.aborted)).collect();
    assert_eq!(ended, [(1, false), (2, true)], "an earlier command in the same slot is not this one");
}

#[test]
fn a_copy_for_a_digest_goes_with_its_pdu_and_not_with_the_slot() {
    let mut rig = Rig::ready(4, true);
    let spans = [0xaa, 0xbb].map(|fill| rig.memory(1, 4096, fill));
    rig.wire.wire().room = 0;
    let first = rig.submit(Transfer::Out { span: spans[0], skip: 0, len: 4096 }, 0);
    assert!(!rig.flush());
    assert!(rig.link.withdraw(first), "nothing of it has left");
    rig.wire.wire().room = usize::MAX;
    assert_eq!(rig.send(Transfer::Out { span: spans[1], skip: 0, len: 4096 }, 1), first, "the slot is used again");
    let sent = std::mem::take(&mut rig.wire.wire().sent);
    assert_eq!(sent.len(), CAPSULE + 4096 + 4);
    let data = &sent[CAPSULE..CAPSULE + 4096];
    assert!(data.iter().all(|&b| b == 0xbb), "the data of the command that was taken back have left");
    assert_eq!(sent[CAPSULE + 4096..], digest(0, &[0xbb; 4096]).to_le_bytes());
    assert_eq!(rig.link.copies.octets(), 0);
}

/// As many were copied as may be, and most of them are taken back: their copies must not be in the way of those that come after.
#[test]
fn copies_of_what_was_taken_back_do_not_stop_what_comes_after() {
    let (count, len) = (130, 8192);
    let mut rig = Rig::ready(count, true);
    rig.wire.wire().room = 0;
    let span = rig.memory(1, len, 5);
    let slots: Vec<u16> =
        (0..count).map(|user| rig.submit(Transfer::Out { span, skip: 0, len }, user.into())).collect();
    assert!(!rig.flush());
    assert!(rig.link.copies.is_full() && rig.link.copies.octets() == 1 << 20);
    // One that was copied stays, and the last, which was not.
    for &slot in slots.iter().filter(|&&slot| slot != slots[100] && slot != slots[129]) {
        assert!(rig.link.withdraw(slot), "nothing of it has left");
    }
    rig.chunks.last().unwrap().window().copy_in(0, &vec![9; len as usize]).unwrap();
    rig.wire.wire().room = usize::MAX;
    assert!(rig.flush(), "they leave as if there had been no others");
    let sent = std::mem::take(&mut rig.wire.wire().sent);
    let capsules: Vec<&[u8]> = sent.chunks(CAPSULE + len as usize + 4).collect();
    assert_eq!(capsules.len(), 2);
    for (capsule, fill) in capsules.into_iter().zip([5, 9]) {
        let (data, crc) = capsule[CAPSULE..].split_at(len as usize);
        assert!(data.iter().all(|&b| b == fill) && crc == digest(0, data).to_le_bytes(), "{fill}");
    }
    assert_eq!(rig.link.copies.octets(), 0);
}

/// Of short commands with data that wait together, one is taken back: the others leave, and nothing of it.
#[test]
fn a_short_command_that_was_taken_back_does_not_leave_with_the_others() {
    for taken in 0..3 {
        let mut rig = Rig::ready(4, false);
        rig.wire.wire().room = 0;
        let slots = [0u8, 1, 2].map(|n| {
            let span = rig.memory(1, 512, n);
            let command = BlockCommand { write: true, nsid: 1, slba: n.into(), nlb_z: 0 };
            rig.link.submit_block(&command, span, 0, 512, n.into()).unwrap()
        });
        assert!(!rig.flush());
        assert!(rig.link.withdraw(slots[taken]));
        rig.wire.wire().room = usize::MAX;
        assert!(rig.flush());
        let sent = std::mem::take(&mut rig.wire.wire().sent);
        let said: Vec<(u8, u8, u8)> =
            sent.chunks(CAPSULE + 512).map(|c| (c[8 + 40], c[CAPSULE], c[CAPSULE + 511])).collect();
        let want: Vec<_> = (0..3).filter(|n| usize::from(*n) != taken).map(|n| (n, n, n)).collect();
        assert_eq!(said, want, "number {taken} was taken back");
    }
}

/// The peer need not say anything more to have that heard.
#[test]
fn what_was_answered_before_it_had_left_is_over_when_it_has() {
    for data_digest in [false, true] {
        let mut rig = Rig::ready(4, data_digest);
        let span = rig.memory(1, 512, 3);
        rig.wire.wire().room = CAPSULE + 100;
        let slot = rig.submit(Transfer::Out { span, skip: 0, len: 512 }, 1);
        assert!(!rig.flush());
        rig.answer(slot);
        assert!(rig.receive());
        assert!(rig.done.is_empty() && !rig.link.has_news(), "its memory is still being read");
        rig.wire.wire().room = usize::MAX;
        assert!(rig.flush() && rig.link.has_news());
        assert!(!rig.receive(), "nothing has come");
        assert_eq!(rig.done.iter().map(|f| f.user).collect::<Vec<_>>(), [1], "digest {data_digest}");
        assert!(!rig.link.has_news() && rig.link.in_flight() == 0);
    }
}
