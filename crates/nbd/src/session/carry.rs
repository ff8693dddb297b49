//! One request that may be carried out, from there to its reply.

use super::check::{Action, Fault, Zeroing};
use super::pool::{Leased, Pool};
use super::{Session, Terms};
use crate::handshake::ALLOCATION_ID;
use crate::wire::{Command, Errno, Head, Request};
use polypath::{Code, Disk, Error};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Zeroes that are written at a time where the disk does not write them itself, in bytes; a multiple of every block.
const ZEROES: u32 = 1 << 20;

/// Carries `request` out, which is `action`. `buffer` has the data of a write, or room for those of a read.
pub(super) async fn carry(
    session: &Session,
    request: Request,
    action: Action,
    mut buffer: Option<Leased>,
) -> (Head, Option<Leased>) {
    let (cookie, structured) = (request.cookie, session.terms.structured);
    let result = act(session, &request, action, buffer.as_mut()).await;
    let counters = &session.export.counters;
    counters.requests.fetch_add(1, Ordering::Relaxed);
    match (result, action) {
        (Err(fault), _) => {
            counters.errors.fetch_add(1, Ordering::Relaxed);
            (failed(cookie, structured, &fault), None)
        }
        (Ok(()), Action::Read) => {
            counters.bytes_read.fetch_add(request.length.into(), Ordering::Relaxed);
            let head = match structured {
                true => Head::data(cookie, request.offset, request.length),
                false => Head::simple(cookie, None),
            };
            (head, buffer)
        }
        // Data everywhere: disks do not tell where they have holes.
        (Ok(()), Action::Status) => (Head::block_status(cookie, ALLOCATION_ID, request.length, 0), None),
        (Ok(()), _) => {
            if let Action::Write { .. } = action {
                counters.bytes_written.fetch_add(request.length.into(), Ordering::Relaxed);
            }
            (if structured { Head::done(cookie) } else { Head::simple(cookie, None) }, None)
        }
    }
}

/// The reply to a request that has failed.
pub(super) fn failed(cookie: u64, structured: bool, fault: &Fault) -> Head {
    match structured {
        true => Head::error(cookie, fault.errno, &fault.text),
        false => Head::simple(cookie, Some(fault.errno)),
    }
}

async fn act(session: &Session, request: &Request, action: Action, data: Option<&mut Leased>) -> Result<(), Fault> {
    let Session { disk, terms, .. } = session;
    let (offset, length) = (request.offset, u64::from(request.length));
    if let Action::Write { .. } | Action::Trim { .. } | Action::Zero { .. } = action {
        hold(session).await?;
    }
    let result = match (action, data) {
        (Action::Read, Some(data)) => read(disk, offset, data).await,
        (Action::Write { durable }, Some(data)) => return write(session, request, durable, data).await,
        (Action::Trim { .. }, _) => trim(disk, terms, offset, length).await,
        (Action::Zero { how, .. }, _) => zero(session, how, offset, length).await,
        (Action::Flush, _) => return flush(session).await,
        (Action::Status | Action::Leave, _) => Ok(()),
        (Action::Read | Action::Write { .. }, None) => return Err(Fault::new(Errno::NoMemory, "no buffer")),
    };
    result.map_err(|error| fault(request.command, action, &error))?;
    match action {
        Action::Trim { durable: true } | Action::Zero { durable: true, .. } => flush(session).await,
        _ => Ok(()),
    }
}

/// Waits until nothing can land any more that somebody before us has sent.
async fn hold(session: &Session) -> Result<(), Fault> {
    loop {
        let left = session.export.config.hold_changes.left();
        if left == Duration::ZERO {
            return Ok(());
        }
        let mut ending = session.export.ending();
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            _ = ending.wait_for(|ending| *ending) => {
                let text = "the export ends, and what was sent to its disk earlier may still land: this was not begun";
                return Err(Fault::new(Errno::Shutdown, text));
            }
        }
    }
}

async fn read(disk: &Disk, offset: u64, data: &mut Leased) -> Result<(), Error> {
    let Some(buffer) = data.lend() else { return Err(lent(disk)) };
    let (result, buffer) = disk.read(offset, buffer).await;
    data.give_back(buffer);
    result
}

async fn write(session: &Session, request: &Request, durable: bool, data: &mut Leased) -> Result<(), Fault> {
    let Session { disk, terms, .. } = session;
    let bad = |error: &Error| fault(request.command, Action::Write { durable }, error);
    if durable && terms.fua {
        let buffer = data.lend().ok_or_else(|| bad(&lent(disk)))?;
        let (result, buffer) = disk.write_durable(request.offset, buffer).await;
        data.give_back(buffer);
        match result {
            // It could when the client came: a path has joined that cannot.
            Err(error) if error.code() == Some(Code::Unsupported) => {}
            other => return other.map_err(|error| bad(&error)),
        }
    }
    let buffer = data.lend().ok_or_else(|| bad(&lent(disk)))?;
    let (result, buffer) = disk.write(request.offset, buffer).await;
    data.give_back(buffer);
    result.map_err(|error| bad(&error))?;
    if durable { flush(session).await } else { Ok(()) }
}

/// A hint: a disk that does not discard any more has done what it was asked for.
async fn trim(disk: &Disk, terms: &Terms, offset: u64, length: u64) -> Result<(), Error> {
    if !terms.trim {
        return Ok(());
    }
    match disk.discard(offset, length).await {
        Err(error) if error.code() == Some(Code::Unsupported) => Ok(()),
        other => other,
    }
}

async fn zero(session: &Session, how: Zeroing, offset: u64, length: u64) -> Result<(), Error> {
    let Session { disk, terms, pool, .. } = session;
    if how != Zeroing::Kept && terms.zeroes {
        match disk.write_zeroes(offset, length).await {
            Err(error) if how == Zeroing::Any && error.code() == Some(Code::Unsupported) => {}
            other => return other,
        }
    }
    write_zeroes(disk, pool, offset, length).await
}

/// Writes zeroes as data. The facade's own way to zeroes may give the space back.
async fn write_zeroes(disk: &Disk, pool: &Pool, mut offset: u64, mut left: u64) -> Result<(), Error> {
    while left > 0 {
        let len = left.min(ZEROES.into());
        // At most a mebibyte.
        let mut piece = pool.lease(len as u32).await;
        let Some(mut buffer) = piece.lend() else { return Err(lent(disk)) };
        buffer.fill(0);
        let (result, buffer) = disk.write(offset, buffer).await;
        piece.give_back(buffer);
        result?;
        offset += len;
        left -= len;
    }
    Ok(())
}

/// Makes durable what was answered before, on whichever connection: all of them share the disk.
async fn flush(session: &Session) -> Result<(), Fault> {
    let Session { disk, export, heard, .. } = session;
    let result = disk.flush().await;
    if let Err(Error::Io { status, .. }) = &result
        && status.may_have_dropped()
        && status.code != Code::CacheLost
    {
        // What a device counts itself it tells as a cache that was lost.
        export.losses.add();
    }
    let news = heard.tell(&export.losses, disk.device().losses());
    match result {
        Err(error) => Err(fault(Command::Flush, Action::Flush, &error)),
        Ok(()) if news => {
            let text = "something that was written earlier may be lost: a flush by another connection, or before this one, has failed";
            Err(Fault::new(Errno::Io, text))
        }
        Ok(()) => Ok(()),
    }
}

/// The buffer is with the disk already: nothing that happens, and no reason to panic.
fn lent(disk: &Disk) -> Error {
    Error::NoBuffer { wanted: 0, arena: disk.size() }
}

/// What an error of the disk is to a client.
pub(super) fn fault(command: Command, action: Action, error: &Error) -> Fault {
    let beyond = match action {
        Action::Write { .. } | Action::Zero { .. } => Errno::NoSpace,
        _ => Errno::Invalid,
    };
    let errno = match error {
        Error::OutOfRange { .. } => beyond,
        Error::Misaligned { .. } => Errno::Invalid,
        Error::NoBuffer { .. } | Error::Memory(_) => Errno::NoMemory,
        Error::Closed { .. } | Error::Gone { .. } => Errno::Shutdown,
        Error::Io { status, .. } => match status.code {
            Code::OutOfRange => beyond,
            Code::Invalid => Errno::Invalid,
            Code::Unsupported if matches!(action, Action::Zero { how: Zeroing::Fast, .. }) => Errno::NotSupported,
            // Only zeroes that were to be quick may be answered with ENOTSUP.
            Code::Unsupported => Errno::Invalid,
            Code::WriteProtected => Errno::NotPermitted,
            Code::NoSpace => Errno::NoSpace,
            Code::Gone => Errno::Shutdown,
            _ => Errno::Io,
        },
        _ => Errno::Io,
    };
    Fault::new(errno, format!("{command}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath::Status;

    #[test]
    fn errors_of_a_disk_in_the_words_of_the_protocol() {
        let io = |code| Error::Io { name: "d".into(), what: "write", offset: 0, len: 512, status: Status::new(code) };
        let (read, write) = (Action::Read, Action::Write { durable: false });
        let fast = Action::Zero { durable: false, how: Zeroing::Fast };
        for code in Code::ALL {
            let expected = match code {
                Code::OutOfRange | Code::NoSpace => Errno::NoSpace,
                Code::Invalid | Code::Unsupported => Errno::Invalid,
                Code::WriteProtected => Errno::NotPermitted,
                Code::Gone => Errno::Shutdown,
                _ => Errno::Io,
            };
            let fault = fault(Command::Write, write, &io(code));
            assert_eq!(fault.errno, expected, "{code:?}");
            assert!(fault.text.contains("write"), "{}", fault.text);
        }
        let range = Error::OutOfRange { name: "d".into(), offset: 0, len: 1, size: 0 };
        let others = [
            (read, io(Code::OutOfRange), Errno::Invalid),
            (fast, io(Code::Unsupported), Errno::NotSupported),
            (read, range, Errno::Invalid),
            (write, Error::OutOfRange { name: "d".into(), offset: 0, len: 1, size: 0 }, Errno::NoSpace),
            (read, Error::Misaligned { name: "d".into(), offset: 0, len: 1, block_size: 512 }, Errno::Invalid),
            (read, Error::NoBuffer { wanted: 1, arena: 0 }, Errno::NoMemory),
            (read, Error::Closed { name: "d".into() }, Errno::Shutdown),
        ];
        for (action, error, errno) in others {
            assert_eq!(fault(Command::Read, action, &error).errno, errno, "{error}");
        }
    }
}
