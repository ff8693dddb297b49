//! What RPC shows of disks, paths and sockets.

use crate::resources::{Disk, Vhost};
use polypath::block::{Device, DeviceState};
use polypath::multipath::{Fencing, PathStatistics};
use polypath::reactor::now;
use polypath::vhost_user_blk::VringStatistics;
use serde_json::{Value, json};
use std::path::Path;

/// One disk: what it is, how it is set up, which other disk it proves to be, and its paths.
pub(crate) fn disk(name: &str, disk: &Disk, same_as: Option<String>) -> Value {
    let (state, why, info) = match disk.group.state() {
        DeviceState::Live(info) => ("live", None, Some(info)),
        DeviceState::Starting => ("starting", None, None),
        DeviceState::Down { reason, .. } => ("down", Some(reason), None),
        DeviceState::Gone { reason } => ("gone", Some(reason), None),
    };
    let geometry = info.as_ref().map(|i| i.geometry);
    json!({
        "name": name, "state": state, "why": why, "selector": disk.group.selector().to_string(),
        "no_path_timeout_ms": disk.config.no_path_timeout_ms,
        "fencing": if disk.config.fencing == Fencing::On { "on" } else { "off" },
        "block_size": geometry.map(|g| g.block_size), "blocks": geometry.map(|g| g.blocks), "bytes": geometry.map(|g| g.bytes()),
        "read_only": info.as_ref().map(|i| i.limits.read_only),
        "identity": info.as_ref().map(|i| i.identity.identifiers.iter().map(|id| format!("{id:?}")).collect::<Vec<_>>()),
        "same_as": same_as, "paths": paths(disk),
    })
}

/// The paths of a disk with their numbers, those on their way out included.
pub(crate) fn paths(disk: &Disk) -> Value {
    let uri = |name: &str| disk.config.paths.iter().find(|p| p.label() == name).map(|p| p.uri.to_string());
    disk.group.statistics().into_iter().map(|p| path(&p, uri(&p.name))).collect()
}

/// One socket and its rings.
pub(crate) fn vhost(socket: &Path, vhost: &Vhost) -> Value {
    let c = &vhost.config;
    let (connected, rings) = vhost.server(|s| (s.connected(), s.statistics())).unwrap_or_default();
    json!({
        "socket": socket, "disk": c.disk, "queues": c.queues, "queue_size": c.queue_size, "read_only": c.read_only,
        "connected": connected, "rings": rings.iter().map(ring).collect::<Vec<_>>(),
    })
}

fn path(p: &PathStatistics, uri: Option<String>) -> Value {
    json!({
        "name": p.name, "uri": uri, "state": p.state.to_string(), "why": p.why, "state_for_ms": now().since(p.since).as_millis() as u64,
        "access": p.access.map(|a| format!("{a:?}").to_lowercase()), "weight": p.weight,
        "ios": p.ios, "bytes": p.bytes, "errors": p.errors, "in_flight": p.in_flight, "redriven": p.redriven,
        "suspects": p.suspects, "failures": p.failures, "recoveries": p.recoveries,
        "cause": p.cause.map(|c| format!("{c:?}")), "mean_latency_us": p.latency.as_secs_f64() * 1e6,
    })
}

fn ring(r: &VringStatistics) -> Value {
    json!({
        "running": r.running, "requests": r.requests, "completions": r.completions, "kicks": r.kicks, "calls": r.calls,
        "bad_requests": r.bad_requests, "errors": r.errors, "ring_errors": r.ring_errors,
    })
}
