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
