//! Panics of a world, caught: they are violations like others.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// What the last panic of this thread said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What `work` returns, or what it said when it panicked. Nothing is printed.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                SAID.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    SAID.set(None);
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(false);
    result.map_err(|_| SAID.take().unwrap_or_else(|| "it ended early".to_owned()))
}

/// Leaves [`catch_panic`] at once and drops what is on the way, which may be in the middle of something: tables that object to being
/// dropped with I/O in them do not when their thread unwinds.
pub(crate) fn unwind() -> ! {
    resume_unwind(Box::new(()))
}
