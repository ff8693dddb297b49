//! What other ways have lost is proven quiet by a reset, and what our own queues make of a reset that somebody sent.

use crate::script::{BLOCK, Driven, Reply, Rig, ms, rig};
use crate::{READS, WRITES, attention, rule};
use polypath_block::{Device, Io, Proof, ProofReply, ProofResult, Scope};
use polypath_scsi::Lun;
use polypath_scsi::midlayer::{Address, HostBus, Recovered};
use polypath_scsi::opcode;
use std::sync::mpsc::{Receiver, channel};

const LOOKS: &[u8] = &[opcode::TEST_UNIT_READY, opcode::INQUIRY];

fn prove(rig: &Rig, limit_ms: u64) -> Receiver<ProofResult> {
    let (tell, told) = channel();
    let power = rig.disk.cross_fence().expect("it was configured");
    power.prove(ms(limit_ms), ProofReply::new(move |result| tell.send(result).unwrap()));
    told
}

fn turn(rig: &mut Rig) {
    rig.now = rig.now.after(ms(1));
    rig.scanner.poll(rig.now, 0);
}

#[test]
fn a_reset_proves_once_it_was_answered_and_the_same_disk_is_there() {
    let mut rig = rig(100);
    let told = prove(&rig, 1000);
    turn(&mut rig);
    assert_eq!(rig.script(|s| s.log.clone()).len(), 1);
    assert!(rig.script(|s| s.log[0].starts_with("ResetLogicalUnit")) && told.try_recv().is_err(), "not answered yet");
    rig.scan();
    assert_eq!(told.try_recv(), Ok(Ok(Proof::UnitReset)));
    assert!(rig.disk.state().info().is_some(), "nothing has become of the disk");
}

#[test]
fn what_does_not_prove_anything_says_so_and_in_time() {
    type Case = (&'static str, fn(&mut Rig));
    let cases: [Case; 4] = [
        ("refuses", |rig| rig.script(|s| s.recovered = [Recovered::Failed].into())),
        ("another disk", |rig| rig.script(|s| s.naa = 9)),
        ("in time", |rig| rig.script(|s| s.rules = vec![rule(LOOKS, 9, Reply::Never)])),
        ("cannot be sent", |rig| {
            let (target, lun) = (0, Lun::ZERO);
            rig.script(|s| s.refused = vec![polypath_scsi::midlayer::Recovery::ResetLogicalUnit { target, lun }]);
        }),
    ];
    for (why, change) in cases {
        let mut rig = rig(100);
        change(&mut rig);
        let told = prove(&rig, 500);
        rig.scan();
        let said = told.try_recv().expect("an answer").expect_err("no proof");
        assert!(said.contains(why), "{why}: {said}");
    }
    let mut rig = rig(100);
    rig.script(|s| s.up = false);
    rig.scan();
    let told = prove(&rig, 500);
    turn(&mut rig);
    assert!(told.try_recv().is_ok_and(|said| said.is_err()), "at the next turn: it is down");
}

#[test]
fn a_device_shows_what_its_queues_have_lost_until_it_is_proven() {
    let rig = rig(100);
    let (power, bus) = (rig.disk.cross_fence().expect("it was configured"), rig.host.bus());
    let address = Address { target: 0, lun: Lun::ZERO };
    let before = rig.disk.version();
    let loss = bus.open_loss(address);
    assert!(rig.disk.version() > before && power.open_loss() == Some(loss), "whoever watches devices sees it");
    let younger = bus.open_loss(address);
    power.proven(loss, Proof::UnitReset);
    let proof = |number| bus.proof_of(address, number);
    assert_eq!((proof(loss), proof(younger)), (Some(Proof::UnitReset), None));
    assert_eq!(power.open_loss(), Some(younger));
}

/// A target that was reset by whomever need not answer what it had before: that is found out at once, and not after the time limit of a task.
#[test]
fn what_was_sent_before_a_reset_is_asked_for_as_soon_as_that_is_heard() {
    for (recovered, steps) in [
        (Recovered::Complete, &["AbortTask"][..]),
        // It is gone without an answer, as it seems: the session goes, which is a proof; no further reset, which others would hear.
        (Recovered::NoSuchTask, &["AbortTask", "ResetHost"]),
    ] {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| {
            s.rules = vec![rule(WRITES, 1, Reply::Never), rule(READS, 1, attention(0x29, 0x03))];
            s.recovered = [recovered].into();
            s.proof = Some(Proof::Reinstated);
        });
        let (first, second) = (d.span(0, BLOCK), d.span(1, BLOCK));
        d.submit(&rig, Io::write(1, 0, 1, first)).unwrap();
        d.turn(&mut rig, 1);
        d.submit(&rig, Io::read(2, 0, 1, second)).unwrap();
        assert!(d.until(&mut rig, 100, |done| done.completions.iter().any(|c| c.tag == 1)), "{recovered:?}");
        let write = d.done.completions.iter().find(|c| c.tag == 1).unwrap();
        assert_eq!(write.status.scope(), Scope::Path, "{recovered:?}: to be sent again elsewhere");
        assert!(matches!(write.proof, Proof::Aborted | Proof::Reinstated), "{write:?}");
        let log = rig.script(|s| s.log.clone());
        assert!(log.len() == steps.len() && log.iter().zip(steps).all(|(l, s)| l.starts_with(s)), "{log:?}");
    }
}
