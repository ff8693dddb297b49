//! Seeded scenarios in virtual time: every fault, in any order, under load; the oracle finds nothing. `SIM_SEED=n` replays one,
//! `SIM_SEEDS=n` runs more.

use crate::common::{BLOCKS, Setup, ms};
use polypath_block::{Access, Code, Identifier, Limits};
use polypath_multipath::{GroupConfig, PathConfig, PathState, SelectorKind};
use polypath_sim::{Late, Mix, PathOptions, run, seeds};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Faults of one path at most at a time, so that another one is left.
struct Chaos {
    rng: Xoshiro256PlusPlus,
    /// What to undo, and on which path.
    undo: Option<(usize, Fault)>,
    spare: usize,
    added: u32,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Silent,
    Reset,
    Refuse,
    Lose,
    Busy,
    FailAtOnce,
    Delay,
    Access(Access),
    Identity,
    Shrink,
    Remove,
    Selector,
}

const FAULTS: [Fault; 15] = [
    Fault::Silent,
    Fault::Silent,
    Fault::Reset,
    Fault::Reset,
    Fault::Refuse,
    Fault::Lose,
    Fault::Busy,
    Fault::FailAtOnce,
    Fault::Delay,
    Fault::Access(Access::Inaccessible),
    Fault::Access(Access::NonOptimized),
    Fault::Identity,
    Fault::Shrink,
    Fault::Remove,
    Fault::Selector,
];

impl Chaos {
    fn undo(&mut self, t: &Setup) {
        let Some((i, fault)) = self.undo.take() else { return };
        let path = &t.paths[i];
        match fault {
            Fault::Silent => path.set_silent(false),
            Fault::Refuse => path.set_refusing(false),
            Fault::FailAtOnce => path.set_fail_at_once(None),
            Fault::Delay => path.set_delay(ms(0)),
            Fault::Access(_) => path.set_access(Access::Optimized),
            Fault::Identity => path.swap_identity(vec![Identifier::Nguid([0xD1; 16])], false),
            Fault::Shrink => path.set_blocks(BLOCKS),
            Fault::Lose => path.lose(0),
            Fault::Busy => path.busy(0),
            Fault::Reset | Fault::Remove | Fault::Selector => {}
        }
    }

    fn inject(&mut self, t: &mut Setup) {
        self.undo(t);
        let present: Vec<usize> = (0..t.paths.len()).filter(|&i| t.stats_of(&format!("p{i}")).is_some()).collect();
        let i = present[self.rng.random_range(0..present.len())];
        let fault = FAULTS[self.rng.random_range(0..FAULTS.len())];
        let path = t.paths[i].clone();
        self.undo = Some((i, fault));
        match fault {
            Fault::Silent => path.set_silent(true),
            Fault::Reset => path.reset(),
            Fault::Refuse => {
                path.set_refusing(true);
                path.reset();
            }
            Fault::Lose => path.lose(3),
            Fault::Busy => path.busy(40),
            Fault::FailAtOnce => path.set_fail_at_once(Some(Code::PathLost)),
            Fault::Delay => path.set_delay(ms(30)),
            Fault::Access(access) => path.set_access(access),
            Fault::Identity => path.swap_identity(vec![Identifier::Nguid([0xBB; 16])], true),
            Fault::Shrink => path.set_blocks(BLOCKS - 1),
            Fault::Remove => self.replace(t, i),
            Fault::Selector => t.group.set_selector(SelectorKind::ALL[self.rng.random_range(0..8)]),
        }
    }

    fn replace(&mut self, t: &mut Setup, i: usize) {
        if self.added < 3 {
            self.added += 1;
            t.group.remove_path(t.ids[i]).expect("it is there");
            let name = format!("p{}", self.spare);
            self.spare += 1;
            t.add(PathOptions::new(name, BLOCKS));
        }
    }
}

fn scenario(seed: u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0xC0FFEE);
    let mut config = GroupConfig::new("disk");
    config.selector = SelectorKind::ALL[rng.random_range(0..8)];
    let caches = rng.random_range(0..3);
    let small = rng.random_range(0..3) == 0;
    let mut t = Setup::new(seed, 4, config, |i, o| {
        o.write_cache = caches > 0;
        o.cache_domain = if caches == 2 { format!("domain{}", i % 2) } else { "one".into() };
        if small && i > 0 {
            o.limits =
                Limits { max_transfer_bytes: 1024, max_segments: 2, max_write_zeroes_blocks: 3, ..Limits::UNLIMITED };
        }
        o.late = Late::Sometimes(70);
    });
    // What was promised is the first path's; smaller ones come later and are split for.
    t.group.freeze();
    let mut guests = [t.guest(Mix { depth: 64, ..Mix::ALL }, 0), t.guest(Mix { depth: 64, ..Mix::ALL }, 1)];
    let mut chaos = Chaos { rng, undo: None, spare: 4, added: 0 };
    let [a, b] = &mut guests;
    for _ in 0..6 {
        chaos.inject(&mut t);
        let span = chaos.rng.random_range(1..9);
        run(&t.world, &mut [a, b], ms(span));
        // Long times pass with little to do: detection, fences and late writes.
        let calm = Mix { depth: 2, ..Mix::ALL };
        a.set_mix(calm);
        b.set_submitting(false);
        for _ in 0..chaos.rng.random_range(1..5) {
            a.set_submitting(true);
            run(&t.world, &mut [a, b], ms(3));
            a.set_submitting(false);
            let pause = chaos.rng.random_range(100..900);
            run(&t.world, &mut [a, b], ms(pause));
        }
        a.set_submitting(true);
        b.set_submitting(true);
    }
    chaos.undo(&t);
    a.set_submitting(false);
    b.set_submitting(false);
    run(&t.world, &mut [a, b], ms(5_000));
    // Late writes have all landed; everything came back.
    assert!(t.world.landings().iter().all(|l| l.conforms()), "seed {seed}: the model broke its own promise");
    for s in t.group.statistics() {
        assert_eq!(s.state, PathState::Usable, "seed {seed}: {s:?}");
        assert_eq!((s.in_flight, s.suspects), (0, 0), "seed {seed}: {s:?}");
    }
    b.finish(ms(60_000));
    assert!(b.violations.is_empty(), "seed {seed}: {}", b.violations[0]);
    assert!(b.failed.is_empty(), "seed {seed}: {:?}", b.failed);
    t.finish_clean(a);
    assert!(a.completed + b.completed > 1000, "seed {seed}: only {} requests", a.completed + b.completed);
}

#[test]
fn any_faults_in_any_order_lose_nothing() {
    for seed in seeds(1, 100) {
        let caught = std::panic::catch_unwind(|| scenario(seed));
        if let Err(panic) = caught {
            eprintln!("FAILED with SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn all_paths_lost_at_once_and_back_again() {
    for seed in seeds(5000, 20) {
        let t = Setup::plain(seed, 4);
        let mut guest = t.guest(Mix::ALL, 0);
        t.run(&mut guest, ms(5));
        for path in &t.paths {
            path.set_refusing(true);
            path.reset();
        }
        t.run(&mut guest, ms(3_000));
        assert!(guest.in_flight() > 0, "seed {seed}: they wait");
        guest.set_mix(Mix { depth: 4, ..Mix::ALL });
        t.paths.iter().for_each(|p| p.set_refusing(false));
        t.run(&mut guest, ms(260));
        t.finish_clean(&mut guest);
    }
}

#[test]
fn paths_come_and_go_under_load() {
    for seed in seeds(9000, 10) {
        let mut t = Setup::plain(seed, 2);
        let mut guest = t.guest(Mix::ALL, 0);
        for round in 0..8 {
            t.run(&mut guest, ms(2));
            let new = t.add(PathOptions::new(format!("n{round}"), BLOCKS));
            t.run(&mut guest, ms(2));
            let old = t.ids[new - 2];
            t.group.remove_path(old).expect("it is there");
            t.group.remove_path(old).expect("removing twice is the same");
            t.run(&mut guest, ms(5));
            assert_eq!(t.group.paths().len(), 2, "seed {seed}: drained paths are gone");
            assert!(t.group.remove_path(old).is_err());
        }
        for path in &t.paths[..t.paths.len() - 2] {
            assert!(path_is_gone(path), "the device of a removed path is closed");
        }
        let s = t.group.statistics();
        assert!(s.iter().all(|s| s.ios > 0), "seed {seed}: new paths carry I/O: {s:?}");
        t.finish_clean(&mut guest);
        let err = t.group.add_path(PathConfig::new(t.paths.last().expect("some").clone())).unwrap_err();
        assert!(err.to_string().contains("already"), "{err}");
    }
}

fn path_is_gone(path: &std::sync::Arc<polypath_sim::SimPath>) -> bool {
    use polypath_block::{Device, DeviceState};
    matches!(path.state(), DeviceState::Gone { .. })
}
