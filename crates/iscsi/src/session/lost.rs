//! Changes that were on the way when their connection was lost, until it is proven that nothing of them can happen any more.

use polypath_block::{Code, Proof, Time};
use polypath_scsi::midlayer::{Address, Bus, Outcome, TaskDone, TaskEnd};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    portal_group: Option<u16>,
    address: SocketAddr,
    /// It is the configuration that names it, and not a target that has sent us there.
    configured: bool,
}

impl Place {
    /// At the last of these addresses, where each of those before has sent us to the next (one alone is of the configuration).
    pub(super) fn at_the_end_of(way: &[SocketAddr], portal_group: Option<u16>) -> Option<Place> {
        way.last().map(|&address| Place { portal_group, address, configured: way.len() == 1 })
    }
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    tag: u64,
    code: Code,
    /// Where the session was that it was sent over.
    place: Option<Place>,
    /// By when it is taken for quiet if the target does not answer. Unset while the socket is being closed.
    by: Option<Time>,
    /// The logical unit whose reset through another nexus would end it: the target had taken it. What it had not may still lie in front of it
    /// when the reset is answered.
    resettable: Option<Address>,
    /// Until then it is left to the session to prove it by itself.
    own_until: Time,
    /// The number of the loss by which others know of it.
    loss: Option<u64>,
}

/// See the module.
pub(super) struct LostTasks {
    list: Vec<Lost>,
    place: Option<Place>,
    bound_ms: u32,
    bus: Arc<Bus>,
    /// How many of the proofs that came through other ways were looked at.
    proofs: u64,
}

impl LostTasks {
    pub(super) fn new(depth: u16, bus: Arc<Bus>) -> Self {
        LostTasks { list: Vec::with_capacity(depth.into()), place: None, bound_ms: 0, bus, proofs: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Sessions are there from now on.
    pub(super) fn set_place(&mut self, place: Option<Place>) {
        self.place = place;
    }

    /// The portal group that sessions belong to.
    pub(super) fn portal_group(&self) -> Option<u16> {
        self.place?.portal_group
    }

    /// `resettable`: its logical unit, if the target had taken it.
    pub(super) fn add(&mut self, tag: u64, code: Code, resettable: Option<Address>) {
        let (place, own_until) = (self.place, Time::NEVER);
        self.list.push(Lost { tag, code, place, by: None, resettable, own_until, loss: None });
    }

    /// The socket of those that were added last was closed at `at`. For `patience` they are left to us; without one, for good.
    pub(super) fn closed(&mut self, at: Time, bound: Duration, patience: Option<Duration>) {
        self.bound_ms = u32::try_from(bound.as_millis()).unwrap_or(u32::MAX);
        for lost in self.list.iter_mut().filter(|lost| lost.by.is_none()) {
            lost.by = Some(at.after(bound));
            lost.own_until = patience.map_or(Time::NEVER, |patience| at.after(patience));
        }
    }

    /// Lets others know of what we have not proven by ourselves in time, and ends what they have proven. Says how many, and why.
    pub(super) fn proven_elsewhere(&mut self, now: Time, done: &mut TaskDone) -> Option<(usize, Proof)> {
        for at in 0..self.list.len() {
            let Lost { resettable, own_until, loss, .. } = self.list[at];
            let Some(address) = resettable.filter(|_| loss.is_none() && now >= own_until) else { continue };
            let number = self.bus.open_loss(address);
            let same =
                |lost: &&mut Lost| lost.resettable == Some(address) && lost.loss.is_none() && now >= lost.own_until;
            self.list.iter_mut().filter(same).for_each(|lost| lost.loss = Some(number));
        }
        let proofs = self.bus.proofs();
        if std::mem::replace(&mut self.proofs, proofs) == proofs {
            return None;
        }
        let bus = self.bus.clone();
        let proof_of = |lost: &Lost| bus.proof_of(lost.resettable?, lost.loss?);
        let proof = self.list.iter().find_map(proof_of)?;
        let released = self.release(proof, |lost| proof_of(lost) == Some(proof), done)?;
        Some((released, proof))
    }

    /// Nobody waits for them any more.
    pub(super) fn abandon(&mut self) {
        self.list.drain(..).filter_map(|lost| lost.loss).for_each(|number| self.bus.end_loss(number));
    }

    /// A target has taken a login of the same initiator port at the portal group `tag`, at the last of these addresses, where each of those
    /// before has sent us to the next. It has ended the session before it, if that was a session of this target: all that was sent over it is
    /// quiet. `portals_prove`: what the configuration names is all one target. Says how many.
    ///
    /// Two machines may show one name and one tag. Which target it is, is known only where the lost session was at the same address, or where
    /// whoever is at that has sent us from there.
    pub(super) fn reinstated(
        &mut self,
        tag: Option<u16>,
        way: &[SocketAddr],
        portals_prove: bool,
        done: &mut TaskDone,
    ) -> Option<usize> {
        let same = |lost: &Lost| {
            // One that does not say which portal group it is may be another one.
            let Some(place) = lost.place.filter(|place| tag.is_some() && place.portal_group == tag) else {
                return false;
            };
            way.contains(&place.address) || portals_prove && place.configured
        };
        self.release(Proof::Reinstated, same, done)
    }

    /// Those whose bound has passed are taken for quiet. Says how many.
    pub(super) fn expired(&mut self, now: Time, done: &mut TaskDone) -> Option<usize> {
        if self.list.is_empty() {
            return None;
        }
        let proof = Proof::ConfiguredBound { bound_ms: self.bound_ms };
        self.release(proof, |lost| lost.by.is_some_and(|by| now >= by), done)
    }

    /// When the first bound passes, or the first is to be made known.
    pub(super) fn due(&self) -> Option<Time> {
        let own = |lost: &Lost| lost.loss.is_none() && lost.resettable.is_some();
        let due = |lost: &Lost| lost.by.map(|by| if own(lost) { by.min(lost.own_until) } else { by });
        self.list.iter().filter_map(due).min()
    }

    fn release(&mut self, proof: Proof, which: impl Fn(&Lost) -> bool, done: &mut TaskDone) -> Option<usize> {
        let before = self.list.len();
        let mut numbers = Vec::new();
        self.list.retain(|lost| {
            let quiet = which(lost);
            if quiet {
                numbers.extend(lost.loss);
                done.ends.push(TaskEnd { tag: lost.tag, outcome: Outcome::Lost(lost.code), proof });
            }
            !quiet
        });
        numbers.retain(|number| self.list.iter().all(|lost| lost.loss != Some(*number)));
        numbers.into_iter().for_each(|number| self.bus.end_loss(number));
        let released = before - self.list.len();
        (released > 0).then_some(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Host, MakePoller};
    use polypath_scsi::Lun;

    struct Nowhere;

    impl Host for Nowhere {
        fn spawn(&self, _: MakePoller) {}
        fn wake(&self) {}
        fn reactor(&self) -> u16 {
            0
        }
        fn now(&self) -> Time {
            Time::ZERO
        }
    }

    fn bus() -> Arc<Bus> {
        Bus::new("bus", Arc::new(Nowhere), Duration::ZERO)
    }

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn ended(done: &mut TaskDone) -> Vec<u64> {
        done.ends.drain(..).map(|end| end.tag).collect()
    }

    #[test]
    fn each_loss_has_its_own_bound_and_its_own_portal_group() {
        let (at, bound) = (Time::from_millis, Duration::from_millis(100));
        let mut lost = LostTasks::new(4, bus());
        let here = address(1);
        for (tag, group, closed) in [(1, Some(1), 1000), (2, Some(2), 1060), (3, None, 1070)] {
            lost.set_place(Place::at_the_end_of(&[here], group));
            lost.add(tag, Code::PathLost, None);
            lost.closed(at(closed), bound, Some(Duration::ZERO));
        }
        let mut done = TaskDone::default();
        assert_eq!((lost.expired(at(1099), &mut done), lost.due()), (None, Some(at(1100))));
        assert_eq!((lost.len(), lost.portal_group()), (3, None));
        assert_eq!(lost.expired(at(1159), &mut done), Some(1));
        assert_eq!(ended(&mut done), [1]);
        for (group, quiet) in [(Some(3), &[][..]), (None, &[]), (Some(2), &[2])] {
            let released = (!quiet.is_empty()).then_some(quiet.len());
            assert_eq!(
                (lost.reinstated(group, &[here], false, &mut done), ended(&mut done)),
                (released, quiet.to_vec()),
                "{group:?}"
            );
        }
        lost.expired(at(1170), &mut done);
        assert_eq!((ended(&mut done), lost.is_empty(), lost.due()), (vec![3], true, None));
    }

    /// Two machines may show one name and one portal group tag.
    #[test]
    fn a_login_proves_over_what_was_sent_to_the_same_target() {
        let all = [1, 2, 3, 4].map(address);
        // The way of the lost session, that of the login, whether the portals that are configured prove, and whether it is quiet.
        let cases: [(&[SocketAddr], &[SocketAddr], bool, bool); 10] = [
            (&all[..1], &all[..1], false, true),
            (&all[..1], &all[1..2], false, false),
            (&all[..1], &all[1..2], true, true),
            // The target that we were at has sent us on, or another one has.
            (&all[..1], &all[..2], false, true),
            (&all[..1], &all[..3], false, true),
            (&all[1..2], &all[2..4], false, false),
            (&all[1..2], &all[2..4], true, true),
            // A target has sent us to where the lost session was, and that is where we are again, or are not.
            (&all[..2], &all[1..2], false, true),
            (&all[..2], &all[..1], true, false),
            (&all[..2], &[all[0], all[2]], true, false),
        ];
        for (before, way, portals_prove, quiet) in cases {
            let (mut lost, mut done) = (LostTasks::new(4, bus()), TaskDone::default());
            lost.set_place(Place::at_the_end_of(before, Some(1)));
            lost.add(1, Code::PathLost, None);
            lost.closed(Time::from_millis(1), Duration::from_secs(1), None);
            let released = lost.reinstated(Some(1), way, portals_prove, &mut done);
            assert_eq!(released, quiet.then_some(1), "{before:?}, {way:?}, {portals_prove}");
        }
    }

    /// What the target had not taken, what is left to the session for now, and what was lost after the proof was asked for wait on.
    #[test]
    fn a_reset_through_another_way_proves_what_the_target_had_taken_before() {
        let (at, bound, patience) = (Time::from_millis, Duration::from_millis(1000), Duration::from_millis(50));
        let unit = |lun| Some(Address { target: 0, lun: Lun::new(lun).unwrap() });
        let bus = bus();
        let mut lost = LostTasks::new(8, bus.clone());
        let mut done = TaskDone::default();
        for (tag, unit) in [(1, unit(0)), (2, None), (3, unit(1)), (4, unit(0))] {
            lost.add(tag, Code::PathLost, unit);
        }
        lost.closed(at(1000), bound, Some(patience));
        assert_eq!(lost.due(), Some(at(1050)), "when others are to know of it");
        lost.proven_elsewhere(at(1049), &mut done);
        bus.prove_losses(unit(0).unwrap(), u64::MAX, Proof::UnitReset);
        assert_eq!((lost.proven_elsewhere(at(1049), &mut done), bus.last_loss(unit(0).unwrap())), (None, None));
        lost.proven_elsewhere(at(1050), &mut done);
        let asked = bus.last_loss(unit(0).unwrap()).expect("made known");
        assert_eq!(lost.due(), Some(at(2000)));
        lost.add(5, Code::PathLost, unit(0));
        lost.closed(at(1060), bound, Some(patience));
        lost.proven_elsewhere(at(1110), &mut done);
        bus.prove_losses(unit(0).unwrap(), asked, Proof::UnitReset);
        assert_eq!(lost.proven_elsewhere(at(1111), &mut done), Some((2, Proof::UnitReset)));
        assert!(done.ends.iter().all(|end| end.proof == Proof::UnitReset) && ended(&mut done) == [1, 4]);
        assert!(bus.last_loss(unit(0).unwrap()).is_some_and(|open| open > asked), "the younger loss is open still");
        lost.set_place(Place::at_the_end_of(&[address(1)], Some(1)));
        lost.expired(at(2000), &mut done);
        assert_eq!((ended(&mut done), bus.last_loss(unit(1).unwrap())), (vec![2, 3], None), "by its bound");
        lost.abandon();
        assert_eq!((lost.is_empty(), bus.last_loss(unit(0).unwrap())), (true, None));
    }

    #[test]
    fn without_being_asked_to_nobody_else_is_told() {
        let (bus, mut done) = (bus(), TaskDone::default());
        let mut lost = LostTasks::new(8, bus.clone());
        let address = Address { target: 0, lun: Lun::ZERO };
        lost.add(1, Code::PathLost, Some(address));
        lost.closed(Time::from_millis(1), Duration::from_secs(1), None);
        assert_eq!(lost.proven_elsewhere(Time::from_millis(900), &mut done), None);
        assert_eq!(bus.last_loss(address), None);
    }
}
