//! Passthrough: one command in the words of the protocol that a device speaks. An optional power of a [`Device`](crate::Device).
//!
//! For what has no words in the contract: INQUIRY and LOG SENSE, Identify and Get Log Page, a vendor's own. What others rely on is not left to
//! it: a command that changes anything says so, is sent once and is never answered before it is quiet; one that would go behind the back
//! of whoever sends I/O there is refused at the door ([`CommandClass`]).

use crate::status::{Code, Scope, Status};
use core::fmt;
use core::time::Duration;

/// Most octets of data of one command, either way.
pub const MOST_PASSTHROUGH_BYTES: u32 = 64 << 10;
/// Longest time for one command.
pub const LONGEST_PASSTHROUGH: Duration = Duration::from_secs(600);

/// In which words a device takes commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CommandSet {
    /// SCSI commands (SPC-4, SBC-3).
    Scsi,
    /// NVMe admin commands and those of the NVM command set.
    Nvme,
}

impl CommandSet {
    /// Its name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            CommandSet::Scsi => "SCSI",
            CommandSet::Nvme => "NVMe",
        }
    }
}

impl fmt::Display for CommandSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the namespace identifier of an NVMe command names. The device knows the number of its namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum NvmeScope {
    /// This namespace.
    #[default]
    Namespace,
    /// The controller: the identifier is zero.
    Controller,
    /// All namespaces: the identifier is FFFFFFFFh. Not of a command that changes something, for that would reach other disks.
    All,
}

/// One NVMe command (NVMe Base 2.1 section 4.1). Identifier, flags and data pointer are the device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct NvmeCommand {
    /// Of the admin queue, or of an I/O queue.
    pub admin: bool,
    /// Opcode.
    pub opcode: u8,
    /// What it is about.
    pub scope: NvmeScope,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
}

/// A command.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum PassthroughCommand {
    /// A command descriptor block, as long as its operation code says (SPC-4 section 4.2): 6, 10, 12 or 16 octets.
    Scsi(Vec<u8>),
    /// An NVMe command.
    Nvme(NvmeCommand),
}

impl PassthroughCommand {
    /// In which words it is said.
    pub const fn set(&self) -> CommandSet {
        match self {
            PassthroughCommand::Scsi(_) => CommandSet::Scsi,
            PassthroughCommand::Nvme(_) => CommandSet::Nvme,
        }
    }
}

/// Data of a command: at most [`MOST_PASSTHROUGH_BYTES`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub enum PassthroughData {
    /// None.
    #[default]
    None,
    /// So many octets are asked for.
    In(u32),
    /// These go with it.
    Out(Vec<u8>),
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassthroughRequest {
    /// The command.
    pub command: PassthroughCommand,
    /// What it moves.
    pub data: PassthroughData,
    /// It may change data, or state that others see. Said by whoever asks: a command of which that is so, or not known, is refused without it.
    pub changes: bool,
}

impl PassthroughRequest {
    /// A command that changes nothing.
    pub const fn reads(command: PassthroughCommand, data: PassthroughData) -> Self {
        PassthroughRequest { command, data, changes: false }
    }

    /// A command that may change something.
    pub const fn changes(command: PassthroughCommand, data: PassthroughData) -> Self {
        PassthroughRequest { command, data, changes: true }
    }

    /// # Errors
    /// [`Code::Invalid`] for more data than one command may move.
    pub fn check_length(&self) -> Result<(), PassthroughError> {
        let len = match &self.data {
            PassthroughData::None => 0,
            PassthroughData::In(len) => u64::from(*len),
            PassthroughData::Out(octets) => octets.len() as u64,
        };
        if len <= MOST_PASSTHROUGH_BYTES.into() {
            return Ok(());
        }
        let reason = format!("{len} bytes of data; expected at most {MOST_PASSTHROUGH_BYTES}");
        Err(PassthroughError::new(Code::Invalid, reason))
    }
}

/// How a device answered, in its own words.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum PassthroughStatus {
    /// SCSI.
    Scsi {
        /// The status code (SAM-5 section 5.3.1): 0 GOOD, 2 CHECK CONDITION.
        status: u8,
        /// Sense data in descriptor format (SPC-4 section 4.5.2), whatever format the device used: what we know of them. Empty if there are none.
        sense: Vec<u8>,
    },
    /// NVMe.
    Nvme {
        /// Status code type and status code as `sct << 8 | sc`, with CRD, M and DNR above them (NVMe Base 2.1 section 4.2.3).
        status: u16,
        /// Dword 0 of the completion.
        dw0: u32,
    },
}

impl PassthroughStatus {
    /// Was it carried out?
    pub const fn is_good(&self) -> bool {
        match self {
            PassthroughStatus::Scsi { status, .. } => *status == 0,
            PassthroughStatus::Nvme { status, .. } => *status & 0x7ff == 0,
        }
    }
}

/// An answer of the device, whatever it says.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct PassthroughAnswer {
    /// Status.
    pub status: PassthroughStatus,
    /// What was asked for with [`PassthroughData::In`], as far as it came; zero where NVMe does not tell how much that was.
    pub data: Vec<u8>,
}

/// Why there is no answer of the device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PassthroughError {
    /// [`Code::OutcomeUnknown`]: it changes something, may have been carried out or not, and is quiet now. [`Code::Unsupported`] and
    /// [`Code::Invalid`]: refused at the door. What has scope `Path`: it was not carried out, or nothing was changed by it.
    pub code: Code,
    /// For people.
    pub reason: String,
}

impl PassthroughError {
    /// With a sentence for people.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        PassthroughError { code, reason: reason.into() }
    }

    /// May another path do?
    pub fn is_of_path(&self) -> bool {
        Status::new(self.code).scope() == Scope::Path
    }
}

/// What is known of a command: each protocol has a table of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandClass {
    /// It changes nothing that others see. It may be sent again.
    Reads,
    /// It changes data or state, or nobody knows. It is sent once.
    Changes,
    /// It would go behind somebody's back, for this reason.
    Refused(&'static str),
}

impl CommandClass {
    /// May it be sent by whoever says that it changes something, or that it does not?
    ///
    /// # Errors
    /// [`Code::Unsupported`] for what is never sent, [`Code::Invalid`] for what changes something and was not said to. `what` names it.
    pub fn admit(self, what: impl fmt::Display, changes: bool) -> Result<(), PassthroughError> {
        match self {
            CommandClass::Refused(why) => {
                Err(PassthroughError::new(Code::Unsupported, format!("{what} is not passed through: {why}")))
            }
            CommandClass::Changes if !changes => {
                let reason = format!("{what} may change data or state; expected that to be stated (changes)");
                Err(PassthroughError::new(Code::Invalid, reason))
            }
            CommandClass::Reads | CommandClass::Changes => Ok(()),
        }
    }
}

/// What comes of it.
pub type PassthroughResult = Result<PassthroughAnswer, PassthroughError>;

/// Takes one answer. Dropped without one, it says that whoever was asked has ended.
pub struct PassthroughReply(Option<Box<dyn FnOnce(PassthroughResult) + Send>>);

impl PassthroughReply {
    /// `take` is called once, on any thread, perhaps before [`Passthrough::start`] is back. It must not wait.
    pub fn new(take: impl FnOnce(PassthroughResult) + Send + 'static) -> Self {
        PassthroughReply(Some(Box::new(take)))
    }

    /// Answers.
    pub fn answer(mut self, result: PassthroughResult) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }

    /// Answers with an error.
    pub fn refuse(self, code: Code, reason: impl Into<String>) {
        self.answer(Err(PassthroughError::new(code, reason)));
    }
}

impl Drop for PassthroughReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            let reason = "the device has ended before it answered";
            take(Err(PassthroughError::new(Code::OutcomeUnknown, reason)));
        }
    }
}

impl fmt::Debug for PassthroughReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassthroughReply")
    }
}

/// The power of a device to pass a command through. Control plane: nothing of it is on the data path.
///
/// A command that may change something is never sent twice, and its end is told only when nothing of it can happen any more: where the way
/// is lost in the middle that takes as long as the proof that the way has, and longer than `limit`.
pub trait Passthrough: Send + Sync {
    /// Does it take commands of this set?
    fn speaks(&self, set: CommandSet) -> bool;

    /// Begins. Never waits. `reply` is given an answer within about `limit` (at most [`LONGEST_PASSTHROUGH`]), or later as said above. A command
    /// that the device does not answer in time costs the way it was sent over: only then it is known to be over.
    fn start(&self, request: PassthroughRequest, limit: Duration, reply: PassthroughReply);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_is_known_of_a_command_decides_whether_it_is_sent() {
        let code = |class: CommandClass, changes| class.admit("IT", changes).err().map(|error| error.code);
        for (class, changes, want) in [
            (CommandClass::Reads, false, None),
            (CommandClass::Reads, true, None),
            (CommandClass::Changes, false, Some(Code::Invalid)),
            (CommandClass::Changes, true, None),
            (CommandClass::Refused("no"), false, Some(Code::Unsupported)),
            (CommandClass::Refused("no"), true, Some(Code::Unsupported)),
        ] {
            assert_eq!(code(class, changes), want, "{class:?} {changes}");
        }
        assert_eq!(
            CommandClass::Refused("it is ours").admit("IT", true).unwrap_err().to_string(),
            "IT is not passed through: it is ours"
        );
    }

    #[test]
    fn data_have_a_bound() {
        let check = |data| PassthroughRequest::reads(PassthroughCommand::Scsi(vec![0; 6]), data).check_length().is_ok();
        let most = MOST_PASSTHROUGH_BYTES;
        assert!(
            check(PassthroughData::None) && check(PassthroughData::In(most)) && !check(PassthroughData::In(most + 1))
        );
        assert!(check(PassthroughData::Out(vec![0; most as usize])));
        assert!(!check(PassthroughData::Out(vec![0; most as usize + 1])));
    }

    #[test]
    fn only_type_and_code_make_a_status_good() {
        let nvme = |status| PassthroughStatus::Nvme { status, dw0: 7 }.is_good();
        assert!(nvme(0) && nvme(0x4000) && !nvme(0x002) && !nvme(0x100));
        let scsi = |status| PassthroughStatus::Scsi { status, sense: Vec::new() }.is_good();
        assert!(scsi(0) && !scsi(2) && !scsi(0x18));
    }

    #[test]
    fn a_reply_that_is_dropped_says_so_and_one_that_was_given_is_not_given_again() {
        let (tell, told) = channel();
        let reply = || {
            let tell = tell.clone();
            PassthroughReply::new(move |result: PassthroughResult| tell.send(result.err().map(|e| e.code)).unwrap())
        };
        drop(reply());
        reply().refuse(Code::PathBusy, "busy");
        let status = PassthroughStatus::Nvme { status: 0, dw0: 0 };
        reply().answer(Ok(PassthroughAnswer { status, data: Vec::new() }));
        let want = [Some(Code::OutcomeUnknown), Some(Code::PathBusy), None];
        assert_eq!(told.try_iter().collect::<Vec<_>>(), want);
    }
}
