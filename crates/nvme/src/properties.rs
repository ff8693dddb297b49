//! Controller registers, which fabrics call properties (Base 2.1 section 3.1.4).

use bitflags::bitflags;

/// A register that bring-up touches, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Register {
    /// Controller capabilities, 8 octets at 00h.
    Cap,
    /// Version, 4 octets at 08h.
    Vs,
    /// Controller configuration, 4 octets at 14h.
    Cc,
    /// Controller status, 4 octets at 1Ch.
    Csts,
    /// NVM subsystem reset, 4 octets at 20h.
    Nssr,
    /// Admin queue attributes, 4 octets at 24h; memory transports only.
    Aqa,
    /// Admin submission queue, 8 octets at 28h; memory transports only.
    Asq,
    /// Admin completion queue, 8 octets at 30h; memory transports only.
    Acq,
    /// Controller ready timeouts, 4 octets at 68h.
    Crto,
}

impl Register {
    /// Every register above.
    pub const ALL: [Register; 9] = [
        Register::Cap,
        Register::Vs,
        Register::Cc,
        Register::Csts,
        Register::Nssr,
        Register::Aqa,
        Register::Asq,
        Register::Acq,
        Register::Crto,
    ];

    /// Offset in octets.
    pub const fn offset(self) -> u32 {
        match self {
            Register::Cap => 0x00,
            Register::Vs => 0x08,
            Register::Cc => 0x14,
            Register::Csts => 0x1c,
            Register::Nssr => 0x20,
            Register::Aqa => 0x24,
            Register::Asq => 0x28,
            Register::Acq => 0x30,
            Register::Crto => 0x68,
        }
    }

    /// Size in octets, 4 or 8.
    pub const fn size(self) -> u8 {
        match self {
            Register::Cap | Register::Asq | Register::Acq => 8,
            _ => 4,
        }
    }
}

/// Controller capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cap(pub u64);

impl Cap {
    /// CSS bit: the NVM command set.
    pub const CSS_NVM: u64 = 1 << 37;
    /// CSS bit: one or more I/O command sets (CC.CSS = 110b).
    pub const CSS_IO: u64 = 1 << 43;
    /// CSS bit: no I/O command set.
    pub const CSS_NONE: u64 = 1 << 44;

    /// Largest queue in entries, zero-based.
    pub fn mqes_z(self) -> u16 {
        self.0 as u16
    }
    /// Contiguous queues required.
    pub fn cqr(self) -> bool {
        self.0 >> 16 & 1 != 0
    }
    /// Longest time to become ready or not ready, in milliseconds (TO is in units of 500 ms).
    pub fn timeout_ms(self) -> u64 {
        (self.0 >> 24 & 0xff) * 500
    }
    /// Doorbell stride in octets.
    pub fn doorbell_stride(self) -> u32 {
        4 << (self.0 >> 32 & 0xf)
    }
    /// Whether the NVM command set is supported.
    pub fn css_nvm(self) -> bool {
        self.0 & Self::CSS_NVM != 0
    }
    /// Whether CC.CSS = 110b is supported.
    pub fn css_io(self) -> bool {
        self.0 & Self::CSS_IO != 0
    }
    /// Whether CC.CSS = 111b (admin commands only) is supported.
    pub fn css_none(self) -> bool {
        self.0 & Self::CSS_NONE != 0
    }
    /// Smallest page as a power of two, 12 to 27.
    pub fn page_shift_min(self) -> u8 {
        12 + (self.0 >> 48 & 0xf) as u8
    }
    /// Largest page as a power of two, 12 to 27.
    pub fn page_shift_max(self) -> u8 {
        12 + (self.0 >> 52 & 0xf) as u8
    }
    /// CRMS: whether [`Register::Crto`] has the ready timeouts (either bit).
    pub fn has_crto(self) -> bool {
        self.0 >> 59 & 3 != 0
    }
}

/// Version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Version(pub u32);

impl Version {
    /// Version `major.minor.tertiary`.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Version((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff)
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Version({self})")
    }
}

/// Controller configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cc(pub u32);

impl Cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// CSS for the NVM command set.
    pub const CSS_NVM: u8 = 0b000;
    /// CSS for all supported I/O command sets.
    pub const CSS_IO: u8 = 0b110;
    /// CSS for admin commands only.
    pub const CSS_ADMIN: u8 = 0b111;

    /// Round-robin arbitration, no shutdown, EN set.
    pub fn enable(css: u8, page_shift: u8, io_sqes: u8, io_cqes: u8) -> Self {
        let mps = u32::from(page_shift.saturating_sub(12) & 0xf);
        Cc(Self::EN
            | (u32::from(css) & 7) << 4
            | mps << 7
            | (u32::from(io_sqes) & 0xf) << 16
            | (u32::from(io_cqes) & 0xf) << 20)
    }
    /// Whether EN is set.
    pub fn is_enabled(self) -> bool {
        self.0 & Self::EN != 0
    }
    /// The same with EN cleared.
    #[must_use]
    pub fn disabled(self) -> Self {
        Cc(self.0 & !Self::EN)
    }
    /// The same with SHN asking for a normal shutdown (01b), or an abrupt one (10b).
    #[must_use]
    pub fn with_shutdown(self, abrupt: bool) -> Self {
        Cc(self.0 & !(3 << 14) | if abrupt { 2 << 14 } else { 1 << 14 })
    }
    /// Shutdown notification, 0 to 3.
    pub fn shutdown(self) -> u8 {
        (self.0 >> 14 & 3) as u8
    }
    /// Command set selected.
    pub fn css(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }
    /// Page as a power of two.
    pub fn page_shift(self) -> u8 {
        12 + (self.0 >> 7 & 0xf) as u8
    }
    /// I/O submission entry as a power of two.
    pub fn io_sqes(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }
    /// I/O completion entry as a power of two.
    pub fn io_cqes(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }
}

bitflags! {
    /// Controller status. SHST is in bits 3:2: 01b in progress, 10b complete.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Csts: u32 {
        /// Ready.
        const RDY = 1 << 0;
        /// Controller fatal status.
        const CFS = 1 << 1;
        /// Shutdown processing occurring.
        const SHST_OCCURRING = 1 << 2;
        /// Shutdown processing complete.
        const SHST_COMPLETE = 1 << 3;
        /// NVM subsystem reset occurred.
        const NSSRO = 1 << 4;
        /// Processing paused.
        const PP = 1 << 5;
        /// Whatever else a controller sets.
        const _ = !0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_linux_nvmet() {
        // Linux drivers/nvme/target/core.c, nvmet_init_cap: CSS NVM (bit 37) and CSI (bit 43),
        // TO = 15 << 24, MQES = 1024 - 1.
        let cap = Cap(1 << 37 | 1 << 43 | 15 << 24 | 1023);
        assert_eq!((cap.mqes_z(), cap.timeout_ms()), (1023, 7500));
        assert!(cap.css_nvm() && cap.css_io() && !cap.css_none() && !cap.has_crto() && !cap.cqr());
        assert_eq!((cap.page_shift_min(), cap.page_shift_max(), cap.doorbell_stride()), (12, 12, 4));
    }

    #[test]
    fn configuration_bits() {
        // The value Linux writes to a fabrics controller: IOSQES 6, IOCQES 4, EN.
        let cc = Cc::enable(Cc::CSS_NVM, 12, 6, 4);
        assert_eq!(cc.0, 0x0046_0001);
        assert_eq!((cc.io_sqes(), cc.io_cqes(), cc.page_shift(), cc.css()), (6, 4, 12, 0));
        assert_eq!(cc.with_shutdown(false).0, 0x0046_4001);
        assert_eq!(cc.with_shutdown(false).with_shutdown(true).shutdown(), 2);
        assert!(!cc.disabled().is_enabled());
        assert_eq!(Cc::enable(6, 16, 6, 4).page_shift(), 16);
        assert_eq!(Version::new(1, 4, 0).to_string(), "1.4.0");
        assert!(Version::new(1, 3, 0) < Version::new(2, 1, 0));
        assert!(Csts::from_bits_retain(3).contains(Csts::CFS));
        for r in Register::ALL {
            assert!(r.size() == 4 || r.size() == 8 && r.offset() % 8 == 0);
        }
    }
}
