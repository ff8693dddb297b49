//! What holds of the table of requests between turns. Tests look after each.

use super::{Active, Request, Todo};
use crate::request::S_OK;
use polypath_block::SegSpan;

impl Active {
    /// Panics if a row is not what [`Active`] relies on.
    pub(super) fn check(&self) {
        let active = self.requests.iter().filter(|request| request.active).count();
        assert_eq!(active, usize::from(self.in_flight), "requests in flight");
        let ranges = self.requests.iter().filter(|request| request.ranges.is_some()).count();
        assert_eq!(self.ranges.taken(), ranges, "rows of ranges");
        assert!(self.offer.is_empty(), "an offer outlived its turn");
        let mut idle = 0;
        for (head, request) in self.requests.iter().enumerate() {
            if request.plain || !request.active {
                request.check(head);
            }
            idle += usize::from(request.active && request.outstanding == 0);
        }
        // Who is not with the device waits, once.
        for &head in self.pending.iter().chain(&self.held) {
            let request = &self.requests[usize::from(head)];
            assert!(request.active && request.todo != Todo::Nothing, "{head} waits for nothing: {request:?}");
            idle = idle.wrapping_sub(usize::from(request.outstanding == 0));
        }
        assert_eq!(idle, 0, "requests that nobody will ever begin, or begin twice");
    }
}

impl Request {
    /// One that is free, or plain: all that neither needs is as if it had never been.
    fn check(&self, head: usize) {
        let Request { active, plain, fresh, left, flush_after, flush, status, outstanding, todo, room, ranges, .. } =
            *self;
        let is_bare = !(fresh | left | flush_after | flush)
            && (status, todo, room, ranges) == (S_OK, Todo::Nothing, SegSpan::EMPTY, None);
        assert!(is_bare && plain == active && outstanding == u16::from(plain), "row {head}: {self:?}");
    }
}
