//! What one path has lost, another one proves quiet.
//!
//! A path says by its device that it has lost changes which an answer through another way would prove quiet
//! ([`polypath_block::CrossFence`]). The group, which alone knows that both lead to the same disk, asks one path at a time, and tells those whose losses it had
//! read before it asked. Whatever a path can prove by itself goes on meanwhile: the first proof counts.
//!
//! Nothing of it is on the data path, paths are asked without the lock of the group, and they answer on any thread.

use crate::config::{Fencing, PathId};
use crate::path::PathRecord;
use crate::shared::GroupShared;
use crate::state::PathState;
use core::time::Duration;
use polypath_block::{CacheDomain, Device, Proof, ProofReply, ProofResult, Time};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a path may take to prove something.
const LIMIT: Duration = Duration::from_secs(3);
/// Pause before one that could not is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Nothing is to be looked at again.
const NEVER: u64 = u64::MAX;

/// What the group knows of proofs that are being sought. Its lock is an innermost one and held for moments.
pub(crate) struct ProofDesk {
    state: Mutex<State>,
    /// When a path is to be asked again that could not prove anything.
    due: AtomicU64,
}

#[derive(Default)]
struct State {
    /// A path is being asked.
    busy: bool,
    /// Not to be asked before then.
    failed: BTreeMap<PathId, Time>,
}

/// A path with a loss, as it was when another one was asked.
struct Victim {
    id: PathId,
    name: Arc<str>,
    device: Arc<dyn Device>,
    disk: CacheDomain,
    loss: u64,
}

/// A path that may be asked.
struct Prover {
    id: PathId,
    name: Arc<str>,
    device: Arc<dyn Device>,
    disk: CacheDomain,
}

impl ProofDesk {
    pub(crate) fn new() -> Self {
        ProofDesk { state: Mutex::default(), due: AtomicU64::new(NEVER) }
    }

    /// Is it time to ask again? One load.
    #[inline]
    pub(crate) fn is_due(&self, now: Time) -> bool {
        now.as_nanos() >= self.due.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GroupShared {
    /// Has the losses of paths proven by others. Never under a lock.
    pub(crate) fn drive_proofs(&self) {
        if self.fencing == Fencing::Off {
            return;
        }
        let (victims, provers) = self.losses();
        let now = self.time();
        let (prover, victims) = {
            let mut state = self.proofs.lock();
            state.failed.retain(|_, until| now < *until);
            self.proofs.due.store(NEVER, Ordering::Relaxed);
            if state.busy || victims.is_empty() {
                return;
            }
            let helps = |prover: &Prover, victim: &Victim| victim.id != prover.id && victim.disk == prover.disk;
            let found = provers.into_iter().find(|prover| {
                !state.failed.contains_key(&prover.id) && victims.iter().any(|victim| helps(prover, victim))
            });
            let Some(prover) = found else {
                let again = state.failed.values().min().copied().unwrap_or(now.after(AGAIN));
                return self.proofs.due.store(again.as_nanos(), Ordering::Relaxed);
            };
            state.busy = true;
            let victims: Vec<Victim> = victims.into_iter().filter(|victim| helps(&prover, victim)).collect();
            (prover, victims)
        };
        let names: Vec<&str> = victims.iter().map(|victim| &*victim.name).collect();
        tracing::warn!(group = %self.name, path = %prover.name, lost = ?names, "a path is asked to prove quiet what others have lost");
        let (me, device) = (self.me.clone(), prover.device.clone());
        let reply = ProofReply::new(move |result| {
            if let Some(group) = me.upgrade() {
                group.proved(&prover, &victims, result);
            }
        });
        match device.cross_fence() {
            Some(power) => power.prove(LIMIT, reply),
            None => reply.answer(Err("it cannot prove anything".to_owned())),
        }
    }

    /// A path that was asked has answered.
    fn proved(&self, prover: &Prover, victims: &[Victim], result: ProofResult) {
        let result = result.and_then(|proof| if self.is_same(prover) { Ok(proof) } else { Err(NOT_SAME.to_owned()) });
        match &result {
            Ok(proof) => victims.iter().for_each(|victim| self.tell_proof(prover, victim, *proof)),
            Err(reason) => {
                tracing::warn!(group = %self.name, path = %prover.name, %reason, "a path could not prove quiet what others have lost");
            }
        }
        {
            let mut state = self.proofs.lock();
            state.busy = false;
            if result.is_err() {
                state.failed.insert(prover.id, self.time().after(AGAIN));
            }
        }
        // There may be younger losses, or another path that can.
        self.drive_proofs();
    }

    fn tell_proof(&self, prover: &Prover, victim: &Victim, proof: Proof) {
        tracing::info!(group = %self.name, path = %victim.name, by = %prover.name, %proof, "what the path had lost is quiet");
        if let Some(power) = victim.device.cross_fence() {
            power.proven(victim.loss, proof);
        }
    }

    /// Is the path that has answered the disk that it was when it was asked?
    fn is_same(&self, prover: &Prover) -> bool {
        let mut control = self.lock();
        self.review_changed(&mut control);
        let at = control.find(prover.id);
        at.and_then(|at| disk_of(&control.paths[at])).is_some_and(|disk| disk == prover.disk)
    }

    /// Paths that have lost something, and paths that may be asked.
    fn losses(&self) -> (Vec<Victim>, Vec<Prover>) {
        let control = self.lock();
        let (mut victims, mut provers) = (Vec::new(), Vec::new());
        for record in &control.paths {
            let (id, name, device) = (record.shared.id, record.shared.name.clone(), record.shared.device.clone());
            let Some(power) = record.shared.device.cross_fence() else { continue };
            if let (Some(loss), Some(info)) = (power.open_loss(), &record.info) {
                let disk = info.identity.cache_domain.clone();
                victims.push(Victim { id, name: name.clone(), device: device.clone(), disk, loss });
            }
            if let Some(disk) = disk_of(record).filter(|_| power.can_prove()) {
                provers.push(Prover { id, name, device, disk });
            }
        }
        (victims, provers)
    }
}

const NOT_SAME: &str = "it is not known to lead to the disk any more";

/// Which disk a path leads to that was verified and answers. Two with one cache are one subsystem, or one logical unit; that two are said to
/// be the same disk is not enough.
fn disk_of(record: &PathRecord) -> Option<CacheDomain> {
    let answers = record.verified && matches!(record.state, PathState::Usable | PathState::Stalled);
    record.info.as_ref().filter(|_| answers).map(|info| info.identity.cache_domain.clone())
}
