//! Signals, and what each is for.

use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long after the first signal another one is the same wish once more: service managers and people send them in pairs.
const SAME_WISH: Duration = Duration::from_secs(1);

/// All signals that would end the process otherwise, and are sent to daemons.
pub(crate) struct Signals {
    term: Signal,
    /// `None`: whoever started the daemon does not want it to hear of that, as `nohup` does and shells do for `polypathd &` in scripts.
    int: Option<Signal>,
    hup: Option<Signal>,
    usr1: Signal,
    usr2: Signal,
    first: Option<Instant>,
}

impl Signals {
    /// Handles them from now on, but those from a terminal that are ignored.
    pub(crate) fn new() -> std::io::Result<Signals> {
        Signals::unless(ignored())
    }

    /// The same, and `ignored` is a set of signals as the kernel shows it.
    fn unless(ignored: u64) -> std::io::Result<Signals> {
        let heeded = |kind: SignalKind| match ignored & 1 << (kind.as_raw_value() - 1) {
            0 => signal(kind).map(Some),
            _ => Ok(None),
        };
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: heeded(SignalKind::interrupt())?,
            hup: heeded(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
            first: None,
        })
    }

    /// The next signal that asks for an end in order.
    pub(crate) async fn wish_to_end(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                _ = self.term.recv() => "SIGTERM",
                () = heard(&mut self.int) => "SIGINT",
                () = heard(&mut self.hup) => "SIGHUP",
                _ = self.usr1.recv() => {
                    tracing::info!("SIGUSR1 means nothing here");
                    continue;
                }
                _ = self.usr2.recv() => {
                    tracing::info!("SIGUSR2 means nothing here");
                    continue;
                }
            };
            self.first.get_or_insert_with(Instant::now);
            return name;
        }
    }

    /// After that: the next one that asks for an end at once.
    pub(crate) async fn wish_to_end_at_once(&mut self) -> &'static str {
        loop {
            // An end that was asked for by RPC is as good as a signal.
            let first = *self.first.get_or_insert_with(Instant::now);
            let name = self.wish_to_end().await;
            if first.elapsed() >= SAME_WISH {
                return name;
            }
            tracing::info!(signal = name, "draining already; once more in a second ends the daemon at once");
        }
    }
}

async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The signals that this process ignores, one bit each, from the lowest number on.
fn ignored() -> u64 {
    // Without /proc a daemon that hears too much is better than one that hears nothing.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};
    use std::time::Duration;
    use tokio::time::timeout;

    /// Service managers and people send them in pairs; somebody who sends another one later means it.
    #[test]
    fn another_one_within_a_second_is_the_same_wish() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut signals = Signals::unless(0).unwrap();
            let send = |signal| kill_process(getpid(), signal).unwrap();
            send(Signal::USR1);
            send(Signal::HUP);
            assert_eq!(signals.wish_to_end().await, "SIGHUP");
            let first = Instant::now();
            send(Signal::INT);
            let at_once = timeout(Duration::from_millis(300), signals.wish_to_end_at_once()).await;
            assert!(at_once.is_err() && first.elapsed() < SAME_WISH, "{at_once:?}");
            tokio::time::sleep(SAME_WISH).await;
            send(Signal::TERM);
            let at_once = timeout(Duration::from_secs(20), signals.wish_to_end_at_once()).await;
            assert_eq!(at_once, Ok("SIGTERM"));
        });
    }
}
