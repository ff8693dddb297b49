//! What happens in a world: everything that a seed decides, written down so that it can be cut down and run again.

use crate::guest::LARGEST;
use crate::transport::{IscsiPath, IscsiSettings, Mix, Transport};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// A whole scenario. The same plan gives the same run, byte for byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Seed of everything that is not said here: jitter, what guests ask for, who gets the first turn.
    pub seed: u64,
    /// When the last fault ends, in milliseconds of virtual time. Guests go on for a moment after that.
    pub length_ms: u64,
    /// Reactors, all on one thread of the operating system.
    pub reactors: u16,
    /// Disks: namespaces of one subsystem, or logical units of one target, which are the same; each joined from its paths in a group of its own.
    pub disks: u32,
    /// Blocks of a disk at the start.
    pub blocks: u64,
    /// Ways to it.
    pub paths: Vec<PathPlan>,
    /// Who uses the disks.
    pub guests: Vec<GuestPlan>,
    /// How hosts and target are configured.
    pub settings: Settings,
    /// What goes wrong.
    pub actions: Vec<Timed>,
}

/// One way to the disks: a listener of the target, and an initiator of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathPlan {
    /// Reactor of its admin queue.
    pub admin: u16,
    /// Least and most delay of a packet, in microseconds.
    pub delay_us: (u64, u64),
    /// Most that a connection lags behind the others, in microseconds.
    pub skew_us: u64,
    /// Digests.
    pub digests: bool,
    /// What it speaks.
    #[serde(default)]
    pub transport: Transport,
    /// What matters over iSCSI only.
    #[serde(default)]
    pub iscsi: IscsiPath,
}

/// One guest on one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPlan {
    /// Its disk, from 0.
    pub disk: u32,
    /// Reactor of its queue.
    pub reactor: u16,
    /// Requests in flight at most.
    pub depth: u16,
    /// Blocks of its largest ordinary request.
    pub most_blocks: u32,
    /// Mean pause between two bursts of requests, in microseconds.
    pub pause_us: u64,
    /// Reads of a hundred requests.
    pub reads: u32,
}

/// How hosts and target are configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Keep-alive timeout, in milliseconds; the target's granularity is 100.
    pub keep_alive_ms: u32,
    /// Command quiesce time of the target, in milliseconds; zero reports none.
    pub cqt_ms: u16,
    /// The host's silence timeout, in milliseconds.
    pub silence_ms: u64,
    /// The host's time limit of a command, in milliseconds.
    pub io_timeout_ms: u64,
    /// Traffic-based keep alive.
    pub tbkas: bool,
    /// Largest transfer of the target, in bytes.
    pub mdts_bytes: u32,
    /// Bytes of in-capsule data.
    pub in_capsule: u32,
    /// Most bytes of one R2T; zero for all.
    pub r2t_bytes: u32,
    /// I/O queues granted to a controller.
    pub queues: u16,
    /// Commands of an I/O queue.
    pub depth: u16,
    /// Bytes that a connection holds unread in each direction.
    pub buffer: usize,
    /// The target's write cache is volatile.
    pub volatile: bool,
    /// Groups fence. Off only to show what fencing is for.
    pub fencing: bool,
    /// The URI names no namespace: the disk is the only one of its subsystem. With one disk only.
    pub unnamed: bool,
    /// Each turn of the last reactor takes so long, in milliseconds, from the first to the last; zero for a reactor like the others.
    pub slow_turns_ms: u64,
    /// What matters over iSCSI only.
    #[serde(default)]
    pub iscsi: IscsiSettings,
}

/// An action and when it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// When, in microseconds of virtual time since the start.
    pub at_us: u64,
    /// What.
    pub action: Action,
}

/// Which directions of a path are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// To the target.
    There,
    /// Back.
    Back,
    /// Both.
    Both,
}

/// Which commands a fault of the target means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "they bear the names of the commands")]
pub enum Op {
    All,
    Read,
    Write,
    Flush,
    WriteZeroes,
    Dsm,
    Identify,
    GetLogPage,
    KeepAlive,
    Abort,
}

impl Op {
    /// As the target's control interface writes it.
    pub fn name(self) -> &'static str {
        match self {
            Op::All => "all",
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::WriteZeroes => "write_zeroes",
            Op::Dsm => "dsm",
            Op::Identify => "identify",
            Op::GetLogPage => "get_log_page",
            Op::KeepAlive => "keep_alive",
            Op::Abort => "abort",
        }
    }
}

/// Something that happens. Times are in milliseconds; whatever lasts ends with the plan at the latest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields are `path`, `disk`, `reactor` (indices) and spans, with their units")]
pub enum Action {
    /// The network eats what goes these ways.
    Cut { path: usize, way: Cut, ms: u64 },
    /// Packets take so much longer.
    Slow { path: usize, us: u64, ms: u64 },
    /// Connections are this slow.
    Trickle { path: usize, bytes_per_s: u64, ms: u64 },
    /// One connection lags behind the others, one way.
    Lag { path: usize, nth: usize, back: bool, us: u64 },
    /// The target resets the connections of a path.
    Reset { path: usize },
    /// It resets one of them.
    ResetOne { path: usize, nth: usize },
    /// It ends them in order.
    Fin { path: usize },
    /// Nobody listens, and connections are reset.
    Close { path: usize, ms: u64 },
    /// A reactor gets no turn.
    Stall { reactor: u16, ms: u64 },
    /// Each turn of a reactor takes this long.
    LongTurns { reactor: u16, turn_ms: u64, ms: u64 },
    /// Commands are carried out late.
    Delay { path: usize, op: Op, us: u64, count: u64, ms: u64 },
    /// Commands are never answered, carried out or not.
    Lose { path: usize, op: Op, execute: bool, count: u64, ms: u64 },
    /// Commands are refused.
    Refuse { path: usize, op: Op, count: u64, ms: u64 },
    /// Writes are carried out after so long, whatever becomes of their connection; beyond what the target promised if it lies.
    Hold { path: usize, after_ms: u64, beyond: bool, answer: bool, count: u64, ms: u64 },
    /// ANA state of a path.
    Ana { path: usize, state: String, ms: u64 },
    /// A disk moves to the spare ANA group, and the one it leaves becomes inaccessible. It comes back, or stays there for good.
    MoveGroup { disk: u32, stays: bool, ms: u64 },
    /// A disk grows.
    Grow { disk: u32, blocks: u64 },
    /// Another disk answers under the same namespace identifier, on every path.
    Swap { disk: u32, ms: u64 },
    /// The address of a path leads to a target that has the same name and other disks.
    OtherTarget { path: usize, ms: u64 },
    /// A namespace that nobody uses appears, or goes.
    UnusedNamespace { attach: bool },
    /// The target grants so many I/O queues from now on; the connections of a path are reset.
    Queues { path: usize, count: u64 },
    /// The target loses its power.
    PowerLoss,
}

impl Action {
    /// What it is called in a printed plan.
    pub fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    /// How long it lasts, if it lasts.
    pub fn lasts_ms(&self) -> Option<u64> {
        use Action::*;
        match *self {
            Cut { ms, .. } | Slow { ms, .. } | Trickle { ms, .. } | Close { ms, .. } | LongTurns { ms, .. } => Some(ms),
            Delay { ms, .. } | Lose { ms, .. } | Refuse { ms, .. } | Hold { ms, .. } | Ana { ms, .. } => Some(ms),
            MoveGroup { ms, stays: false, .. } | Swap { ms, .. } | OtherTarget { ms, .. } => Some(ms),
            _ => None,
        }
    }

    /// Lets it last so long, if it lasts.
    pub fn set_lasts_ms(&mut self, to: u64) {
        use Action::*;
        match self {
            Cut { ms, .. } | Slow { ms, .. } | Trickle { ms, .. } | Close { ms, .. } | LongTurns { ms, .. } => *ms = to,
            Delay { ms, .. } | Lose { ms, .. } | Refuse { ms, .. } | Hold { ms, .. } | Ana { ms, .. } => *ms = to,
            MoveGroup { ms, .. } | Swap { ms, .. } | OtherTarget { ms, .. } => *ms = to,
            _ => {}
        }
    }
}

impl Plan {
    /// The plan of a seed, over the transports of `mix`, or those that the seed says.
    pub fn from_seed(seed: u64, mix: Option<Mix>) -> Plan {
        let mut plan = Plan::over_nvme_tcp(seed);
        // Dice of their own: what goes wrong, and everything else, is the same over all transports.
        mix.unwrap_or_else(|| Mix::of_seed(seed)).lay_out(&mut plan, &mut Dice::new(seed ^ 0x15c5_1000));
        plan
    }

    fn over_nvme_tcp(seed: u64) -> Plan {
        let mut dice = Dice::new(seed);
        let reactors = dice.one_of(&[1, 2, 2, 3]);
        let disks = dice.one_of(&[1, 1, 2]);
        let settings = settings(&mut dice, reactors, disks);
        // Admin queues have their time limits, too: a slow reactor serves I/O only.
        let quick = if settings.slow_turns_ms > 0 { reactors - 1 } else { reactors };
        let paths: Vec<PathPlan> = (0..dice.range(2, 4)).map(|_| path(&mut dice, quick)).collect();
        let guests =
            (0..dice.range(u64::from(disks), 4)).map(|i| guest(&mut dice, i as u32 % disks, reactors)).collect();
        let length_ms = dice.range(600, 2500);
        let mut plan =
            Plan { seed, length_ms, reactors, disks, blocks: 192, paths, guests, settings, actions: Vec::new() };
        for _ in 0..dice.range(2, 12) {
            let at_us = dice.range(20_000, length_ms * 1000 - 50_000);
            let action = action(&mut dice, &plan, length_ms - at_us / 1000);
            plan.actions.extend(company(&mut dice, &plan, at_us, &action));
            plan.actions.push(Timed { at_us, action });
        }
        plan.actions.sort_by_key(|timed| timed.at_us);
        plan
    }
}

impl Plan {
    /// The same without the actions of these kinds.
    #[must_use]
    pub fn without(mut self, kinds: &[String]) -> Plan {
        self.actions.retain(|timed| !kinds.iter().any(|kind| *kind == timed.action.kind()));
        self
    }
}

pub(crate) struct Dice(Xoshiro256PlusPlus);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// From `least` to `most`, both included.
    pub(crate) fn range(&mut self, least: u64, most: u64) -> u64 {
        self.0.random_range(least..=most)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.range(0, 99) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.range(0, list.len() as u64 - 1) as usize]
    }

    /// As many short spans as long ones: from `least` to `most`, evenly by their logarithm.
    fn span(&mut self, least: u64, most: u64) -> u64 {
        let (a, b) = ((least.max(1) as f64).ln(), (most.max(1) as f64).ln());
        let x = self.range(0, 1000) as f64 / 1000.0;
        (a + (b - a) * x).exp() as u64
    }
}

fn settings(dice: &mut Dice, reactors: u16, disks: u32) -> Settings {
    let slow_turns_ms = if reactors > 1 && dice.chance(10) { dice.range(75, 120) } else { 0 };
    let slow = slow_turns_ms > 0;
    let mut settings = Settings {
        keep_alive_ms: dice.one_of(&[200, 300, 400]),
        cqt_ms: dice.one_of(&[50, 50, 100, 0]),
        silence_ms: dice.one_of(&[60, 100, 150]),
        io_timeout_ms: dice.one_of(&[150, 250, 400]),
        tbkas: dice.chance(20),
        mdts_bytes: dice.one_of(&[8192, 8192, 16_384, 131_072]),
        in_capsule: dice.one_of(&[0, 4096, 8192]),
        r2t_bytes: if slow { 0 } else { dice.one_of(&[0, 0, 2048]) },
        queues: dice.one_of(&[1, 2, 16]),
        depth: dice.one_of(&[4, 4, 16, 64]),
        buffer: dice.one_of(&[4096, 16_384, 65_536]),
        volatile: dice.chance(60),
        fencing: true,
        unnamed: disks == 1 && dice.chance(30),
        slow_turns_ms,
        iscsi: IscsiSettings::default(),
    };
    // Several turns, which count, and one for each time that the largest request fills the buffer of a connection.
    let turns = 6 + u64::from(LARGEST) * 512 / settings.buffer as u64;
    settings.io_timeout_ms = settings.io_timeout_ms.max(slow_turns_ms * turns);
    settings
}

fn path(dice: &mut Dice, reactors: u16) -> PathPlan {
    let least = dice.span(10, 200);
    PathPlan {
        admin: dice.range(0, u64::from(reactors) - 1) as u16,
        delay_us: (least, least + dice.span(10, 200)),
        skew_us: dice.one_of(&[0, 100, 1000]),
        digests: dice.chance(25),
        transport: Transport::NvmeTcp,
        iscsi: IscsiPath::default(),
    }
}

fn guest(dice: &mut Dice, disk: u32, reactors: u16) -> GuestPlan {
    GuestPlan {
        disk,
        reactor: dice.range(0, u64::from(reactors) - 1) as u16,
        depth: dice.one_of(&[1, 4, 8, 16]),
        most_blocks: dice.one_of(&[1, 4, 8]),
        pause_us: dice.span(1000, 20_000),
        reads: dice.one_of(&[10, 30, 60]),
    }
}

/// What makes an action matter, often enough that few worlds go by without it.
fn company(dice: &mut Dice, plan: &Plan, at_us: u64, action: &Action) -> Option<Timed> {
    let timed = |at_us, action| Some(Timed { at_us, action });
    match *action {
        // Something to identify.
        Action::Refuse { op: Op::Identify, ms, .. } if dice.chance(60) => {
            let news =
                Action::Grow { disk: dice.range(0, u64::from(plan.disks) - 1) as u32, blocks: dice.range(1, 64) };
            timed(at_us + dice.range(0, ms * 500), news)
        }
        // Writes that are still to land when their connection is lost.
        Action::Hold { path, after_ms, ms, .. } if dice.chance(50) => {
            timed(at_us + dice.range(0, ms.min(after_ms) * 1000), Action::Reset { path })
        }
        _ => None,
    }
}

fn action(dice: &mut Dice, plan: &Plan, left_ms: u64) -> Action {
    let path = dice.range(0, plan.paths.len() as u64 - 1) as usize;
    let reactor = dice.range(0, u64::from(plan.reactors) - 1) as u16;
    let disk = dice.range(0, u64::from(plan.disks) - 1) as u32;
    let ms = dice.span(5, 1000).min(left_ms.max(1));
    let nth = dice.range(0, 5) as usize;
    let count = dice.span(1, 30);
    match dice.range(0, 99) {
        0..15 => Action::Cut { path, way: dice.one_of(&[Cut::There, Cut::Back, Cut::Both]), ms },
        15..20 => Action::Slow { path, us: dice.span(200, 80_000), ms },
        20..24 => Action::Trickle { path, bytes_per_s: dice.span(2_000, 500_000), ms },
        24..28 => Action::Lag { path, nth, back: dice.chance(50), us: dice.span(100, 50_000) },
        28..34 => Action::Reset { path },
        34..40 => Action::ResetOne { path, nth },
        40..42 => Action::Fin { path },
        42..46 => Action::Close { path, ms },
        46..54 => Action::Stall { reactor, ms: dice.span(5, 800) },
        54..57 => Action::LongTurns { reactor, turn_ms: dice.span(5, 80), ms },
        57..63 => {
            let op = dice.one_of(&[Op::All, Op::Write, Op::Write, Op::Read, Op::Abort, Op::KeepAlive, Op::Identify]);
            Action::Delay { path, op, us: dice.span(500, 500_000), count, ms }
        }
        63..70 => {
            let op = dice.one_of(&[Op::All, Op::Write, Op::Write, Op::Read, Op::Flush, Op::Dsm, Op::KeepAlive]);
            Action::Lose { path, op, execute: dice.chance(50), count, ms }
        }
        70..73 => Action::Refuse { path, op: dice.one_of(&[Op::Identify, Op::GetLogPage]), count: count.min(3), ms },
        73..81 => {
            let (after_ms, answer) = (dice.span(10, 900), dice.chance(50));
            Action::Hold { path, after_ms, beyond: false, answer, count, ms }
        }
        81..87 => {
            let state = dice.one_of(&["non_optimized", "inaccessible", "persistent_loss", "change"]).to_owned();
            Action::Ana { path, state, ms }
        }
        87..89 => Action::MoveGroup { disk, stays: dice.chance(50), ms },
        89..91 => Action::Grow { disk, blocks: dice.range(1, 64) },
        91..93 => Action::Swap { disk, ms },
        93..94 => Action::OtherTarget { path, ms },
        94..96 => Action::UnusedNamespace { attach: dice.chance(70) },
        96..98 => Action::Queues { path, count: dice.range(1, 4) },
        _ => Action::PowerLoss,
    }
}
