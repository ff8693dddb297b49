//! A queue of at most so many values in one piece of memory, which never grows: a push is a store, a look an addition.

/// See the module.
#[derive(Debug)]
pub struct Fifo<T> {
    /// A power of two of them.
    places: Box<[T]>,
    /// Where the first lies, whatever is beyond the mask.
    first: usize,
    len: usize,
}

impl<T: Copy> Fifo<T> {
    /// Room for `capacity` values or more. `blank` is never seen.
    pub fn new(capacity: usize, blank: T) -> Self {
        Fifo { places: vec![blank; capacity.next_power_of_two()].into(), first: 0, len: 0 }
    }

    /// How many values there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `value`; `false`, and nothing has changed, when there is no room.
    #[inline(always)]
    pub fn push(&mut self, value: T) -> bool {
        let places = &mut self.places[..];
        let mask = places.len() - 1;
        if self.len > mask {
            return false;
        }
        places[(self.first + self.len) & mask] = value;
        self.len += 1;
        true
    }

    /// The value with `at` others before it.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        let places = &self.places[..];
        let mask = places.len() - 1;
        (at < self.len).then(|| &places[self.first.wrapping_add(at) & mask])
    }

    /// As [`Fifo::get`], to be changed.
    #[inline]
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        let places = &mut self.places[..];
        let mask = places.len() - 1;
        if at < self.len { Some(&mut places[self.first.wrapping_add(at) & mask]) } else { None }
    }

    /// The first one.
    #[inline]
    pub fn front(&self) -> Option<&T> {
        self.get(0)
    }

    /// The last one.
    pub fn back(&self) -> Option<&T> {
        self.get(self.len.checked_sub(1)?)
    }

    /// Takes the first one away.
    #[inline]
    pub fn pop_front(&mut self) -> Option<T> {
        let value = *self.get(0)?;
        self.first = self.first.wrapping_add(1);
        self.len -= 1;
        Some(value)
    }

    /// Takes the last one away.
    pub fn pop_back(&mut self) -> Option<T> {
        let value = *self.back()?;
        self.len -= 1;
        Some(value)
    }

    /// Takes all away. What is pushed next lies where the first of all lay, which is in the cache.
    #[inline]
    pub fn clear(&mut self) {
        (self.first, self.len) = (0, 0);
    }

    /// All, the first one first.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let places = &self.places[..];
        let (first, mask) = (self.first, places.len() - 1);
        (0..self.len).map(move |at| &places[first.wrapping_add(at) & mask])
    }

    /// As [`Fifo::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let len = self.places.len();
        let (start, all) = (self.first & (len - 1), self.len);
        let (wrapped, straight) = self.places.split_at_mut(start);
        let here = all.min(straight.len());
        straight[..here].iter_mut().chain(&mut wrapped[..all - here])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// In step with the standard queue, over and over the end of its memory, until it is full and until it is empty.
    #[test]
    fn it_is_a_queue() {
        for seed in 1..50u64 {
            let (mut random, mut fifo, mut model) = (seed, Fifo::new(1 + seed as usize % 9, 0), VecDeque::new());
            for n in 0..2000u64 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                match (random >> 33) % if seed % 2 == 0 { 7 } else { 4 } {
                    0 => assert_eq!(fifo.pop_front(), model.pop_front()),
                    1 => assert_eq!(fifo.pop_back(), model.pop_back()),
                    2 if n % 31 == 0 => {
                        fifo.clear();
                        model.clear();
                    }
                    3 => fifo.iter_mut().zip(model.iter_mut()).for_each(|(a, b)| {
                        *a += 1;
                        *b += 1;
                    }),
                    _ if model.len() < (1 + seed as usize % 9).next_power_of_two() => {
                        assert!(fifo.push(n));
                        model.push_back(n);
                    }
                    _ => assert!(!fifo.push(n), "full"),
                }
                assert_eq!((fifo.len(), fifo.is_empty()), (model.len(), model.is_empty()));
                assert!(fifo.iter().eq(model.iter()) && fifo.iter_mut().map(|v| *v).eq(model.iter().copied()));
                assert_eq!((fifo.front(), fifo.back()), (model.front(), model.back()));
                let at = (random >> 20) as usize % 12;
                assert_eq!(
                    (fifo.get(at).copied(), fifo.get_mut(at).copied()),
                    (model.get(at).copied(), model.get(at).copied())
                );
            }
        }
    }
}
