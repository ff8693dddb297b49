//! The world as a rig of the conformance suite, and seeds for tests.

use crate::world::{REGION, World};
use core::time::Duration;
use polypath_block::{Cx, Device, SegSpan, SegTable, Segment, Time, Waits, contract};
use std::sync::Arc;

/// Runs [`contract::check`] over a device in a world.
pub struct Rig {
    /// The world.
    pub world: World,
    /// The device under test.
    pub device: Arc<dyn Device>,
}

impl contract::Rig for Rig {
    fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    fn now(&mut self) -> Time {
        self.world.now()
    }

    fn pass(&mut self, _cx: &mut Cx<'_>, waits: Option<&Waits>) {
        let now = self.world.now();
        let deadline = waits.and_then(|w| w.deadline);
        let next = [self.world.next_event(), deadline].into_iter().flatten().min();
        let tick = now.after(Duration::from_micros(50));
        self.world.advance_to(if waits.is_some() { next.unwrap_or(tick).max(now) } else { tick });
    }

    fn memory(&mut self, segs: &mut SegTable, len: u32, pieces: u32) -> SegSpan {
        let row = segs.reserve(1, pieces).expect("room in the segment table");
        let span = row.span(0, pieces);
        let each = len / pieces;
        for (i, seg) in segs.get_mut(span).iter_mut().enumerate() {
            let i = i as u32;
            // Unequal: every second piece gives a byte to its successor.
            let shift = |i: u32| if i % 2 == 1 && i < pieces { 1.min(each - 1) } else { 0 };
            let start = each * i + shift(i);
            let end = if i + 1 == pieces { len } else { each * (i + 1) + shift(i + 1) };
            let offset = self.world.allocate((end - start) as usize + 8);
            *seg = Segment { offset, region: REGION, len: end - start };
        }
        span
    }

    fn fill(&mut self, segs: &SegTable, span: SegSpan, data: &[u8]) {
        self.world.store_span(segs, span, data);
    }

    fn bytes(&mut self, segs: &SegTable, span: SegSpan, len: usize) -> Vec<u8> {
        self.world.load_span(segs, span, len)
    }
}

/// Seeds of a test: `SIM_SEED` alone when it is set, otherwise `count` from `first` on (`SIM_SEEDS` replaces the count).
pub fn seeds(first: u64, count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => (first..first + number("SIM_SEEDS").unwrap_or(count)).collect(),
    }
}
