//! Bodies of the fuzz targets, here so that `cargo test` replays the committed corpus. Not an interface.

use crate::fabrics::{ConnectData, ConnectRequest, ConnectResponse};
use crate::identify::{IdentifyController, IdentifyNamespace, NamespaceIds, active_namespaces};
use crate::log::{AnaLog, AsyncEvent, ChangedNamespaces, DiscoveryLog, ErrorLogEntry, SmartLog};
use crate::reservation::{ReservationCommand, ReservationNotification, ReservationStatus};
use crate::{Cqe, Sqe};

/// Identify Controller and its derived values.
pub fn identify_controller(data: &[u8]) {
    if let Ok(id) = IdentifyController::parse(data) {
        assert_eq!(IdentifyController::parse(&id.to_bytes()), Ok(id.clone()));
        let _ = (id.serial(), id.model(), id.firmware(), id.subsystem_nqn(), id.in_capsule_bytes());
        let _ = (id.max_transfer_bytes(12), id.ana_log_bytes(), id.keep_alive(5000));
    }
}

/// Identify Namespace and its derived values.
pub fn identify_namespace(data: &[u8]) {
    if let Ok(ns) = IdentifyNamespace::parse(data) {
        assert_eq!(IdentifyNamespace::parse(&ns.to_bytes()), Ok(ns.clone()));
        if let Ok(bytes) = ns.size_bytes() {
            assert_eq!(bytes / ns.lba_format().expect("a size has a format").block_bytes(), ns.nsze);
        }
    }
}

/// Lists and descriptors.
pub fn identify_lists(data: &[u8]) {
    if let Ok(list) = active_namespaces(data, 0) {
        assert!(list.windows(2).all(|w| w[0] < w[1]));
    }
    if let Ok(ids) = NamespaceIds::parse(data) {
        assert_eq!(NamespaceIds::parse(&ids.to_bytes()), Ok(ids));
    }
    if let Ok(changed) = ChangedNamespaces::parse(data) {
        let _ = changed.to_bytes();
    }
}

/// ANA log page.
pub fn log_ana(data: &[u8]) {
    if let Ok(log) = AnaLog::parse(data) {
        assert_eq!(AnaLog::parse(&log.to_bytes(false)), Ok(log));
    }
}

/// Discovery log page.
pub fn log_discovery(data: &[u8]) {
    if let Ok(log) = DiscoveryLog::parse(data) {
        let again = DiscoveryLog::parse(&log.to_bytes()).expect("what we build, we read");
        assert_eq!(again.entries.len(), log.entries.len());
    }
}

/// Health logs, entries of both queues and Connect data.
pub fn entries(data: &[u8]) {
    let _ = (SmartLog::parse(data), ErrorLogEntry::parse(data));
    if let Ok(sqe) = Sqe::parse(data) {
        let _ = (format!("{sqe:?}"), sqe.property(), sqe.data_direction(), sqe.log_length());
        let _ = (sqe.slba(), sqe.nlb_z(), sqe.fua(), sqe.deac(), sqe.dsm_ranges_z(), sqe.dsm_deallocate());
        let _ = (sqe.cns(), sqe.cntid(), sqe.lid(), sqe.lsp(), sqe.rae(), sqe.log_offset(), sqe.fid());
        let _ = (sqe.connect_qid(), sqe.connect_sqsize_z(), sqe.connect_kato_ms(), sqe.property_value());
        assert_eq!(Sqe::parse(sqe.as_bytes()), Ok(sqe));
        if let Ok(command) = ReservationCommand::of(&sqe) {
            assert_eq!(ReservationCommand::of(&command.to_sqe(sqe.cid(), sqe.nsid())), Ok(command));
        }
    }
    if let Ok(cqe) = Cqe::parse(data) {
        assert_eq!(&cqe.to_bytes()[..], &data[..16]);
        let _ = (cqe.status.to_string(), ConnectResponse::from_cqe(&cqe));
        let event = AsyncEvent::from_dw0(cqe.dw0());
        assert_eq!(AsyncEvent::from_dw0(event.to_dw0()), event);
    }
    if let Ok(status) = ReservationStatus::parse(data) {
        let again = ReservationStatus::parse(&status.to_bytes()).expect("what we build, we read");
        assert_eq!(again, status);
    }
    let _ = ReservationNotification::parse(data);
    if let Ok(connect) = ConnectRequest::parse(data)
        && let Some(hostnqn) = connect.hostnqn.clone()
    {
        let ConnectRequest { host_id, cntlid, subnqn, .. } = connect.clone();
        let sent = ConnectData { host_id, cntlid, subnqn, hostnqn }.to_bytes();
        assert_eq!(ConnectRequest::parse(&sent), Ok(connect));
    }
}
