//! What the admin poller does while an association is up: keep alive, events, orders of the queues.

use crate::admin::{Data, Fault, Handle, Task, command, poll_once, race, sleep_until};
use crate::association::Association;
use crate::attach;
use crate::namespace::{ControllerView, with_access};
use crate::shared::{AbortAnswer, AbortOrder, Shared};
use polypath_block::{Access, Code, Time};
use polypath_nvme::Sqe;
use polypath_nvme::features::AsyncEventConfig;
use polypath_nvme::keepalive::send_interval_ms;
use polypath_nvme::log::{AsyncEvent, EventKind, lid};
use polypath_nvme::sqe::NSID_ALL;
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

/// How often the ANA log is read again while some namespace is changing its state, and the first pause after news were refused.
const TRANSITION: Duration = Duration::from_secs(1);
/// Longest pause after news were refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shortest time between two events, and between two looks at the ANA log that queues ask for.
const BREATH: Duration = Duration::from_millis(20);

/// What the tasks of one association share.
#[derive(Clone)]
pub(crate) struct Living {
    pub(crate) admin: Handle,
    pub(crate) shared: Arc<Shared>,
    pub(crate) association: Arc<Association>,
    pub(crate) view: Arc<ControllerView>,
    pub(crate) news: Rc<Cell<News>>,
}

bitflags::bitflags! {
    /// What is to be read from the controller anew. One task reads, one thing after the other, so that an older answer never
    /// replaces a newer one.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub(crate) struct News: u8 {
        const NAMESPACES = 1;
        const ANA = 2;
        const DISCOVERY = 4;
    }
}

impl Living {
    fn want(&self, news: News) {
        self.news.set(self.news.get() | news);
    }
}

/// Runs until the association ends; says why.
pub(crate) async fn live(living: Living) -> Fault {
    let admin = living.admin.clone();
    admin.borrow_mut().settled = true;
    let tasks: Vec<Task<Fault>> = vec![
        Box::pin(watch(living.clone())),
        Box::pin(keep_alive(living.clone())),
        Box::pin(ended(events(living.clone()))),
        Box::pin(ended(read_news(living.clone()))),
        Box::pin(ended(aborts(living.clone()))),
        Box::pin(crate::passthrough::serve(living.clone())),
        Box::pin(crate::reserve::serve(living)),
    ];
    let fault = race(tasks).await;
    admin.borrow_mut().settled = false;
    fault
}

async fn ended(task: impl Future<Output = Result<(), Fault>>) -> Fault {
    match task.await {
        Err(fault) => fault,
        // Nothing more to do there; the others go on.
        Ok(()) => std::future::pending().await,
    }
}

/// Ends with the link, or when a queue has found the association lost, or on close.
async fn watch(l: Living) -> Fault {
    poll_fn(|_| {
        if let Some(fault) = l.admin.borrow().fault() {
            return Poll::Ready(fault);
        }
        if l.association.is_lost() {
            let (code, reason) = l.association.loss();
            return Poll::Ready(Fault { code, reason });
        }
        if l.shared.is_closing() && l.shared.queues_open() == 0 {
            return Poll::Ready(Fault::new(Code::Gone, "closed"));
        }
        Poll::Pending
    })
    .await
}

/// A Keep Alive every half timeout, and one at once when a queue has heard nothing for a while.
async fn keep_alive(l: Living) -> Fault {
    let config = &l.shared.config;
    let interval = match config.kato_ms() {
        0 => None,
        kato_ms => Some(Duration::from_millis(send_interval_ms(kato_ms))),
    };
    // An idle way may take its time; a queue that waits has waited half the silence already.
    let (patient, hasty) = (interval.unwrap_or_default().max(config.silence_timeout), config.silence_timeout / 2);
    let mut last = l.admin.borrow().now;
    loop {
        let due = interval.map_or(Time::NEVER, |i| last.after(i));
        let probe = poll_fn(|_| {
            if l.shared.take_probe() {
                return Poll::Ready(true);
            }
            if l.admin.borrow_mut().reached(due) { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        let sent = l.admin.borrow().now;
        last = sent;
        let mut deadline = sent.after(if probe { hasty } else { patient });
        l.shared.counts.keep_alives.fetch_add(1, Ordering::Relaxed);
        let admin = l.admin.clone();
        let mut answer: Task<_> = Box::pin(async move { command(&admin, Sqe::keep_alive(0), Data::None, None).await });
        let end = poll_fn(|_| {
            if let Poll::Ready(answer) = poll_once(&mut answer) {
                return Poll::Ready(answer.err());
            }
            let mut admin = l.admin.borrow_mut();
            if l.shared.take_probe() {
                deadline = deadline.min(admin.now.after(hasty));
            }
            if admin.is_late(deadline) {
                let ms = admin.now.since(sent).as_millis();
                let reason = format!("the controller does not answer: no word for {ms} ms after a Keep Alive");
                return Poll::Ready(Some(Fault::new(Code::PathTimeout, reason)));
            }
            Poll::Pending
        })
        .await;
        if let Some(fault) = end {
            return fault;
        }
    }
}

/// Asynchronous events, one request outstanding: the controller keeps those that come meanwhile.
async fn events(l: Living) -> Result<(), Fault> {
    let config = &l.shared.config;
    loop {
        let answer = command(&l.admin, Sqe::async_event_request(0), Data::None, None).await?;
        if !answer.cqe.status.is_success() {
            tracing::warn!(path = %config.name, status = %answer.cqe.status, "no asynchronous events from this controller");
            return Ok(());
        }
        let event = AsyncEvent::from_dw0(answer.cqe.dw0());
        tracing::info!(path = %config.name, event = ?event.kind, "event");
        let taken = l.admin.borrow().now;
        match event.kind {
            EventKind::NamespacesChanged => l.want(News::NAMESPACES),
            EventKind::AnaChanged => l.want(News::ANA),
            EventKind::DiscoveryChanged => l.want(News::DISCOVERY),
            EventKind::ReservationLog => crate::reserve::read_notifications(&l).await?,
            _ => drop(clear_event(&l, event.log_page, 512).await?),
        }
        // A storm of events must not keep us, nor every queue that is told of each, from everything else.
        sleep_until(&l.admin, taken.after(BREATH)).await;
    }
}

/// Reads `len` bytes of a log page so that its event is cleared, and told again when it happens again. Was it given?
async fn clear_event(l: &Living, page: u8, len: u32) -> Result<bool, Fault> {
    let log = Sqe::get_log_page(0, NSID_ALL, page, 0, false, 0, len);
    let answer = command(&l.admin, log, Data::In(len), Some(l.shared.config.connect_timeout)).await?;
    Ok(answer.cqe.status.is_success())
}

/// Reads what events, queues and earlier refusals ask for. A refusal, or an answer that makes no sense, is no reason to leave a way
/// over which I/O runs well: what was known stays known, and it is asked again, less and less often.
async fn read_news(l: Living) -> Result<(), Fault> {
    let (mut read, mut pause) = (Time::ZERO, TRANSITION);
    let (mut refused, mut again) = (News::empty(), Time::NEVER);
    if !l.shared.shows_all(&l.association) {
        (refused, again) = (News::NAMESPACES, l.admin.borrow().now.after(pause));
    }
    loop {
        // A transition that ends without an event must not last for ever.
        let changing = l.association.namespaces().values().any(|n| n.info.access == Access::Change);
        let look = if changing { l.admin.borrow().now.after(TRANSITION) } else { Time::NEVER };
        poll_fn(|_| {
            if l.shared.take_ana() {
                l.want(News::ANA);
            }
            if l.shared.take_rescan() {
                l.want(News::NAMESPACES);
            }
            let mut admin = l.admin.borrow_mut();
            let due = admin.reached(again) | admin.reached(look);
            if due || !l.news.get().is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        // Commands that come back with an ANA status, one after the other, each ask for the log.
        sleep_until(&l.admin, read.after(BREATH)).await;
        read = l.admin.borrow().now;
        let mut wanted = l.news.take();
        wanted.set(News::ANA, wanted.contains(News::ANA) || read >= look);
        if read >= again {
            (wanted, again) = (wanted | refused, Time::NEVER);
        }
        let left = read_once(&l, wanted).await?;
        refused = (refused - wanted) | left;
        if refused.is_empty() {
            (pause, again) = (TRANSITION, Time::NEVER);
        } else if again == Time::NEVER {
            again = l.admin.borrow().now.after(pause);
            pause = (pause * 2).min(PATIENCE);
        }
    }
}

/// Reads what is wanted, once; returns what was refused.
async fn read_once(l: &Living, wanted: News) -> Result<News, Fault> {
    let mut refused = News::empty();
    if wanted.contains(News::DISCOVERY) {
        let read = crate::discovery::refresh(&l.admin, &l.shared).await.map(|()| true);
        refused.set(News::DISCOVERY, !is_whole(l, "discovery log", read)?);
    }
    if wanted.contains(News::NAMESPACES) {
        // With them comes the ANA log.
        refused.set(News::NAMESPACES, !is_whole(l, "list of namespaces", rescan(l).await)?);
    } else if wanted.contains(News::ANA) {
        refused.set(News::ANA, !is_whole(l, "ANA log", refresh_ana(l).await)?);
    }
    Ok(refused)
}

/// Was everything answered? What ends the association is an error.
fn is_whole(l: &Living, what: &str, read: Result<bool, Fault>) -> Result<bool, Fault> {
    match read {
        Err(fault) if fault.code == Code::PathProtocol && l.admin.borrow().fault().is_none() => {
            let (path, reason) = (&l.shared.config.name, &fault.reason);
            tracing::warn!(%path, %reason, "the {what} cannot be read now; what was known stays, asking again");
            Ok(false)
        }
        read => read,
    }
}

async fn rescan(l: &Living) -> Result<bool, Fault> {
    let config = &l.shared.config;
    // Before all else, so that whatever changes from now on is told. What the list says is found by looking at all; a controller that
    // has none refuses it and sends no such events.
    let tells =
        AsyncEventConfig::from_bits_truncate(l.view.identify.oaes).contains(AsyncEventConfig::NAMESPACE_ATTRIBUTES);
    let cleared = clear_event(l, lid::CHANGED_NAMESPACES, 4096).await? || !tells;
    let ana = attach::ana_log(&l.admin, config, &l.view).await?;
    let known = l.association.namespaces();
    let found = attach::namespaces(&l.admin, &l.shared, &l.view, ana.as_ref(), Some(&known)).await?;
    l.association.set_listed(found.listed);
    l.shared.set_namespaces(&l.association, found.namespaces);
    // A namespace that is missing, or another one, may come back, and the event that says so may be lost with the one before: it is looked
    // for, less and less often.
    Ok(found.whole && cleared && l.shared.shows_all(&l.association))
}

async fn refresh_ana(l: &Living) -> Result<bool, Fault> {
    let Some(log) = attach::ana_log(&l.admin, &l.shared.config, &l.view).await? else { return Ok(true) };
    let mut found = l.association.namespaces();
    for (nsid, namespace) in &mut found {
        let was = namespace.info.access;
        *namespace = with_access(namespace.clone(), Some(&log), *nsid);
        let (access, path) = (namespace.info.access, &l.shared.config.name);
        if access != was {
            tracing::info!(%path, nsid, ?was, ?access, "access over this path has changed");
        }
    }
    l.shared.set_namespaces(&l.association, found);
    Ok(true)
}

/// Aborts that queues ask for.
async fn aborts(l: Living) -> Result<(), Fault> {
    loop {
        poll_fn(|_| if l.shared.has_aborts() { Poll::Ready(()) } else { Poll::Pending }).await;
        for order in l.shared.take_aborts() {
            if order.generation != l.association.generation {
                // Its connection is gone, and whoever gave the order with it.
                continue;
            }
            l.shared.counts.aborts.fetch_add(1, Ordering::Relaxed);
            let sqe = Sqe::abort(0, order.qid, order.cid);
            let limit = l.shared.config.silence_timeout;
            let answer = command(&l.admin, sqe, Data::None, Some(limit)).await?;
            // Bit 0 clear: the command was aborted (IANP, Base 2.1 section 5.1.1).
            let aborted = answer.cqe.status.is_success() && answer.cqe.dw0() & 1 == 0;
            let (path, qid, cid) = (&l.shared.config.name, order.qid, order.cid);
            tracing::warn!(%path, qid, cid, aborted, "a command took too long and was to be aborted");
            let AbortOrder { connection, slot, queue, .. } = order;
            queue.answer(AbortAnswer { connection, slot, cid, aborted });
        }
    }
}
