//! Mode parameters: the data of MODE SENSE (SPC-4 7.5, SBC-3 6.5).

use crate::ParseError;
use crate::wire::{bit, flag, front, get8, get16, get24, get32, get64, len16, put16, put32};

/// Page codes (six bits).
pub mod page {
    /// Caching (SBC-3 6.5): [`super::Caching`].
    pub const CACHING: u8 = 0x08;
    /// Control (SPC-4 7.5.8): [`super::Control`].
    pub const CONTROL: u8 = 0x0a;
    /// Informational Exceptions Control (SBC-3 6.5): [`super::InformationalExceptions`].
    pub const INFORMATIONAL_EXCEPTIONS: u8 = 0x1c;
    /// All pages, in a request.
    pub const ALL: u8 = 0x3f;
}

/// One mode page as it is on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct ModePage {
    /// PAGE CODE, six bits.
    pub code: u8,
    /// SUBPAGE CODE; zero for pages that have none.
    pub subpage: u8,
    /// PS: the target can save it.
    pub saveable: bool,
    /// What follows the page's header.
    pub body: Vec<u8>,
}

/// Which header the data have: that of MODE SENSE(6) or (10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Header {
    /// 4 octets.
    Six,
    /// 8 octets.
    Ten,
}

impl Header {
    const fn len(self) -> usize {
        match self {
            Header::Six => 4,
            Header::Ten => 8,
        }
    }
}

/// The mode parameter block descriptor: blocks as they are formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct BlockDescriptor {
    /// NUMBER OF LOGICAL BLOCKS; zero or, in the short form, FFFFFFFFh do not tell.
    pub blocks: u64,
    /// LOGICAL BLOCK LENGTH in bytes; 24 bits in the short form.
    pub block_bytes: u32,
}

/// What MODE SENSE returns.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct ModeData {
    /// MEDIUM TYPE; zero for disks.
    pub medium_type: u8,
    /// WP: writes are refused, whether by a switch or by SWP (SBC-3 6.5.1, DEVICE-SPECIFIC PARAMETER).
    pub write_protected: bool,
    /// DPOFUA: DPO and FUA are honoured.
    pub dpo_fua: bool,
    /// The first block descriptor, if there is one. We ask for none.
    pub descriptor: Option<BlockDescriptor>,
    /// The pages that are there as a whole.
    pub pages: Vec<ModePage>,
    /// Octets that all of it takes: if there were fewer, ask again with as many.
    pub total_bytes: usize,
}

const WP: u8 = 7;
const DPOFUA: u8 = 4;
const LONGLBA: u8 = 0;
const SPF: u8 = 1 << 6;

impl ModeData {
    /// Reads the data. Targets are careless here, and only little is asked of this command: a page that is cut off is left out.
    ///
    /// # Errors
    /// [`ParseError::Short`] if the header or the block descriptors are not there.
    pub fn parse(bytes: &[u8], header: Header) -> Result<Self, ParseError> {
        let data = Self::parse_list(bytes, header)?;
        match bytes.get(..data.total_bytes) {
            Some(whole) if whole.len() < bytes.len() => Self::parse_list(whole, header),
            _ => Ok(data),
        }
    }

    /// Reads the parameter list of MODE SELECT, in which MODE DATA LENGTH is reserved (SPC-4 7.5.5): all of `bytes` counts, and
    /// `total_bytes` means nothing.
    ///
    /// # Errors
    /// As [`ModeData::parse`].
    pub fn parse_list(bytes: &[u8], header: Header) -> Result<Self, ParseError> {
        const WHAT: &str = "mode parameter data";
        let head = front(bytes, header.len(), WHAT)?;
        let (total_bytes, medium_type, device_specific, long, descriptors) = match header {
            Header::Six => (1 + usize::from(get8(head, 0)), get8(head, 1), 2, false, usize::from(get8(head, 3))),
            Header::Ten => {
                let long = bit(head, 4, LONGLBA);
                (2 + usize::from(get16(head, 0)), get8(head, 2), 3, long, usize::from(get16(head, 6)))
            }
        };
        let before_pages = front(bytes, header.len() + descriptors, WHAT)?;
        let d = before_pages.get(header.len()..).unwrap_or(&[]);
        let descriptor = match (long, d.len()) {
            (true, 16..) => Some(BlockDescriptor { blocks: get64(d, 0), block_bytes: get32(d, 12) }),
            (false, 8..) => Some(BlockDescriptor { blocks: get32(d, 0).into(), block_bytes: get24(d, 5) }),
            _ => None,
        };
        let mut data = ModeData {
            medium_type,
            write_protected: bit(head, device_specific, WP),
            dpo_fua: bit(head, device_specific, DPOFUA),
            descriptor,
            pages: Vec::new(),
            total_bytes,
        };
        let mut rest = bytes.get(before_pages.len()..).unwrap_or(&[]);
        while let Some((page, next)) = next_page(rest) {
            data.pages.push(page);
            rest = next;
        }
        Ok(data)
    }

    /// The octets, with a block descriptor in the short form if there is one; `total_bytes` does not count. Cut them to the allocation
    /// length.
    pub fn to_bytes(&self, header: Header) -> Vec<u8> {
        let mut b = vec![0; header.len()];
        if let Some(descriptor) = self.descriptor {
            let mut d = [0; 8];
            put32(&mut d, 4, descriptor.block_bytes & 0xff_ffff);
            put32(&mut d, 0, u32::try_from(descriptor.blocks).unwrap_or(u32::MAX));
            b.extend_from_slice(&d);
        }
        let descriptors = (b.len() - header.len()) as u8;
        self.pages.iter().for_each(|page| page.put(&mut b));
        let device_specific = flag(self.write_protected, WP) | flag(self.dpo_fua, DPOFUA);
        match header {
            Header::Six => {
                let length = u8::try_from(b.len() - 1).unwrap_or(u8::MAX);
                b.splice(..4, [length, self.medium_type, device_specific, descriptors]);
            }
            Header::Ten => {
                let length = len16(b.len() - 2);
                put16(&mut b, 0, length);
                (b[2], b[3], b[7]) = (self.medium_type, device_specific, descriptors);
            }
        }
        b
    }

    /// The page of this code, without subpage.
    pub fn page(&self, code: u8) -> Option<&ModePage> {
        self.pages.iter().find(|page| page.code == code && page.subpage == 0)
    }

    /// Its Caching page.
    pub fn caching(&self) -> Option<Caching> {
        self.page(page::CACHING).map(|page| Caching::read(&page.body))
    }

    /// Its Control page.
    pub fn control(&self) -> Option<Control> {
        self.page(page::CONTROL).map(|page| Control::read(&page.body))
    }

    /// Its Informational Exceptions Control page.
    pub fn informational_exceptions(&self) -> Option<InformationalExceptions> {
        self.page(page::INFORMATIONAL_EXCEPTIONS).map(|page| InformationalExceptions::read(&page.body))
    }
}

fn next_page(bytes: &[u8]) -> Option<(ModePage, &[u8])> {
    let first = *bytes.first()?;
    let (subpage, head, length) = match first & SPF {
        0 => (0, 2, usize::from(*bytes.get(1)?)),
        _ => (*bytes.get(1)?, 4, usize::from(get16(bytes.get(..4)?, 2))),
    };
    let (body, next) = bytes.get(head..)?.split_at_checked(length)?;
    Some((ModePage { code: first & 0x3f, subpage, saveable: first & 1 << 7 != 0, body: body.to_vec() }, next))
}

impl ModePage {
    /// A page without subpage that cannot be saved.
    fn new(code: u8, body: &[u8]) -> Self {
        ModePage { code, subpage: 0, saveable: false, body: body.to_vec() }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let first = flag(self.saveable, 7) | self.code & 0x3f;
        if self.subpage == 0 && self.body.len() <= 255 {
            out.extend_from_slice(&[first, self.body.len() as u8]);
        } else {
            let [high, low] = len16(self.body.len()).to_be_bytes();
            out.extend_from_slice(&[first | SPF, self.subpage, high, low]);
        }
        out.extend_from_slice(&self.body);
    }
}

/// The Caching mode page (08h; SBC-3 6.5), as far as a disk's user cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Caching {
    /// WCE: writes are answered before they are durable.
    pub write_cache: bool,
    /// RCD: reads do not come from the cache.
    pub read_cache_disabled: bool,
    /// NV_DIS: a non-volatile cache is not in use.
    pub non_volatile_disabled: bool,
}

impl Caching {
    fn read(b: &[u8]) -> Self {
        Caching { write_cache: bit(b, 0, 2), read_cache_disabled: bit(b, 0, 0), non_volatile_disabled: bit(b, 10, 0) }
    }

    /// The page, with everything else zero.
    pub fn to_page(self) -> ModePage {
        let mut b = [0; 0x12];
        b[0] = flag(self.write_cache, 2) | flag(self.read_cache_disabled, 0);
        b[10] = flag(self.non_volatile_disabled, 0);
        ModePage::new(page::CACHING, &b)
    }
}

/// The Control mode page (0Ah; SPC-4 7.5.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Control {
    /// TST: task sets, three bits: 0 one for all initiator ports, 1 one for each.
    pub task_sets: u8,
    /// D_SENSE: sense data come in descriptor format.
    pub descriptor_sense: bool,
    /// QUEUE ALGORITHM MODIFIER: 0 keeps the order of reads and writes of one block, 1 does not need to.
    pub queue_algorithm: u8,
    /// QERR: what happens to other commands when one ends with CHECK CONDITION, two bits: 0 nothing.
    pub queue_error: u8,
    /// UA_INTLCK_CTRL, two bits.
    pub attention_interlock: u8,
    /// SWP: writes are refused.
    pub software_write_protect: bool,
    /// TAS: commands that another initiator port had aborted end with TASK ABORTED; else they are not answered.
    pub task_aborted_status: bool,
    /// BUSY TIMEOUT PERIOD in units of 100 ms: how long the target may say BUSY; FFFFh: no limit.
    pub busy_timeout_100ms: u16,
    /// EXTENDED SELF-TEST COMPLETION TIME in seconds.
    pub self_test_seconds: u16,
}

impl Control {
    fn read(b: &[u8]) -> Self {
        Control {
            task_sets: get8(b, 0) >> 5,
            descriptor_sense: bit(b, 0, 2),
            queue_algorithm: get8(b, 1) >> 4,
            queue_error: get8(b, 1) >> 1 & 3,
            attention_interlock: get8(b, 2) >> 4 & 3,
            software_write_protect: bit(b, 2, 3),
            task_aborted_status: bit(b, 3, 6),
            busy_timeout_100ms: get16(b, 6),
            self_test_seconds: get16(b, 8),
        }
    }

    /// The page, with everything else zero.
    pub fn to_page(self) -> ModePage {
        let mut b = [0; 0x0a];
        b[0] = self.task_sets << 5 | flag(self.descriptor_sense, 2);
        b[1] = self.queue_algorithm << 4 | (self.queue_error & 3) << 1;
        b[2] = (self.attention_interlock & 3) << 4 | flag(self.software_write_protect, 3);
        b[3] = flag(self.task_aborted_status, 6);
        put16(&mut b, 6, self.busy_timeout_100ms);
        put16(&mut b, 8, self.self_test_seconds);
        ModePage::new(page::CONTROL, &b)
    }
}

/// The Informational Exceptions Control mode page (1Ch; SBC-3 6.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct InformationalExceptions {
    /// DEXCPT: nothing is reported.
    pub disabled: bool,
    /// TEST: a false failure is reported.
    pub test: bool,
    /// MRIE: how it is reported, four bits: 0 not, 2 unit attention, 3 and 4 RECOVERED ERROR, 5 NO SENSE, 6 when asked.
    pub method: u8,
    /// INTERVAL TIMER in units of 100 ms between reports.
    pub interval_100ms: u32,
    /// REPORT COUNT; zero: no limit.
    pub report_count: u32,
}

impl InformationalExceptions {
    fn read(b: &[u8]) -> Self {
        InformationalExceptions {
            disabled: bit(b, 0, 3),
            test: bit(b, 0, 2),
            method: get8(b, 1) & 0x0f,
            interval_100ms: get32(b, 2),
            report_count: get32(b, 6),
        }
    }

    /// The page, with everything else zero.
    pub fn to_page(self) -> ModePage {
        let mut b = [0; 0x0a];
        b[0] = flag(self.disabled, 3) | flag(self.test, 2);
        b[1] = self.method & 0x0f;
        put32(&mut b, 2, self.interval_100ms);
        put32(&mut b, 6, self.report_count);
        ModePage::new(page::INFORMATIONAL_EXCEPTIONS, &b)
    }
}

#[cfg(test)]
mod tests;
