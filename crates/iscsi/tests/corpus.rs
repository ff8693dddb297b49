//! Replays the committed fuzz corpus: `fuzz/replay.rs`.
#![forbid(unsafe_code)]

#[path = "../../../fuzz/replay.rs"]
mod replay;

replay::targets!(polypath_iscsi: iscsi_pdu, iscsi_text, iscsi_login_initiator, iscsi_login_target, iscsi_discovery, iscsi_connection);
