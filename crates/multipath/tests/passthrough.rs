//! Commands that are passed through a group: over a path that speaks them, on to the next one when that is lost, and never twice where they
//! change something.

use crate::common::scripted::{Bench, Opener, Scripted, info};
use polypath_block::{
    Access, Code, CommandSet, Device, DeviceInfo, DeviceState, Fate, IoQueue, NvmeCommand, NvmeScope, OpenError,
    Passthrough, PassthroughAnswer, PassthroughCommand, PassthroughData, PassthroughReply, PassthroughRequest,
    PassthroughResult, PassthroughStatus, Proof, QueueConfig,
};
use polypath_multipath::{GroupConfig, PathConfig, SliceRange, Slices};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A path that says what it was told to, or nothing yet.
struct Path {
    opener: Opener,
    set: CommandSet,
    /// What it ends with. `None`: it holds what it is asked for.
    says: Mutex<Option<Result<(), Code>>>,
    held: Mutex<Vec<PassthroughReply>>,
    asked: Mutex<usize>,
}

impl Path {
    fn say(&self, what: Option<Result<(), Code>>) {
        *self.says.lock().unwrap() = what;
    }

    fn answer(&self, reply: PassthroughReply, what: Result<(), Code>) {
        let status = PassthroughStatus::Nvme { status: 0, dw0: 7 };
        match what {
            Ok(()) => reply.answer(Ok(PassthroughAnswer { status, data: self.opener.name().into() })),
            Err(code) => reply.refuse(code, "told to fail"),
        }
    }

    fn end_held(&self, what: Result<(), Code>) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|reply| self.answer(reply, what));
    }

    fn take_asked(&self) -> usize {
        std::mem::take(&mut self.asked.lock().unwrap())
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
    fn is_preferred(&self) -> bool {
        self.opener.is_preferred()
    }
    fn passthrough(&self) -> Option<&dyn Passthrough> {
        Some(self)
    }
    fn close(&self) {
        self.opener.close();
    }
}

impl Passthrough for Path {
    fn speaks(&self, set: CommandSet) -> bool {
        set == self.set
    }
    fn start(&self, request: PassthroughRequest, _: Duration, reply: PassthroughReply) {
        assert_eq!(request.command.set(), self.set);
        *self.asked.lock().unwrap() += 1;
        let says = *self.says.lock().unwrap();
        match says {
            Some(what) => self.answer(reply, what),
            None => self.held.lock().unwrap().push(reply),
        }
    }
}

struct World {
    b: Bench,
    paths: Vec<Arc<Path>>,
}

impl World {
    fn new(sets: &[CommandSet]) -> World {
        let mut world = World { b: Bench::new(GroupConfig::new("disk"), Vec::new()), paths: Vec::new() };
        sets.iter().for_each(|set| world.add(*set, info("a")));
        world.b.turns(3);
        world
    }

    fn add(&mut self, set: CommandSet, info: DeviceInfo) {
        let device = Scripted::new(&format!("p{}", self.paths.len()), info);
        let path = Arc::new(Path {
            opener: Opener(device.clone()),
            set,
            says: Mutex::new(Some(Ok(()))),
            held: Mutex::default(),
            asked: Mutex::default(),
        });
        self.b.ids.push(self.b.group.add_path(PathConfig::new(path.clone())).unwrap());
        self.b.devices.push(device);
        self.paths.push(path);
    }

    fn start(&self, request: PassthroughRequest) -> Receiver<Result<String, Code>> {
        let (tell, told) = channel();
        let reply = PassthroughReply::new(move |result: PassthroughResult| {
            let name = |answer: PassthroughAnswer| String::from_utf8(answer.data).unwrap();
            tell.send(result.map(name).map_err(|error| error.code)).unwrap_or(());
        });
        self.b.group.passthrough().unwrap().start(request, Duration::from_secs(1), reply);
        told
    }

    fn ask(&self, request: PassthroughRequest) -> Result<String, Code> {
        self.start(request).try_recv().expect("every path answers at once")
    }

    fn asked(&self) -> Vec<usize> {
        self.paths.iter().map(|path| path.take_asked()).collect()
    }
}

const NVME: PassthroughCommand =
    PassthroughCommand::Nvme(NvmeCommand { admin: true, opcode: 6, scope: NvmeScope::Namespace, cdw10_15: [0; 6] });

fn reads() -> PassthroughRequest {
    PassthroughRequest::reads(NVME, PassthroughData::In(4096))
}

fn changes() -> PassthroughRequest {
    PassthroughRequest::changes(NVME, PassthroughData::None)
}

fn inquiry() -> PassthroughRequest {
    PassthroughRequest::reads(PassthroughCommand::Scsi(vec![0x12, 0, 0, 0, 96, 0]), PassthroughData::In(96))
}

use CommandSet::{Nvme, Scsi};

#[test]
fn it_goes_over_one_path_that_speaks_it() {
    let w = World::new(&[Nvme, Scsi, Nvme]);
    assert_eq!((w.ask(reads()), w.asked()), (Ok("p0".into()), vec![1, 0, 0]));
    assert_eq!((w.ask(inquiry()), w.asked()), (Ok("p1".into()), vec![0, 1, 0]));
    let power = w.b.group.passthrough().unwrap();
    assert!(power.speaks(Nvme) && power.speaks(Scsi));
    let nvme = World::new(&[Nvme]);
    assert_eq!((nvme.ask(inquiry()), nvme.asked()), (Err(Code::Unsupported), vec![0]));
    assert!(!nvme.b.group.passthrough().unwrap().speaks(Scsi));
    assert_eq!(World::new(&[]).ask(reads()), Err(Code::NoPath));
}

#[test]
fn the_best_path_is_asked_and_none_that_is_not_usable() {
    let mut w = World::new(&[Nvme]);
    w.b.devices[0].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
    w.add(Nvme, DeviceInfo { access: Access::Inaccessible, ..info("a") });
    w.add(Nvme, info("a"));
    w.add(Nvme, info("a"));
    w.b.turns(3);
    w.b.group.set_preferred(w.b.ids[3], true).unwrap();
    assert_eq!((w.ask(reads()), w.asked()), (Ok("p3".into()), vec![0, 0, 0, 1]));
    w.b.devices[3].set_down(Code::PathLost, "gone");
    w.b.devices[2].set_down(Code::PathLost, "gone");
    w.b.turns(3);
    assert_eq!((w.ask(reads()), w.asked()), (Ok("p0".into()), vec![1, 0, 0, 0]));
    w.b.devices[0].set_down(Code::PathLost, "gone");
    w.b.turns(3);
    assert_eq!((w.ask(reads()), w.asked()), (Err(Code::NoPath), vec![0; 4]));
}

#[test]
fn what_changes_nothing_goes_on_when_its_path_is_lost() {
    let w = World::new(&[Nvme, Nvme, Scsi]);
    for lost in [Code::PathLost, Code::PathTimeout, Code::OutcomeUnknown] {
        w.paths[0].say(Some(Err(lost)));
        assert_eq!((w.ask(reads()), w.asked()), (Ok("p1".into()), vec![1, 1, 0]), "{lost:?}");
    }
    w.paths[1].say(Some(Err(Code::PathBusy)));
    assert_eq!((w.ask(reads()), w.asked()), (Err(Code::PathLost), vec![1, 1, 0]), "the first reason");
    // What is refused at the door of one path is at that of all.
    w.paths[0].say(Some(Err(Code::Unsupported)));
    assert_eq!((w.ask(reads()), w.asked()), (Err(Code::Unsupported), vec![1, 0, 0]));
    // A path that ends without a word.
    w.paths[0].say(None);
    w.paths[1].say(Some(Ok(())));
    let told = w.start(reads());
    w.paths[0].held.lock().unwrap().clear();
    assert_eq!((told.try_recv().unwrap(), w.asked()), (Ok("p1".into()), vec![1, 1, 0]));
}

#[test]
fn what_may_change_something_is_sent_once() {
    let w = World::new(&[Nvme, Nvme]);
    w.paths[0].say(Some(Err(Code::OutcomeUnknown)));
    assert_eq!((w.ask(changes()), w.asked()), (Err(Code::OutcomeUnknown), vec![1, 0]));
    // Not carried out there, which is known.
    w.paths[0].say(Some(Err(Code::PathLost)));
    assert_eq!((w.ask(changes()), w.asked()), (Ok("p1".into()), vec![1, 1]));
    // One at a time, so that none overtakes one that was lost and is not quiet yet.
    w.paths[0].say(None);
    let first = w.start(changes());
    assert_eq!((w.ask(changes()), w.asked()), (Err(Code::PathBusy), vec![1, 0]));
    let reading = w.start(reads());
    assert_eq!(w.asked(), [1, 0], "whoever reads does not wait");
    w.paths[0].end_held(Err(Code::OutcomeUnknown));
    assert_eq!(first.try_recv().unwrap(), Err(Code::OutcomeUnknown));
    assert_eq!(reading.try_recv().unwrap(), Ok("p1".into()));
    w.paths[0].say(Some(Ok(())));
    assert_eq!(w.ask(changes()), Ok("p0".into()));
}

#[test]
fn nothing_is_changed_while_a_path_has_lost_changes_that_are_not_quiet() {
    let mut w = World::new(&[Nvme, Nvme]);
    let tag = w.b.write(3);
    let at = (0..2).find(|&at| !w.b.devices[at].in_flight().is_empty()).unwrap();
    let io = w.b.devices[at].only();
    w.b.devices[at].suspect(io, Fate::Unknown);
    w.b.turns(2);
    assert_eq!((w.ask(changes()), w.asked()), (Err(Code::PathBusy), vec![0, 0]));
    assert!(w.ask(reads()).is_ok(), "what changes nothing goes");
    w.b.devices[at].complete(io, Code::PathLost, Proof::ConfiguredBound { bound_ms: 1 });
    w.b.turns(2);
    w.b.devices.iter().for_each(|device| device.succeed_all());
    w.b.turns(2);
    assert_eq!(w.b.outcome(tag), Some(Code::Ok));
    assert!(w.ask(changes()).is_ok());
}

#[test]
fn a_flush_reaches_what_was_changed() {
    let mut w = World::new(&[Nvme]);
    assert_eq!(w.b.flush_now(), Some(Code::Ok));
    assert!(w.b.group.is_flushed());
    assert!(w.ask(reads()).is_ok() && w.b.group.is_flushed());
    assert!(w.ask(changes()).is_ok() && !w.b.group.is_flushed());
    assert_eq!(w.b.flush_now(), Some(Code::Ok));
    assert!(w.b.group.is_flushed());
    w.paths[0].say(Some(Err(Code::OutcomeUnknown)));
    assert!(w.ask(changes()).is_err() && !w.b.group.is_flushed(), "it may be there");
    assert_eq!(w.b.flush_now(), Some(Code::Ok));
    w.paths[0].say(Some(Err(Code::Unsupported)));
    assert!(w.ask(changes()).is_err() && w.b.group.is_flushed(), "nothing was sent");
}

#[test]
fn a_slice_passes_nothing_through_and_neither_does_a_disk_that_was_closed() {
    let w = World::new(&[Nvme]);
    let range = SliceRange { offset_bytes: 0, length_bytes: 4096 };
    let slice = Slices::new().carve("slice", w.b.group.clone(), range).unwrap();
    assert!(slice.passthrough().is_none());
    let too_much = PassthroughRequest::reads(NVME, PassthroughData::In(1 << 20));
    assert_eq!((w.ask(too_much), w.asked()), (Err(Code::Invalid), vec![0]));
    w.b.group.close();
    assert_eq!((w.ask(reads()), w.asked()), (Err(Code::Gone), vec![0]));
}
