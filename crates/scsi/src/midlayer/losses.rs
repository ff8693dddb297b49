//! Changes that sessions of a bus have lost, and that an answer through another way to the same logical unit would prove quiet.
//!
//! A queue says that it has lost some ([`Bus::open_loss`]) and gets a number. Whoever knows another way to the disk hears of it by the device
//! ([`polypath_block::CrossFence`]), and in the end says up to which number they are quiet. A number names one loss for good: what is
//! lost after a proof was asked for has a greater one.

use super::bus::{Address, Bus, BusState, lock};
use polypath_block::{Proof, ProofReply};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Losses {
    state: Mutex<State>,
    /// How often something was proven: a queue that waits looks when this has grown.
    proofs: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    open: Vec<(Address, u64)>,
    /// Up to which loss each logical unit is quiet, and why.
    proven: Vec<(Address, u64, Proof)>,
    orders: Vec<ProofOrder>,
}

/// Somebody wants the logical unit at `address` to be proven quiet.
#[derive(Debug)]
pub(super) struct ProofOrder {
    pub(super) address: Address,
    pub(super) limit: Duration,
    pub(super) reply: ProofReply,
}

impl Bus {
    /// A queue has lost changes to `address` which the target had taken: LOGICAL UNIT RESET answered through another nexus would end them.
    /// The number of that loss, which is open until [`Bus::end_loss`].
    pub fn open_loss(&self, address: Address) -> u64 {
        let mut state = lock(&self.losses.state);
        state.last += 1;
        let number = state.last;
        state.open.push((address, number));
        drop(state);
        self.announce();
        number
    }

    /// All of a loss has ended, for whatever reason, or nobody waits for it any more.
    pub fn end_loss(&self, number: u64) {
        lock(&self.losses.state).open.retain(|(_, open)| *open != number);
    }

    /// Grows with every proof: one relaxed load tells whether [`Bus::proof_of`] may have something new to say.
    pub fn proofs(&self) -> u64 {
        self.losses.proofs.load(Ordering::Relaxed)
    }

    /// Why a loss of changes to `address` is quiet, if that was proven through another way.
    pub fn proof_of(&self, address: Address, number: u64) -> Option<Proof> {
        let state = lock(&self.losses.state);
        let found = state.proven.iter().find(|(at, upto, _)| *at == address && number <= *upto);
        found.map(|(.., proof)| *proof)
    }

    /// As [`polypath_block::CrossFence::open_loss`].
    pub fn last_loss(&self, address: Address) -> Option<u64> {
        let state = lock(&self.losses.state);
        state.open.iter().filter(|(at, _)| *at == address).map(|(_, number)| *number).max()
    }

    /// As [`polypath_block::CrossFence::proven`].
    pub fn prove_losses(&self, address: Address, upto: u64, proof: Proof) {
        let mut state = lock(&self.losses.state);
        // What has not been lost yet cannot be proven.
        let upto = upto.min(state.last);
        state.open.retain(|(at, number)| *at != address || *number > upto);
        match state.proven.iter_mut().find(|(at, ..)| *at == address) {
            Some((_, before, why)) if *before < upto => (*before, *why) = (upto, proof),
            Some(_) => {}
            None => state.proven.push((address, upto, proof)),
        }
        drop(state);
        self.losses.proofs.fetch_add(1, Ordering::SeqCst);
        self.announce();
        self.call();
    }

    /// Somebody wants a proof; the control poller is called.
    pub(super) fn order_proof(&self, order: ProofOrder) {
        lock(&self.losses.state).orders.push(order);
        if let BusState::Gone { .. } = self.state() {
            // Nobody takes it any more. Whoever asked is told by the drop, outside the lock.
            drop(self.take_proof_orders());
        }
        self.call();
    }

    /// What was asked for since the last time.
    pub(super) fn take_proof_orders(&self) -> Vec<ProofOrder> {
        std::mem::take(&mut lock(&self.losses.state).orders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lun;
    use polypath_block::{Host, MakePoller, Time};
    use std::sync::Arc;

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

    #[test]
    fn a_proof_is_of_what_was_lost_before_it_was_asked_for_and_of_one_logical_unit() {
        let bus = Bus::new("bus", Arc::new(Nowhere), Duration::ZERO);
        let at = |lun| Address { target: 0, lun: Lun::new(lun).unwrap() };
        let (first, other, second) = (bus.open_loss(at(0)), bus.open_loss(at(1)), bus.open_loss(at(0)));
        assert_eq!((bus.last_loss(at(0)), bus.last_loss(at(1)), bus.last_loss(at(2))), (Some(3), Some(2), None));
        let asked = bus.last_loss(at(0)).unwrap();
        let late = bus.open_loss(at(0));
        let before = bus.proofs();
        bus.prove_losses(at(0), asked, Proof::UnitReset);
        assert!(bus.proofs() > before);
        let proof = |number| bus.proof_of(at(0), number);
        assert_eq!([first, second, late].map(proof), [Some(Proof::UnitReset), Some(Proof::UnitReset), None]);
        assert_eq!((bus.proof_of(at(1), other), bus.last_loss(at(0))), (None, Some(late)));
        bus.end_loss(late);
        assert_eq!(bus.last_loss(at(0)), None);
        // Whatever somebody says: not what is still to be lost.
        bus.prove_losses(at(0), u64::MAX, Proof::UnitReset);
        assert_eq!(bus.proof_of(at(0), bus.open_loss(at(0))), None);
    }

    #[test]
    fn of_each_logical_unit_the_proof_that_reaches_furthest_stands() {
        let bus = Bus::new("bus", Arc::new(Nowhere), Duration::ZERO);
        let at = |lun| Address { target: 0, lun: Lun::new(lun).unwrap() };
        let losses = [0, 1, 0, 1].map(|lun| bus.open_loss(at(lun)));
        let proofs = || [0, 1, 2, 3].map(|n| bus.proof_of(at(n % 2), losses[n as usize]));
        let (reset, anew) = (Some(Proof::UnitReset), Some(Proof::Reinstated));
        bus.prove_losses(at(0), losses[0], Proof::UnitReset);
        bus.prove_losses(at(1), losses[1], Proof::UnitReset);
        assert_eq!(proofs(), [reset, reset, None, None]);
        bus.prove_losses(at(0), losses[2], Proof::Reinstated);
        assert_eq!(proofs(), [anew, reset, anew, None]);
        for again in [losses[0], losses[2]] {
            bus.prove_losses(at(0), again, Proof::UnitReset);
            assert_eq!(proofs(), [anew, reset, anew, None], "it says nothing new");
        }
    }

    #[test]
    fn whoever_asks_a_bus_that_is_gone_is_told() {
        let bus = Bus::new("bus", Arc::new(Nowhere), Duration::ZERO);
        bus.set_state(BusState::Gone { reason: "over".into() });
        let (tell, told) = std::sync::mpsc::channel();
        let reply = ProofReply::new(move |result| tell.send(result).unwrap());
        let address = Address { target: 0, lun: Lun::ZERO };
        bus.order_proof(ProofOrder { address, limit: Duration::from_secs(1), reply });
        assert!(told.try_recv().is_ok_and(|said| said.is_err()), "or its group would never ask anybody again");
    }
}
