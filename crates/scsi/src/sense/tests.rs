use super::text::TABLE;
use super::*;
use proptest::prelude::*;

fn octets(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn both_formats_by_hand() {
    let medium = Sense::new(key::MEDIUM_ERROR, 0x11, 0).with_information(0x1234_5678);
    let field = FieldPointer { in_cdb: true, byte: 2, bit: Some(5) };
    let illegal = Sense::new(key::ILLEGAL_REQUEST, 0x24, 0).with_field(field);
    let cases = [
        (medium, "f0 00 03 12345678 0a 00000000 11 00 00 000000", "72 03 11 00 000000 0c 00 0a 80 00 0000000012345678"),
        (illegal, "70 00 05 00000000 0a 00000000 24 00 00 cd0002", "72 05 24 00 000000 08 02 06 0000 cd0002 00"),
        (
            Sense::new(key::NOT_READY, 4, 4).with_progress(0x8000),
            "70 00 02 00000000 0a 00000000 04 04 00 808000",
            "72 02 04 04 000000 08 02 06 0000 808000 00",
        ),
        (
            Sense::new(key::HARDWARE_ERROR, 3, 0).deferred(),
            "71 00 04 00000000 0a 00000000 03 00 00 000000",
            "73 04 03 00 000000 00",
        ),
    ];
    for (sense, fixed, descriptors) in cases {
        assert_eq!(sense.to_fixed()[..], octets(fixed), "{sense}");
        assert_eq!(sense.to_descriptors(), octets(descriptors), "{sense}");
        assert_eq!(Sense::parse(&octets(fixed)), Ok(sense));
        assert_eq!(Sense::parse(&octets(descriptors)), Ok(sense));
    }
    assert_eq!(illegal.field(), Some(field));
    assert_eq!(medium.field(), None, "a field pointer belongs to ILLEGAL REQUEST");
    assert_eq!((medium.detail(), medium.code()), (0x03_1100, 0x1100));
    assert!(medium.is(3, 0x11, 0) && !medium.is(3, 0x11, 1));
}

#[test]
fn short_data_say_what_they_hold() {
    let field = FieldPointer { in_cdb: false, byte: 0x102, bit: None };
    let whole = Sense {
        information: Some(7),
        command_specific: Some(9),
        ..Sense::new(key::ILLEGAL_REQUEST, 0x26, 2).with_field(field)
    };
    let fixed = whole.to_fixed();
    for len in 0..=fixed.len() {
        let got = Sense::parse(&fixed[..len]);
        if len < 3 {
            assert!(matches!(got, Err(ParseError::Short { .. })), "{len}");
            continue;
        }
        let got = got.unwrap();
        let want = Sense {
            asc: if len > 12 { whole.asc } else { 0 },
            ascq: if len > 13 { whole.ascq } else { 0 },
            information: whole.information.filter(|_| len >= 7),
            command_specific: whole.command_specific.filter(|_| len >= 12),
            key_specific: whole.key_specific.filter(|_| len >= 18),
            ..whole
        };
        assert_eq!(got, want, "{len}");
    }
    let descriptors = whole.to_descriptors();
    assert_eq!(descriptors.len(), 40);
    for len in 0..=descriptors.len() {
        let got = Sense::parse(&descriptors[..len]);
        if len < 2 {
            assert!(matches!(got, Err(ParseError::Short { .. })), "{len}");
            continue;
        }
        let want = Sense {
            asc: if len > 2 { whole.asc } else { 0 },
            ascq: if len > 3 { whole.ascq } else { 0 },
            information: whole.information.filter(|_| len >= 20),
            command_specific: whole.command_specific.filter(|_| len >= 32),
            key_specific: whole.key_specific.filter(|_| len >= 40),
            ..whole
        };
        assert_eq!(got, Ok(want), "{len}");
    }
}

#[test]
fn lengths_and_codes_that_lie() {
    let mut fixed = Sense::new(key::MEDIUM_ERROR, 0x11, 1).to_fixed();
    fixed[7] = 4;
    assert_eq!(Sense::parse(&fixed).unwrap().code(), 0, "the code lies beyond the additional length");
    fixed[7] = 0;
    assert_eq!(Sense::parse(&fixed).unwrap().code(), 0x1101, "a length of zero is not believed");
    fixed[7] = 255;
    assert_eq!(Sense::parse(&fixed).unwrap().code(), 0x1101);
    for code in (0..=255u8).filter(|code| !(0x70..=0x73).contains(&(code & 0x7f))) {
        fixed[0] = code;
        let error = Sense::parse(&fixed).unwrap_err();
        assert!(matches!(error, ParseError::Value { .. }) && error.to_string().contains("70h to 73h"), "{error}");
    }
    // An unknown descriptor is stepped over; one that is longer than the rest ends the list.
    let unknown = octets("72 03 11 00 000000 10 09 02 0000 00 0a 80 00 0000000000000005");
    assert_eq!(Sense::parse(&unknown).unwrap().information, Some(5));
    let long = octets("72 03 11 00 000000 0c 00 ff 80 00 0000000000000005");
    assert_eq!(Sense::parse(&long).unwrap().information, None);
    // VALID is not set.
    assert_eq!(Sense::parse(&octets("72 03 11 00 000000 0c 00 0a 00 00 0000000000000005")).unwrap().information, None);
    let wide = Sense::new(3, 0x11, 0).with_information(1 << 32);
    assert_eq!(Sense::parse(&wide.to_fixed()).unwrap().information, None);
    assert_eq!(Sense::parse(&wide.to_descriptors()), Ok(wide));
}

#[test]
fn words() {
    let field = FieldPointer { in_cdb: true, byte: 1, bit: Some(7) };
    let cases = [
        (Sense::new(3, 0x11, 0), "3 MEDIUM ERROR, 11h/00h unrecovered read error"),
        (
            Sense::new(3, 0x11, 0x7f).with_information(0x10),
            "3 MEDIUM ERROR, 11h/7Fh unrecovered read error, information 10h",
        ),
        (
            Sense::new(5, 0x24, 0).with_field(field),
            "5 ILLEGAL REQUEST, 24h/00h invalid field in CDB, byte 1 bit 7 of the CDB",
        ),
        (
            Sense::new(2, 4, 4).with_progress(0x4000),
            "2 NOT READY, 04h/04h logical unit not ready, format in progress, 25 % done",
        ),
        (Sense::new(4, 0x44, 0).deferred(), "deferred: 4 HARDWARE ERROR, 44h/00h internal target failure"),
        (Sense::new(9, 0x80, 1), "9 VENDOR SPECIFIC, 80h/01h"),
        (Sense::new(0xc, 0x04, 0x7f), "C reserved sense key, 04h/7Fh"),
    ];
    for (sense, want) in cases {
        assert_eq!(sense.to_string(), want);
    }
    let parameters = FieldPointer { in_cdb: false, byte: 20, bit: None };
    assert_eq!(parameters.to_string(), "byte 20 of the parameter list");
}

#[test]
fn parameter_lists_that_are_refused() {
    let cases = [
        (ParseError::Short { what: "list", need: 8, have: 4 }, 0x1a),
        (ParseError::Length { what: "list", have: 25, expected: "24" }, 0x1a),
        (ParseError::Value { what: "field", value: 1, expected: "0" }, 0x26),
    ];
    for (error, asc) in cases {
        assert_eq!(Sense::of_parameter_list(&error), Sense::new(key::ILLEGAL_REQUEST, asc, 0), "{error}");
    }
}

#[test]
fn the_table_is_in_order() {
    assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    for (code, text) in TABLE {
        assert_eq!(asc_text((code >> 8) as u8, code as u8), Some(text));
    }
    assert_eq!(asc_text(0xff, 0xff), None);
    assert_eq!(asc_text(0x40, 0x85), Some("diagnostic failure"), "the qualifier is the component's number");
    assert_eq!(
        (asc_text(0x29, 0x05), asc_text(0x47, 0x02)),
        (None, None),
        "their qualifiers speak of different things"
    );
}

proptest! {
    #[test]
    fn any_octets_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), code in 0x70u8..0x74) {
        let mut bytes = bytes;
        let _ = Sense::parse(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = *first & 0x80 | code;
        }
        if let Ok(sense) = Sense::parse(&bytes) {
            prop_assert_eq!(Sense::parse(&sense.to_descriptors()), Ok(sense));
            prop_assert!(!sense.to_string().is_empty());
        }
    }
}
