//! Commands that are passed through, as RPC asks for them. Real ones are tried on a real target.

use super::*;
use polypath::block::{PassthroughCommand, PassthroughData, PassthroughRequest};

#[test]
fn what_cannot_be_sent_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &[])).unwrap();
    let inquiry = |data| PassthroughRequest::reads(PassthroughCommand::Scsi(vec![0x12, 0, 0, 0, 96, 0]), data);
    for (disk, data, words) in [
        ("nobody", PassthroughData::None, "no disk"),
        ("vm", PassthroughData::In(96), "no path of it takes SCSI commands"),
        ("vm", PassthroughData::In(1 << 20), "1048576 bytes of data; expected at most 65536"),
    ] {
        let error = daemon.passthrough(disk, inquiry(data), Duration::from_secs(1)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(daemon.stop().is_empty());
}

/// Whether it is served or not: a daemon that is killed in the middle leaves behind what may land on top of its successor's changes.
#[test]
fn that_a_command_may_change_a_disk_is_written_down_while_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[]);
    let daemon = Daemon::start(&config).unwrap();
    let disk = daemon.disk("vm").unwrap();
    until(&daemon, || disk.group.availability().usable_paths == 1);
    daemon.begin_passing(&disk).unwrap();
    assert_eq!((&word(folder.path())["clean"], &word(folder.path())["passing"]), (&json!(false), &json!(true)));
    let left = std::fs::read(folder.path().join("state/vm.json")).unwrap();
    assert!(daemon.delete_disk("vm").unwrap_err().contains("passed through"));
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    daemon.begin_passing(&disk).unwrap();
    daemon.end_passing(&disk);
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    assert_eq!(word(folder.path())["clean"], false, "the first one is under way still");
    daemon.end_passing(&disk);
    assert_eq!(word(folder.path())["clean"], true);
    // Another daemon may have it now.
    drop(StateDir::open(&folder.path().join("state")).unwrap().claim("vm", Duration::ZERO).unwrap());
    // One that no path takes is over at once.
    let write = PassthroughRequest::changes(PassthroughCommand::Scsi(vec![0x2a; 10]), PassthroughData::None);
    assert!(daemon.passthrough("vm", write, Duration::from_secs(1)).is_err());
    assert_eq!(word(folder.path())["clean"], true);
    daemon.begin_passing(&disk).unwrap();
    assert_eq!(daemon.stop().len(), 1, "it is under way");
    daemon.end_passing(&disk);
    disk.ledger.let_go();
    // As a kill leaves it, of a disk whose writes land for a while.
    let mut mark: Value = serde_json::from_slice(&left).unwrap();
    mark["bound_ms"] = 60_000.into();
    std::fs::write(folder.path().join("state/vm.json"), mark.to_string()).unwrap();
    let daemon = Daemon::start(&config).unwrap();
    let disk = daemon.disk("vm").unwrap();
    for _ in 0..2 {
        let error = daemon.begin_passing(&disk).unwrap_err();
        assert!(error.contains("changes wait"), "{error}");
        assert_eq!(word(folder.path())["clean"], true, "that one has sent nothing");
    }
    assert!(daemon.stop().is_empty());
}
