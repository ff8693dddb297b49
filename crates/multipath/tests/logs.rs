//! What is logged for people who look for the reason.

use crate::common::log::capture;
use crate::common::scripted::{Bench, info};
use core::time::Duration;
use polypath_block::{Access, Code, DeviceInfo, Op, Proof};
use polypath_multipath::{Availability, GroupConfig};

#[test]
fn a_request_that_failed_on_a_path_is_logged_with_the_path_and_one_that_it_puts_off_is_not() {
    for (code, lines) in [(Code::PathProtocol, 1), (Code::PathBusy, 0), (Code::PathNoAccess, 0)] {
        let mut b = Bench::with_caches(&["a", "a"]);
        b.write(1);
        let at = usize::from(b.devices[0].in_flight().is_empty());
        b.devices[at].complete(b.devices[at].only(), code, Proof::Answered);
        let log = capture(|| b.turn());
        let failed: Vec<_> = log.iter().filter(|l| l.contains("request failed on the path")).collect();
        assert_eq!(failed.len(), lines, "{code:?}: {log:?}");
        assert!(failed.iter().all(|l| l.contains(&format!("path=p{at} "))), "{failed:?}");
        b.finish();
    }
}

#[test]
fn a_flush_that_fails_before_a_removal_is_logged_and_one_that_succeeds_is_not() {
    for (code, lines) in [(Code::Medium, 1), (Code::Ok, 0)] {
        let mut b = Bench::with_caches(&["a", "b"]);
        b.dirty(0, 1);
        b.group.remove_path(b.ids[0]).expect("there");
        b.turns(2);
        let io = b.devices[0].only();
        assert_eq!(io.op, Op::Flush);
        b.devices[0].complete(io, code, Proof::Answered);
        let log = capture(|| b.turns(2));
        let failed = log.iter().filter(|l| l.contains("flush before the removal") && l.contains("path=p0 ")).count();
        assert_eq!(failed, lines, "{code:?}: {log:?}");
        b.finish();
    }
}

#[test]
fn that_requests_wait_for_a_path_is_told_once_and_that_they_fail_once_more() {
    let mut b =
        Bench::new(GroupConfig { no_path_timeout_ms: 500, ..GroupConfig::new("disk") }, vec![info("a"), info("a")]);
    let mut second = b.second_queue();
    let of = |log: &[String], level: &str| log.iter().filter(|l| l.contains(level) && l.contains("requests ")).count();
    let said = |log: Vec<String>| [of(&log, "WARN"), of(&log, "ERROR"), of(&log, "INFO")];
    assert_eq!(said(capture(|| b.turns(2))), [0, 0, 0]);
    assert_eq!(b.group.availability(), Availability { usable_paths: 2, ..Availability::default() });
    let log = capture(|| {
        b.devices.iter().for_each(|d| d.set_down(Code::PathLost, "the cable is out"));
        b.turns(2);
    });
    assert_eq!(said(log), [0, 0, 0], "nobody waits yet");
    let since = b.group.availability().no_path_since;
    assert!(since.is_some());
    let log = capture(|| {
        b.write(1);
        b.write(2);
        b.turns(2);
        b.turn_of(&mut *second);
    });
    assert!(
        log.iter().any(|l| l.contains("WARN") && l.contains("500 ms") && l.contains("p0 is down: the cable is out")),
        "{log:?}"
    );
    assert_eq!(said(log), [1, 0, 0]);
    let waiting = Availability { usable_paths: 0, no_path_since: since, waiting: 2, failed: 0 };
    assert_eq!(b.group.availability(), waiting);
    let log = capture(|| {
        b.pass(600);
        b.write(3);
        b.turns(2);
        b.pass(600);
    });
    assert_eq!(said(log), [0, 1, 0]);
    assert_eq!(b.group.availability(), Availability { waiting: 0, failed: 3, ..waiting });
    let log = capture(|| {
        b.devices[0].set_live(info("a"));
        b.turns(2);
    });
    assert_eq!(said(log), [0, 0, 1]);
    assert_eq!(b.group.availability(), Availability { usable_paths: 1, failed: 3, ..Availability::default() });
    b.turn_of(&mut *second);
    drop(second);
    b.finish();
}

#[test]
fn a_path_without_access_is_none_and_a_group_that_is_closed_has_no_outage() {
    let mut b = Bench::with_caches(&["a"]);
    assert_eq!(b.group.is_last_usable(b.ids[0]), Ok(true));
    b.devices[0].set_live(DeviceInfo { access: Access::Inaccessible, ..info("a") });
    b.turn();
    assert!(b.group.availability().no_path_since.is_some());
    assert_eq!(b.group.is_last_usable(b.ids[0]), Ok(false), "it carries nothing");
    b.devices[0].set_live(info("a"));
    b.turn();
    assert_eq!(b.group.availability().no_path_since, None);
    b.add(info("a"));
    b.turn();
    assert_eq!((b.group.is_last_usable(b.ids[0]), b.group.is_last_usable(b.ids[1])), (Ok(false), Ok(false)));
    let log = capture(|| b.finish());
    assert!(!log.iter().any(|l| l.contains("WARN") || l.contains("ERROR")), "{log:?}");
}

#[test]
fn requests_that_may_wait_for_ever_do() {
    let mut b = Bench::new(
        GroupConfig { no_path_timeout_ms: GroupConfig::FOR_EVER_MS, ..GroupConfig::new("disk") },
        vec![info("a")],
    );
    b.devices[0].set_down(Code::PathLost, "down");
    b.turn();
    let log = capture(|| {
        b.write(1);
        b.turn();
    });
    assert!(log.iter().any(|l| l.contains("for ever")), "{log:?}");
    for _ in 0..100 {
        b.now = b.now.after(Duration::from_secs(86_400));
        b.turn();
    }
    assert_eq!(b.group.availability().waiting, 1);
    b.devices[0].set_live(info("a"));
    b.turns(2);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!((b.group.availability().waiting, b.group.availability().failed), (0, 0));
    b.finish();
}
