//! Slices of a disk, each served by itself.

use super::*;
use crate::config::{NbdConfig, SliceConfig};
use crate::nbd::Place;
use polypath::SliceRange;

fn slice(name: &str, offset_bytes: u64, length_bytes: u64) -> SliceConfig {
    SliceConfig { name: name.into(), disk: "vm".into(), range: SliceRange { offset_bytes, length_bytes } }
}

/// A disk of 16 MiB with a slice of the second MiB and one of the third, and nothing served.
fn with_slices(folder: &Path) -> Config {
    Config { slices: vec![slice("a", 1 << 20, 1 << 20), slice("b", 2 << 20, 1 << 20)], ..config(folder, &[]) }
}

fn socket_of(slice: &str, socket: &str) -> VhostConfig {
    VhostConfig { disk: slice.into(), ..vhost(socket) }
}

fn guest(folder: &Path, socket: &str) -> GuestDisk {
    let uri = format!("vhost-user-blk://{}?io_timeout_ms=20000", folder.join(socket).display());
    let stack = Stack::start(StackConfig::default()).unwrap();
    GuestDisk::builder().uris(uri.as_str()).stack(&stack).open_blocking().unwrap()
}

fn write(disk: &GuestDisk, offset: u64, byte: u8) {
    let mut buffer = disk.buffer(4096).unwrap();
    buffer.write_at(0, &[byte; 4096]).unwrap();
    block_on(disk.write(offset, buffer)).0.unwrap();
}

fn read(disk: &GuestDisk, offset: u64) -> u8 {
    let (result, buffer) = block_on(disk.read(offset, disk.buffer(4096).unwrap()));
    result.unwrap();
    let bytes = buffer.to_vec();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

#[test]
fn each_user_has_its_own_part_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_slices(folder.path());
    config.vhosts = vec![socket_of("a", "a.sock"), socket_of("b", "b.sock")];
    let daemon = Daemon::start(&config).unwrap();
    let (a, b) = (guest(folder.path(), "a.sock"), guest(folder.path(), "b.sock"));
    assert_eq!((a.size(), b.size()), (1 << 20, 1 << 20));
    for at in [0, (1 << 20) - 4096] {
        write(&a, at, 0xaa);
        write(&b, at, 0xbb);
    }
    block_on(a.flush()).unwrap();
    assert_eq!([read(&a, 0), read(&a, (1 << 20) - 4096), read(&b, 0)], [0xaa, 0xaa, 0xbb]);
    assert!(block_on(a.read(1 << 20, a.buffer(4096).unwrap())).0.is_err());
    // What lies where is the disk's.
    let device: Arc<dyn Device> = lock(&daemon.state).disks["vm"].group.clone();
    let whole = GuestDisk::builder().device(device).stack(&daemon.stack).open_blocking().unwrap();
    let found = [0, (1 << 20) - 4096, 1 << 20, (2 << 20) - 4096, 2 << 20, 3 << 20].map(|at| read(&whole, at));
    assert_eq!(found, [0, 0, 0xaa, 0xaa, 0xbb, 0]);
    block_on(whole.close());
    let shown = daemon.slices();
    assert_eq!((&shown[0]["name"], &shown[0]["blocks"]), (&json!("a"), &json!(2048)));
    assert_eq!(shown[1]["served"], json!([folder.path().join("b.sock")]));
    assert_eq!(word(folder.path())["clean"], false, "the mark is the disk's");
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    assert_eq!(word(folder.path())["clean"], false, "the other one is served");
    assert!(daemon.stop().is_empty());
    assert_eq!(word(folder.path())["clean"], true);
}

#[test]
fn what_is_in_the_way_of_a_slice_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&with_slices(folder.path())).unwrap();
    for (config, words) in [
        (slice("a", 0, 4096), "there is a slice \"a\""),
        (slice("vm", 0, 4096), "there is a disk \"vm\""),
        (slice("c", 0, (1 << 20) + 512), "overlaps a"),
        (slice("c", 16 << 20, 512), "beyond"),
        (slice("c", 0, 0), "length is 0"),
        (SliceConfig { disk: "nobody".into(), ..slice("c", 0, 512) }, "no disk"),
    ] {
        let error = daemon.create_slice(&config).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(daemon.create_vhost(&vhost("whole.sock")).unwrap_err().contains("has slices"));
    assert!(daemon.delete_disk("vm").unwrap_err().contains("delete those first"));
    let clash = DiskConfig { name: "a".into(), ..config(folder.path(), &[]).disks.remove(0) };
    assert!(daemon.create_disk(&clash).unwrap_err().contains("there is a slice"));
    // Served by NBD as well as to a guest, and not deleted meanwhile.
    daemon.create_vhost(&socket_of("a", "a.sock")).unwrap();
    let place = Place::Socket("n.sock".into());
    let nbd = NbdConfig {
        disk: "b".into(),
        name: "b".into(),
        place: place.clone(),
        read_only: false,
        access: Default::default(),
    };
    daemon.create_nbd(&nbd).unwrap();
    for (slice, at) in [("a", "a.sock"), ("b", "n.sock")] {
        let error = daemon.delete_slice(slice).unwrap_err();
        assert!(error.contains(at), "{error}");
    }
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    daemon.delete_nbd(&place, None).unwrap();
    daemon.delete_slice("a").unwrap();
    assert!(daemon.delete_slice("a").unwrap_err().contains("slice_list"));
    // Its range is free again, and the disk is when all are gone.
    daemon.create_slice(&slice("c", 0, 2 << 20)).unwrap();
    ["b", "c"].iter().for_each(|name| daemon.delete_slice(name).unwrap());
    daemon.create_vhost(&vhost("whole.sock")).unwrap();
    assert!(daemon.create_slice(&slice("a", 0, 512)).unwrap_err().contains("served whole"));
    assert!(daemon.stop().is_empty());
}

/// A slice is deleted under a request that no path takes: what it may still write to is nobody else's.
#[test]
fn a_range_is_taken_until_its_last_request_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_slices(folder.path());
    config.vhosts = vec![socket_of("a", "a.sock")];
    let daemon = Daemon::start(&config).unwrap();
    let (_disk, _told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    assert!(daemon.delete_vhost(Path::new("a.sock")).is_err(), "not drained, after as long as that may take");
    assert!(daemon.delete_slice("a").unwrap_err().contains("in flight"));
    assert!(daemon.create_vhost(&socket_of("a", "c.sock")).unwrap_err().contains("in flight"));
    // Another one is not concerned.
    daemon.create_vhost(&socket_of("b", "b.sock")).unwrap();
    assert!(!daemon.stop().is_empty());
    std::mem::forget(daemon);
}
