//! Memory of this process alone: it is there, it can be given back, and what is said of its pages is so.

use polypath_block::Segment;
use polypath_memory::{Pages, Region, with};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

fn bytes(region: &Region, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; len];
    region.window(at, len as u64).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes
}

fn write(region: &Region, at: u64, data: &[u8]) {
    region.window(at, data.len() as u64).unwrap().copy_in(0, data).unwrap();
}

fn address(region: &Region) -> usize {
    with(|t| t.view(Segment { offset: 0, region: region.id(), len: 1 }).unwrap().raw().0 as usize)
}

/// The flags of the mapping that `address` is in.
fn flags_of(address: usize) -> String {
    line_of(address, "VmFlags:")
}

/// What a line says of the mapping that `address` is in (proc_pid_smaps(5)).
fn line_of(address: usize, name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((from, to)) = range
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            inside = (from..to).contains(&address);
        } else if inside && let Some(flags) = line.strip_prefix(name) {
            return flags.to_owned();
        }
    }
    panic!("{address:#x} is not mapped");
}

#[test]
fn populated_memory_is_all_there_and_still_zero() {
    for (region, huge) in
        [(Region::private(4 * HUGE, true).unwrap(), true), (Region::private(4 * HUGE, false).unwrap(), false)]
    {
        let there = |region: &Region| {
            let kib = line_of(address(region), "Rss:").trim().trim_end_matches(" kB").to_owned();
            kib.parse::<u64>().unwrap() << 10
        };
        if region.pages() != Pages::Huge {
            assert!(there(&region) < HUGE, "nothing is taken before it is used, huge {huge}");
        }
        region.populate();
        assert!(region.pages() == Pages::Huge || there(&region) >= 4 * HUGE, "huge {huge}: {}", there(&region));
        assert!(bytes(&region, 0, 4 * HUGE as usize).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn private_memory_is_zero_as_long_as_asked_and_keeps_what_is_written() {
    for len in [1, PAGE, PAGE + 1, HUGE - 1, HUGE, HUGE + 1, 5 * HUGE + 3 * PAGE] {
        for huge in [false, true] {
            let region = Region::private(len, huge).unwrap();
            let have = region.len();
            assert_eq!(have, len.next_multiple_of(PAGE), "{huge}");
            assert!(bytes(&region, 0, have as usize).iter().all(|&b| b == 0));
            write(&region, 0, b"first");
            write(&region, have - 4, b"last");
            assert_eq!((bytes(&region, 0, 5), bytes(&region, have - 4, 4)), (b"first".to_vec(), b"last".to_vec()));
            assert!(region.window(have - 1, 2).is_none(), "what is mapped besides cannot be reached");
        }
    }
    assert!(Region::private(0, true).is_err() && Region::private((1 << 46) + 1, false).is_err());
}

/// Far more than the machine has: it costs nothing until it is used.
#[test]
fn private_memory_is_taken_as_it_is_used() {
    let region = Region::private(1 << 42, true).unwrap();
    write(&region, (1 << 42) - 8, b"the end.");
    assert_eq!(bytes(&region, (1 << 42) - 8, 8), b"the end.");
    assert_ne!(region.pages(), Pages::Huge);
}

#[test]
fn pages_given_back_are_zero_and_their_neighbours_stay() {
    let regions =
        [Region::private(3 * HUGE, true), Region::private(3 * HUGE, false), Region::allocate(3 * HUGE, false)];
    for region in regions.map(Result::unwrap) {
        let all = vec![7; 3 * HUGE as usize];
        write(&region, 0, &all);
        for (at, len) in [(1, PAGE), (0, PAGE - 1), (3 * HUGE, PAGE), (2 * HUGE, 2 * HUGE), (PAGE, u64::MAX - PAGE + 1)]
        {
            assert!(!region.give_back(at, len), "{at} {len}");
        }
        assert!(bytes(&region, 0, all.len()) == all, "nothing is lost by what was refused");
        let (from, len) = (HUGE - PAGE, HUGE + 3 * PAGE);
        if !region.give_back(from, len) {
            assert_eq!(region.pages(), Pages::Huge, "only reserved pages are kept");
            assert!(bytes(&region, 0, all.len()) == all);
            continue;
        }
        assert_ne!(region.pages(), Pages::Huge, "the next touch could be a SIGBUS");
        let mut want = all;
        want[from as usize..(from + len) as usize].fill(0);
        assert!(bytes(&region, 0, want.len()) == want);
        write(&region, from, b"again");
        assert_eq!(bytes(&region, from, 5), b"again");
    }
}

#[test]
fn what_is_said_of_pages_is_so() {
    let region = Region::private(4 * HUGE, true).unwrap();
    let (at, flags) = (address(&region), flags_of(address(&region)));
    let has = |flag| flags.split_whitespace().any(|f| f == flag);
    println!("{:?}: {:?}, {flags}", region.pages(), region.fallback());
    match region.pages() {
        Pages::Huge => assert!(has("ht") && region.fallback().is_none() && region.fd().is_some()),
        Pages::Transparent => {
            assert!(has("hg") && has("dc") && at.is_multiple_of(HUGE as usize) && region.fd().is_none());
            let said = region.fallback().expect("why no reserved ones");
            assert!(said.contains("no 4 huge pages") && said.contains("transparent ones are asked for"), "{said}");
        }
        Pages::Ordinary => {
            let said = region.fallback().expect("why no huge ones at all");
            assert!(
                !has("hg") && said.contains("transparent_hugepage") && said.contains("ordinary pages are used"),
                "{said}"
            );
        }
        Pages::Foreign(_) => panic!("it is ours"),
    }
    let plain = Region::private(4 * HUGE, false).unwrap();
    assert_eq!((plain.pages(), plain.fallback()), (Pages::Ordinary, None), "nothing was wanted, nothing is said");
    let small = Region::private(HUGE - PAGE, true).unwrap();
    assert_eq!(small.pages(), Pages::Ordinary, "no huge page is taken for less than one");
    assert!(small.fallback().is_some_and(|said| said.contains("less than a huge page")));
}

/// A guest's memory is the guest's: no hole is made in its file.
#[test]
fn memory_of_others_is_not_given_back() {
    let owner = Region::allocate(8192, false).unwrap();
    let fd = owner.fd().unwrap().try_clone_to_owned().unwrap();
    let foreign = Region::from_fd(fd, 0, 8192).unwrap();
    let window = owner.window(0, 8192).unwrap();
    window.copy_in(0, &[0xee; 8192]).unwrap();
    assert!(!foreign.give_back(0, 4096));
    let mut bytes = [0; 8192];
    window.copy_out(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xee; 8192]);
    assert!(owner.give_back(0, 4096), "its owner may");
    window.copy_out(0, &mut bytes).unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == [0xee; 4096]);
}

/// More than there is may be had, as long as it is not used: where the kernel counts what might be used, as a file.
#[test]
fn more_memory_than_there_is_may_be_had() {
    let region = Region::private(8 << 40, false).unwrap();
    write(&region, (8 << 40) - 4096, b"the end");
    assert_eq!(bytes(&region, (8 << 40) - 4096, 8), b"the end\0");
}
