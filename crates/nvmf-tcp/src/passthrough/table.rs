//! Which commands may be passed through to a namespace that others use, too: what each of them changes, by its opcode.
//!
//! What is not in the tables is taken for something that changes: nobody knows. What keeps the association, the fence, flushes or reservations
//! from their work is refused, with what to use instead.

use polypath_block::CommandClass::{self, Changes, Reads, Refused};
use polypath_block::{Code, NvmeCommand, NvmeScope, PassthroughData, PassthroughError};
use polypath_nvme::Sqe;
use polypath_nvme::features::fid;
use polypath_nvme::log::lid;
use polypath_nvme::sqe::{DataDirection, NSID_ALL, admin, io};

const QUEUES: CommandClass = Refused("queues and connections are the path's own");
const RESERVATIONS: CommandClass = Refused("reservations belong to the disk; use those of the disk");

/// Admin commands (Base 2.1 figure 28; section of each).
const ADMIN: &[(u8, CommandClass)] = &[
    (0x00, QUEUES),               // Delete I/O Submission Queue, 5.2.4
    (0x01, QUEUES),               // Create I/O Submission Queue, 5.2.2
    (admin::GET_LOG_PAGE, Reads), // 5.1.12, but see `class`
    (0x04, QUEUES),               // Delete I/O Completion Queue, 5.2.3
    (0x05, QUEUES),               // Create I/O Completion Queue, 5.2.1
    (admin::IDENTIFY, Reads),     // 5.1.13
    (admin::ABORT, Refused("commands are the path's own; it ends them when it must")), // 5.1.1
    (admin::SET_FEATURES, Changes), // 5.1.25, but see `class`
    (admin::GET_FEATURES, Reads), // 5.1.11
    (admin::ASYNC_EVENT_REQUEST, Refused("events are the path's own")), // 5.1.2
    (admin::KEEP_ALIVE, QUEUES),  // 5.1.14
    (0x1a, Reads),                // Directive Receive, 5.1.6
    (0x1c, QUEUES),               // Virtualization Management, 5.2.6
    (0x7c, QUEUES),               // Doorbell Buffer Config, 5.2.5
    (admin::FABRICS, QUEUES),     // 6
    (0x84, Refused("it goes on when it has been answered, and reaches all namespaces of the subsystem")), // Sanitize, 5.1.22
    (0x86, Reads), // Get LBA Status, NVM Command Set 1.1 section 4.2.1
];

/// I/O commands (NVM Command Set 1.1 figure 20, Base 2.1 section 7; section of each).
const IO: &[(u8, CommandClass)] = &[
    (io::FLUSH, Refused("what it reports is owed to all who write; use a flush of the disk")), // Base 7.2
    (io::READ, Reads),                                                                         // 3.3.4
    (io::COMPARE, Reads),                                                                      // 3.3.1
    (0x0c, Reads),                                                                             // Verify, 3.3.5
    (io::RESERVATION_REGISTER, RESERVATIONS),                                                  // Base 7.6
    (io::RESERVATION_REPORT, Reads),                                                           // Base 7.8
    (io::RESERVATION_ACQUIRE, RESERVATIONS),                                                   // Base 7.5
    (0x12, Reads),                           // I/O Management Receive, Base 7.3
    (io::RESERVATION_RELEASE, RESERVATIONS), // Base 7.7
    (0x18, Refused("commands are the path's own; it ends them when it must")), // Cancel, Base 7.1
    (admin::FABRICS, QUEUES),                // Base 6
];

/// Features that are not set through here (Base 2.1 section 5.1.25.1): what the path or the disk goes by.
const OUR_FEATURES: &[u8] = &[
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::ASYNC_EVENT_CONFIG,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_BEHAVIOR,
    fid::HOST_IDENTIFIER,
    fid::RESERVATION_NOTIFICATION_MASK,
    fid::RESERVATION_PERSISTENCE,
];

/// What is known of the command.
pub(super) fn class(command: &NvmeCommand) -> CommandClass {
    let low = (command.cdw10_15[0] & 0xff) as u8;
    let table = if command.admin { ADMIN } else { IO };
    let found = table.iter().find(|(opcode, _)| *opcode == command.opcode).map_or(Changes, |(_, class)| *class);
    match command.opcode {
        // Reading takes from these what the path is to learn (5.1.12.1.5, 5.1.12.1.32); of the others the event is left to it, see `entry`.
        admin::GET_LOG_PAGE if command.admin && [lid::CHANGED_NAMESPACES, lid::RESERVATION].contains(&low) => {
            Refused("what it tells is told once, and the path is to hear it")
        }
        admin::SET_FEATURES if command.admin && OUR_FEATURES.contains(&low) => {
            Refused("the path, flushes or reservations go by that feature")
        }
        _ => found,
    }
}

/// Retain Asynchronous Event (Base 2.1 figure 197).
const RAE: u32 = 1 << 15;

/// The entry of the command for the namespace `nsid`. Of Get Log Page it leaves the event that belongs to the page: it is the path's.
pub(super) fn entry(command: &NvmeCommand, nsid: u32) -> Sqe {
    let nsid = match command.scope {
        NvmeScope::Namespace => nsid,
        NvmeScope::Controller => 0,
        NvmeScope::All => NSID_ALL,
    };
    let mut dwords = command.cdw10_15;
    if command.admin && command.opcode == admin::GET_LOG_PAGE {
        dwords[0] |= RAE;
    }
    Sqe::new(command.opcode, 0, nsid).with_cdw10_15(dwords)
}

/// May the command be sent?
///
/// # Errors
/// [`Code::Unsupported`] for what is never passed through; [`Code::Invalid`] for what changes something without `changes`, or that of more than
/// this namespace, and for data of which the opcode says otherwise.
pub(super) fn admit(command: &NvmeCommand, data: &PassthroughData, changes: bool) -> Result<(), PassthroughError> {
    let queue = if command.admin { "admin" } else { "I/O" };
    let name = format!("{queue} command {:#04x}", command.opcode);
    let class = class(command);
    class.admit(&name, changes)?;
    let invalid = |why: String| Err(PassthroughError::new(Code::Invalid, format!("{name}: {why}")));
    if command.scope == NvmeScope::All && (changes || class == Changes) {
        return invalid("it would change every namespace of the controller; expected this one".into());
    }
    let direction = entry(command, 1).data_direction();
    match (direction, data) {
        (DataDirection::Both, _) => invalid("data go both ways; expected one".into()),
        (_, PassthroughData::None)
        | (DataDirection::HostToController, PassthroughData::Out(_))
        | (DataDirection::ControllerToHost, PassthroughData::In(_)) => Ok(()),
        (direction, _) => invalid(format!("data go the other way than its opcode says ({direction:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(admin: bool, opcode: u8, cdw10: u32) -> NvmeCommand {
        NvmeCommand { admin, opcode, scope: NvmeScope::Namespace, cdw10_15: [cdw10, 0, 0, 0, 0, 0] }
    }

    fn code(command: NvmeCommand, changes: bool) -> Option<Code> {
        admit(&command, &PassthroughData::None, changes).err().map(|error| error.code)
    }

    #[test]
    fn what_reads_goes_what_changes_must_say_so_and_what_goes_behind_somebodys_back_does_not() {
        for (admin, opcode, cdw10) in [
            (true, 0x02, 0x02),
            (true, 0x06, 1),
            (true, 0x0a, 7),
            (true, 0x86, 0),
            (false, 0x02, 0),
            (false, 0x05, 0),
            (false, 0x0e, 0),
        ] {
            let it = command(admin, opcode, cdw10);
            assert_eq!((code(it, false), code(it, true)), (None, None), "{it:?}");
        }
        for (admin, opcode, cdw10) in [
            (true, 0x09, 0x02),
            (true, 0x0d, 0),
            (true, 0x10, 0),
            (true, 0x80, 0),
            (true, 0x81, 0),
            (true, 0xc0, 0),
            (false, 0x01, 0),
            (false, 0x04, 0),
            (false, 0x08, 0),
            (false, 0x09, 0),
            (false, 0x19, 0),
            (false, 0x80, 0),
        ] {
            let it = command(admin, opcode, cdw10);
            assert_eq!((code(it, false), code(it, true)), (Some(Code::Invalid), None), "{it:?}");
        }
        let refused =
            [0x00, 0x01, 0x04, 0x05, 0x08, 0x0c, 0x18, 0x1c, 0x7c, 0x7f, 0x84].map(|opcode| command(true, opcode, 0));
        let refused =
            refused.into_iter().chain([0x00, 0x0d, 0x11, 0x15, 0x18, 0x7f].map(|opcode| command(false, opcode, 0)));
        let features = OUR_FEATURES.iter().map(|&feature| command(true, 0x09, 0x8000_0000 | u32::from(feature)));
        let pages = [0x04, 0x80].map(|page| command(true, 0x02, page));
        for it in refused.chain(features).chain(pages) {
            assert_eq!((code(it, false), code(it, true)), (Some(Code::Unsupported), Some(Code::Unsupported)), "{it:?}");
        }
    }

    #[test]
    fn a_change_is_of_one_namespace() {
        let all = |opcode| NvmeCommand { scope: NvmeScope::All, ..command(true, opcode, 2) };
        assert_eq!((code(all(0x02), false), code(all(0x80), true)), (None, Some(Code::Invalid)));
        let nsid = |scope| entry(&NvmeCommand { scope, ..command(true, 0x06, 0) }, 7).nsid();
        assert_eq!([NvmeScope::Namespace, NvmeScope::Controller, NvmeScope::All].map(nsid), [7, 0, NSID_ALL]);
    }

    #[test]
    fn events_are_left_to_the_path() {
        assert_eq!(entry(&command(true, 0x02, 0x0c), 1).cdw(10), 0x800c);
        assert_eq!(entry(&command(false, 0x02, 0x0c), 1).cdw(10), 0x0c, "the start of a read");
    }

    #[test]
    fn data_go_as_the_opcode_says() {
        let data = |opcode, data| admit(&command(false, opcode, 0), &data, true).is_ok();
        let (to, from) = (PassthroughData::Out(vec![0; 4]), PassthroughData::In(4));
        assert!(
            data(0x01, to.clone()) && !data(0x01, from.clone()) && data(0x02, from.clone()) && !data(0x02, to.clone())
        );
        assert!(!data(0x08, from) && !data(0x08, to) && !data(0x83, PassthroughData::None));
    }
}
