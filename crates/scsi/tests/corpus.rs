//! Replays the committed fuzz corpus: `fuzz/replay.rs`.
#![forbid(unsafe_code)]

#[path = "../../../fuzz/replay.rs"]
mod replay;

replay::targets!(polypath_scsi: scsi_command, scsi_data);
