use super::*;

const KEY: u64 = 0x0102_0304_0506_0708;

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

/// A decoder that forgets its type: is what it read what it was to read?
type Reads<'a> = &'a dyn Fn(&[u8]) -> Result<bool, ParseError>;

/// Every prefix is refused, as short or as one whose parts run over its end.
fn refuses_prefixes(b: &[u8], parse: Reads<'_>) {
    assert_eq!(parse(b), Ok(true));
    for len in 0..b.len() {
        assert!(parse(&b[..len]).is_err(), "{len} of {}", hex(b));
    }
}

#[test]
fn what_comes_in() {
    let keys = Keys { generation: 7, keys: vec![KEY, 9] };
    let b = keys.to_bytes();
    assert_eq!(hex(&b), "000000070000001001020304050607080000000000000009");
    refuses_prefixes(&b, &|b| Keys::parse(b).map(|got| got == keys));
    assert_eq!(Keys::parse(&[0; 8]), Ok(Keys::default()));

    let held = Reservation { generation: 1, held: Some((KEY, ReservationType::ExclusiveAccessRegistrantsOnly)) };
    let b = held.to_bytes();
    assert_eq!(hex(&b), "00000001000000100102030405060708000000000006 0000".replace(' ', ""));
    refuses_prefixes(&b, &|b| Reservation::parse(b).map(|got| got == held));
    let free = Reservation { generation: 1, held: None };
    assert_eq!((hex(&free.to_bytes()).as_str(), Reservation::parse(&free.to_bytes())), ("0000000100000000", Ok(free)));
    let mut bad = b.clone();
    bad[21] = 0x16;
    assert!(matches!(Reservation::parse(&bad), Err(ParseError::Value { value: 0x16, .. })), "a scope of old");

    let registration = FullStatus {
        key: KEY,
        all_target_ports: true,
        holds: Some(ReservationType::WriteExclusive),
        relative_target_port: 3,
        initiator: TransportId::sas(0x5000_c500_0000_0001),
    };
    let other = FullStatus {
        holds: None,
        all_target_ports: false,
        initiator: TransportId::iscsi("iqn.2026-01.a:b", Some([0x80, 1, 2, 3, 4, 5])),
        ..registration.clone()
    };
    let list = FullStatusList { generation: 2, registrations: vec![registration, other] };
    let b = list.to_bytes();
    let want = concat!(
        "00000002 00000070 0102030405060708 00000000 03 01 00000000 0003 00000018",
        "06000000 5000c50000000001 000000000000000000000000",
        "0102030405060708 00000000 00 00 00000000 0003 00000028",
        "45000024 69716e2e323032362d30312e613a62 2c692c3078383030313032303330343035 00000000"
    );
    assert_eq!(hex(&b), want.replace(' ', ""));
    refuses_prefixes(&b, &|b| FullStatusList::parse(b).map(|got| got == list));
    let mut long = b.clone();
    long[31] = 0xff;
    assert!(matches!(FullStatusList::parse(&long), Err(ParseError::Value { value: 0xff, .. })));
}

#[test]
fn capabilities() {
    let all = Capabilities {
        compatible_reservations: true,
        specify_initiator_ports: true,
        all_target_ports: true,
        persist_capable: true,
        persist_active: true,
        allow_commands: 5,
        types: Some(ReservationType::ALL.to_vec()),
    };
    assert_eq!(hex(&all.to_bytes()), "00081dd1ea010000");
    refuses_prefixes(&all.to_bytes(), &|b| Capabilities::parse(b).map(|got| got == all));
    for kind in ReservationType::ALL {
        let one = Capabilities { types: Some(vec![kind]), ..Capabilities::default() };
        assert_eq!(Capabilities::parse(&one.to_bytes()), Ok(one));
        assert_eq!(ReservationType::from_bits(scope_type(kind)), Some(kind));
    }
    assert_eq!(Capabilities::parse(&[0, 8, 0, 0, 0xff, 0xff, 0, 0]).unwrap().types, None, "TMV is not set");
    let known = (0..=255).filter(|&octet| parse_scope_type(octet).is_ok());
    assert!(known.eq([1, 3, 5, 6, 7, 8]));
}

#[test]
fn what_goes_out() {
    let basic = PrOutData { key: KEY, action_key: 2, all_target_ports: true, persist: true, initiators: None };
    let b = basic.to_bytes();
    assert_eq!(hex(&b), "01020304050607080000000000000002000000000500 0000".replace(' ', ""));
    refuses_prefixes(&b, &|b| PrOutData::parse(b).map(|got| got == basic));
    assert!(PrOutData::parse(&[b, vec![0]].concat()).is_err());

    let ids = vec![TransportId::iscsi("iqn.a", None), TransportId::sas(1)];
    let others = PrOutData { initiators: Some(ids), persist: false, all_target_ports: false, ..basic };
    let b = others.to_bytes();
    assert_eq!(hex(&b[16..32]), "00000000080000000000003005000014");
    refuses_prefixes(&b, &|b| PrOutData::parse(b).map(|got| got == others));
    let mut bad = b.clone();
    bad[31] = 0xff;
    assert!(matches!(PrOutData::parse(&bad), Err(ParseError::Value { .. })));

    let to = RegisterAndMove {
        key: KEY,
        action_key: 5,
        unregister: true,
        persist: true,
        relative_target_port: 0x102,
        initiator: TransportId::sas(7),
    };
    let b = to.to_bytes();
    assert_eq!(hex(&b[..28]), "0102030405060708000000000000000500030102000000180600 0000".replace(' ', ""));
    refuses_prefixes(&b, &|b| RegisterAndMove::parse(b).map(|got| got == to));
}

#[test]
fn names_of_initiators() {
    let port = TransportId::iscsi("iqn.2026-01.a:b", Some([0, 1, 2, 3, 4, 255]));
    assert_eq!((port.iscsi_name(), port.sas_address()), (Some("iqn.2026-01.a:b,i,0x0001020304ff"), None));
    let node = TransportId::iscsi("iqn.a", None);
    assert_eq!((node.0.len(), node.0[0], node.iscsi_name()), (24, 5, Some("iqn.a")));
    let sas = TransportId::sas(0x1234);
    assert_eq!((sas.sas_address(), sas.iscsi_name()), (Some(0x1234), None));
    assert_eq!(TransportId(vec![6, 0, 0, 0, 1]).sas_address(), None);
    assert_eq!(TransportId(vec![5, 0, 0, 4, b'a', 0x1b, 0, 0]).iscsi_name(), None);
    assert_eq!(TransportId::default().iscsi_name(), None);
}
