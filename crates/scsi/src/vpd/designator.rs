//! Device Identification (83h, SPC-4 7.8.6): who a logical unit is, and through which port it is seen.

use super::{Page, code};
use crate::ParseError;
use crate::wire::{flag, get8, get16, get24, get32};
use polypath_block::Identifier;

/// What a designator designates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Association {
    /// The logical unit.
    LogicalUnit = 0,
    /// The target port that answered.
    TargetPort = 1,
    /// The target device.
    TargetDevice = 2,
    /// Reserved.
    Reserved = 3,
}

/// How a designator is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CodeSet {
    /// 1h: binary.
    Binary,
    /// 2h: ASCII.
    Ascii,
    /// 3h: UTF-8.
    Utf8,
    /// Reserved.
    Other(u8),
}

impl CodeSet {
    const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            1 => CodeSet::Binary,
            2 => CodeSet::Ascii,
            3 => CodeSet::Utf8,
            other => CodeSet::Other(other),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            CodeSet::Binary => 1,
            CodeSet::Ascii => 2,
            CodeSet::Utf8 => 3,
            CodeSet::Other(bits) => bits & 0x0f,
        }
    }
}

/// Designator types (SPC-4 7.8.6.1, DESIGNATOR TYPE; Ah is from SPC-5).
mod kind {
    pub(super) const T10_VENDOR: u8 = 1;
    pub(super) const EUI_64: u8 = 2;
    pub(super) const NAA: u8 = 3;
    pub(super) const RELATIVE_TARGET_PORT: u8 = 4;
    pub(super) const TARGET_PORT_GROUP: u8 = 5;
    pub(super) const LOGICAL_UNIT_GROUP: u8 = 6;
    pub(super) const MD5: u8 = 7;
    pub(super) const SCSI_NAME: u8 = 8;
    pub(super) const PROTOCOL_PORT: u8 = 9;
    pub(super) const UUID: u8 = 0xa;
}

/// One designator as it is on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Designator {
    /// What it designates.
    pub association: Association,
    /// How it is written.
    pub code_set: CodeSet,
    /// PROTOCOL IDENTIFIER, where PIV says that it means something: 0 Fibre Channel, 5 iSCSI, 6 SAS.
    pub protocol: Option<u8>,
    /// DESIGNATOR TYPE, four bits.
    pub kind: u8,
    /// The designator, at most 255 octets.
    pub data: Vec<u8>,
}

/// What a designator says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DesignatorValue<'a> {
    /// Type 1h: vendor (8 characters) and what the vendor likes.
    T10Vendor(&'a [u8]),
    /// Type 2h, 8 octets: EUI-64.
    Eui64([u8; 8]),
    /// Type 2h, 12 octets: EUI-64 and a directory ID.
    Eui64Directory([u8; 12]),
    /// Type 2h, 16 octets: identifier extension and EUI-64. NVMe's NGUID has this form.
    Eui64Extended([u8; 16]),
    /// Type 3h, 8 octets (NAA 2h, 3h, 5h) or 16 (NAA 6h).
    Naa(&'a [u8]),
    /// Type 4h: number of the target port in its target.
    RelativeTargetPort(u16),
    /// Type 5h.
    TargetPortGroup(u16),
    /// Type 6h.
    LogicalUnitGroup(u16),
    /// Type 7h: a digest of vendor, product and serial number, where there is nothing better.
    Md5([u8; 16]),
    /// Type 8h: an iSCSI name, or `naa.` or `eui.` with digits; without the NULs that fill it up.
    ScsiName(&'a str),
    /// Type 9h: protocol specific port identifier.
    ProtocolPort(&'a [u8]),
    /// Type Ah: a UUID in the order of its text.
    Uuid([u8; 16]),
    /// Type 0h (vendor specific), reserved ones, and those whose length, code set or content is not what their type demands.
    Other,
}

impl Designator {
    fn of_unit(kind: u8, code_set: CodeSet, data: Vec<u8>) -> Self {
        Designator { association: Association::LogicalUnit, code_set, protocol: None, kind, data }
    }

    fn of_port(kind: u8, number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        let association = Association::TargetPort;
        Designator { association, code_set: CodeSet::Binary, protocol: None, kind, data: vec![0, 0, high, low] }
    }

    /// T10 vendor identification of the logical unit.
    pub fn t10_vendor(vendor: &str, specific: &str) -> Self {
        let mut data = crate::wire::padded::<8>(vendor).to_vec();
        data.extend(specific.bytes().take(Self::MAX_DATA - 8));
        Self::of_unit(kind::T10_VENDOR, CodeSet::Ascii, data)
    }

    /// EUI-64 of the logical unit.
    pub fn eui_64(eui: [u8; 8]) -> Self {
        Self::of_unit(kind::EUI_64, CodeSet::Binary, eui.to_vec())
    }

    /// NGUID, that is, identifier extension and EUI-64, of the logical unit.
    pub fn nguid(nguid: [u8; 16]) -> Self {
        Self::of_unit(kind::EUI_64, CodeSet::Binary, nguid.to_vec())
    }

    /// NAA of the logical unit: 8 octets, or 16 that begin with 6h.
    pub fn naa(naa: &[u8]) -> Self {
        Self::of_unit(kind::NAA, CodeSet::Binary, naa.to_vec())
    }

    /// UUID of the logical unit.
    pub fn uuid(uuid: [u8; 16]) -> Self {
        let mut data = vec![0x10, 0];
        data.extend(uuid);
        Self::of_unit(kind::UUID, CodeSet::Binary, data)
    }

    /// SCSI name string of the logical unit; with NULs to a multiple of four.
    pub fn scsi_name(name: &str) -> Self {
        let mut data = name.as_bytes().to_vec();
        data.resize((data.len() + 1).next_multiple_of(4), 0);
        Self::of_unit(kind::SCSI_NAME, CodeSet::Utf8, data)
    }

    /// The identifier as a designator of the logical unit; `None` for those that SCSI has no form for.
    pub fn of(identifier: &Identifier) -> Option<Self> {
        match identifier {
            Identifier::Nguid(nguid) => Some(Self::nguid(*nguid)),
            Identifier::Eui64(eui) => Some(Self::eui_64(*eui)),
            Identifier::Uuid(uuid) => Some(Self::uuid(*uuid)),
            Identifier::Naa(naa) => Some(Self::naa(naa)),
            Identifier::ScsiName(name) => Some(Self::scsi_name(name)),
            Identifier::T10Vendor(data) => Some(Self::of_unit(kind::T10_VENDOR, CodeSet::Ascii, data.clone())),
            Identifier::Place(_) | Identifier::Slice(_) => None,
        }
    }

    /// Number of the target port that answers.
    pub fn relative_target_port(port: u16) -> Self {
        Self::of_port(kind::RELATIVE_TARGET_PORT, port)
    }

    /// Target port group of the target port that answers.
    pub fn target_port_group(group: u16) -> Self {
        Self::of_port(kind::TARGET_PORT_GROUP, group)
    }

    /// Longest designator.
    const MAX_DATA: usize = 255;

    /// What it says.
    pub fn value(&self) -> DesignatorValue<'_> {
        self.well_formed().unwrap_or(DesignatorValue::Other)
    }

    fn well_formed(&self) -> Option<DesignatorValue<'_>> {
        use DesignatorValue as V;
        let data = &self.data[..];
        let binary = self.code_set == CodeSet::Binary;
        let number = || (data.len() == 4).then(|| get16(data, 2));
        match self.kind {
            kind::T10_VENDOR if data.len() >= 8 => Some(V::T10Vendor(data)),
            kind::EUI_64 if binary => match data.len() {
                8 => data.try_into().ok().map(V::Eui64),
                12 => data.try_into().ok().map(V::Eui64Directory),
                16 => data.try_into().ok().map(V::Eui64Extended),
                _ => None,
            },
            kind::NAA if binary => match (data.len(), get8(data, 0) >> 4) {
                (8, 2 | 3 | 5) | (16, 6) => Some(V::Naa(data)),
                _ => None,
            },
            kind::RELATIVE_TARGET_PORT => number().map(V::RelativeTargetPort),
            kind::TARGET_PORT_GROUP => number().map(V::TargetPortGroup),
            kind::LOGICAL_UNIT_GROUP => number().map(V::LogicalUnitGroup),
            kind::MD5 => data.try_into().ok().map(V::Md5),
            kind::SCSI_NAME => {
                let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
                let name = core::str::from_utf8(data.get(..end)?).ok()?;
                (!name.is_empty() && !name.chars().any(char::is_control)).then_some(V::ScsiName(name))
            }
            kind::PROTOCOL_PORT => Some(V::ProtocolPort(data)),
            kind::UUID if binary && data.len() == 18 && get8(data, 0) >> 4 == 1 => {
                data.get(2..)?.try_into().ok().map(V::Uuid)
            }
            _ => None,
        }
    }

    /// The identifier that a designator of the logical unit stands for; `None` for those of ports and targets, and for those that must not
    /// be compared with others:
    ///
    /// * an EUI-64 with a directory ID (12 octets) has no equal among the identifiers, and cut to 8 octets two units would be one;
    /// * one of 16 octets is what NVMe calls NGUID, and taken for that, so that one disk is known over both transports;
    /// * NAA 3h is assigned locally, and a company ID of zero (in NAA or EUI-64) by nobody: tgt hands the same ones out on every host, and
    ///   two disks would be one;
    /// * MD5 digests and vendor specific ones promise nothing.
    pub fn identifier(&self) -> Option<Identifier> {
        if self.association != Association::LogicalUnit {
            return None;
        }
        match self.value() {
            DesignatorValue::T10Vendor(data) => Some(Identifier::T10Vendor(data.to_vec())),
            DesignatorValue::Eui64(eui) if company_of_eui(eui) != 0 => Some(Identifier::Eui64(eui)),
            DesignatorValue::Eui64Extended(nguid) => Some(Identifier::Nguid(nguid)),
            DesignatorValue::Naa(naa) if company_of_naa(naa) != 0 => Some(Identifier::Naa(naa.to_vec())),
            DesignatorValue::ScsiName(name) => Some(Identifier::ScsiName(name.to_owned())),
            DesignatorValue::Uuid(uuid) => Some(Identifier::Uuid(uuid)),
            _ => None,
        }
    }

    fn put(&self, body: &mut Vec<u8>) {
        let data = self.data.get(..Self::MAX_DATA).unwrap_or(&self.data);
        let piv = flag(self.protocol.is_some(), 7);
        body.extend_from_slice(&[
            (self.protocol.unwrap_or(0) & 0x0f) << 4 | self.code_set.bits(),
            piv | (self.association as u8) << 4 | self.kind & 0x0f,
            0,
            data.len() as u8,
        ]);
        body.extend_from_slice(data);
    }
}

/// IEEE COMPANY_ID of an EUI-64: its first 24 bits.
fn company_of_eui(eui: [u8; 8]) -> u32 {
    get24(&eui, 0)
}

/// IEEE COMPANY_ID of an NAA designator; zero where there is none (NAA 3h).
fn company_of_naa(naa: &[u8]) -> u32 {
    match get8(naa, 0) >> 4 {
        2 => get24(naa, 2),
        5 | 6 => get32(naa, 0) >> 4 & 0xff_ffff,
        _ => 0,
    }
}

/// The Device Identification page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceIdentification {
    /// Its designators, in its order.
    pub designators: Vec<Designator>,
}

impl DeviceIdentification {
    /// Reads the page.
    ///
    /// # Errors
    /// As [`Page::expect`], and [`ParseError::Value`] if a designator runs over the end of the page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut rest = Page::expect(bytes, code::DEVICE_IDENTIFICATION)?.body;
        let mut designators = Vec::new();
        while let Some((&[first, second, _, length], tail)) = rest.split_first_chunk::<4>() {
            let Some((data, next)) = tail.split_at_checked(usize::from(length)) else {
                let (what, expected) = ("length of a designator", "no more than what is left of its page");
                return Err(ParseError::Value { what, value: length.into(), expected });
            };
            designators.push(Designator {
                association: match second >> 4 & 3 {
                    0 => Association::LogicalUnit,
                    1 => Association::TargetPort,
                    2 => Association::TargetDevice,
                    _ => Association::Reserved,
                },
                code_set: CodeSet::from_bits(first),
                protocol: (second & 1 << 7 != 0).then_some(first >> 4),
                kind: second & 0x0f,
                data: data.to_vec(),
            });
            rest = next;
        }
        Ok(DeviceIdentification { designators })
    }

    /// The octets of the page.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.designators.iter().for_each(|designator| designator.put(&mut body));
        Page::build(code::DEVICE_IDENTIFICATION, &body)
    }

    /// Who the logical unit is: every identifier that may be compared with those of other paths, see [`Designator::identifier`].
    pub fn identifiers(&self) -> Vec<Identifier> {
        self.designators.iter().filter_map(Designator::identifier).collect()
    }

    /// Number of the target port that answered.
    pub fn relative_target_port(&self) -> Option<u16> {
        self.of_port(|value| match value {
            DesignatorValue::RelativeTargetPort(port) => Some(port),
            _ => None,
        })
    }

    /// Group of the target port that answered: which descriptor of REPORT TARGET PORT GROUPS is about this path.
    pub fn target_port_group(&self) -> Option<u16> {
        self.of_port(|value| match value {
            DesignatorValue::TargetPortGroup(group) => Some(group),
            _ => None,
        })
    }

    fn of_port(&self, number: fn(DesignatorValue<'_>) -> Option<u16>) -> Option<u16> {
        let mut of_port = self.designators.iter().filter(|d| d.association == Association::TargetPort);
        of_port.find_map(|designator| number(designator.value()))
    }
}

#[cfg(test)]
mod tests;
