//! Commands in the words of a disk's protocol, as RPC asks for them.

use super::Daemon;
use polypath::block::{PassthroughRequest, PassthroughStatus};
use polypath::{block_on, passthrough};
use serde_json::{Value, json};
use std::time::Duration;

impl Daemon {
    /// Sends it over one path of the disk.
    pub(crate) fn passthrough(
        &self,
        disk: &str,
        request: PassthroughRequest,
        limit: Duration,
    ) -> Result<Value, String> {
        let group = self.disk(disk)?.group;
        let command = format!("{:02x?}", request.command);
        let changes = request.changes;
        let answer = block_on(passthrough(&*group, request, limit)).map_err(|e| e.to_string())?;
        if changes {
            tracing::info!(disk, command, status = ?answer.status, "a command that may change something was passed through");
        }
        let (good, data) = (answer.status.is_good(), hex(&answer.data));
        Ok(match answer.status {
            PassthroughStatus::Scsi { status, sense } => {
                json!({ "good": good, "status": status, "sense": hex(&sense), "data": data })
            }
            PassthroughStatus::Nvme { status, dw0 } => {
                json!({ "good": good, "status": status, "dw0": dw0, "data": data })
            }
        })
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|b| format!("{b:02x}")).collect()
}
