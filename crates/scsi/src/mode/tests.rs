use super::*;

const CACHE: Caching = Caching { write_cache: true, read_cache_disabled: false, non_volatile_disabled: true };
const CONTROL: Control = Control {
    task_sets: 1,
    descriptor_sense: true,
    queue_algorithm: 1,
    queue_error: 3,
    attention_interlock: 2,
    software_write_protect: true,
    task_aborted_status: true,
    busy_timeout_100ms: 0x1234,
    self_test_seconds: 0x5678,
};
const EXCEPTIONS: InformationalExceptions =
    InformationalExceptions { disabled: true, test: true, method: 6, interval_100ms: 0x0102_0304, report_count: 5 };

fn sample() -> ModeData {
    ModeData {
        medium_type: 0,
        write_protected: true,
        dpo_fua: true,
        descriptor: Some(BlockDescriptor { blocks: 0x0102_0304, block_bytes: 0x1000 }),
        pages: vec![CACHE.to_page(), CONTROL.to_page(), EXCEPTIONS.to_page()],
        total_bytes: 0,
    }
}

#[test]
fn octets() {
    let pages = concat!(
        "08 12 04 00 0000 0000 0000 0000 01 00 00 00 0000 0000",
        "0a 0a 24 16 28 40 0000 1234 5678",
        "1c 0a 0c 06 01020304 00000005"
    );
    let six = "37 00 90 08 01020304 00 001000".to_owned() + pages;
    let ten = "003a 00 90 00 00 0008 01020304 00 001000".to_owned() + pages;
    for (header, want) in [(Header::Six, six), (Header::Ten, ten)] {
        let b = sample().to_bytes(header);
        let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, want.replace(' ', ""));
        let got = ModeData::parse(&b, header).unwrap();
        assert_eq!(got, ModeData { total_bytes: b.len(), ..sample() });
        let all = (got.caching(), got.control(), got.informational_exceptions());
        assert_eq!(all, (Some(CACHE), Some(CONTROL), Some(EXCEPTIONS)));
    }
}

#[test]
fn what_is_cut_off_is_left_out() {
    for (header, needed) in [(Header::Six, 12), (Header::Ten, 16)] {
        let b = sample().to_bytes(header);
        for len in 0..b.len() {
            let got = ModeData::parse(&b[..len], header);
            if len < needed {
                assert!(matches!(got, Err(ParseError::Short { .. })), "{len}");
                continue;
            }
            let got = got.unwrap();
            assert_eq!(got.total_bytes, b.len());
            let pages = [20, 12, 12].iter().scan(needed, |at, page| {
                *at += page;
                Some(*at)
            });
            assert_eq!(got.pages.len(), pages.filter(|&end| end <= len).count(), "{len}");
            assert_eq!(got.caching().is_some(), len >= needed + 20, "{len}");
        }
    }
}

#[test]
fn forms_that_we_do_not_send() {
    // LONGLBA, and a page with a subpage before the one that is looked for.
    let b = [
        0, 0x28, 0, 0, 1, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x4a, 1, 0, 2, 9, 9, 0x8a, 2, 4, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let got = ModeData::parse(&b, Header::Ten).unwrap();
    assert_eq!(got.descriptor, Some(BlockDescriptor { blocks: 1 << 32, block_bytes: 512 }));
    assert_eq!(got.pages[0], ModePage { code: 0x0a, subpage: 1, saveable: false, body: vec![9, 9] });
    assert_eq!(got.pages[1], ModePage { code: 0x0a, subpage: 0, saveable: true, body: vec![4, 0] });
    assert!(got.control().unwrap().descriptor_sense && got.caching().is_none());
    // Octets of zero are an endless row of pages 00h without body: they end, and are nothing.
    let zeroes = ModeData::parse(&[11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Header::Six).unwrap();
    assert_eq!(zeroes.pages.len(), 4);
    // Beyond what the data say there is nothing, but in a parameter list their length is reserved.
    let mut list = sample().to_bytes(Header::Six);
    list[0] = 0;
    assert!(ModeData::parse(&list, Header::Six).is_err(), "not even the block descriptor");
    assert_eq!(ModeData::parse_list(&list, Header::Six).map(|data| data.pages), Ok(sample().pages));
    list[0] = 11 + 20;
    assert_eq!(ModeData::parse(&list, Header::Six).map(|data| data.pages.len()), Ok(1));
    let long = ModePage { code: 1, subpage: 2, saveable: true, body: vec![7; 300] };
    let data = ModeData { pages: vec![long.clone()], ..ModeData::default() };
    assert_eq!(ModeData::parse(&data.to_bytes(Header::Ten), Header::Ten).unwrap().pages, [long]);
}
