//! Looking at descriptors without waiting.

use polypath_block::Interest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;

/// Would one of `interests` end a sleep now? For whoever makes the time up and never really sleeps; a reactor uses epoll.
///
/// A descriptor that is not open counts as ready, as one that was closed under its owner's sleep should.
pub fn any_ready(interests: &[Interest]) -> bool {
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|interest| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            // SAFETY: only handed to poll(2), which checks the number itself and answers POLLNVAL for a stale one.
            PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(interest.fd.max(0)) }, flags)
        })
        .collect();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A failed call only means that the sleeper looks for itself.
    !fds.is_empty() && poll(&mut fds, Some(&now)).map_or(true, |n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bell;
    use polypath_block::{Armed, Waits};

    #[test]
    fn a_bell_that_rings_after_it_was_armed_is_ready() {
        let (first, second) = (Bell::new().unwrap(), Bell::new().unwrap());
        let mut waits = Waits::default();
        assert_eq!((first.arm(&mut waits), second.arm(&mut waits)), (Armed::Sleep, Armed::Sleep));
        assert!(!any_ready(&waits.interests));
        second.ring();
        assert!(any_ready(&waits.interests));
        second.rise();
        assert!(!any_ready(&waits.interests), "its owner is awake");
    }
}
