//! The logs of the code under test, with the world's time: for replaying one seed.

use polypath_block::Time;
use std::cell::Cell;
use std::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static NOW: Cell<Time> = const { Cell::new(Time::ZERO) };
}

/// The time of this thread's world.
pub(crate) fn set_now(now: Time) {
    NOW.set(now);
}

struct WorldTime;

impl FormatTime for WorldTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:>13.6}", NOW.get().as_nanos() as f64 / 1e6)
    }
}

/// Writes logs of `level` and above to the standard error, told by virtual time. Once a process.
pub fn to_stderr(level: tracing::Level) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_timer(WorldTime)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
