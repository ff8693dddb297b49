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
