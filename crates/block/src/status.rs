//! What happened, and to whom.

use core::fmt;

/// Whom an error concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scope {
    /// This request: another path would answer the same. Report it to whoever asked.
    Io,
    /// This way to the disk: another path may do.
    Path,
    /// The disk: no path will do.
    Device,
}

/// What is known of an I/O whose way broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Fate {
    /// Nothing of it left this host.
    NotSent,
    /// The peer answered it (with an error): it is over.
    Finished,
    /// It may still be carried out, now or later. Only a fence tells.
    Unknown,
}

/// The outcome of a request, by meaning. The wire's own words are in [`Status::detail`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Code {
    /// Done.
    Ok,
    /// The medium failed to give or take the data.
    Medium,
    /// The range ends beyond the device.
    OutOfRange,
    /// The request is malformed: length, alignment, segments that do not cover the data.
    Invalid,
    /// The device does not do this operation.
    Unsupported,
    /// The device does not take changes.
    WriteProtected,
    /// Another host holds a reservation.
    ReservationConflict,
    /// Compare found a difference.
    Miscompare,
    /// The device has no space for the data (thin provisioning).
    NoSpace,
    /// The device gave the command up for a reason of its own.
    Aborted,
    /// Memory of the request cannot be reached (region gone or bounds passed).
    BadMemory,
    /// A part that must not be replayed has an unknown outcome.
    OutcomeUnknown,
    /// A write that completed before may not have reached the medium (a dirty cache was lost).
    CacheLost,
    /// The connection or the device behind it was lost.
    PathLost,
    /// The path does not give access now (ANA inaccessible or persistent loss).
    PathNoAccess,
    /// The path is changing its access state, or asks to try again.
    PathBusy,
    /// No answer within the time limit.
    PathTimeout,
    /// The peer broke the protocol.
    PathProtocol,
    /// The device behind the path is not the one it was.
    PathIdentity,
    /// No path was usable for as long as the configuration lets an I/O wait.
    NoPath,
    /// The device is gone for good or was closed.
    Gone,
}

impl Code {
    /// Every code, for tables and tests.
    pub const ALL: [Code; 21] = [
        Code::Ok,
        Code::Medium,
        Code::OutOfRange,
        Code::Invalid,
        Code::Unsupported,
        Code::WriteProtected,
        Code::ReservationConflict,
        Code::Miscompare,
        Code::NoSpace,
        Code::Aborted,
        Code::BadMemory,
        Code::OutcomeUnknown,
        Code::CacheLost,
        Code::PathLost,
        Code::PathNoAccess,
        Code::PathBusy,
        Code::PathTimeout,
        Code::PathProtocol,
        Code::PathIdentity,
        Code::NoPath,
        Code::Gone,
    ];

    const fn text(self) -> &'static str {
        match self {
            Code::Ok => "done",
            Code::Medium => "medium error",
            Code::OutOfRange => "range ends beyond the device",
            Code::Invalid => "malformed request",
            Code::Unsupported => "operation not supported by the device",
            Code::WriteProtected => "device is write protected",
            Code::ReservationConflict => "reservation held by another host",
            Code::Miscompare => "compare found a difference",
            Code::NoSpace => "device has no space left",
            Code::Aborted => "command aborted by the device",
            Code::BadMemory => "memory of the request cannot be reached",
            Code::OutcomeUnknown => "outcome unknown and must not be replayed",
            Code::CacheLost => "an acknowledged write may not be durable: its cache was lost",
            Code::PathLost => "path lost",
            Code::PathNoAccess => "path gives no access",
            Code::PathBusy => "path asks to try again",
            Code::PathTimeout => "no answer on the path in time",
            Code::PathProtocol => "peer broke the protocol",
            Code::PathIdentity => "another device answers on the path",
            Code::NoPath => "no usable path in time",
            Code::Gone => "device is gone",
        }
    }
}

/// Outcome of a request: a meaning and the wire's own status, if there was one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Status {
    /// The meaning.
    pub code: Code,
    /// What the wire said: NVMe SCT and SC as `sct << 8 | sc`, SCSI `key << 16 | asc << 8 | ascq`, or an errno; zero if nothing.
    pub detail: u32,
}

impl Status {
    /// Success.
    pub const OK: Status = Status { code: Code::Ok, detail: 0 };

    /// A status without wire detail.
    pub const fn new(code: Code) -> Self {
        Status { code, detail: 0 }
    }

    /// A status with the wire's own word.
    pub const fn with_detail(code: Code, detail: u32) -> Self {
        Status { code, detail }
    }

    /// Did it succeed?
    pub const fn is_ok(self) -> bool {
        matches!(self.code, Code::Ok)
    }

    /// Of a flush: may the device have dropped what it could not make durable? Another flush would say nothing of that, so that all whose
    /// changes this one was to cover must hear of it. Linux does so with files: whoever has one open hears once of each write-back that failed.
    pub const fn may_have_dropped(self) -> bool {
        matches!(self.code, Code::Medium | Code::NoSpace | Code::WriteProtected | Code::CacheLost)
    }

    /// Whom it concerns. Success concerns the request.
    pub const fn scope(self) -> Scope {
        match self.code {
            Code::PathLost
            | Code::PathNoAccess
            | Code::PathBusy
            | Code::PathTimeout
            | Code::PathProtocol
            | Code::PathIdentity => Scope::Path,
            Code::NoPath | Code::Gone => Scope::Device,
            _ => Scope::Io,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.text())?;
        if self.detail != 0 {
            write!(f, " (wire status {:#x})", self.detail)?;
        }
        Ok(())
    }
}

impl From<Code> for Status {
    fn from(code: Code) -> Self {
        Status::new(code)
    }
}
