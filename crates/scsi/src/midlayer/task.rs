//! The interface that a host-bus driver implements on the data path: a queue of SCSI tasks to the logical units of one bus.
//!
//! It is small on purpose. A driver (iSCSI, SAS, a vendor's own HBA) knows how to carry a CDB and its data to a logical unit and back,
//! how to end a task that takes too long, and what proves that a task is quiet. It knows nothing of blocks, of retries, of what sense data
//! mean, or of disks: all that is [`crate::midlayer::DiskQueue`]'s, for every driver alike.
//!
//! # What a driver guarantees
//! 1. A task that [`TaskQueue::submit`] accepted ends exactly once, in [`TaskDone::good`] or [`TaskDone::ends`]; one that it refused
//!    was not started.
//! 2. *An end means quiet*: nothing of the task can reach the medium any more, and nobody touches its buffers. An answer of the device
//!    server is such an end, whatever it says; a reset of one port of a disk is none for the tasks that came through another.
//! 3. Before that it may report a [`Suspect`], once: the way is broken and the end will follow with a proof, within the time that
//!    the suspect names. It always follows: where nothing answers any more, after a bound that is configured and named.
//! 4. Nothing of it blocks, locks or allocates once it is open, but for [`TaskQueue::recover`].
//! 5. Health is [`Health::Ready`] only while tasks can be sent. Each time the way to the device came back in between, the number of
//!    [`TaskQueue::nexus`] has grown: whoever uses it looks again at who is there before he sends anything that changes a medium.

use crate::{Cdb, Lun, ScsiStatus, Sense};
use polypath_block::{Armed, Code, Cx, Health, Proof, QueueFence, RefusedWhy, SegSpan, Suspect, Waits};
use std::sync::Arc;

/// Data of a task: `len` octets of the segments `span`, from `skip` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskData {
    /// None.
    None,
    /// From the device.
    In {
        /// Segments.
        span: SegSpan,
        /// Octets of them to skip.
        skip: u32,
        /// Octets, at least one.
        len: u32,
    },
    /// To the device.
    Out {
        /// Segments.
        span: SegSpan,
        /// Octets of them to skip.
        skip: u32,
        /// Octets, at least one.
        len: u32,
    },
}

impl TaskData {
    /// Octets.
    pub const fn len(&self) -> u32 {
        match *self {
            TaskData::None => 0,
            TaskData::In { len, .. } | TaskData::Out { len, .. } => len,
        }
    }

    /// Are there none?
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One task (SAM-5 section 4.6): a command for a logical unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// The submitter's own number for it; comes back with its end.
    pub tag: u64,
    /// Which target of the bus; zero where there is one only.
    pub target: u64,
    /// Which of its logical units.
    pub lun: Lun,
    /// The command.
    pub cdb: Cdb,
    /// What it moves.
    pub data: TaskData,
    /// It changes the medium, or what other initiators may do there: if its fate is unknown, its end waits for a proof that nothing of
    /// it can happen any more. Others end as soon as nobody touches their buffers.
    pub changes: bool,
}

/// A device server's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What it says.
    pub status: ScsiStatus,
    /// Why, with CHECK CONDITION.
    pub sense: Option<Sense>,
    /// Octets of data that were moved: no more than the task has.
    pub moved: u32,
}

/// How a task that is not simply good has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The device server answered.
    Answered(Answer),
    /// It did not, for this reason. What is known of the task is in its proof: [`Proof::NeverSent`] if nothing of it left.
    Lost(Code),
    /// Its memory could not be reached. It was sent, or would have been, and is over.
    BadMemory,
}

/// The end of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskEnd {
    /// The submitter's number.
    pub tag: u64,
    /// How.
    pub outcome: Outcome,
    /// Why it is known to be quiet.
    pub proof: Proof,
}

/// Ends something that takes too long: the rungs of the error-recovery ladder, mildest first (SAM-5 section 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// ABORT TASK: the task with this tag, if it is still there. Answered FUNCTION COMPLETE the task ends as lost, [`Proof::Aborted`].
    AbortTask {
        /// The task's tag.
        tag: u64,
    },
    /// LOGICAL UNIT RESET: every task of every initiator at this logical unit.
    ResetLogicalUnit {
        /// Target of the bus.
        target: u64,
        /// Logical unit.
        lun: Lun,
    },
    /// TARGET WARM RESET, or its like: every task at every logical unit of the target.
    ResetTarget {
        /// Target of the bus.
        target: u64,
    },
    /// The driver's own end of the way: a session is dropped and made anew, an adapter is reset. Every task of this queue becomes lost, with
    /// or without being suspect before. It is never refused and needs no answer.
    ResetHost,
}

/// What came of a [`Recovery`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovered {
    /// FUNCTION COMPLETE. Tasks that it ended have ended, or do in the same poll.
    Complete,
    /// The task was not there (any more): its answer is on its way or has come.
    NoSuchTask,
    /// Not supported, rejected, or the way broke: the next rung is to be tried.
    Failed,
}

/// The answer to a [`Recovery`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryEnd {
    /// The number that it was asked with.
    pub token: u64,
    /// What came of it.
    pub outcome: Recovered,
}

/// Where a poll puts what it found. Reused from turn to turn.
#[derive(Debug, Default)]
pub struct TaskDone {
    /// Tasks that ended GOOD with all their data moved, in the order in which they ended. They were answered.
    pub good: Vec<u64>,
    /// All others that ended.
    pub ends: Vec<TaskEnd>,
    /// Tasks that became suspect.
    pub suspects: Vec<Suspect>,
    /// Recoveries that were answered.
    pub recoveries: Vec<RecoveryEnd>,
}

impl TaskDone {
    /// With room for `depth` of each before it must grow.
    pub fn with_capacity(depth: usize) -> Self {
        TaskDone {
            good: Vec::with_capacity(depth),
            ends: Vec::with_capacity(depth),
            suspects: Vec::with_capacity(depth),
            recoveries: Vec::with_capacity(8),
        }
    }

    /// Is nothing in it?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.good.is_empty() && self.ends.is_empty() && self.suspects.is_empty() && self.recoveries.is_empty()
    }

    /// Forgets everything, keeps the room.
    pub fn clear(&mut self) {
        self.good.clear();
        self.ends.clear();
        self.suspects.clear();
        self.recoveries.clear();
    }
}

/// What a driver's queue can take. Known once the way is up, and of no meaning before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskLimits {
    /// Tasks at a time.
    pub depth: u16,
    /// Octets of data in one task; zero: no limit.
    pub max_transfer_bytes: u32,
    /// Segments of one task; zero: no limit.
    pub max_segments: u32,
}

/// A queue of SCSI tasks, owned by one reactor for life. The module says what it guarantees; calls are those of
/// [`polypath_block::IoQueue`], with tasks in place of requests.
pub trait TaskQueue {
    /// Takes a task. Nothing need leave before [`TaskQueue::kick`].
    ///
    /// # Errors
    /// `Full`: try again after an end. `Gone`: the way is down.
    fn submit(&mut self, cx: &mut Cx<'_>, task: &Task) -> Result<(), RefusedWhy>;

    /// One doorbell, or one send, for all tasks since the last kick.
    fn kick(&mut self, cx: &mut Cx<'_>);

    /// Makes progress. Never blocks; bounded work a call.
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut TaskDone);

    /// As [`polypath_block::IoQueue::arm`].
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed;

    /// Can it take tasks, and does it seem to get anywhere?
    fn health(&self) -> Health;

    /// Why it is [`Health::Down`], if there is a reason.
    fn trouble(&self) -> Option<(Code, String)>;

    /// Counts how often the way has come up. Whoever was there before it grew may not be there now.
    fn nexus(&self) -> u64;

    /// The target port that the way which came up last leads to. Another one makes another nexus, to which the target may say anew what it
    /// has said before.
    fn target_port(&self) -> u64 {
        0
    }

    /// What it takes.
    fn limits(&self) -> TaskLimits;

    /// Begins to end something. `token` comes back with the answer, in [`TaskDone::recoveries`]. May allocate.
    ///
    /// `false`: it does not do that, or cannot now; nothing follows. The next rung is to be tried.
    fn recover(&mut self, cx: &mut Cx<'_>, step: Recovery, token: u64) -> bool;

    /// No more tasks: [`TaskQueue::submit`] refuses; what is in flight ends in the following polls. Idempotent.
    fn close(&mut self, cx: &mut Cx<'_>);

    /// After [`TaskQueue::close`]: has everything ended? Then, and only then, it may be dropped.
    fn is_drained(&self) -> bool;

    /// As [`polypath_block::ControllerQueue::is_surplus`].
    fn is_surplus(&self) -> bool {
        false
    }

    /// As [`polypath_block::ControllerQueue::end_fence`].
    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        None
    }
}
