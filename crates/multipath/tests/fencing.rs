//! A late copy of a write: harmless with fencing on, caught by the oracle with fencing off, and when the target lies about its bound.

use crate::common::log::capture;
use crate::common::{Setup, ms};
use polypath_block::{Code, Io, Op, Proof, SegSpan};
use polypath_multipath::{EventKind, Fencing, GroupConfig};
use polypath_sim::{Guest, Late, Mix, seeds};

/// Path 0 goes silent with writes on it, which its target carries out late; meanwhile everything is written again.
fn held_writes(seed: u64, fencing: Fencing, late: Late) -> (Setup, Guest) {
    let mut config = GroupConfig::new("disk");
    config.fencing = fencing;
    let t = Setup::new(seed, 4, config, |_, o| o.late = late);
    let mut guest = t.guest(Mix { read: 30, flush: 0, zero: 0, fua: 0, ..Mix::ALL }, 0);
    t.run(&mut guest, ms(3));
    t.paths[0].set_silent(true);
    // Long enough for the silence to be noticed, under a light load.
    guest.set_mix(Mix { read: 30, flush: 0, zero: 0, fua: 0, depth: 40, ..Mix::ALL });
    t.run(&mut guest, ms(3));
    guest.set_submitting(false);
    t.run(&mut guest, ms(600));
    guest.set_submitting(true);
    t.run(&mut guest, ms(20));
    guest.set_submitting(false);
    // The fence passes; what was re-driven after it is written over as well.
    t.run(&mut guest, ms(2_000));
    guest.set_submitting(true);
    t.run(&mut guest, ms(20));
    guest.set_submitting(false);
    t.run(&mut guest, ms(2_000));
    t.settle(&mut guest);
    (t, guest)
}

#[test]
fn late_inside_the_bound_is_harmless_with_fencing() {
    for seed in seeds(100, 10) {
        let (t, guest) = held_writes(seed, Fencing::On, Late::JustInside);
        assert!(!t.world.landings().is_empty(), "seed {seed}: nothing landed late, the test proves nothing");
        assert!(t.world.landings().iter().all(|l| l.conforms()));
        assert!(guest.violations.is_empty(), "seed {seed}: {}", guest.violations[0]);
        assert!(guest.failed.is_empty(), "seed {seed}: {:?}", guest.failed);
        let bound = ms(2050);
        assert!(guest.longest_io >= bound, "seed {seed}: no write has waited for its fence: {:?}", guest.longest_io);
    }
}

#[test]
fn the_same_without_fencing_shows_old_data() {
    let mut caught = 0;
    for seed in seeds(100, 10) {
        let (t, guest) = held_writes(seed, Fencing::Off, Late::JustInside);
        assert!(t.world.landings().iter().all(|l| l.conforms()), "the target keeps its word");
        caught += usize::from(guest.violations.iter().any(|v| v.old));
        let none = |k: &EventKind| matches!(k, EventKind::Redriven { proof: Proof::None, changes, .. } if *changes > 0);
        assert!(t.kinds().iter().any(none), "what was done without proof is said");
    }
    assert!(caught >= 9, "the oracle caught old data in only {caught} of 10 runs");
}

#[test]
fn a_target_later_than_its_own_bound_is_detected_and_reported() {
    let mut caught = 0;
    for seed in seeds(100, 10) {
        let (t, mut guest) = held_writes(seed, Fencing::On, Late::Beyond(ms(700)));
        let late: Vec<_> = t.world.landings().into_iter().filter(|l| !l.conforms()).collect();
        assert!(!late.is_empty() && late.iter().all(|l| l.path == "p0" && l.after > l.bound), "seed {seed}: {late:?}");
        caught += usize::from(guest.violations.drain(..).any(|v| v.old));
    }
    assert!(caught > 0, "no landing beyond the bound was seen by a read");
}

#[test]
fn a_change_completes_no_earlier_than_its_fence_not_even_with_an_error() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 100;
    let t = Setup::new(1, 1, config, |_, o| o.late = Late::JustInside);
    let mut guest = t.guest(Mix::WRITES_QD1, 0);
    guest.set_submitting(false);
    t.paths[0].set_silent(true);
    assert!(guest.submit(Io::write(0, 7, 1, SegSpan::EMPTY)));
    t.run(&mut guest, ms(500 + 2049));
    assert_eq!(guest.completed, 0, "the write must wait for its fence");
    t.run(&mut guest, ms(200));
    assert_eq!(guest.failed.len(), 1);
    assert_eq!((guest.failed[0].0, guest.failed[0].1.code), (Op::Write, Code::NoPath));
}

#[test]
fn reads_do_not_wait_for_the_fence() {
    let t = Setup::plain(1, 2);
    let mut guest = t.guest(Mix { read: 100, ..Mix::ALL }, 0);
    t.run(&mut guest, ms(2));
    t.paths[0].set_silent(true);
    t.run(&mut guest, ms(600));
    assert!(guest.longest_io < ms(520), "{:?}", guest.longest_io);
    t.finish_clean(&mut guest);
}

#[test]
fn the_log_names_the_proof_of_every_redriven_change() {
    let mut setup = None;
    let lines = capture(|| setup = Some(held_writes(3, Fencing::On, Late::JustInside).0));
    let t = setup.expect("it ran");
    let sent_again: Vec<_> = lines.iter().filter(|l| l.contains("change is sent again")).collect();
    let told: u64 = t
        .kinds()
        .iter()
        .map(|k| match k {
            EventKind::Redriven { changes, .. } => *changes,
            _ => 0,
        })
        .sum();
    assert!(told > 0 && sent_again.len() as u64 == told, "{} lines for {told} changes", sent_again.len());
    // With the field that follows, so that it is all of the proof.
    let names = |l: &str, proof: &str| l.contains(&format!(" proof={proof} op="));
    let proofs = ["keep-alive-bound(2*1000ms+cqt 50ms)", "never-sent", "answered"];
    assert!(sent_again.iter().all(|l| proofs.iter().any(|p| names(l, p))), "{sent_again:?}");
    assert!(lines.iter().any(|l| l.contains("path left")), "why a path was left");
}
