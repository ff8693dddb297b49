//! Least bytes in flight relative to the configured weight, which stands for the relative throughput of a path.

use super::{Choice, Selector};

#[derive(Debug, Default)]
pub(crate) struct ServiceTime {
    last: usize,
}

impl Selector for ServiceTime {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        // A flush has no bytes; without this it would always see equals.
        let bytes = choice.bytes.max(512);
        choice.least(&mut self.last, |_, load| {
            ((load.bytes_in_flight + bytes) as f64 / f64::from(load.weight.max(1)), load.in_flight)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::PathLoad;
    use crate::selector::model::{EQUAL, Server, run, share};
    use polypath_block::Time;

    #[test]
    fn bytes_in_flight_follow_the_weights() {
        let fast = Server { weight: 300, ..EQUAL };
        let r = run(SelectorKind::ServiceTime, &[fast, EQUAL], 64, 4096, 20_000, |_| 0b11);
        assert!((0.70..0.80).contains(&share(&r, 0)), "{:?}", r.counts);
    }

    #[test]
    fn bytes_count_not_requests() {
        let load = |in_flight, bytes_in_flight| PathLoad { uid: 0, in_flight, bytes_in_flight, weight: 100 };
        let loads = [load(1, 1 << 20), load(8, 8 * 4096)];
        let c = Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
        assert_eq!(ServiceTime::default().pick(&c), 1);
    }
}
