//! The ranges of requests that name several (DISCARD, WRITE ZEROES): rare, and none is there until one has come.

use crate::request::{MAX_RANGES, Range};

/// Rows of ranges. There are as many as were needed at a time, and one more.
#[derive(Default)]
pub(super) struct Ranges {
    rows: Vec<[Range; MAX_RANGES]>,
    free: Vec<u16>,
}

impl Ranges {
    /// Where the ranges of the next request go; it has them once [`Ranges::take`] was called.
    pub(super) fn next(&mut self) -> &mut [Range] {
        if self.free.is_empty() {
            self.free.push(self.rows.len() as u16);
            self.rows.push([Range::default(); MAX_RANGES]);
        }
        let row = self.free[self.free.len() - 1];
        &mut self.rows[usize::from(row)]
    }

    /// Takes the row that [`Ranges::next`] gave last.
    pub(super) fn take(&mut self) -> u16 {
        self.free.pop().expect("a row is taken after it was written")
    }

    /// Range `at` of row `row`.
    pub(super) fn get(&self, row: u16, at: u16) -> Range {
        self.rows[usize::from(row)][usize::from(at)]
    }

    /// The request of `row` is over.
    pub(super) fn give_back(&mut self, row: u16) {
        self.free.push(row);
    }

    /// Rows that requests have.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.rows.len() - self.free.len()
    }
}
