//! One system call as data, and the two ways to have it carried out.

use super::ring::Ring;
use super::threads::Threads;
use polypath_block::Waits;

/// What is to be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    /// `preadv`
    Read,
    /// `pwritev2`, with `RWF_DSYNC` if `durable`.
    Write {
        /// Force unit access.
        durable: bool,
    },
    /// `fdatasync`
    Sync,
    /// `fallocate` with this mode.
    Allocate {
        /// `FALLOC_FL_*`
        mode: i32,
    },
    /// `BLKDISCARD`; never given to a ring.
    Discard,
}

/// One call. `iov` points to `iov_len` vectors that stay as they are, with the memory they name, until the answer has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// Comes back with the answer.
    pub(super) user: u32,
    pub(super) call: Call,
    pub(super) iov: *const libc::iovec,
    pub(super) iov_len: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
}

// SAFETY: the queue that makes a job keeps the vectors and their memory in place until the job's answer was taken (it waits for
// all answers before it is dropped), so whichever thread carries it out finds them.
unsafe impl Send for Job {}

/// A job's number, and what the call returned: a negative errno if it failed.
pub(super) type Answer = (u32, i32);

/// Who carries jobs out.
pub(super) enum Engine {
    Ring(Box<Ring>),
    Threads(Threads),
    /// A test, which sees the jobs and answers as it likes.
    #[cfg(test)]
    Scripted(Scripted),
}

/// See [`Engine::Scripted`].
#[cfg(test)]
#[derive(Default)]
pub(super) struct Scripted {
    /// Those not handed over, and those that were.
    pub(super) waiting: Vec<Job>,
    pub(super) sent: Vec<Job>,
    pub(super) answers: Vec<Answer>,
    /// How often the owner has waited for all answers.
    pub(super) settled: std::rc::Rc<std::cell::Cell<u32>>,
}

impl Engine {
    /// Takes a job. There is always room: a queue has at most `depth` of them.
    pub(super) fn push(&mut self, job: Job) {
        match self {
            Engine::Ring(e) => e.push(job),
            Engine::Threads(e) => e.push(job),
            #[cfg(test)]
            Engine::Scripted(e) => e.waiting.push(job),
        }
    }

    /// Hands over the jobs that have not left yet.
    pub(super) fn kick(&mut self) {
        match self {
            Engine::Ring(e) => e.kick(),
            Engine::Threads(_) => {}
            #[cfg(test)]
            Engine::Scripted(e) => e.sent.append(&mut e.waiting),
        }
    }

    /// Adds all answers that have come.
    pub(super) fn answers(&mut self, into: &mut Vec<Answer>) {
        match self {
            Engine::Ring(e) => e.answers(into),
            Engine::Threads(e) => e.answers(into),
            #[cfg(test)]
            Engine::Scripted(e) => into.append(&mut e.answers),
        }
    }

    /// Names what wakes us. `false`: there is something to do now.
    pub(super) fn arm(&mut self, waits: &mut Waits) -> bool {
        match self {
            Engine::Ring(e) => e.arm(waits),
            Engine::Threads(e) => e.arm(waits),
            #[cfg(test)]
            Engine::Scripted(e) => e.waiting.is_empty() && e.answers.is_empty(),
        }
    }

    /// Blocks until all answers have come, and forgets them.
    pub(super) fn settle(&mut self) {
        match self {
            Engine::Ring(e) => e.settle(),
            Engine::Threads(e) => e.settle(),
            #[cfg(test)]
            Engine::Scripted(e) => e.settled.set(e.settled.get() + 1),
        }
    }
}
