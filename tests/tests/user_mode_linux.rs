//! A second kernel front-end, `virtio_uml`, on a Polypath disk. Optional: it needs a User-Mode Linux with everything built in.
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polypath_tests::peers::StorageDaemon;
use polypath_tests::products::{Daemon, Target};
use polypath_tests::{Guest, GuestSpec, Lab, Need};

const NEEDS: [Need; 4] =
    [Need::FileNamedBy("POLYPATH_LAB_UML"), Need::Program("busybox"), Need::Program("mke2fs"), Need::Program("e2fsck")];
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn virtio_uml_makes_and_checks_a_file_system_on_qemus_own_back_end() -> Result<()> {
    let Some(lab) = Lab::enter("user-mode-linux", "uml_on_qemus_back_end", &NEEDS) else { return Ok(()) };
    let daemon = StorageDaemon::start(&lab, 256 << 20)?;
    exercise(&lab, &daemon.socket)
}

#[test]
fn virtio_uml_makes_and_checks_a_file_system_on_polypathd() -> Result<()> {
    let Some(lab) = Lab::enter("user-mode-linux", "uml_on_polypathd", &NEEDS) else { return Ok(()) };
    let target = Target::start(&lab, 2, 256)?;
    let daemon = Daemon::start(&lab, &target.uris(), 1)?;
    exercise(&lab, &daemon.socket)?;
    daemon.stop()
}

fn exercise(lab: &Lab, socket: &std::path::Path) -> Result<()> {
    let kernel = PathBuf::from(std::env::var_os("POLYPATH_LAB_UML").context("Lab::enter has seen it")?);
    let spec = GuestSpec::new("uml").program("mke2fs").program("e2fsck").setup("vhost-blk.sh");
    let mut guest = Guest::boot_user_mode_linux(lab, &spec, &kernel, socket)?;
    guest.run("fs_make", MINUTE)?;
    guest.run("fs_rounds 1 3 16", 3 * MINUTE)?;
    guest.run("fs_fsck", MINUTE)?;
    let errors = guest.run("io_errors", MINUTE)?;
    ensure!(errors.is_empty(), "the guest's kernel saw I/O errors:\n{errors}");
    Ok(())
}
