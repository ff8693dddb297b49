//! A whole virtual machine on a Polypath disk: the file system in it must not notice that a path goes silent.
use std::time::Duration;

use anyhow::{Result, ensure};
use polypath_tests::peers::vhost_blk_guest;
use polypath_tests::products::{Daemon, Target};
use polypath_tests::{Lab, Need};

const NEEDS: [Need; 6] = Need::FILE_SYSTEM_GUEST;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_guests_file_system_survives_a_path_that_goes_silent_and_one_that_is_reset() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-vhost-user-blk", "guest_on_polypathd", &NEEDS) else { return Ok(()) };
    let target = Target::start(&lab, 4, 256)?;
    let daemon = Daemon::start(&lab, &target.uris(), 2)?;
    let mut guest = vhost_blk_guest(&lab, &daemon.socket, 2)?;
    guest.run("fs_make", MINUTE)?;

    let rounds = guest.begin("fs_rounds 1 6 16")?;
    guest.wait_for_line(&rounds, "ROUND 2", 3 * MINUTE)?;
    target.drop_silently(0)?;
    guest.wait_for_line(&rounds, "ROUND 4", 3 * MINUTE)?;
    target.reset(1)?;
    target.restore(0)?;
    guest.finish(rounds, 5 * MINUTE)?;

    guest.run("fs_fsck", MINUTE)?;
    let errors = guest.run("io_errors", MINUTE)?;
    ensure!(errors.is_empty(), "the guest's kernel saw I/O errors:\n{errors}");
    drop(guest);
    daemon.stop()
}
