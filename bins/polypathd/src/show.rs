//! What RPC shows of disks, paths and sockets.

use crate::nbd::{Nbd, Place};
use crate::resources::{Disk, Slice, Vhost};
use polypath::block::{Device, DeviceState, ReservationType};
use polypath::multipath::{Fencing, MatchPolicy, PathStatistics};
use polypath::reactor::now;
use polypath::vhost_user_blk::VringStatistics;
use serde_json::{Value, json};
use std::path::Path;

/// One disk: what it is, how it is set up, which other disk it proves to be, and its paths.
pub(crate) fn disk(name: &str, disk: &Disk, same_as: Option<String>) -> Value {
    let can = disk.group.availability();
    let (state, why, info) = match disk.group.state() {
        DeviceState::Live(info) if can.no_path_since.is_some() => ("no-path", Some(why_no_path(disk)), Some(info)),
        DeviceState::Live(info) => ("live", None, Some(info)),
        DeviceState::Starting => ("starting", None, None),
        DeviceState::Down { reason, .. } => ("down", Some(reason), None),
        DeviceState::Gone { reason } => ("gone", Some(reason), None),
    };
    let selector = disk.group.selector();
    let geometry = info.as_ref().map(|i| i.geometry);
    json!({
        "name": name, "state": state, "why": why, "selector": selector.to_string(),
        "min_io": selector.min_io(), "failback": selector.failback().map(|f| f.to_string()),
        "usable_paths": can.usable_paths, "no_path_for_ms": can.no_path_since.map(|at| now().since(at).as_millis() as u64),
        "waiting": can.waiting, "failed_no_path": can.failed,
        "no_path_timeout_ms": i64::try_from(disk.config.no_path_timeout_ms).unwrap_or(-1),
        "match": matching(&disk.config.matching),
        "fencing": if disk.config.fencing == Fencing::On { "on" } else { "off" },
        "block_size": geometry.map(|g| g.block_size), "blocks": geometry.map(|g| g.blocks), "bytes": geometry.map(|g| g.bytes()),
        "read_only": info.as_ref().map(|i| i.limits.read_only),
        "identity": info.as_ref().map(|i| i.identity.identifiers.iter().map(|id| format!("{id:?}")).collect::<Vec<_>>()),
        "reservation": reservation(disk), "same_as": same_as, "found": disk.found, "paths": paths(disk),
    })
}

/// What is claimed of reservations, or why that is over.
fn reservation(disk: &Disk) -> Value {
    let state = disk.group.reservation_state();
    json!({ "key": state.key.map(|key| format!("{key:#x}")), "type": state.kind.map(ReservationType::as_str), "ended": state.ended })
}

fn why_no_path(disk: &Disk) -> String {
    let paths = disk.group.statistics();
    let each = paths.iter().map(|p| format!("{} is {}: {}", p.name, p.state, p.why)).collect::<Vec<_>>();
    if each.is_empty() { "it has no path".into() } else { each.join("; ") }
}

fn matching(policy: &MatchPolicy) -> Value {
    match policy {
        MatchPolicy::Worldwide => "worldwide".into(),
        MatchPolicy::Stated => "stated".into(),
        MatchPolicy::Pinned(list) => list.iter().map(ToString::to_string).collect(),
    }
}

/// The paths of a disk with their numbers, those on their way out included.
pub(crate) fn paths(disk: &Disk) -> Value {
    // Paths that were found are called after where they lead.
    let found = |name: &str| disk.found.then(|| name.to_owned());
    let uri = |name: &str| {
        disk.config.paths.iter().find(|p| p.label() == name).map(|p| p.uri.to_string()).or_else(|| found(name))
    };
    disk.group.statistics().into_iter().map(|p| path(&p, uri(&p.name))).collect()
}

/// One slice: where it lies, what it is now, and where it is served.
pub(crate) fn slice(slice: &Slice, served: Vec<String>) -> Value {
    let (state, why, info) = match slice.slice.state() {
        DeviceState::Live(info) => ("live", None, Some(info)),
        DeviceState::Starting => ("starting", None, None),
        DeviceState::Down { reason, .. } => ("down", Some(reason), None),
        DeviceState::Gone { reason } => ("gone", Some(reason), None),
    };
    let (c, geometry) = (&slice.config, info.map(|i| i.geometry));
    json!({
        "name": c.name, "disk": c.disk, "offset": c.range.offset_bytes, "length": c.range.length_bytes, "state": state, "why": why,
        "block_size": geometry.map(|g| g.block_size), "blocks": geometry.map(|g| g.blocks), "served": served,
    })
}

/// One socket and its rings, and whether it is serving or ending.
pub(crate) fn vhost(socket: &Path, vhost: &Vhost, state: &str) -> Value {
    let c = &vhost.config;
    let (connected, rings) = vhost.server(|s| (s.connected(), s.statistics())).unwrap_or_default();
    json!({
        "socket": socket, "disk": c.disk, "state": state, "queues": c.queues, "queue_size": c.queue_size, "read_only": c.read_only,
        "mode": format!("{:o}", c.access.mode), "owner": c.access.owner, "group": c.access.group,
        "cpus": c.cpus.as_ref().map(ToString::to_string),
        "connected": connected, "rings": rings.iter().map(ring).collect::<Vec<_>>(),
    })
}

/// One NBD export and what it has done, and whether it is serving or ending.
pub(crate) fn nbd(nbd: &Nbd, state: &str) -> Value {
    let c = &nbd.config;
    let done = nbd.statistics().unwrap_or_default();
    let (socket, address) = match &nbd.place {
        Place::Socket(path) => (Some(path), None),
        Place::Address(address) => (None, Some(address.to_string())),
    };
    json!({
        "disk": c.disk, "name": c.name, "socket": socket, "address": address, "state": state, "read_only": c.read_only,
        "mode": socket.map(|_| format!("{:o}", c.access.mode)), "owner": c.access.owner, "group": c.access.group,
        "clients": done.clients, "connections": done.connections, "requests": done.requests, "errors": done.errors,
        "bytes_read": done.bytes_read, "bytes_written": done.bytes_written,
    })
}

fn path(p: &PathStatistics, uri: Option<String>) -> Value {
    json!({
        "name": p.name, "uri": uri, "state": p.state.to_string(), "why": p.why, "state_for_ms": now().since(p.since).as_millis() as u64,
        "access": p.access.map(|a| format!("{a:?}").to_lowercase()), "weight": p.weight, "preferred": p.preferred,
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
