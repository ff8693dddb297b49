//! Commands that are passed through to a logical unit: attentions that come first, limits, and ways that are lost.

use crate::script::{BLOCK, Reply, Rig, ms, rig};
use crate::{READS, WRITES, attention, rule};
use polypath_block::{
    Code, CommandSet, Device, PassthroughAnswer, PassthroughCommand, PassthroughData, PassthroughReply,
    PassthroughRequest, PassthroughResult, PassthroughStatus, Proof,
};
use polypath_scsi::midlayer::BusState;
use polypath_scsi::{ScsiStatus, Sense};
use std::sync::mpsc::{Receiver, channel};

/// READ(10) of block 5.
fn read() -> PassthroughRequest {
    let cdb = vec![0x28, 0, 0, 0, 0, 5, 0, 0, 1, 0];
    PassthroughRequest::reads(PassthroughCommand::Scsi(cdb), PassthroughData::In(BLOCK))
}

/// WRITE(10) of block 5.
fn write() -> PassthroughRequest {
    let cdb = vec![0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0];
    PassthroughRequest::changes(PassthroughCommand::Scsi(cdb), PassthroughData::Out(vec![9; BLOCK as usize]))
}

fn inquiry(len: u32) -> PassthroughRequest {
    let cdb = vec![0x12, 0, 0, 0, 255, 0];
    PassthroughRequest::reads(PassthroughCommand::Scsi(cdb), PassthroughData::In(len))
}

/// Asks, with a limit of 400 ms.
fn start(rig: &Rig, request: PassthroughRequest) -> Receiver<PassthroughResult> {
    let (tell, told) = channel();
    let reply = PassthroughReply::new(move |result| tell.send(result).unwrap_or(()));
    rig.disk.passthrough().unwrap().start(request, ms(400), reply);
    told
}

fn ask(rig: &mut Rig, request: PassthroughRequest) -> PassthroughResult {
    let told = start(rig, request);
    rig.scan();
    told.try_recv().expect("an answer")
}

fn code(result: PassthroughResult) -> Option<Code> {
    result.err().map(|error| error.code)
}

fn good(data: Vec<u8>) -> PassthroughResult {
    Ok(PassthroughAnswer { status: PassthroughStatus::Scsi { status: 0, sense: Vec::new() }, data })
}

/// The script's turn after turn, until there is an answer, at most 2 s.
fn wait(rig: &mut Rig, told: &Receiver<PassthroughResult>) -> Option<PassthroughResult> {
    (0..100).find_map(|_| {
        rig.now = rig.now.after(ms(20));
        rig.scanner.poll(rig.now, 0);
        told.try_recv().ok()
    })
}

fn sent(rig: &Rig, opcode: u8) -> usize {
    rig.script(|s| s.commands.iter().filter(|code| **code == opcode).count())
}

#[test]
fn what_the_device_says_comes_back_as_it_said_it() {
    let mut rig = rig(100);
    assert_eq!(ask(&mut rig, write()), good(Vec::new()));
    assert_eq!(ask(&mut rig, read()), good(vec![9; BLOCK as usize]));
    // Less than was asked for.
    let short = ask(&mut rig, inquiry(255)).unwrap();
    assert!(short.status.is_good() && (36..255).contains(&short.data.len()), "{short:x?}");
    rig.script(|s| s.rules = vec![rule(READS, 1, Reply::Sense(Sense::new(3, 0x11, 0)))]);
    let answer = ask(&mut rig, read()).unwrap();
    let PassthroughStatus::Scsi { status: 2, sense } = &answer.status else { panic!("{answer:x?}") };
    assert_eq!((Sense::parse(sense).unwrap(), answer.data.len()), (Sense::new(3, 0x11, 0), 0));
    rig.script(|s| s.rules = vec![rule(READS, 1, Reply::Status(ScsiStatus::BUSY))]);
    let busy = PassthroughStatus::Scsi { status: 8, sense: Vec::new() };
    assert_eq!(ask(&mut rig, read()).unwrap().status, busy);
    let power = rig.disk.passthrough().unwrap();
    assert!(power.speaks(CommandSet::Scsi) && !power.speaks(CommandSet::Nvme));
}

#[test]
fn what_is_refused_at_the_door_is_not_sent() {
    let mut rig = rig(100);
    let unsaid = PassthroughRequest { changes: false, ..write() };
    let mut reserve = vec![0x5f; 1];
    reserve.resize(10, 0);
    let reserve = PassthroughRequest::changes(PassthroughCommand::Scsi(reserve), PassthroughData::None);
    let large = PassthroughRequest { data: PassthroughData::In(65_537), ..read() };
    for (request, want) in [(unsaid, Code::Invalid), (reserve, Code::Unsupported), (large, Code::Invalid)] {
        assert_eq!(code(ask(&mut rig, request)), Some(want));
    }
    assert_eq!([0x2a, 0x5f, 0x28].map(|opcode| sent(&rig, opcode)), [0, 0, 0]);
}

#[test]
fn an_attention_that_comes_first_is_acted_on_and_the_command_carried_out_once() {
    let mut rig = rig(100);
    rig.script(|s| {
        s.rules = vec![rule(WRITES, 2, attention(0x2a, 0x09))];
        s.blocks = 200;
        s.medium.resize(200 * 512, 0);
    });
    assert_eq!((ask(&mut rig, write()), sent(&rig, 0x2a)), (good(Vec::new()), 1));
    rig.scan();
    assert_eq!(rig.disk.state().info().unwrap().geometry.blocks, 200, "it was looked at again");
    rig.script(|s| s.rules = vec![rule(READS, usize::MAX, attention(0x29, 0))]);
    let PassthroughStatus::Scsi { status: 2, sense } = ask(&mut rig, read()).unwrap().status else { panic!() };
    assert_eq!(sense[1..4], [6, 0x29, 0], "not for ever");
}

#[test]
fn a_read_that_is_not_answered_in_time_costs_the_session_and_is_told_then() {
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(READS, 1, Reply::Never)]);
    let (told, began) = (start(&rig, read()), rig.now);
    let result = wait(&mut rig, &told).expect("an answer");
    assert_eq!(code(result), Some(Code::PathTimeout));
    assert!((ms(400)..ms(500)).contains(&rig.now.since(began)));
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"]);
    assert_eq!(code(ask(&mut rig, read())), None, "the next one is served");
    assert_eq!(rig.script(|s| s.log.len()), 1);
}

#[test]
fn a_change_that_is_not_answered_is_unknown_when_it_is_quiet_and_never_sent_again() {
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(WRITES, 1, Reply::Never)]);
    let told = start(&rig, write());
    assert_eq!(wait(&mut rig, &told), None, "there is no proof yet");
    assert_eq!(rig.script(|s| s.log.clone()), ["ResetHost"]);
    rig.script(|s| s.nexus = 2);
    assert_eq!(wait(&mut rig, &told), None, "the session is back, and it may still land");
    assert_eq!(rig.script(|s| s.log.len()), 1, "that one is not given up for it");
    rig.script(|s| s.proof = Some(Proof::Reinstated));
    let error = wait(&mut rig, &told).expect("an answer").unwrap_err();
    assert!(error.code == Code::OutcomeUnknown && error.reason.contains(&Proof::Reinstated.to_string()), "{error}");
    assert_eq!(sent(&rig, 0x2a), 0, "not a second time");
    rig.scan();
    assert_eq!(ask(&mut rig, write()), good(Vec::new()));
}

/// Whoever closes the way does not make a ghost of it.
#[test]
fn a_change_that_is_under_way_is_not_over_because_its_way_is_closed() {
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(WRITES, 1, Reply::Never)]);
    let (told, waits) = (start(&rig, write()), start(&rig, read()));
    rig.scanner.poll(rig.now, 0);
    rig.scanner.close(rig.now, 0);
    rig.host.bus.set_state(BusState::Gone { reason: "closed".into() });
    assert_eq!(wait(&mut rig, &told), None, "nobody has said what has become of it");
    assert!(code(waits.try_recv().unwrap()).is_some() && !rig.scanner.is_drained());
    rig.script(|s| (s.nexus, s.commands) = (2, Vec::new()));
    assert_eq!(wait(&mut rig, &told), None, "the session is back, and it may still land");
    assert!(!rig.scanner.is_drained() && matches!(rig.host.bus.state(), BusState::Gone { .. }));
    rig.script(|s| s.proof = Some(Proof::Reinstated));
    let error = wait(&mut rig, &told).expect("an answer").unwrap_err();
    assert!(error.code == Code::OutcomeUnknown && error.reason.contains(&Proof::Reinstated.to_string()), "{error}");
    assert!(rig.scanner.is_drained() && rig.script(|s| s.commands.is_empty()), "nothing else was done");
}

#[test]
fn what_reads_does_not_hold_up_the_end() {
    let mut rig = rig(100);
    rig.script(|s| s.rules = vec![rule(READS, 1, Reply::Never)]);
    let told = start(&rig, read());
    rig.scanner.poll(rig.now, 0);
    rig.scanner.close(rig.now, 0);
    assert!(rig.scanner.is_drained() && told.try_recv().unwrap().is_err());
}

/// It is the error of another command, of which a flush is to tell; this one was not carried out.
#[test]
fn a_deferred_error_is_not_the_commands_own() {
    for (request, opcodes) in [(write(), WRITES), (read(), READS)] {
        let mut rig = rig(100);
        let losses = rig.disk.power_losses();
        let deferred = Sense { deferred: true, ..Sense::new(3, 0x0c, 0) };
        rig.script(|s| s.rules = vec![rule(opcodes, 1, Reply::Sense(deferred))]);
        let answer = ask(&mut rig, request).unwrap();
        assert!(answer.status.is_good(), "{answer:x?}");
        assert_eq!(opcodes.iter().map(|opcode| sent(&rig, *opcode)).sum::<usize>(), 1);
        assert!(rig.disk.power_losses() > losses, "what it tells of is counted");
    }
}

#[test]
fn what_was_not_sent_is_told_to_be_so() {
    let mut rig = rig(100);
    rig.script(|s| s.up = false);
    rig.scan();
    assert_eq!(code(ask(&mut rig, write())), Some(Code::PathLost));
    // Another disk is there when the way is back: it gets nothing.
    rig.script(|s| (s.up, s.nexus, s.naa) = (true, 2, 8));
    assert_eq!((code(ask(&mut rig, write())), sent(&rig, 0x2a)), (Some(Code::PathNoAccess), 0));
    rig.script(|s| (s.nexus, s.naa) = (3, 7));
    rig.scan();
    assert_eq!(ask(&mut rig, write()), good(Vec::new()));
}

/// However many there are: the bus is looked after meanwhile.
#[test]
fn those_that_wait_take_turns_with_the_bus() {
    let mut rig = rig(100);
    let all: Vec<_> = (0..64).map(|_| start(&rig, read())).collect();
    assert_eq!(code(start(&rig, read()).try_recv().unwrap()), Some(Code::PathBusy), "there is a bound");
    let probes = sent(&rig, 0x9e);
    rig.host.bus.all_stale();
    for _ in 0..16 {
        rig.scanner.poll(rig.now, 0);
    }
    assert!(sent(&rig, 0x9e) > probes && all.last().unwrap().try_recv().is_err(), "it was looked at before the last");
    rig.script(|s| s.rules.clear());
    for _ in 0..400 {
        rig.scanner.poll(rig.now, 0);
    }
    assert!(all.iter().all(|told| told.try_recv().is_ok_and(|result| result.is_ok())));
}
