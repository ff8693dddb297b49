//! How to connect, and what is said when that fails.

use polypath_block::{DiskUri, Endpoint, UriError};
use std::time::Duration;

/// How to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientConfig {
    /// Socket of the back-end.
    pub path: String,
    /// Queues that may be open at a time (`queues`, 1). One that is dropped is given back.
    pub queues: u16,
    /// Entries a ring: a power of two from 4 to 32768 (`queue_size`, 256). A request takes three or more.
    pub queue_size: u16,
    /// Do not ask for write access (`readonly`, off).
    pub read_only: bool,
    /// Longest time for the answer to a control message, the first of them included (`control_timeout_ms`, 5000). A back-end that is
    /// silent for longer is given up.
    pub control_timeout: Duration,
    /// Longest time for one I/O at the back-end (`io_timeout_ms`, 10000, as the NVMe/TCP driver has it). vhost-user has no abort: when it has passed,
    /// the back-end is given up.
    pub io_timeout: Duration,
    /// How long a back-end may still carry out changes after we have gone, whatever ended us (`fence_ms`, 30000, as the NVMe/TCP driver has it
    /// for controllers that do not say). Nothing in the protocol bounds it: it is whoever runs the back-end who knows.
    pub fence: Duration,
}

impl ClientConfig {
    /// One queue of 256 entries, 5 s for a control message, 10 s for an I/O and 30 s for what it leaves behind, on the socket `path`.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        ClientConfig {
            path: path.into(),
            queues: 1,
            queue_size: 256,
            read_only: false,
            control_timeout: Duration::from_secs(5),
            io_timeout: Duration::from_secs(10),
            fence: Duration::from_secs(30),
        }
    }

    /// Reads `vhost-user-blk:///path?queues=1&queue_size=256&readonly=off&control_timeout_ms=5000&io_timeout_ms=10000&fence_ms=30000`.
    ///
    /// # Errors
    /// Names the part of the URI that is wrong.
    pub fn from_uri(uri: &DiskUri) -> Result<Self, UriError> {
        uri.check_options(&["queues", "queue_size", "readonly", "control_timeout_ms", "io_timeout_ms", "fence_ms"])?;
        let Endpoint::Path { path, .. } = &uri.endpoint else {
            return Err(uri.error("path", "missing; expected vhost-user-blk:///path/to.sock"));
        };
        let default = ClientConfig::new(path.clone());
        let milliseconds = |key: &str, default: Duration, least: u64| {
            let ms = uri.option_number(key, default.as_millis() as u64)?;
            match (least..=86_400_000).contains(&ms) {
                true => Ok(Duration::from_millis(ms)),
                false => Err(uri.error(&format!("option {key}"), format!("is {ms}; expected {least} to 86400000"))),
            }
        };
        let config = ClientConfig {
            queues: uri.option_number("queues", default.queues)?,
            queue_size: uri.option_number("queue_size", default.queue_size)?,
            read_only: uri.option_bool("readonly", default.read_only)?,
            control_timeout: milliseconds("control_timeout_ms", default.control_timeout, 10)?,
            io_timeout: milliseconds("io_timeout_ms", default.io_timeout, 10)?,
            fence: milliseconds("fence_ms", default.fence, 0)?,
            ..default
        };
        config.check().map_err(|(what, problem)| uri.error(&format!("option {what}"), problem))?;
        Ok(config)
    }

    /// Are the numbers ones that a ring can have? Says which is not, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let size = self.queue_size;
        if !size.is_power_of_two() || !(4..=32768).contains(&size) {
            return Err(("queue_size", format!("is {size}; expected a power of two from 4 to 32768")));
        }
        match self.queues {
            1..=256 => Ok(()),
            n => Err(("queues", format!("is {n}; expected 1 to 256"))),
        }
    }
}

/// A back-end that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("vhost-user-blk back-end {path}: {step}: {problem}")]
pub struct ClientError {
    /// Socket of the back-end.
    pub path: String,
    /// What was being done.
    pub step: &'static str,
    /// What went wrong.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_checked() {
        let read = |uri: &str| ClientConfig::from_uri(&uri.parse().unwrap()).map_err(|e| e.to_string());
        assert_eq!(read("vhost-user-blk:///a.sock"), Ok(ClientConfig::new("/a.sock")));
        let full = "vhost-user-blk:///a?queues=2&queue_size=64&readonly=on&control_timeout_ms=100&io_timeout_ms=200&fence_ms=0";
        let config = ClientConfig {
            path: "/a".into(),
            queues: 2,
            queue_size: 64,
            read_only: true,
            control_timeout: Duration::from_millis(100),
            io_timeout: Duration::from_millis(200),
            fence: Duration::ZERO,
        };
        assert_eq!(read(full), Ok(config));
        for (option, part) in [
            ("queues=0", "queues"),
            ("queues=257", "queues"),
            ("queue_size=100", "queue_size"),
            ("queue_size=2", "queue_size"),
            ("io_timeout_ms=9", "io_timeout_ms"),
            ("fence_ms=86400001", "fence_ms"),
            ("control_timeout_ms=soon", "control_timeout_ms"),
            ("depth=3", "depth"),
        ] {
            let said = read(&format!("vhost-user-blk:///a?{option}")).unwrap_err();
            assert!(said.contains(part), "{option}: {said}");
        }
    }
}
