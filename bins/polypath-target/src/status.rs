//! What `status` tells.

use crate::config::AnaState;
use crate::rooms::Rooms;
use crate::shared::lock;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) fn status(rooms: &Rooms) -> Value {
    let shared = &*rooms.shared;
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let now_us = shared.now_us();
    let connections: Vec<Value> = lock(&shared.conns)
        .values()
        .map(|c| {
            let queue = c.queue.load(Ordering::Relaxed);
            let connected = queue != u32::MAX;
            json!({
                "conn": c.id, "listener": c.listener, "thread": c.thread, "peer": c.peer.map(|p| p.to_string()),
                "cntlid": connected.then_some(queue & 0xffff), "qid": connected.then_some(queue >> 16),
                "reads": get(&c.reads), "writes": get(&c.writes), "others": get(&c.others),
                "bytes_in": get(&c.bytes_in), "bytes_out": get(&c.bytes_out), "dropped": c.frozen.load(Ordering::Relaxed),
            })
        })
        .collect();
    let listeners: Vec<Value> = shared
        .listeners
        .iter()
        .enumerate()
        .map(|(i, l)| {
            json!({
                "listener": i, "address": l.address.to_string(), "dropped": l.dropped.load(Ordering::Relaxed),
                "closed": l.closed.load(Ordering::Relaxed), "latency_us": get(&l.latency_us), "bytes_per_s": l.bandwidth.rate(),
            })
        })
        .collect();
    let counters = json!({
        "accepted": get(&shared.counters.accepted), "closed": get(&shared.counters.closed),
        "terminated": get(&shared.counters.terminated), "keep_alive_expired": get(&shared.counters.keep_alive_expired),
        "digest_errors": get(&shared.counters.digest_errors), "controllers": get(&shared.counters.controllers),
        "sessions": get(&shared.counters.sessions),
    });
    json!({
        "unix_us": shared.unix_us(now_us), "listeners": listeners, "connections": connections,
        "subsystems": subsystems(rooms, now_us), "sessions": rooms.iscsi.status(), "counters": counters, "faults": shared.faults.describe(now_us),
        "held_writes": shared.held.records(),
    })
}

fn subsystems(rooms: &Rooms, now_us: u64) -> Vec<Value> {
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    rooms
        .nvme
        .subsystems
        .iter()
        .map(|s| {
            let controllers: Vec<Value> = lock(&s.controllers)
                .values()
                .map(|c| {
                    json!({
                        "cntlid": c.id, "listener": c.listener, "hostnqn": c.hostnqn,
                        "kato_ms": c.kato_ms.load(Ordering::Relaxed), "ready": c.ready(),
                        "quiet_bound_ms": rooms.nvme.bound_us(c).map(|b| b / 1000),
                        "keep_alive_age_ms": now_us.saturating_sub(c.alive_us.load(Ordering::Relaxed)) / 1000,
                        "queues": lock(&c.inner).queues.keys().collect::<Vec<_>>(),
                    })
                })
                .collect();
            let namespaces: Vec<Value> = s
                .store
                .disks()
                .iter()
                .map(|n| {
                    let ana: Vec<String> = (0..rooms.listeners.len())
                        .map(|l| format!("{:?}", AnaState::from_code(s.store.access(l, n.group))))
                        .collect();
                    json!({
                        "nsid": n.nsid, "lun": n.lun, "blocks": n.blocks, "bs": 1u64 << n.shift, "nguid": hex(&n.nguid), "uuid": hex(&n.uuid),
                        "ana_group": n.group, "ana": ana,
                    })
                })
                .collect();
            json!({ "nqn": s.store.nqn, "iqn": s.store.iqn, "controllers": controllers, "namespaces": namespaces })
        })
        .collect()
}
