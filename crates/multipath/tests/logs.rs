//! What is logged for people who look for the reason.

use crate::common::log::capture;
use crate::common::scripted::Bench;
use polypath_block::{Code, Op, Proof};

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
