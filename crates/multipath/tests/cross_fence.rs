//! What one path has lost, another one proves quiet: who is asked, what an answer proves, and what it does not.

use crate::common::scripted::{Bench, Opener, Scripted, info};
use polypath_block::{CrossFence, Device, DeviceInfo, DeviceState, IoQueue, OpenError, Proof, ProofReply, QueueConfig};
use polypath_multipath::{Fencing, GroupConfig, PathConfig};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A path that says what it has lost, and remembers what it is asked and told.
struct Path {
    opener: Opener,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    loss: Option<u64>,
    /// It was not configured to prove anything.
    mute: bool,
    asked: Vec<ProofReply>,
    told: Vec<(u64, Proof)>,
}

impl Path {
    fn desk<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> T {
        look(&mut self.desk.lock().unwrap())
    }

    fn lose(&self, loss: u64) {
        self.desk(|desk| desk.loss = Some(loss));
        self.opener.0.touch();
    }

    fn asked(&self) -> usize {
        self.desk(|desk| desk.asked.len())
    }

    /// Answers what it was asked first.
    fn answer(&self, result: Result<Proof, String>) {
        let reply = self.desk(|desk| desk.asked.remove(0));
        reply.answer(result);
    }

    fn told(&self) -> Vec<(u64, Proof)> {
        self.desk(|desk| std::mem::take(&mut desk.told))
    }
}

impl Device for Path {
    fn name(&self) -> &str {
        self.opener.name()
    }
    fn state(&self) -> DeviceState {
        self.opener.state()
    }
    fn version(&self) -> u64 {
        self.opener.version()
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.opener.open_queue(config)
    }
    fn cross_fence(&self) -> Option<&dyn CrossFence> {
        Some(self)
    }
    fn close(&self) {
        self.opener.close();
    }
}

impl CrossFence for Path {
    fn open_loss(&self) -> Option<u64> {
        self.desk(|desk| desk.loss)
    }
    fn proven(&self, loss: u64, proof: Proof) {
        self.desk(|desk| {
            desk.told.push((loss, proof));
            desk.loss.take_if(|open| *open <= loss);
        });
    }
    fn can_prove(&self) -> bool {
        !self.desk(|desk| desk.mute)
    }
    fn prove(&self, _: Duration, reply: ProofReply) {
        self.desk(|desk| desk.asked.push(reply));
    }
}

fn bench(config: GroupConfig, disks: &[DeviceInfo]) -> (Bench, Vec<Arc<Path>>) {
    let mut bench = Bench::new(config, Vec::new());
    let paths: Vec<Arc<Path>> = disks
        .iter()
        .enumerate()
        .map(|(i, info)| {
            let opener = Opener(Scripted::new(&format!("p{i}"), info.clone()));
            Arc::new(Path { opener, desk: Mutex::default() })
        })
        .collect();
    for path in &paths {
        bench.group.add_path(PathConfig::new(path.clone())).expect("a new path");
    }
    bench.turns(3);
    (bench, paths)
}

fn two() -> (Bench, Vec<Arc<Path>>) {
    bench(GroupConfig::new("disk"), &[info("a"), info("a")])
}

fn asked(paths: &[Arc<Path>]) -> Vec<usize> {
    paths.iter().map(|path| path.asked()).collect()
}

#[test]
fn another_path_is_asked_once_and_its_answer_is_of_what_was_lost_before() {
    let (mut bench, paths) = two();
    assert_eq!(asked(&paths), [0, 0]);
    paths[0].lose(3);
    bench.turns(5);
    assert_eq!(asked(&paths), [0, 1], "not the one that has lost it, and once");
    // Lost while the answer is on its way.
    paths[0].lose(4);
    bench.pass(100);
    assert_eq!(asked(&paths), [0, 1]);
    paths[1].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[0].told(), [(3, Proof::UnitReset)], "the younger loss is not proven by the older answer");
    bench.turns(2);
    assert_eq!(asked(&paths), [0, 1], "it is asked anew for that");
    paths[1].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[0].told(), [(4, Proof::UnitReset)]);
    bench.pass(3000);
    assert_eq!(asked(&paths), [0, 0]);
}

#[test]
fn one_that_cannot_is_asked_again_later_and_others_before_that() {
    let (mut bench, paths) = bench(GroupConfig::new("disk"), &[info("a"), info("a"), info("a")]);
    paths[0].lose(1);
    bench.turns(2);
    paths[1].answer(Err("refused".into()));
    assert_eq!((asked(&paths), paths[0].told()), (vec![0, 0, 1], vec![]));
    drop(paths[2].desk(|desk| desk.asked.remove(0)));
    bench.pass(900);
    assert_eq!(asked(&paths), [0, 0, 0], "a dropped reply is none, and there is a pause");
    bench.pass(300);
    assert_eq!(asked(&paths), [0, 1, 0]);
    paths[1].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[0].told(), [(1, Proof::UnitReset)]);
}

#[test]
fn whoever_may_be_elsewhere_or_may_not_be_asked_proves_nothing() {
    // Another logical unit of the same medium, as far as can be told.
    let (mut bench_of_two, paths) = bench(GroupConfig::new("disk"), &[info("a"), info("b")]);
    paths[0].lose(1);
    bench_of_two.pass(2000);
    assert_eq!(asked(&paths), [0, 0]);
    let (mut bench_of_two, paths) = two();
    paths[1].desk(|desk| desk.mute = true);
    paths[0].lose(1);
    bench_of_two.pass(2000);
    assert_eq!(asked(&paths), [0, 0]);
    let (mut bench_of_two, paths) = two();
    paths[1].opener.0.set_down(polypath_block::Code::PathLost, "away");
    paths[0].lose(1);
    bench_of_two.pass(2000);
    assert_eq!(asked(&paths), [0, 0]);
    paths[1].opener.0.set_live(info("a"));
    bench_of_two.pass(2000);
    assert_eq!(asked(&paths), [0, 1], "it is back");
    // What it has reset may have been another disk.
    paths[1].opener.0.set_live(crate::common::scripted::stranger("a"));
    paths[1].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[0].told(), []);
}

#[test]
fn nobody_is_asked_where_nobody_waits() {
    let config = GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") };
    let (mut bench, paths) = bench(config, &[info("a"), info("a")]);
    paths[0].lose(1);
    bench.pass(2000);
    assert_eq!(asked(&paths), [0, 0]);
}

#[test]
fn two_that_have_lost_something_prove_it_for_each_other() {
    let (mut bench, paths) = two();
    paths[0].lose(1);
    paths[1].lose(2);
    bench.turns(3);
    let first = asked(&paths);
    assert_eq!(first.iter().sum::<usize>(), 1, "one at a time");
    let prover = first[1];
    paths[prover].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[1 - prover].told().len(), 1);
    assert_eq!(paths[prover].told(), [], "what it has lost itself is proven by others only");
    assert_eq!(paths[1 - prover].asked(), 1);
    paths[1 - prover].answer(Ok(Proof::UnitReset));
    assert_eq!(paths[prover].told().len(), 1);
}
