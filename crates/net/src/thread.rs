//! Threads for what nobody should wait for.

use std::io;

/// Bytes of stack of each: they make a few system calls.
const STACK: usize = 64 << 10;

/// Starts a thread that may be on any core that the process may: whoever starts it may be a reactor, pinned to one, and a thread is where the
/// one was that started it.
pub(crate) fn spawn_apart(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_apart_with(name, STACK, run)
}

/// The same, with so many bytes of stack.
pub(crate) fn spawn_apart_with(name: &str, stack: usize, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let run = move || {
        use rustix::thread::{sched_getaffinity, sched_setaffinity};
        // Where the main thread may be. If it cannot be told, this one is somebody's neighbour.
        if let Ok(cores) = sched_getaffinity(Some(rustix::process::getpid())) {
            let _ = sched_setaffinity(None, &cores);
        }
        run();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(run).map(drop)
}
