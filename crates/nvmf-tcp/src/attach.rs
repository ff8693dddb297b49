//! From an address to a controller that is up and known: the admin commands of one association, in order.

use crate::admin::{ADMIN_DATA, ADMIN_DEPTH, Data, Fault, Handle, command, demand, sleep_until};
use crate::association::{MOST_NAMESPACES, Namespace};
use crate::config::ControllerConfig;
use crate::link::{Link, RX_ADMIN};
use crate::namespace::{ControllerView, PowerHistory, describe, with_access};
use crate::pdu::IcReq;
use crate::proto::HostConfig;
use crate::shared::Shared;
use polypath_block::{Code, Time};
use polypath_nvme::bringup::{self, Bringup, Ready, RegOp, Request};
use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, ConnectResponse, cattr};
use polypath_nvme::features::{AsyncEventConfig, NumberOfQueues, fid};
use polypath_nvme::identify::{self, IdentifyController, IdentifyNamespace, NamespaceIds, cns};
use polypath_nvme::log::{AnaLog, SmartLog, lid};
use polypath_nvme::sqe::NSID_ALL;
use polypath_nvme::{ParseError, Sqe, StatusField};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

/// Bytes of a log page that any controller gives in one command (MDTS is at least one page).
pub(crate) const PIECE: u32 = 4096;
/// Attempts to come up at which a SMART log that was given once may be refused.
const POWER_REFUSALS: u32 = 5;
/// Reads of an ANA log that comes in pieces.
const ANA_READS: u32 = 3;
/// Most bytes of a log page that are read.
const MOST_LOG: u64 = 1 << 20;

impl From<ParseError> for Fault {
    fn from(error: ParseError) -> Self {
        Fault::new(Code::PathProtocol, error.to_string())
    }
}

/// What a connection asks for in ICReq and of [`crate::proto`].
pub(crate) fn host_config(config: &ControllerConfig, depth: u16) -> HostConfig {
    HostConfig {
        request: IcReq { header_digest: config.header_digest, data_digest: config.data_digest, ..IcReq::default() },
        require_header_digest: config.header_digest,
        require_data_digest: config.data_digest,
        ..HostConfig::new(depth)
    }
}

/// What Connect carries for any queue.
pub(crate) fn connect_data(config: &ControllerConfig, cntlid: u16) -> [u8; ConnectData::LEN] {
    ConnectData {
        host_id: config.identity.id,
        cntlid,
        subnqn: config.subnqn.clone(),
        hostnqn: config.identity.nqn.clone(),
    }
    .to_bytes()
}

/// What the answer to Connect means, for people when it is a refusal.
pub(crate) fn connected(cqe: &polypath_nvme::Cqe) -> Result<u16, Fault> {
    let refused = |why: String| Err(Fault::new(Code::PathLost, format!("Connect was refused: {why}")));
    match ConnectResponse::from_cqe(cqe) {
        ConnectResponse::Connected { cntlid, authentication: 0 } => Ok(cntlid),
        ConnectResponse::Connected { .. } => {
            refused("the controller wants authentication (DH-HMAC-CHAP), which is not supported yet".into())
        }
        ConnectResponse::InvalidParameter(p) => refused(format!(
            "the controller does not accept {} (subsystem NQN wrong, or this host not allowed)",
            p.field()
        )),
        ConnectResponse::Refused(status) => refused(status.to_string()),
    }
}

/// Connects the admin queue; the link is in `admin` afterwards. Returns the controller's identifier.
pub(crate) async fn connect(
    admin: &Handle,
    config: &ControllerConfig,
    address: SocketAddr,
    kato_ms: u32,
) -> Result<u16, Fault> {
    let link = Link::dial(&*config.dialer, address, host_config(config, ADMIN_DEPTH), RX_ADMIN)?;
    admin.borrow_mut().set_link(link);
    link_up(admin, config).await?;
    let sqe = Sqe::connect(0, 0, ADMIN_DEPTH, cattr::DISABLE_SQ_FLOW_CONTROL, kato_ms);
    let data = connect_data(config, CNTLID_DYNAMIC);
    let answer = command(admin, sqe, Data::Out(&data), Some(config.connect_timeout)).await?;
    connected(&answer.cqe)
}

/// Waits until the link takes commands.
pub(crate) async fn link_up(admin: &Handle, config: &ControllerConfig) -> Result<(), Fault> {
    let deadline = admin.borrow().now.after(config.connect_timeout);
    poll_fn(|_| {
        let mut a = admin.borrow_mut();
        if let Some(fault) = a.fault() {
            return Poll::Ready(Err(fault));
        }
        if a.link().is_some_and(Link::is_ready) {
            return Poll::Ready(Ok(()));
        }
        if a.is_late(deadline) {
            let ms = config.connect_timeout.as_millis();
            return Poll::Ready(Err(Fault::new(Code::PathTimeout, format!("no connection within {ms} ms"))));
        }
        Poll::Pending
    })
    .await
}

/// Enables the controller.
pub(crate) async fn bring_up(admin: &Handle, config: &ControllerConfig) -> Result<Ready, Fault> {
    let mut machine = Bringup::new(bringup::Config { admin_only: config.is_discovery(), ..bringup::Config::fabrics() });
    let failed = |e: bringup::BringupError| Fault::new(Code::PathLost, e.to_string());
    let limit = Some(config.connect_timeout);
    loop {
        let now = admin.borrow().now.as_nanos();
        match machine.poll_request(now) {
            Request::Register(RegOp::Read(register)) => {
                let answer = command(admin, Sqe::property_get(0, register), Data::None, limit).await?;
                let now = admin.borrow().now.as_nanos();
                if answer.cqe.status.is_success() {
                    machine.handle_value(now, answer.cqe.result).map_err(failed)?;
                } else {
                    let refused = format!("Property Get of {register:?} was refused: {}", answer.cqe.status);
                    machine.handle_refused().map_err(|_| Fault::new(Code::PathProtocol, refused))?;
                }
            }
            Request::Register(RegOp::Write(register, value)) => {
                let what = format!("Property Set of {register:?}");
                let sqe = Sqe::property_set(0, register, value);
                demand(admin, &what, sqe, Data::None, config.connect_timeout).await?;
                let now = admin.borrow().now.as_nanos();
                machine.handle_written(now).map_err(failed)?;
            }
            Request::Wait(until) => sleep_until(admin, Time::from_nanos(until)).await,
            Request::Done(ready) => return Ok(ready),
            Request::Failed(error) => return Err(failed(error)),
        }
    }
}

/// Identify Controller, checked against what was asked for.
pub(crate) async fn identify_controller(
    admin: &Handle,
    config: &ControllerConfig,
    cntlid: u16,
) -> Result<IdentifyController, Fault> {
    let sqe = Sqe::identify(0, cns::CONTROLLER, 0, 0);
    let limit = config.connect_timeout;
    let answer = demand(admin, "Identify Controller", sqe, Data::In(identify::LEN as u32), limit).await?;
    let controller = IdentifyController::parse(&answer.data)?;
    if controller.cntlid != cntlid {
        let reason = format!("Identify says controller {}, Connect said {cntlid}", controller.cntlid);
        return Err(Fault::new(Code::PathProtocol, reason));
    }
    Ok(controller)
}

/// Data bytes an I/O capsule may carry.
pub(crate) fn in_capsule(config: &ControllerConfig, controller: &IdentifyController) -> Result<u32, Fault> {
    let bytes = controller.in_capsule_bytes()?;
    if controller.icdoff != 0 && bytes > 0 {
        // NVMe/TCP puts capsule data right behind the entry; a controller that says otherwise is asked for R2T instead.
        tracing::warn!(path = %config.name, icdoff = controller.icdoff, "ICDOFF is not 0; no data are sent in capsules");
        return Ok(0);
    }
    Ok(bytes)
}

/// How many I/O queues the controller grants. One more is asked for than is wanted for I/O: reservations take it.
pub(crate) async fn request_queues(admin: &Handle, config: &ControllerConfig) -> Result<u16, Fault> {
    let most = config.queues.saturating_add(1);
    let wanted = NumberOfQueues::pairs(most.into()).to_dword();
    let sqe = Sqe::set_features(0, 0, fid::NUMBER_OF_QUEUES, wanted);
    let answer = demand(admin, "Set Features Number of Queues", sqe, Data::None, config.connect_timeout).await?;
    let granted = NumberOfQueues::from_dword(answer.cqe.dw0()).usable_pairs();
    Ok(granted.min(most.into()) as u16)
}

/// Asks for the events we understand and the controller has.
pub(crate) async fn configure_events(
    admin: &Handle,
    config: &ControllerConfig,
    controller: &IdentifyController,
) -> Result<(), Fault> {
    let known =
        AsyncEventConfig::NAMESPACE_ATTRIBUTES | AsyncEventConfig::ANA_CHANGE | AsyncEventConfig::DISCOVERY_CHANGE;
    let value = known & AsyncEventConfig::from_bits_truncate(controller.oaes);
    if value.is_empty() {
        return Ok(());
    }
    let sqe = Sqe::set_features(0, 0, fid::ASYNC_EVENT_CONFIG, value.bits());
    let answer = command(admin, sqe, Data::None, Some(config.connect_timeout)).await?;
    if !answer.cqe.status.is_success() {
        // Changes will be noticed late (at the next error or reconnect), not never.
        tracing::warn!(path = %config.name, status = %answer.cqe.status, "the controller refuses to send events");
    }
    Ok(())
}

/// `len` bytes of a log page from `from` on, in pieces of at most `most`: what every controller's MDTS allows is [`PIECE`], but
/// only controllers that take an offset (LPA bit 2) can give a longer page in pieces.
pub(crate) async fn read_log(
    admin: &Handle,
    config: &ControllerConfig,
    (nsid, page): (u32, u8),
    from: u64,
    len: u64,
    most: u32,
) -> Result<Vec<u8>, Fault> {
    let len = len.min(MOST_LOG).next_multiple_of(4);
    let mut log = Vec::with_capacity(len as usize);
    while (log.len() as u64) < len {
        let piece = (len - log.len() as u64).min(most.into()) as u32;
        let sqe = Sqe::get_log_page(0, nsid, page, 0, false, from + log.len() as u64, piece);
        let what = format!("Get Log Page {page:#04x}");
        let answer = demand(admin, &what, sqe, Data::In(piece), config.connect_timeout).await?;
        log.extend_from_slice(&answer.data);
    }
    Ok(log)
}

/// How often the controller has lost its power, if that costs its cache anything and it tells.
///
/// What it said to an association before this one says nothing of what has happened since. A controller that told then and does not
/// now is not used, and asked again at the next attempts. If it refuses at all of [`POWER_REFUSALS`], its cache is taken for another
/// one, so that what was not flushed is reported as lost.
///
/// # Errors
/// [`Code::PathProtocol`] for a refusal that may not be the last word.
pub(crate) async fn power_history(
    admin: &Handle,
    shared: &Shared,
    controller: &IdentifyController,
    association: u64,
) -> Result<Option<PowerHistory>, Fault> {
    let config = &shared.config;
    if !controller.has_volatile_write_cache() {
        return Ok(None);
    }
    let sqe = Sqe::get_log_page(0, NSID_ALL, lid::SMART, 0, true, 0, SmartLog::LEN as u32);
    let answer = command(admin, sqe, Data::In(SmartLog::LEN as u32), Some(config.connect_timeout)).await?;
    let status = answer.cqe.status;
    if status.is_success() {
        let smart = SmartLog::parse(&answer.data)?;
        shared.power_told();
        let (cycles, unsafe_shutdowns) = (smart.power_cycles, smart.unsafe_shutdowns);
        return Ok(Some(PowerHistory::Counted { cycles, unsafe_shutdowns }));
    }
    match shared.power_refused() {
        None => {
            tracing::warn!(
                path = %config.name, %status,
                "no SMART log: should the controller lose its power, and its write cache, nobody will know"
            );
            Ok(None)
        }
        Some(times) if times < POWER_REFUSALS => {
            let reason = format!("the SMART log, which tells whether the power was lost, was refused: {status}");
            Err(Fault::new(Code::PathProtocol, reason))
        }
        Some(_) => {
            tracing::warn!(
                path = %config.name, %status,
                "no SMART log any more: the write cache may have lost its power, and is taken for another one"
            );
            Ok(Some(PowerHistory::Untold { association }))
        }
    }
}

/// The ANA log, if the controller has one.
pub(crate) async fn ana_log(
    admin: &Handle,
    config: &ControllerConfig,
    view: &ControllerView,
) -> Result<Option<AnaLog>, Fault> {
    let controller = &view.identify;
    if !controller.has_ana() {
        return Ok(None);
    }
    let (len, most) = (controller.ana_log_bytes(), ana_piece(view));
    let mut tries = 1;
    loop {
        let log = read_log(admin, config, (NSID_ALL, lid::ANA), 0, len, most).await?;
        match AnaLog::parse(&log) {
            Ok(log) => return Ok(Some(log)),
            // Pieces of a log that changes while it is read do not fit together.
            Err(error) if tries < ANA_READS && len > most.into() => {
                tracing::debug!(path = %config.name, %error, "ANA log cannot be read; once more");
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes of the ANA log that are read at a time: as many as the controller transfers and we hold. Linux's target claims to take an
/// offset (LPA bit 2) and always sends this log from its start, and only a log that is read at once is of one moment.
fn ana_piece(view: &ControllerView) -> u32 {
    let mdts = view.identify.max_transfer_bytes(view.page_shift_min).unwrap_or(u64::MAX);
    mdts.min(ADMIN_DATA.into()) as u32
}

/// What the controller shows to this host.
pub(crate) struct Found {
    /// Those that are looked at.
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    /// All that are active, as far as they were listed.
    pub(crate) listed: Vec<u32>,
    /// Every question was answered. If not, what was known before stands in for the answers, and it is to be asked again.
    pub(crate) whole: bool,
}

/// Every active namespace, or only the one that is wanted. `known` is what was found before over this association: a refusal does not
/// make it untrue.
pub(crate) async fn namespaces(
    admin: &Handle,
    shared: &Shared,
    view: &ControllerView,
    ana: Option<&AnaLog>,
    known: Option<&BTreeMap<u32, Namespace>>,
) -> Result<Found, Fault> {
    let config = &shared.config;
    let mut listed = active_namespaces(admin, config, view, known.is_some()).await?;
    if listed.len() >= MOST_NAMESPACES {
        // Those that are wanted are not missed because there are many before them; should one not be active, it says so itself.
        let last = listed.last().copied().unwrap_or(0);
        listed.extend(shared.wanted().into_iter().filter(|&wanted| wanted > last));
    }
    let mut found = Found { namespaces: BTreeMap::new(), listed, whole: true };
    for &nsid in &found.listed {
        if config.ns.is_some_and(|wanted| wanted != nsid) {
            continue;
        }
        let before = known.and_then(|known| known.get(&nsid));
        match one_namespace(admin, config, view, ana, nsid, before.is_some()).await? {
            One::Active(namespace) => drop(found.namespaces.insert(nsid, *namespace)),
            One::Inactive => {}
            One::Refused(reason) => {
                tracing::warn!(path = %config.name, nsid, %reason, "a namespace cannot be looked at now; asking again");
                found.whole = false;
                if let Some(before) = before {
                    found.namespaces.insert(nsid, with_access(before.clone(), ana, nsid));
                }
            }
        }
    }
    Ok(found)
}

async fn active_namespaces(
    admin: &Handle,
    config: &ControllerConfig,
    view: &ControllerView,
    listed_before: bool,
) -> Result<Vec<u32>, Fault> {
    let mut all: Vec<u32> = Vec::new();
    loop {
        let above = all.last().copied().unwrap_or(0);
        let sqe = Sqe::identify(0, cns::ACTIVE_NAMESPACES, above, 0);
        let answer = command(admin, sqe, Data::In(identify::LEN as u32), Some(config.connect_timeout)).await?;
        if !answer.cqe.status.is_success() {
            let status = answer.cqe.status;
            if listed_before || above > 0 {
                // A list that fails is not an empty one.
                return Err(Fault::new(Code::PathProtocol, format!("the list of namespaces was refused: {status}")));
            }
            // Controllers of 1.0 have no list; then each identifier is asked for.
            let most = view.identify.nn.min(MOST_NAMESPACES as u32);
            tracing::warn!(path = %config.name, %status, "no list of active namespaces; looking at 1 to {most}");
            return Ok((1..=most).collect());
        }
        let list = identify::active_namespaces(&answer.data, above)?;
        let full = list.len() == 1024;
        all.extend(list);
        if !full {
            return Ok(all);
        }
        if all.len() >= MOST_NAMESPACES {
            tracing::warn!(path = %config.name, "only the first {} namespaces are looked at", all.len());
            return Ok(all);
        }
    }
}

/// What came of looking at one namespace.
enum One {
    Active(Box<Namespace>),
    /// The controller says that it is not there.
    Inactive,
    /// The controller does not say, for this reason.
    Refused(String),
}

async fn one_namespace(
    admin: &Handle,
    config: &ControllerConfig,
    view: &ControllerView,
    ana: Option<&AnaLog>,
    nsid: u32,
    known: bool,
) -> Result<One, Fault> {
    let limit = Some(config.connect_timeout);
    let data = Data::In(identify::LEN as u32);
    let answer = command(admin, Sqe::identify(0, cns::NAMESPACE, nsid, 0), data, limit).await?;
    if !answer.cqe.status.is_success() {
        return Ok(One::Refused(format!("Identify Namespace: {}", answer.cqe.status)));
    }
    let namespace = match IdentifyNamespace::parse(&answer.data) {
        Ok(namespace) if namespace.is_active() => namespace,
        Ok(_) => return Ok(One::Inactive),
        Err(error) => return Ok(One::Refused(error.to_string())),
    };
    let answer = command(admin, Sqe::identify(0, cns::NAMESPACE_DESCRIPTORS, nsid, 0), data, limit).await?;
    let status = answer.cqe.status;
    let ids = if status.is_success() {
        NamespaceIds::parse(&answer.data).map_err(|error| error.to_string())
    } else if status.is(StatusField::INVALID_FIELD) && !known {
        // Controllers before 1.3 do not know the list; NGUID and EUI-64 are in Identify Namespace.
        Ok(NamespaceIds::default())
    } else {
        Err(status.to_string())
    };
    let ids = match ids {
        Ok(ids) => ids,
        // Without its identifiers it would look like another namespace.
        Err(reason) if known => return Ok(One::Refused(format!("identification descriptors: {reason}"))),
        Err(reason) => {
            // One namespace with a bad list must not cost the others their path.
            tracing::warn!(path = %config.name, nsid, %reason, "no identification descriptors");
            NamespaceIds::default()
        }
    };
    Ok(One::Active(Box::new(describe(view, nsid, &namespace, &ids, ana))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ana_log_is_read_at_once_where_the_controller_transfers_that_much() {
        let piece = |mdts| {
            let identify = IdentifyController { mdts, lpa: 7, ..Default::default() };
            ana_piece(&ControllerView {
                identify,
                page_shift_min: 12,
                subnqn: String::new(),
                queues: 1,
                depth: 1,
                power: None,
            })
        };
        assert_eq!((piece(0), piece(5), piece(1), piece(255)), (ADMIN_DATA, ADMIN_DATA, 8192, ADMIN_DATA));
        // What Linux's target asks for: 128 groups, 1024 namespaces.
        let linux = IdentifyController { nanagrpid: 128, mnan: 1024, nn: 1024, ..Default::default() };
        assert!(linux.ana_log_bytes() > PIECE.into() && linux.ana_log_bytes() <= ADMIN_DATA.into());
    }

    #[test]
    fn data_in_capsules_only_right_behind_the_entry() {
        let config = ControllerConfig::new("h", 1, polypath_nvme::nqn::Nqn::new("nqn.x").unwrap());
        let bytes = |ioccsz, icdoff| {
            in_capsule(&config, &IdentifyController { ioccsz, icdoff, ..Default::default() }).map_err(|f| f.reason)
        };
        assert_eq!((bytes(4, 0), bytes(516, 0), bytes(516, 2)), (Ok(0), Ok(8192), Ok(0)));
        assert!(bytes(3, 0).unwrap_err().contains("IOCCSZ"));
    }
}
