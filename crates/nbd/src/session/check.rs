//! Is a request one that may be carried out? All that a client says about a disk is looked at here, and nowhere else.

use crate::limits::LARGEST_REQUEST;
use crate::wire::{Command, CommandFlags, Errno, Request};

/// What was agreed on in the handshake, and holds as long as the connection. A disk that grows does so for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Bytes of the export.
    pub(crate) size: u64,
    /// Bytes of a block.
    pub(crate) block: u32,
    pub(crate) read_only: bool,
    /// The disk discards.
    pub(crate) trim: bool,
    /// The disk writes zeroes without being given any.
    pub(crate) zeroes: bool,
    /// The disk honours FUA itself.
    pub(crate) fua: bool,
    /// Replies are structured.
    pub(crate) structured: bool,
    /// The client has chosen `base:allocation`.
    pub(crate) allocation: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Read,
    Write {
        durable: bool,
    },
    Flush,
    Trim {
        durable: bool,
    },
    Zero {
        durable: bool,
        how: Zeroing,
    },
    Status,
    /// The client goes.
    Leave,
}

/// How a range is to become zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zeroing {
    /// By the disk, which may give the space back; written if the disk cannot.
    Any,
    /// By the disk, or not at all.
    Fast,
    /// Written: the space is to stay.
    Kept,
}

/// Why a request is not carried out, or has failed: for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) errno: Errno,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(errno: Errno, text: impl Into<String>) -> Fault {
        Fault { errno, text: text.into() }
    }
}

/// What `request` asks for.
///
/// # Errors
/// It may not ask for that, and why. Data that follow it are to be passed over then.
pub(crate) fn check(request: &Request, terms: &Terms) -> Result<Action, Fault> {
    let action = action(request, terms)?;
    if terms.read_only && matches!(action, Action::Write { .. } | Action::Trim { .. } | Action::Zero { .. }) {
        return Err(Fault::new(Errno::NotPermitted, format!("{}: this export is read-only", request.command)));
    }
    if matches!(action, Action::Flush | Action::Leave) {
        // Their range has no meaning, and not all clients leave it zero.
        return Ok(action);
    }
    range(request, terms)?;
    Ok(action)
}

fn action(request: &Request, terms: &Terms) -> Result<Action, Fault> {
    let Request { command, flags, .. } = *request;
    let durable = flags.contains(CommandFlags::FUA);
    let fast = flags.contains(CommandFlags::FAST_ZERO);
    let mut allowed = CommandFlags::FUA;
    let action = match command {
        Command::Read => {
            allowed.set(CommandFlags::DF, terms.structured);
            Action::Read
        }
        Command::Write => Action::Write { durable },
        Command::Flush => Action::Flush,
        Command::Trim => Action::Trim { durable },
        Command::WriteZeroes => {
            allowed |= CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
            let how = match (fast, flags.contains(CommandFlags::NO_HOLE)) {
                (true, kept) if kept || !terms.zeroes => {
                    let text = "zeroes take as long as data here";
                    return Err(Fault::new(Errno::NotSupported, text));
                }
                (true, _) => Zeroing::Fast,
                (false, true) => Zeroing::Kept,
                (false, false) => Zeroing::Any,
            };
            Action::Zero { durable, how }
        }
        Command::BlockStatus if terms.allocation => {
            allowed |= CommandFlags::REQ_ONE;
            Action::Status
        }
        Command::BlockStatus => {
            return Err(Fault::new(Errno::Invalid, "block status: no metadata context was chosen for this export"));
        }
        Command::Disconnect => return Ok(Action::Leave),
        Command::Other(_) => return Err(Fault::new(Errno::Invalid, format!("{command} is not known here"))),
    };
    let unknown = flags - allowed;
    if !unknown.is_empty() {
        let text = format!("{command}: flags {:#x} are not for this command here", unknown.bits());
        return Err(Fault::new(Errno::Invalid, text));
    }
    Ok(action)
}

fn range(request: &Request, terms: &Terms) -> Result<(), Fault> {
    let Request { command, offset, length, .. } = *request;
    let invalid = |text: String| Err(Fault::new(Errno::Invalid, text));
    let bears_data = matches!(command, Command::Read | Command::Write);
    if bears_data && length > LARGEST_REQUEST {
        return invalid(format!("{command} of {length} bytes; at most {LARGEST_REQUEST} at a time"));
    }
    let block = u64::from(terms.block.max(1));
    if length == 0 || !offset.is_multiple_of(block) || !u64::from(length).is_multiple_of(block) {
        return invalid(format!(
            "{command} of {length} bytes at {offset}: both must be multiples of {block}, and not of no length"
        ));
    }
    if offset.checked_add(length.into()).is_none_or(|end| end > terms.size) {
        let errno = match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        let text =
            format!("{command} of {length} bytes at {offset} ends beyond the export, which has {} bytes", terms.size);
        return Err(Fault::new(errno, text));
    }
    Ok(())
}

/// For fuzzing: whatever is asked for, what may be carried out lies inside the export, and a disk takes it.
pub(crate) fn fuzz_check(request: &Request) {
    let usual = Terms {
        size: 1 << 40,
        block: 4096,
        read_only: false,
        trim: true,
        zeroes: true,
        fua: true,
        structured: true,
        allocation: true,
    };
    let poor = Terms { size: 512, block: 512, read_only: true, trim: false, zeroes: false, fua: false, ..usual };
    for terms in [usual, poor, Terms { structured: false, allocation: false, ..usual }] {
        match check(request, &terms) {
            Ok(Action::Flush | Action::Leave) => {}
            Ok(action) => {
                assert!(!terms.read_only || matches!(action, Action::Read | Action::Status));
                assert!(
                    request.length > 0 && u128::from(request.offset) + u128::from(request.length) <= terms.size.into()
                );
                let block = u64::from(terms.block);
                assert!(request.offset.is_multiple_of(block) && u64::from(request.length).is_multiple_of(block));
            }
            Err(fault) => assert!(!fault.text.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        size: 1 << 30,
        block: 512,
        read_only: false,
        trim: true,
        zeroes: true,
        fua: true,
        structured: true,
        allocation: true,
    };

    fn ask(command: Command, flags: CommandFlags, offset: u64, length: u32) -> Request {
        Request { flags, command, cookie: 0, offset, length }
    }

    #[test]
    fn what_may_be_asked() {
        let (none, fua) = (CommandFlags::empty(), CommandFlags::FUA);
        let (kept, fast) = (CommandFlags::NO_HOLE, CommandFlags::FAST_ZERO);
        let end = (1 << 30) - 512;
        let all = [
            (ask(Command::Read, none, 0, 512), Action::Read),
            (ask(Command::Read, CommandFlags::DF | fua, end, 512), Action::Read),
            (ask(Command::Read, none, 0, 32 << 20), Action::Read),
            (ask(Command::Write, none, end, 512), Action::Write { durable: false }),
            (ask(Command::Write, fua, 0, 32 << 20), Action::Write { durable: true }),
            (ask(Command::Flush, none, 0, 0), Action::Flush),
            (ask(Command::Flush, fua, 17, 3), Action::Flush),
            (ask(Command::Trim, none, 0, 1 << 30), Action::Trim { durable: false }),
            (ask(Command::Trim, fua, 0, 512), Action::Trim { durable: true }),
            (ask(Command::WriteZeroes, none, 0, 1 << 30), Action::Zero { durable: false, how: Zeroing::Any }),
            (ask(Command::WriteZeroes, kept | fua, 0, 512), Action::Zero { durable: true, how: Zeroing::Kept }),
            (ask(Command::WriteZeroes, fast, 0, 512), Action::Zero { durable: false, how: Zeroing::Fast }),
            (ask(Command::BlockStatus, none, 0, 1 << 30), Action::Status),
            (ask(Command::BlockStatus, CommandFlags::REQ_ONE, 0, 512), Action::Status),
            (ask(Command::Disconnect, none, 0, 0), Action::Leave),
        ];
        for (request, action) in all {
            assert_eq!(check(&request, &TERMS), Ok(action), "{request:?}");
        }
    }

    #[test]
    fn what_may_not_be_asked() {
        let none = CommandFlags::empty();
        let (kept, fast) = (CommandFlags::NO_HOLE, CommandFlags::FAST_ZERO);
        let read_only = Terms { read_only: true, ..TERMS };
        let plain = Terms { structured: false, allocation: false, ..TERMS };
        let slow = Terms { zeroes: false, ..TERMS };
        let big = Terms { block: 4096, ..TERMS };
        let end = 1 << 30;
        let all = [
            (ask(Command::Read, none, 0, 0), TERMS, Errno::Invalid),
            (ask(Command::Read, none, 1, 512), TERMS, Errno::Invalid),
            (ask(Command::Read, none, 0, 513), TERMS, Errno::Invalid),
            (ask(Command::Read, none, 512, 4096), big, Errno::Invalid),
            (ask(Command::Read, none, 4096, 512), big, Errno::Invalid),
            (ask(Command::Read, none, end, 512), TERMS, Errno::Invalid),
            (ask(Command::Read, none, u64::MAX - 511, 512), TERMS, Errno::Invalid),
            (ask(Command::Read, none, 0, (32 << 20) + 512), TERMS, Errno::Invalid),
            (ask(Command::Read, CommandFlags::DF, 0, 512), plain, Errno::Invalid),
            (ask(Command::Read, kept, 0, 512), TERMS, Errno::Invalid),
            (ask(Command::Read, CommandFlags::from_bits_retain(0x8000), 0, 512), TERMS, Errno::Invalid),
            (ask(Command::Write, none, end, 512), TERMS, Errno::NoSpace),
            (ask(Command::Write, none, end - 512, 1024), TERMS, Errno::NoSpace),
            (ask(Command::Write, none, 0, (32 << 20) + 512), TERMS, Errno::Invalid),
            (ask(Command::Write, none, 0, 512), read_only, Errno::NotPermitted),
            (ask(Command::Write, fast, 0, 512), TERMS, Errno::Invalid),
            (ask(Command::Trim, none, end, 512), TERMS, Errno::Invalid),
            (ask(Command::Trim, none, 0, 512), read_only, Errno::NotPermitted),
            (ask(Command::WriteZeroes, none, end, 512), TERMS, Errno::NoSpace),
            (ask(Command::WriteZeroes, none, 0, 512), read_only, Errno::NotPermitted),
            (ask(Command::WriteZeroes, fast | kept, 0, 512), TERMS, Errno::NotSupported),
            (ask(Command::WriteZeroes, fast, 0, 512), slow, Errno::NotSupported),
            (ask(Command::BlockStatus, none, 0, 512), plain, Errno::Invalid),
            (ask(Command::BlockStatus, none, end, 512), TERMS, Errno::Invalid),
            (ask(Command::Flush, CommandFlags::REQ_ONE, 0, 0), TERMS, Errno::Invalid),
            (ask(Command::Other(5), none, 0, 512), TERMS, Errno::Invalid),
            (ask(Command::Other(9), none, 0, 512), TERMS, Errno::Invalid),
        ];
        for (request, terms, errno) in all {
            let fault = check(&request, &terms).expect_err(&format!("{request:?}"));
            assert_eq!(fault.errno, errno, "{request:?}: {}", fault.text);
            assert!(!fault.text.is_empty());
        }
    }
}
