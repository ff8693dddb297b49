//! Starting, stopping, sleeping, waking.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use polypath_block::Limits;

fn ram() -> Arc<RamDevice> {
    RamDevice::new(512, 2048, Limits::UNLIMITED)
}

/// Split or packed, with event index or without.
const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// Adds a flush whose parts lie at place `n`.
fn add_flush(rig: &mut Rig, n: u64) -> Option<u16> {
    let at = DATA_GPA + 32 * n;
    rig.ram.write(at, &header(4, 0));
    rig.driver.add(&[Piece { addr: at, len: 16, write: false }, Piece { addr: at + 16, len: 1, write: true }])
}

#[test]
fn a_stop_drains_and_a_start_goes_on_where_it_was() {
    for packed in [false, true] {
        let mut rig = Rig::of(packed, ram(), 16, true);
        let mut bases = std::collections::BTreeSet::new();
        for round in 0..25_000u32 {
            let n = 1 + round as u16 % 5;
            (0..n).for_each(|i| _ = add_flush(&mut rig, i.into()).unwrap());
            rig.driver.publish();
            rig.turn();
            let base = (round % 100 == 0).then(|| rig.command(Command::Stop { flush: false }).unwrap());
            (0..n).for_each(|_| _ = rig.driver.pop().expect("drained before the answer"));
            if let Some(base) = base {
                assert_eq!(base, rig.driver.base());
                assert!(!rig.counters.read().running);
                bases.insert(base);
                rig.start(base);
            }
        }
        assert!(rig.counters.read().requests > 65_536, "the index must have wrapped");
        assert!(bases.len() > 3, "{bases:?}");
    }
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_gives_back_what_was_not_begun() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    device.change(|s| s.hold = true);
    add_flush(&mut rig, 0).unwrap();
    rig.driver.publish();
    rig.turn();
    device.change(|s| s.down = true);
    add_flush(&mut rig, 1).unwrap();
    rig.driver.publish();
    rig.turn();
    let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    rig.turns(50);
    assert!(answer.try_recv().is_err(), "one is in flight");
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep, "draining is no reason to spin");
    device.change(|s| s.hold = false);
    rig.turns(2);
    assert_eq!(answer.try_recv().unwrap(), Ok(1), "the second was never begun");
    device.change(|s| s.down = false);
    assert!(rig.driver.pop().is_some() && rig.driver.pop().is_none());
    rig.start(1);
    rig.turn();
    assert!(rig.driver.pop().is_some(), "and is taken again");
}

/// The first asker may have given up waiting (a path was away); whoever asks again must not be told to begin at 0: the guest's
/// old requests would be carried out once more.
#[test]
fn a_stop_asked_for_twice_answers_the_same_twice() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    for n in 0..3 {
        add_flush(&mut rig, n).unwrap();
        rig.driver.publish();
        rig.turn();
    }
    device.change(|s| s.hold = true);
    add_flush(&mut rig, 3).unwrap();
    rig.driver.publish();
    rig.turn();
    drop(rig.mailbox.send(Command::Stop { flush: false }).unwrap());
    rig.turns(5);
    let again = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    rig.turns(5);
    assert!(again.try_recv().is_err(), "one is in flight");
    device.change(|s| s.hold = false);
    rig.turns(5);
    assert_eq!(again.try_recv().unwrap(), Ok(4));
}

#[test]
fn an_end_closes_the_queue_and_gives_the_rows_back() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    assert_eq!(device.state.lock().unwrap().open_queues, 1);
    let before = rig.segs.reserve(1, 1).unwrap().span(0, 1).start;
    assert!(before >= 32, "the widest chain has room for life");
    let answer = rig.mailbox.send(Command::End).unwrap();
    assert_eq!(rig.turn(), Turn::Finished);
    assert!(answer.try_recv().unwrap().is_ok());
    assert_eq!(rig.segs.reserve(1, 1).unwrap().span(0, 1).start, 0, "rows are free again");
}

#[test]
fn a_control_thread_that_vanishes_ends_the_vring() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    let (other, _receiver) = mailbox(Arc::new(NoHost));
    drop(std::mem::replace(&mut rig.mailbox, other));
    assert_eq!(rig.turn(), Turn::Finished);
    drop(rig);
    assert_eq!(device.state.lock().unwrap().open_queues, 0);
}

#[test]
fn memory_is_added_while_the_ring_runs() {
    let mut rig = Rig::new(ram(), 16, true);
    let more = GuestRam::new(&[(0x400_0000, 0x1000)]);
    let r = &more.regions[0];
    more.write(r.gpa, &header(4, 0));
    let pieces = [Piece { addr: r.gpa, len: 16, write: false }, Piece { addr: DATA_GPA, len: 1, write: true }];
    rig.run_pieces(&pieces).unwrap();
    assert_eq!(rig.ram.read(DATA_GPA, 1), [1], "not there yet");
    let memory = rig.memory.with(r.gpa, r.uaddr, r.region.clone()).unwrap();
    rig.command(Command::SetMemory(Arc::new(memory))).unwrap();
    rig.run_pieces(&pieces).unwrap();
    assert_eq!(rig.ram.read(DATA_GPA, 1), [0]);
}

#[test]
fn without_a_kick_descriptor_the_ring_is_polled() {
    let mut rig = Rig::stopped(ram(), 16, false, false);
    let start = Start {
        ring: rig.ring(0),
        kick: None,
        call: None,
        err: None,
        write_through: rig.write_through.clone(),
        orphaned: false,
    };
    rig.command(Command::Start(Box::new(start))).unwrap();
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Busy);
    assert_eq!(rig.run(4, 0, &mut [], false), (0, 1));
}

#[test]
fn calls_are_made_only_when_wanted() {
    for (packed, event_idx) in KINDS {
        let mut rig = Rig::of(packed, ram(), 16, event_idx);
        add_flush(&mut rig, 0).unwrap();
        rig.driver.publish();
        rig.turn();
        assert!(Rig::rang(&rig.call), "the first is always called");
        rig.driver.pop().unwrap();
        rig.driver.no_calls();
        for n in 0..8 {
            add_flush(&mut rig, n).unwrap();
            rig.driver.publish();
            rig.turn();
            rig.driver.pop().unwrap();
        }
        assert!(!Rig::rang(&rig.call), "event index {event_idx}: suppressed");
        assert!(!rig.driver.want_call());
        (0..3).for_each(|n| _ = add_flush(&mut rig, n).unwrap());
        rig.driver.publish();
        let calls = rig.counters.read().calls;
        rig.turn();
        assert!(Rig::rang(&rig.call));
        assert_eq!(rig.counters.read().calls, calls + 1, "one call for a batch");
    }
}

#[test]
fn notifications_are_off_while_polling_and_on_while_asleep() {
    for (packed, event_idx) in KINDS {
        let mut rig = Rig::of(packed, ram(), 16, event_idx);
        rig.turn();
        let mut waits = Waits::default();
        for _ in 0..3 {
            assert_eq!(rig.arm(&mut waits), Armed::Sleep);
            assert_eq!(waits.interests.len(), 1);
            waits.clear();
            add_flush(&mut rig, 0).unwrap();
            assert!(rig.driver.publish(), "event index {event_idx}: asleep");
            rig.turn();
            add_flush(&mut rig, 1).unwrap();
            assert!(!rig.driver.publish(), "event index {event_idx}: polling");
            rig.turn();
            assert!(rig.driver.pop().is_some() && rig.driver.pop().is_some());
        }
    }
}

/// It sleeps until the device answers, and is to be told of what comes meanwhile: where the guest goes on, and not where it has answers.
#[test]
fn a_ring_that_sleeps_with_requests_in_flight_is_notified_of_the_next() {
    for (packed, event_idx) in KINDS {
        let device = ram();
        let mut rig = Rig::of(packed, device.clone(), 16, event_idx);
        device.change(|s| s.hold = true);
        for n in 0..4 {
            rig.turns(2);
            assert_eq!(rig.arm(&mut Waits::default()), Armed::Sleep);
            add_flush(&mut rig, n).unwrap();
            assert!(rig.driver.publish(), "packed {packed}, event index {event_idx}: {n} in flight, and it sleeps");
        }
        device.change(|s| s.hold = false);
        rig.turns(3);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 4);
    }
}

#[test]
fn a_dead_kick_descriptor_does_not_spin() {
    let mut rig = Rig::stopped(ram(), 16, true, false);
    // Nothing that a front-end could get past the door; it cannot be read.
    rig.kick = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    rig.start(0);
    rig.turn();
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep);
    assert_eq!(waits.interests.len(), 1);
    rig.turn();
    waits.clear();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep);
    assert!(waits.interests.is_empty());
}

/// Guest and device each sleep as soon as they may and are woken only by the other's notification, in any order of steps: neither
/// may sleep while there is work for it.
#[test]
fn no_notification_is_lost_in_any_interleaving() {
    for seed in 0..300u64 {
        let mut rng = Rng(seed);
        let (packed, event_idx) = KINDS[seed as usize % 4];
        let device = ram();
        device.change(|s| (s.delay, s.rng) = (2, Rng(seed)));
        let mut rig = Rig::of(packed, device.clone(), 16, event_idx);
        let (mut done, mut sent, total) = (0u64, 0u64, 200u64);
        let (mut device_sleeps, mut guest_sleeps) = (false, false);
        let mut steps = 0;
        while done < total {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: stuck after {done} of {sent}");
            if device_sleeps && guest_sleeps {
                panic!("seed {seed}: both asleep with {done} done of {sent} sent");
            }
            if rng.one_in(2) {
                // The device: a turn, or an attempt to sleep.
                if device_sleeps {
                    continue;
                }
                if rng.one_in(2) {
                    rig.turn();
                } else {
                    let mut waits = Waits::default();
                    device_sleeps = rig.arm(&mut waits) == Armed::Sleep;
                }
                // Rings are heard whenever somebody sleeps.
                guest_sleeps &= !Rig::rang(&rig.call);
            } else {
                if guest_sleeps {
                    continue;
                }
                match rng.below(3) {
                    0 if sent < total => {
                        for _ in 0..rng.below(3) + 1 {
                            sent += u64::from(add_flush(&mut rig, sent % 8).is_some());
                        }
                        if rig.driver.publish() {
                            rustix::io::write(&rig.kick, &1u64.to_ne_bytes()).unwrap();
                            device_sleeps = false;
                        }
                    }
                    1 => {
                        while rig.driver.pop().is_some() {
                            done += 1;
                        }
                    }
                    // All sent, or no room: only a completion can help, so it sleeps.
                    _ if (sent >= total || rig.driver.free_descriptors() < 6) && done < sent => {
                        guest_sleeps = !rig.driver.want_call() && !Rig::rang(&rig.call);
                    }
                    _ => {}
                }
            }
        }
        assert!(rig.counters.read().requests >= total);
    }
}

#[test]
fn growth_is_followed_and_a_changed_block_size_fails_requests() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    assert_eq!(rig.run(0, 2048, &mut [0; 512], true).0, 1);
    device.change(|s| {
        s.info.geometry.blocks = 4096;
        s.bytes.resize(4096 * 512, 0);
    });
    assert_eq!(rig.run(0, 2048, &mut [0; 512], true).0, 0);
    device.change(|s| s.info.geometry.block_size = 4096);
    assert_eq!(rig.run(0, 0, &mut [0; 4096], true).0, 1);
}

/// A call that fails because the process is short of something for a moment is no reason never to call again. In a process of its own.
#[test]
fn a_call_that_failed_for_want_of_a_descriptor_is_not_the_last() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const NAME: &str = "tests::lifecycle::a_call_that_failed_for_want_of_a_descriptor_is_not_the_last";
    if std::env::var_os("POLYPATH_NO_DESCRIPTORS").is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let status = again.args(["--exact", NAME]).env("POLYPATH_NO_DESCRIPTORS", "1").status().unwrap();
        return assert!(status.success());
    }
    let mut rig = Rig::new(ram(), 16, false);
    assert!(Rig::rang(&rig.call), "a ring that starts calls once");
    assert!(!rig.driver.want_call());
    add_flush(&mut rig, 0).unwrap();
    rig.driver.publish();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    rig.turns(2);
    setrlimit(Resource::Nofile, limit).unwrap();
    add_flush(&mut rig, 1).unwrap();
    rig.driver.publish();
    rig.turns(2);
    assert_eq!(rig.counters.read().completions, 2);
    assert!(Rig::rang(&rig.call), "the guest sleeps for ever");
}

/// The guest goes, and comes back with another queue: what the first one had to tell, and what was lost in between, is told all the same, once.
#[test]
fn a_loss_is_owed_to_a_guest_whose_queue_was_closed_before_it_was_told() {
    for between in [false, true] {
        let mut rig = Rig::new(ram(), 16, true);
        assert_eq!(rig.run(4, 0, &mut [], false), (0, 1));
        let lose = |rig: &Rig| rig.device.change(|s| s.losses += 1);
        if !between {
            lose(&rig);
        }
        rig.command(Command::End).unwrap();
        rig.turn();
        assert_eq!(rig.config.owed.is_owed(), !between);
        if between {
            lose(&rig);
        }
        rig.revive();
        assert_eq!((rig.run(4, 0, &mut [], false).0, rig.run(4, 0, &mut [], false).0), (1, 0), "between {between}");
        rig.command(Command::End).unwrap();
        rig.turn();
        rig.revive();
        assert_eq!(rig.run(4, 0, &mut [], false).0, 0, "that is known");
    }
}
