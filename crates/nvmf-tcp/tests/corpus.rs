//! Replays the committed fuzz corpus: `fuzz/replay.rs`.
#![forbid(unsafe_code)]

#[path = "../../../fuzz/replay.rs"]
mod replay;

replay::targets!(polypath_nvmf_tcp: common_header, icreq, icresp, h2c_term, c2h_term, capsule_cmd, capsule_resp, h2c_data, c2h_data, r2t, host_connection);
