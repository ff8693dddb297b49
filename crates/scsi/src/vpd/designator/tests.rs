use super::*;

const NAA_6: [u8; 16] = [0x60, 0x01, 0x40, 0x5a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const NAA_5: [u8; 8] = [0x50, 0x01, 0x40, 0x5a, 1, 2, 3, 4];

#[test]
fn octets() {
    let page = DeviceIdentification {
        designators: vec![
            Designator::t10_vendor("ACME", "disk 1"),
            Designator::naa(&NAA_5),
            Designator::scsi_name("iqn.2026-01.a"),
            Designator::uuid([0xab; 16]),
            Designator::relative_target_port(0x102),
            Designator { protocol: Some(5), ..Designator::target_port_group(7) },
        ],
    };
    let b = page.to_bytes();
    let mut want = vec![0, 0x83, 0, 0];
    want.extend(b"\x02\x01\0\x0eACME    disk 1");
    want.extend([1, 3, 0, 8]);
    want.extend(NAA_5);
    want.extend(b"\x03\x08\0\x10iqn.2026-01.a\0\0\0");
    want.extend([1, 0xa, 0, 18, 0x10, 0]);
    want.extend([0xab; 16]);
    want.extend([1, 0x14, 0, 4, 0, 0, 1, 2]);
    want.extend([0x51, 0x95, 0, 4, 0, 0, 0, 7]);
    want[3] = (want.len() - 4) as u8;
    assert_eq!(b, want);
    assert_eq!(DeviceIdentification::parse(&b).as_ref(), Ok(&page));
    assert_eq!((page.relative_target_port(), page.target_port_group()), (Some(0x102), Some(7)));
    for len in 0..b.len() {
        assert!(matches!(DeviceIdentification::parse(&b[..len]), Err(ParseError::Short { .. })), "{len}");
    }
    // A page that is whole, with a designator that is not.
    for len in 5..b.len() {
        let mut cut = b[..len].to_vec();
        cut[3] = (len - 4) as u8;
        match DeviceIdentification::parse(&cut) {
            Ok(got) => {
                assert!(page.designators.starts_with(&got.designators), "{len}");
                assert!(len - got.to_bytes().len() < 4, "{len}: only the beginning of a header is passed over");
            }
            Err(error) => assert!(matches!(error, ParseError::Value { .. }), "{len}: {error}"),
        }
    }
}

#[test]
fn identifiers() {
    let with = |designator: Designator, data: &[u8]| Designator { data: data.to_vec(), ..designator };
    let naa = Designator::naa(&NAA_6);
    let uuid = Designator::uuid([7; 16]);
    let cases = [
        (Designator::eui_64([1; 8]), Some(Identifier::Eui64([1; 8]))),
        (with(Designator::eui_64([1; 8]), &[1; 12]), None),
        (Designator::nguid([2; 16]), Some(Identifier::Nguid([2; 16]))),
        (with(Designator::eui_64([1; 8]), &[1; 9]), None),
        (naa.clone(), Some(Identifier::Naa(NAA_6.to_vec()))),
        (Designator::naa(&NAA_5), Some(Identifier::Naa(NAA_5.to_vec()))),
        (Designator::naa(&[0x20; 8]), Some(Identifier::Naa(vec![0x20; 8]))),
        (Designator::naa(&[0x30; 8]), None),
        // what tgt gives every first unit of every first target
        (Designator::naa(&[0x30, 0, 0, 1, 0, 0, 0, 1]), None),
        (Designator::naa(&[0x60, 0, 0, 0, 0, 0, 0, 0, 0x0e, 0, 0, 0, 0, 1, 0, 1]), None),
        (Designator::naa(&[0x50, 0, 0, 0x0f, 1, 1, 1, 1]), None),
        (Designator::naa(&[0x50, 0, 0, 0x10, 1, 1, 1, 1]), Some(Identifier::Naa(vec![0x50, 0, 0, 0x10, 1, 1, 1, 1]))),
        (Designator::naa(&[0x2f, 0xff, 0, 0, 0, 1, 1, 1]), None),
        (Designator::eui_64([0, 0, 0, 9, 9, 9, 9, 9]), None),
        (Designator::naa(&[0x60; 8]), None),
        (Designator::naa(&[0x50; 16]), None),
        (Designator::naa(&[]), None),
        (Designator { code_set: CodeSet::Ascii, ..naa.clone() }, None),
        (Designator { association: Association::TargetPort, ..naa.clone() }, None),
        (Designator { association: Association::TargetDevice, ..naa.clone() }, None),
        (Designator { association: Association::Reserved, ..naa }, None),
        (uuid.clone(), Some(Identifier::Uuid([7; 16]))),
        (with(uuid.clone(), &[0x10; 17]), None),
        (with(uuid, &[0x20; 18]), None),
        (Designator::scsi_name("eui.0123"), Some(Identifier::ScsiName("eui.0123".into()))),
        (Designator::scsi_name(""), None),
        (with(Designator::scsi_name("a"), b"a\x1b[2J"), None),
        (with(Designator::scsi_name("a"), b"\xff\xfe"), None),
        (Designator::t10_vendor("IET", "00010001"), Some(Identifier::T10Vendor(b"IET     00010001".to_vec()))),
        (with(Designator::t10_vendor("IET", ""), b"IET"), None),
        (Designator::relative_target_port(1), None),
        (Designator { kind: 0, ..Designator::eui_64([1; 8]) }, None),
        (Designator { kind: kind::MD5, ..Designator::nguid([3; 16]) }, None),
    ];
    for (designator, want) in cases {
        assert_eq!(designator.identifier(), want, "{designator:?}");
        let page = DeviceIdentification { designators: vec![designator] };
        assert_eq!(DeviceIdentification::parse(&page.to_bytes()), Ok(page.clone()));
        assert_eq!(page.identifiers(), Vec::from_iter(want));
    }
}

#[test]
fn identifiers_become_designators_and_come_back() {
    let all = [
        Identifier::Nguid([1; 16]),
        Identifier::Eui64([2; 8]),
        Identifier::Uuid([3; 16]),
        Identifier::Naa(NAA_6.to_vec()),
        Identifier::ScsiName("iqn.2026-01.example:disk".into()),
        Identifier::T10Vendor(b"ACME    1".to_vec()),
    ];
    for identifier in all {
        assert_eq!(Designator::of(&identifier).unwrap().identifier(), Some(identifier));
    }
    assert_eq!(Designator::of(&Identifier::Place("here".into())), None);
}

#[test]
fn values_of_the_other_types() {
    let md5 = Designator { kind: kind::MD5, ..Designator::nguid([3; 16]) };
    assert_eq!(md5.value(), DesignatorValue::Md5([3; 16]));
    let group = Designator { kind: kind::LOGICAL_UNIT_GROUP, ..Designator::target_port_group(5) };
    assert_eq!(group.value(), DesignatorValue::LogicalUnitGroup(5));
    let port = Designator { kind: kind::PROTOCOL_PORT, ..Designator::eui_64([4; 8]) };
    assert_eq!(port.value(), DesignatorValue::ProtocolPort(&[4; 8]));
    assert_eq!(Designator { data: vec![1; 5], ..group }.value(), DesignatorValue::Other);
    for bits in 0..16 {
        assert_eq!(CodeSet::from_bits(bits).bits(), bits);
    }
    let long = Designator { data: vec![1; 300], ..port };
    assert_eq!(DeviceIdentification { designators: vec![long] }.to_bytes().len(), 4 + 4 + 255);
}
