//! Persistent reservations of a disk (SPC-4 5.13; NVMe Base 2.1 section 8.1.22 has the same rules): who is registered, who holds what,
//! and who may read and write. They belong to the disk, whichever protocol its users speak.

use super::kept::Keep;
use crate::shared::lock;
use polypath_block::ReservationType;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A user of the disk: an initiator port or a host, and the target port it comes through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Party {
    /// Its name, as its protocol gives it.
    pub(crate) initiator: String,
    /// Number of the target port; [`Party::EVERY_PORT`] where a registration is good for all of them.
    pub(crate) port: u16,
}

impl Party {
    pub(crate) const EVERY_PORT: u16 = 0;

    /// Is its registration good for every port?
    pub(crate) fn is_everywhere(&self) -> bool {
        self.port == Party::EVERY_PORT
    }
}

/// How a reservation forbids others what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// Others may not write, or, with `access`, neither read nor write.
    One { access: bool },
    /// Who is not registered may not.
    Registrants { access: bool },
    /// The same, and every registrant holds it.
    All { access: bool },
}

impl From<ReservationType> for Hold {
    fn from(kind: ReservationType) -> Hold {
        match kind {
            ReservationType::WriteExclusive => Hold::One { access: false },
            ReservationType::ExclusiveAccess => Hold::One { access: true },
            ReservationType::WriteExclusiveRegistrantsOnly => Hold::Registrants { access: false },
            ReservationType::ExclusiveAccessRegistrantsOnly => Hold::Registrants { access: true },
            ReservationType::WriteExclusiveAllRegistrants => Hold::All { access: false },
            ReservationType::ExclusiveAccessAllRegistrants => Hold::All { access: true },
        }
    }
}

impl From<Hold> for ReservationType {
    fn from(hold: Hold) -> ReservationType {
        match hold {
            Hold::One { access: false } => ReservationType::WriteExclusive,
            Hold::One { access: true } => ReservationType::ExclusiveAccess,
            Hold::Registrants { access: false } => ReservationType::WriteExclusiveRegistrantsOnly,
            Hold::Registrants { access: true } => ReservationType::ExclusiveAccessRegistrantsOnly,
            Hold::All { access: false } => ReservationType::WriteExclusiveAllRegistrants,
            Hold::All { access: true } => ReservationType::ExclusiveAccessAllRegistrants,
        }
    }
}

/// What somebody is to hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum News {
    ReservationsPreempted,
    ReservationsReleased,
    RegistrationsPreempted,
}

/// Why a request is not granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// Somebody else's reservation, or a key that is not the registered one.
    Conflict,
    /// The holder releases something else than he holds.
    InvalidRelease,
    /// A key of zero where one is needed.
    NoKey,
    /// No room for another registration.
    Full,
    /// They cannot outlive a loss of power here.
    CannotPersist,
    /// They could not be kept where they outlive it.
    NotKept,
}

/// Who is to hear what.
pub(crate) type Told = Vec<(Party, News)>;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    pub(crate) generation: u32,
    /// Users and their keys, in the order in which they registered.
    pub(crate) registered: Vec<(Party, u64)>,
    /// What is held, and by whom where not by all.
    pub(crate) held: Option<(Hold, Party)>,
    /// All this is to outlive a loss of power: APTPL, and PTPL of a namespace.
    pub(crate) persists: bool,
}

/// The reservations of one disk.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    picture: Mutex<Picture>,
    /// One changes them at a time. It may take as long as a file takes to be written; who only looks does not wait for it.
    changing: Mutex<()>,
    keep: Keep,
    /// Something is held: only then need anybody look.
    held: AtomicBool,
    /// For users of the other protocol, oldest first.
    left: Mutex<Told>,
    /// There is some.
    news: AtomicBool,
}

/// Registrations of one disk, and news that wait.
pub(super) const MOST: usize = 256;

impl Reservations {
    /// With what is in force from the start.
    pub(crate) fn new(keep: Keep, picture: Picture) -> Reservations {
        let held = AtomicBool::new(picture.held.is_some());
        Reservations { picture: Mutex::new(picture), keep, held, ..Reservations::default() }
    }

    /// May `party` read, or write?
    #[inline]
    pub(crate) fn allows(&self, party: &Party, write: bool) -> bool {
        !self.held.load(Ordering::Acquire) || lock(&self.picture).allows(party, write)
    }

    /// Leaves what users of the other protocol are to hear of.
    pub(crate) fn leave_news(&self, told: Told) {
        if told.is_empty() {
            return;
        }
        let mut left = lock(&self.left);
        left.extend(told);
        let over = left.len().saturating_sub(MOST);
        left.drain(..over);
        self.news.store(true, Ordering::Release);
    }

    /// Takes what was left for the users that `whose` names.
    #[inline]
    pub(crate) fn take_news(&self, whose: impl Fn(&Party) -> bool) -> Told {
        if !self.news.load(Ordering::Acquire) {
            return Told::new();
        }
        let mut left = lock(&self.left);
        let (taken, rest): (Told, Told) = std::mem::take(&mut *left).into_iter().partition(|(party, _)| whose(party));
        self.news.store(!rest.is_empty(), Ordering::Release);
        *left = rest;
        taken
    }

    pub(crate) fn picture(&self) -> Picture {
        lock(&self.picture).clone()
    }

    /// Can they outlive a loss of power?
    pub(crate) fn can_persist(&self) -> bool {
        !matches!(self.keep, Keep::Nowhere)
    }

    /// They are to outlive a loss of power from now on, or not.
    pub(crate) fn persist(&self, on: bool) -> Result<(), Refusal> {
        if on && !self.can_persist() {
            return Err(Refusal::CannotPersist);
        }
        self.change(|p| {
            p.persists = on;
            Ok(())
        })
    }

    /// REGISTER with the key that is registered so far, or, with none given, whichever that is. A new key of zero ends the registration. What is
    /// registered and held is to outlive a loss of power from then on, or not, where that is said.
    pub(crate) fn register_and(
        &self,
        party: &Party,
        key: Option<u64>,
        new: u64,
        persist: Option<bool>,
    ) -> Result<Told, Refusal> {
        if persist == Some(true) && !self.can_persist() {
            return Err(Refusal::CannotPersist);
        }
        self.change(|p| {
            p.persists = persist.unwrap_or(p.persists);
            let at = p.place(party);
            let have = at.map_or(0, |at| p.registered[at].1);
            if key.is_some_and(|key| key != have) {
                return Err(Refusal::Conflict);
            }
            let mut told = Told::new();
            match (at, new) {
                (None, 0) => return Ok(told),
                (None, _) if p.registered.len() >= MOST => return Err(Refusal::Full),
                (None, new) => p.registered.push((party.clone(), new)),
                (Some(at), 0) => {
                    let held = p.holds(party);
                    p.registered.remove(at);
                    if held {
                        p.let_go(party, &mut told);
                    }
                }
                (Some(at), new) => p.registered[at].1 = new,
            }
            p.generation = p.generation.wrapping_add(1);
            Ok(told)
        })
    }

    /// The same without a word about that.
    #[cfg(test)]
    pub(crate) fn register(&self, party: &Party, key: Option<u64>, new: u64) -> Result<Told, Refusal> {
        self.register_and(party, key, new, None)
    }

    pub(crate) fn reserve(&self, party: &Party, key: u64, hold: Hold) -> Result<(), Refusal> {
        self.change(|p| {
            p.check(party, key)?;
            match &p.held {
                None => p.held = Some((hold, party.clone())),
                Some((have, _)) if *have == hold && p.holds(party) => {}
                Some(_) => return Err(Refusal::Conflict),
            }
            Ok(())
        })
    }

    pub(crate) fn release(&self, party: &Party, key: u64, hold: Hold) -> Result<Told, Refusal> {
        self.change(|p| {
            p.check(party, key)?;
            let mut told = Told::new();
            if !p.holds(party) {
                return Ok(told);
            }
            if p.held.as_ref().is_some_and(|(have, _)| *have != hold) {
                return Err(Refusal::InvalidRelease);
            }
            p.drop_hold(party, &mut told);
            Ok(told)
        })
    }

    pub(crate) fn clear(&self, party: &Party, key: u64) -> Result<Told, Refusal> {
        self.change(|p| {
            p.check(party, key)?;
            let others = p.registered.iter().filter(|(other, _)| other != party);
            let told = others.map(|(other, _)| (other.clone(), News::ReservationsPreempted)).collect();
            let (generation, persists) = (p.generation.wrapping_add(1), p.persists);
            *p = Picture { generation, persists, ..Picture::default() };
            Ok(told)
        })
    }

    /// Ends the registrations that have key `victim`, and takes the reservation where one of them held it.
    pub(crate) fn preempt(&self, party: &Party, key: u64, victim: u64, hold: Hold) -> Result<Told, Refusal> {
        self.change(|p| {
            p.check(party, key)?;
            let holder_key = match &p.held {
                Some((Hold::All { .. }, _)) => Some(0),
                Some((_, holder)) => p.place(holder).map(|at| p.registered[at].1),
                None => None,
            };
            let takes = holder_key == Some(victim);
            if victim == 0 && !takes {
                return Err(Refusal::NoKey);
            }
            let is_victim = |(other, k): &(Party, u64)| other != party && (*k == victim || takes && victim == 0);
            let gone: Vec<Party> = p.registered.iter().filter(|r| is_victim(r)).map(|(o, _)| o.clone()).collect();
            if gone.is_empty() && !takes && key != victim {
                return Err(Refusal::Conflict);
            }
            p.registered.retain(|r| !is_victim(r));
            let mut told: Told = gone.into_iter().map(|other| (other, News::RegistrationsPreempted)).collect();
            if takes {
                let changed = p.held.as_ref().is_some_and(|(have, _)| *have != hold);
                if changed {
                    let rest = p.registered.iter().filter(|(other, _)| other != party);
                    told.extend(rest.map(|(other, _)| (other.clone(), News::ReservationsReleased)));
                }
                p.held = Some((hold, party.clone()));
            }
            p.generation = p.generation.wrapping_add(1);
            Ok(told)
        })
    }

    /// The power failed: what is there after it is what was to persist.
    pub(crate) fn forget(&self) {
        // Nothing that is kept changes by it.
        let _ = self.change(|p| {
            *p = if p.persists { Picture { generation: 0, ..p.clone() } } else { Picture::default() };
            Ok(())
        });
    }

    /// Nothing is changed where `f` refuses, or where what is to persist cannot be kept.
    fn change<T>(&self, f: impl FnOnce(&mut Picture) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let _one = lock(&self.changing);
        let before = self.picture();
        let mut after = before.clone();
        let result = f(&mut after)?;
        if let Keep::File(file) = &self.keep {
            file.follow(&before, &after).map_err(|_| Refusal::NotKept)?;
        }
        let mut picture = lock(&self.picture);
        *picture = after;
        self.held.store(picture.held.is_some(), Ordering::Release);
        Ok(result)
    }
}

impl Picture {
    fn place(&self, party: &Party) -> Option<usize> {
        self.registered.iter().position(|(p, _)| p == party)
    }

    /// The key that `party` is registered with.
    pub(crate) fn key_of(&self, party: &Party) -> Option<u64> {
        Some(self.registered.get(self.place(party)?)?.1)
    }

    fn check(&self, party: &Party, key: u64) -> Result<(), Refusal> {
        match self.place(party) {
            Some(at) if self.registered[at].1 == key => Ok(()),
            _ => Err(Refusal::Conflict),
        }
    }

    /// Does `party` hold the reservation?
    pub(crate) fn holds(&self, party: &Party) -> bool {
        match &self.held {
            Some((Hold::All { .. }, _)) => self.place(party).is_some(),
            Some((_, holder)) => holder == party,
            None => false,
        }
    }

    fn allows(&self, party: &Party, write: bool) -> bool {
        match &self.held {
            None => true,
            Some((Hold::One { access }, holder)) => holder == party || !(write || *access),
            Some((Hold::Registrants { access } | Hold::All { access }, _)) => {
                self.place(party).is_some() || !(write || *access)
            }
        }
    }

    /// The registration of a holder has ended.
    fn let_go(&mut self, party: &Party, told: &mut Told) {
        let last = self.registered.is_empty();
        match &self.held {
            Some((Hold::All { .. }, _)) if !last => {}
            _ => self.drop_hold(party, told),
        }
    }

    fn drop_hold(&mut self, party: &Party, told: &mut Told) {
        if let Some((Hold::Registrants { .. } | Hold::All { .. }, _)) = self.held {
            let others = self.registered.iter().filter(|(other, _)| other != party);
            told.extend(others.map(|(other, _)| (other.clone(), News::ReservationsReleased)));
        }
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(name: &str) -> Party {
        Party { initiator: name.into(), port: 1 }
    }

    #[test]
    fn who_may_do_what() {
        let (a, b, c) = (party("a"), party("b"), party("c"));
        for (hold, others, registered) in [
            (Hold::One { access: false }, (true, false), (true, false)),
            (Hold::One { access: true }, (false, false), (false, false)),
            (Hold::Registrants { access: false }, (true, false), (true, true)),
            (Hold::Registrants { access: true }, (false, false), (true, true)),
            (Hold::All { access: false }, (true, false), (true, true)),
            (Hold::All { access: true }, (false, false), (true, true)),
        ] {
            let r = Reservations::default();
            assert_eq!(r.reserve(&a, 1, hold), Err(Refusal::Conflict), "not registered");
            r.register(&a, Some(0), 1).unwrap();
            r.register(&b, Some(0), 2).unwrap();
            assert!(r.allows(&c, true));
            r.reserve(&a, 1, hold).unwrap();
            let can = |p: &Party| (r.allows(p, false), r.allows(p, true));
            assert_eq!((can(&a), can(&b), can(&c)), ((true, true), registered, others), "{hold:?}");
            let all = matches!(hold, Hold::All { .. });
            assert_eq!(r.reserve(&b, 2, hold).is_ok(), all);
            let told = r.register(&a, Some(1), 0).unwrap();
            assert_eq!(r.picture().held.is_some(), all, "all others still hold it");
            let registrants = matches!(hold, Hold::Registrants { .. });
            assert_eq!(told == [(b.clone(), News::ReservationsReleased)], registrants, "{hold:?}: {told:?}");
        }
    }

    #[test]
    fn news_wait_for_those_whom_they_concern() {
        let r = Reservations::default();
        let host = Party { port: Party::EVERY_PORT, ..party("h") };
        r.leave_news(vec![(party("a"), News::ReservationsReleased), (host.clone(), News::RegistrationsPreempted)]);
        assert_eq!(r.take_news(Party::is_everywhere), [(host.clone(), News::RegistrationsPreempted)]);
        assert!(r.take_news(Party::is_everywhere).is_empty());
        assert_eq!(r.take_news(|p| !p.is_everywhere()), [(party("a"), News::ReservationsReleased)]);
        r.leave_news(vec![(host, News::ReservationsPreempted); MOST + 7]);
        assert_eq!(r.take_news(|_| true).len(), MOST);
    }

    #[test]
    fn keys_and_preemption() {
        let (a, b) = (party("a"), party("b"));
        let hold = Hold::One { access: false };
        let r = Reservations::default();
        assert_eq!(r.register(&a, Some(7), 1), Err(Refusal::Conflict), "nothing was registered");
        r.register(&a, Some(0), 1).unwrap();
        r.register(&b, None, 2).unwrap();
        assert_eq!(r.picture().generation, 2);
        r.reserve(&b, 2, hold).unwrap();
        assert_eq!(r.release(&b, 2, Hold::All { access: false }), Err(Refusal::InvalidRelease));
        assert_eq!(r.preempt(&a, 1, 0, hold), Err(Refusal::NoKey));
        assert_eq!(r.preempt(&a, 1, 9, hold), Err(Refusal::Conflict));
        assert_eq!(r.preempt(&a, 1, 2, hold), Ok(vec![(b.clone(), News::RegistrationsPreempted)]));
        assert!(r.allows(&a, true) && !r.allows(&b, true));
        r.register(&b, None, 3).unwrap();
        assert_eq!(r.clear(&a, 1), Ok(vec![(b.clone(), News::ReservationsPreempted)]));
        assert!(r.allows(&b, true) && r.picture().registered.is_empty());
    }
}
