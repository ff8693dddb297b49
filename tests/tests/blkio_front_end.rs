//! The `blkio` crate, a native vhost-user-blk front-end, on a Polypath disk over four paths.
use std::time::Duration;

use anyhow::Result;
use polypath_tests::Lab;
use polypath_tests::blk::{BlkioLoad, BlkioOptions};
use polypath_tests::products::{Daemon, Target};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn blkio_reads_back_what_it_wrote_while_paths_are_dropped_reset_and_come_back() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "blkio_on_polypathd", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 4, 128)?;
    let daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let load = BlkioLoad::start(BlkioOptions::new(&daemon.socket, 0x0b1c_0de5));
    load.wait_for_more(5_000, 2 * MINUTE)?;
    target.drop_silently(0)?;
    load.wait_for_more(20_000, 2 * MINUTE)?;
    target.reset(1)?;
    load.wait_for_more(5_000, 2 * MINUTE)?;
    target.restore(0)?;
    target.set_ana(2, "inaccessible")?;
    load.wait_for_more(5_000, 2 * MINUTE)?;
    let report = load.stop()?;
    eprintln!("{report:?}");
    report.check()?;
    daemon.stop()
}

#[test]
fn the_front_end_may_go_and_come_back() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "blkio_reconnects", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 64)?;
    let daemon = Daemon::start(&lab, &target.uris(), 1)?;
    for seed in 1..=3 {
        let mut options = BlkioOptions::new(&daemon.socket, seed);
        options.blocks = 4096;
        let load = BlkioLoad::start(options);
        load.wait_for_more(2_000, MINUTE)?;
        load.stop()?.check()?;
    }
    daemon.stop()
}
