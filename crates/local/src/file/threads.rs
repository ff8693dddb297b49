//! Jobs through a few threads: where io_uring is forbidden, and for the calls that it does not have. It takes locks; it is not the fast path.

use super::engine::{Answer, Call, Job};
use super::{File, sys};
use polypath_block::Waits;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd, OwnedFd};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};

/// Threads a queue.
const THREADS: usize = 4;

pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: u32,
    id: u64,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    event: OwnedFd,
    file: Arc<File>,
}

struct State {
    jobs: VecDeque<Job>,
    answers: VecDeque<Answer>,
    /// The owner sleeps or is about to: answers write the eventfd.
    armed: bool,
    stop: bool,
}

impl Threads {
    pub(super) fn start(file: &Arc<File>, depth: u16) -> io::Result<Threads> {
        let depth = usize::from(depth);
        let (jobs, answers) = (VecDeque::with_capacity(depth), VecDeque::with_capacity(depth));
        let shared = Arc::new(Shared {
            state: Mutex::new(State { jobs, answers, armed: false, stop: false }),
            work: Condvar::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            file: file.clone(),
        });
        let mut pool = Threads { shared, threads: Vec::new(), in_flight: 0, id: Waits::unique() };
        for n in 0..THREADS.min(depth) {
            let shared = pool.shared.clone();
            pool.threads.push(Builder::new().name(format!("file-io-{n}")).spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    pub(super) fn push(&mut self, job: Job) {
        self.shared.lock().jobs.push_back(job);
        self.shared.work.notify_one();
        self.in_flight += 1;
    }

    /// Adds all answers that have come.
    pub(super) fn answers(&mut self, into: &mut Vec<Answer>) {
        if self.in_flight == 0 {
            return;
        }
        let before = into.len();
        into.extend(self.shared.lock().answers.drain(..));
        self.in_flight -= (into.len() - before) as u32;
    }

    pub(super) fn arm(&mut self, waits: &mut Waits) -> bool {
        if self.in_flight == 0 {
            return true;
        }
        // What earlier sleeps left behind; an empty counter is no error.
        let _ = rustix::io::read(&self.shared.event, &mut [0u8; 8]);
        let mut state = self.shared.lock();
        if !state.answers.is_empty() {
            return false;
        }
        state.armed = true;
        waits.readable(self.shared.event.as_raw_fd(), self.id);
        true
    }

    pub(super) fn settle(&mut self) {
        let mut forgotten = Vec::new();
        while self.in_flight > 0 {
            self.answers(&mut forgotten);
            if forgotten.is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            forgotten.clear();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.settle();
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a file I/O thread panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = carry_out(&self.file, &job);
                state = self.lock();
                state.answers.push_back((job.user, result));
                if std::mem::take(&mut state.armed) {
                    // The counter cannot overflow by ones.
                    let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
                }
            } else if state.stop {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(|p| p.into_inner());
            }
        }
    }
}

fn carry_out(file: &File, job: &Job) -> i32 {
    let fd = file.fd.as_raw_fd();
    let (iov, count, at) = (job.iov, job.iov_len as libc::c_int, job.offset as libc::off_t);
    let result = match job.call {
        // SAFETY: vectors and memory of the job outlive its answer (see `Job`).
        Call::Read => unsafe { libc::preadv(fd, iov, count, at) },
        Call::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above.
            unsafe { libc::pwritev2(fd, iov, count, at, flags) }
        }
        // SAFETY: plain numbers.
        Call::Sync => unsafe { libc::fdatasync(fd) as isize },
        // SAFETY: plain numbers.
        Call::Allocate { mode } => unsafe { libc::fallocate(fd, mode, at, job.len as libc::off_t) as isize },
        Call::Discard => {
            return match sys::device_discard(fd, job.offset, job.len) {
                Ok(()) => 0,
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
        }
    };
    if result < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { result as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileDevice;

    /// The answer came when nobody slept, so that nobody was woken for it: the sleep must not begin.
    #[test]
    fn nobody_falls_asleep_beside_an_answer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let device = FileDevice::open(&format!("file://{}", file.path().display()).parse().unwrap()).unwrap();
        let mut pool = Threads::start(&device.file, 4).unwrap();
        let job = Job { user: 1, call: Call::Sync, iov: std::ptr::null(), iov_len: 0, offset: 0, len: 0 };
        for _ in 0..100 {
            pool.push(job);
            while pool.shared.lock().answers.is_empty() {
                std::thread::yield_now();
            }
            let mut waits = Waits::default();
            assert!(!pool.arm(&mut waits) && waits.interests.is_empty());
            let mut answers = Vec::new();
            pool.answers(&mut answers);
            assert_eq!(answers, [(1, 0)]);
            assert!(pool.arm(&mut waits), "nothing is open");
        }
    }
}
