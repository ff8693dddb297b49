//! The three near disks keep the promises of a queue.

use polypath_block::contract;
use polypath_block::{Device, DiskUri};
use polypath_local::testing::RealRig;
use std::sync::Arc;

fn open(uri: &str) -> Arc<dyn Device> {
    polypath_local::open(&uri.parse::<DiskUri>().unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

fn with_file(bytes: u64, options: &str, run: impl Fn(&str)) {
    let file = tempfile::Builder::new().prefix("polypath").tempfile_in(target()).expect("a file");
    file.as_file().set_len(bytes).expect("its length");
    run(&format!("file://{}?{options}", file.path().display()));
}

/// The build's own folder: likely a file system that does O_DIRECT, which /tmp may not be.
fn target() -> std::path::PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

#[test]
fn null() {
    for bs in [512, 4096] {
        contract::check(&mut RealRig::new(open(&format!("null://1GiB?bs={bs}")), false));
    }
}

#[test]
fn ram() {
    for uri in ["ram://8MiB", "ram://8MiB?bs=4096", "ram://8MiB?bs=65536", "ram://8MiB?readonly=on"] {
        contract::check(&mut RealRig::new(open(uri), true));
        contract::check(&mut RealRig::new(open(uri), true).misaligned());
    }
}

#[test]
fn file() {
    for options in [
        "bs=4096",
        "bs=512",
        "bs=4096&direct=off",
        "bs=4096&engine=threads",
        "bs=65536&engine=threads&direct=off",
        "bs=4096&readonly=on",
    ] {
        with_file(8 << 20, options, |uri| {
            contract::check(&mut RealRig::new(open(uri), true));
            contract::check(&mut RealRig::new(open(uri), true).misaligned());
        });
    }
}

#[test]
fn a_file_without_io_uring_says_so_and_works() {
    with_file(1 << 20, "engine=threads", |uri| {
        let device = open(uri);
        assert!(device.state().info().is_some());
        device.close();
        assert!(device.state().info().is_none(), "a closed device without queues is gone");
        let error = device.open_queue(polypath_block::QueueConfig { depth: 1 }).err().expect("gone");
        assert!(error.to_string().contains("closed"), "{error}");
    });
}

#[test]
fn bad_uris_name_the_part() {
    let error = |uri: &str| polypath_local::open(&uri.parse().unwrap()).expect_err(uri).to_string();
    for (uri, part) in [
        ("null://1GiB?colour=red", "option colour"),
        ("ram://1GiB?bs=3", "option bs"),
        ("ram://100", "less than one block"),
        ("file:///no/such/file", "truncate"),
        ("file:///dev/null", "neither a regular file nor a block device"),
        ("file:///dev/zero?direct=maybe", "option direct"),
        ("file:///dev/zero?engine=steam", "option engine"),
        ("nvme-tcp://h/nqn", "no disk of this machine"),
    ] {
        let text = error(uri);
        assert!(text.contains(part), "{uri}: {text}");
    }
    with_file(100, "", |uri| assert!(error(uri).contains("less than one block"), "{uri}"));
}

#[test]
fn ram_disks_of_one_identity_share_a_medium() {
    let uri = "ram://1MiB?uuid=6f1c1d5e-0000-4000-8000-00000000c0de";
    let (a, b) = (open(uri), open(uri));
    let (ia, ib) = (a.state().info().cloned().unwrap(), b.state().info().cloned().unwrap());
    assert_eq!(ia.identity.compare(&ib.identity), polypath_block::Verdict::Same);
    assert_eq!(ia.identity.cache_domain, ib.identity.cache_domain);
    let other = polypath_local::open(&uri.replace("1MiB", "2MiB").parse().unwrap()).expect_err("another size");
    assert!(other.to_string().contains("size"), "{other}");
    let (c, d) = (open("ram://1MiB"), open("ram://1MiB"));
    let (ic, id) = (c.state().info().cloned().unwrap(), d.state().info().cloned().unwrap());
    assert_eq!(ic.identity.compare(&id.identity), polypath_block::Verdict::Unknown);
    assert_ne!(ic.identity.cache_domain, id.identity.cache_domain);
}

/// A loop device over a file, given back on drop.
struct Loop {
    device: String,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// Says why there is none where this machine does not let us.
    fn new(bytes: u64) -> Result<Loop, String> {
        let file = tempfile::Builder::new().tempfile_in(target()).map_err(|e| e.to_string())?;
        file.as_file().set_len(bytes).map_err(|e| e.to_string())?;
        let out = std::process::Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output();
        let out = out.map_err(|e| format!("losetup: {e}"))?;
        if !out.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
        Ok(Loop { device: String::from_utf8_lossy(&out.stdout).trim().to_owned(), _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let freed = std::process::Command::new("losetup").args(["-d", &self.device]).status();
        assert!(freed.is_ok_and(|s| s.success()), "losetup -d {} failed", self.device);
    }
}

#[test]
fn block_device() {
    let disk = match Loop::new(8 << 20) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("skipped: no loop device here ({why})"),
    };
    for options in ["", "?engine=threads", "?bs=4096", "?direct=off"] {
        let uri = format!("file://{}{options}", disk.device);
        let info = open(&uri).state().info().cloned().unwrap();
        assert_eq!(info.geometry.bytes(), 8 << 20, "{uri}");
        contract::check(&mut RealRig::new(open(&uri), true));
        contract::check(&mut RealRig::new(open(&uri), true).misaligned());
    }
    let small = polypath_local::open(&format!("file://{}?bs=256", disk.device).parse().unwrap());
    assert!(small.unwrap_err().to_string().contains("option bs"));
}

#[test]
fn direct_is_taken_where_it_fits_and_said_where_it_does_not() {
    let file = |bytes: u64| {
        let file = tempfile::NamedTempFile::new_in(target()).unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    };
    let on = file(1 << 20);
    let uri = |f: &tempfile::NamedTempFile, o: &str| format!("file://{}?{o}", f.path().display()).parse().unwrap();
    let direct = |uri: DiskUri| polypath_local::FileDevice::open(&uri).map(|d| d.is_direct());
    assert!(!direct(uri(&on, "direct=off")).unwrap());
    // Whatever this file system does, auto and on must agree about it.
    let auto = direct(uri(&on, "bs=4096")).unwrap();
    println!("O_DIRECT here: {auto}");
    match direct(uri(&on, "bs=4096&direct=on")) {
        Ok(is) => assert!(is && auto),
        Err(error) => assert!(!auto && error.to_string().contains("direct=on"), "{error}"),
    }
}

/// Every request reaches the file itself: what others see through the page cache is what was written.
#[test]
fn the_file_holds_what_was_written() {
    use polypath_block::{Cx, Done, Flags, Io, Op, QueueConfig, SegTable, Time};
    for options in ["bs=4096", "bs=4096&direct=off", "bs=4096&engine=threads"] {
        with_file(1 << 20, options, |uri| {
            let path = uri.strip_prefix("file://").unwrap().split('?').next().unwrap();
            std::fs::write(path, vec![0xee; 1 << 20]).unwrap();
            let mut rig = RealRig::new(open(&format!("{uri}&lock=off")), true);
            let mut segs = SegTable::new(64);
            let span = contract::Rig::memory(&mut rig, &mut segs, 8192, 2);
            contract::Rig::fill(&mut rig, &segs, span, &[0x11; 8192]);
            let mut queue = open(uri).open_queue(QueueConfig { depth: 8 }).unwrap();
            let mut done = Done::with_capacity(8);
            let mut run = |io: Io, segs: &mut SegTable| {
                let mut cx = Cx { now: Time::from_millis(1), segs, reactor: 0 };
                queue.submit(&mut cx, io).unwrap();
                let start = std::time::Instant::now();
                while done.is_empty() {
                    assert!(start.elapsed().as_secs() < 10, "{io:?} never completed");
                    queue.kick(&mut cx);
                    queue.poll(&mut cx, &mut done);
                }
                let c = done.completions.pop().unwrap();
                c.status.code
            };
            let ok = polypath_block::Code::Ok;
            assert_eq!(run(Io::write(1, 1, 2, span).with_flags(Flags::FUA), &mut segs), ok);
            assert_eq!(run(Io::range(2, Op::WriteZeroes, 4, 3), &mut segs), ok);
            assert_eq!(run(Io::range(3, Op::WriteZeroes, 8, 64).with_flags(Flags::UNMAP | Flags::FUA), &mut segs), ok);
            let compare = |lba| Io { op: Op::Compare, ..Io::read(4, lba, 2, span) };
            assert_eq!(run(compare(1), &mut segs), ok);
            assert_eq!(run(compare(2), &mut segs), polypath_block::Code::Miscompare);
            assert_eq!(run(Io::flush(5), &mut segs), ok);
            // The file becomes shorter behind our back: an error, not a hang and not old memory.
            let bytes = std::fs::read(path).unwrap();
            let all = |from: usize, blocks: usize, byte: u8| {
                bytes[from * 4096..(from + blocks) * 4096].iter().all(|&b| b == byte)
            };
            assert!(
                all(0, 1, 0xee) && all(1, 2, 0x11) && all(3, 1, 0xee) && all(4, 3, 0) && all(7, 1, 0xee),
                "{options}"
            );
            assert!(all(8, 64, 0) && all(72, 184, 0xee), "{options}");
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
            assert_eq!(run(Io::read(6, 100, 2, span), &mut segs), polypath_block::Code::Medium);
            let mut cx = Cx { now: Time::from_millis(1), segs: &mut segs, reactor: 0 };
            queue.close(&mut cx);
            assert!(queue.is_drained());
        });
    }
}
