//! A group over simulated paths, and a guest on it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod dice;
pub mod log;
pub mod scripted;

use polypath_block::{Device, Limits, QueueConfig, Time};
use polypath_multipath::{Event, EventKind, Events, Group, GroupConfig, PathConfig, PathId, PathState, PathStatistics};
use polypath_sim::{Guest, Mix, Oracle, PathOptions, SimPath, World, run};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub const BLOCKS: u64 = 256;

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub struct Setup {
    pub seed: u64,
    pub world: World,
    pub paths: Vec<Arc<SimPath>>,
    pub ids: Vec<PathId>,
    pub group: Arc<Group>,
    pub events: Events,
    pub oracle: Rc<RefCell<Oracle>>,
}

impl Setup {
    pub fn new(seed: u64, paths: usize, config: GroupConfig, edit: impl Fn(usize, &mut PathOptions)) -> Self {
        let world = World::new(seed, BLOCKS);
        let group = Group::new(config);
        let events = group.events();
        let mut setup = Setup {
            seed,
            world,
            paths: Vec::new(),
            ids: Vec::new(),
            group,
            events,
            oracle: Rc::new(RefCell::new(Oracle::new(BLOCKS, 512))),
        };
        for i in 0..paths {
            let mut options = PathOptions::new(format!("p{i}"), BLOCKS);
            edit(i, &mut options);
            setup.add(options);
        }
        setup
    }

    pub fn plain(seed: u64, paths: usize) -> Self {
        Setup::new(seed, paths, GroupConfig::new("disk"), |_, _| {})
    }

    pub fn add(&mut self, options: PathOptions) -> usize {
        let path = self.world.path(options);
        let id = self.group.add_path(PathConfig::new(path.clone())).expect("a new path");
        self.paths.push(path);
        self.ids.push(id);
        self.paths.len() - 1
    }

    pub fn guest(&self, mix: Mix, reactor: u16) -> Guest {
        let queue = self.group.open_queue(QueueConfig { depth: mix.depth as u16 }).expect("a queue");
        let mut guest =
            Guest::new(&self.world, queue, self.oracle.clone(), mix, self.seed ^ u64::from(reactor), reactor);
        guest.set_submitting(false);
        // Queues of paths open and connect.
        self.run(&mut guest, ms(2));
        guest.set_submitting(true);
        guest
    }

    pub fn run(&self, guest: &mut Guest, span: Duration) {
        run(&self.world, &mut [guest], span);
    }

    /// Lets all requests end, reads everything back through the group and through every path alone, and finds no fault.
    pub fn finish_clean(&self, guest: &mut Guest) {
        self.settle(guest);
        let seed = self.seed;
        assert!(guest.failed.is_empty(), "seed {seed}: failed: {:?}", &guest.failed[..guest.failed.len().min(5)]);
        assert!(guest.violations.is_empty(), "seed {seed}: {}", guest.violations[0]);
    }

    /// As [`Setup::finish_clean`], without a judgement.
    pub fn settle(&self, guest: &mut Guest) {
        guest.set_submitting(false);
        let start = self.world.now();
        while guest.in_flight() > 0 {
            self.run(guest, ms(20));
            let waited = self.world.now().since(start);
            assert!(waited < ms(100_000), "seed {}: {} never completed", self.seed, guest.in_flight());
        }
        guest.verify_all();
        guest.finish(ms(60_000));
        for path in &self.paths {
            self.verify_alone(path, guest);
        }
    }

    fn verify_alone(&self, path: &Arc<SimPath>, guest: &mut Guest) {
        let live = path
            .state()
            .info()
            .is_some_and(|i| i.access.usable() && i.geometry.blocks >= self.oracle.borrow().blocks());
        let ours =
            self.stats_of(path.name()).is_some_and(|s| matches!(s.state, PathState::Usable | PathState::Stalled));
        if !live || !ours {
            return;
        }
        // The group splits for small limits; this reader does not.
        path.edit(|o| o.limits = Limits::UNLIMITED);
        let queue = path.open_queue(QueueConfig { depth: 32 }).expect("a queue");
        let mix = Mix { depth: 16, ..Mix::ALL };
        let mut reader = Guest::new(&self.world, queue, self.oracle.clone(), mix, 1, 9);
        reader.set_submitting(false);
        self.run(&mut reader, ms(1));
        reader.verify_all();
        reader.finish(ms(10_000));
        guest.violations.append(&mut reader.violations);
        guest.failed.append(&mut reader.failed);
    }

    pub fn stats_of(&self, name: &str) -> Option<PathStatistics> {
        self.group.statistics().into_iter().find(|s| s.name == name)
    }

    pub fn stats(&self, i: usize) -> PathStatistics {
        self.stats_of(&format!("p{i}")).expect("the path is there")
    }

    pub fn drain_events(&self) -> Vec<Event> {
        core::iter::from_fn(|| self.events.try_next()).collect()
    }

    pub fn kinds(&self) -> Vec<EventKind> {
        self.drain_events().into_iter().map(|e| e.kind).collect()
    }

    pub fn now(&self) -> Time {
        self.world.now()
    }
}
