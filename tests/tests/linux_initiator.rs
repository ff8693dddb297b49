//! Linux's own NVMe/TCP initiator against `polypath-target`: the software target must be a good one.
use std::time::Duration;

use anyhow::Result;
use polypath_tests::bring_up::initialize_connection;
use polypath_tests::peers::InitiatorGuest;
use polypath_tests::products::Target;
use polypath_tests::{Lab, Need};

const NEEDS: [Need; 4] =
    [Need::Program("qemu-system-x86_64"), Need::Program("busybox"), Need::Program("modprobe"), Need::GuestKernel];
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn linux_does_verified_io_over_two_paths_while_ana_changes_and_a_path_is_lost() -> Result<()> {
    let Some(lab) = Lab::enter("linux-initiator", "linux_against_polypath_target", &NEEDS) else { return Ok(()) };
    let target = Target::start(&lab, 2, 64)?;
    for port in &target.ports {
        initialize_connection(*port, MINUTE)?;
    }
    let mut initiator = InitiatorGuest::start(&lab)?;
    for port in &target.ports {
        initiator.connect(*port, Target::NQN)?;
    }
    initiator.wait_for_paths(" live ", 2)?;
    initiator.wait_for_paths("=optimized", 2)?;
    initiator.verified_rounds(1, 2, 8)?;

    target.set_ana(0, "inaccessible")?;
    initiator.wait_for_paths("=inaccessible", 1)?;
    initiator.verified_rounds(3, 4, 8)?;
    target.set_ana(0, "optimized")?;
    initiator.wait_for_paths("=optimized", 2)?;

    let rounds = initiator.guest().begin("verified_rounds 5 9 8")?;
    initiator.guest().wait_for_line(&rounds, "ROUND 6", 2 * MINUTE)?;
    target.reset(0)?;
    initiator.guest().wait_for_line(&rounds, "ROUND 8", 2 * MINUTE)?;
    target.drop_silently(1)?;
    initiator.guest().finish(rounds, 5 * MINUTE)?;

    target.restore(1)?;
    initiator.wait_for_paths(" live ", 2)?;
    initiator.verified_rounds(10, 11, 8)
}
