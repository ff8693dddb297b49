//! What the three devices have in common: information, closing, a bounded list of completions.

use crate::error::LocalError;
use polypath_block::{
    CacheDomain, Completion, DeviceInfo, DeviceState, DiskUri, Done, Geometry, Identifier, Identity, OpenError, Proof,
    QueueConfig, Status, UriError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Most requests that one queue of a near disk holds.
pub(crate) const MAX_DEPTH: u16 = 4096;

/// The control plane of a disk that is always there.
pub(crate) struct Base {
    name: String,
    info: Arc<DeviceInfo>,
    version: AtomicU64,
    closed: AtomicBool,
    queues: AtomicU32,
}

impl Base {
    pub(crate) fn new(name: String, info: DeviceInfo) -> Self {
        let (version, queues) = (AtomicU64::new(1), AtomicU32::new(0));
        Base { name, info: Arc::new(info), version, closed: AtomicBool::new(false), queues }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn state(&self) -> DeviceState {
        if self.closed.load(Ordering::Acquire) && self.queues.load(Ordering::Acquire) == 0 {
            return DeviceState::Gone { reason: "closed".into() };
        }
        DeviceState::Live(self.info.clone())
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a queue in; says how deep it is to be.
    pub(crate) fn open(self: &Arc<Self>, config: QueueConfig) -> Result<(OpenQueue, u16), OpenError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(OpenError::Gone { name: self.name.clone(), reason: "it was closed".into() });
        }
        self.queues.fetch_add(1, Ordering::AcqRel);
        Ok((OpenQueue(self.clone()), config.depth.clamp(1, MAX_DEPTH)))
    }
}

/// An open queue, counted out when dropped.
pub(crate) struct OpenQueue(Arc<Base>);

impl OpenQueue {
    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.0.info
    }
}

impl Drop for OpenQueue {
    fn drop(&mut self) {
        if self.0.queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.version.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Completions that wait for the next poll, as they will be told. As many as the queue is deep: it never grows.
pub(crate) struct Completions {
    ready: Vec<Completion>,
}

impl Completions {
    pub(crate) fn new(depth: u16) -> Self {
        Completions { ready: Vec::with_capacity(depth.into()) }
    }

    #[inline]
    pub(crate) fn push(&mut self, tag: u64, status: Status) {
        self.ready.push(Completion { tag, status, proof: Proof::Answered });
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    pub(crate) fn move_to(&mut self, done: &mut Done) {
        done.completions.append(&mut self.ready);
    }
}

/// The block size option, checked.
pub(crate) fn block_size(uri: &DiskUri, default: u32) -> Result<u32, UriError> {
    let bs: u32 = uri.option_number("bs", default)?;
    if !bs.is_power_of_two() || !(512..=65536).contains(&bs) {
        return Err(uri.error("option bs", format!("{bs} is not a power of two from 512 to 65536")));
    }
    Ok(bs)
}

/// The geometry of `bytes` bytes; what does not fill a block is left out.
pub(crate) fn geometry(name: &str, bytes: u64, block_size: u32) -> Result<Geometry, LocalError> {
    let geometry = Geometry { block_size, blocks: bytes / u64::from(block_size) };
    geometry.check().map_err(|source| LocalError::Shape { name: name.into(), source })?;
    if geometry.blocks == 0 {
        let problem = format!("{bytes} bytes are less than one block of {block_size}");
        return Err(LocalError::Unfit { name: name.into(), problem });
    }
    Ok(geometry)
}

/// The identity that the options `uuid` and `nguid` state; none without them.
pub(crate) fn identity(uri: &DiskUri, cache_domain: String) -> Result<Identity, UriError> {
    let mut identifiers = Vec::new();
    if let Some(text) = uri.option("nguid") {
        identifiers.push(Identifier::Nguid(sixteen_bytes(uri, "nguid", text)?));
    }
    if let Some(text) = uri.option("uuid") {
        identifiers.push(Identifier::Uuid(sixteen_bytes(uri, "uuid", text)?));
    }
    Ok(Identity { identifiers, cache_domain: CacheDomain(cache_domain) })
}

fn sixteen_bytes(uri: &DiskUri, key: &str, text: &str) -> Result<[u8; 16], UriError> {
    let wrong =
        || uri.error(&format!("option {key}"), format!("\"{text}\" is not 32 hexadecimal digits, not all zero"));
    let mut bytes = [0u8; 16];
    let mut digits = 0;
    for c in text.chars().filter(|c| *c != '-') {
        let digit = c.to_digit(16).ok_or_else(wrong)? as u8;
        *bytes.get_mut(digits / 2).ok_or_else(wrong)? |= digit << (4 * (1 - digits % 2));
        digits += 1;
    }
    if digits == 32 && bytes != [0; 16] { Ok(bytes) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_read_digit_by_digit() {
        let uri: DiskUri = "ram://1MiB?uuid=00112233-4455-6677-8899-aabbccddeeff&nguid=1".parse().unwrap();
        let text = uri.option("uuid").unwrap();
        let want = [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(sixteen_bytes(&uri, "uuid", text), Ok(want));
        for wrong in ["1", "", "0".repeat(32).as_str(), "1".repeat(33).as_str(), "g".repeat(32).as_str()] {
            assert!(sixteen_bytes(&uri, "uuid", wrong).is_err(), "{wrong}");
        }
        assert!(identity(&uri, String::new()).unwrap_err().to_string().contains("nguid"));
    }

    #[test]
    fn block_sizes_are_checked() {
        let bs = |s: &str| block_size(&s.parse().unwrap(), 512);
        assert_eq!((bs("ram://1MiB"), bs("ram://1MiB?bs=4096")), (Ok(512), Ok(4096)));
        for wrong in ["ram://1MiB?bs=0", "ram://1MiB?bs=513", "ram://1MiB?bs=131072", "ram://1MiB?bs=x"] {
            assert!(bs(wrong).unwrap_err().to_string().contains("bs"), "{wrong}");
        }
        assert!(geometry("x", 4095, 4096).is_err());
    }
}
