//! Polypath's initiator and multipath against Linux's own NVMe/TCP target.
use std::time::Duration;

use anyhow::{Result, ensure};
use polypath_tests::peers::NvmetGuest;
use polypath_tests::products::BenchVerify;
use polypath_tests::{Lab, Need};

const NEEDS: [Need; 4] =
    [Need::Program("qemu-system-x86_64"), Need::Program("busybox"), Need::Program("modprobe"), Need::GuestKernel];

/// Enough to be sure that it is data and not keep alive.
const SOME_KIB: u32 = 1024;

#[test]
fn verified_io_over_two_ports_survives_ana_changes_a_lost_port_and_a_silent_one() -> Result<()> {
    let Some(lab) = Lab::enter("nvmet", "bench_against_linux_target", &NEEDS) else { return Ok(()) };
    let mut target = NvmetGuest::start(&lab)?;
    let mut bench = BenchVerify::start(&lab, &[target.uri(1, 1), target.uri(2, 1)], 32, 60)?;

    // port 1 is optimized, port 2 is not
    target.wait_for_traffic(1, SOME_KIB)?;
    target.set_ana(1, 1, "inaccessible")?;
    target.wait_for_traffic(2, SOME_KIB)?;
    target.set_ana(1, 1, "optimized")?;
    target.set_ana(2, 1, "inaccessible")?;
    target.wait_for_traffic(1, SOME_KIB)?;
    target.set_ana(2, 1, "optimized")?;
    target.wait_for_traffic(2, SOME_KIB)?;

    target.port_down(1)?;
    target.wait_for_traffic(2, SOME_KIB)?;
    target.port_up(1)?;
    target.wait_for_traffic(1, SOME_KIB)?;

    target.link_down(2)?;
    target.wait_for_traffic(1, SOME_KIB)?;
    target.link_up(2)?;
    target.wait_for_traffic(2, SOME_KIB)?;

    ensure!(bench.is_running()?, "the load ended before the last trouble was made: nothing is proved");
    bench.finish(Duration::from_secs(240)).map(drop)
}
