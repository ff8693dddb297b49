//! Faults on command: what is to go wrong, for whom, how often; and writes that are held and applied late.
//!
//! A fault names commands by what they do and connections by where they belong, whatever protocol they speak.

mod held;

pub use held::HeldRecord;
pub(crate) use held::{HeldStore, HeldWrite};

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// To which connections a fault applies. Everything that is set must match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) listener: Option<usize>,
    /// A controller (CNTLID) or a session (TSIH).
    pub(crate) session: Option<u16>,
    /// A queue (QID) or a connection of a session (CID).
    pub(crate) queue: Option<u16>,
    pub(crate) conn: Option<u64>,
}

impl Scope {
    pub(crate) fn matches(&self, who: &Who) -> bool {
        self.listener.is_none_or(|l| l == who.listener)
            && self.session.is_none_or(|s| Some(s) == who.session)
            && self.queue.is_none_or(|q| Some(q) == who.queue)
            && self.conn.is_none_or(|c| c == who.conn)
    }
}

/// Who a connection is, for [`Scope::matches`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) listener: usize,
    pub(crate) session: Option<u16>,
    pub(crate) queue: Option<u16>,
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

/// What a command does, whichever protocol it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
    Compare,
    /// Writes zeroes, or one block many times.
    Zero,
    /// Gives blocks back.
    Trim,
    /// Says that it is there: Keep Alive, TEST UNIT READY.
    Alive,
    /// Asks what there is: Identify, INQUIRY.
    Identify,
    /// Asks how it is: Get Log Page, REPORT LUNS.
    Report,
    /// Wants commands ended: Abort, task management.
    Abort,
    /// Makes or changes an association: fabrics commands, logout.
    Session,
    Other,
}

/// Names of operations that rules are made for; several may mean the same.
const NAMES: [(&str, Operation); 16] = [
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("flush", Operation::Flush),
    ("compare", Operation::Compare),
    ("write_zeroes", Operation::Zero),
    ("zero", Operation::Zero),
    ("dsm", Operation::Trim),
    ("trim", Operation::Trim),
    ("keep_alive", Operation::Alive),
    ("identify", Operation::Identify),
    ("get_log_page", Operation::Report),
    ("report", Operation::Report),
    ("abort", Operation::Abort),
    ("fabrics", Operation::Session),
    ("session", Operation::Session),
    ("other", Operation::Other),
];

/// Which commands a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ops {
    All,
    Of(Operation),
}

impl Ops {
    pub(crate) fn parse(text: Option<&str>) -> Result<Ops, String> {
        let Some(text) = text.filter(|text| *text != "all") else { return Ok(Ops::All) };
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, operation)| Ops::Of(*operation)).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("op \"{text}\" is not known; expected all, {}", names.join(", "))
        })
    }

    fn matches(self, operation: Operation) -> bool {
        match self {
            Ops::All => true,
            Ops::Of(of) => of == operation,
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
            "listener": self.scope.listener, "cntlid": self.scope.session, "qid": self.scope.queue, "conn": self.scope.conn,
            "left": self.left.load(Ordering::Relaxed), "hits": self.hits.load(Ordering::Relaxed), "live": self.live(now_us),
        })
    }
}

/// Rules as one thread sees them.
pub(crate) type Rules = Arc<Vec<Arc<Rule>>>;

/// What `rules` want done with a command; the first that matches and has an application left wins.
pub(crate) fn on_command(rules: &[Arc<Rule>], who: &Who, operation: Operation, now_us: u64) -> Option<Kind> {
    rules
        .iter()
        .find(|r| {
            let fits = match r.kind {
                Kind::Delay { .. } | Kind::Lose { .. } | Kind::Refuse => r.ops.matches(operation),
                Kind::Hold { .. } => {
                    matches!(operation, Operation::Write | Operation::Zero) && r.ops.matches(operation)
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn who(listener: usize, qid: u16) -> Who {
        Who { listener, session: Some(1), queue: Some(qid), conn: 7 }
    }

    #[test]
    fn rules_apply_to_whom_they_name_and_as_often() {
        let table = FaultTable::default();
        let scope = Scope { listener: Some(1), queue: Some(2), ..Scope::default() };
        let rule =
            Rule::new(table.next_id(), Kind::Delay { us: 5 }, scope, Ops::Of(Operation::Read), Some(2), u64::MAX);
        table.add(rule, 0);
        let rules = table.rules();
        let hit = |w: &Who, op| on_command(&rules, w, op, 10);
        assert_eq!(hit(&who(0, 2), Operation::Read), None, "other listener");
        assert_eq!(hit(&who(1, 1), Operation::Read), None, "other queue");
        assert_eq!(hit(&who(1, 2), Operation::Write), None, "other operation");
        assert_eq!(hit(&who(1, 2), Operation::Identify), None, "another one");
        assert_eq!(hit(&who(1, 2), Operation::Read), Some(Kind::Delay { us: 5 }));
        assert_eq!(hit(&who(1, 2), Operation::Read), Some(Kind::Delay { us: 5 }));
        assert_eq!(hit(&who(1, 2), Operation::Read), None, "used up");
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
