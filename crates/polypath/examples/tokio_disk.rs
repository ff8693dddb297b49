//! A disk in a tokio program: many tasks write, read back and check, over any URI or over several paths.
//!
//! ```text
//! cargo run --release -p polypath --example tokio_disk -- [URI]...
//! ```
//! Without a URI it uses 64 MiB of memory. What it is given is overwritten.

use polypath::{Disk, Error};
use std::time::Instant;

const TASKS: u64 = 32;
const ROUNDS: u64 = 500;
const LEN: u32 = 16 << 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut uris: Vec<String> = std::env::args().skip(1).collect();
    if uris.is_empty() {
        uris.push("ram://64MiB".into());
    }
    let disk = Disk::open(&uris).await?;
    println!("{}: {} MiB in blocks of {} bytes", disk.name(), disk.size() >> 20, disk.geometry().block_size);
    let start = Instant::now();
    let tasks: Vec<_> = (0..TASKS).map(|task| tokio::spawn(work(disk.clone(), task))).collect();
    for task in tasks {
        task.await??;
    }
    disk.flush().await?;
    let took = start.elapsed().as_secs_f64();
    println!("{} writes and as many reads, all as written, in {took:.2} s", TASKS * ROUNDS);
    disk.close().await;
    Ok(())
}

async fn work(disk: Disk, task: u64) -> Result<(), Error> {
    // Each task has a stripe of its own, so that nobody else changes what it reads back.
    let stripe = disk.size() / TASKS / u64::from(LEN);
    let mut buffer = disk.buffer(LEN)?;
    for round in 0..ROUNDS {
        let at = (task * stripe + round * 7919 % stripe.max(1)) * u64::from(LEN);
        buffer.fill((task + round) as u8);
        let (result, mut back) = disk.write(at, buffer).await;
        result?;
        back.fill(0);
        let (result, back) = disk.read(at, back).await;
        result?;
        assert!(back.to_vec().iter().all(|&b| b == (task + round) as u8), "read differs from what was written");
        buffer = back;
    }
    Ok(())
}
