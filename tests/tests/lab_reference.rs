//! The lab judged by itself: every outside peer meets another outside peer, without any of our code. When one of these fails, the lab
//! is broken and the tests beside it say nothing about Polypath.
use std::time::Duration;

use anyhow::{Result, ensure};
use polypath_tests::blk::{BlkioLoad, BlkioOptions};
use polypath_tests::bring_up::initialize_connection;
use polypath_tests::peers::{InitiatorGuest, NvmetGuest, StorageDaemon, vhost_blk_guest};
use polypath_tests::{Lab, Need};

const GUEST: [Need; 6] = Need::FILE_SYSTEM_GUEST;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn linux_initiator_against_linux_target_keeps_its_data_over_ana_changes_and_a_lost_port() -> Result<()> {
    let Some(lab) = Lab::enter("nvmet", "linux_initiator_against_linux_target", &GUEST) else { return Ok(()) };
    let mut target = NvmetGuest::start(&lab)?;
    for port in target.ports {
        let answer = initialize_connection(port, MINUTE)?;
        ensure!(answer.pfv == 0 && answer.maxh2cdata >= 4096, "an odd ICResp from Linux: {answer:?}");
    }
    let mut initiator = InitiatorGuest::start(&lab)?;
    for port in target.ports {
        initiator.connect(port, NvmetGuest::NQN)?;
    }
    initiator.wait_for_paths(" live ", 2)?;
    initiator.verified_rounds(1, 2, 4)?;

    target.set_ana(1, 1, "inaccessible")?;
    initiator.wait_for_paths("nvme0c[0-9]*n1=inaccessible", 1)?;
    let running = initiator.guest().begin("verified_rounds 3 4 4")?;
    target.wait_for_traffic(2, 1024)?;
    initiator.guest().finish(running, 2 * MINUTE)?;
    target.set_ana(1, 1, "optimized")?;
    initiator.wait_for_paths("nvme0c[0-9]*n1=optimized", 1)?;

    let running = initiator.guest().begin("verified_rounds 5 8 4")?;
    target.port_down(1)?;
    initiator.guest().finish(running, 5 * MINUTE)?;
    ensure!(initialize_connection(target.ports[0], MINUTE).is_err(), "the port that was taken down still answers");
    initiator.wait_for_paths(" live ", 1)?;
    target.port_up(1)?;
    initiator.wait_for_paths(" live ", 2)?;
    initiator.verified_rounds(9, 9, 4)?;

    // silence: nothing is closed, Linux has to find out by its keep alive
    let running = initiator.guest().begin("verified_rounds 10 12 4")?;
    initiator.guest().wait_for_line(&running, "ROUND 11", 2 * MINUTE)?;
    target.link_down(1)?;
    target.wait_for_traffic(2, 4096)?;
    initiator.guest().finish(running, 5 * MINUTE)?;
    target.link_up(1)?;
    initiator.wait_for_paths(" live ", 2)
}

#[test]
fn a_guest_makes_and_checks_a_file_system_on_qemus_own_back_end() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "guest_on_qemus_back_end", &GUEST) else { return Ok(()) };
    let daemon = StorageDaemon::start(&lab, 256 << 20)?;
    let mut guest = vhost_blk_guest(&lab, &daemon.socket, 1)?;
    guest.run("fs_make", MINUTE)?;
    guest.run("fs_rounds 1 2 16", 3 * MINUTE)?;
    guest.run("fs_fsck", MINUTE)?;
    ensure!(guest.run("io_errors", MINUTE)?.is_empty(), "the guest's kernel saw I/O errors");
    Ok(())
}

#[test]
fn blkio_verifies_qemus_own_back_end() -> Result<()> {
    let Some(lab) =
        Lab::enter("qemu-storage-daemon", "blkio_on_qemus_back_end", &[Need::Program("qemu-storage-daemon")])
    else {
        return Ok(());
    };
    let daemon = StorageDaemon::start(&lab, 128 << 20)?;
    let load = BlkioLoad::start(BlkioOptions::new(&daemon.socket, 0x00b1_0c10));
    load.wait_for_more(20_000, 2 * MINUTE)?;
    let report = load.stop()?;
    eprintln!("{report:?}");
    report.check()
}
