//! Data that a host sends after it was asked to: R2T and H2CData, staged within a bound.

use super::wire::{Fatal, Fes, kind};
use super::{Conn, Env, Pending, STAGE_LIMIT, wire};
use polypath_block::SlotKey;
use polypath_nvme::{Cqe, Sqe, StatusField};

/// Where the generation begins in a transfer tag; below is the slot.
const TAG_SHIFT: u32 = 10;

/// A command whose data is on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) sqe: Sqe,
    pub(super) len: usize,
    pub(super) got: usize,
    /// End of what was asked for; 0 before the first R2T.
    pub(super) asked: usize,
    pub(super) stage: Vec<u8>,
    pub(super) bad_digest: bool,
}

impl Conn {
    pub(super) fn start_transfer(&mut self, env: &Env<'_>, sqe: Sqe, len: usize) -> Result<(), Fatal> {
        if self.controller.is_none() || len > env.nvme.shared.config.mdts_bytes as usize {
            self.fail(env, sqe.cid(), StatusField::INVALID_FIELD);
            return Ok(());
        }
        if let Err(status) = self.precheck(env, &sqe, len) {
            self.complete(env, Cqe::new(sqe.cid(), status));
            return Ok(());
        }
        let transfer = Transfer { sqe, len, got: 0, asked: 0, stage: Vec::new(), bad_digest: false };
        let key = self.wait(Pending::Transfer(transfer))?;
        if self.waiting.is_empty() && self.staged + len <= STAGE_LIMIT {
            self.ask(env, key);
        } else {
            self.waiting.push_back(key);
        }
        Ok(())
    }

    /// Sends the next R2T of a transfer.
    pub(super) fn ask(&mut self, env: &Env<'_>, key: SlotKey) {
        let limit = match env.nvme.shared.config.r2t_bytes as usize {
            0 => usize::MAX,
            n => n,
        };
        let Some(Pending::Transfer(t)) = self.pending.get_mut(key) else { return };
        if t.asked == 0 {
            self.staged += t.len;
        }
        let len = (t.len - t.got).min(limit);
        t.asked = t.got + len;
        let mut r2t = [0; wire::SHORT_HEADER];
        r2t[0] = kind::R2T;
        r2t[8..10].copy_from_slice(&t.sqe.cid().to_le_bytes());
        r2t[10..12].copy_from_slice(&tag(key).to_le_bytes());
        r2t[12..16].copy_from_slice(&(t.got as u32).to_le_bytes());
        r2t[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        self.header_out(env, r2t, 0);
    }

    pub(super) fn h2c_data(
        &mut self,
        env: &Env<'_>,
        pdu: &[u8],
        flags: u8,
        data: &[u8],
        good: bool,
    ) -> Result<(), Fatal> {
        let (cid, ttag) = (wire::u16_at(pdu, 8), wire::u16_at(pdu, 10));
        let (offset, len) = (wire::u32_at(pdu, 12) as usize, wire::u32_at(pdu, 16) as usize);
        let key = self.pending.key_at(ttag & ((1 << TAG_SHIFT) - 1)).filter(|k| tag(*k) == ttag);
        let Some((key, Some(Pending::Transfer(t)))) = key.map(|k| (k, self.pending.get_mut(k))) else {
            return Err(Fatal::field(10, "TTAG names no transfer"));
        };
        if t.sqe.cid() != cid {
            return Err(Fatal::field(8, "CCCID is not that of the transfer"));
        }
        if len != data.len() {
            return Err(Fatal::field(16, "DATAL is not the length of the data"));
        }
        if offset != t.got || t.got + len > t.asked {
            return Err(Fatal::new(Fes::OutOfRange, 12, "data that was not asked for"));
        }
        let last = t.got + len == t.asked;
        if last != (flags & wire::LAST != 0) {
            return Err(Fatal::field(1, "LAST_PDU does not agree with the R2T"));
        }
        t.bad_digest |= !good;
        let whole = len == t.len;
        if !whole {
            if t.stage.is_empty() {
                t.stage = self.pool.take(t.len);
            }
            t.stage.extend_from_slice(data);
        }
        t.got += len;
        if t.got < t.len {
            if last {
                self.ask(env, key);
            }
            return Ok(());
        }
        let Some(Pending::Transfer(t)) = self.pending.remove(key) else { return Ok(()) };
        if t.bad_digest {
            self.complete(env, Cqe::new(cid, StatusField::TRANSIENT_TRANSPORT_ERROR));
        } else {
            self.ready(env, &t.sqe, if whole { data } else { &t.stage });
        }
        self.staged -= t.len;
        self.pool.give(t.stage);
        self.ask_waiting(env);
        Ok(())
    }

    pub(super) fn unstage(&mut self, stage: Vec<u8>) {
        self.pool.give(stage);
        // What was staged is counted afresh from those that were asked for.
        let asked = |p: &Pending| match p {
            Pending::Transfer(t) if t.asked > 0 => t.len,
            Pending::Below(below) => below.bytes,
            _ => 0,
        };
        self.staged = self.pending.iter().map(|(_, p)| asked(p)).sum();
    }

    pub(super) fn ask_waiting(&mut self, env: &Env<'_>) {
        while let Some(&key) = self.waiting.front() {
            let len = match self.pending.get(key) {
                Some(Pending::Transfer(t)) => t.len,
                _ => 0,
            };
            if len > 0 && self.staged + len > STAGE_LIMIT {
                return;
            }
            self.waiting.pop_front();
            self.ask(env, key);
        }
    }
}

/// A transfer tag: slot and generation.
fn tag(key: SlotKey) -> u16 {
    key.index() | key.generation() << TAG_SHIFT
}
