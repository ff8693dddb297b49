//! What the guest is told about the disk: feature bits and configuration space (virtio 1.2 sections 5.2.3 and 5.2.4).

use crate::request::MAX_RANGES;
use crate::wire::MAX_CONFIG;
use polypath_block::{DeviceInfo, Geometry, Op};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VHOST_F_LOG_ALL`: what we write to guest memory is logged.
pub(crate) const F_LOG_ALL: u64 = 1 << 26;
/// Bytes of the configuration space that mean something to us; what lies behind reads as zeroes.
const CONFIG_LEN: usize = 60;
/// Offset of the writeback field, the only one a driver may write.
const WRITEBACK: usize = 32;
/// Bytes of a virtio sector.
const SECTOR: u64 = 512;

/// A feature bit as a mask.
pub(crate) const fn bit(n: u32) -> u64 {
    1 << n
}

/// What was told once stays so, while a front-end may remember it; only the capacity follows the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigSpace {
    pub(crate) geometry: Geometry,
    pub(crate) read_only: bool,
    seg_max: u32,
    size_max: Option<u32>,
    num_queues: u16,
    optimal_blocks: u32,
    /// Largest Discard in blocks and its granularity; Write Zeroes.
    discard: Option<(u32, u32)>,
    write_zeroes: Option<u32>,
}

impl ConfigSpace {
    pub(crate) fn new(info: &DeviceInfo, read_only: bool, seg_max: u32, num_queues: u16) -> ConfigSpace {
        let limits = &info.limits;
        let read_only = read_only || limits.read_only;
        let some = |n: u32| (n > 0 && !read_only).then_some(n);
        let largest = limits.max_blocks(Op::Read, info.geometry.block_size);
        ConfigSpace {
            geometry: info.geometry,
            read_only,
            seg_max,
            // A hint only: what is larger is split below. Linux refuses less than a page.
            size_max: Some(largest)
                .filter(|&blocks| blocks != u32::MAX)
                .and_then(|blocks| blocks.checked_mul(info.geometry.block_size))
                .filter(|&bytes| bytes >= 65536),
            num_queues,
            optimal_blocks: limits.optimal_blocks,
            discard: some(limits.max_discard_blocks).map(|n| (n, limits.discard_granularity_blocks.max(1))),
            write_zeroes: some(limits.max_write_zeroes_blocks),
        }
    }

    /// Feature bits on offer.
    pub(crate) fn features(&self) -> u64 {
        let mut features = bit(VIRTIO_F_VERSION_1)
            | bit(VIRTIO_F_RING_PACKED)
            | bit(VIRTIO_F_RING_RESET)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX)
            | F_PROTOCOL_FEATURES
            | F_LOG_ALL
            | bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_BLK_F_MQ);
        let optional = [
            (self.size_max.is_some(), VIRTIO_BLK_F_SIZE_MAX),
            (self.read_only, VIRTIO_BLK_F_RO),
            (self.discard.is_some(), VIRTIO_BLK_F_DISCARD),
            (self.write_zeroes.is_some(), VIRTIO_BLK_F_WRITE_ZEROES),
        ];
        for (offered, feature) in optional {
            if offered {
                features |= bit(feature);
            }
        }
        features
    }

    /// `size` bytes of configuration space at `offset`; `None` when they reach beyond its 256 bytes.
    pub(crate) fn read(&self, offset: u32, size: u32, writeback: bool) -> Option<Vec<u8>> {
        if offset.checked_add(size)? > MAX_CONFIG {
            return None;
        }
        let mut all = self.octets(writeback).to_vec();
        all.resize(MAX_CONFIG as usize, 0);
        Some(all[offset as usize..(offset + size) as usize].to_vec())
    }

    /// What a write of `data` at `offset` makes of the writeback field; `None` when the write is not allowed.
    /// A front-end may write more than that field (QEMU does), as long as nothing else changes.
    pub(crate) fn write(&self, offset: u32, data: &[u8], writeback: bool) -> Option<bool> {
        let mut wanted = self.read(offset, u32::try_from(data.len()).ok()?, writeback)?;
        let at = WRITEBACK.checked_sub(offset as usize).filter(|&at| at < data.len())?;
        let value = data[at];
        wanted[at] = value;
        (wanted == data && value <= 1).then_some(value == 1)
    }

    fn octets(&self, writeback: bool) -> [u8; CONFIG_LEN] {
        let spb = u64::from(self.geometry.block_size) / SECTOR;
        let sectors =
            |blocks: u32| u32::try_from(u64::from(blocks) * spb).unwrap_or(u32::MAX / spb as u32 * spb as u32);
        let mut out = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.geometry.blocks.saturating_mul(spb)).to_le_bytes());
        put(8, &self.size_max.unwrap_or(0).to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.geometry.block_size.to_le_bytes());
        // Topology: physical blocks are logical ones, aligned; sizes in logical blocks.
        put(26, &1u16.to_le_bytes());
        put(28, &self.optimal_blocks.to_le_bytes());
        put(WRITEBACK, &[u8::from(writeback)]);
        put(34, &self.num_queues.to_le_bytes());
        if let Some((most, granularity)) = self.discard {
            put(36, &sectors(most).to_le_bytes());
            put(40, &(MAX_RANGES as u32).to_le_bytes());
            put(44, &sectors(granularity).to_le_bytes());
        }
        if let Some(most) = self.write_zeroes {
            put(48, &sectors(most).to_le_bytes());
            put(52, &(MAX_RANGES as u32).to_le_bytes());
            put(56, &[1]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Access, Identity, Limits};

    fn info(limits: Limits, block_size: u32) -> DeviceInfo {
        DeviceInfo {
            geometry: Geometry { block_size, blocks: 1000 },
            limits,
            identity: Identity::default(),
            access: Access::Optimized,
            max_queues: 4,
            max_depth: 128,
        }
    }

    #[test]
    fn fields_are_where_the_standard_has_them() {
        let limits = Limits { max_transfer_bytes: 131072, optimal_blocks: 8, ..Limits::UNLIMITED };
        let config_space = ConfigSpace::new(&info(limits, 4096), false, 126, 3);
        let c = config_space.read(0, 60, true).unwrap();
        let word = |at: usize| u32::from_le_bytes(c[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (8000, 0));
        assert_eq!((word(8), word(12), word(20)), (131072, 126, 4096));
        assert_eq!((c[24], c[25], c[26], word(28)), (0, 0, 1, 8));
        assert_eq!((c[32], c[34]), (1, 3));
        assert_eq!((word(36), word(40), word(44)), (u32::MAX - 7, 16, 8));
        assert_eq!((word(48), word(52), c[56]), (u32::MAX - 7, 16, 1));
        assert_eq!(config_space.features() & bit(VIRTIO_BLK_F_RO), 0);
        assert_eq!(config_space.read(60, 196, true), Some(vec![0; 196]));
        assert_eq!(config_space.read(60, 197, true), None);
        assert_eq!(config_space.read(u32::MAX, 2, true), None);
    }

    #[test]
    fn a_read_only_disk_offers_no_changes() {
        let features = ConfigSpace::new(&info(Limits::UNLIMITED, 512), true, 126, 1).features();
        assert_ne!(features & bit(VIRTIO_BLK_F_RO), 0);
        assert_eq!(features & (bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)), 0);
        assert_eq!(features & bit(VIRTIO_BLK_F_SIZE_MAX), 0);
    }

    #[test]
    fn only_writeback_can_be_written() {
        let config_space = ConfigSpace::new(&info(Limits::UNLIMITED, 512), false, 126, 1);
        assert_eq!(config_space.write(32, &[0], true), Some(false));
        assert_eq!(config_space.write(32, &[2], true), None);
        assert_eq!(config_space.write(31, &[0], true), None);
        assert_eq!(config_space.write(0, &[9; 60], true), None);
        let mut whole = config_space.read(0, 60, true).unwrap();
        whole[32] = 0;
        assert_eq!(config_space.write(0, &whole, true), Some(false));
        assert_eq!(config_space.write(u32::MAX, &[0, 0], true), None);
    }
}
