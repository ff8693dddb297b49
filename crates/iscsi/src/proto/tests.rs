//! The connection against a scripted target that is right, and against one that is not.

mod limits;
mod numbers;
mod pieces;

use super::*;
use crate::pdu::{
    AsyncMessage, BHS_LEN, CommandResponse, DIGEST_LEN, DataIn, DataInStatus, DataOut, Framing, Header, InitiatorSn,
    Itt, Lun, MAX_HEAD, NopIn, NopOut, Opcode, PduError, R2t, Reject, RejectReason, Residual, Role, ScsiCommand,
    ScsiResponse, TargetSn, TaskFunction, TaskRequest, TaskResponse, Ttt, data_digest, pad_len,
};
use crate::serial::{CmdSn, StatSn};
use polypath_net::Crc32c;
use polypath_net::plan::Chunk;

const LUN: Lun = Lun([0, 3, 0, 0, 0, 0, 0, 0]);
const READ: [u8; 16] = [0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];

fn parameters() -> Parameters {
    let framing = Framing { header_digest: false, data_digest: false, max_data_len: 1024 };
    Parameters {
        depth: 4,
        tx: framing,
        rx: Framing { max_data_len: 2048, ..framing },
        max_burst_len: 4096,
        first_burst_len: 2048,
        initial_r2t: false,
        immediate_data: true,
        max_outstanding_r2t: 1,
        cmd_sn: CmdSn::new(u32::MAX),
        max_cmd_sn: CmdSn::new(2),
        exp_stat_sn: StatSn::new(u32::MAX - 1),
    }
}

/// A connection, and the target that it talks to.
struct Rig {
    connection: InitiatorConnection,
    stat_sn: StatSn,
    max_cmd_sn: CmdSn,
    crc: Crc32c,
    /// Octets handed in at a time.
    step: usize,
    /// Data of slots, as the shell holds them.
    data: Vec<Vec<u8>>,
}

impl Rig {
    fn new(parameters: Parameters) -> Rig {
        Rig {
            connection: InitiatorConnection::new(parameters),
            stat_sn: parameters.exp_stat_sn,
            max_cmd_sn: parameters.max_cmd_sn,
            crc: Crc32c::new(),
            step: usize::MAX,
            data: vec![vec![0; 16 << 10]; usize::from(parameters.depth)],
        }
    }

    /// All that has to leave, as PDUs with their data.
    fn sent(&mut self) -> Vec<(Header, Vec<u8>, Vec<u8>)> {
        while let Some(due) = self.connection.next_digest() {
            let (from, to) = (due.offset as usize, (due.offset + due.len) as usize);
            self.connection.set_digest(due.token, data_digest(&self.data[usize::from(due.slot)][from..to]));
        }
        let mut octets = Vec::new();
        for chunk in self.connection.transmit() {
            match chunk {
                Chunk::Bytes(bytes) => octets.extend_from_slice(bytes),
                Chunk::Data { slot, offset, len, .. } => {
                    octets.extend_from_slice(&self.data[usize::from(slot)][offset as usize..(offset + len) as usize]);
                }
            }
        }
        self.connection.sent(octets.len());
        let framing = Framing { max_data_len: 1 << 20, ..self.connection.parameters().tx };
        let (mut rest, mut pdus) = (&octets[..], Vec::new());
        while !rest.is_empty() {
            let header = Header::parse(rest.first_chunk().unwrap(), Role::Initiator, &framing).unwrap();
            header.verify_header_digest(rest).unwrap();
            let (head, tail) = rest.split_at(header.head_len());
            let data = header.verified_data(tail).unwrap().to_vec();
            pdus.push((header, head.to_vec(), data));
            rest = &tail[header.tail_len()..];
        }
        pdus
    }

    fn commands(&mut self) -> Vec<(ScsiCommand, Vec<u8>)> {
        let pdus = self.sent().into_iter().filter(|(h, ..)| h.opcode == Opcode::ScsiCommand);
        pdus.map(|(h, head, data)| (ScsiCommand::parse(&h, head.first_chunk().unwrap()).unwrap(), data)).collect()
    }

    fn data_outs(&mut self) -> Vec<(DataOut, Vec<u8>)> {
        let pdus = self.sent().into_iter().filter(|(h, ..)| h.opcode == Opcode::DataOut);
        pdus.map(|(h, head, data)| (DataOut::parse(&h, head.first_chunk().unwrap()).unwrap(), data)).collect()
    }

    /// The numbers of a PDU that carries a status.
    fn sn(&mut self) -> TargetSn {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        TargetSn { stat_sn, ..self.sn_without() }
    }

    fn sn_without(&self) -> TargetSn {
        TargetSn { stat_sn: self.stat_sn, exp_cmd_sn: CmdSn::new(0), max_cmd_sn: self.max_cmd_sn }
    }

    /// A PDU with all that belongs to it.
    fn octets(&self, encode: impl FnOnce(&Framing, &mut [u8]) -> usize, data: &[u8]) -> Vec<u8> {
        let framing = self.connection.parameters().rx;
        let mut octets = vec![0; MAX_HEAD];
        let len = encode(&framing, &mut octets);
        octets.truncate(len);
        octets.extend_from_slice(data);
        octets.extend(std::iter::repeat_n(0, pad_len(data.len() as u32)));
        if framing.data_digest && !data.is_empty() {
            octets.extend_from_slice(&data_digest(data));
        }
        octets
    }

    /// Hands in a PDU and its data, in steps; returns what came of it.
    fn hear(
        &mut self,
        encode: impl FnOnce(&Framing, &mut [u8]) -> usize,
        data: &[u8],
    ) -> Result<Vec<Event>, ProtocolError> {
        let octets = self.octets(encode, data);
        let mut events = Vec::new();
        for piece in octets.chunks(self.step.min(octets.len())) {
            self.take(piece, &mut events)?;
        }
        Ok(events)
    }

    fn take(&mut self, mut input: &[u8], events: &mut Vec<Event>) -> Result<(), ProtocolError> {
        loop {
            while let Some(event) = self.connection.poll_event() {
                events.push(event);
            }
            if input.is_empty() {
                return Ok(());
            }
            let used = match self.connection.wants() {
                Want::Bytes(_) => self.connection.handle_bytes(input)?,
                Want::Data { slot, offset, len } => {
                    let n = input.len().min(len as usize);
                    self.crc.update(&input[..n]);
                    self.data[usize::from(slot)][offset as usize..offset as usize + n].copy_from_slice(&input[..n]);
                    self.connection.data_moved(n as u32);
                    n
                }
                Want::Tail(_) => self.connection.handle_tail(input, &self.crc)?,
                Want::Nothing => return Err(ProtocolError::NotWanted),
            };
            if !matches!(self.connection.wants(), Want::Data { .. } | Want::Tail(_)) {
                self.crc = Crc32c::new();
            }
            input = &input[used..];
        }
    }

    fn data_in(
        &mut self,
        itt: Itt,
        data_sn: u32,
        offset: u32,
        data: &[u8],
        status: Option<DataInStatus>,
    ) -> Result<Vec<Event>, ProtocolError> {
        let pdu = self.data_in_pdu(itt, data_sn, offset, data.len() as u32, status);
        self.hear(|f, out| pdu.encode(f, out).unwrap(), data)
    }

    fn data_in_pdu(
        &mut self,
        itt: Itt,
        data_sn: u32,
        buffer_offset: u32,
        data_len: u32,
        status: Option<DataInStatus>,
    ) -> DataIn {
        DataIn {
            is_final: status.is_some(),
            acknowledge: false,
            status,
            lun: LUN,
            itt,
            ttt: None,
            sn: if status.is_some() { self.sn() } else { self.sn_without() },
            data_sn,
            buffer_offset,
            data_len,
        }
    }

    fn response(&mut self, itt: Itt, status: u8, residual: Residual, data: &[u8]) -> Result<Vec<Event>, ProtocolError> {
        let pdu = ScsiResponse {
            itt,
            response: CommandResponse::Completed { status },
            residual,
            read_residual: Residual::None,
            snack_tag: 0,
            exp_data_sn: 0,
            sn: self.sn(),
            data_len: data.len() as u32,
        };
        self.hear(|f, out| pdu.encode(f, out).unwrap(), data)
    }

    fn r2t(
        &mut self,
        itt: Itt,
        r2t_sn: u32,
        buffer_offset: u32,
        desired_len: u32,
    ) -> Result<Vec<Event>, ProtocolError> {
        let ttt = Ttt::new(77 + r2t_sn).unwrap();
        let pdu = R2t { lun: LUN, itt, ttt, sn: self.sn_without(), r2t_sn, buffer_offset, desired_len };
        self.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
    }

    /// A read of 4096 octets whose command has left; its tag.
    fn read(&mut self) -> (u16, Itt) {
        let slot = self.connection.submit(LUN, READ, DataPlan::In(4096)).unwrap();
        (slot, self.commands()[0].0.itt)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + 3) as u8).collect()
}

fn good(moved: u32) -> Ending {
    Ending { status: Some(0), moved, whole: true, has_sense: false }
}

/// Every framing, and octets in pieces of any size.
fn everywhere(test: impl Fn(&mut Rig)) {
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        for step in [usize::MAX, 1, 3, 47, 50, 1000] {
            let mut parameters = parameters();
            for framing in [&mut parameters.tx, &mut parameters.rx] {
                (framing.header_digest, framing.data_digest) = (header_digest, data_digest);
            }
            let mut rig = Rig::new(parameters);
            rig.step = step;
            test(&mut rig);
        }
    }
}

#[test]
fn a_read_ends_with_the_status_in_its_last_data() {
    everywhere(|rig| {
        let data = pattern(4095);
        let slot = rig.connection.submit(LUN, READ, DataPlan::In(4095)).unwrap();
        let (command, _) = rig.commands().remove(0);
        assert_eq!((command.lun, command.cdb, command.read, command.write), (LUN, READ, true, false));
        assert_eq!((command.expected_len, command.is_final, command.sn.cmd_sn), (4095, true, CmdSn::new(u32::MAX)));
        assert_eq!(rig.data_in(command.itt, 0, 0, &data[..2048], None), Ok(vec![]));
        let status = Some(DataInStatus { status: 0, residual: Residual::None });
        let events = rig.data_in(command.itt, 1, 2048, &data[2048..], status);
        assert_eq!(events, Ok(vec![Event::Ended { slot, ending: good(4095) }]));
        assert_eq!(rig.data[usize::from(slot)][..4095], data);
        assert_eq!(rig.connection.in_flight(), 0);
    });
}

#[test]
fn a_write_sends_what_it_may_and_then_what_it_is_asked_for() {
    everywhere(|rig| {
        let slot = rig.connection.submit(LUN, READ, DataPlan::Out(5003)).unwrap();
        rig.data[usize::from(slot)][..5003].copy_from_slice(&pattern(5003));
        let pdus = rig.sent();
        let command = ScsiCommand::parse(&pdus[0].0, pdus[0].1.first_chunk().unwrap()).unwrap();
        assert!(command.write && !command.read && !command.is_final && command.expected_len == 5003);
        assert_eq!(pdus[0].2, pattern(5003)[..1024], "immediate data, as much as the target takes at a time");
        let unasked = DataOut::parse(&pdus[1].0, pdus[1].1.first_chunk().unwrap()).unwrap();
        assert_eq!((unasked.ttt, unasked.buffer_offset, unasked.data_sn, unasked.is_final), (None, 1024, 0, true));
        assert_eq!((pdus[1].2.len(), pdus.len()), (1024, 2), "the rest of the first burst");
        rig.r2t(command.itt, 0, 2048, 2000).unwrap();
        let outs = rig.data_outs();
        let places: Vec<_> = outs.iter().map(|(o, d)| (o.buffer_offset, d.len(), o.data_sn, o.is_final)).collect();
        assert_eq!(places, [(2048, 1024, 0, false), (3072, 976, 1, true)]);
        assert!(outs.iter().all(|(o, _)| o.ttt == Ttt::new(77) && o.itt == command.itt && o.lun == LUN));
        rig.r2t(command.itt, 1, 4048, 955).unwrap();
        let (last, data) = rig.data_outs().remove(0);
        assert_eq!((last.ttt, last.data_sn, data), (Ttt::new(78), 0, pattern(5003)[4048..].to_vec()));
        let events = rig.response(command.itt, 0, Residual::None, &[]);
        assert_eq!(events, Ok(vec![Event::Ended { slot, ending: good(5003) }]));
    });
}

#[test]
fn what_is_sent_unasked_is_what_was_negotiated() {
    // InitialR2T, ImmediateData: octets in the command, octets behind it.
    for (initial_r2t, immediate_data, sizes) in [
        (false, true, vec![1024, 1024]),
        (true, true, vec![1024]),
        (false, false, vec![0, 1024, 1024]),
        (true, false, vec![0]),
    ] {
        let mut rig = Rig::new(Parameters { initial_r2t, immediate_data, ..parameters() });
        rig.connection.submit(LUN, READ, DataPlan::Out(8192)).unwrap();
        let pdus = rig.sent();
        assert_eq!(pdus.iter().map(|(_, _, d)| d.len()).collect::<Vec<_>>(), sizes, "{initial_r2t} {immediate_data}");
        let command = ScsiCommand::parse(&pdus[0].0, pdus[0].1.first_chunk().unwrap()).unwrap();
        assert_eq!(command.is_final, pdus.len() == 1, "F: nothing follows unasked");
        // A burst that is asked for begins where the unasked one ends.
        let end = sizes.iter().sum::<usize>() as u32;
        assert!(rig.r2t(command.itt, 0, end, 100).is_ok());
    }
}

#[test]
fn the_target_says_how_many_commands_it_takes() {
    let mut rig = Rig::new(parameters());
    assert_eq!(rig.connection.room(), 4, "CmdSN -1 to 2");
    let ends: Vec<_> = (0..5).map(|_| rig.connection.submit(LUN, READ, DataPlan::None)).collect();
    assert!(ends[..4].iter().all(Result::is_ok) && ends[4] == Err(SubmitError::Full));
    let commands = rig.commands();
    let numbers: Vec<_> = commands.iter().map(|(c, _)| c.sn.cmd_sn.get()).collect();
    assert_eq!(numbers, [u32::MAX, 0, 1, 2]);
    rig.response(commands[0].0.itt, 0, Residual::None, &[]).unwrap();
    assert_eq!(rig.connection.room(), 0, "a slot is free, and the window is closed");
    rig.max_cmd_sn = CmdSn::new(3);
    rig.response(commands[1].0.itt, 0, Residual::None, &[]).unwrap();
    assert_eq!(rig.connection.room(), 1);
    // An older value, and one that contradicts ExpCmdSN, change nothing.
    for (max_cmd_sn, stat) in [(1, 2), (u32::MAX - 9, 3)] {
        rig.max_cmd_sn = CmdSn::new(max_cmd_sn);
        rig.response(commands[stat].0.itt, 0, Residual::None, &[]).unwrap();
        assert_eq!(rig.connection.room(), 1, "{max_cmd_sn}");
    }
}

#[test]
fn sense_and_residuals_come_with_the_answer() {
    everywhere(|rig| {
        let (slot, itt) = rig.read();
        rig.data_in(itt, 0, 0, &pattern(100), None).unwrap();
        let mut sense = vec![0, 18, 0x70, 0, 6];
        sense.resize(20, 0);
        let events = rig.response(itt, 2, Residual::Underflow(3996), &sense).unwrap();
        let ending = Ending { status: Some(2), moved: 100, whole: false, has_sense: true };
        assert_eq!(events, [Event::Ended { slot, ending }]);
        assert_eq!((rig.connection.sense().len(), rig.connection.sense()[2]), (18, 6));
        // A write of which the target says that it took less than it asked for.
        let slot = rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
        let itt = rig.commands()[0].0.itt;
        let events = rig.response(itt, 0, Residual::Underflow(12), &[]).unwrap();
        let ending = Ending { status: Some(0), moved: 500, whole: false, has_sense: false };
        assert_eq!(events, [Event::Ended { slot, ending }]);
    });
}

/// A task that is answered while its data are on their way out ends when these have left. By then others were answered.
#[test]
fn sense_stays_with_its_task() {
    let mut rig = Rig::new(parameters());
    let (read, read_itt) = rig.read();
    let write = rig.connection.submit(LUN, READ, DataPlan::Out(1024)).unwrap();
    let head = match rig.connection.transmit().next() {
        Some(Chunk::Bytes(head)) => head.to_vec(),
        other => panic!("{other:?}"),
    };
    let write_itt = Itt::new(u32::from_be_bytes(*head[16..].first_chunk().unwrap())).unwrap();
    rig.connection.sent(BHS_LEN + 12);
    let sense = |key: u8| [&[0, 18, 0x70, 0, key][..], &[0; 4], &[10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0]].concat();
    let refused = rig.response(write_itt, 2, Residual::None, &sense(7));
    assert_eq!(refused, Ok(vec![]), "its data are still leaving");
    let wrong = rig.response(read_itt, 2, Residual::Underflow(4096), &sense(3)).unwrap();
    assert!(matches!(wrong[..], [Event::Ended { slot, ending }] if slot == read && ending.has_sense), "{wrong:?}");
    assert_eq!(rig.connection.sense(), &sense(3)[2..]);
    rig.connection.sent(1024 - 12);
    let event = rig.connection.poll_event();
    assert!(matches!(event, Some(Event::Ended { slot, ending }) if slot == write && ending.has_sense), "{event:?}");
    assert_eq!(rig.connection.sense(), &sense(7)[2..]);
}

#[test]
fn pings_go_both_ways() {
    everywhere(|rig| {
        let ttt = Ttt::new(5).unwrap();
        let asked = NopIn { lun: LUN, itt: None, ttt: Some(ttt), sn: rig.sn_without(), data_len: 3 };
        assert_eq!(rig.hear(|f, out| asked.encode(f, out).unwrap(), b"who"), Ok(vec![]));
        let (header, head, _) = rig.sent().remove(0);
        let answer = NopOut::parse(&header, head.first_chunk().unwrap()).unwrap();
        assert_eq!((answer.ttt, answer.lun, answer.itt, answer.immediate), (Some(ttt), LUN, None, true));
        assert!(rig.connection.ping() && !rig.connection.ping() && rig.connection.is_waiting());
        let (header, head, _) = rig.sent().remove(0);
        let ping = NopOut::parse(&header, head.first_chunk().unwrap()).unwrap();
        assert!(ping.immediate && ping.ttt.is_none());
        let sn = rig.sn();
        let pong = NopIn { lun: LUN, itt: ping.itt, ttt: None, sn, data_len: 0 };
        assert_eq!(rig.hear(|f, out| pong.encode(f, out).unwrap(), &[]), Ok(vec![Event::Pong]));
        assert!(!rig.connection.is_waiting());
    });
}

#[test]
fn an_aborted_task_is_over_when_the_target_says_so() {
    let mut rig = Rig::new(parameters());
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(8192)).unwrap();
    let command = rig.commands()[0].0;
    rig.r2t(command.itt, 0, 2048, 4096).unwrap();
    assert!(rig.connection.manage(TaskFunction::AbortTask, LUN, Some(slot), 42));
    assert!(!rig.connection.manage(TaskFunction::AbortTask, LUN, Some(3), 43), "no such task");
    let pdus = rig.sent();
    let (header, head, _) = pdus.iter().find(|(h, ..)| h.opcode == Opcode::TaskRequest).unwrap();
    let request = TaskRequest::parse(header, head.first_chunk().unwrap()).unwrap();
    assert_eq!((request.function, request.referenced), (TaskFunction::AbortTask, Some(command.itt)));
    assert_eq!((request.ref_cmd_sn, request.immediate, request.lun), (command.sn.cmd_sn, true, LUN));
    let sn = rig.sn();
    let answer = TaskResponse { result: TaskResult::Complete, itt: request.itt, sn };
    let events = rig.hear(|f, out| answer.encode(f, out).unwrap(), &[]).unwrap();
    assert_eq!(events, [Event::Managed { token: 42, result: TaskResult::Complete }]);
    assert!(rig.connection.is_active(slot) && rig.connection.end_aborted(slot));
    assert_eq!(rig.connection.in_flight(), 0);
    // What comes for it now is for nobody.
    let late = rig.response(command.itt, 0, Residual::None, &[]);
    assert!(matches!(late, Err(ProtocolError::UnknownTask { .. })), "{late:?}");
}

#[test]
fn what_was_sent_after_a_reset_is_not_among_its_tasks() {
    let mut rig = Rig::new(parameters());
    let other = Lun([0, 9, 0, 0, 0, 0, 0, 0]);
    let before = [LUN, other].map(|lun| rig.connection.submit(lun, READ, DataPlan::None).unwrap());
    let mark = rig.connection.next_cmd_sn();
    assert!(rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, 7));
    let after = rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
    assert_eq!(rig.connection.tasks_before(mark, Some(LUN)), [before[0]]);
    let mut all = rig.connection.tasks_before(mark, None);
    all.sort_unstable_by_key(|slot| *slot == before[1]);
    assert!(all == before && !all.contains(&after), "{all:?}");
    let (header, head, _) = rig.sent().into_iter().find(|(h, ..)| h.opcode == Opcode::TaskRequest).unwrap();
    assert_eq!(TaskRequest::parse(&header, head.first_chunk().unwrap()).unwrap().sn.cmd_sn, mark);
}

#[test]
fn when_it_ends_every_task_is_accounted_for() {
    let mut rig = Rig::new(parameters());
    let (first, itt) = rig.read();
    let (second, _) = rig.read();
    let unsent = rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
    let mut octets = vec![0; BHS_LEN];
    let pdu = ScsiResponse {
        itt,
        response: CommandResponse::TargetFailure,
        residual: Residual::None,
        read_residual: Residual::None,
        snack_tag: 0,
        exp_data_sn: 0,
        sn: rig.sn(),
        data_len: 0,
    };
    pdu.encode(&Framing::LOGIN, &mut octets).unwrap();
    rig.connection.handle_bytes(&octets).unwrap();
    rig.connection.close();
    let mut outcomes: Vec<_> = std::iter::from_fn(|| rig.connection.poll_outcome()).collect();
    outcomes.sort_by_key(|(slot, _)| [first, second, unsent].iter().position(|s| s == slot));
    let failed = Ending { status: None, moved: 0, whole: false, has_sense: false };
    let want = [
        (first, Outcome::Ended(failed)),
        (second, Outcome::Lost(Fate::Unknown)),
        (unsent, Outcome::Lost(Fate::NotSent)),
    ];
    assert_eq!(outcomes, want);
    assert_eq!(rig.connection.submit(LUN, READ, DataPlan::None), Err(SubmitError::NotReady));
}

#[test]
fn a_task_is_taken_back_only_while_its_number_is_the_last() {
    let mut rig = Rig::new(parameters());
    let first = rig.connection.submit(LUN, READ, DataPlan::Out(4096)).unwrap();
    let second = rig.connection.submit(LUN, READ, DataPlan::None).unwrap();
    assert!(!rig.connection.withdraw(first), "the target would wait for its number");
    assert!(rig.connection.withdraw(second) && rig.connection.withdraw(first));
    assert!(!rig.connection.has_output() && rig.connection.in_flight() == 0);
    rig.read();
    assert!(!rig.connection.withdraw(0), "it has left");
}

type Wrong = fn(&mut Rig, Itt) -> Result<Vec<Event>, ProtocolError>;

#[test]
fn a_target_that_is_wrong_loses_the_connection() {
    let status = Some(DataInStatus { status: 0, residual: Residual::None });
    assert!(status.is_some());
    let cases: [(&str, Wrong); 15] = [
        ("octets 4000 + 100", |rig, itt| {
            rig.data_in(itt, 0, 0, &pattern(2000), None)?;
            rig.data_in(itt, 1, 2000, &pattern(2000), None)?;
            rig.data_in(itt, 2, 4000, &pattern(100), None)
        }),
        ("begins at octet 8", |rig, itt| rig.data_in(itt, 0, 8, &pattern(8), None)),
        ("DataSN is 1, expected 0", |rig, itt| rig.data_in(itt, 1, 0, &pattern(8), None)),
        ("which is not there", |rig, itt| rig.data_in(Itt::new(itt.get() + (1 << 16)).unwrap(), 0, 0, &[1], None)),
        ("which is not there", |rig, _| rig.response(Itt::new(3).unwrap(), 0, Residual::None, &[])),
        ("StatSN is", |rig, itt| {
            rig.stat_sn = rig.stat_sn.next();
            rig.response(itt, 0, Residual::None, &[])
        }),
        ("it does not write", |rig, itt| rig.r2t(itt, 0, 0, 8)),
        ("more than the 2048", |rig, itt| {
            // As a sender that may send more encodes it.
            let pdu = rig.data_in_pdu(itt, 0, 0, 2049, None);
            let any = Framing { max_data_len: 1 << 20, ..rig.connection.parameters().rx };
            rig.hear(|_, out| pdu.encode(&any, out).unwrap(), &pattern(2049))
        }),
        ("MaxBurstLength", |rig, _| {
            rig.connection.submit(LUN, READ, DataPlan::Out(10_000)).unwrap();
            let itt = rig.commands()[0].0.itt;
            rig.r2t(itt, 0, 2048, 4097)
        }),
        ("R2TSN is 1", |rig, _| {
            rig.connection.submit(LUN, READ, DataPlan::Out(10_000)).unwrap();
            let itt = rig.commands()[0].0.itt;
            rig.r2t(itt, 1, 2048, 100)
        }),
        ("more R2T", |rig, _| {
            rig.connection.submit(LUN, READ, DataPlan::Out(16_000)).unwrap();
            let itt = rig.commands()[0].0.itt;
            rig.r2t(itt, 0, 2048, 100).unwrap();
            rig.r2t(itt, 1, 2148, 100).unwrap();
            rig.r2t(itt, 2, 2248, 100)
        }),
        ("it does not read", |rig, _| {
            rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
            let itt = rig.commands()[0].0.itt;
            rig.data_in(itt, 0, 0, &[1], None)
        }),
        ("rejects a PDU of ours (opcode 0x01)", |rig, _| {
            let mut head = [0; BHS_LEN];
            head[0] = 0x01;
            let sn = rig.sn();
            let pdu = Reject { reason: RejectReason::ProtocolError, sn, data_sn: 0, data_len: BHS_LEN as u32 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &head)
        }),
        ("which is not there", |rig, _| {
            let sn = rig.sn();
            let pdu = TaskResponse { result: TaskResult::Complete, itt: Itt::new(0x8000_0001).unwrap(), sn };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
        ("nobody asked for", |rig, _| {
            let sn = rig.sn();
            let result = crate::pdu::LogoutResult::Closed;
            let itt = Itt::new(0xfffe_0000).unwrap();
            let pdu = crate::pdu::LogoutResponse { result, itt, sn, time2wait_s: 0, time2retain_s: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
    ];
    for (number, (says, wrong)) in cases.iter().enumerate() {
        let mut rig = Rig::new(parameters());
        let (slot, itt) = rig.read();
        let error = wrong(&mut rig, itt).expect_err(says).to_string();
        assert!(error.contains(says), "{number}: {error}");
        assert_eq!(rig.connection.wants(), Want::Nothing, "{number}");
        let outcomes: Vec<_> = std::iter::from_fn(|| rig.connection.poll_outcome()).collect();
        assert!(outcomes.contains(&(slot, Outcome::Lost(Fate::Unknown))), "{number}: {outcomes:?}");
    }
}

#[test]
fn a_tag_that_was_not_sent_yet_is_nobodys() {
    let mut rig = Rig::new(parameters());
    rig.read();
    rig.connection.submit(LUN, READ, DataPlan::In(512)).unwrap();
    let early = rig.response(Itt::new(1).unwrap(), 0, Residual::None, &[]);
    assert!(matches!(early, Err(ProtocolError::UnknownTask { .. })), "{early:?}");
}

#[test]
fn a_bit_on_the_way_is_noticed() {
    let mut parameters = parameters();
    (parameters.rx.header_digest, parameters.rx.data_digest) = (true, true);
    let len = BHS_LEN + DIGEST_LEN + 100 + DIGEST_LEN;
    for bit in (0..len * 8).step_by(5) {
        let mut rig = Rig::new(parameters);
        let (_, itt) = rig.read();
        let status = DataInStatus { status: 0, residual: Residual::None };
        let pdu = rig.data_in_pdu(itt, 0, 0, 100, Some(status));
        let mut octets = rig.octets(|framing, out| pdu.encode(framing, out).unwrap(), &pattern(100));
        assert_eq!(octets.len(), len);
        octets[bit / 8] ^= 1 << (bit % 8);
        let mut events = Vec::new();
        let taken = rig.take(&octets, &mut events);
        // A longer data segment than came is waited for.
        assert!(taken.is_err() || events.is_empty(), "bit {bit}: {events:?}");
        if (BHS_LEN + DIGEST_LEN) * 8 <= bit {
            assert!(matches!(taken, Err(ProtocolError::Pdu(PduError::DataDigest { .. }))), "bit {bit}: {taken:?}");
        }
    }
}

#[test]
fn messages_that_nobody_asked_for_are_told() {
    let mut rig = Rig::new(parameters());
    let sn = rig.sn();
    let event = crate::pdu::AsyncEvent::LogoutRequested { within_s: 9 };
    let pdu = AsyncMessage { event, vendor_code: 0, lun: LUN, sn, data_len: 0 };
    assert_eq!(rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[]), Ok(vec![Event::Async(event)]));
    rig.connection.log_out();
    assert_eq!(rig.connection.submit(LUN, READ, DataPlan::None), Err(SubmitError::NotReady));
    let (header, head, _) = rig.sent().remove(0);
    let request = crate::pdu::LogoutRequest::parse(&header, head.first_chunk().unwrap()).unwrap();
    assert_eq!(request.sn, InitiatorSn { cmd_sn: CmdSn::new(u32::MAX), exp_stat_sn: rig.stat_sn });
    let (result, sn) = (crate::pdu::LogoutResult::Closed, rig.sn());
    let pdu = crate::pdu::LogoutResponse { result, itt: request.itt, sn, time2wait_s: 0, time2retain_s: 0 };
    assert_eq!(rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[]), Ok(vec![Event::LoggedOut]));
}
