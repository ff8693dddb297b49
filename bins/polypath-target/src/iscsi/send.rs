//! What leaves on a connection: statuses, data, requests for data, and everything else.

use super::Env;
use super::conn::Conn;
use super::scsi::Verdict;
use crate::faults;
use crate::media::Medium;
use crate::shared::HostLog;
use polypath_iscsi::login::LoginError;
use polypath_iscsi::pdu::{
    AsyncEvent, AsyncMessage, BHS_LEN, CommandResponse, DIGEST_LEN, DataIn, DataInStatus, EncodeError, Framing, Itt,
    Lun, MAX_PLAIN_HEAD, NopIn, NopOut, PAD, Pdu, R2t, Reject, RejectReason, Residual, ScsiCommand, ScsiResponse,
    TargetSn, TaskResponse, TaskResult, TextRequest, Ttt, data_digest, pad_len,
};

/// Where the data of a read come from.
pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    Medium(&'a Medium, u64),
}

impl Conn {
    /// Serial numbers of a PDU that takes a place among the answers.
    #[inline]
    pub(super) fn next_sn(&mut self) -> TargetSn {
        let sn = self.sn();
        self.stat_sn = self.stat_sn.next();
        sn
    }

    #[inline]
    fn sn(&self) -> TargetSn {
        let room = self.window.saturating_sub(self.counted);
        let max_cmd_sn = self.exp_cmd_sn.plus(room).previous();
        TargetSn { stat_sn: self.stat_sn, exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn }
    }

    /// Sends a head.
    #[inline]
    fn head(&mut self, env: &Env<'_>, encode: impl FnOnce(&Framing, &mut [u8]) -> Result<usize, EncodeError>) {
        let mut head = [0; MAX_PLAIN_HEAD];
        match encode(&self.agreed.tx, &mut head) {
            Ok(n) => {
                let corrupt = self.agreed.tx.header_digest
                    && !env.rules.is_empty()
                    && faults::corrupts(env.rules, &self.who(), false, env.now_us);
                if corrupt {
                    head[BHS_LEN] ^= 0x10;
                }
                self.out.bytes(&head[..n]);
            }
            Err(error) => {
                tracing::error!(%error, "a PDU of ours");
                self.ending = Some(crate::conn::Ending::Now);
            }
        }
    }

    /// Sends what follows the data of a PDU.
    #[inline]
    fn tail(&mut self, env: &Env<'_>, len: usize, digest: impl FnOnce() -> [u8; DIGEST_LEN]) {
        let pad = pad_len(len as u32);
        if pad > 0 {
            self.out.bytes(&PAD[..pad]);
        }
        if self.agreed.tx.data_digest && len > 0 {
            let mut digest = digest();
            if !env.rules.is_empty() && faults::corrupts(env.rules, &self.who(), true, env.now_us) {
                digest[0] ^= 0x10;
            }
            self.out.bytes(&digest);
        }
    }

    pub(super) fn whole(&mut self, env: &Env<'_>, data: &[u8], pdu: Pdu) {
        self.head(env, |framing, out| pdu.encode(framing, out));
        self.out.bytes(data);
        self.tail(env, data.len(), || data_digest(data));
    }

    /// Ends a command without data for the initiator: `wanted` octets would the command have moved by itself.
    pub(super) fn respond(&mut self, env: &Env<'_>, cmd: &ScsiCommand, verdict: Verdict, wanted: u64) {
        let sense = verdict.sense.map(|sense| sense.to_fixed());
        let mut data = [0; 20];
        let data = match sense {
            Some(sense) => {
                data[1] = sense.len() as u8;
                data[2..].copy_from_slice(&sense);
                &data[..]
            }
            None => &[],
        };
        let response = ScsiResponse {
            itt: cmd.itt,
            response: CommandResponse::Completed { status: verdict.status },
            residual: residual(cmd.expected_len, wanted),
            read_residual: Residual::None,
            snack_tag: 0,
            exp_data_sn: std::mem::take(&mut self.requests),
            sn: self.next_sn(),
            data_len: data.len() as u32,
        };
        if data.is_empty() {
            self.head(env, |framing, out| response.encode(framing, out));
        } else {
            self.whole(env, data, Pdu::ScsiResponse(response));
        }
    }

    /// Sends data and GOOD; no more than is expected.
    #[inline]
    pub(super) fn data_in(&mut self, env: &Env<'_>, cmd: &ScsiCommand, source: Source<'_>, len: u64) {
        let expected = if cmd.read && !cmd.write { cmd.expected_len } else { 0 };
        let total = len.min(expected.into()) as usize;
        if total == 0 {
            return self.respond(env, cmd, Verdict::GOOD, len);
        }
        let most = (self.agreed.tx.max_data_len as usize).max(4);
        let (mut at, mut burst, mut data_sn) = (0, 0, 0);
        while at < total {
            let n = (total - at).min(most).min(self.agreed.max_burst - burst);
            burst += n;
            let last = at + n == total;
            let is_final = last || burst == self.agreed.max_burst;
            let status = last.then(|| DataInStatus { status: 0, residual: residual(cmd.expected_len, len) });
            let pdu = DataIn {
                is_final,
                acknowledge: false,
                status,
                lun: Lun::ZERO,
                itt: cmd.itt,
                ttt: None,
                sn: if last { self.next_sn() } else { self.sn() },
                data_sn,
                buffer_offset: at as u32,
                data_len: n as u32,
            };
            self.head(env, |framing, out| pdu.encode(framing, out));
            self.piece(env, &source, at, n);
            if is_final {
                burst = 0;
            }
            at += n;
            data_sn += 1;
        }
    }

    /// The data of one Data-In.
    #[inline]
    fn piece(&mut self, env: &Env<'_>, source: &Source<'_>, at: usize, n: usize) {
        let digests = self.agreed.tx.data_digest;
        match source {
            Source::Bytes(bytes) => {
                let bytes = bytes.get(at..at + n).unwrap_or(&[]);
                self.out.bytes(bytes);
                self.tail(env, n, || data_digest(bytes));
            }
            Source::Medium(Medium::Null, _) if !digests => {
                self.out.zeroes(n);
                self.tail(env, n, || [0; DIGEST_LEN]);
            }
            Source::Medium(medium, offset) => {
                let offset = offset + at as u64;
                // A digest must be of what is sent, so the data must not change any more: it is copied then.
                let in_place = if digests { None } else { medium.segment(offset, n) };
                if let Some(segment) = in_place {
                    self.out.medium(segment);
                    return self.tail(env, n, || [0; DIGEST_LEN]);
                }
                let data = self.out.reserve(n);
                let read = medium.read(offset, data);
                let digest = if digests { data_digest(data) } else { [0; DIGEST_LEN] };
                if read.is_err() {
                    // Ranges were checked: memory cannot fail here. If it ever did, wrong data must not arrive.
                    self.ending = Some(crate::conn::Ending::Now);
                }
                self.tail(env, n, || digest);
            }
        }
    }

    pub(super) fn send_r2t(&mut self, env: &Env<'_>, r2t: (Lun, Itt, Ttt), number: u32, offset: u32, len: u32) {
        let (lun, itt, ttt) = r2t;
        let pdu = R2t { lun, itt, ttt, sn: self.sn(), r2t_sn: number, buffer_offset: offset, desired_len: len };
        self.head(env, |framing, out| pdu.encode(framing, out));
    }

    pub(super) fn task_response(&mut self, env: &Env<'_>, itt: Itt, result: TaskResult) {
        let pdu = TaskResponse { result, itt, sn: self.next_sn() };
        self.head(env, |framing, out| pdu.encode(framing, out));
    }

    /// Says that a PDU was not taken; its head goes back.
    pub(super) fn reject(&mut self, env: &Env<'_>, reason: RejectReason, bhs: &[u8; BHS_LEN]) {
        let pdu = Reject { reason, sn: self.next_sn(), data_sn: 0, data_len: BHS_LEN as u32 };
        self.whole(env, bhs, Pdu::Reject(pdu));
    }

    /// A NOP-Out: a ping of the initiator's, or its answer to ours.
    pub(super) fn nop_out(&mut self, env: &Env<'_>, nop: &NopOut, data: &[u8]) {
        if nop.ttt.is_some() && nop.ttt.map(Ttt::get) == self.ping {
            self.ping = None;
        }
        if nop.itt.is_none() || self.is_lost(env, faults::Operation::Alive) {
            return;
        }
        let data = data.get(..self.agreed.tx.max_data_len as usize).unwrap_or(data);
        let pdu = NopIn { lun: nop.lun, itt: nop.itt, ttt: None, sn: self.next_sn(), data_len: data.len() as u32 };
        self.whole(env, data, Pdu::NopIn(pdu));
    }

    /// Asks whether the initiator is there.
    pub(super) fn send_ping(&mut self, env: &Env<'_>) {
        let tag = self.next_ping & 0x7fff_ffff;
        self.next_ping = self.next_ping.wrapping_add(1);
        self.ping = Some(tag);
        let pdu = NopIn { lun: Lun::ZERO, itt: None, ttt: Ttt::new(tag), sn: self.sn(), data_len: 0 };
        self.head(env, |framing, out| pdu.encode(framing, out));
    }

    pub(super) fn send_event(&mut self, env: &Env<'_>, event: AsyncEvent) {
        let pdu = AsyncMessage { event, vendor_code: 0, lun: Lun::ZERO, sn: self.next_sn(), data_len: 0 };
        self.head(env, |framing, out| pdu.encode(framing, out));
    }

    pub(super) fn text_request(&mut self, env: &Env<'_>, request: &TextRequest, bhs: &[u8; BHS_LEN], data: &[u8]) {
        let sn = self.sn();
        let local = self.info.local;
        let Some(text) = &mut self.text else { return };
        match text.handle(request, data, sn, &mut |which| env.iscsi.discover(which, local)) {
            Ok(message) => {
                self.stat_sn = self.stat_sn.next();
                self.whole(env, &message.text, Pdu::TextResponse(message.pdu));
            }
            Err(error) => {
                let error: LoginError = error;
                if let Some(others) = HostLog::may(&env.iscsi.shared.log.refused, env.now_us) {
                    tracing::info!(conn = self.info.id, %error, others, "text refused");
                }
                self.reject(env, RejectReason::ProtocolError, bhs);
            }
        }
    }
}

/// How what a command moves compares with what the initiator expects.
fn residual(expected: u32, wanted: u64) -> Residual {
    match u64::from(expected).cmp(&wanted) {
        std::cmp::Ordering::Equal => Residual::None,
        std::cmp::Ordering::Greater => Residual::Underflow((u64::from(expected) - wanted) as u32),
        std::cmp::Ordering::Less => Residual::Overflow(u32::try_from(wanted - u64::from(expected)).unwrap_or(u32::MAX)),
    }
}
