//! Jobs over a device whose every answer is up to the test.

use super::testing::Rig;
use super::*;
use crate::mail::Address;
use crate::media::MediumError;
use polypath_block::{Flags, Limits};

fn job(rig: &Rig, task: Task, tag: u32, lba: u64, blocks: u64) -> Job {
    Job::new(rig.disk.clone(), task, tag, (lba, blocks))
}

fn write(rig: &mut Rig, conn: u64, tag: u32, lba: u64, blocks: u64, byte: u8) {
    let data = vec![byte; blocks as usize * 512];
    let job = job(rig, Task::Write, tag, lba, blocks).with_data(data);
    rig.order(conn, Order::Start(job));
}

/// What became of one job.
fn one(rig: &mut Rig, job: Job) -> Result<(), MediumError> {
    rig.order(1, Order::Start(job));
    rig.pump();
    let over = rig.over();
    assert_eq!(over.len(), 1, "{over:?}");
    over[0].1
}

const PLAIN: Flags = Flags::empty();

#[test]
fn jobs_are_cut_at_the_limits_of_the_device() {
    let mut rig = Rig::new(Limits { max_transfer_bytes: 4096, max_write_zeroes_blocks: 7, ..Limits::UNLIMITED });
    let data: Vec<u8> = (0..20 * 512).map(|i| (i / 100) as u8).collect();
    let wanted = job(&rig, Task::Write, 5, 100, 20).with_data(data.clone());
    assert_eq!(one(&mut rig, wanted), Ok(()));
    let cut = |op| vec![(op, 100, 8, PLAIN), (op, 108, 8, PLAIN), (op, 116, 4, PLAIN)];
    assert_eq!(rig.script.seen(), cut(Op::Write));
    let read = job(&rig, Task::Read, 6, 100, 20);
    rig.order(1, Order::Start(read));
    rig.pump();
    assert_eq!(rig.script.seen(), cut(Op::Read));
    assert!(rig.ended[0].data == data);
    rig.over();
    for (task, flags) in [(Task::Zero { unmap: true }, Flags::UNMAP), (Task::Zero { unmap: false }, PLAIN)] {
        let zero = job(&rig, task, 7, 100, 9);
        assert_eq!(one(&mut rig, zero), Ok(()));
        assert_eq!(rig.script.seen(), [(Op::WriteZeroes, 100, 7, flags), (Op::WriteZeroes, 107, 2, flags)]);
    }
    let discard = Job { more: vec![(0, 0), (300, 5)], ..job(&rig, Task::Discard, 8, 200, 3) };
    assert_eq!(one(&mut rig, discard), Ok(()));
    assert_eq!(rig.script.seen(), [(Op::Discard, 200, 3, PLAIN), (Op::Discard, 300, 5, PLAIN)]);
    let nothing = job(&rig, Task::Write, 9, 5, 0);
    assert_eq!((one(&mut rig, nothing), rig.script.seen()), (Ok(()), vec![]));
    let pattern = job(&rig, Task::Write, 10, 0, 600).with_data([vec![3; 256], vec![4; 256]].concat());
    assert_eq!(one(&mut rig, pattern), Ok(()));
    let same = job(&rig, Task::Compare, 11, 0, 600).with_data([vec![3; 256], vec![4; 256]].concat());
    assert_eq!(one(&mut rig, same), Ok(()));
    rig.finish();
}

#[test]
fn what_the_device_cannot_do_is_done_another_way() {
    let poor = Limits {
        max_write_zeroes_blocks: 0,
        max_discard_blocks: 0,
        fua: false,
        compare: false,
        write_cache: true,
        ..Limits::UNLIMITED
    };
    let mut rig = Rig::new(poor);
    let durable = job(&rig, Task::Write, 1, 0, 300).with_data(vec![7; 300 * 512]).with_fua(true);
    assert_eq!(one(&mut rig, durable), Ok(()));
    let seen = [(Op::Write, 0, 256, PLAIN), (Op::Write, 256, 44, PLAIN), (Op::Flush, 0, 0, PLAIN)];
    assert_eq!(rig.script.seen(), seen);
    for (byte, result) in [(7, Ok(())), (8, Err(MediumError::Miscompare))] {
        let compare = job(&rig, Task::Compare, 2, 3, 297).with_data(vec![byte; 297 * 512]);
        assert_eq!(one(&mut rig, compare), result);
    }
    assert!(rig.script.seen().iter().all(|(op, ..)| *op == Op::Read));
    let zero = job(&rig, Task::Zero { unmap: true }, 3, 0, 2);
    assert_eq!(one(&mut rig, zero), Ok(()));
    assert_eq!(rig.script.seen(), [(Op::Write, 0, 2, PLAIN)]);
    assert_eq!((rig.script.byte(1), rig.script.byte(2)), (0, 7));
    let discard = job(&rig, Task::Discard, 4, 0, 300);
    assert_eq!((one(&mut rig, discard), rig.script.seen()), (Ok(()), vec![]));
    assert_eq!(rig.script.byte(2), 7, "nothing was promised");
    rig.script.change(|info| info.limits = Limits { write_cache: true, ..Limits::UNLIMITED });
    let durable = job(&rig, Task::Write, 5, 0, 1).with_data(vec![9; 512]).with_fua(true);
    assert_eq!(one(&mut rig, durable), Ok(()));
    assert_eq!(rig.script.seen(), [(Op::Write, 0, 1, Flags::FUA)]);
    rig.finish();
}

#[test]
fn errors_keep_their_meaning_and_end_a_job_once() {
    let mut rig = Rig::new(Limits { max_transfer_bytes: 4096, ..Limits::UNLIMITED });
    for (code, task, want) in [
        (Code::Medium, Task::Read, MediumError::Read),
        (Code::Medium, Task::Write, MediumError::Write),
        (Code::CacheLost, Task::Flush, MediumError::Write),
        (Code::OutOfRange, Task::Read, MediumError::OutOfRange),
        (Code::Unsupported, Task::Discard, MediumError::Unsupported),
        (Code::WriteProtected, Task::Write, MediumError::WriteProtected),
        (Code::ReservationConflict, Task::Write, MediumError::Conflict),
        (Code::Miscompare, Task::Compare, MediumError::Miscompare),
        (Code::NoSpace, Task::Write, MediumError::NoSpace),
        (Code::Aborted, Task::Write, MediumError::Aborted),
        (Code::OutcomeUnknown, Task::Write, MediumError::Failed),
        (Code::NoPath, Task::Read, MediumError::Failed),
        (Code::Gone, Task::Flush, MediumError::Failed),
    ] {
        rig.script.fail(&[code]);
        let failing = job(&rig, task, 1, 0, 1).with_data(vec![0; 512]);
        assert_eq!(one(&mut rig, failing), Err(want), "{code:?} of {task:?}");
    }
    // Of several requests one fails: one end, after all of them.
    rig.script.fail(&[Code::Ok, Code::NoSpace, Code::Medium]);
    let long = job(&rig, Task::Write, 2, 0, 64).with_data(vec![1; 64 * 512]);
    assert_eq!(one(&mut rig, long), Err(MediumError::NoSpace));
    rig.finish();
}

#[test]
fn a_full_queue_loses_nothing() {
    let mut rig = Rig::new(Limits { max_transfer_bytes: 1024, ..Limits::UNLIMITED });
    rig.script.room(3);
    rig.script.hold(&[Op::Write]);
    for n in 0..200u32 {
        write(&mut rig, u64::from(n % 5), n, u64::from(n) * 10, 10, n as u8);
    }
    rig.pump();
    assert_eq!((rig.script.seen().len(), rig.over().len()), (3, 0), "it waits for room");
    rig.script.hold(&[]);
    rig.pump();
    let mut tags: Vec<u32> = rig.over().into_iter().map(|(tag, result)| result.map(|()| tag).unwrap()).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..200).collect::<Vec<_>>());
    assert!((0..200).all(|n| rig.script.byte(n * 10 + 9) == n as u8));
    rig.finish();
}

#[test]
fn what_was_given_up_is_not_quiet_before_it_came_back() {
    let mut rig = Rig::new(Limits { max_transfer_bytes: 4096, ..Limits::UNLIMITED });
    let reply = Address { thread: 0, conn: 9, tag: 1 };
    rig.script.hold(&[Op::Write]);
    rig.script.room(2);
    write(&mut rig, 1, 1, 0, 64, 1);
    write(&mut rig, 1, 2, 500, 1, 2);
    rig.pump();
    assert_eq!(rig.script.seen().len(), 2, "two requests of the first");
    assert!(!rig.engine.watch(|_| true, reply), "nobody has given anything up");
    rig.order(1, Order::Cancel(1));
    assert!(!rig.engine.watch(|index| index != 0, reply), "another disk is quiet");
    assert!(rig.engine.watch(|index| index == 0, reply));
    rig.engine.abandon(1);
    // Somebody else, or the same after it has come back, writes there and elsewhere.
    rig.script.room(9);
    write(&mut rig, 2, 3, 60, 8, 3);
    write(&mut rig, 2, 4, 64, 8, 4);
    rig.pump();
    let lbas: Vec<u64> = rig.script.seen().iter().map(|seen| seen.1).collect();
    assert_eq!(lbas, [64], "what meets the ghost waits, what was not begun is not begun");
    assert!(rig.quiet.is_empty() && rig.over().is_empty());
    rig.script.hold(&[]);
    rig.pump();
    assert_eq!(rig.quiet, [reply]);
    let mut over = rig.over();
    over.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(over, [(3, Ok(())), (4, Ok(()))], "nobody hears of the others");
    assert_eq!([0, 15, 16, 60, 500].map(|lba| rig.script.byte(lba)), [1, 1, 0, 3, 0]);
    assert!(!rig.engine.watch(|_| true, reply));
    rig.finish();
}

#[test]
fn who_has_gone_waits_for_nothing() {
    let mut rig = Rig::new(Limits::UNLIMITED);
    rig.script.hold(&[Op::Write]);
    write(&mut rig, 1, 1, 0, 1, 1);
    rig.pump();
    rig.engine.abandon(1);
    let asks = |conn, tag| Address { thread: 1, conn, tag };
    for (conn, tag) in [(7, 1), (7, 2), (8, 1), (9, 1)] {
        assert!(rig.engine.watch(|_| true, asks(conn, tag)));
    }
    rig.engine.abandon(7);
    assert_eq!(rig.engine.waiting(), 2);
    rig.engine.forget(|conn| conn == 8);
    assert_eq!(rig.engine.waiting(), 1);
    rig.script.hold(&[]);
    rig.pump();
    assert_eq!(rig.quiet, [asks(9, 1)]);
    rig.finish();
}

#[test]
fn what_a_device_tells_of_itself_is_followed() {
    let rig = Rig::new(Limits::UNLIMITED);
    rig.disk.follow();
    assert!(!rig.disk.follow());
    rig.script.change(|info| info.geometry.blocks = 9000);
    assert!(rig.disk.follow() && !rig.disk.follow());
    assert_eq!(rig.disk.info().geometry.blocks, 9000);
    rig.script.change(|_| ());
    assert!(!rig.disk.follow(), "nothing new");
    rig.finish();
}

#[test]
fn who_a_disk_is_is_told_in_words_of_both_protocols() {
    use polypath_block::Identifier::{Eui64, Naa, Nguid, Place, T10Vendor, Uuid};
    let derive = |text: &str| [text.len() as u8; 16];
    let ids = |list: &[polypath_block::Identifier]| Identities::of(list, derive);
    let naa = Naa(vec![0x60; 16]);
    assert_eq!(ids(&[Place("here".into()), T10Vendor(vec![1])]), None);
    let all = Identities { uuid: [1; 16], nguid: [2; 16], eui64: [3; 8] };
    assert_eq!(ids(&[Uuid([1; 16]), Nguid([2; 16]), Eui64([3; 8]), naa.clone()]), Some(all));
    let only = Identities { nguid: [2; 16], ..Identities::default() };
    assert_eq!(ids(&[Nguid([2; 16]), naa.clone()]), Some(only), "nothing is made up that another way would not show");
    assert_eq!(ids(&[naa]), Some(Identities { uuid: [36; 16], ..Identities::default() }));
}
