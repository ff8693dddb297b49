//! The login phase, and how a session takes the place of the one before it.

use super::conn::{Conn, Fatal, Phase};
use super::{Env, Iscsi, Session};
use crate::conn::Ending;
use crate::mail::{Address, Msg, Quiesce};
use crate::media::Party;
use crate::shared::HostLog;
use polypath_iscsi::login::{
    Admission, DigestOffer, Identity, LoginError, Message, Name, Negotiated, Offer, SessionType, TargetStep, TextServer,
};
use polypath_iscsi::pdu::{BHS_LEN, Framing, Header, Isid, LoginRequest, LoginResponse, LoginStatus, Opcode, Pdu, Ttt};
use std::sync::Arc;

/// The tag under which a login waits for the session before it.
const LOGIN_TAG: u32 = u32::MAX;

impl Conn {
    pub(super) fn login_pdu(
        &mut self,
        env: &Env<'_>,
        header: &Header,
        bhs: &[u8; BHS_LEN],
        data: &[u8],
    ) -> Result<(), Fatal> {
        if header.opcode != Opcode::LoginRequest {
            return Err(Fatal("something else than a login"));
        }
        let request = LoginRequest::parse(header, bhs).map_err(|_| Fatal("a login request that cannot be read"))?;
        let listener = self.info.listener;
        let Phase::Login(login) = &mut self.phase else { return Ok(()) };
        let step = login.handle(&request, data, &mut |identity| admit(env.iscsi, listener, identity));
        match step {
            TargetStep::Send(message) => self.send_login(message),
            TargetStep::Refuse(message, error) => {
                if let Some(others) = HostLog::may(&env.iscsi.shared.log.login, env.now_us) {
                    tracing::info!(conn = self.info.id, peer = ?self.info.peer, %error, others, "login refused");
                }
                self.send_login(message);
                self.ending = Some(Ending::AfterFlush);
            }
            TargetStep::Done(message, negotiated) => self.logged_in(env, message, &negotiated),
        }
        Ok(())
    }

    fn logged_in(&mut self, env: &Env<'_>, message: Message<LoginResponse>, n: &Negotiated) {
        let discovery = n.session == SessionType::Discovery;
        let ttt = Ttt::new(1);
        self.text = ttt.map(|ttt| TextServer::new(n.session, n.target_name.clone(), n.max_send_data_len, ttt));
        self.agree(n, discovery);
        let store = n.target_name.as_ref().and_then(|name| env.iscsi.target(name));
        let Some(store) = store.filter(|_| !discovery) else {
            self.phase = Phase::Full;
            return self.send_login(message);
        };
        let Some(listener) = env.iscsi.shared.listeners.get(self.info.listener) else { return };
        let session = Session {
            tsih: n.tsih,
            store,
            initiator: n.initiator_name.clone(),
            isid: n.isid,
            listener: self.info.listener,
            party: Arc::new(Party { initiator: port_name(&n.initiator_name, n.isid), port: listener.portal_group }),
            home: (self.info.thread, self.info.id),
            gone: Arc::default(),
            attentions: Default::default(),
            attention: Default::default(),
        };
        let (session, before, known) = env.iscsi.open(session);
        self.info.queue.store(u32::from(n.tsih), std::sync::atomic::Ordering::Relaxed);
        self.session = Some(session);
        // What a session has left beneath may be on any thread, also of one whose connection has ended long ago.
        let everywhere = known && env.iscsi.shared.stores.get(store).is_some_and(|store| store.has_beneath(None));
        let home = before.as_ref().map(|before| before.home.0);
        let what = Arc::new(Quiesce {
            store,
            unit: None,
            session: before.map(|before| before.tsih),
            parties: None,
            except: None,
            end: true,
            tell: false,
        });
        let reply = Address { thread: self.info.thread, conn: self.info.id, tag: LOGIN_TAG };
        let threads = env.iscsi.shared.threads.get().map_or(&[][..], Vec::as_slice);
        let asked = threads.iter().enumerate().filter(|(index, _)| everywhere || Some(*index) == home);
        let asked = asked.map(|(_, thread)| thread.send(Msg::Quiesce { what: what.clone(), reply })).count();
        self.phase = Phase::Waiting(message, asked);
        if asked == 0 {
            self.before_is_quiet(env);
        }
    }

    /// The session before this one is over on its own thread: what it has held back lands now, and the login ends.
    fn before_is_quiet(&mut self, env: &Env<'_>) {
        let Some(session) = &self.session else { return };
        env.iscsi.shared.land_held(|w| {
            let owner = w.owner.as_ref();
            !w.beyond && owner.is_some_and(|(store, party)| *store == session.store && *party == session.party)
        });
        if let Phase::Waiting(message, _) = std::mem::replace(&mut self.phase, Phase::Full) {
            self.send_login(message);
        }
    }

    /// One more thread is quiet that something here waits for.
    pub(crate) fn quiet(&mut self, env: &Env<'_>, tag: u32) {
        if tag == LOGIN_TAG {
            let Phase::Waiting(_, left) = &mut self.phase else { return };
            *left = left.saturating_sub(1);
            if *left == 0 && self.ending.is_none() {
                self.before_is_quiet(env);
            }
        } else {
            self.quest_quiet(env, tag);
        }
    }

    fn send_login(&mut self, message: Message<LoginResponse>) {
        let mut bytes = Vec::new();
        match Pdu::LoginResponse(message.pdu).append(&message.text, &Framing::LOGIN, &mut bytes) {
            Ok(()) => self.out.bytes(&bytes),
            Err(error) => {
                tracing::error!(%error, "login response");
                self.ending = Some(Ending::Now);
            }
        }
    }
}

/// The name of an initiator port (SPC-4 7.6.4.5).
fn port_name(initiator: &Name, isid: Isid) -> String {
    format!("{initiator},i,0x{isid}")
}

/// Whether somebody may log in, and on what terms.
fn admit(iscsi: &Iscsi, listener: usize, identity: &Identity<'_>) -> Result<Admission, LoginError> {
    let shared = &iscsi.shared;
    let portal = shared.listeners.get(listener).ok_or(LoginError::Refused(LoginStatus::ServiceUnavailable))?;
    if identity.session == SessionType::Normal {
        let store = identity.target.and_then(|name| iscsi.target(name));
        store.ok_or(LoginError::Refused(LoginStatus::NotFound))?;
    }
    if identity.tsih != 0 {
        let there = crate::shared::lock(&iscsi.sessions).contains_key(&identity.tsih);
        let status = if there { LoginStatus::TooManyConnections } else { LoginStatus::SessionDoesNotExist };
        return Err(LoginError::Refused(status));
    }
    let tsih = iscsi.new_tsih().ok_or(LoginError::Refused(LoginStatus::OutOfResources))?;
    let config = &shared.config;
    let digest = |allowed: bool| match (allowed, config.refuse_without_digests) {
        (true, true) => DigestOffer::Always,
        (true, false) => DigestOffer::IfNeeded,
        (false, _) => DigestOffer::Never,
    };
    let offer = Offer {
        header_digest: digest(config.header_digest),
        data_digest: digest(config.data_digest),
        max_recv_data_len: config.iscsi.max_recv_data,
        initial_r2t: config.iscsi.initial_r2t,
        immediate_data: config.iscsi.immediate_data,
        max_burst_len: config.iscsi.max_burst,
        first_burst_len: config.iscsi.first_burst,
        max_outstanding_r2t: config.iscsi.max_outstanding_r2t,
        time2wait_s: 0,
        time2retain_s: 0,
    };
    Ok(Admission {
        tsih,
        portal_group_tag: portal.portal_group,
        target_alias: None,
        chap: iscsi.chap()?,
        offer: offer.clamped(),
    })
}
