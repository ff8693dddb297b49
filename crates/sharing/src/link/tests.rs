//! Both ends of a link in one hand: what fits, what is refused, when it asks to be woken.

use super::*;
use polypath_block::{RegionId, SegRow, SegTable};

/// A link between hands, with a row of [`WIDE`] segments and one more.
struct Rig {
    client: Client,
    served: Served,
    segs: SegTable,
    row: SegRow,
    done: Done,
    now: Time,
}

impl Rig {
    /// A link of `depth` that was taken in and is ready.
    fn new(depth: u16) -> Rig {
        let mailbox = OwnerMailbox::new("held", 0, None).expect("an eventfd");
        let (client, served) = pair(&mailbox, UnitId::ONLY, depth).expect("an eventfd");
        let mut segs = SegTable::new(WIDE + 1);
        let row = segs.reserve(1, WIDE + 1).expect("room");
        for (n, seg) in (0..).zip(segs.get_mut(row.span(0, WIDE + 1))) {
            *seg = Segment { offset: n, region: RegionId(1), len: 1 };
        }
        let mut rig = Rig { client, served, segs, row, done: Done::default(), now: Time::from_millis(5) };
        rig.served.join();
        rig.served.show(Health::Ready, false);
        rig.poll();
        rig
    }

    fn cx(&mut self) -> (&mut Client, Cx<'_>, &mut Done) {
        (&mut self.client, Cx { now: self.now, segs: &mut self.segs, reactor: 1 }, &mut self.done)
    }

    fn poll(&mut self) {
        let (client, mut cx, done) = self.cx();
        client.poll(&mut cx, done);
    }

    fn submit(&mut self, io: Io) -> Result<(), RefusedWhy> {
        let (client, mut cx, _) = self.cx();
        client.submit(&mut cx, io).map_err(|refused| refused.why)
    }

    fn write(&mut self, tag: u64, segments: u32) -> Result<(), RefusedWhy> {
        let span = self.row.span(0, segments);
        self.submit(Io::write(tag, tag, segments, span))
    }

    fn arm(&mut self) -> (Armed, Waits) {
        let mut waits = Waits::default();
        let (client, mut cx, _) = self.cx();
        (client.arm(&mut cx, &mut waits), waits)
    }

    /// What the owner finds in the rings.
    fn taken(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.served.requests.pop().ok()).collect()
    }
}

#[test]
fn whoever_is_woken_by_the_end_of_a_link_finds_it_ended() {
    const ROUNDS: usize = 500;
    let mailbox = OwnerMailbox::new("raced", 0, None).expect("an eventfd");
    let (send, receive) = std::sync::mpsc::sync_channel::<Served>(0);
    let owner = std::thread::spawn(move || receive.into_iter().for_each(drop));
    let mut segs = SegTable::new(1);
    let (mut done, mut waits) = (Done::default(), Waits::default());
    for round in 0..ROUNDS {
        let (mut client, served) = pair(&mailbox, UnitId::ONLY, 1).expect("an eventfd");
        client.open.insert(Open { tag: 7, wide: None, suspect: false, changes: false }).expect("a slot");
        waits.clear();
        assert_eq!(client.arm(&mut Cx { now: Time::ZERO, segs: &mut segs, reactor: 1 }, &mut waits), Armed::Sleep);
        send.send(served).expect("a thread that drops it");
        while !client.wire.bell.is_rung() {
            std::hint::spin_loop();
        }
        // It is rung once: what this turn does not see, no later one is woken for.
        client.poll(&mut Cx { now: Time::ZERO, segs: &mut segs, reactor: 1 }, &mut done);
        assert_eq!(done.completions.len(), 1, "round {round}: woken before the end could be seen");
        done.clear();
    }
    drop(send);
    owner.join().expect("a thread that ends");
}

#[test]
fn the_rings_hold_all_that_can_be_open_at_a_time() {
    // A deep link, every request with as many segments as the ring has for each.
    const DEPTH: u16 = 200;
    let mut rig = Rig::new(DEPTH);
    let segments = SEGMENTS_A_REQUEST as u32;
    (0..u64::from(DEPTH)).for_each(|tag| assert_eq!(rig.write(tag, segments), Ok(()), "request {tag}"));
    assert_eq!(rig.write(999, 1), Err(RefusedWhy::Full));
    let first = rig.taken();
    assert_eq!(first.len(), usize::from(DEPTH));
    while let Ok(chunk) = rig.served.segments.read_chunk(rig.served.segments.slots()) {
        if chunk.is_empty() {
            break;
        }
        chunk.commit_all();
    }
    // All become suspect, so that as many again may be open; then those do, and all of it completes: the asking side hears of the
    // first half before it can send the second, and of nothing else until the end.
    let fence = polypath_block::FenceTerms { proof: Proof::Aborted, within: Duration::from_secs(1) };
    let suspect = |tag| Reply::Suspect(Suspect { tag, fate: Fate::Unknown, cause: Code::PathLost, fence });
    let completion = |tag| Reply::Completion(Completion { tag, status: Code::PathLost.into(), proof: Proof::Aborted });
    first.iter().for_each(|m| assert!(rig.served.reply(suspect(m.io.tag))));
    rig.poll();
    (0..u64::from(DEPTH)).for_each(|tag| assert_eq!(rig.write(1000 + tag, 1), Ok(()), "request {tag} beside suspects"));
    let second = rig.taken();
    second.iter().for_each(|m| assert!(rig.served.reply(suspect(m.io.tag)), "no room for a suspect"));
    first.iter().chain(&second).for_each(|m| assert!(rig.served.reply(completion(m.io.tag)), "no room for an outcome"));
    rig.poll();
    assert_eq!((rig.done.suspects.len(), rig.done.completions.len()), (400, 400));
}

#[test]
fn a_request_that_names_too_much_is_malformed_and_one_that_names_just_enough_is_not() {
    let mut rig = Rig::new(4);
    assert_eq!(rig.write(1, WIDE), Ok(()));
    assert_eq!(rig.taken().iter().map(|m| m.io.segs.count).collect::<Vec<_>>(), [WIDE]);
    assert_eq!(rig.arm().0, Armed::Busy, "not kicked yet");
    rig.client.kick();
    assert_eq!(rig.arm().0, Armed::Sleep);
    // One more segment cannot cross. It is said in the next turn, and what can be said in one is bounded.
    (2..6).for_each(|tag| assert_eq!(rig.write(tag, WIDE + 1), Ok(())));
    assert_eq!(rig.write(6, WIDE + 1), Err(RefusedWhy::Full));
    assert_eq!(rig.arm().0, Armed::Busy, "outcomes are kept back");
    assert!(rig.taken().is_empty());
    rig.poll();
    let done: Vec<_> = rig.done.completions.drain(..).map(|c| (c.tag, c.status.code, c.proof)).collect();
    assert_eq!(done, [2, 3, 4, 5].map(|tag| (tag, Code::Invalid, Proof::NeverSent)));
}

#[test]
fn only_what_needs_a_wide_row_takes_one_and_at_once() {
    // What a narrow row holds, and what has no data, however many segments it names.
    let mut rig = Rig::new(64);
    let span = rig.row.span(0, NARROW + 1);
    for tag in 0..20 {
        assert_eq!(rig.write(tag, NARROW), Ok(()));
        assert_eq!(rig.write(tag, 1), Ok(()));
        assert_eq!(rig.submit(Io { segs: span, ..Io::flush(tag) }), Ok(()));
    }
    let taken = rig.taken();
    assert_eq!(taken.len(), 60);
    assert!(taken.iter().all(|m| m.wide.is_none()));
    // What was named without data does not cross.
    let named: Vec<_> = taken[..3].iter().map(|m| m.io.segs).collect();
    assert_eq!(named, [NARROW, 1, 0].map(|count| SegSpan { start: 0, count }));
    // The others have a row each while there are rows.
    let mut rig = Rig::new(64);
    for row in 0..WIDE_ROWS as u8 {
        assert_eq!(rig.write(row.into(), NARROW + 1), Ok(()));
        assert_eq!(rig.taken().iter().map(|m| m.wide).collect::<Vec<_>>(), [Some(row)]);
    }
    // Rows come back as they are, and whoever waited first is served first.
    assert_eq!(rig.write(100, NARROW + 1), Ok(()));
    let keys: Vec<u64> = rig.client.open.iter().map(|(key, _)| key.as_u32().into()).collect();
    let ok = |tag| Reply::Completion(Completion { tag, status: Status::OK, proof: Proof::Answered });
    assert!(rig.served.reply(ok(keys[5])));
    rig.poll();
    assert_eq!(rig.write(101, NARROW + 1), Ok(()));
    let taken = rig.taken();
    assert_eq!(taken.iter().map(|m| (m.io.lba, m.wide)).collect::<Vec<_>>(), [(100, Some(5))]);
}

#[test]
fn a_link_that_is_given_up_takes_nothing_though_no_turn_has_passed() {
    let mut rig = Rig::new(4);
    assert_eq!(rig.client.health(), Health::Ready);
    assert!(rig.served.show(Health::Ready, true));
    assert!(rig.client.is_ended());
    assert_eq!(rig.client.health(), Health::Down);
    assert_eq!(rig.write(1, 1), Err(RefusedWhy::Gone));
}

#[test]
fn every_health_crosses() {
    let mut rig = Rig::new(4);
    for health in [Health::Stalled, Health::Down, Health::Ready] {
        assert!(rig.served.show(health, false), "a change is to be told");
        assert!(!rig.served.show(health, false), "told twice");
        rig.poll();
        assert_eq!(rig.client.health(), health);
    }
}

#[test]
fn a_link_that_has_nothing_to_do_wants_no_turn() {
    let mut rig = Rig::new(4);
    rig.now = rig.now.after(JOIN_LIMIT * 2);
    let (armed, waits) = rig.arm();
    assert_eq!((armed, waits.interests.len(), waits.deadline), (Armed::Sleep, 1, None));
    assert_eq!(rig.write(1, 1), Ok(()));
    rig.client.kick();
    let (armed, waits) = rig.arm();
    assert_eq!((armed, waits.deadline), (Armed::Sleep, None), "outcomes are told by the bell");
}
