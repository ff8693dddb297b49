//! Answers that the logical unit which is known would not give: another one may answer in its place, without a word.
//!
//! A target that changes what is behind a LUN says so by a unit attention (SPC-4 section 6.33.1, REPORTED LUNS DATA HAS CHANGED; SPC-4 annex F,
//! INQUIRY DATA HAS CHANGED). Linux's LIO does not where LUN 0 is taken away from a portal group: at once its *virtual* unit answers there, of a few
//! blocks without content that takes no writes. What such a unit says of a request is not for whoever has asked.
//!
//! So it is not taken for the disk's answer at first. Who is there is found out anew, as after a unit attention: nothing is sent there before,
//! and whatever is answered meanwhile does not count. If it is the same disk, the request is sent again, and its second answer stands.
//! A disk that has shrunk or takes no writes any more is told as that.

use super::DiskQueue;
use crate::midlayer::probe::DiskTraits;
use crate::midlayer::task::TaskQueue;
use polypath_block::{Code, Io, Op, SlotKey, Status, Time, Unit};

/// ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED, as a status carries it.
const NO_UNIT: u32 = 0x05_25_00;
/// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
const NO_SUCH_COMMAND: u32 = 0x05_20_00;
/// WRITE PROTECTED with the qualifier ZONE IS READ ONLY: of a zone, not of the disk.
const ZONE_IS_READ_ONLY: u32 = 0x27_08;

/// Does the answer say that there is no logical unit?
pub(super) fn denies_unit(status: Status) -> bool {
    status.detail == NO_UNIT
}

/// Would a disk with these traits not answer a request that it takes so?
///
/// Only what was proven counts, not what it has promised: WRITE SAME, UNMAP, COMPARE AND WRITE and SYNCHRONIZE CACHE may be refused
/// by disks that say they do them. READ is mandatory (SBC-3 section 5.1), WRITE is there where the medium is not write-protected, and VERIFY with
/// data was answered good to the probe.
fn contradicts(status: Status, io: &Io, traits: &DiskTraits) -> bool {
    match status.code {
        Code::OutOfRange => {
            let end = io.lba.checked_add(io.blocks.into());
            !io.op.has_range() || end.is_some_and(|end| end <= traits.blocks)
        }
        // The probe has read WP, which covers every way of protecting all of the medium (SBC-3 section 6.5.1).
        Code::WriteProtected => !traits.limits.read_only && status.detail & 0xffff != ZONE_IS_READ_ONLY,
        Code::Unsupported => status.detail == NO_SUCH_COMMAND && matches!(io.op, Op::Read | Op::Write | Op::Compare),
        _ => denies_unit(status),
    }
}

impl<Q: TaskQueue> DiskQueue<Q> {
    /// Part `key` was answered with `status`. If that is not what its logical unit would say, it is looked at anew, and everything that is
    /// under way there is in doubt. `false`: the answer stands, the second one also if it is the same.
    pub(super) fn disputes(&mut self, key: SlotKey, unit: Unit, status: Status, now: Time) -> bool {
        let (Some(part), Some(state)) = (self.requests.get_mut(key), self.units.get(unit)) else { return false };
        if part.disputed || part.is_revoked() || !contradicts(status, &part.io, &state.traits) {
            return false;
        }
        if !self.units.dispute(unit, status.code, now) {
            return false;
        }
        part.disputed = true;
        self.requests.doubt(unit);
        true
    }

    /// Another way has found no disk where units of ours are. This one may lead to something else: it looks for itself.
    #[cold]
    pub(super) fn doubt_missing(&mut self, now: Time) {
        for unit in self.units.missing() {
            if self.units.dispute(unit, Code::PathNoAccess, now) {
                self.requests.doubt(unit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Limits, SegSpan};

    #[test]
    fn only_what_the_disk_is_known_to_do_otherwise_is_disputed() {
        let disk =
            DiskTraits { blocks: 100, limits: Limits { read_only: false, ..Limits::UNLIMITED }, ..DiskTraits::NONE };
        let shut = DiskTraits { limits: Limits { read_only: true, ..disk.limits }, ..disk };
        let at = |op, lba| Io { op, ..Io::read(1, lba, 1, SegSpan::EMPTY) };
        let (out, wp, unknown, none) = (Code::OutOfRange, Code::WriteProtected, Code::Unsupported, Code::PathNoAccess);
        for (code, detail, io, traits, want) in [
            (out, 0x52100, at(Op::Read, 99), disk, true),
            (out, 0x52100, at(Op::Write, 0), disk, true),
            (out, 0x52100, at(Op::Read, 100), disk, false),
            (out, 0x52100, at(Op::Read, u64::MAX), disk, false),
            (out, 0x52100, Io::flush(1), disk, true),
            (wp, 0x72700, at(Op::Write, 0), disk, true),
            (wp, 0x72702, at(Op::Discard, 0), disk, true),
            (wp, 0x72700, at(Op::Write, 0), shut, false),
            (wp, 0x72708, at(Op::Write, 0), disk, false),
            (unknown, 0x52000, at(Op::Read, 0), disk, true),
            (unknown, 0x52000, at(Op::Write, 0), disk, true),
            (unknown, 0x52000, at(Op::Compare, 0), disk, true),
            (unknown, 0x52000, at(Op::Discard, 0), disk, false),
            (unknown, 0x52000, Io::flush(1), disk, false),
            (unknown, 0x52200, at(Op::Read, 0), disk, false),
            (none, 0x52500, at(Op::Read, 0), disk, true),
            (none, 0x2040b, at(Op::Read, 0), disk, false),
            (Code::Invalid, 0x52400, at(Op::Read, 0), disk, false),
            (Code::Medium, 0x31100, at(Op::Read, 0), disk, false),
            (Code::NoSpace, 0x72707, at(Op::Write, 0), disk, false),
        ] {
            let status = Status::with_detail(code, detail);
            assert_eq!(contradicts(status, &io, &traits), want, "{status} to {io:?}");
        }
    }
}
