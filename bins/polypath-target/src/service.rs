//! What every shell does for its connections, whatever carries their bytes: keep alive, aborts across connections, held writes.

use crate::proto::{Conn, Env};
use crate::shared::Shared;
use crate::shell::Msg;
use polypath_nvme::StatusField;
use std::sync::atomic::Ordering;

/// Looks at the keep alive of the controller whose admin connection `conn` is, and ends its association when that is over.
/// Returns when to look again, in target time.
pub(crate) fn keep_alive(shared: &Shared, conn: &Conn, now_us: u64) -> Option<u64> {
    let controller = conn.controller.as_ref().filter(|_| conn.qid == 0)?;
    let kato_us = shared.kato_us(controller)?;
    let since_us = controller.alive_us.load(Ordering::Acquire);
    if now_us < since_us + kato_us {
        return Some(since_us + kato_us);
    }
    if shared.config.tbkas && controller.traffic.swap(false, Ordering::Relaxed) {
        controller.alive_us.store(now_us, Ordering::Release);
        return Some(now_us + kato_us);
    }
    shared.counters.keep_alive_expired.fetch_add(1, Ordering::Relaxed);
    shared.kill(controller, "its keep alive expired");
    None
}

/// Aborts command `victim` on `conn`, if that is there still, and lets the thread that asked answer its Abort.
pub(crate) fn abort(env: &Env<'_>, conn: Option<&mut Conn>, victim: u16, reply: (usize, u64, u16)) {
    let aborted = conn.is_some_and(|conn| conn.abort(env, victim));
    let (thread, conn, cid) = reply;
    if let Some(handle) = env.shared.threads.get().and_then(|t| t.get(thread)) {
        let result = u64::from(!aborted);
        handle.send(Msg::Respond { conn, cid, status: StatusField::SUCCESS, result });
    }
}

/// Applies held writes that are due, whatever became of their connections.
pub(crate) fn apply_held(shared: &Shared, now_us: u64) {
    for write in shared.held.due(now_us) {
        let result = match &write.data {
            Some(data) => write.namespace.medium.write(write.offset, data),
            None => write.namespace.medium.zero(write.offset, write.len),
        };
        let result = match result {
            Ok(()) if write.fua => write.namespace.medium.persist(write.offset, write.len),
            result => result,
        };
        let unix_us = shared.unix_us(shared.now_us());
        tracing::info!(id = write.id, ok = result.is_ok(), "held write applied");
        shared.held.applied(write.id, unix_us, |cntlid| shared.subsystems.iter().any(|s| s.alive(cntlid)));
        if let Some((thread, conn, cid)) = write.answer
            && let Some(handle) = shared.threads.get().and_then(|t| t.get(thread))
        {
            let status = result.err().unwrap_or(StatusField::SUCCESS);
            handle.send(Msg::Respond { conn, cid, status, result: 0 });
        }
    }
}
