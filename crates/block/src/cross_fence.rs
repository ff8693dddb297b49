//! Quiet that is proven through another way to the same disk.
//!
//! A way that has lost changes proves them quiet by itself where it can. Where it cannot, because nothing answers there any more, another way to
//! the same disk may be able to: LOGICAL UNIT RESET through another session or another host adapter (SAM-5 section 7.6), a cross-controller
//! reset. The two do not know each other. Whoever knows both, and that they lead to the same disk, asks the one and tells the other.

use crate::fence::Proof;
use core::fmt;
use core::time::Duration;

/// The power of a device to be proven quiet, and to prove quiet, from the outside. Control plane: nothing of it is on the data path.
///
/// Losses are numbered: a number is never given twice, and a later loss has a greater one. An answer proves what had been lost before it was
/// asked for, so whoever asks reads [`CrossFence::open_loss`] first and says that number in the end.
pub trait CrossFence: Send + Sync {
    /// The number of the last loss of which something is open that an answer through another way would prove quiet; `None`: there is nothing.
    /// What is not of that kind waits for the way's own proof. The version of the device grows with it.
    fn open_loss(&self) -> Option<u64>;

    /// For the reason `proof`, nothing that was lost up to `loss` is under way any more. What was lost since is not concerned.
    fn proven(&self, loss: u64, proof: Proof);

    /// May it be asked to prove something now? It answers, and was configured to do so: where it ends the commands of other hosts, too, it
    /// must have been.
    fn can_prove(&self) -> bool;

    /// Begins to prove, through this way, that nothing is under way any more of what other ways to the disk had sent, and lost, before this call.
    /// Never waits; `reply` is given an answer within about `limit`.
    fn prove(&self, limit: Duration, reply: ProofReply);
}

/// The proof that was found, or why there is none, for people.
pub type ProofResult = Result<Proof, String>;

/// Takes one answer. Dropped without one, it says that whoever was asked has ended.
pub struct ProofReply(Option<Box<dyn FnOnce(ProofResult) + Send>>);

impl ProofReply {
    /// `take` is called once, on any thread, perhaps before [`CrossFence::prove`] is back. It must not wait.
    pub fn new(take: impl FnOnce(ProofResult) + Send + 'static) -> Self {
        ProofReply(Some(Box::new(take)))
    }

    /// Answers.
    pub fn answer(mut self, result: ProofResult) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}

impl Drop for ProofReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err("the way has ended, or was lost, before it answered".to_owned()));
        }
    }
}

impl fmt::Debug for ProofReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofReply")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_reply_is_given_once_and_one_that_is_dropped_proves_nothing() {
        let (tell, told) = channel();
        let reply = || {
            let tell = tell.clone();
            ProofReply::new(move |result: ProofResult| tell.send(result.is_ok()).unwrap())
        };
        drop(reply());
        reply().answer(Ok(Proof::UnitReset));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [false, true]);
    }
}
