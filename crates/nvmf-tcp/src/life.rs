//! A controller's life as one future: dial, bring up, get to know, live, lose, and again.

use crate::admin::{Data, Fault, Handle, command, sleep, sleep_until};
use crate::association::{Association, Shape};
use crate::attach;
use crate::fence::AssociationFence;
use crate::live::{Living, News, live};
use crate::namespace::ControllerView;
use crate::passthrough;
use crate::proto::MAX_DEPTH;
use crate::shared::{Shared, Stage};
use polypath_block::{Code, Time};
use polypath_net::Resolver;
use polypath_nvme::Sqe;
use polypath_nvme::bringup::Ready;
use polypath_nvme::keepalive::{Assumed, send_interval_ms};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

/// Longest back-off, as a multiple of the reconnect delay.
const BACK_OFF: u32 = 10;

/// Everything from the first dial to the end; returns why it ended. What was passed through, and lost, has its answer by then.
pub(crate) async fn life(admin: Handle, shared: Arc<Shared>) -> String {
    let whole = async {
        let reason = associations(admin.clone(), shared.clone()).await;
        passthrough::settled(&shared).await;
        reason
    };
    select(whole, passthrough::keep(&admin, &shared)).await.unwrap_or_default()
}

/// One association after the other; returns why there is no further one.
async fn associations(admin: Handle, shared: Arc<Shared>) -> String {
    let config = &shared.config;
    let (mut delay, mut generation) = (config.reconnect_delay, 0);
    let mut down_since = admin.borrow().now;
    loop {
        let fault = attempt(&admin, &shared, &mut generation, &mut delay, &mut down_since).await;
        if fault.code == Code::Gone || shared.is_closing() {
            wait_for_queues(&shared).await;
            return fault.reason;
        }
        let now = admin.borrow().now;
        if config.ctrl_loss_timeout.is_some_and(|limit| now.since(down_since) >= limit) {
            let ms = now.since(down_since).as_millis();
            let reason =
                format!("given up after {ms} ms without a connection (ctrl_loss_timeout_ms): {}", fault.reason);
            tracing::error!(path = %config.name, %reason, "path given up");
            return reason;
        }
        let failing = config.fast_io_fail_timeout.is_some_and(|limit| now.since(down_since) >= limit);
        let also = if failing { "; fast_io_fail_timeout has passed" } else { "" };
        let reason = format!("{}; next attempt in {} ms{also}", fault.reason, delay.as_millis());
        tracing::warn!(path = %config.name, cause = ?fault.code, %reason, "path is down");
        shared.set_stage(Stage::Down { cause: fault.code, reason });
        let until = admin.borrow().now.after(delay);
        let wait = sleep_until(&admin, until);
        first(wait, poll_fn(|_| if shared.is_closing() { Poll::Ready(()) } else { Poll::Pending })).await;
        delay = (delay * 2).min(config.reconnect_delay * BACK_OFF);
    }
}

/// One attempt over all addresses of the host, and the association that comes of it; returns how it ended.
async fn attempt(
    admin: &Handle,
    shared: &Arc<Shared>,
    generation: &mut u64,
    delay: &mut Duration,
    down_since: &mut Time,
) -> Fault {
    let config = &shared.config;
    let addresses = match resolve(admin, shared).await {
        Ok(addresses) => addresses,
        Err(error) => {
            return Fault::new(Code::PathLost, format!("the name {} cannot be resolved: {error}", config.host));
        }
    };
    let mut fault = Fault::new(Code::PathLost, "no address");
    for address in addresses {
        let closing = poll_fn(|_| if shared.is_closing() { Poll::Ready(()) } else { Poll::Pending });
        let came_up = select(attach_to(admin, shared, address, *generation + 1), closing).await;
        let living = match came_up {
            Some(Ok(living)) => living,
            Some(Err(f)) => {
                admin.borrow_mut().close();
                fault = Fault { code: f.code, reason: format!("{address}: {}", f.reason) };
                continue;
            }
            None => {
                admin.borrow_mut().close();
                return Fault::new(Code::Gone, "closed");
            }
        };
        *generation += 1;
        *delay = config.reconnect_delay;
        let association = living.association.clone();
        shared.counts.connects.fetch_add(1, Ordering::Relaxed);
        let down = admin.borrow().now.since(*down_since).as_millis();
        tracing::info!(
            path = %config.name, %address, cntlid = association.cntlid, queues = association.queues, down_ms = down as u64,
            "path is up"
        );
        shared.set_stage(Stage::Live(association.clone()));
        fault = live(living).await;
        shared.counts.losses.fetch_add(1, Ordering::Relaxed);
        shared.lose(&association, fault.code, format!("{address}: {}", fault.reason));
        shared.refuse_reservations(&fault);
        shared.refuse_relays(&fault);
        admin.borrow_mut().close();
        *down_since = admin.borrow().now;
        if fault.code != Code::Gone {
            fault.reason = format!("{address}: {}", fault.reason);
        }
        return fault;
    }
    fault
}

/// Connects, brings up, identifies.
async fn attach_to(
    admin: &Handle,
    shared: &Arc<Shared>,
    address: SocketAddr,
    generation: u64,
) -> Result<Living, Fault> {
    let config = &shared.config;
    let kato_ms = config.kato_ms();
    let cntlid = attach::connect(admin, config, address, kato_ms).await?;
    let ready = attach::bring_up(admin, config).await?;
    // On a slow way the rest may take longer than the keep-alive timeout, which has been running since Connect.
    let rest = get_to_know(admin, shared, address, generation, cntlid, ready);
    match select(rest, keep_alive_meanwhile(admin, kato_ms)).await {
        Some(result) => result,
        None => Err(Fault::new(Code::PathTimeout, "keep alive ended")),
    }
}

/// A Keep Alive every half timeout, whatever becomes of it: what is wrong with the way shows in the command that is waited for.
/// Never ends.
async fn keep_alive_meanwhile(admin: &Handle, kato_ms: u32) {
    if kato_ms == 0 {
        return std::future::pending().await;
    }
    loop {
        sleep(admin, Duration::from_millis(send_interval_ms(kato_ms))).await;
        if let Err(fault) = command(admin, Sqe::keep_alive(0), Data::None, None).await {
            tracing::debug!(reason = %fault.reason, "a Keep Alive during bring-up was not answered");
        }
    }
}

/// Identifies the controller and its namespaces, asks for queues and events.
async fn get_to_know(
    admin: &Handle,
    shared: &Arc<Shared>,
    address: SocketAddr,
    generation: u64,
    cntlid: u16,
    ready: Ready,
) -> Result<Living, Fault> {
    let config = &shared.config;
    let kato_ms = config.kato_ms();
    let identify = attach::identify_controller(admin, config, cntlid).await?;
    attach::configure_events(admin, config, &identify).await?;
    let discovery = config.is_discovery();
    let (granted, in_capsule) = if discovery {
        (0, 0)
    } else {
        (attach::request_queues(admin, config).await?, attach::in_capsule(config, &identify)?)
    };
    let queues = granted.min(config.queues);
    let control_qid = (granted > queues).then_some(queues + 1);
    let depth = queue_depth(config.queue_depth, identify.maxcmd, ready.cap.mqes_z());
    let assumed = Assumed {
        without_keep_alive_ms: config.fence.as_millis() as u64,
        quiesce_ms: config.quiesce.as_millis() as u64,
    };
    let fence = AssociationFence::new(identify.keep_alive(kato_ms), assumed);
    // Before anything can be sent.
    shared.raise_landing_bound(fence.terms().within);
    let association = Arc::new(Association::new(Shape {
        generation,
        address,
        cntlid,
        queues,
        control_qid,
        depth,
        in_capsule,
        fence,
    }));
    // The admin socket, open since Connect.
    admin.borrow_mut().set_socket(association.open_socket(&shared.host));
    let power = if discovery { None } else { attach::power_history(admin, shared, &identify, generation).await? };
    let view = Arc::new(ControllerView {
        page_shift_min: ready.cap.page_shift_min(),
        subnqn: identify.subsystem_nqn().map_or_else(|_| config.subnqn.to_string(), |nqn| nqn.to_string()),
        identify,
        queues,
        depth,
        power,
    });
    let news = Rc::new(Cell::new(News::empty()));
    if discovery {
        crate::discovery::refresh(admin, shared).await?;
    } else {
        let ana = attach::ana_log(admin, config, &view).await?;
        let found = attach::namespaces(admin, shared, &view, ana.as_ref(), None).await?;
        if !found.whole {
            news.set(News::NAMESPACES);
        }
        association.set_listed(found.listed);
        shared.set_namespaces(&association, found.namespaces);
    }
    Ok(Living { admin: admin.clone(), shared: shared.clone(), association, view, news })
}

/// Commands of an I/O queue: what is wanted, as far as the controller (MAXCMD, 0 for any; MQES) and a connection of ours go.
fn queue_depth(wanted: u16, maxcmd: u16, mqes_z: u16) -> u16 {
    let most = if maxcmd == 0 { mqes_z } else { maxcmd.min(mqes_z) };
    wanted.min(most).clamp(1, MAX_DEPTH)
}

/// Has the system's resolver asked, for as long as the steps of an association may take together; an address needs none.
async fn resolve(admin: &Handle, shared: &Arc<Shared>) -> io::Result<Vec<SocketAddr>> {
    let config = &shared.config;
    if let Ok(address) = config.host.parse() {
        return Ok(vec![SocketAddr::new(address, config.port)]);
    }
    let caller = shared.clone();
    let mut question = Resolver::system().ask(&config.host, config.port, move || caller.call_and_wake())?;
    let answer = poll_fn(|_| match question.answer() {
        Some(addresses) => Poll::Ready(addresses),
        None if shared.is_closing() => Poll::Ready(Err(io::Error::other("closed"))),
        None => Poll::Pending,
    });
    let limit = config.connect_timeout * 4;
    let until = admin.borrow().now.after(limit);
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()));
    select(answer, sleep_until(admin, until)).await.unwrap_or_else(|| Err(late()))
}

async fn wait_for_queues(shared: &Shared) {
    poll_fn(|_| if shared.queues_open() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// The result of `work`, or `None` when `stop` comes first.
async fn select<T>(work: impl Future<Output = T>, stop: impl Future<Output = ()>) -> Option<T> {
    let (mut work, mut stop) = (std::pin::pin!(work), std::pin::pin!(stop));
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        stop.as_mut().poll(context).map(|()| None)
    })
    .await
}

async fn first(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    select(a, b).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{HostConfig, HostConnection};

    #[test]
    fn every_depth_that_may_be_configured_gives_a_connection() {
        for (wanted, maxcmd, mqes_z, depth) in [
            (128, 0, 127, 127),
            (128, 64, 1023, 64),
            (2, 0, 0, 1),
            (1024, 0, u16::MAX, 1024),
            (4096, 0, u16::MAX, 1024),
            (4096, u16::MAX, u16::MAX, 1024),
        ] {
            assert_eq!(queue_depth(wanted, maxcmd, mqes_z), depth, "{wanted} {maxcmd} {mqes_z}");
            HostConnection::new(HostConfig::new(depth)).unwrap();
        }
    }
}
