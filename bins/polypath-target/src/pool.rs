//! Memory of transfers that are over, kept for the next ones of the same connection.

/// Octets of memory that are kept at most, whatever a host has sent.
const MOST: usize = 32 << 20;
/// Pieces of memory that are kept at most.
const PIECES: usize = 64;
/// A piece of so many octets is good for any transfer; a longer one only for those that need half of it. Otherwise many short transfers
/// under way would hold long pieces, which nobody counts.
const SHORT: usize = 64 << 10;

/// See the module.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    /// Memory for `len` octets, empty.
    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let fits = |piece: &Vec<u8>| piece.capacity() <= SHORT.max(len.saturating_mul(2));
        let Some(mut piece) = self.kept.pop_if(|piece| fits(piece)) else { return Vec::new() };
        self.bytes -= piece.capacity();
        piece.clear();
        piece
    }

    /// Somebody needs `piece` no more.
    pub(crate) fn give(&mut self, piece: Vec<u8>) {
        let bytes = self.bytes + piece.capacity();
        if piece.capacity() > 0 && bytes <= MOST && self.kept.len() < PIECES {
            self.bytes = bytes;
            self.kept.push(piece);
        }
    }

    /// Octets of memory that are kept.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_lent_to_those_who_need_as_much() {
        let mut pool = Pool::default();
        (0..100).for_each(|_| pool.give(vec![1; 1 << 20]));
        assert_eq!(pool.bytes(), MOST);
        assert_eq!((pool.take(4096).capacity(), pool.bytes()), (0, MOST), "too long a piece for so little");
        let piece = pool.take(1 << 19);
        assert_eq!((piece.capacity(), piece.len(), pool.bytes()), (1 << 20, 0, MOST - (1 << 20)));
        let mut pool = Pool::default();
        (0..100).for_each(|_| pool.give(vec![1; 4096]));
        pool.give(Vec::new());
        assert_eq!(pool.bytes(), PIECES * 4096);
        assert_eq!(pool.take(0).capacity(), 4096);
    }
}
