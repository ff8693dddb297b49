//! Reservations of disks, as RPC asks for them.

use super::Daemon;
use polypath::block::{ReservationOp, ReservationReport, ReservationType};
use polypath::{block_on, reservation};
use serde_json::{Value, json};
use std::time::Duration;

/// How long an operation may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What is wanted. The key that the disk is registered with is the disk's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    Register { key: u64 },
    Unregister,
    Reserve { kind: ReservationType },
    Release,
    Preempt { victim: u64, kind: ReservationType, abort: bool },
    Clear,
    Report,
}

impl Daemon {
    /// Carries it out over all paths of the disk.
    pub(crate) fn reservation(&self, disk: &str, wanted: Wanted) -> Result<Value, String> {
        let group = self.disk(disk)?.group;
        let state = group.reservation_state();
        let key = || {
            let why = state.ended.as_ref().map_or_else(String::new, |ended| format!(" ({ended})"));
            state.key.ok_or_else(|| {
                format!("disk \"{disk}\" is not registered{why}; expected a reservation_register with a key first")
            })
        };
        let op = match wanted {
            Wanted::Register { key } => ReservationOp::Register { key },
            Wanted::Unregister => ReservationOp::Unregister { key: key()? },
            Wanted::Reserve { kind } => ReservationOp::Reserve { key: key()?, kind },
            Wanted::Release => {
                let report = block_on(reservation(&*group, ReservationOp::Report, LIMIT)).map_err(|e| e.to_string())?;
                let kind = report.and_then(|report| report.held);
                let kind = kind.ok_or_else(|| format!("disk \"{disk}\" is not reserved by anybody"))?;
                ReservationOp::Release { key: key()?, kind }
            }
            Wanted::Preempt { victim, kind, abort } => ReservationOp::Preempt { key: key()?, victim, kind, abort },
            Wanted::Clear => ReservationOp::Clear { key: key()? },
            Wanted::Report => ReservationOp::Report,
        };
        let report = block_on(reservation(&*group, op, LIMIT)).map_err(|e| e.to_string())?;
        tracing::info!(disk, ?op, "reservations");
        Ok(report.map_or(Value::Bool(true), |report| show(&report)))
    }
}

fn show(report: &ReservationReport) -> Value {
    let hex = |host: [u8; 16]| host.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let registrants = report
        .registrants
        .iter()
        .map(|r| json!({ "key": format!("{:#x}", r.key), "holder": r.holder, "host": r.host.map(hex) }));
    json!({
        "generation": report.generation, "type": report.held.map(ReservationType::as_str),
        "registrants": registrants.collect::<Vec<_>>(),
    })
}
