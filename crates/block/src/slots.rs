//! The only id-to-state table: index plus generation.

use core::fmt;

/// Names an occupied slot: index in the low half, generation in the high half.
///
/// A key outlives its slot harmlessly: after [`Slots::remove`] it finds nothing, also when the index is in use again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SlotKey(u32);

impl SlotKey {
    /// Index of the slot, below the capacity of its table.
    pub const fn index(self) -> u16 {
        self.0 as u16
    }

    /// Generation of the slot when the key was made.
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Key from its parts, as they came back from a device.
    pub const fn from_parts(index: u16, generation: u16) -> Self {
        SlotKey((generation as u32) << 16 | index as u32)
    }

    /// The key as a number, for wire fields and tags.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// The key from [`SlotKey::as_u32`].
    pub const fn from_u32(raw: u32) -> Self {
        SlotKey(raw)
    }
}

/// All slots are taken; try again after a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all slots are taken")]
pub struct SlotsFull;

enum Slot<T> {
    Free { next: u16, generation: u16 },
    Taken { value: T, generation: u16 },
}

/// A fixed table of at most 65,535 values. Insert, look-up and remove are a few instructions and never allocate.
///
/// It reserves addresses for all of them, and uses memory for as many as were in it at a time: tables are as deep as their queue may be, and
/// few queues ever are. Slots that were freed last are taken first.
///
/// Dropping a table that still holds something panics in debug builds: an I/O would have been lost.
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// The free slot to be taken next, if one was freed.
    head: u16,
    len: u16,
    capacity: u16,
}

const NIL: u16 = u16::MAX;

impl<T> Slots<T> {
    /// A table of `capacity` slots (1 ..= 65,535).
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn new(capacity: u16) -> Self {
        assert!(capacity > 0, "a slot table needs at least one slot");
        Slots { slots: Vec::with_capacity(capacity.into()), head: NIL, len: 0, capacity }
    }

    /// Number of slots.
    #[inline]
    pub fn capacity(&self) -> u16 {
        self.capacity
    }

    /// Number of taken slots.
    #[inline]
    pub fn len(&self) -> u16 {
        self.len
    }

    /// Is nothing in it?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Is every slot taken?
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Takes a slot for `value`.
    ///
    /// # Errors
    /// [`SlotsFull`] gives the value back to nobody: check [`Slots::is_full`] before building something dear.
    #[inline(always)]
    pub fn insert(&mut self, value: T) -> Result<SlotKey, SlotsFull> {
        let index = self.head;
        let Some(slot) = self.slots.get_mut(index as usize) else { return self.insert_first(value) };
        let Slot::Free { next, generation } = *slot else { return Err(SlotsFull) };
        *slot = Slot::Taken { value, generation };
        self.head = next;
        self.len += 1;
        Ok(SlotKey::from_parts(index, generation))
    }

    /// As [`Slots::insert`], into a slot that was never taken.
    #[cold]
    fn insert_first(&mut self, value: T) -> Result<SlotKey, SlotsFull> {
        let index = self.slots.len() as u16;
        if index == self.capacity {
            return Err(SlotsFull);
        }
        self.slots.push(Slot::Taken { value, generation: 0 });
        self.len += 1;
        Ok(SlotKey::from_parts(index, 0))
    }

    /// The value under `key`, unless it was removed.
    #[inline]
    pub fn get(&self, key: SlotKey) -> Option<&T> {
        match self.slots.get(key.index() as usize) {
            Some(Slot::Taken { value, generation }) if *generation == key.generation() => Some(value),
            _ => None,
        }
    }

    /// The value under `key`, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        match self.slots.get_mut(key.index() as usize) {
            Some(Slot::Taken { value, generation }) if *generation == key.generation() => Some(value),
            _ => None,
        }
    }

    /// Frees the slot under `key` and hands its value out, once.
    #[inline]
    pub fn remove(&mut self, key: SlotKey) -> Option<T> {
        self.remove_if(key, |_| true)
    }

    /// As [`Slots::remove`], if `wanted` says so of the value: one look-up for both.
    #[inline]
    pub fn remove_if(&mut self, key: SlotKey, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let slot = self.slots.get_mut(key.index() as usize)?;
        if !matches!(slot, Slot::Taken { value, generation } if *generation == key.generation() && wanted(value)) {
            return None;
        }
        let free = Slot::Free { next: self.head, generation: key.generation().wrapping_add(1) };
        let Slot::Taken { value, .. } = core::mem::replace(slot, free) else { return None };
        self.head = key.index();
        self.len -= 1;
        Some(value)
    }

    /// Frees every slot and drops what was in them; their keys find nothing from then on. For slow paths: it walks the whole table.
    pub fn clear(&mut self) {
        for index in 0..self.slots.len() as u16 {
            if let Some(key) = self.key_at(index) {
                self.remove(key);
            }
        }
    }

    /// The key of the value at `index`, if the slot is taken (for wire ids that carry only an index).
    pub fn key_at(&self, index: u16) -> Option<SlotKey> {
        match self.slots.get(index as usize)? {
            Slot::Taken { generation, .. } => Some(SlotKey::from_parts(index, *generation)),
            Slot::Free { .. } => None,
        }
    }

    /// All values with their keys, by index. For slow paths: it walks the whole table.
    pub fn iter(&self) -> impl Iterator<Item = (SlotKey, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
            Slot::Taken { value, generation } => Some((SlotKey::from_parts(i as u16, *generation), value)),
            Slot::Free { .. } => None,
        })
    }

    /// All values with their keys, to be changed. For slow paths.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotKey, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(i, slot)| match slot {
            Slot::Taken { value, generation } => Some((SlotKey::from_parts(i as u16, *generation), value)),
            Slot::Free { .. } => None,
        })
    }
}

impl<T> fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) && !std::thread::panicking() {
            assert!(self.is_empty(), "{} I/O still in a slot table that is dropped: drain it first", self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_cleared_knows_no_key_and_takes_as_many_again() {
        let mut slots = Slots::new(3);
        let old = ['a', 'b', 'c'].map(|value| slots.insert(value).unwrap());
        slots.remove(old[1]);
        slots.clear();
        assert!(slots.is_empty() && old.iter().all(|&key| slots.get(key).is_none()));
        let new = ['d', 'e', 'f'].map(|value| slots.insert(value).unwrap());
        assert!(slots.is_full() && old.iter().all(|key| !new.contains(key)));
        slots.clear();
    }

    #[test]
    fn stale_keys_find_nothing() {
        let mut slots = Slots::new(2);
        let a = slots.insert('a').unwrap();
        assert_eq!(slots.remove_if(a, |&value| value == 'b'), None, "it stays");
        assert_eq!(slots.remove_if(a, |&value| value == 'a'), Some('a'));
        assert_eq!(slots.remove(a), None);
        let b = slots.insert('b').unwrap();
        assert_eq!(b.index(), a.index());
        assert_ne!(b, a);
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.key_at(b.index()), Some(b));
        assert_eq!(slots.remove(b), Some('b'));
    }

    #[test]
    fn a_table_uses_no_more_slots_than_it_held_at_a_time_and_never_moves() {
        let mut slots = Slots::new(100);
        let first = slots.insert(0).unwrap();
        let at: *const i32 = slots.get(first).unwrap();
        for n in 0..1000 {
            let key = slots.insert(n).unwrap();
            assert_eq!((key.index(), slots.remove(key)), (1, Some(n)));
        }
        assert_eq!((slots.slots.len(), slots.capacity()), (2, 100));
        (1..100).for_each(|n| assert_eq!(slots.insert(n).unwrap().index(), n as u16));
        assert!(slots.is_full() && slots.insert(100).is_err() && std::ptr::eq(at, slots.get(first).unwrap()));
        slots.clear();
        assert_eq!(slots.slots.len(), slots.slots.capacity());
    }

    #[test]
    fn full_means_full() {
        let mut slots = Slots::new(1);
        let k = slots.insert(1).unwrap();
        assert!(slots.is_full());
        assert_eq!(slots.insert(2), Err(SlotsFull));
        slots.remove(k);
    }

    #[test]
    #[cfg(debug_assertions)]
    fn dropping_what_is_not_drained_panics() {
        let caught = std::panic::catch_unwind(|| {
            let mut slots = Slots::new(1);
            let _ = slots.insert(1);
        });
        assert!(caught.is_err());
    }
}
