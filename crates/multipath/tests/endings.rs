//! Queues that end undrained.

use crate::common::scripted::{Bench, info};
use polypath_block::{DeviceInfo, Io, Limits, SegSpan};
use polypath_multipath::GroupConfig;

/// The queues of paths and shared ones know how to end under requests; the one above them must not panic in the middle of it.
#[test]
fn a_reactor_may_end_under_a_queue_with_requests_open() {
    let small = DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") };
    let mut b = Bench::new(GroupConfig::new("disk"), vec![info("b"), small]);
    for lba in 0..2 {
        b.submit(Io::write(0, lba, 4, SegSpan::EMPTY));
    }
    b.flush();
    assert!(b.devices.iter().all(|d| !d.in_flight().is_empty()));
    let Bench { queue, group, ids, .. } = b;
    drop(queue);
    assert!(ids.iter().all(|&id| group.remove_path(id).is_ok()));
    assert!(group.paths().is_empty(), "nobody holds them any more");
}
