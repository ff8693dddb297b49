//! A connection driven by an input: tasks submitted, octets sent in parts, and received both raw and as PDUs whose fields the input
//! chooses.

use crate::pdu::*;
use crate::proto::{DataPlan, Event, InitiatorConnection, Outcome, Parameters, Want};
use crate::serial::{CmdSn, StatSn};
use polypath_net::Crc32c;
use polypath_net::plan::Chunk;
use std::collections::VecDeque;

const DEPTH: u16 = 4;
const LUN: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
/// Octets of a task's data.
const LEN: u32 = 8192;

/// See the module.
pub fn iscsi_connection(data: &[u8]) {
    let Some(mut driver) = Driver::new(data) else { return };
    while driver.step().is_some() {}
    driver.finish();
}

/// A task that was submitted and is not known to have ended.
#[derive(Clone, Copy)]
struct Task {
    to_target: bool,
    /// Once its command has left.
    itt: Option<Itt>,
    /// Octets that have come for it, each once.
    came: u32,
}

struct Driver<'a> {
    input: &'a [u8],
    connection: InitiatorConnection,
    tasks: [Option<Task>; DEPTH as usize],
    /// Slots whose commands have not left, in order.
    leaving: VecDeque<u16>,
    /// What has left and was not read as PDUs yet.
    sent: Vec<u8>,
    cmd_sn: CmdSn,
    stat_sn: StatSn,
    crc: Crc32c,
    pings: u32,
}

impl<'a> Driver<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        let (&first, input) = data.split_first()?;
        let framing = Framing { header_digest: first & 1 != 0, data_digest: first & 2 != 0, max_data_len: 1024 };
        let (cmd_sn, stat_sn) = (CmdSn::new(u32::MAX - 1), StatSn::new(u32::MAX));
        let connection = InitiatorConnection::new(Parameters {
            depth: DEPTH,
            tx: framing,
            rx: Framing { max_data_len: 4096, ..framing },
            max_burst_len: 4096,
            first_burst_len: 2048,
            initial_r2t: first & 4 != 0,
            immediate_data: first & 8 != 0,
            max_outstanding_r2t: u16::from(first >> 4 & 3) + 1,
            cmd_sn,
            max_cmd_sn: cmd_sn.plus(u32::from(first >> 6) * 2),
            exp_stat_sn: stat_sn,
        });
        let (tasks, leaving) = ([None; DEPTH as usize], VecDeque::new());
        let crc = Crc32c::new();
        Some(Driver { input, connection, tasks, leaving, sent: Vec::new(), cmd_sn, stat_sn, crc, pings: 0 })
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(first)
    }

    fn quantity(&mut self) -> Option<u32> {
        Some(u32::from(u16::from_le_bytes([self.byte()?, self.byte()?])))
    }

    fn step(&mut self) -> Option<()> {
        match self.byte()? % 12 {
            0 => self.submit(DataPlan::In(LEN)),
            1 => self.submit(DataPlan::Out(LEN)),
            2 => self.submit(DataPlan::Out(512)),
            3 => self.send()?,
            4 => {
                let n = usize::from(self.byte()?).min(self.input.len());
                let (raw, rest) = self.input.split_at(n);
                self.input = rest;
                self.receive(raw);
            }
            5 => self.answer()?,
            6 => self.ask()?,
            7 => self.data()?,
            8 => self.nop()?,
            9 => self.managed()?,
            10 => self.async_or_reject()?,
            _ => self.manage()?,
        }
        self.events();
        Some(())
    }

    fn submit(&mut self, plan: DataPlan) {
        if let Ok(slot) = self.connection.submit(LUN, [0; 16], plan) {
            let task = Task { to_target: matches!(plan, DataPlan::Out(_)), itt: None, came: 0 };
            assert!(self.tasks[usize::from(slot)].replace(task).is_none(), "a slot in use was given out");
            self.leaving.push_back(slot);
        }
    }

    /// Some or all of what has to leave leaves.
    fn send(&mut self) -> Option<()> {
        while let Some(due) = self.connection.next_digest() {
            let data = vec![0; (due.len + u32::from(due.pad)) as usize];
            self.connection.set_digest(due.token, data_digest(&data));
        }
        let mut octets = Vec::new();
        for chunk in self.connection.transmit() {
            match chunk {
                Chunk::Bytes(bytes) => octets.extend_from_slice(bytes),
                Chunk::Data { offset, len, .. } => {
                    assert!(len > 0 && u64::from(offset) + u64::from(len) <= u64::from(LEN));
                    octets.resize(octets.len() + len as usize, 0);
                }
            }
        }
        let share = usize::from(self.byte()?);
        let n = if share > 127 { octets.len() } else { octets.len() * share / 127 };
        self.connection.sent(n);
        self.sent.extend_from_slice(&octets[..n]);
        self.read_sent();
        Some(())
    }

    /// What left must be right, whatever the target said.
    fn read_sent(&mut self) {
        let framing = Framing { max_data_len: 1 << 20, ..self.connection.parameters().tx };
        while let Some(basic) = self.sent.first_chunk() {
            let header = Header::parse(basic, Role::Initiator, &framing).expect("what we send can be read");
            let len = header.head_len() + header.tail_len();
            let Some(whole) = self.sent.get(..len) else { return };
            header.verify_header_digest(whole).expect("the digest of what we send");
            let data = header.verified_data(&whole[header.head_len()..]).expect("the data of what we send");
            assert!(data.len() <= 1024, "more than the target takes in one PDU");
            if header.opcode == Opcode::ScsiCommand {
                let command = ScsiCommand::parse(&header, basic).expect("a command of ours");
                assert_eq!(command.sn.cmd_sn, self.cmd_sn, "commands are numbered one after the other");
                self.cmd_sn = self.cmd_sn.next();
                let slot = self.leaving.pop_front().expect("a command that was submitted");
                if let Some(task) = &mut self.tasks[usize::from(slot)] {
                    task.itt = Some(command.itt);
                }
            }
            self.sent.drain(..len);
        }
    }

    /// Mostly the tag of a task whose command has left.
    fn itt(&mut self) -> Option<Itt> {
        let b = self.byte()?;
        let known = self.tasks[usize::from(b % DEPTH as u8)].and_then(|task| task.itt);
        match known {
            Some(itt) if b & 0x80 == 0 => Some(itt),
            _ => Itt::new(self.quantity()? | u32::from(b) << 16),
        }
    }

    /// Mostly the right numbers; `counts`: the PDU has a status number of its own.
    fn sn(&mut self, how: u8, counts: bool) -> TargetSn {
        let stat_sn = if how & 0x40 != 0 { StatSn::new(7) } else { self.stat_sn };
        if counts && stat_sn == self.stat_sn {
            self.stat_sn = self.stat_sn.next();
        }
        let max = self.cmd_sn.plus(u32::from(how >> 4 & 3));
        TargetSn { stat_sn, exp_cmd_sn: self.cmd_sn, max_cmd_sn: max }
    }

    fn answer(&mut self) -> Option<()> {
        let (itt, how) = (self.itt()?, self.byte()?);
        let response = match how & 3 {
            0 | 1 => CommandResponse::Completed { status: (how & 3) * 2 },
            2 => CommandResponse::TargetFailure,
            _ => CommandResponse::Other(0x80),
        };
        let data: &[u8] =
            if how & 4 != 0 { &[0, 18, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0] } else { &[] };
        let residual = if how & 8 != 0 { Residual::Underflow(self.quantity()?) } else { Residual::None };
        let pdu = ScsiResponse {
            itt,
            response,
            residual,
            read_residual: Residual::None,
            snack_tag: 0,
            exp_data_sn: 0,
            sn: self.sn(how, true),
            data_len: data.len() as u32,
        };
        self.hear(&Pdu::ScsiResponse(pdu), data)
    }

    fn ask(&mut self) -> Option<()> {
        let (itt, how) = (self.itt()?, self.byte()?);
        let (buffer_offset, desired_len) = (self.quantity()? * 4, self.quantity()?.max(1));
        let ttt = Ttt::new(u32::from(how))?;
        let sn = self.sn(how, false);
        self.hear(
            &Pdu::R2t(R2t { lun: LUN, itt, ttt, sn, r2t_sn: u32::from(how & 7), buffer_offset, desired_len }),
            &[],
        )
    }

    fn data(&mut self) -> Option<()> {
        let (itt, how) = (self.itt()?, self.byte()?);
        let (buffer_offset, len) = (self.quantity()? * 4, self.quantity()?.clamp(1, 4096));
        let status = (how & 1 != 0).then_some(DataInStatus { status: 0, residual: Residual::None });
        let pdu = DataIn {
            is_final: how & 3 != 0,
            acknowledge: false,
            status,
            lun: LUN,
            itt,
            ttt: None,
            sn: self.sn(how, status.is_some()),
            data_sn: u32::from(how >> 2 & 3),
            buffer_offset,
            data_len: len,
        };
        let data = vec![how; len as usize];
        self.hear(&Pdu::DataIn(pdu), &data)
    }

    fn nop(&mut self) -> Option<()> {
        let how = self.byte()?;
        if how & 1 != 0 {
            self.pings += u32::from(self.connection.ping());
            return Some(());
        }
        let itt = if how & 2 != 0 { Some(self.itt()?) } else { None };
        let ttt = if how & 4 != 0 { Ttt::new(u32::from(how)) } else { None };
        let sn = self.sn(how, itt.is_some());
        self.hear(&Pdu::NopIn(NopIn { lun: LUN, itt, ttt, sn, data_len: 0 }), &[])
    }

    fn managed(&mut self) -> Option<()> {
        let (itt, how) = (self.itt()?, self.byte()?);
        let sn = self.sn(how, true);
        self.hear(&Pdu::TaskResponse(TaskResponse { result: TaskResult::from_code(how & 7), itt, sn }), &[])
    }

    fn manage(&mut self) -> Option<()> {
        let how = self.byte()?;
        if how & 0x80 != 0 {
            self.connection.log_out();
            return Some(());
        }
        let slot = u16::from(how) % DEPTH;
        let task = self.tasks[usize::from(slot)].is_some();
        let (function, slot) = if task && how & 8 != 0 {
            (TaskFunction::AbortTask, Some(slot))
        } else {
            (TaskFunction::LogicalUnitReset, None)
        };
        self.connection.manage(function, LUN, slot, u64::from(slot.unwrap_or(DEPTH)));
        Some(())
    }

    fn async_or_reject(&mut self) -> Option<()> {
        let how = self.byte()?;
        let sn = self.sn(how, true);
        if how & 1 != 0 {
            let reject = Reject { reason: RejectReason::from_code(how), sn, data_sn: 0, data_len: BHS_LEN as u32 };
            return self.hear(&Pdu::Reject(reject), &[how; BHS_LEN]);
        }
        let event = match how >> 1 & 7 {
            1 => AsyncEvent::LogoutRequested { within_s: how.into() },
            2 => AsyncEvent::ConnectionDropped { cid: how.into(), time2wait_s: 1, time2retain_s: 0 },
            3 => AsyncEvent::SessionDropped { time2wait_s: 1, time2retain_s: 0 },
            4 => AsyncEvent::NegotiationRequested { within_s: how.into() },
            5 => AsyncEvent::TasksTerminated,
            event => AsyncEvent::Other { event: event + 6, parameters: [u16::from(how), 1, 2] },
        };
        self.hear(&Pdu::AsyncMessage(AsyncMessage { lun: LUN, event, sn, vendor_code: 0, data_len: 0 }), &[])
    }

    /// Hands in a PDU and its data, with digests that are right.
    fn hear(&mut self, pdu: &Pdu, data: &[u8]) -> Option<()> {
        let framing = self.connection.parameters().rx;
        let mut octets = vec![0; MAX_PLAIN_HEAD];
        let n = pdu.encode(&framing, &mut octets).ok()?;
        octets.truncate(n);
        octets.extend_from_slice(data);
        octets.extend(std::iter::repeat_n(0, pad_len(data.len() as u32)));
        if framing.data_digest && !data.is_empty() {
            octets.extend_from_slice(&data_digest(data));
        }
        self.receive(&octets);
        Some(())
    }

    fn receive(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            self.events();
            let used = match self.connection.wants() {
                Want::Bytes(n) => {
                    assert!(n > 0);
                    self.connection.handle_bytes(input)
                }
                Want::Data { slot, offset, len } => {
                    let n = input.len().min(len as usize);
                    let task = self.tasks[usize::from(slot)].as_mut().expect("data for a task in flight");
                    assert!(!task.to_target && offset == task.came && offset + len <= LEN, "data where they belong");
                    task.came += n as u32;
                    self.crc.update(&input[..n]);
                    self.connection.data_moved(n as u32);
                    Ok(n)
                }
                Want::Tail(_) => self.connection.handle_tail(input, &self.crc),
                Want::Nothing => return,
            };
            if !matches!(self.connection.wants(), Want::Data { .. } | Want::Tail(_)) {
                self.crc = Crc32c::new();
            }
            match used {
                Ok(used) => {
                    assert!(used > 0 || self.connection.has_events(), "no progress");
                    input = &input[used..];
                }
                Err(error) => {
                    let _ = error.to_string();
                    return;
                }
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Ended { slot, ending } => {
                    let task = self.tasks[usize::from(slot)].take().expect("completed once");
                    assert!(task.itt.is_some(), "answered before its command has left");
                    assert!(ending.moved <= LEN && (!ending.has_sense || !self.connection.sense().is_empty()));
                }
                Event::Managed { token, result: TaskResult::Complete }
                    if token < u64::from(DEPTH) && self.connection.end_aborted(token as u16) =>
                {
                    assert!(self.tasks[token as usize].take().is_some(), "aborted once");
                    self.leaving.retain(|&slot| u64::from(slot) != token);
                }
                Event::Pong => {
                    assert!(self.pings > 0, "an answer to no ping");
                    self.pings -= 1;
                }
                _ => {}
            }
        }
    }

    /// Whatever has not ended comes out once.
    fn finish(mut self) {
        self.events();
        self.connection.close();
        self.events();
        while let Some((slot, outcome)) = self.connection.poll_outcome() {
            let task = self.tasks[usize::from(slot)].take().expect("ended once");
            if matches!(outcome, Outcome::Lost(polypath_block::Fate::NotSent)) {
                assert!(task.itt.is_none(), "its command has left");
            }
        }
        assert!(self.tasks.iter().all(Option::is_none), "every task ends");
        assert_eq!(self.connection.in_flight(), 0);
    }
}
