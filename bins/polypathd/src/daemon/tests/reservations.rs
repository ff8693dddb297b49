//! Reservations as RPC asks for them. Real ones are tried on a real target.

use super::*;
use polypath::block::ReservationType;

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &[])).unwrap();
    let kind = ReservationType::WriteExclusiveRegistrantsOnly;
    for (disk, wanted, words) in [
        ("nobody", Wanted::Report, "no disk"),
        ("vm", Wanted::Reserve { kind }, "reservation_register"),
        ("vm", Wanted::Preempt { victim: 1, kind, abort: true }, "reservation_register"),
        ("vm", Wanted::Clear, "reservation_register"),
        ("vm", Wanted::Unregister, "reservation_register"),
        ("vm", Wanted::Register { key: 7 }, "no reservations"),
        ("vm", Wanted::Report, "no reservations"),
    ] {
        let error = daemon.reservation(disk, wanted).unwrap_err();
        assert!(error.contains(words), "{wanted:?}: {error}");
    }
    assert_eq!(daemon.disks()[0]["reservation"], json!({ "key": null, "type": null, "ended": null }));
    assert!(daemon.stop().is_empty());
}
