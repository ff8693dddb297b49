use super::option::*;
use super::reply::*;
use super::request::*;
use super::*;
use proptest::prelude::*;

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn replied(option: OptionType, reply: OptionReply<'_>) -> String {
    let mut out = Vec::new();
    reply.put(option, &mut out);
    hex(&out)
}

#[test]
fn the_greeting_is_that_of_fixed_newstyle() {
    assert_eq!(&GREETING[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(GREETING[16..], [0, 3]);
}

#[test]
fn client_flags() {
    let read = |word: u32| ClientFlags::parse(&word.to_be_bytes());
    assert_eq!(read(3), Ok(ClientFlags { fixed_newstyle: true, no_zeroes: true }));
    assert_eq!(read(0), Ok(ClientFlags { fixed_newstyle: false, no_zeroes: false }));
    for word in [4, 0x8000_0000, u32::MAX] {
        assert_eq!(read(word), Err(WireError::ClientFlags { found: word }));
    }
    assert!(matches!(ClientFlags::parse(&[0, 0, 0]), Err(WireError::Short { need: 4, have: 3, .. })));
    assert!(matches!(ClientFlags::parse(&[0; 5]), Err(WireError::Trailing { extra: 1, .. })));
}

#[test]
fn options_and_commands_keep_their_numbers() {
    for code in 0..20 {
        assert_eq!(OptionType::from_code(code).code(), code);
    }
    for code in 0..20 {
        assert_eq!(Command::from_code(code).code(), code);
    }
    let errnos = [
        (Errno::NotPermitted, 1),
        (Errno::Io, 5),
        (Errno::NoMemory, 12),
        (Errno::Invalid, 22),
        (Errno::NoSpace, 28),
        (Errno::Overflow, 75),
        (Errno::NotSupported, 95),
        (Errno::Shutdown, 108),
    ];
    for (errno, code) in errnos {
        assert_eq!(errno.code(), code, "{errno:?}");
    }
}

/// GO for the default export. It asks for name, description and block sizes.
const GO: [u8; 16 + 12] = [
    b'I', b'H', b'A', b'V', b'E', b'O', b'P', b'T', 0, 0, 0, 7, 0, 0, 0, 12, // header
    0, 0, 0, 0, 0, 3, 0, 1, 0, 2, 0, 3,
];

#[test]
fn an_option_is_read_and_written() {
    let header = OptionHeader::parse(&GO[..16]).unwrap();
    assert_eq!(header, OptionHeader { option: OptionType::Go, length: 12 });
    assert_eq!(header.to_bytes(), GO[..16]);
    let go = ExportRequest::parse(&GO[16..]).unwrap();
    assert_eq!(go.name, "");
    assert_eq!(go.wanted, [InfoType::Name, InfoType::Description, InfoType::BlockSize]);
    let mut wrong = GO;
    wrong[0] = b'J';
    let error = OptionHeader::parse(&wrong[..16]).unwrap_err().to_string();
    assert!(error.contains("0x4a48415645") && error.contains("0x4948415645"), "{error}");
}

#[test]
fn export_requests() {
    // Kinds that nobody knows are passed over, and those asked for twice are heard once.
    let twice = [0, 0, 0, 1, b'a', 0, 4, 0, 3, 0, 3, 0x12, 0x34, 0, 0];
    let request = ExportRequest::parse(&twice).unwrap();
    assert_eq!((request.name, request.wanted), ("a", vec![InfoType::BlockSize, InfoType::Export]));
    let wrong: [(&[u8], &str); 5] = [
        (&[0, 0, 0, 4, b'a', 0, 0], "information request"),
        (&[0, 0, 0, 1, b'a', 0, 0, 9], "1 octets too many"),
        (&[0xff, 0xff, 0xff, 0xff, b'a', 0, 0], "at most 4096"),
        (&[0, 0, 0, 1, 0xff, 0, 0], "no text"),
        (&[0, 0, 0, 1, 0, 0, 0], "no text"),
    ];
    for (octets, word) in wrong {
        let error = ExportRequest::parse(octets).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(parse_export_name("größe".as_bytes()), Ok("größe"));
    assert!(parse_export_name(&[b'x'; 4097]).is_err() && parse_export_name(&[b'x'; 4096]).is_ok());
}

#[test]
fn context_requests() {
    let one = b"\0\0\0\x01a\0\0\0\x02\0\0\0\x05base:\0\0\0\x0fbase:allocation";
    let request = ContextRequest::parse(one).unwrap();
    assert_eq!((request.name, request.queries), ("a", vec!["base:", "base:allocation"]));
    // Four thousand million queries, it says.
    let error = ContextRequest::parse(b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0").unwrap_err();
    assert!(matches!(error, WireError::Short { need: 4, have: 0, .. }), "{error}");
}

#[test]
fn truncation_at_every_length() {
    let context = b"\0\0\0\x01a\0\0\0\x02\0\0\0\x05base:\0\0\0\x0fbase:allocation";
    for len in 0..context.len() {
        assert!(ContextRequest::parse(&context[..len]).is_err(), "{len}");
    }
    for len in 0..12 {
        assert!(ExportRequest::parse(&GO[16..16 + len]).is_err(), "{len}");
    }
    for len in 0..OPTION_HEADER_LEN {
        assert!(OptionHeader::parse(&GO[..len]).is_err(), "{len}");
    }
    for len in 0..REQUEST_LEN {
        assert!(Request::parse(&READ[..len]).is_err(), "{len}");
    }
    assert!(Request::parse(&[&READ[..], &[0]].concat()).is_err());
    assert!(OptionHeader::parse(&GO[..17]).is_err());
}

#[test]
fn replies_to_options() {
    let magic = "0003e889045565a9";
    let all = [
        (OptionReply::Ack, "00000001", "00000000", ""),
        (OptionReply::Server("vm", "db"), "00000002", "00000008", "00000002766d6462"),
        (
            OptionReply::InfoExport(1 << 20, TransmissionFlags::HAS_FLAGS | TransmissionFlags::CAN_MULTI_CONN),
            "00000003",
            "0000000c",
            "000000000000001000000101",
        ),
        (OptionReply::InfoName("vm"), "00000003", "00000004", "0001766d"),
        (OptionReply::InfoDescription("db"), "00000003", "00000004", "00026462"),
        (OptionReply::InfoBlockSize(512, 4096, 32 << 20), "00000003", "0000000e", "0003000002000000100002000000"),
        (OptionReply::MetaContext(1, "base:"), "00000004", "00000009", "00000001626173653a"),
        (OptionReply::Error(OptionError::Unsupported, "no"), "80000001", "00000002", "6e6f"),
        (OptionReply::Error(OptionError::Invalid, ""), "80000003", "00000000", ""),
        (OptionReply::Error(OptionError::Unknown, ""), "80000006", "00000000", ""),
        (OptionReply::Error(OptionError::Shutdown, ""), "80000007", "00000000", ""),
        (OptionReply::Error(OptionError::TooBig, ""), "80000009", "00000000", ""),
    ];
    for (reply, kind, length, data) in all {
        assert_eq!(replied(OptionType::Go, reply.clone()), format!("{magic}00000007{kind}{length}{data}"), "{reply:?}");
    }
    // Two in one buffer: each has its own length.
    let mut out = Vec::new();
    OptionReply::InfoName("a").put(OptionType::Info, &mut out);
    OptionReply::Ack.put(OptionType::Info, &mut out);
    assert_eq!(
        hex(&out),
        format!("{magic}0000000600000003000000030001 61{magic}000000060000000100000000").replace(' ', "")
    );
}

#[test]
fn the_answer_to_export_name_is_padded_for_those_who_have_not_declined() {
    let mut out = Vec::new();
    put_export(0x1234, TransmissionFlags::HAS_FLAGS, true, &mut out);
    assert_eq!(hex(&out), "00000000000012340001");
    put_export(0x1234, TransmissionFlags::HAS_FLAGS, false, &mut out);
    assert_eq!(out.len(), 10 + 10 + 124);
    assert!(out[20..].iter().all(|&octet| octet == 0));
}

/// A read of 4 KiB at 64 KiB.
const READ: [u8; REQUEST_LEN] =
    [0x25, 0x60, 0x95, 0x13, 0, 4, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x10, 0];

#[test]
fn requests() {
    let read = Request::parse(&READ).unwrap();
    let expected = Request {
        flags: CommandFlags::DF,
        command: Command::Read,
        cookie: 0x0102_0304_0506_0708,
        offset: 65536,
        length: 4096,
    };
    assert_eq!(read, expected);
    assert_eq!(read.to_bytes(), READ);
    assert_eq!((read.payload(), Request { command: Command::Write, ..read }.payload()), (0, 4096));
    let mut wrong = READ;
    wrong[3] = 0x14;
    assert!(Request::parse(&wrong).unwrap_err().to_string().contains("0x25609514"));
}

#[test]
fn heads_of_replies() {
    let cookie = 0x0102_0304_0506_0708;
    let all = [
        (Head::simple(cookie, None), "67446698000000000102030405060708"),
        (Head::simple(cookie, Some(Errno::Invalid)), "67446698000000160102030405060708"),
        (Head::done(cookie), "668e33ef00010000010203040506070800000000"),
        (Head::data(cookie, 512, 4096), "668e33ef000100010102030405060708000010080000000000000200"),
        (
            Head::block_status(cookie, 1, 4096, 0),
            "668e33ef000100050102030405060708 0000000c 00000001 00001000 00000000",
        ),
        (Head::error(cookie, Errno::Io, "oh"), "668e33ef000180010102030405060708 00000008 00000005 0002 6f68"),
    ];
    for (head, octets) in all {
        assert_eq!(hex(head.as_bytes()), octets.replace(' ', ""));
    }
    // The longest text is cut, between characters.
    let long = Head::error(cookie, Errno::Io, &"ä".repeat(300));
    assert_eq!(long.as_bytes().len(), CHUNK_LEN + 6 + TEXT_MAX);
    let odd = Head::error(cookie, Errno::Io, &format!("x{}", "ä".repeat(300)));
    assert_eq!(odd.as_bytes().len(), CHUNK_LEN + 6 + TEXT_MAX - 1);
    assert!(std::str::from_utf8(&odd.as_bytes()[CHUNK_LEN + 6..]).is_ok());
}

/// All that `nbdinfo` of libnbd 1.14.2 said to an export called "disk".
const NBDINFO: &str = "00000003\
    49484156454f5054 00000008 00000000\
    49484156454f5054 00000006 00000010 00000004 6469736b 0003 0003 0001 0002\
    49484156454f5054 00000009 0000000c 00000004 6469736b 00000000\
    49484156454f5054 00000007 00000010 00000004 6469736b 0003 0003 0001 0002\
    25609513 0000 0000 0000000000000001 0000000000000000 00000200\
    25609513 0000 0002 0000000000000002 0000000000000000 00000000";

/// All that `qemu-io -c 'read 0 4k'` of QEMU 7.2 said to it.
const QEMU_IO: &str = "00000003\
    49484156454f5054 00000008 00000000\
    49484156454f5054 0000000a 0000001f 00000004 6469736b 00000001 0000000f 626173653a616c6c6f636174696f6e\
    49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003\
    25609513 0000 0000 000055dd90983090 0000000000000000 00001000\
    25609513 0000 0003 000055dd90983090 0000000000000000 00000000\
    25609513 0000 0002 0000000000000000 0000000000000000 00000000";

/// What clients have said, as it was understood.
fn heard(capture: &str) -> Vec<String> {
    let digits: Vec<u8> = capture.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let octets: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let (flags, mut rest) = octets.split_at(CLIENT_FLAGS_LEN);
    let mut all = vec![format!("{:?}", ClientFlags::parse(flags).unwrap())];
    loop {
        let (header, data) = rest.split_at(OPTION_HEADER_LEN);
        let header = OptionHeader::parse(header).unwrap();
        let (data, later) = data.split_at(header.length as usize);
        rest = later;
        all.push(match header.option {
            OptionType::Info | OptionType::Go => {
                format!("{:?} {:?}", header.option, ExportRequest::parse(data).unwrap())
            }
            OptionType::ListMetaContext | OptionType::SetMetaContext => {
                format!("{:?} {:?}", header.option, ContextRequest::parse(data).unwrap())
            }
            other => format!("{other:?} {data:?}"),
        });
        if header.option == OptionType::Go {
            break;
        }
    }
    all.extend(rest.chunks(REQUEST_LEN).map(|request| {
        let Request { command, flags, offset, length, .. } = Request::parse(request).unwrap();
        format!("{command} {:#x} {offset} {length}", flags.bits())
    }));
    all
}

#[test]
fn what_other_peoples_clients_say_is_understood() {
    let flags = "ClientFlags { fixed_newstyle: true, no_zeroes: true }";
    let wanted = "ExportRequest { name: \"disk\", wanted: [BlockSize, Name, Description] }";
    let expected = [
        flags,
        "StructuredReply []",
        &format!("Info {wanted}"),
        "ListMetaContext ContextRequest { name: \"disk\", queries: [] }",
        &format!("Go {wanted}"),
        "read 0x0 0 512",
        "disconnect 0x0 0 0",
    ];
    assert_eq!(heard(NBDINFO), expected);
    let expected = [
        flags,
        "StructuredReply []",
        "SetMetaContext ContextRequest { name: \"disk\", queries: [\"base:allocation\"] }",
        "Go ExportRequest { name: \"disk\", wanted: [BlockSize] }",
        "read 0x0 0 4096",
        "flush 0x0 0 0",
        "disconnect 0x0 0 0",
    ];
    assert_eq!(heard(QEMU_IO), expected);
}

proptest! {
    #[test]
    fn whatever_comes_is_an_answer_or_an_error(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
        crate::fuzzing::nbd_decoders(&octets);
    }

    #[test]
    fn a_request_comes_back(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        let flags = CommandFlags::from_bits_retain(flags);
        let request = Request { flags, command: Command::from_code(command), cookie, offset, length };
        prop_assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
    }
}
