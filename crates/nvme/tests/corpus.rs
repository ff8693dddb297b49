//! Replays the committed fuzz corpus: `fuzz/replay.rs`.
#![forbid(unsafe_code)]

#[path = "../../../fuzz/replay.rs"]
mod replay;

replay::targets!(polypath_nvme: identify_controller, identify_namespace, identify_lists, log_ana, log_discovery, entries);
