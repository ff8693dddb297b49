//! What is answered while it is in doubt who answers.

use super::*;
use polypath_block::{Op, SegSpan};

const UNIT: Unit = Unit(3);

fn sent(requests: &mut Requests, tag: u64, op: Op) -> SlotKey {
    let io = Io { op, ..Io::read(tag, 0, 1, SegSpan::EMPTY) };
    let key = requests.insert(UNIT, &io, Time::ZERO).unwrap();
    requests.get_mut(key).unwrap().sent(Time::ZERO);
    key
}

fn told(done: &mut Done) -> Option<(u64, Code, Proof)> {
    let told = done.completions.pop().map(|c| (c.tag, c.status.code, c.proof));
    assert!(done.is_empty(), "{done:?}");
    told
}

/// What is answered while it is in doubt who answers, by operation: once it is known that it was nobody else, and if it was.
#[test]
fn an_answer_stands_once_it_is_known_whose_it_is() {
    use Code::{Medium, Miscompare, Ok, OutOfRange, OutcomeUnknown, PathBusy, PathIdentity};
    // The answer; is it sent again if nobody else was there; and what it comes to if somebody was.
    for (op, code, again, revoked) in [
        (Op::Read, Ok, true, PathIdentity),
        (Op::Read, Medium, true, PathIdentity),
        (Op::Write, Ok, true, PathIdentity),
        (Op::Write, OutOfRange, true, PathIdentity),
        (Op::Flush, Ok, true, PathIdentity),
        (Op::Discard, Ok, true, PathIdentity),
        (Op::CompareAndWrite, Ok, false, OutcomeUnknown),
        (Op::CompareAndWrite, Medium, false, OutcomeUnknown),
        (Op::CompareAndWrite, Miscompare, true, PathIdentity),
        (Op::CompareAndWrite, OutOfRange, true, PathIdentity),
    ] {
        let (mut requests, mut done) = (Requests::new(4), Done::with_capacity(4));
        let segs = SegTable::new(1);
        let key = sent(&mut requests, 1, op);
        requests.doubt(UNIT);
        requests.answered(key, code.into(), &mut done);
        assert!(done.is_empty() && requests.has_backlog(), "{op:?} {code:?}: it is not known whose answer it is");
        assert_eq!(requests.next(&segs, Time::ZERO, |_| false), None);
        requests.trust(UNIT, &mut done);
        let next = requests.next(&segs, Time::ZERO, |_| true);
        assert_eq!(next, again.then_some(key), "{op:?} {code:?}");
        if !again {
            assert_eq!(told(&mut done), Some((1, code, Proof::Answered)), "{op:?} {code:?}: it stands");
            assert!(requests.is_empty());
        }
        requests.abandon();

        for answered_first in [true, false] {
            let (mut requests, mut done) = (Requests::new(4), Done::with_capacity(4));
            let key = sent(&mut requests, 1, op);
            requests.doubt(UNIT);
            if answered_first {
                requests.answered(key, code.into(), &mut done);
                requests.revoke(UNIT, PathIdentity, &mut done);
            } else {
                requests.revoke(UNIT, PathIdentity, &mut done);
                requests.answered(key, code.into(), &mut done);
            }
            assert_eq!(told(&mut done), Some((1, revoked, Proof::Answered)), "{op:?} {code:?} {answered_first}");
        }

        // What concerns the way needs nobody's word.
        let key = sent(&mut requests, 2, op);
        requests.doubt(UNIT);
        requests.answered(key, PathBusy.into(), &mut done);
        assert_eq!(told(&mut done), Some((2, PathBusy, Proof::Answered)), "{op:?}");
    }
}

#[test]
fn what_is_sent_once_is_believed_when_it_is_answered_after_the_look() {
    let (mut requests, mut done) = (Requests::new(4), Done::with_capacity(4));
    let (once, read) = (sent(&mut requests, 1, Op::CompareAndWrite), sent(&mut requests, 2, Op::Read));
    requests.doubt(UNIT);
    requests.trust(UNIT, &mut done);
    requests.good(once, &mut done);
    assert_eq!(told(&mut done), Some((1, Code::Ok, Proof::Answered)));
    requests.good(read, &mut done);
    assert_eq!(
        requests.next(&SegTable::new(1), Time::ZERO, |_| true),
        Some(read),
        "read again: from whom, nobody knows"
    );
    requests.abandon();
}

#[test]
fn a_way_that_breaks_ends_what_is_in_doubt_and_nothing_is_sent_again_for_ever() {
    let (mut requests, mut done) = (Requests::new(4), Done::with_capacity(4));
    let key = sent(&mut requests, 1, Op::CompareAndWrite);
    requests.doubt(UNIT);
    requests.good(key, &mut done);
    requests.end_all_waiting(Code::PathLost, &mut done);
    assert_eq!(told(&mut done), Some((1, Code::OutcomeUnknown, Proof::Answered)), "it may have been carried out");

    let key = sent(&mut requests, 2, Op::Read);
    let segs = SegTable::new(1);
    let turns = (0..100).find(|_| {
        requests.doubt(UNIT);
        requests.good(key, &mut done);
        requests.trust(UNIT, &mut done);
        if let Some(next) = requests.next(&segs, Time::ZERO, |_| true) {
            requests.get_mut(next).unwrap().sent(Time::ZERO);
        }
        !done.is_empty()
    });
    assert!(turns.is_some_and(|turns| turns < usize::from(MOST_TRIES)), "{turns:?}");
    assert_eq!(told(&mut done), Some((2, Code::PathBusy, Proof::Answered)));
}

/// A logical unit that was reset has forgotten what it had before: that is asked for at once, and nothing else is.
#[test]
fn a_reset_puts_in_doubt_what_its_logical_unit_had_before_it() {
    let (at, limit, grace) = (Time::from_millis, Duration::from_millis(1000), Duration::from_millis(300));
    let mut requests = Requests::new(16);
    let mut send = |unit, ms| {
        let key = requests.insert(unit, &Io::read(1, 0, 1, SegSpan::EMPTY), Time::ZERO).unwrap();
        requests.get_mut(key).unwrap().sent(at(ms));
        key
    };
    let [older, same, told, younger, ending] = [5, 7, 7, 9, 6].map(|ms| send(UNIT, ms));
    let other = send(Unit(4), 5);
    requests.get_mut(ending).unwrap().stage = Stage::Ending(0, at(8));
    let waits = requests.insert(UNIT, &Io::read(1, 0, 1, SegSpan::EMPTY), Time::ZERO).unwrap();
    assert!(requests.doubt_older(told, UNIT));
    let late: Vec<_> = requests.late(at(10), limit, grace).into_iter().collect();
    assert_eq!(late, [(older, None), (same, None)]);
    assert!([told, younger, ending, other, waits].iter().all(|key| !requests.get(*key).unwrap().doubted));
    assert!(!requests.doubt_older(other, Unit(4)), "it is alone there");
    requests.abandon();
}
