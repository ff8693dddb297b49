//! A host-bus driver whose device does what a test says: a disk in memory behind one queue, with answers that are put in its way.

use crate::persistent::Persistent;
use polypath_block::{
    Armed, Code, Cx, Done, FenceTerms, Geometry, Health, Host, IoQueue, MakePoller, OpenError, Proof, QueueConfig,
    RefusedWhy, SegRow, SegTable, Suspect, Time, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_scsi::alua::{
    AluaState, StateChange, SupportedStates, TargetPortGroup, TargetPortGroups, parse_set_target_port_groups,
};
use polypath_scsi::capacity::Capacity16;
use polypath_scsi::cdb::ByteCheck;
use polypath_scsi::inquiry::{Inquiry, Tpgs};
use polypath_scsi::midlayer::{
    Address, Answer, Bus, DiskConfig, HostBus, Outcome, Recovered, Recovery, RecoveryEnd, Scanner, ScsiDisk, Task,
    TaskData, TaskDone, TaskEnd, TaskLimits, TaskQueue,
};
use polypath_scsi::mode::{Caching, Header, ModeData};
use polypath_scsi::sense::key;
use polypath_scsi::vpd::{self, BlockLimits, Designator, DeviceIdentification, Provisioning};
use polypath_scsi::{Command, Lun, ScsiStatus, Sense, unmap};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const BLOCK: u32 = 512;

/// What is done with a task in place of carrying it out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Status(ScsiStatus),
    Sense(Sense),
    /// It is not answered; what becomes of it, recoveries say.
    Never,
}

/// Applies to so many tasks with this operation code.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) opcodes: &'static [u8],
    pub(crate) times: usize,
    pub(crate) reply: Reply,
}

#[derive(Default)]
pub(crate) struct Script {
    /// It compares its medium with data that it is sent.
    pub(crate) compares: bool,
    pub(crate) medium: Vec<u8>,
    pub(crate) blocks: u64,
    /// Of a block, where it is not [`BLOCK`].
    pub(crate) block_size: u32,
    pub(crate) naa: u8,
    /// Logical units with another number than that.
    pub(crate) swapped: Vec<(u32, u8)>,
    /// Which logical units it reports.
    pub(crate) luns: Vec<u32>,
    pub(crate) rules: Vec<Rule>,
    /// How recoveries are answered, in order; complete when there is nothing.
    pub(crate) recovered: VecDeque<Recovered>,
    /// Those that cannot be asked for.
    pub(crate) refused: Vec<Recovery>,
    pub(crate) log: Vec<String>,
    pub(crate) up: bool,
    pub(crate) nexus: u64,
    /// Tasks that it takes at a time.
    pub(crate) depth: u16,
    pub(crate) most_in_flight: usize,
    pub(crate) pr: Persistent,
    /// Operation codes of all tasks that were carried out.
    pub(crate) commands: Vec<u8>,
    /// Vital product data pages that were asked for: a look asks for five.
    pub(crate) pages: usize,
    queues: u64,
    /// Doorbells.
    pub(crate) kicks: u32,
    /// Its queues are more than there are places for.
    pub(crate) surplus: bool,
    /// What proves lost changes quiet, once it is there.
    pub(crate) proof: Option<Proof>,
    pub(crate) alua: Option<ScriptAlua>,
    /// WP: it takes no writes, and says so when it is asked.
    pub(crate) write_protected: bool,
    /// What is behind its LUN is LIO's virtual unit, of so many blocks, and nobody was told.
    pub(crate) taken_away: Option<u64>,
}

/// The target port of the disk, in group 9 and with the number 3, beside another one.
#[derive(Clone, Debug)]
pub(crate) struct ScriptAlua {
    pub(crate) tpgs: Tpgs,
    pub(crate) state: AluaState,
    pub(crate) preferred: bool,
    pub(crate) transition_seconds: u8,
    /// Knows the extended header.
    pub(crate) extended: bool,
    /// Says of itself which group it is in; otherwise which port.
    pub(crate) names_group: bool,
    /// Answers for its size without access.
    pub(crate) tells_size: bool,
    /// What it was told to be, by whom it was asked.
    pub(crate) sets: Vec<Vec<(u16, AluaState)>>,
    /// Does as it is told.
    pub(crate) obeys: bool,
}

impl ScriptAlua {
    pub(crate) fn new(tpgs: Tpgs, state: AluaState) -> Self {
        ScriptAlua {
            tpgs,
            state,
            preferred: false,
            transition_seconds: 0,
            extended: true,
            names_group: true,
            tells_size: false,
            sets: Vec::new(),
            obeys: true,
        }
    }

    fn groups(&self) -> TargetPortGroups {
        let group = |group, state, preferred, port| TargetPortGroup {
            group,
            state,
            preferred,
            supported: SupportedStates::all(),
            change: StateChange::Implicit,
            ports: vec![port],
        };
        let other = group(8, AluaState::Optimized, false, 2);
        let ours = group(9, self.state, self.preferred, 3);
        TargetPortGroups { transition_seconds: self.transition_seconds, groups: vec![other, ours] }
    }

    /// Why it does not do this.
    fn refuses(&self, command: &Command) -> Option<Sense> {
        let ascq = match self.state {
            AluaState::Transitioning => 0x0a,
            AluaState::Standby => 0x0b,
            AluaState::Unavailable => 0x0c,
            _ => return None,
        };
        let answers = match command {
            Command::Inquiry { .. } | Command::ReportTargetPortGroups { .. } | Command::SetTargetPortGroups { .. } => {
                true
            }
            Command::ReadCapacity16 { .. } => self.tells_size,
            _ => false,
        };
        (!answers).then(|| Sense::new(key::NOT_READY, 0x04, ascq))
    }
}

pub(crate) type Shared = Arc<Mutex<Script>>;

pub(crate) struct ScriptBus {
    pub(crate) script: Shared,
    pub(crate) bus: Arc<Bus>,
    pub(crate) config: DiskConfig,
}

struct Nowhere;

impl Host for Nowhere {
    fn spawn(&self, _: MakePoller) {}
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        Time::ZERO
    }
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A disk of `blocks` blocks, and its script.
pub(crate) fn rig(blocks: u64) -> Rig {
    rig_with(blocks, None, None)
}

/// The same behind a target port with asymmetric access, and how its disks are treated.
pub(crate) fn rig_with(blocks: u64, alua: Option<ScriptAlua>, explicit_alua: Option<bool>) -> Rig {
    let script = Script {
        alua,
        medium: vec![0; (blocks * u64::from(BLOCK)) as usize],
        blocks,
        naa: 7,
        up: true,
        nexus: 1,
        depth: 32,
        ..Script::default()
    };
    let script = Arc::new(Mutex::new(script));
    let config = DiskConfig {
        io_timeout: ms(1000),
        grace: ms(300),
        busy_limit: ms(500),
        unit_reset: true,
        target_reset: true,
        explicit_alua,
        reset_fence: Some(ms(50)),
    };
    let bus = Bus::new("script", Arc::new(Nowhere), Duration::ZERO);
    let host = Arc::new(ScriptBus { script: script.clone(), bus: bus.clone(), config });
    let unit = bus.attach(Address { target: 0, lun: Lun::ZERO }).unwrap();
    let disk = ScsiDisk::new(host.clone(), unit, "script:0".into(), true);
    let queue = host.open_tasks(QueueConfig { depth: 4 }).unwrap();
    let scanner = Scanner::new(queue, bus, 4, ms(100)).unwrap().with_disk_depth(77);
    let mut rig = Rig { script, host, disk, scanner, now: Time::from_millis(1_000_000) };
    rig.scan();
    rig
}

pub(crate) struct Rig {
    pub(crate) script: Shared,
    pub(crate) host: Arc<ScriptBus>,
    pub(crate) disk: Arc<ScsiDisk<ScriptBus>>,
    pub(crate) scanner: Scanner<ScriptQueue>,
    pub(crate) now: Time,
}

impl Rig {
    /// The control side gets on for a while.
    pub(crate) fn scan(&mut self) {
        for _ in 0..100 {
            self.now = self.now.after(ms(20));
            self.scanner.poll(self.now, 0);
        }
    }

    pub(crate) fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.script.lock().unwrap())
    }
}

/// A queue of the disk with what it needs, driven by hand.
pub(crate) struct Driven {
    pub(crate) queue: Box<dyn IoQueue>,
    pub(crate) segs: SegTable,
    pub(crate) row: SegRow,
    pub(crate) memory: Chunk,
    pub(crate) done: Done,
}

impl Driven {
    pub(crate) fn open(rig: &mut Rig) -> Driven {
        use polypath_block::Device;
        let queue = rig.disk.open_queue(QueueConfig { depth: 32 }).unwrap();
        let mut segs = SegTable::new(4096);
        let row = segs.reserve(64, 1).unwrap();
        let memory = Arena::new(4 << 20, false).unwrap().chunk(4 << 20).unwrap();
        let mut driven = Driven { queue, segs, row, memory, done: Done::with_capacity(64) };
        for _ in 0..100 {
            driven.turn(rig, 1);
        }
        driven
    }

    pub(crate) fn turn(&mut self, rig: &mut Rig, after_ms: u64) {
        rig.now = rig.now.after(ms(after_ms));
        let mut cx = Cx { now: rig.now, segs: &mut self.segs, reactor: 0 };
        self.queue.kick(&mut cx);
        self.queue.poll(&mut cx, &mut self.done);
    }

    /// Turns until `enough`, at most `limit_ms`.
    pub(crate) fn until(&mut self, rig: &mut Rig, limit_ms: u64, enough: impl Fn(&Done) -> bool) -> bool {
        for _ in 0..limit_ms {
            if enough(&self.done) {
                return true;
            }
            self.turn(rig, 1);
        }
        enough(&self.done)
    }

    /// Segments of `len` octets for request `index`.
    pub(crate) fn span(&mut self, index: u32, len: u32) -> polypath_block::SegSpan {
        let span = self.row.span(index, 1);
        let whole = self.memory.segment();
        let at = u64::from(index) * 65_536 % u64::from(whole.len);
        self.segs.get_mut(span)[0] = polypath_block::Segment { offset: whole.offset + at, len, ..whole };
        span
    }

    pub(crate) fn submit(&mut self, rig: &Rig, io: polypath_block::Io) -> Result<(), RefusedWhy> {
        let mut cx = Cx { now: rig.now, segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|refused| refused.why)
    }
}

impl HostBus for ScriptBus {
    type Queue = ScriptQueue;

    fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    fn disk_config(&self) -> DiskConfig {
        self.config
    }

    fn open_tasks(&self, _: QueueConfig) -> Result<ScriptQueue, OpenError> {
        let mut script = self.script.lock().unwrap();
        script.queues += 1;
        Ok(ScriptQueue {
            id: script.queues,
            script: self.script.clone(),
            tasks: Vec::new(),
            silent: Vec::new(),
            lost: Vec::new(),
            early: TaskDone::default(),
        })
    }
}

pub(crate) struct ScriptQueue {
    /// Its nexus.
    id: u64,
    script: Shared,
    tasks: Vec<Task>,
    /// Not answered.
    silent: Vec<Task>,
    /// Changes whose way broke.
    lost: Vec<Task>,
    early: TaskDone,
}

impl ScriptQueue {
    fn lose(&mut self, done: &mut TaskDone, code: Code) {
        for task in self.tasks.drain(..).chain(self.silent.drain(..)) {
            if task.changes {
                let proof = Proof::ConfiguredBound { bound_ms: 9 };
                let fence = FenceTerms { proof, within: ms(9) };
                let fate = polypath_block::Fate::Unknown;
                done.suspects.push(Suspect { tag: task.tag, fate, cause: code, fence });
                self.lost.push(task);
            } else {
                done.ends.push(TaskEnd { tag: task.tag, outcome: Outcome::Lost(code), proof: Proof::SocketClosed });
            }
        }
    }
}

impl TaskQueue for ScriptQueue {
    fn submit(&mut self, _: &mut Cx<'_>, task: &Task) -> Result<(), RefusedWhy> {
        let mut script = self.script.lock().unwrap();
        if !script.up {
            return Err(RefusedWhy::Gone);
        }
        let in_flight = self.tasks.len() + self.silent.len();
        if in_flight >= usize::from(script.depth) {
            return Err(RefusedWhy::Full);
        }
        script.most_in_flight = script.most_in_flight.max(in_flight + 1);
        self.tasks.push(*task);
        Ok(())
    }

    fn kick(&mut self, _: &mut Cx<'_>) {
        self.script.lock().unwrap().kicks += 1;
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut TaskDone) {
        done.ends.append(&mut self.early.ends);
        done.suspects.append(&mut self.early.suspects);
        done.recoveries.append(&mut self.early.recoveries);
        let shared = self.script.clone();
        let mut script = shared.lock().unwrap();
        if !script.up {
            self.lose(done, Code::PathLost);
        }
        if let Some(proof) = script.proof {
            for task in self.lost.drain(..) {
                done.ends.push(TaskEnd { tag: task.tag, outcome: Outcome::Lost(Code::PathLost), proof });
            }
        }
        for task in std::mem::take(&mut self.tasks) {
            let opcode = task.cdb.opcode();
            let rule = script.rules.iter_mut().find(|r| r.times > 0 && r.opcodes.contains(&opcode));
            let reply = rule.map(|rule| {
                rule.times -= 1;
                rule.reply
            });
            let answer = match reply {
                Some(Reply::Never) => {
                    self.silent.push(task);
                    continue;
                }
                Some(Reply::Status(status)) => Answer { status, sense: None, moved: 0 },
                Some(Reply::Sense(sense)) => {
                    Answer { status: ScsiStatus::CHECK_CONDITION, sense: Some(sense), moved: 0 }
                }
                None => script.carry_out(self.id, &task, cx.segs),
            };
            if answer.status == ScsiStatus::GOOD && answer.moved == task.data.len() {
                done.good.push(task.tag);
            } else {
                let outcome = Outcome::Answered(answer);
                done.ends.push(TaskEnd { tag: task.tag, outcome, proof: Proof::Answered });
            }
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        waits.on_call();
        if self.tasks.is_empty() { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        if self.script.lock().unwrap().up { Health::Ready } else { Health::Down }
    }

    fn trouble(&self) -> Option<(Code, String)> {
        (self.health() == Health::Down).then(|| (Code::PathLost, "down, as the script says".into()))
    }

    fn nexus(&self) -> u64 {
        self.script.lock().unwrap().nexus
    }

    fn limits(&self) -> TaskLimits {
        TaskLimits { depth: 32, max_transfer_bytes: 0, max_segments: 0 }
    }

    fn recover(&mut self, _: &mut Cx<'_>, step: Recovery, token: u64) -> bool {
        let mut script = self.script.lock().unwrap();
        script.log.push(format!("{step:?}"));
        if script.refused.contains(&step) {
            return false;
        }
        let outcome = script.recovered.pop_front().unwrap_or(Recovered::Complete);
        drop(script);
        if step == Recovery::ResetHost {
            let mut done = TaskDone::default();
            self.lose(&mut done, Code::PathTimeout);
            self.early.ends.append(&mut done.ends);
            self.early.suspects.append(&mut done.suspects);
            return true;
        }
        if outcome == Recovered::Complete {
            for task in self.silent.drain(..) {
                let outcome = Outcome::Lost(Code::PathTimeout);
                self.early.ends.push(TaskEnd { tag: task.tag, outcome, proof: Proof::Aborted });
            }
        }
        self.early.recoveries.push(RecoveryEnd { token, outcome });
        true
    }

    fn close(&mut self, _: &mut Cx<'_>) {}

    fn is_drained(&self) -> bool {
        self.tasks.is_empty() && self.silent.is_empty() && self.lost.is_empty()
    }

    fn is_surplus(&self) -> bool {
        self.script.lock().unwrap().surplus
    }
}

impl Script {
    fn carry_out(&mut self, nexus: u64, task: &Task, segs: &SegTable) -> Answer {
        self.commands.push(task.cdb.opcode());
        if let Some(at) = self.pr.to_hear.iter().position(|n| *n == nexus) {
            self.pr.to_hear.swap_remove(at);
            return check(Sense::new(key::UNIT_ATTENTION, 0x2a, 0x05));
        }
        let mut octets = [0; 16];
        octets[..task.cdb.bytes().len()].copy_from_slice(task.cdb.bytes());
        match Command::parse(&octets) {
            Err(error) => check(error.sense()),
            Ok(command) => {
                let swapped = self.swapped.iter().find(|(lun, _)| Lun::new(*lun) == Some(task.lun));
                let naa = swapped.map_or(self.naa, |(_, naa)| *naa);
                let before = std::mem::replace(&mut self.naa, naa);
                let answer = self.command(nexus, command, &task.data, segs);
                self.naa = before;
                answer
            }
        }
    }

    fn command(&mut self, nexus: u64, command: Command, data: &TaskData, segs: &SegTable) -> Answer {
        let block_size = if self.block_size == 0 { BLOCK } else { self.block_size };
        let geometry = Geometry { block_size, blocks: self.blocks };
        let end = |lba: u64, blocks: u32| lba.checked_add(blocks.into()).is_some_and(|end| end <= self.blocks);
        let out_of_range = check(Sense::new(key::ILLEGAL_REQUEST, 0x21, 0));
        if let Some(sense) = self.alua.as_ref().and_then(|alua| alua.refuses(&command)) {
            return check(sense);
        }
        self.pages += usize::from(matches!(command, Command::Inquiry { page: Some(_), .. }));
        if let Some(blocks) = self.taken_away {
            return virtual_unit(blocks, command, data, segs);
        }
        match command {
            Command::ReportTargetPortGroups { extended, .. } => match &self.alua {
                Some(alua) if alua.extended || !extended => put(data, segs, &alua.groups().to_bytes(extended)),
                _ => check(Sense::new(key::ILLEGAL_REQUEST, 0x24, 0)),
            },
            Command::SetTargetPortGroups { .. } => match &mut self.alua {
                Some(alua) if alua.tpgs.is_explicit() => {
                    let states = parse_set_target_port_groups(&get(data, segs)).unwrap();
                    if alua.obeys {
                        alua.state = states[0].1;
                    }
                    alua.sets.push(states);
                    good(data.len())
                }
                _ => check(Sense::new(key::ILLEGAL_REQUEST, 0x20, 0)),
            },
            Command::TestUnitReady | Command::SynchronizeCache { .. } => good(0),
            Command::ReportLuns { .. } => {
                let luns: Vec<Lun> = self.luns.iter().filter_map(|&lun| Lun::new(lun)).collect();
                put(data, segs, &polypath_scsi::lun::LunList::build(&luns))
            }
            Command::Inquiry { page: None, .. } => {
                let inquiry =
                    Inquiry { vendor: "SCRIPT".into(), product: "DISK".into(), ..polypath_scsi::inquiry::absent() };
                let tpgs = self.alua.as_ref().map_or(Tpgs::None, |alua| alua.tpgs);
                let inquiry = Inquiry { tpgs, ..inquiry };
                let inquiry =
                    Inquiry { qualifier: polypath_scsi::inquiry::Qualifier::Connected, device_type: 0, ..inquiry };
                put(data, segs, &inquiry.to_bytes())
            }
            Command::Inquiry { page: Some(page), .. } => match page {
                vpd::code::SUPPORTED_PAGES => {
                    put(data, segs, &vpd::build_supported_pages(&[0, 0x80, 0x83, 0xb0, 0xb2]))
                }
                vpd::code::UNIT_SERIAL_NUMBER => put(data, segs, &vpd::build_unit_serial_number("S1")),
                vpd::code::DEVICE_IDENTIFICATION => {
                    let naa =
                        Designator::naa(&[0x60 + (self.naa >> 4), self.naa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                    let mut designators = vec![naa];
                    match &self.alua {
                        Some(alua) if alua.names_group => designators.push(Designator::target_port_group(9)),
                        Some(_) => designators.push(Designator::relative_target_port(3)),
                        None => {}
                    }
                    put(data, segs, &DeviceIdentification { designators }.to_bytes())
                }
                vpd::code::BLOCK_LIMITS => {
                    let limits = BlockLimits {
                        max_transfer_blocks: 64,
                        max_unmap_blocks: 1000,
                        max_unmap_descriptors: 1,
                        max_write_same_blocks: 1000,
                        ..BlockLimits::default()
                    };
                    put(data, segs, &limits.to_bytes())
                }
                _ => {
                    let thin = Provisioning {
                        unmap: true,
                        write_same_16: true,
                        reads_zeroes: true,
                        ..Provisioning::default()
                    };
                    put(data, segs, &thin.to_bytes())
                }
            },
            Command::ReadCapacity16 { .. } => put(data, segs, &Capacity16::of(geometry).to_bytes()),
            Command::ModeSense { .. } if !self.pr.may_write(nexus) => {
                Answer { status: ScsiStatus::RESERVATION_CONFLICT, sense: None, moved: 0 }
            }
            Command::ModeSense { .. } => {
                let page = Caching { write_cache: true, ..Caching::default() }.to_page();
                let write_protected = self.write_protected;
                let mode = ModeData { dpo_fua: true, write_protected, pages: vec![page], ..ModeData::default() };
                put(data, segs, &mode.to_bytes(Header::Ten))
            }
            Command::Read(t) if end(t.lba, t.blocks) => {
                let at = (t.lba * u64::from(BLOCK)) as usize;
                put(data, segs, &self.medium[at..at + data.len() as usize])
            }
            Command::PersistentReserveIn { action, .. } => {
                let said = if action == 0 { self.pr.keys() } else { self.pr.reservation() };
                put(data, segs, &said)
            }
            Command::PersistentReserveOut { action, scope_type, .. } => {
                let status = self.pr.out(nexus, action, scope_type, &get(data, segs));
                Answer { status, sense: None, moved: data.len() }
            }
            Command::Write(_) if !self.pr.may_write(nexus) => {
                Answer { status: ScsiStatus::RESERVATION_CONFLICT, sense: None, moved: 0 }
            }
            Command::Write(_) if self.write_protected => check(Sense::new(key::DATA_PROTECT, 0x27, 0)),
            Command::Write(t) if end(t.lba, t.blocks) => {
                let bytes = get(data, segs);
                let at = (t.lba * u64::from(BLOCK)) as usize;
                self.medium[at..at + bytes.len()].copy_from_slice(&bytes);
                good(data.len())
            }
            Command::Verify { lba, blocks, check: ByteCheck::Data, .. } if self.compares && end(lba, blocks) => {
                let bytes = get(data, segs);
                let at = (lba * u64::from(BLOCK)) as usize;
                match self.medium[at..at + bytes.len()] == bytes[..] {
                    true => good(data.len()),
                    false => check(Sense::new(key::MISCOMPARE, 0x1d, 0)),
                }
            }
            Command::WriteSame { lba, blocks, .. } if end(lba, blocks) => {
                self.zero(lba, blocks);
                good(data.len())
            }
            Command::Unmap { .. } => {
                for range in unmap::parse(&get(data, segs)).unwrap() {
                    self.zero(range.lba, range.blocks);
                }
                good(data.len())
            }
            Command::Read(_) | Command::Write(_) | Command::WriteSame { .. } => out_of_range,
            _ => check(Sense::new(key::ILLEGAL_REQUEST, 0x20, 0)),
        }
    }

    fn zero(&mut self, lba: u64, blocks: u32) {
        let at = (lba * u64::from(BLOCK)) as usize;
        self.medium[at..at + (blocks * BLOCK) as usize].fill(0);
    }
}

/// What LIO answers at LUN 0 of a portal group that has no unit there: a disk "not connected", without content, that takes no writes.
fn virtual_unit(blocks: u64, command: Command, data: &TaskData, segs: &SegTable) -> Answer {
    let inside = |lba: u64, count: u32| lba + u64::from(count) <= blocks;
    match command {
        Command::Inquiry { page: None, .. } => put(data, segs, &polypath_scsi::inquiry::absent().to_bytes()),
        _ if matches!(data, TaskData::Out { .. }) => check(Sense::new(key::DATA_PROTECT, 0x27, 0)),
        Command::Read(t) if inside(t.lba, t.blocks) => put(data, segs, &vec![0; data.len() as usize]),
        Command::Read(_) => check(Sense::new(key::ILLEGAL_REQUEST, 0x21, 0)),
        Command::TestUnitReady | Command::SynchronizeCache { .. } => good(0),
        _ => check(Sense::new(key::ILLEGAL_REQUEST, 0x20, 0)),
    }
}

fn good(moved: u32) -> Answer {
    Answer { status: ScsiStatus::GOOD, sense: None, moved }
}

fn check(sense: Sense) -> Answer {
    Answer { status: ScsiStatus::CHECK_CONDITION, sense: Some(sense), moved: 0 }
}

fn put(data: &TaskData, segs: &SegTable, bytes: &[u8]) -> Answer {
    let TaskData::In { span, skip, len } = *data else { return good(0) };
    let mut rest = &bytes[..bytes.len().min(len as usize)];
    let moved = rest.len() as u32;
    polypath_memory::with(|table| {
        for piece in segs.pieces(span, skip.into(), rest.len() as u64) {
            rest = &rest[table.view(piece).unwrap().copy_in(rest)..];
        }
    });
    good(moved)
}

fn get(data: &TaskData, segs: &SegTable) -> Vec<u8> {
    let TaskData::Out { span, skip, len } = *data else { return Vec::new() };
    let (mut bytes, mut at) = (vec![0; len as usize], 0);
    polypath_memory::with(|table| {
        for piece in segs.pieces(span, skip.into(), len.into()) {
            at += table.view(piece).unwrap().copy_out(&mut bytes[at..]);
        }
    });
    bytes
}
