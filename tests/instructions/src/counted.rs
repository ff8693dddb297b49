//! The two doors that callgrind watches. `xtask/src/instructions/callgrind.rs` names them: `--toggle-collect` turns collecting over at each
//! entry and return, so that the second one inside the first leaves something out.

use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

/// Everything that `work` does is counted.
pub(crate) fn counted<T>(work: impl FnOnce() -> T) -> T {
    COUNTING.set(true);
    let result = polypath_counted(work);
    COUNTING.set(false);
    result
}

/// Nothing that `work` does is counted, whoever calls.
pub(crate) fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    // Elsewhere the door would turn collecting on.
    if COUNTING.replace(false) {
        let result = polypath_uncounted(work);
        COUNTING.set(true);
        result
    } else {
        work()
    }
}

#[inline(never)]
fn polypath_counted<T>(work: impl FnOnce() -> T) -> T {
    // Not the last thing done, or it might become a jump, which returns from elsewhere.
    black_box(work())
}

#[inline(never)]
fn polypath_uncounted<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}
