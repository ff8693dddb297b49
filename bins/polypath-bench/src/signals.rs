//! Ctrl-C: the first one ends the measurement in order, the next one ends the program.

use anyhow::Context as _;
use polypath_bench::output::remark;
use polypath_bench::run::Stop;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long after the first signal another one is the same wish once more: `timeout` sends a pair, a terminal may add its own.
const SAME_WISH: Duration = Duration::from_millis(250);

/// Signals that ask for an end, watched.
pub(crate) struct Signals(Arc<AtomicU8>);

impl Signals {
    /// From now on SIGINT and SIGTERM end the run that `stop` belongs to in order. The second one, or one that comes while there is
    /// no run to end, ends the program at once with 128 and the number of the signal.
    ///
    /// # Errors
    /// When signals cannot be handled, or no thread can be had for them.
    pub(crate) fn watch(stop: Stop) -> anyhow::Result<Signals> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().context("a runtime for signals")?;
        let (interrupt, terminate) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt()).context("handling SIGINT")?,
                signal(SignalKind::terminate()).context("handling SIGTERM")?,
            )
        };
        let first = Arc::new(AtomicU8::new(0));
        let seen = first.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(obey(interrupt, terminate, &stop, &seen)))
            .context("a thread for signals")?;
        Ok(Signals(first))
    }

    /// The exit status of a run that was ended by a signal: 130 for SIGINT, 143 for SIGTERM; none if there was no signal.
    pub(crate) fn status(&self) -> Option<u8> {
        let number = self.0.load(Ordering::Relaxed);
        (number > 0).then_some(128 + number)
    }
}

async fn obey(mut interrupt: Signal, mut terminate: Signal, stop: &Stop, seen: &AtomicU8) {
    let mut first: Option<Instant> = None;
    loop {
        let (name, number) = tokio::select! {
            _ = interrupt.recv() => ("SIGINT", 2),
            _ = terminate.recv() => ("SIGTERM", 15),
        };
        match first {
            None if stop.request() => {
                first = Some(Instant::now());
                seen.store(number, Ordering::Relaxed);
                // Where the progress line stands on a terminal.
                let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
                remark(format_args!(
                    "{clear}{name}: waiting for what is outstanding, then for the report; once more ends at once"
                ));
            }
            Some(at) if at.elapsed() < SAME_WISH => {}
            _ => std::process::exit(i32::from(128 + number)),
        }
    }
}
