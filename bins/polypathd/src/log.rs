//! Lines for whoever reads standard error, who may stop doing so: a pager that waits, a terminal after Ctrl-S, a service manager that hangs.
//!
//! Nobody here waits for him, least of all a reactor: lines go into a bounded queue, a thread writes them, what finds no room is counted and
//! told of in its place once there is room again. At the end the queue has a moment to get empty.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, write};
use std::io::{Write, stderr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait to be written.
const LINES: usize = 1024;
/// How often somebody who ends looks whether they are.
const LOOK: Duration = Duration::from_millis(2);
/// How long he looks.
const END_LIMIT: Duration = Duration::from_secs(1);

/// What is written in one piece, and how many others have found no room before it.
struct Line {
    lost: u64,
    text: Vec<u8>,
}

/// The way to standard error. All clones lead to one queue.
#[derive(Clone)]
pub(crate) struct Log {
    queue: SyncSender<Line>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Lines for which there was no room, and that nobody was told of.
    lost: AtomicU64,
    /// Lines in the queue, or being written.
    waiting: AtomicU64,
}

impl Log {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(crate) fn start() -> std::io::Result<Log> {
        Log::to(write_all)
    }

    /// The same, and `write` writes: it has taken all of its text, or never will.
    fn to(write: impl FnMut(&[u8]) + Send + 'static) -> std::io::Result<Log> {
        let (queue, lines) = sync_channel(LINES);
        let counts = Arc::new(Counts::default());
        let seen = counts.clone();
        thread::Builder::new().name("log".into()).spawn(move || work(&lines, &seen, write))?;
        Ok(Log { queue, counts })
    }

    /// Adds a line. Never waits.
    pub(crate) fn add(&self, text: &[u8]) {
        let lost = self.counts.lost.swap(0, Ordering::Relaxed);
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Line { lost, text: text.to_owned() }).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    /// Waits until what was added is written, but not for long: the process is about to end.
    pub(crate) fn flush(&self) {
        let until = Instant::now() + END_LIMIT;
        while self.counts.waiting.load(Ordering::Acquire) > 0 && Instant::now() < until {
            thread::sleep(LOOK);
        }
    }
}

impl Write for Log {
    /// Each event comes in one piece.
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.add(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

fn work(lines: &Receiver<Line>, counts: &Counts, mut write: impl FnMut(&[u8])) {
    for Line { lost, text } in lines {
        if lost > 0 {
            write(
                format!("polypathd: {lost} lines were lost here: whoever reads them took them too slowly\n").as_bytes(),
            );
        }
        write(&text);
        counts.waiting.fetch_sub(1, Ordering::Release);
    }
}

/// Without the lock of [`stderr`], which a panic takes. What the system does not take is nobody's to hear of.
fn write_all(mut text: &[u8]) {
    while !text.is_empty() {
        match write(stderr(), text) {
            Ok(n) => text = &text[n..],
            Err(Errno::INTR) => {}
            // Somebody has made it a descriptor that does not wait.
            Err(Errno::AGAIN) => _ = takes(None),
            Err(_) => return,
        }
    }
}

/// Does standard error take something now?
pub(crate) fn is_read() -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    takes(Some(&at_once))
}

fn takes(limit: Option<&Timespec>) -> bool {
    let stderr = stderr();
    poll(&mut [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)], limit).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_finds_no_room_is_counted_and_told_of_in_its_place() {
        let (written, lines) = channel();
        let (allow, allowed) = channel::<()>();
        let log = Log::to(move |text| {
            // Nobody reads before he is allowed to.
            let _ = allowed.recv();
            let _ = written.send(String::from_utf8(text.to_owned()).unwrap());
        });
        let log = log.unwrap();
        // One is being written, the others wait.
        (0..=LINES).for_each(|_| {
            log.add(b"room");
            thread::yield_now();
        });
        let begun = Instant::now();
        (0..10).for_each(|_| log.add(b"lost"));
        log.flush();
        assert!(begun.elapsed() < 5 * END_LIMIT, "it does not wait for ever");
        drop(allow);
        log.flush();
        log.add(b"last");
        log.flush();
        drop(log);
        let all: Vec<_> = lines.iter().collect();
        let room = all.iter().filter(|line| *line == "room").count();
        let lost = |line: &String| line.strip_prefix("polypathd: ")?.split(' ').next()?.parse::<usize>().ok();
        assert_eq!(room + all.iter().filter_map(lost).sum::<usize>(), LINES + 1 + 10);
        let [.., told, last] = &all[..] else { panic!("{all:?}") };
        assert!(lost(told).is_some_and(|lost| lost >= 10) && last == "last", "{told}, {last}");
    }
}
