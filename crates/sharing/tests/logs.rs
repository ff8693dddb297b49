//! What is logged for people who look for the reason, and how often.

use crate::log::capture;
use crate::world::World;
use std::time::Duration;

/// What is logged about unit 2 in so many turns, a tenth of a second apart.
fn log_of(w: &mut World, turns: usize) -> Vec<String> {
    let log = capture(|| {
        for _ in 0..turns {
            w.turn();
            w.pass(Duration::from_millis(100));
        }
    });
    log.into_iter().filter(|line| line.contains("unit 2")).collect()
}

#[test]
fn a_unit_that_cannot_be_opened_is_logged_once_and_at_once() {
    let mut w = World::new(1, 1, 8);
    w.target.lock().most_units = 0;
    w.open(0, 2, 4);
    let log = log_of(&mut w, 2);
    assert!(
        log.len() == 1 && log[0].contains("no I/O queue") && log[0].contains("its table of units is full"),
        "{log:?}"
    );
    assert_eq!(log_of(&mut w, 100), [""; 0]);
}

#[test]
fn a_queue_that_is_not_to_be_had_is_logged_once_when_it_has_been_looked_for_in_vain_for_a_while() {
    let mut w = World::new(1, 0, 8);
    w.open(0, 2, 4);
    // Somebody else may just be opening the one that is to be shared.
    assert_eq!(log_of(&mut w, 5), [""; 0]);
    let log = log_of(&mut w, 30);
    assert!(log.len() == 1 && log[0].contains("grants no more I/O queues and none of them can be shared"), "{log:?}");
    assert_eq!(log_of(&mut w, 100), [""; 0]);
}
