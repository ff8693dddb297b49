//! The probe of a logical unit: who is there, and what it takes. A state machine without a queue and without a clock.
//!
//! TEST UNIT READY until it has nothing to report any more → INQUIRY → vital product data pages 00h, 83h, 80h, B0h, B2h → READ CAPACITY →
//! MODE SENSE → VERIFY of no block → REPORT TARGET PORT GROUPS. What a device does not know it is not asked for again, and missed only where a disk cannot
//! be used without it: its size, and its block length.
//!
//! A target port that gives no access now (ALUA: standby, unavailable, transitioning) need not answer what is asked of the medium. Then what
//! was known of the disk stands, and who it is and what access there is are all that is asked anew.

use super::task::{Answer, TaskLimits};
use crate::alua::{AluaState, TargetPortGroups};
use crate::capacity::{Capacity10, Capacity16};
use crate::cdb::{ByteCheck, Form, PageControl, PowerCondition, StartStop};
use crate::inquiry::{Inquiry, Qualifier, Tpgs};
use crate::mode::{self, Caching, Header, ModeData};
use crate::sense::key;
use crate::vpd::{self, BlockLimits, DeviceIdentification, Provisioning};
use crate::{Again, Cdb, Meaning, ParseError, ScsiStatus, meaning};
use polypath_block::{Access, CacheDomain, Code, DeviceInfo, Geometry, Identifier, Identity, Limits};
use std::sync::Arc;
use std::time::Duration;

/// How often a step is tried again at once: a logical unit has several attentions to report, not many.
const MOST_TRIES: u32 = 32;
/// How often a step is tried again, with a pause, that was refused for trouble of the moment.
const MOST_REFUSALS: u32 = 8;
/// How long a logical unit may take to become ready.
const READY: Duration = Duration::from_secs(60);
/// Pause between two looks at one that is not ready yet.
const PAUSE: Duration = Duration::from_millis(100);
/// Octets of data asked for at a time; no structure that we read has more that matters.
const ALLOCATION: u16 = 2048;
/// Transfer of one command to a device that says nothing of a limit.
const TRANSFER: u32 = 1 << 20;

/// Said of a LUN that has nobody behind it.
const NOBODY: &str =
    "the target has no logical unit at this LUN; expected one that it shows to us (discover lists them)";

/// What a disk queue needs of a disk to make its commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskTraits {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Limits and abilities.
    pub limits: Limits,
    /// Which READ and WRITE it is sent.
    pub form: Form,
    /// It has SYNCHRONIZE CACHE(16) and WRITE SAME(16).
    pub wide: bool,
    /// What WRITE SAME unmaps reads as zeroes.
    pub zero_by_unmap: bool,
}

impl DiskTraits {
    /// Of no disk.
    pub const NONE: DiskTraits = DiskTraits {
        block_size: 512,
        blocks: 0,
        limits: Limits::UNLIMITED,
        form: Form::Ten,
        wide: false,
        zero_by_unmap: false,
    };
}

/// A disk that was found.
#[derive(Clone, Debug)]
pub struct LogicalUnit {
    /// As its device shows it.
    pub info: Arc<DeviceInfo>,
    /// As its queues need it.
    pub traits: DiskTraits,
    /// What it says of itself, for people: vendor, product, revision, serial number.
    pub label: String,
    /// What ALUA says of the port that answered.
    pub alua: Alua,
    /// Its mode pages could not be read, for another host has reserved it: abilities that they would tell are taken for not there.
    pub guessed: bool,
}

/// What a target says of the access through the port that answered, beside the access itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Alua {
    /// Who changes it.
    pub tpgs: Tpgs,
    /// The target port group of the port, where it has any.
    pub port_group: Option<u16>,
    /// PREF: the target wants this group to be used.
    pub preferred: bool,
    /// How long an implicit transition takes at most; zero: not told.
    pub transition: Duration,
}

/// What a probe wants next.
#[derive(Debug)]
pub enum ProbeStep {
    /// This command with room for so many octets of data; then one of [`Probe::good`], [`Probe::answered`], [`Probe::unanswered`].
    Send {
        /// The command.
        cdb: Cdb,
        /// Octets.
        data_in: u32,
    },
    /// Nothing for so long.
    Wait(Duration),
    /// It is a disk that can be used.
    Done(Box<LogicalUnit>),
    /// It is not.
    Failed {
        /// What it comes to.
        code: Code,
        /// For people.
        reason: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Ready,
    Start,
    Inquiry,
    Pages,
    Identification,
    Serial,
    Limits,
    Provisioning,
    Capacity16,
    Capacity10,
    Mode,
    Verify,
    PortGroups,
    Done,
}

/// See the module.
#[derive(Debug)]
pub struct Probe {
    step: Step,
    /// Of the step.
    tries: u32,
    /// Of the step.
    refusals: u32,
    /// How often it began anew.
    restarts: u32,
    waited: Duration,
    pausing: bool,
    started: bool,
    failed: Option<(Code, String)>,
    task_limits: TaskLimits,
    queues: u16,
    place: String,
    inquiry: Option<Inquiry>,
    pages: Vec<u8>,
    ids: DeviceIdentification,
    serial: Option<String>,
    limits: Option<BlockLimits>,
    provisioning: Option<Provisioning>,
    capacity: Option<Capacity16>,
    /// It has no READ CAPACITY(16), so that it has none of the long commands either.
    short: bool,
    write_protected: bool,
    fua: bool,
    caching: Option<Caching>,
    guessed: bool,
    /// It compares with data that it is sent.
    compares: bool,
    access: Access,
    alua: Alua,
    /// The extended header was not refused yet.
    extended: bool,
    /// What was found there before.
    known: Option<Arc<LogicalUnit>>,
    /// It stands as far as the medium goes: the port does not answer for that now.
    kept: bool,
}

impl Probe {
    /// A probe of the logical unit that is known as `place` where it has no name of its own. `queues`: how many can be opened to it.
    pub fn new(task_limits: TaskLimits, queues: u16, place: String) -> Self {
        Probe {
            step: Step::Ready,
            tries: 0,
            refusals: 0,
            restarts: 0,
            waited: Duration::ZERO,
            pausing: false,
            started: false,
            failed: None,
            task_limits,
            queues,
            place,
            inquiry: None,
            pages: Vec::new(),
            ids: DeviceIdentification { designators: Vec::new() },
            serial: None,
            limits: None,
            provisioning: None,
            capacity: None,
            short: false,
            write_protected: false,
            fua: false,
            caching: None,
            guessed: false,
            compares: false,
            access: Access::Optimized,
            alua: Alua::default(),
            extended: true,
            known: None,
            kept: false,
        }
    }

    /// The same, of somebody who was there before as `known`.
    #[must_use]
    pub fn knowing(self, known: Option<Arc<LogicalUnit>>) -> Self {
        Probe { known, ..self }
    }

    /// What it wants next.
    pub fn step(&mut self) -> ProbeStep {
        if let Some((code, reason)) = self.failed.clone() {
            return ProbeStep::Failed { code, reason };
        }
        if std::mem::take(&mut self.pausing) {
            self.waited += PAUSE;
            return ProbeStep::Wait(PAUSE);
        }
        let (cdb, data_in) = match self.step {
            Step::Ready => (Cdb::test_unit_ready(), 0),
            Step::Start => (Cdb::start_stop_unit(start()), 0),
            Step::Inquiry => (Cdb::inquiry(Inquiry::LEN as u16), Inquiry::LEN as u32),
            Step::Pages => page(vpd::code::SUPPORTED_PAGES),
            Step::Identification => page(vpd::code::DEVICE_IDENTIFICATION),
            Step::Serial => page(vpd::code::UNIT_SERIAL_NUMBER),
            Step::Limits => page(vpd::code::BLOCK_LIMITS),
            Step::Provisioning => page(vpd::code::LOGICAL_BLOCK_PROVISIONING),
            Step::Capacity16 => (Cdb::read_capacity_16(Capacity16::LEN as u32), Capacity16::LEN as u32),
            Step::Capacity10 => (Cdb::read_capacity_10(), Capacity10::LEN as u32),
            Step::Mode => {
                (Cdb::mode_sense_10(PageControl::Current, mode::page::CACHING, 0, ALLOCATION), ALLOCATION.into())
            }
            // Of no block: it says whether the command is known, and reads nothing (SBC-3 section 5.31).
            Step::Verify => (Cdb::verify_16(0, 0, ByteCheck::Data, false), 0),
            Step::PortGroups => (Cdb::report_target_port_groups(self.extended, ALLOCATION.into()), ALLOCATION.into()),
            Step::Done => return self.found(),
        };
        ProbeStep::Send { cdb, data_in }
    }

    /// The command ended GOOD with all the data that were asked for.
    pub fn good(&mut self, data: &[u8]) {
        self.take(data);
    }

    /// The command was answered otherwise; `data` are what it moved all the same.
    pub fn answered(&mut self, answer: &Answer, data: &[u8]) {
        let told = answer.sense.as_ref().filter(|_| answer.status == ScsiStatus::CHECK_CONDITION);
        if let Some(state) = told.and_then(AluaState::of_sense)
            && self.gives_no_access(state)
        {
            return;
        }
        match meaning(answer.status, answer.sense.as_ref()) {
            Meaning::Done => self.take(data),
            // What was told so far may be of the one before.
            Meaning::UnitAttention(attention) if attention.may_be_another() && self.step != Step::Ready => {
                self.restart()
            }
            Meaning::UnitAttention(_) | Meaning::Deferred(_) => self.again(false),
            Meaning::Again(again) => {
                let now = matches!(again, Again::Damaged | Again::Aborted | Again::NothingWrong);
                self.again(!now);
            }
            Meaning::Failed(status) => self.refused(status.code, answer),
        }
    }

    /// The command was not answered.
    pub fn unanswered(&mut self, code: Code) {
        let reason = format!("{:?} was not answered: {}", self.step, polypath_block::Status::new(code));
        self.failed = Some((code, reason));
    }

    /// The port says that it gives no access now. False: the step is to be judged as any other.
    fn gives_no_access(&mut self, state: AluaState) -> bool {
        match self.step {
            // Such ports answer what follows, and say who is there.
            Step::Ready | Step::Start => self.go(Step::Inquiry),
            Step::Capacity16 | Step::Capacity10 if self.known.is_none() => {
                let reason = format!("its size is not to be had: its target port is {state:?}");
                self.failed =
                    Some((if state == AluaState::Transitioning { Code::PathBusy } else { Code::PathNoAccess }, reason));
            }
            Step::Capacity16 | Step::Capacity10 | Step::Mode => {
                self.kept = self.known.is_some();
                self.after_mode();
            }
            Step::Verify => self.after_verify(),
            Step::PortGroups => self.go(Step::Done),
            _ => return false,
        }
        self.access = state.access();
        true
    }

    fn again(&mut self, later: bool) {
        self.tries += 1;
        if (later && self.waited >= READY) || (!later && self.tries > MOST_TRIES) {
            let reason = format!("it is not ready ({:?}, {} ms)", self.step, self.waited.as_millis());
            self.failed = Some((Code::PathBusy, reason));
        }
        self.pausing = later;
    }

    fn restart(&mut self) {
        let anew = Probe::new(self.task_limits, self.queues, std::mem::take(&mut self.place));
        let (restarts, waited, started) = (self.restarts + 1, self.waited, self.started);
        *self = Probe { restarts, waited, started, known: self.known.take(), ..anew };
        if restarts > MOST_TRIES {
            self.failed = Some((Code::PathBusy, "it changes all the time".into()));
        }
    }

    /// Does the step ask for something without which a disk can be used, and then is taken for one that lacks it?
    fn describes(&self) -> bool {
        use Step::{Capacity16, Identification, Limits, Mode, Pages, PortGroups, Provisioning, Serial};
        matches!(self.step, Pages | Identification | Serial | Limits | Provisioning | Capacity16 | Mode | PortGroups)
    }

    fn go(&mut self, step: Step) {
        (self.step, self.tries, self.refusals) = (step, 0, 0);
    }

    /// The next of `steps` that it has a page for.
    fn go_to_page(&mut self, steps: &[(Step, u8)], otherwise: Step) {
        let known = steps.iter().find(|(_, code)| self.pages.contains(code));
        self.go(known.map_or(otherwise, |(step, _)| *step));
    }

    fn after(&mut self, step: Step) {
        use vpd::code::{BLOCK_LIMITS, DEVICE_IDENTIFICATION, LOGICAL_BLOCK_PROVISIONING, UNIT_SERIAL_NUMBER};
        let pages = [
            (Step::Identification, DEVICE_IDENTIFICATION),
            (Step::Serial, UNIT_SERIAL_NUMBER),
            (Step::Limits, BLOCK_LIMITS),
            (Step::Provisioning, LOGICAL_BLOCK_PROVISIONING),
        ];
        let rest = match step {
            Step::Identification => 1,
            Step::Serial => 2,
            Step::Limits => 3,
            Step::Provisioning => 4,
            _ => 0,
        };
        self.go_to_page(&pages[rest..], Step::Capacity16);
    }

    fn take(&mut self, data: &[u8]) {
        if let Err(error) = self.take_data(data) {
            let reason = format!("{:?}: {error}", self.step);
            match self.step {
                // What it says of itself beyond its size may be as wrong as it likes.
                Step::Pages | Step::Identification | Step::Serial | Step::Limits | Step::Provisioning => {
                    tracing::warn!(place = %self.place, %reason, "a logical unit describes itself badly");
                    self.after(self.step);
                }
                Step::Mode => self.after_mode(),
                Step::PortGroups => self.go(Step::Done),
                _ => self.failed = Some((Code::PathProtocol, reason)),
            }
        }
    }

    fn take_data(&mut self, data: &[u8]) -> Result<(), ParseError> {
        match self.step {
            Step::Ready => self.go(Step::Inquiry),
            Step::Start => self.go(Step::Ready),
            Step::Inquiry => {
                let inquiry = Inquiry::parse(data)?;
                let qualifier = inquiry.qualifier;
                let (is_disk, kind) = (inquiry.is_disk(), inquiry.device_type);
                self.inquiry = Some(inquiry);
                if qualifier != Qualifier::Connected {
                    self.failed = Some((Code::PathNoAccess, NOBODY.into()));
                } else if !is_disk {
                    let reason = format!("it is no disk (peripheral device type {kind:02X}h)");
                    self.failed = Some((Code::PathNoAccess, reason));
                }
                self.go(Step::Pages);
            }
            Step::Pages => {
                self.pages = vpd::supported_pages(data)?.to_vec();
                self.after(Step::Pages);
            }
            Step::Identification => {
                self.ids = DeviceIdentification::parse(data)?;
                self.after(Step::Identification);
            }
            Step::Serial => {
                self.serial = Some(vpd::unit_serial_number(data)?);
                self.after(Step::Serial);
            }
            Step::Limits => {
                self.limits = Some(BlockLimits::parse(data)?);
                self.after(Step::Limits);
            }
            Step::Provisioning => {
                self.provisioning = Some(Provisioning::parse(data)?);
                self.after(Step::Provisioning);
            }
            Step::Capacity16 => self.capacity(Capacity16::parse(data)?),
            Step::Capacity10 => {
                let capacity = Capacity10::parse(data)?;
                match capacity.geometry() {
                    Some(geometry) => self.capacity(Capacity16::of(geometry)),
                    None => {
                        let reason = "it has more blocks than READ CAPACITY(10) can tell, and no READ CAPACITY(16)";
                        self.failed = Some((Code::PathNoAccess, reason.into()));
                    }
                }
            }
            Step::Mode => {
                let mode = ModeData::parse(data, Header::Ten)?;
                (self.write_protected, self.fua) = (mode.write_protected, mode.dpo_fua);
                self.caching = mode.caching();
                self.after_mode();
            }
            Step::Verify => {
                self.compares = true;
                self.after_verify();
            }
            Step::PortGroups => {
                self.port_groups(&TargetPortGroups::parse(data)?);
                self.go(Step::Done);
            }
            Step::Done => {}
        }
        Ok(())
    }

    /// The group of the port that answered: by its number, or by that of the port.
    fn port_groups(&mut self, groups: &TargetPortGroups) {
        let by_port = || self.ids.relative_target_port().and_then(|port| groups.group_of_port(port));
        let found = self.ids.target_port_group().and_then(|id| groups.group(id)).or_else(by_port);
        if let Some(group) = found {
            self.access = group.state.access();
            self.alua.preferred = group.preferred;
            self.alua.port_group = Some(group.group);
        }
        self.alua.transition = Duration::from_secs(groups.transition_seconds.into());
    }

    fn capacity(&mut self, capacity: Capacity16) {
        match capacity.geometry().check() {
            Ok(()) => {
                self.capacity = Some(capacity);
                self.go(Step::Mode);
            }
            Err(error) => self.failed = Some((Code::PathNoAccess, format!("READ CAPACITY: {error}"))),
        }
    }

    fn after_mode(&mut self) {
        // Only those that have the other long commands are asked; a kept one is not asked for anything of the medium.
        if self.short || self.kept {
            return self.after_verify();
        }
        self.go(Step::Verify);
    }

    fn after_verify(&mut self) {
        let reports = self.inquiry.as_ref().is_some_and(|i| i.tpgs.reports());
        self.go(if reports { Step::PortGroups } else { Step::Done });
    }

    /// It does not do this step, or not now.
    fn refused(&mut self, code: Code, answer: &Answer) {
        // That a device has trouble says nothing of what it can do, or who it is.
        if matches!(code, Code::PathLost | Code::PathBusy) && self.describes() && self.refusals < MOST_REFUSALS {
            self.refusals += 1;
            return self.again(true);
        }
        let sense = answer.sense.map_or_else(String::new, |sense| format!(": {sense}"));
        let start = answer.sense.is_some_and(|s| s.is(key::NOT_READY, 0x04, 0x02));
        match self.step {
            // Initializing command required.
            Step::Ready if start && !self.started => {
                self.started = true;
                self.go(Step::Start);
            }
            Step::Ready | Step::Inquiry if answer.sense.is_some_and(|s| s.is(key::ILLEGAL_REQUEST, 0x25, 0)) => {
                self.failed = Some((Code::PathNoAccess, NOBODY.into()));
            }
            // Standby and unavailable ports answer these, and say what they are.
            Step::Ready if answer.sense.is_some_and(|s| s.key == key::NOT_READY) => {
                self.go(Step::Inquiry);
            }
            Step::Pages | Step::Identification | Step::Serial | Step::Limits | Step::Provisioning => {
                self.after(self.step);
            }
            Step::Capacity16 if code == Code::Unsupported || code == Code::Invalid => {
                self.short = true;
                self.go(Step::Capacity10);
            }
            Step::Mode => {
                self.guessed = code == Code::ReservationConflict;
                self.after_mode();
            }
            Step::Verify => {
                self.guessed |= code == Code::ReservationConflict;
                self.after_verify();
            }
            // One of before SPC-4 does not know the extended header.
            Step::PortGroups if self.extended => self.extended = false,
            Step::PortGroups => self.go(Step::Done),
            _ => {
                let what = answer.status;
                let code = if answer.status == ScsiStatus::RESERVATION_CONFLICT { code } else { path_code(code) };
                self.failed = Some((code, format!("{:?} was refused with {what}{sense}", self.step)));
            }
        }
    }

    fn found(&mut self) -> ProbeStep {
        if let Some(known) = self.known.clone().filter(|_| self.kept) {
            return self.found_again(&known);
        }
        let (Some(inquiry), Some(capacity)) = (&self.inquiry, &self.capacity) else {
            return ProbeStep::Failed { code: Code::PathProtocol, reason: "the probe has found nothing".into() };
        };
        let geometry = capacity.geometry();
        let traits = self.traits(geometry, inquiry);
        let serial = self.serial();
        let info = DeviceInfo {
            geometry,
            limits: traits.limits,
            identity: self.identity(),
            access: self.access,
            max_queues: self.queues,
            max_depth: self.task_limits.depth,
        };
        let label = [&inquiry.vendor, &inquiry.product, &inquiry.revision].map(|s| s.trim()).join(" ");
        let label = serial.map_or(label.clone(), |serial| format!("{label} {serial}"));
        let alua = self.alua();
        ProbeStep::Done(Box::new(LogicalUnit { info: Arc::new(info), traits, label, alua, guessed: self.guessed }))
    }

    /// The disk that was there before, through a port that gives no access now. If it is another one, it is known by its identity.
    fn found_again(&self, known: &LogicalUnit) -> ProbeStep {
        // It has just refused a command: if it says that there is access, that has come since, and somebody must look again.
        let access = if self.access.usable() { Access::Change } else { self.access };
        let alua = match self.alua() {
            alua if alua.transition.is_zero() => Alua { transition: known.alua.transition, ..alua },
            alua => alua,
        };
        let info = DeviceInfo { identity: self.identity(), access, max_queues: self.queues, ..(*known.info).clone() };
        ProbeStep::Done(Box::new(LogicalUnit { info: Arc::new(info), alua, ..known.clone() }))
    }

    fn alua(&self) -> Alua {
        let tpgs = self.inquiry.as_ref().map_or(Tpgs::None, |inquiry| inquiry.tpgs);
        Alua { tpgs, port_group: self.alua.port_group.or_else(|| self.ids.target_port_group()), ..self.alua }
    }

    fn serial(&self) -> Option<&str> {
        self.serial.as_deref().map(str::trim).filter(|s| !s.is_empty())
    }

    fn identity(&self) -> Identity {
        let mut identifiers = self.ids.identifiers();
        let place = format!("{}/{}", self.place, self.serial().unwrap_or_default());
        if !identifiers.iter().any(Identifier::is_worldwide) {
            identifiers.push(Identifier::Place(place.clone()));
        }
        let named = identifiers.iter().find(|i| i.is_worldwide());
        let cache = named.map_or_else(|| format!("scsi:{place}"), |name| format!("scsi:{name}"));
        Identity { identifiers, cache_domain: CacheDomain(cache) }
    }

    fn traits(&self, geometry: Geometry, inquiry: &Inquiry) -> DiskTraits {
        let Geometry { block_size, blocks } = geometry;
        let wide = !self.short;
        let limits = self.limits.unwrap_or_default();
        let provisioning = self.provisioning.as_ref();
        let bytes = |count: u32| count.saturating_mul(block_size);
        let least = [bytes(limits.max_transfer_blocks), self.task_limits.max_transfer_bytes, TRANSFER];
        let mut transfer = least.into_iter().filter(|&n| n > 0).min().unwrap_or(TRANSFER);
        if !wide {
            transfer = transfer.min(bytes(u16::MAX.into()));
        }
        let same = provisioning.is_some_and(|p| p.write_same_16);
        let zeroes = match limits.max_write_same_blocks {
            0 if same && wide => bytes_to_blocks(TRANSFER, block_size),
            n if wide => u32::try_from(n).unwrap_or(u32::MAX),
            _ => 0,
        };
        let unmap = provisioning.is_some_and(|p| p.unmap) && limits.max_unmap_descriptors > 0;
        DiskTraits {
            block_size,
            blocks,
            limits: Limits {
                max_transfer_bytes: transfer - transfer % block_size,
                max_segments: self.task_limits.max_segments,
                max_write_zeroes_blocks: zeroes,
                max_discard_blocks: if unmap { limits.max_unmap_blocks } else { 0 },
                discard_granularity_blocks: limits.unmap_granularity_blocks.max(1),
                optimal_blocks: limits.optimal_transfer_blocks,
                // One that does not tell may have one: a flush that is not needed costs little.
                write_cache: self.caching.as_ref().is_none_or(|c| c.write_cache),
                fua: self.fua,
                compare: self.compares,
                max_compare_and_write_blocks: u32::from(limits.max_compare_and_write_blocks)
                    .min(transfer / 2 / block_size.max(1)),
                read_only: self.write_protected,
            },
            form: if wide && (blocks > u64::from(u32::MAX) || inquiry.protect) { Form::Sixteen } else { Form::Ten },
            wide,
            zero_by_unmap: same && provisioning.is_some_and(|p| p.reads_zeroes),
        }
    }
}

fn bytes_to_blocks(bytes: u32, block_size: u32) -> u32 {
    (bytes / block_size.max(1)).max(1)
}

fn page(code: u8) -> (Cdb, u32) {
    (Cdb::inquiry_vpd(code, ALLOCATION), ALLOCATION.into())
}

fn start() -> StartStop {
    StartStop { immed: false, start: true, load_eject: false, no_flush: false, condition: PowerCondition(0) }
}

/// What keeps a logical unit from being used concerns this path: another one may do.
fn path_code(code: Code) -> Code {
    if polypath_block::Status::new(code).scope() == polypath_block::Scope::Path { code } else { Code::PathNoAccess }
}
