//! The candidates of every block.

use super::record::{Candidate, Kind, Record, SPILLS};
use super::{ErrorKind, Found, Outcome, VerifyError, stamp};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Block numbers are their own hash, once mixed.
#[derive(Default)]
pub(super) struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(b.into());
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = stamp::mix(self.0 ^ n);
    }
}

/// What does not fit into the 16 bytes of a block.
#[derive(Debug, Default)]
struct Side {
    /// Writes in flight.
    flying: Vec<(Kind, u64)>,
    /// Candidates beyond the first, and where the record keeps them.
    extra: Vec<(Candidate, u32)>,
}

/// All blocks.
pub(super) struct Blocks {
    record: Record,
    sides: HashMap<u64, Side, BuildHasherDefault<Mixed>>,
    /// Emptied ones, so that their room is used again.
    spare: Vec<Side>,
    free_spills: Vec<u32>,
    scratch: Vec<Candidate>,
    untracked: u64,
}

impl Blocks {
    pub(super) fn new(record: Record) -> Self {
        Blocks {
            record,
            sides: HashMap::default(),
            spare: Vec::new(),
            free_spills: Vec::new(),
            scratch: Vec::new(),
            untracked: 0,
        }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Takes up what an earlier checker left: its candidates, and its writes in flight as unknown. Says how many the latter are.
    pub(super) fn recover(&mut self, flights: u32, clock: u64) -> u64 {
        for slot in (0..SPILLS).rev() {
            match self.record.spill(slot) {
                Some((index, candidate)) => self.side(index).extra.push((candidate, slot)),
                None => self.free_spills.push(slot),
            }
        }
        let mut unknown = 0;
        for slot in 0..u64::from(flights) {
            let Some(flight) = self.record.flight(slot) else { continue };
            unknown += 1;
            for index in flight.index..flight.index + flight.blocks {
                let known =
                    self.candidates(index).iter().any(|c| c.sequence == flight.sequence && c.kind == flight.kind);
                if !known {
                    self.ended(index, flight.kind, flight.sequence, Outcome::Unknown, clock);
                }
            }
            self.record.set_flight(slot, None);
        }
        unknown
    }

    /// A change of the block begins.
    pub(super) fn began(&mut self, index: u64, kind: Kind, sequence: u64) {
        self.side(index).flying.push((kind, sequence));
    }

    /// A change of the block has ended at `clock`.
    pub(super) fn ended(&mut self, index: u64, kind: Kind, sequence: u64, outcome: Outcome, clock: u64) {
        if let Some(side) = self.sides.get_mut(&index) {
            side.flying.retain(|&(_, s)| s != sequence);
        }
        let mut candidates = self.take(index);
        let acknowledged = outcome == Outcome::Acknowledged;
        if acknowledged {
            candidates.retain(|c| c.ended >= sequence);
        }
        let ended = if outcome == Outcome::Unknown { Candidate::PENDING } else { clock };
        // A read may have shown it already; then it is noted when it is shown again.
        candidates.push(Candidate { kind, sequence, ended, since: clock, seen: false, acknowledged });
        self.put(index, candidates);
    }

    /// All that a read which begins now may return, as far as it is known now.
    pub(super) fn possible(&self, index: u64, mut tell: impl FnMut(Candidate)) {
        if let Some(base) = self.record.base(index) {
            tell(base);
        }
        if let Some(side) = self.sides.get(&index) {
            side.extra.iter().for_each(|(c, _)| tell(*c));
            for &(kind, sequence) in &side.flying {
                tell(Candidate {
                    kind,
                    sequence,
                    ended: Candidate::PENDING,
                    since: 0,
                    seen: false,
                    acknowledged: false,
                });
            }
        }
    }

    /// A read that began at `began` has returned `found`, which is right: what cannot be any more goes.
    pub(super) fn settle(&mut self, index: u64, found: Found, began: u64, clock: u64) {
        let alone = !self.sides.contains_key(&index);
        if alone && self.record.base(index).is_some_and(|c| c.kind == Kind::Any || c.seen || c.ended >= began) {
            // The usual case: one candidate, and nothing new about it.
            return;
        }
        let mut candidates = self.take(index);
        let before = candidates.len();
        // The acknowledged write that the read has shown, if it is certain which one that is.
        let shown = candidates.iter().find(|c| is(c, found) && c.acknowledged && c.ended < began).map(|c| c.sequence);
        let others =
            |candidates: &[Candidate], me: u64| candidates.iter().any(|c| c.sequence != me && may_be(c, found));
        let mut changed = false;
        for at in 0..candidates.len() {
            let c = candidates[at];
            if c.ended == Candidate::PENDING && is(&c, found) && !others(&candidates, c.sequence) {
                // It has landed, and lands only once.
                candidates[at] = Candidate { ended: clock, seen: true, ..c };
                changed = true;
            } else if is(&c, found) && !c.seen {
                candidates[at].seen = true;
                changed = true;
            }
        }
        candidates.retain(|c| {
            if may_be(c, found) {
                return true;
            }
            match c.ended {
                Candidate::PENDING => shown.is_none_or(|s| s <= c.since),
                ended => ended >= began,
            }
        });
        if changed || candidates.len() != before {
            self.put(index, candidates);
        } else {
            self.scratch = candidates;
        }
    }

    /// The block was wrong: anything may be there until it is written again.
    pub(super) fn give_up(&mut self, index: u64, clock: u64) {
        let mut candidates = self.take(index);
        candidates.retain(|c| c.ended == Candidate::PENDING);
        candidates.insert(
            0,
            Candidate { kind: Kind::Any, sequence: clock, ended: clock, since: 0, seen: false, acknowledged: false },
        );
        self.put(index, candidates);
    }

    /// Is there but a limited number of contents that the block may have?
    pub(super) fn is_known(&self, index: u64) -> bool {
        let mut known = true;
        self.possible(index, |c| known &= c.kind != Kind::Any && c.sequence != 0);
        known
    }

    fn candidates(&self, index: u64) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = self.record.base(index).into_iter().collect();
        all.extend(self.sides.get(&index).into_iter().flat_map(|s| s.extra.iter().map(|(c, _)| *c)));
        all
    }

    /// The candidates, in a vector that [`Blocks::put`] takes back.
    fn take(&mut self, index: u64) -> Vec<Candidate> {
        let mut all = std::mem::take(&mut self.scratch);
        all.clear();
        all.extend(self.record.base(index));
        if let Some(side) = self.sides.get(&index) {
            all.extend(side.extra.iter().map(|(c, _)| *c));
        }
        all
    }

    /// Stores the candidates: first what is new beyond the first, then the first, then what is gone is forgotten.
    fn put(&mut self, index: u64, mut candidates: Vec<Candidate>) {
        // The first place has no room for "may still land".
        candidates.sort_by_key(|c| (c.ended == Candidate::PENDING, c.sequence));
        let settled = candidates.first().is_some_and(|c| c.ended != Candidate::PENDING);
        let (base, extra) = if settled { (Some(candidates[0]), &candidates[1..]) } else { (None, &candidates[..]) };
        let mut side = self.sides.remove(&index).unwrap_or_else(|| self.spare.pop().unwrap_or_default());
        let kept = side.extra.len();
        let mut room = true;
        for &c in extra {
            let old = side.extra[..kept].iter_mut().find(|(o, _)| o.sequence == c.sequence && o.kind == c.kind);
            if let Some((old, slot)) = old {
                if *old != c {
                    // Clearing it for a moment would leave the record without it.
                    self.move_spill(index, slot, c);
                    *old = c;
                }
            } else if let Some(slot) = self.free_spills.pop() {
                self.record.set_spill(slot, Some((index, c)));
                side.extra.push((c, slot));
            } else {
                room = false;
            }
        }
        if room {
            self.record.set_base(index, base);
        } else {
            self.untracked += 1;
            let sequence = self.record.clock();
            let any =
                Candidate { kind: Kind::Any, sequence, ended: sequence, since: 0, seen: false, acknowledged: false };
            self.record.set_base(index, Some(any));
        }
        let (record, free) = (&self.record, &mut self.free_spills);
        side.extra.retain(|(c, slot)| {
            let stays = extra.contains(c);
            if !stays {
                record.set_spill(*slot, None);
                free.push(*slot);
            }
            stays
        });
        if side.extra.is_empty() && side.flying.is_empty() {
            if self.spare.len() < 4096 {
                self.spare.push(side);
            }
        } else {
            self.sides.insert(index, side);
        }
        self.scratch = candidates;
    }

    /// A candidate changes: the new one is written before the old one goes, if there is room; both mean the same write.
    fn move_spill(&mut self, index: u64, slot: &mut u32, candidate: Candidate) {
        let Some(new) = self.free_spills.pop() else {
            self.record.set_spill(*slot, Some((index, candidate)));
            return;
        };
        self.record.set_spill(new, Some((index, candidate)));
        self.record.set_spill(*slot, None);
        self.free_spills.push(*slot);
        *slot = new;
    }

    fn side(&mut self, index: u64) -> &mut Side {
        let spare = &mut self.spare;
        self.sides.entry(index).or_insert_with(|| spare.pop().unwrap_or_default())
    }
}

/// Is `found` exactly this candidate?
fn is(c: &Candidate, found: Found) -> bool {
    match (c.kind, found) {
        (Kind::Data, Found::Write { sequence }) => sequence == c.sequence,
        (Kind::Zero, Found::Zeroes) => true,
        _ => false,
    }
}

/// Would a read be right that returned `found` where this candidate is?
pub(super) fn accepts(c: &Candidate, found: Found) -> bool {
    c.kind == Kind::Any || is(c, found)
}

/// May this candidate be what is there, now that `found` was read? A block where anything may be cannot hold a write that
/// began after it became so.
fn may_be(c: &Candidate, found: Found) -> bool {
    match (c.kind, found) {
        (Kind::Any, Found::Write { sequence }) => sequence < c.sequence,
        (Kind::Any, _) => true,
        _ => is(c, found),
    }
}

/// What is wrong with `found`, where one of `allowed` should have been.
pub(super) fn classify(lba: u64, found: Found, allowed: &[(u32, Candidate)], clock: u64) -> VerifyError {
    let settled = allowed.iter().map(|(_, c)| c).filter(|c| c.ended != Candidate::PENDING);
    let newest = settled.max_by_key(|c| c.sequence);
    let kind = match found {
        Found::Write { sequence } if sequence > clock => ErrorKind::Impossible,
        Found::Write { .. } | Found::Zeroes if newest.is_some_and(|c| c.seen) => ErrorKind::Stale,
        Found::Write { .. } | Found::Zeroes => ErrorKind::LostWrite,
        Found::Elsewhere { .. } => ErrorKind::Misdirected,
        Found::Torn { .. } => ErrorKind::Torn,
        Found::Foreign { .. } => ErrorKind::Foreign,
        Found::Corrupted { .. } | Found::Unknown => ErrorKind::Corrupted,
    };
    let expected = newest.map_or(0, |c| c.sequence);
    VerifyError { lba, kind, found, expected, choices: allowed.len() as u32 }
}
