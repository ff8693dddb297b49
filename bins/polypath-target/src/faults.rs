//! Faults on command: what is to go wrong, for whom, how often; and writes that are held and applied late.

use crate::shared::Namespace;
use polypath_nvme::sqe::io;
use serde::Serialize;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Records of held writes that are kept for `status`.
const RECORDS: usize = 1024;
/// Held writes at a time.
const HELD: usize = 4096;

/// To which connections a fault applies. Everything that is set must match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) listener: Option<usize>,
    pub(crate) cntlid: Option<u16>,
    pub(crate) qid: Option<u16>,
    pub(crate) conn: Option<u64>,
}

impl Scope {
    pub(crate) fn matches(&self, who: &Who) -> bool {
        self.listener.is_none_or(|l| l == who.listener)
            && self.cntlid.is_none_or(|c| Some(c) == who.cntlid)
            && self.qid.is_none_or(|q| Some(q) == who.qid)
            && self.conn.is_none_or(|c| c == who.conn)
    }
}

/// Who a connection is, for [`Scope::matches`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) listener: usize,
    pub(crate) cntlid: Option<u16>,
    pub(crate) qid: Option<u16>,
    pub(crate) conn: u64,
}

/// When a held write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Never,
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read and say nothing.
    Stall,
    /// Execute late.
    Delay { us: u64 },
    /// Never answer; `execute` first or not at all.
    Lose { execute: bool },
    /// A wrong header (or data) digest.
    Corrupt { data: bool },
    /// Answer with Internal Error and do nothing.
    Refuse,
    /// Take the write and apply it late.
    Hold { after_us: Option<u64>, beyond: bool, answer: Answer },
    /// Send `bytes` at a time, one lot every `us`.
    Trickle { bytes: usize, us: u64 },
}

/// Which commands a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ops {
    All,
    Io(u8),
    Admin(u8),
}

impl Ops {
    pub(crate) fn parse(text: Option<&str>) -> Result<Ops, String> {
        use polypath_nvme::sqe::admin;
        Ok(match text {
            None | Some("all") => Ops::All,
            Some("read") => Ops::Io(io::READ),
            Some("write") => Ops::Io(io::WRITE),
            Some("flush") => Ops::Io(io::FLUSH),
            Some("compare") => Ops::Io(io::COMPARE),
            Some("write_zeroes") => Ops::Io(io::WRITE_ZEROES),
            Some("dsm") => Ops::Io(io::DATASET_MANAGEMENT),
            Some("keep_alive") => Ops::Admin(admin::KEEP_ALIVE),
            Some("identify") => Ops::Admin(admin::IDENTIFY),
            Some("get_log_page") => Ops::Admin(admin::GET_LOG_PAGE),
            Some("abort") => Ops::Admin(admin::ABORT),
            Some("fabrics") => Ops::Admin(admin::FABRICS),
            Some(other) => {
                return Err(format!(
                    "op \"{other}\" is not known; expected all, read, write, flush, compare, write_zeroes, dsm, keep_alive, identify, get_log_page, abort or fabrics"
                ));
            }
        })
    }

    fn matches(self, admin: bool, opcode: u8) -> bool {
        match self {
            Ops::All => true,
            Ops::Io(op) => !admin && op == opcode,
            Ops::Admin(op) => (admin || op == polypath_nvme::sqe::admin::FABRICS) && op == opcode,
        }
    }
}

/// One fault in force.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) scope: Scope,
    pub(crate) ops: Ops,
    /// How often it still applies; negative for ever.
    left: AtomicI64,
    /// When it ends, in target time.
    until_us: u64,
    hits: AtomicU64,
}

impl Rule {
    pub(crate) fn new(id: u64, kind: Kind, scope: Scope, ops: Ops, count: Option<u64>, until_us: u64) -> Rule {
        let left = AtomicI64::new(count.map_or(-1, |c| i64::try_from(c).unwrap_or(i64::MAX)));
        Rule { id, kind, scope, ops, left, until_us, hits: AtomicU64::new(0) }
    }

    /// Is it still in force?
    pub(crate) fn live(&self, now_us: u64) -> bool {
        now_us < self.until_us && self.left.load(Ordering::Relaxed) != 0
    }

    /// Takes one application, if there is one left.
    pub(crate) fn take(&self, now_us: u64) -> bool {
        if now_us >= self.until_us {
            return false;
        }
        let took = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                0 => None,
                n if n < 0 => Some(n),
                n => Some(n - 1),
            })
            .is_ok();
        if took {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        took
    }

    fn describe(&self, now_us: u64) -> serde_json::Value {
        serde_json::json!({
            "id": self.id, "kind": format!("{:?}", self.kind), "ops": format!("{:?}", self.ops),
            "listener": self.scope.listener, "cntlid": self.scope.cntlid, "qid": self.scope.qid, "conn": self.scope.conn,
            "left": self.left.load(Ordering::Relaxed), "hits": self.hits.load(Ordering::Relaxed), "live": self.live(now_us),
        })
    }
}

/// Rules as one thread sees them.
pub(crate) type Rules = Arc<Vec<Arc<Rule>>>;

/// What `rules` want done with a command; the first that matches and has an application left wins.
pub(crate) fn on_command(rules: &[Arc<Rule>], who: &Who, admin: bool, opcode: u8, now_us: u64) -> Option<Kind> {
    rules
        .iter()
        .find(|r| {
            let write = !admin && matches!(opcode, io::WRITE | io::WRITE_ZEROES);
            let fits = match r.kind {
                Kind::Delay { .. } | Kind::Lose { .. } | Kind::Refuse => r.ops.matches(admin, opcode),
                Kind::Hold { .. } => write && r.ops.matches(admin, opcode),
                _ => false,
            };
            fits && r.scope.matches(who) && r.take(now_us)
        })
        .map(|r| r.kind)
}

/// Whether the digest of the next PDU is to be wrong.
pub(crate) fn corrupts(rules: &[Arc<Rule>], who: &Who, data: bool, now_us: u64) -> bool {
    rules.iter().any(|r| r.kind == Kind::Corrupt { data } && r.scope.matches(who) && r.take(now_us))
}

/// All faults in force.
#[derive(Debug, Default)]
pub(crate) struct FaultTable {
    rules: Mutex<Rules>,
    version: AtomicU64,
    next_id: AtomicU64,
}

impl FaultTable {
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds a rule and forgets those that are over.
    pub(crate) fn add(&self, rule: Rule, now_us: u64) -> u64 {
        let id = rule.id;
        self.change(|rules| {
            rules.retain(|r| r.live(now_us));
            rules.push(Arc::new(rule));
        });
        id
    }

    /// Removes the rules that `gone` says; returns how many.
    pub(crate) fn remove(&self, gone: impl Fn(&Rule) -> bool) -> usize {
        let mut removed = 0;
        self.change(|rules| {
            let before = rules.len();
            rules.retain(|r| !gone(r));
            removed = before - rules.len();
        });
        removed
    }

    pub(crate) fn describe(&self, now_us: u64) -> Vec<serde_json::Value> {
        self.rules().iter().map(|r| r.describe(now_us)).collect()
    }

    fn change(&self, f: impl FnOnce(&mut Vec<Arc<Rule>>)) {
        let mut rules = self.rules.lock().unwrap_or_else(|p| p.into_inner());
        let mut list = rules.to_vec();
        f(&mut list);
        *rules = Arc::new(list);
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// A write taken from its command and applied later, whatever becomes of the connection.
#[derive(Debug)]
pub(crate) struct HeldWrite {
    pub(crate) id: u64,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) offset: u64,
    /// The data; `None` for Write Zeroes of `len` bytes.
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) len: u64,
    /// It is not answered before it is durable.
    pub(crate) fua: bool,
    pub(crate) apply_us: u64,
    /// Whom to tell afterwards: thread, connection, command.
    pub(crate) answer: Option<(usize, u64, u16)>,
}

/// What became of a held write, for tests to hold against their own log.
#[derive(Clone, Debug, Serialize)]
pub struct HeldRecord {
    /// Number of the held write, from 1.
    pub id: u64,
    /// Controller it came through.
    pub cntlid: u16,
    /// Queue it came through.
    pub qid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// Namespace.
    pub nsid: u32,
    /// First logical block.
    pub lba: u64,
    /// Logical blocks.
    pub blocks: u64,
    /// When it was taken, microseconds since 1970.
    pub held_unix_us: u64,
    /// When it is to be applied, milliseconds after it was taken.
    pub apply_after_ms: u64,
    /// What the controller's advertised times allow, in milliseconds after it was taken; none without keep alive.
    pub bound_ms: Option<u64>,
    /// Deliberately later than that?
    pub beyond: bool,
    /// When it was applied, microseconds since 1970; none while it is held.
    pub applied_unix_us: Option<u64>,
    /// Was its controller already gone when it was applied?
    pub after_teardown: Option<bool>,
}

/// All held writes and their records.
#[derive(Debug)]
pub(crate) struct HeldStore {
    inner: Mutex<HeldInner>,
    next_us: AtomicU64,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct HeldInner {
    waiting: Vec<HeldWrite>,
    records: Vec<HeldRecord>,
}

impl HeldStore {
    pub(crate) fn new() -> HeldStore {
        HeldStore { inner: Mutex::default(), next_us: AtomicU64::new(u64::MAX), next_id: AtomicU64::new(0) }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// When the next one is due, in target time.
    pub(crate) fn next_us(&self) -> u64 {
        self.next_us.load(Ordering::Acquire)
    }

    /// Takes a write. `false` when too many are held.
    pub(crate) fn hold(&self, write: HeldWrite, record: HeldRecord) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(|p| p.into_inner());
        if inner.waiting.len() >= HELD {
            return false;
        }
        self.next_us.fetch_min(write.apply_us, Ordering::AcqRel);
        inner.waiting.push(write);
        if inner.records.len() >= RECORDS {
            inner.records.remove(0);
        }
        inner.records.push(record);
        true
    }

    /// Takes out those that are due.
    pub(crate) fn due(&self, now_us: u64) -> Vec<HeldWrite> {
        if now_us < self.next_us() {
            return Vec::new();
        }
        let mut inner = self.inner.lock().unwrap_or_else(|p| p.into_inner());
        let (due, rest) = std::mem::take(&mut inner.waiting).into_iter().partition(|w| w.apply_us <= now_us);
        inner.waiting = rest;
        let next = inner.waiting.iter().map(|w| w.apply_us).min().unwrap_or(u64::MAX);
        self.next_us.store(next, Ordering::Release);
        due
    }

    /// Notes that one was applied.
    pub(crate) fn applied(&self, id: u64, unix_us: u64, alive: impl Fn(u16) -> bool) {
        let mut inner = self.inner.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(record) = inner.records.iter_mut().rev().find(|r| r.id == id) {
            record.applied_unix_us = Some(unix_us);
            record.after_teardown = Some(!alive(record.cntlid));
        }
    }

    /// Forgets what waits: the controller has lost its power.
    pub(crate) fn forget(&self) {
        self.inner.lock().unwrap_or_else(|p| p.into_inner()).waiting.clear();
        self.next_us.store(u64::MAX, Ordering::Release);
    }

    pub(crate) fn records(&self) -> Vec<HeldRecord> {
        self.inner.lock().unwrap_or_else(|p| p.into_inner()).records.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(listener: usize, qid: u16) -> Who {
        Who { listener, cntlid: Some(1), qid: Some(qid), conn: 7 }
    }

    #[test]
    fn rules_apply_to_whom_they_name_and_as_often() {
        let table = FaultTable::default();
        let scope = Scope { listener: Some(1), qid: Some(2), ..Scope::default() };
        let rule = Rule::new(table.next_id(), Kind::Delay { us: 5 }, scope, Ops::Io(io::READ), Some(2), u64::MAX);
        table.add(rule, 0);
        let rules = table.rules();
        let hit = |w: &Who, admin, op| on_command(&rules, w, admin, op, 10);
        assert_eq!(hit(&who(0, 2), false, io::READ), None, "other listener");
        assert_eq!(hit(&who(1, 1), false, io::READ), None, "other queue");
        assert_eq!(hit(&who(1, 2), false, io::WRITE), None, "other operation");
        assert_eq!(hit(&who(1, 2), true, io::READ), None, "an admin opcode of the same number");
        assert_eq!(hit(&who(1, 2), false, io::READ), Some(Kind::Delay { us: 5 }));
        assert_eq!(hit(&who(1, 2), false, io::READ), Some(Kind::Delay { us: 5 }));
        assert_eq!(hit(&who(1, 2), false, io::READ), None, "used up");
        assert!(!rules[0].live(10));
    }

    #[test]
    fn rules_end_in_time() {
        let r = Rule::new(1, Kind::Corrupt { data: true }, Scope::default(), Ops::All, None, 100);
        let rules = [Arc::new(r)];
        assert!(corrupts(&rules, &who(0, 1), true, 99));
        assert!(!corrupts(&rules, &who(0, 1), false, 99), "the other digest");
        assert!(!corrupts(&rules, &who(0, 1), true, 100));
    }

    #[test]
    fn removing_changes_the_version() {
        let table = FaultTable::default();
        let before = table.version();
        let id = table.add(Rule::new(9, Kind::Stall, Scope::default(), Ops::All, None, u64::MAX), 0);
        assert_eq!(table.remove(|r| r.id == id), 1);
        assert!(table.version() > before + 1);
        assert!(table.rules().is_empty());
    }
}
