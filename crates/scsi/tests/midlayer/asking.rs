//! What the mid-layer asks on its own account, when it is not answered, answered late, or told that something has changed meanwhile.

use crate::script::{BLOCK, Driven, Reply, ms, rig};
use crate::{attention, rule};
use polypath_block::{
    Code, ControllerQueue, Cx, Device, DeviceState, Done, Health, Io, QueueConfig, QueueSource, Unit,
};
use polypath_scsi::Sense;
use polypath_scsi::midlayer::{Address, DiskSource, HostBus, Recovered, Shown};
use polypath_scsi::opcode;
use polypath_scsi::sense::key;

#[test]
fn trouble_of_the_moment_says_nothing_of_what_a_disk_can_do() {
    let internal_failure = Reply::Sense(Sense::new(key::HARDWARE_ERROR, 0x44, 0));
    for (times, does) in [(3, true), (usize::MAX, false)] {
        let mut rig = rig(100);
        rig.script(|s| s.rules = vec![rule(&[opcode::MODE_SENSE_10], times, internal_failure)]);
        rig.disk.host().bus().all_stale();
        rig.scan();
        let DeviceState::Live(info) = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
        assert_eq!(info.limits.fua, does, "refused {times} times");
    }
}

#[test]
fn a_question_that_is_not_answered_is_aborted_and_then_costs_the_way() {
    let answers = [
        (vec![], &["AbortTask"][..]),
        (vec![Recovered::Failed], &["AbortTask", "ResetHost"]),
        (vec![Recovered::NoSuchTask], &["AbortTask", "ResetHost"]),
    ];
    for (recovered, steps) in answers {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| {
            s.recovered = recovered.clone().into();
            // Looked at once more, and the first question is lost.
            let look = rule(&[opcode::READ_10, opcode::READ_16], 1, attention(0x2a, 0x09));
            s.rules = vec![look, rule(&[opcode::TEST_UNIT_READY], 1, Reply::Never)];
        });
        let span = d.span(0, BLOCK);
        d.submit(&rig, Io::read(1, 0, 1, span)).unwrap();
        assert!(d.until(&mut rig, 3000, |done| done.completions.len() == 1), "{recovered:?}: it waits for ever");
        assert_eq!(d.done.completions[0].status.code, Code::PathTimeout, "another path may do");
        let log = rig.script(|s| s.log.clone());
        let begins = |(said, step): (&String, &&str)| said.starts_with(*step);
        assert!(log.len() == steps.len() && log.iter().zip(steps).all(begins), "{recovered:?}: {log:?}");
        // It is looked at again.
        assert!((0..3000).any(|_| {
            d.turn(&mut rig, 1);
            d.submit(&rig, Io::read(2, 0, 1, span)).is_ok()
        }));
        assert!(d.until(&mut rig, 100, |done| done.completions.len() == 2));
        assert_eq!(d.done.completions[1].status.code, Code::Ok);
    }
}

#[test]
fn a_control_session_that_is_not_answered_is_given_up() {
    let mut rig = rig(100);
    rig.scanner = rig.scanner.with_time_limit(ms(500));
    rig.script(|s| s.rules = vec![rule(&[opcode::TEST_UNIT_READY], 1, Reply::Never)]);
    rig.scan();
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"]);
    rig.script(|s| s.naa = 9);
    rig.disk.host().bus().all_stale();
    rig.scan();
    assert!(matches!(rig.disk.state(), DeviceState::Down { cause: Code::PathIdentity, .. }), "and it goes on looking");
}

#[test]
fn whoever_changes_while_it_is_looked_at_is_looked_at_anew() {
    // Before each of the questions that follow the identification.
    for opcodes in [&[opcode::SERVICE_ACTION_IN_16][..], &[opcode::MODE_SENSE_10]] {
        let mut rig = rig(100);
        rig.script(|s| {
            s.rules = vec![rule(opcodes, 1, attention(0x3f, 0x03))];
            s.pages = 0;
        });
        rig.disk.host().bus().all_stale();
        rig.scan();
        let asked = rig.script(|s| s.pages);
        assert_eq!(asked % 5, 0, "five pages, each time");
        assert!(asked >= 10, "who it is was asked again: {asked}");
    }
}

#[test]
fn whoever_changes_all_the_time_is_not_asked_for_ever() {
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(&[opcode::INQUIRY], usize::MAX, attention(0x3f, 0x03))]);
    rig.disk.host().bus().all_stale();
    rig.scan();
    let DeviceState::Down { cause, reason } = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
    assert!(cause == Code::PathBusy && reason.contains("changes all the time"), "{cause:?}: {reason}");
}

#[test]
fn what_is_under_way_to_another_disk_costs_the_way() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.rules = vec![rule(&[opcode::WRITE_10, opcode::WRITE_16], 1, Reply::Never)]);
    let span = d.span(0, BLOCK);
    d.submit(&rig, Io::write(1, 0, 1, span)).unwrap();
    d.turn(&mut rig, 1);
    assert!(rig.script(|s| s.log.is_empty()));
    // The control session finds another disk there, before this one hears of it.
    rig.script(|s| s.naa = 9);
    rig.disk.host().bus().all_stale();
    rig.scan();
    rig.script(|s| s.log.clear());
    d.turn(&mut rig, 0);
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"], "data that are asked for are not for the other one");
    assert!(d.submit(&rig, Io::read(2, 0, 1, span)).is_err(), "nor is anything else");
}

#[test]
fn a_loss_of_power_is_counted_once_and_not_for_a_nexus_that_is_new() {
    // The attention that a nexus hears when it has come again, and what comes of it.
    type Case = (&'static str, &'static [(u8, u8)], u64);
    let cases: [Case; 5] = [
        ("power on", &[(0x29, 0x01)], 1),
        ("not told which", &[(0x29, 0x00)], 0),
        ("not told which, by one that tells the nexus apart", &[(0x29, 0x07), (0x29, 0x00)], 1),
        ("nexus loss", &[(0x29, 0x07)], 0),
        ("twice", &[(0x29, 0x01), (0x29, 0x01)], 2),
    ];
    for (what, attentions, losses) in cases {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        assert_eq!(rig.disk.power_losses(), 0);
        for &(asc, ascq) in attentions {
            let version = rig.disk.version();
            let hear = || vec![rule(&[opcode::TEST_UNIT_READY], 1, attention(asc, ascq))];
            rig.script(|s| (s.rules, s.nexus) = (hear(), s.nexus + 1));
            for _ in 0..100 {
                d.turn(&mut rig, 1);
            }
            let early = rig.disk.power_losses();
            rig.script(|s| s.rules = hear());
            rig.scan();
            assert_eq!(rig.disk.power_losses(), early, "{what}: the second to hear of it");
            assert!(rig.disk.version() > version);
        }
        assert_eq!(rig.disk.power_losses(), losses, "{what}");
    }
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(&[opcode::TEST_UNIT_READY], 1, attention(0x29, 0x01))]);
    let _new = Driven::open(&mut rig);
    assert_eq!(rig.disk.power_losses(), 0, "what was before it");
    assert_eq!(rig.script(|s| s.rules[0].times), 0);
}

#[test]
fn each_way_finds_out_for_itself_who_is_there() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    // Its way comes again, and nobody else has looked yet.
    rig.script(|s| (s.naa, s.nexus) = (9, s.nexus + 1));
    for _ in 0..100 {
        d.turn(&mut rig, 1);
    }
    let span = d.span(0, BLOCK);
    assert!(d.submit(&rig, Io::read(1, 0, 1, span)).is_err(), "another disk answers there");
}

/// A target that answers everything it has and takes nothing more (iSCSI: MaxCmdSN that never grows).
#[test]
fn a_target_that_takes_no_commands_any_more_is_not_waited_for_for_ever() {
    let mut rig = rig(1000);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.depth = 0);
    let spans = [d.span(0, BLOCK), d.span(1, BLOCK), d.span(2, 200 * BLOCK)];
    d.submit(&rig, Io::read(1, 0, 1, spans[0])).unwrap();
    d.submit(&rig, Io::write(2, 0, 1, spans[1])).unwrap();
    d.submit(&rig, Io::write(3, 0, 200, spans[2])).unwrap();
    assert!(!d.until(&mut rig, 900, |done| !done.is_empty()), "io_timeout is 1000 ms");
    assert!(d.until(&mut rig, 3000, |done| done.completions.len() == 3), "they wait for ever");
    let ends: Vec<_> = d.done.completions.iter().map(|c| (c.status.scope(), c.proof)).collect();
    assert_eq!(ends, [(polypath_block::Scope::Path, polypath_block::Proof::NeverSent); 3], "another path may do");
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"], "and a new way may as well");
    // Nor are its questions taken, over a new way.
    rig.script(|s| (s.nexus, s.log) = (2, Vec::new()));
    for _ in 0..1200 {
        d.turn(&mut rig, 1);
    }
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"]);
    rig.script(|s| (s.nexus, s.depth) = (3, 32));
    assert!((0..100).any(|_| {
        d.turn(&mut rig, 1);
        d.submit(&rig, Io::read(4, 0, 1, spans[0])).is_ok()
    }));
    // Nor those of the control session.
    rig.scanner = rig.scanner.with_time_limit(ms(500));
    rig.script(|s| (s.depth, s.log) = (0, Vec::new()));
    rig.disk.host().bus().all_stale();
    for _ in 0..30 {
        rig.now = rig.now.after(ms(20));
        rig.scanner.poll(rig.now, 0);
    }
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"]);
}

/// The error of a write that was acknowledged long ago comes with whatever is asked next (SPC-4 section 4.5.5). A flush must hear of it.
#[test]
fn a_deferred_error_is_a_loss_of_the_cache_and_not_of_the_request_that_heard_of_it() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let deferred = Reply::Sense(Sense { deferred: true, ..Sense::new(key::MEDIUM_ERROR, 0x0c, 0) });
    let (span, version) = (d.span(0, BLOCK), rig.disk.version());
    for (tag, io) in [(1, Io::read(1, 0, 1, span)), (2, Io::write(2, 0, 1, span))] {
        rig.script(|s| s.rules = vec![rule(&[opcode::READ_10, opcode::WRITE_10], 1, deferred)]);
        d.submit(&rig, io).unwrap();
        assert!(d.until(&mut rig, 100, |done| done.completions.len() == tag));
        assert_eq!(d.done.completions[tag - 1].status.code, Code::Ok, "it was not carried out, and is sent again");
        assert_eq!(rig.disk.power_losses(), tag as u64, "whoever flushes is to hear of it");
    }
    assert!(rig.disk.version() > version);
    rig.script(|s| s.rules = vec![rule(&[opcode::SYNCHRONIZE_CACHE_10, opcode::SYNCHRONIZE_CACHE_16], 1, deferred)]);
    d.submit(&rig, Io::flush(3)).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 3));
    assert_eq!(
        (d.done.completions[2].status.code, rig.disk.power_losses()),
        (Code::Medium, 2),
        "a flush says it itself"
    );
}

/// Requests are in blocks. Over a way that came again, blocks of another size are another disk's, even before anybody else has looked.
#[test]
fn blocks_of_another_size_are_no_place_for_requests() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| (s.block_size, s.blocks, s.nexus) = (4096, 50, s.nexus + 1));
    for _ in 0..100 {
        d.turn(&mut rig, 1);
    }
    let discard = Io::range(1, polypath_block::Op::Discard, 8, 8);
    assert!(d.submit(&rig, discard).is_err(), "eight blocks from 4096 on, not from 32768");
}

/// LIO says that its LUNs changed at all of them but the one that has changed.
#[test]
fn all_luns_are_looked_at_when_one_says_that_they_changed() {
    let mut rig = rig(100);
    let lun = polypath_scsi::Lun::new(5).unwrap();
    let other = rig.disk.host().bus().attach(Address { target: 0, lun }).unwrap();
    rig.scan();
    let source = DiskSource(rig.host.clone());
    let mut queue = source.open_controller_queue(QueueConfig { depth: 32 }).unwrap();
    let units = [rig.disk.unit(), other.id()].map(|id| queue.open_unit(id).unwrap());
    let mut d = Driven::open(&mut rig);
    let (span, mut done, mut now) = (d.span(0, BLOCK), Done::with_capacity(8), rig.now);
    d.memory.window().copy_in(0, &[7; BLOCK as usize]).unwrap();
    let mut turns = |queue: &mut dyn ControllerQueue, d: &mut Driven, io: Option<(Unit, Io)>| {
        for n in 0..100 {
            now = now.after(ms(1));
            let mut cx = Cx { now, segs: &mut d.segs, reactor: 0 };
            if let (0, Some((unit, io))) = (n, io) {
                queue.submit(&mut cx, unit, io).unwrap();
            }
            queue.poll(&mut cx, &mut done);
        }
        done.completions.drain(..).map(|c| c.status.code).collect::<Vec<_>>()
    };
    turns(&mut *queue, &mut d, None);
    rig.script(|s| {
        s.swapped = vec![(5, 9)];
        s.rules = vec![rule(&[opcode::READ_10], 1, attention(0x3f, 0x0e))];
    });
    assert_eq!(turns(&mut *queue, &mut d, Some((units[0], Io::read(1, 0, 1, span)))), [Code::Ok]);
    let mut cx = Cx { now: rig.now.after(ms(300)), segs: &mut d.segs, reactor: 0 };
    assert!(queue.submit(&mut cx, units[1], Io::write(2, 0, 1, span)).is_err(), "another disk is there by now");
    assert_eq!((queue.health(units[0]), queue.health(units[1])), (Health::Ready, Health::Down));
    assert!(rig.script(|s| s.medium.iter().all(|octet| *octet == 0)));
    // And the control session.
    rig.script(|s| s.swapped = Vec::new());
    rig.disk.host().bus().all_stale();
    rig.scan();
    rig.script(|s| {
        s.swapped = vec![(5, 9)];
        s.rules = vec![rule(&[opcode::TEST_UNIT_READY], 1, attention(0x3f, 0x0e))];
    });
    rig.scan();
    assert!(matches!(other.shown(), Some(Shown::Trouble { code: Code::PathIdentity, .. })), "{:?}", other.shown());
}
