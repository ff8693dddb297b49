//! Runs in a guest: direct readers and checked writers on a disk, until a number of seconds has passed.
//!
//! `guest-load DEVICE READERS WRITERS SECONDS`
//!
//! Every reader has a part of the disk in which each block says which one it is, and reads it at random into buffers that it takes in turns.
//! It looks at each when it has been read, and again before it is used again: what a device has written and no processor has touched must
//! still be there, whatever machine the guest has moved to meanwhile. Every writer has blocks of its
//! own, writes them with a number that grows, and reads back what it wrote last. `ALIVE n` is said whenever all of them have got something
//! done since it was said last, at most five times a second, with the longest that a request has taken since. What is wrong is said at
//! once, and counted in the last line: `DONE reads=N writes=N errors=N wrong=N longest_ms=N`.
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Blocks of each worker.
const BLOCKS: u64 = 256;
const O_DIRECT: i32 = 0o40000;
/// Buffers of each reader.
const BUFFERS: usize = 64;
/// At most so often it is said that all are alive.
const PAUSE: Duration = Duration::from_millis(200);

/// A block in memory, aligned as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// What the workers have done.
#[derive(Default)]
struct Counts {
    /// By worker.
    done: Vec<AtomicU64>,
    reads: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    /// Since it was said last, and since the beginning.
    longest_ms: AtomicU64,
    longest_of_all_ms: AtomicU64,
    ending: AtomicBool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |n: usize| arguments.get(n).and_then(|a| a.parse::<u64>().ok());
    let (Some(device), Some(readers), Some(writers), Some(seconds)) =
        (arguments.get(1), number(2), number(3), number(4))
    else {
        eprintln!("usage: guest-load DEVICE READERS WRITERS SECONDS");
        return ExitCode::from(2);
    };
    let file = match OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("{device}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let workers = readers + writers;
    let counts = Counts { done: (0..workers).map(|_| AtomicU64::new(0)).collect(), ..Counts::default() };
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let work = Worker { file: &file, counts: &counts, at: worker, random: worker + 1 };
            scope.spawn(move || if worker < readers { work.read_on() } else { work.write_on() });
        }
        report(&counts, Duration::from_secs(seconds));
        counts.ending.store(true, Relaxed);
    });
    let (errors, wrong) = (counts.errors.load(Relaxed), counts.wrong.load(Relaxed));
    println!(
        "DONE reads={} writes={} errors={errors} wrong={wrong} longest_ms={}",
        counts.reads.load(Relaxed),
        counts.writes.load(Relaxed),
        counts.longest_of_all_ms.load(Relaxed)
    );
    ExitCode::from(u8::from(errors + wrong > 0))
}

/// Says that all are alive until the time is up.
fn report(counts: &Counts, span: Duration) {
    let began = Instant::now();
    let mut before: Vec<u64> = counts.done.iter().map(|n| n.load(Relaxed)).collect();
    let mut said = 0;
    while began.elapsed() < span {
        std::thread::sleep(PAUSE);
        let now: Vec<u64> = counts.done.iter().map(|n| n.load(Relaxed)).collect();
        if now.iter().zip(&before).all(|(now, before)| now > before) {
            (said, before) = (said + 1, now);
            println!("ALIVE {said} longest_ms={}", counts.longest_ms.swap(0, Relaxed));
        }
    }
}

/// One that reads, or one that writes.
struct Worker<'a> {
    file: &'a File,
    counts: &'a Counts,
    at: u64,
    random: u64,
}

impl Worker<'_> {
    /// Fills its part, then reads it.
    fn read_on(mut self) {
        for n in 0..BLOCKS {
            self.write(n, 0);
        }
        let mut buffers: Vec<_> = (0..BUFFERS).map(|_| (Box::new(Block([0; BLOCK])), None)).collect();
        for at in (0..BUFFERS).cycle() {
            if self.counts.ending.load(Relaxed) {
                return;
            }
            let (block, holds) = &mut buffers[at];
            if let Some(n) = *holds {
                self.compare("kept", block, n, 0);
            }
            let n = self.next() % BLOCKS;
            *holds = self.read(block, n, 0).then_some(n);
        }
    }

    /// Writes and reads back, each block with a number that grows.
    fn write_on(mut self) {
        let mut kept = vec![0; BLOCKS as usize];
        while !self.counts.ending.load(Relaxed) {
            let n = self.next() % BLOCKS;
            let generation = &mut kept[n as usize];
            *generation += 1;
            if self.write(n, *generation) {
                self.read(&mut Block([0; BLOCK]), n, *generation);
            }
        }
    }

    fn write(&self, n: u64, generation: u64) -> bool {
        let mut block = Block([0; BLOCK]);
        for (word, place) in block.0.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&self.word(n, generation, word).to_le_bytes());
        }
        let result = self.timed(|| self.file.write_all_at(&block.0, self.offset(n)));
        self.counts.writes.fetch_add(1, Relaxed);
        self.tell("write", n, result)
    }

    /// Reads a block; true when it is what it should be.
    fn read(&self, block: &mut Block, n: u64, generation: u64) -> bool {
        let result = self.timed(|| self.file.read_exact_at(&mut block.0, self.offset(n)));
        self.counts.reads.fetch_add(1, Relaxed);
        self.tell("read", n, result) && self.compare("read", block, n, generation)
    }

    fn compare(&self, what: &str, block: &Block, n: u64, generation: u64) -> bool {
        let words = block.0.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
        let wrong = words.enumerate().find(|&(word, found)| found != self.word(n, generation, word));
        if let Some((word, found)) = wrong {
            self.counts.wrong.fetch_add(1, Relaxed);
            let wanted = self.word(n, generation, word);
            println!("WRONG worker {} {what} block {n} word {word}: {found:#x}, expected {wanted:#x}", self.at);
        }
        wrong.is_none()
    }

    fn timed<T>(&self, act: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = act();
        let took = began.elapsed().as_millis() as u64;
        self.counts.longest_ms.fetch_max(took, Relaxed);
        self.counts.longest_of_all_ms.fetch_max(took, Relaxed);
        self.counts.done[self.at as usize].fetch_add(1, Relaxed);
        result
    }

    fn tell(&self, what: &str, n: u64, result: std::io::Result<()>) -> bool {
        if let Err(error) = &result {
            self.counts.errors.fetch_add(1, Relaxed);
            println!("ERROR worker {} {what} of block {n}: {error}", self.at);
        }
        result.is_ok()
    }

    fn offset(&self, n: u64) -> u64 {
        (self.at * BLOCKS + n) * BLOCK as u64
    }

    /// Says which block it is, of which generation; no two places have the same.
    fn word(&self, n: u64, generation: u64, word: usize) -> u64 {
        (self.at * BLOCKS + n) << 44 ^ generation << 12 ^ word as u64
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
