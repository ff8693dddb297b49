//! virtio-blk (virtio 1.2, section 5.2): what a back-end says of its disk, and what requests look like.

use crate::config::ClientConfig;
use crate::connection::{CONFIG_LEN, Offer};
use crate::ring::Header;
use polypath_block::{Access, Code, DeviceInfo, Flags, Geometry, Identity, Io, Limits, Op, Status};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// Bytes of a sector, which virtio-blk counts in whatever the block size is.
const SECTOR: u64 = 512;
/// Descriptors of a request beside its data, at most.
const BESIDE_DATA: u32 = 3;

/// Features that we can do.
pub(crate) const WANTED: u64 = bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | bit(VIRTIO_BLK_F_SIZE_MAX)
    | bit(VIRTIO_BLK_F_SEG_MAX)
    | bit(VIRTIO_BLK_F_RO)
    | bit(VIRTIO_BLK_F_BLK_SIZE)
    | bit(VIRTIO_BLK_F_FLUSH)
    | bit(VIRTIO_BLK_F_TOPOLOGY)
    | bit(VIRTIO_BLK_F_CONFIG_WCE)
    | bit(VIRTIO_BLK_F_MQ)
    | bit(VIRTIO_BLK_F_DISCARD)
    | bit(VIRTIO_BLK_F_WRITE_ZEROES);

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What was agreed, as far as requests and rings depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Abilities {
    /// Rings carry event indices.
    pub(crate) event_idx: bool,
    /// There is a FLUSH request. Where there is none, what was written is durable.
    pub(crate) flush: bool,
}

impl Abilities {
    pub(crate) fn of(features: u64) -> Abilities {
        let has = |feature: u32| features & bit(feature) != 0;
        Abilities { event_idx: has(VIRTIO_RING_F_EVENT_IDX), flush: has(VIRTIO_BLK_F_FLUSH) }
    }
}

/// What the back-end offers, as our contract puts it.
///
/// # Errors
/// A sentence for people: what of it cannot be used, and what to do.
pub(crate) fn describe(offer: &Offer, config: &ClientConfig) -> Result<DeviceInfo, String> {
    let has = |feature: u32| offer.features & bit(feature) != 0;
    let space = Space(&offer.config);
    if !has(VIRTIO_F_VERSION_1) {
        return Err("the back-end is of legacy virtio only; we need VIRTIO_F_VERSION_1".into());
    }
    if has(VIRTIO_BLK_F_RO) && !config.read_only {
        return Err("the back-end is read-only; open it with readonly=on".into());
    }
    let granted = if has(VIRTIO_BLK_F_MQ) { space.u16(34).max(1) } else { 1 };
    let granted = u64::from(granted).min(offer.queues.unwrap_or(1).max(1));
    if u64::from(config.queues) > granted {
        return Err(format!("the back-end has {granted} queues, not {}; open it with queues={granted}", config.queues));
    }
    let block_size = if has(VIRTIO_BLK_F_BLK_SIZE) { space.u32(20) } else { 512 };
    let geometry = Geometry { block_size, blocks: space.u64(0).saturating_mul(SECTOR) / u64::from(block_size.max(1)) };
    geometry.check().map_err(|e| format!("its geometry makes no sense: {e}"))?;
    let blocks_of = |sectors: u32| (u64::from(sectors) * SECTOR / u64::from(block_size)) as u32;
    let if_has = |feature, sectors| if has(feature) { blocks_of(sectors) } else { 0 };
    // QEMU's storage daemon offers the bit and leaves the number zero.
    let longest = if has(VIRTIO_BLK_F_SIZE_MAX) { space.u32(8) } else { 0 };
    if (1..block_size).contains(&longest) {
        return Err(format!("its longest segment ({longest} bytes) is shorter than a block ({block_size} bytes)"));
    }
    let segments = if has(VIRTIO_BLK_F_SEG_MAX) { space.u32(12).max(1) } else { 1 };
    let limits = Limits {
        // The longest segment bounds the whole, so that none of its pieces can be longer.
        max_transfer_bytes: longest / block_size * block_size,
        max_segments: segments.min(u32::from(config.queue_size) - BESIDE_DATA),
        max_write_zeroes_blocks: if_has(VIRTIO_BLK_F_WRITE_ZEROES, space.u32(48)),
        max_discard_blocks: if_has(VIRTIO_BLK_F_DISCARD, space.u32(36)),
        discard_granularity_blocks: if_has(VIRTIO_BLK_F_DISCARD, space.u32(44)).max(1),
        write_cache: if has(VIRTIO_BLK_F_CONFIG_WCE) { space.u8(32) != 0 } else { has(VIRTIO_BLK_F_FLUSH) },
        fua: false,
        compare: false,
        max_compare_and_write_blocks: 0,
        read_only: config.read_only,
        ..Limits::UNLIMITED
    };
    Ok(DeviceInfo {
        geometry,
        limits,
        identity: Identity::default(),
        access: Access::Optimized,
        max_queues: config.queues,
        max_depth: (config.queue_size / 3).max(1),
    })
}

/// The header of the request for `part`, on a disk of `block_size` bytes a block; `None` for an operation that there is no request for.
pub(crate) fn header(part: &Io, block_size: u32) -> Option<Header> {
    let sectors = u64::from(block_size) / SECTOR;
    let start = part.lba * sectors;
    let range = |flags| Some((start, (u64::from(part.blocks) * sectors) as u32, flags));
    let plain = |kind, sector| Header { kind, sector, range: None, data_in: part.op.data_in() };
    Some(match part.op {
        Op::Read => plain(VIRTIO_BLK_T_IN, start),
        Op::Write => plain(VIRTIO_BLK_T_OUT, start),
        Op::Flush => plain(VIRTIO_BLK_T_FLUSH, 0),
        Op::Discard => Header { range: range(0), ..plain(VIRTIO_BLK_T_DISCARD, 0) },
        Op::WriteZeroes => {
            let unmap = part.flags.contains(Flags::UNMAP);
            let flags = if unmap { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
            Header { range: range(flags), ..plain(VIRTIO_BLK_T_WRITE_ZEROES, 0) }
        }
        Op::Compare | Op::CompareAndWrite => return None,
    })
}

/// What a status byte means.
pub(crate) fn status_of(byte: u8) -> Status {
    let detail = u32::from(byte);
    match detail {
        VIRTIO_BLK_S_OK => Status::OK,
        VIRTIO_BLK_S_IOERR => Status::with_detail(Code::Aborted, detail),
        VIRTIO_BLK_S_UNSUPP => Status::with_detail(Code::Unsupported, detail),
        _ => Status::with_detail(Code::PathProtocol, detail),
    }
}

/// `struct virtio_blk_config`, little-endian.
struct Space<'a>(&'a [u8; CONFIG_LEN as usize]);

impl Space<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at + n])
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(features: &[u32], change: impl FnOnce(&mut [u8; 60])) -> Offer {
        let mut config = [0; 60];
        config[..8].copy_from_slice(&4096u64.to_le_bytes());
        change(&mut config);
        let features = features.iter().fold(bit(VIRTIO_F_VERSION_1), |f, n| f | bit(*n));
        Offer { features, queues: Some(4), slots: 8, config }
    }

    fn config() -> ClientConfig {
        ClientConfig::new("/s")
    }

    #[test]
    fn a_plain_disk() {
        let info = describe(&offer(&[], |_| {}), &config()).unwrap();
        assert_eq!(info.geometry, Geometry { block_size: 512, blocks: 4096 });
        assert_eq!((info.max_queues, info.max_depth), (1, 85));
        let l = info.limits;
        assert_eq!((l.max_segments, l.max_transfer_bytes, l.write_cache), (1, 0, false));
        assert_eq!((l.max_discard_blocks, l.max_write_zeroes_blocks), (0, 0));
        let unsaid = describe(&offer(&[VIRTIO_BLK_F_SIZE_MAX], |_| {}), &config()).unwrap();
        assert_eq!(unsaid.limits.max_transfer_bytes, 0);
    }

    #[test]
    fn a_disk_with_everything() {
        let all = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ];
        let told = offer(&all, |c| {
            let mut put = |at: usize, v: u32| c[at..at + 4].copy_from_slice(&v.to_le_bytes());
            put(8, 10_000);
            put(12, 1000);
            put(20, 4096);
            put(36, 80);
            put(44, 16);
            put(48, 160);
            (c[32], c[34]) = (1, 2);
        });
        let info = describe(&told, &ClientConfig { queues: 2, ..config() }).unwrap();
        let l = info.limits;
        assert_eq!(info.geometry, Geometry { block_size: 4096, blocks: 512 });
        assert_eq!((l.max_transfer_bytes, l.max_segments, l.write_cache), (8192, 253, true));
        let got = (l.max_discard_blocks, l.discard_granularity_blocks, l.max_write_zeroes_blocks);
        assert_eq!(got, (10, 2, 20));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let said = |offer: Offer, config: ClientConfig| describe(&offer, &config).unwrap_err();
        assert!(said(offer(&[VIRTIO_BLK_F_RO], |_| {}), config()).contains("readonly=on"));
        assert!(said(Offer { features: 0, ..offer(&[], |_| {}) }, config()).contains("legacy"));
        let three = ClientConfig { queues: 3, ..config() };
        assert!(said(offer(&[VIRTIO_BLK_F_MQ], |c| c[34] = 2), three.clone()).contains("queues=2"));
        assert!(said(offer(&[], |_| {}), three).contains("queues=1"));
        assert!(said(offer(&[VIRTIO_BLK_F_BLK_SIZE], |_| {}), config()).contains("block_size"));
        assert!(said(offer(&[VIRTIO_BLK_F_SIZE_MAX], |c| c[8] = 255), config()).contains("255 bytes"));
    }

    #[test]
    fn requests() {
        let at = |op| header(&Io { op, ..Io::range(1, Op::Discard, 5, 2) }, 4096);
        let sector = |op| at(op).map(|h| (h.kind, h.sector, h.range, h.data_in));
        assert_eq!(sector(Op::Read), Some((0, 40, None, true)));
        assert_eq!(sector(Op::Write), Some((1, 40, None, false)));
        assert_eq!(sector(Op::Discard), Some((11, 0, Some((40, 16, 0)), false)));
        assert_eq!(sector(Op::WriteZeroes), Some((13, 0, Some((40, 16, 0)), false)));
        let unmap = Io::range(1, Op::WriteZeroes, 5, 2).with_flags(Flags::UNMAP);
        assert_eq!(header(&unmap, 512).and_then(|h| h.range), Some((5, 2, 1)));
        assert_eq!(header(&Io::flush(1), 4096).map(|h| (h.kind, h.sector)), Some((4, 0)));
        assert_eq!(sector(Op::Compare), None);
        let codes = [0, 1, 2, 0xff].map(|b| status_of(b).code);
        assert_eq!(codes, [Code::Ok, Code::Aborted, Code::Unsupported, Code::PathProtocol]);
    }
}
