//! How one poller of a reactor hands work to another that rests.

use std::cell::RefCell;

/// A poller that its reactor asks whether it may rest while others go on. It gets no turns then, until something that it named in
/// [`crate::Waits`] happens, or somebody wakes it by this name.
///
/// Whoever works for several pollers of a thread (a queue with several users) keeps it, and wakes the one to which something has come in
/// another's turn. It means nothing on other threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parked(u32);

thread_local! {
    static WOKEN: RefCell<Vec<Parked>> = const { RefCell::new(Vec::new()) };
}

impl Parked {
    /// For reactors: the poller of this number.
    pub const fn new(number: u32) -> Parked {
        Parked(number)
    }

    /// For reactors.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The poller gets a turn before this thread's reactor sleeps, and in its next turn at the latest. In vain, if it does not rest any more.
    pub fn wake(self) {
        WOKEN.with_borrow_mut(|woken| {
            if woken.last() != Some(&self) {
                woken.push(self);
            }
        });
    }

    /// For reactors: has anybody been woken whom [`Parked::take_woken`] has not told of?
    #[inline]
    pub fn any_woken() -> bool {
        WOKEN.with_borrow(|woken| !woken.is_empty())
    }

    /// For reactors: who was woken since this was asked last, added to `into`.
    pub fn take_woken(into: &mut Vec<Parked>) {
        WOKEN.with_borrow_mut(|woken| into.append(woken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_is_told_once_and_on_this_thread() {
        let (a, b) = (Parked::new(3), Parked::new(4));
        [a, a, b, a].into_iter().for_each(Parked::wake);
        std::thread::spawn(|| assert!(!Parked::any_woken())).join().unwrap();
        let mut woken = Vec::new();
        Parked::take_woken(&mut woken);
        assert_eq!((&woken[..], Parked::any_woken()), (&[a, b, a][..], false));
    }
}
