//! The octets of heads on their way out, first in, first out, in one piece of memory.
//!
//! Heads that are pushed one after the other lie one after the other, so that those of a whole batch of commands without data leave
//! as one entry of a list. As soon as nothing waits the memory is begun anew: what is written next is in the cache.

/// Heads of up to `HEAD` octets. See the module.
#[derive(Debug)]
pub struct Heads<const HEAD: usize> {
    octets: Box<[u8]>,
    /// Where the next head goes, if there is room for the longest behind it.
    next: usize,
}

impl<const HEAD: usize> Heads<HEAD> {
    /// Room for the heads of `pdus` PDUs at a time.
    pub fn new(pdus: usize) -> Self {
        // Whatever their lengths: less than one head is left unused at the end of the memory, and one is being written.
        Heads { octets: vec![0; (pdus + 2) * HEAD].into(), next: 0 }
    }

    /// Writes a head with `encode`, which returns its length; says where it lies, and that length.
    #[inline]
    pub fn push(&mut self, encode: impl FnOnce(&mut [u8; HEAD]) -> usize) -> (u32, u8) {
        let Some((at, head)) = self.room(0) else { return (0, 0) };
        let len = encode(head);
        debug_assert!(len <= HEAD);
        self.next += len;
        (at, len as u8)
    }

    /// Room for a head of `len` octets, and where it lies. There is always some for as many as were asked for.
    #[inline(always)]
    pub fn room(&mut self, len: u8) -> Option<(u32, &mut [u8; HEAD])> {
        if self.next + HEAD > self.octets.len() {
            self.next = 0;
        }
        let at = self.next;
        self.next += usize::from(len);
        Some((at as u32, self.octets.get_mut(at..)?.first_chunk_mut()?))
    }

    /// Takes back the head that was pushed last of those that are left; it lies at `at`.
    pub fn take_back(&mut self, at: u32) {
        self.next = at as usize;
    }

    /// None is left.
    #[inline]
    pub fn clear(&mut self) {
        self.next = 0;
    }

    /// What was pushed from the head at `start` on, unless the memory has been begun anew since.
    #[inline]
    pub fn from(&self, start: u32) -> &[u8] {
        self.octets.get(start as usize..self.next).unwrap_or(&[])
    }

    /// The octets from `start` to `end`.
    #[inline]
    pub fn get(&self, start: usize, end: usize) -> &[u8] {
        &self.octets[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const HEAD: usize = 80;

    /// As many heads as there may be, of any lengths, come and go at both ends: none is ever written over.
    #[test]
    fn what_waits_stays_as_it_is() {
        for seed in 0..40u64 {
            let (most, mut random) = (1 + seed as usize % 7, seed);
            let (mut heads, mut waiting) = (Heads::<HEAD>::new(most), VecDeque::<(u32, u8, u8)>::new());
            for round in 0..3000u32 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (choice, len) = ((random >> 33) % 5, 1 + (random >> 40) as usize % HEAD);
                match choice {
                    0 => drop(waiting.pop_front()),
                    1 => {
                        if let Some((at, ..)) = waiting.pop_back() {
                            heads.take_back(at);
                        }
                    }
                    _ if waiting.len() < most => {
                        let mark = round as u8;
                        let (at, len) = heads.push(|head| {
                            head.fill(mark);
                            len
                        });
                        waiting.push_back((at, len, mark));
                    }
                    _ => {}
                }
                if waiting.is_empty() && round % 2 == 0 {
                    heads.clear();
                }
                // The longest that is written over while a head is encoded lies behind all that waits.
                for (n, &(at, len, mark)) in waiting.iter().enumerate() {
                    let octets = heads.get(at as usize, at as usize + usize::from(len));
                    assert!(octets.iter().all(|&o| o == mark), "seed {seed}, round {round}: head {n} at {at}");
                }
            }
        }
    }
}
