//! The threads of the sources: one that gives the engine its turns, and one for each source that is to be asked.

use super::engine::Engine;
use super::keeper::{Keeper, OnStack};
use super::report::Report;
use super::uri::{ServiceUri, SourceKind, SourceUri};
use super::world::{Network, Watch, World};
use super::{MOST_SOURCES, SourceId, SourcesConfig};
use crate::error::Error;
use crate::stack::Stack;
use polypath_multipath::Group;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often paths are looked at while some are pending, and when all is quiet.
const TURN: Duration = Duration::from_millis(20);
const QUIET_TURN: Duration = Duration::from_millis(250);
/// How often somebody who watches a list is asked whether it has changed.
const WATCH: Duration = Duration::from_millis(200);
/// A source is not asked more often than this, whatever it says.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Sources and the devices that they lead to. Dropping it ends them, see [`Sources::close`].
pub struct Sources {
    shared: Arc<Shared>,
    engine: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    world: Arc<dyn World>,
    config: SourcesConfig,
    state: Mutex<State>,
    /// Something is to be done, or somebody is to end.
    news: Condvar,
    /// A new report.
    reported: Condvar,
}

#[derive(Default)]
struct State {
    answers: Vec<(SourceId, Result<Vec<ServiceUri>, String>)>,
    orders: Vec<Order>,
    /// Those that are asked: their threads end when they are not here.
    asked: Vec<SourceId>,
    /// Who is told when the list of a source changes. Here, so that they end when the source does, whoever is being asked.
    watches: BTreeMap<SourceId, Box<dyn Watch>>,
    report: Arc<Report>,
    ending: bool,
    ended: bool,
}

enum Order {
    Add(SourceUri, Answer<SourceId>),
    Remove(SourceId, bool, Answer<()>),
}

/// Where the engine puts the outcome of an order.
type Answer<T> = std::sync::mpsc::SyncSender<Result<T, String>>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    /// Starts to look after sources, of which there are none yet. Their paths are opened on `stack`.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(stack: &Stack, config: SourcesConfig) -> Result<Sources, Error> {
        Self::start_with(stack, config, Arc::new(OnStack { stack: stack.clone(), policy: config.policy }))
    }

    /// The same with devices that `keeper` makes.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start_with(stack: &Stack, config: SourcesConfig, keeper: Arc<dyn Keeper>) -> Result<Sources, Error> {
        Self::start_in(Arc::new(Network(stack.clone())), config, keeper)
    }

    pub(crate) fn start_in(
        world: Arc<dyn World>,
        config: SourcesConfig,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Sources, Error> {
        let config = SourcesConfig { refresh: config.refresh.max(LEAST_PAUSE), rounds: config.rounds.max(1), ..config };
        let shared = Arc::new(Shared {
            world: world.clone(),
            config,
            state: Mutex::default(),
            news: Condvar::new(),
            reported: Condvar::new(),
        });
        let engine = Engine::new(world, keeper, config, Instant::now());
        let for_engine = shared.clone();
        let spawned = thread::Builder::new().name("sources".into()).spawn(move || drive(engine, &for_engine));
        let handle = spawned.map_err(|source| Error::System { what: "starting a thread for sources", source })?;
        Ok(Sources { shared, engine: Mutex::new(Some(handle)) })
    }

    /// Adds a source. What it lists is looked at from now on; nobody waits for it here.
    ///
    /// # Errors
    /// It is there already, there are too many, or the sources have ended.
    pub fn add(&self, uri: SourceUri) -> Result<SourceId, Error> {
        let what = uri.to_string();
        self.order(&what, |answer| Order::Add(uri, answer))
    }

    /// Removes a source, and with it every path that no other one lists. Unless `force`, not while a device that is in use would be left
    /// without a path.
    ///
    /// # Errors
    /// There is no such source, or a device is in use.
    pub fn remove(&self, id: SourceId, force: bool) -> Result<(), Error> {
        self.order(&format!("source {id}"), |answer| Order::Remove(id, force, answer))
    }

    fn order<T>(&self, what: &str, order: impl FnOnce(Answer<T>) -> Order) -> Result<T, Error> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let refused = |problem: String| Error::Spec { what: what.to_owned(), problem };
        {
            let mut state = self.shared.lock();
            if state.ending {
                return Err(refused("the sources have ended".into()));
            }
            state.orders.push(order(tell));
        }
        self.shared.news.notify_all();
        told.recv().unwrap_or_else(|_| Err("the sources have ended".into())).map_err(refused)
    }

    /// What is known now.
    pub fn report(&self) -> Arc<Report> {
        self.shared.lock().report.clone()
    }

    /// The device that is called `name` or proves to be that, if it is there. It is in use for as long as the answer is held.
    pub fn device(&self, name: &str) -> Option<Arc<Group>> {
        self.report().device(name)?.group()
    }

    /// Waits until a report is as `wanted`, at most `limit`; the last report either way.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&Report) -> bool) -> Arc<Report> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended || wanted(&state.report) {
                return state.report.clone();
            }
            let waited = self.shared.reported.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it: nothing is asked, opened or made any more. What becomes of the devices their keeper says; unless told otherwise they are
    /// closed. Waits for a turn under way, not for a source that is being asked. Idempotent.
    pub fn close(&self) {
        self.shared.lock().ending = true;
        self.shared.news.notify_all();
        let handle = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("report", &self.report()).finish_non_exhaustive()
    }
}

/// The engine's thread.
fn drive(mut engine: Engine, shared: &Arc<Shared>) {
    loop {
        let (answers, orders) = {
            let mut state = shared.lock();
            let busy = state.report.loose.iter().any(|path| path.pending);
            if state.answers.is_empty() && state.orders.is_empty() && !state.ending {
                let pause = if busy { TURN } else { QUIET_TURN };
                state = shared.news.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.ending {
                state.asked.clear();
                state.watches.clear();
                break;
            }
            (std::mem::take(&mut state.answers), std::mem::take(&mut state.orders))
        };
        for order in orders {
            carry_out(order, &mut engine, shared);
        }
        let now = Instant::now();
        for (id, answer) in answers {
            engine.answer(id, answer, now);
        }
        engine.turn(now);
        publish(engine.report(), shared);
    }
    engine.end();
    let mut state = shared.lock();
    state.ended = true;
    state.orders.clear();
    drop(state);
    shared.news.notify_all();
    shared.reported.notify_all();
}

fn publish(mut report: Report, shared: &Shared) {
    let mut state = shared.lock();
    report.version = state.report.version + 1;
    state.report = Arc::new(report);
    drop(state);
    shared.reported.notify_all();
}

fn carry_out(order: Order, engine: &mut Engine, shared: &Arc<Shared>) {
    match order {
        Order::Add(uri, answer) => {
            let outcome = add(uri, engine, shared);
            // Who asked may have gone.
            let _ = answer.send(outcome);
        }
        Order::Remove(id, force, answer) => {
            let outcome = engine.remove(id, force);
            if outcome.is_ok() {
                let mut state = shared.lock();
                state.asked.retain(|asked| *asked != id);
                state.watches.remove(&id);
                drop(state);
                shared.news.notify_all();
            }
            publish(engine.report(), shared);
            let _ = answer.send(outcome);
        }
    }
}

fn add(uri: SourceUri, engine: &mut Engine, shared: &Arc<Shared>) -> Result<SourceId, String> {
    let report = engine.report();
    if let Some(same) = report.sources.iter().find(|source| source.uri == uri.to_string()) {
        return Err(format!("it is source {} already", same.id));
    }
    if report.sources.len() >= MOST_SOURCES {
        return Err(format!("there are {MOST_SOURCES} sources, the most there can be"));
    }
    let id = engine.add(uri.clone());
    if matches!(uri.kind(), SourceKind::NvmeDiscovery | SourceKind::IscsiPortal) {
        shared.lock().asked.push(id);
        let for_thread = shared.clone();
        let spawned = thread::Builder::new().name(format!("source-{id}")).spawn(move || ask(id, &uri, &for_thread));
        if let Err(error) = spawned {
            shared.lock().asked.retain(|asked| *asked != id);
            engine.remove(id, true)?;
            return Err(format!("no thread to ask it: {error}"));
        }
    } else {
        // It lists itself, once and for all.
        engine.answer(id, shared.world.ask(&uri), Instant::now());
    }
    publish(engine.report(), shared);
    Ok(id)
}

/// The thread of one source: asks it now and then, and when it says that something has changed.
fn ask(id: SourceId, uri: &SourceUri, shared: &Arc<Shared>) {
    let wanted = |state: &State| !state.ending && state.asked.contains(&id);
    let mut watched = false;
    loop {
        let answer = shared.world.ask(uri);
        let answered = answer.is_ok();
        {
            let mut state = shared.lock();
            if !wanted(&state) {
                return;
            }
            state.answers.push((id, answer));
        }
        shared.news.notify_all();
        let watch = if answered && !watched { shared.world.watch(uri) } else { None };
        let next = Instant::now() + shared.config.refresh;
        let soonest = Instant::now() + LEAST_PAUSE;
        let mut state = shared.lock();
        if let Some(watch) = watch.filter(|_| wanted(&state)) {
            state.watches.insert(id, watch);
            watched = true;
        }
        loop {
            if !wanted(&state) {
                return;
            }
            let now = Instant::now();
            let changed = now >= soonest && state.watches.get_mut(&id).is_some_and(|watch| watch.changed());
            if now >= next || changed {
                break;
            }
            let pause = if watched { WATCH } else { shared.config.refresh };
            let pause = pause.min(next.saturating_duration_since(now));
            state = shared.news.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
