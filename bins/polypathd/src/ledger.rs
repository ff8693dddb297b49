//! Has written down what paths show before they carry anything, so that it is known to the next daemon whenever this one ends.
//!
//! A disk asks under its lock, and gets an answer at once; files are written by a thread of their own. Only disks that are served have
//! something to write down, and no two of them may prove to be one, whenever they do.

use crate::resources::lock;
use crate::state::{DiskWord, Mark, Shown, StateDir};
use polypath::block::{Device, DeviceInfo, Identity, Verdict};
use polypath::multipath::{Entry, Group, Ledger, MatchPolicy};
use polypath::vhost_user_blk::Owed;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

/// Most that waits to be written down of one disk: what more paths show is asked for again.
const PENDING_MOST: usize = 128;

/// The thread that writes.
#[derive(Clone, Debug)]
pub(crate) struct Writer(Sender<Weak<DiskLedger>>);

impl Writer {
    /// Starts it. It ends with the last disk.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(crate) fn start() -> std::io::Result<Writer> {
        let (sender, ledgers) = channel();
        thread::Builder::new().name("marks".into()).spawn(move || write_all(&ledgers))?;
        Ok(Writer(sender))
    }
}

fn write_all(ledgers: &Receiver<Weak<DiskLedger>>) {
    for ledger in ledgers {
        if let Some(ledger) = ledger.upgrade() {
            ledger.write();
        }
    }
}

/// Which disks the daemon serves, by what they have shown: no two of them are one.
#[derive(Debug, Default)]
pub(crate) struct Served(Mutex<Claims>);

#[derive(Debug, Default)]
struct Claims {
    all: Vec<(String, Identity)>,
    /// Disks that were told that they are another one.
    refused: Vec<Weak<DiskLedger>>,
}

impl Served {
    /// `disk` is served, and shows `identity`: from now on no other one that is the same is.
    ///
    /// # Errors
    /// Another one is, with its name; `ledger` is told when that may be over.
    fn claim(&self, disk: &str, identity: &Identity, ledger: &Weak<DiskLedger>) -> Result<(), String> {
        let mut claims = lock(&self.0);
        let twin = claims.all.iter().find(|(other, shown)| other != disk && shown.compare(identity) == Verdict::Same);
        if let Some(twin) = twin.map(|(twin, _)| twin.clone()) {
            if !claims.refused.iter().any(|refused| refused.ptr_eq(ledger)) {
                claims.refused.push(ledger.clone());
            }
            return Err(twin);
        }
        if !claims.all.iter().any(|(own, shown)| own == disk && shown == identity) {
            claims.all.push((disk.to_owned(), identity.clone()));
        }
        Ok(())
    }

    /// `disk` is not served any more. Answers with those that were refused: for them it may be over.
    fn release(&self, disk: &str) -> Vec<Weak<DiskLedger>> {
        let mut claims = lock(&self.0);
        claims.all.retain(|(other, _)| other != disk);
        std::mem::take(&mut claims.refused)
    }
}

/// What is to be written down of one disk.
pub(crate) struct DiskLedger {
    disk: String,
    matching: MatchPolicy,
    writer: Writer,
    served: Arc<Served>,
    me: Weak<DiskLedger>,
    /// Held for moments.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    group: Weak<Group>,
    /// While the disk is served.
    mark: Option<Arc<Mark>>,
    /// Which disk it was the last time; while it is served, the mark knows.
    known: Option<DiskWord>,
    /// What guests of sockets are owed, while nobody serves the disk.
    live: BTreeMap<String, Owed>,
    /// Commands that may change the disk and are being passed through.
    passing: usize,
    /// How many losses the disk had that are written down.
    losses: u64,
    /// That guests are owed something could not be written down.
    unwritten: bool,
    pending: Vec<Shown>,
    /// The writer was told of these.
    queued: bool,
    /// Why they could not be written down.
    problem: Option<String>,
}

impl DiskLedger {
    /// Of `disk`, which was `known` when it was served the last time.
    pub(crate) fn new(
        disk: &str,
        matching: &MatchPolicy,
        known: Option<DiskWord>,
        writer: Writer,
        served: Arc<Served>,
    ) -> Arc<DiskLedger> {
        Arc::new_cyclic(|me| DiskLedger {
            disk: disk.to_owned(),
            matching: matching.clone(),
            writer,
            served,
            me: me.clone(),
            state: Mutex::new(State { known, ..State::default() }),
        })
    }

    /// The disk is `group`.
    pub(crate) fn set_group(&self, group: &Arc<Group>) {
        lock(&self.state).group = Arc::downgrade(group);
    }

    /// The mark of the disk, which is to be served; and what its paths show that carry I/O already.
    ///
    /// # Errors
    /// It cannot be had, or the disk is another one than was served under this name, or one that is served already.
    pub(crate) fn serve(&self, state_dir: &StateDir, group: &Group) -> Result<(Arc<Mark>, Vec<Shown>), String> {
        let there = lock(&self.state).mark.clone();
        let mark = match there {
            Some(mark) => mark,
            None => {
                let mark = Arc::new(state_dir.claim(&self.disk, group.landing_bound())?);
                let mut state = lock(&self.state);
                mark.set_live(std::mem::take(&mut state.live));
                state.mark = Some(mark.clone());
                mark
            }
        };
        // Afterwards: what joins from here on is written down before it carries anything.
        let admitted = group.admitted();
        let known = mark.disk();
        let against =
            |(info, _): &(Arc<DeviceInfo>, Duration)| known.as_ref().and_then(|known| self.speaks_against(known, info));
        if let Some(why) = admitted.iter().find_map(against) {
            return Err(format!("disk \"{}\": {why}", self.disk));
        }
        if let Some(why) = admitted.iter().find_map(|(info, _)| self.is_served_elsewhere(info)) {
            return Err(format!("disk \"{}\": {why}", self.disk));
        }
        Ok((mark, admitted.iter().map(|(info, bound)| self.shown(info, *bound)).collect()))
    }

    /// A command that may change the disk is about to be passed through to `group`, whether it is served or not: that is written down as it is
    /// of a disk that is served. Answers with how long changes wait. [`DiskLedger::end_passing`] follows, whatever this says.
    ///
    /// # Errors
    /// As [`DiskLedger::serve`], or it cannot be written down: nothing may be sent.
    pub(crate) fn begin_passing(&self, state_dir: &StateDir, group: &Group) -> Result<Duration, String> {
        lock(&self.state).passing += 1;
        let (mark, shown) = self.serve(state_dir, group)?;
        let begun = mark.begin_passing(&shown);
        begun.map_err(|e| format!("disk \"{}\": that a command is sent cannot be written down: {e}", self.disk))
    }

    /// It has ended and is quiet, or was not sent.
    pub(crate) fn end_passing(&self) {
        let (last, mark) = {
            let mut state = lock(&self.state);
            state.passing = state.passing.saturating_sub(1);
            (state.passing == 0, state.mark.clone())
        };
        if let Some(Err(error)) = mark.filter(|_| last).map(|mark| mark.end_passing()) {
            tracing::error!(disk = %self.disk, %error, "that a command has ended cannot be written down: the next daemon waits");
        }
    }

    /// Is such a command under way?
    pub(crate) fn is_passing(&self) -> bool {
        lock(&self.state).passing > 0
    }

    /// Nobody serves the disk any more, and nothing of it is in flight but what is passed through: whoever does that lets go of it.
    pub(crate) fn let_go(&self) {
        let group = {
            let mut state = lock(&self.state);
            if state.passing > 0 {
                return;
            }
            let Some(mark) = state.mark.take() else { return };
            state.known = mark.disk().or(state.known.take());
            state.live = mark.live();
            state.pending.clear();
            mark.let_go();
            state.group.upgrade()
        };
        // What has waited to be written down need not be any more.
        let refused = self.served.release(&self.disk);
        let refused = refused.iter().filter_map(|other| lock(&other.upgrade()?.state).group.upgrade());
        group.into_iter().chain(refused.collect::<Vec<_>>()).for_each(|group| group.look_again());
    }

    /// The mark of a disk that is served.
    pub(crate) fn mark(&self) -> Option<Arc<Mark>> {
        lock(&self.state).mark.clone()
    }

    /// Tries again what could not be written down, and writes down what guests are owed.
    pub(crate) fn look_after(&self, group: &Group) {
        let (mark, losses) = {
            let mut state = lock(&self.state);
            self.queue(&mut state);
            (state.mark.clone(), state.losses)
        };
        let Some(mark) = mark else { return };
        let now = group.losses();
        let written = if now > losses { mark.lost() } else { Ok(()) }.and_then(|()| mark.write_owed());
        let mut state = lock(&self.state);
        if let Err(error) = &written
            && !state.unwritten
        {
            tracing::error!(disk = %self.disk, %error, "that something is lost, of which guests have not heard, cannot be written down");
        }
        state.unwritten = written.is_err();
        if written.is_ok() {
            state.losses = now;
        }
    }

    fn queue(&self, state: &mut State) {
        if !state.pending.is_empty() && !state.queued {
            // The writer lives as long as we do.
            state.queued = self.writer.0.send(self.me.clone()).is_ok();
        }
    }

    /// Writes down what waits for it, on the writer's thread.
    fn write(&self) {
        let (mark, pending, group) = {
            let mut state = lock(&self.state);
            state.queued = false;
            (state.mark.clone(), state.pending.clone(), state.group.clone())
        };
        let problem = mark.and_then(|mark| mark.record(&pending).err()).map(|error| error.to_string());
        let news = {
            let mut state = lock(&self.state);
            if problem.is_none() {
                state.pending.retain(|shown| !pending.contains(shown));
            }
            let news = problem.is_none() || state.problem != problem;
            state.problem.clone_from(&problem);
            news
        };
        if let Some(problem) = problem.filter(|_| news) {
            tracing::error!(disk = %self.disk, problem, "what its paths show cannot be written down: they carry nothing until it can");
        }
        if news && let Some(group) = group.upgrade() {
            group.look_again();
        }
    }

    fn shown(&self, info: &DeviceInfo, bound: Duration) -> Shown {
        Shown::new(info, bound, self.is_stated(info))
    }

    /// Has the operator named this very disk?
    fn is_stated(&self, info: &DeviceInfo) -> bool {
        match &self.matching {
            MatchPolicy::Pinned(list) => info.identity.identifiers.iter().any(|i| list.contains(i)),
            MatchPolicy::Worldwide | MatchPolicy::Stated => false,
        }
    }

    /// Why a path that shows `info` cannot be one of this disk, which is served: another one is served that is the same.
    fn is_served_elsewhere(&self, info: &DeviceInfo) -> Option<String> {
        let twin = self.served.claim(&self.disk, &info.identity, &self.me).err()?;
        Some(format!(
            "it is the disk \"{twin}\", which is served already: two groups cannot fence each other's writes; add the path to \"{twin}\" \
             instead, or delete the sockets of one of the two"
        ))
    }

    fn speaks_against(&self, known: &DiskWord, info: &DeviceInfo) -> Option<String> {
        let why = known.speaks_against(info).filter(|_| !self.is_stated(info))?;
        Some(format!(
            "{why}; if its guests are to have this one, list its identifiers under match, or delete the disk by RPC first"
        ))
    }
}

impl Ledger for DiskLedger {
    fn admit(&self, info: &DeviceInfo, bound: Duration) -> Entry {
        let mut state = lock(&self.state);
        let known = state.mark.as_ref().map_or_else(|| state.known.clone(), |mark| mark.disk());
        if let Some(why) = known.and_then(|known| self.speaks_against(&known, info)) {
            return Entry::Refused(why);
        }
        // One that is not served is refused when it is to be.
        if state.mark.is_some()
            && let Some(why) = self.is_served_elsewhere(info)
        {
            return Entry::Refused(why);
        }
        let shown = self.shown(info, bound);
        if state.mark.as_ref().is_none_or(|mark| mark.covers(&shown)) {
            return Entry::Written;
        }
        if !state.pending.contains(&shown) && state.pending.len() < PENDING_MOST {
            state.pending.push(shown);
            self.queue(&mut state);
        }
        Entry::NotYet(match &state.problem {
            None => "it answers; what it shows is being written down in the state folder first".into(),
            Some(problem) => {
                format!("it answers, but what it shows cannot be written down in the state folder: {problem}")
            }
        })
    }
}

impl fmt::Debug for DiskLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLedger").field("disk", &self.disk).finish_non_exhaustive()
    }
}
