//! Commands in the words of a disk's protocol, as RPC asks for them.

use super::{Daemon, no_disk};
use crate::resources::{Disk, lock};
use polypath::block::{PassthroughRequest, PassthroughStatus};
use polypath::{block_on, passthrough};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

impl Daemon {
    /// Sends it over one path of the disk. That it may change something is written down first, as of a socket: killed in the middle we leave
    /// behind what lands as late as a write.
    pub(crate) fn passthrough(
        &self,
        disk: &str,
        request: PassthroughRequest,
        limit: Duration,
    ) -> Result<Value, String> {
        let found = self.disk(disk)?;
        let command = format!("{:02x?}", request.command);
        let changes = request.changes;
        if changes {
            self.begin_passing(&found)?;
        }
        // It is quiet when it is answered, whatever is answered.
        let answer = block_on(passthrough(&*found.group, request, limit));
        if changes {
            self.end_passing(&found);
        }
        let answer = answer.map_err(|e| e.to_string())?;
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

    /// A command that may change the disk is about to be passed through.
    ///
    /// # Errors
    /// It must not be: that cannot be written down, or what a daemon before this one has sent may still land on top of it.
    pub(super) fn begin_passing(&self, disk: &Disk) -> Result<(), String> {
        let name = &disk.config.name;
        let begun = {
            let alone = lock(&self.changing);
            self.end_quiet(&alone);
            if lock(&self.state).ending {
                return Err("the daemon is ending; nothing is sent any more".into());
            }
            // It may have been deleted, or made anew.
            if !self.disk(name).is_ok_and(|there| Arc::ptr_eq(&there.group, &disk.group)) {
                return Err(no_disk(name));
            }
            disk.ledger.begin_passing(self.state_dir(name)?, &disk.group)
        };
        let why = match begun {
            Ok(left) if left.is_zero() => return Ok(()),
            Ok(left) => format!(
                "disk \"{name}\": changes wait {} ms for what a daemon before this one may have in flight; nothing was sent, try again then",
                left.as_millis()
            ),
            Err(why) => why,
        };
        self.end_passing(disk);
        Err(why)
    }

    /// It is over.
    pub(super) fn end_passing(&self, disk: &Disk) {
        let _alone = lock(&self.changing);
        disk.ledger.end_passing();
        let unserved = {
            let state = lock(&self.state);
            !state.ending && state.services_of(&disk.config.name).next().is_none()
        };
        if unserved {
            self.leave(disk);
        }
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|b| format!("{b:02x}")).collect()
}
