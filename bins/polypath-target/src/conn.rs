//! One connection of whichever protocol, as the shells see it: bytes in, bytes out, time an argument.

use crate::config::Protocol;
use crate::faults::{Rule, Who};
use crate::mail::{Address, Announcement, Msg, Quiesce};
use crate::media::MediumError;
use crate::media::beneath::{Ended, Order};
use crate::out::Out;
use crate::rooms::Rooms;
use crate::shared::ConnInfo;
use crate::{iscsi, nvme};
use polypath_nvme::StatusField;
use std::sync::Arc;

/// What a connection needs from around it for one pass.
pub(crate) struct Env<'a> {
    pub(crate) now_us: u64,
    pub(crate) rooms: &'a Rooms,
    pub(crate) rules: &'a [Arc<Rule>],
}

impl<'a> Env<'a> {
    fn nvme(&self) -> nvme::Env<'a> {
        nvme::Env { now_us: self.now_us, nvme: &self.rooms.nvme, rules: self.rules }
    }

    fn iscsi(&self) -> iscsi::Env<'a> {
        iscsi::Env { now_us: self.now_us, iscsi: &self.rooms.iscsi, rules: self.rules }
    }
}

/// How a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Once everything has been sent.
    AfterFlush,
    /// At once; nothing more is sent.
    Now,
}

/// A connection.
pub(crate) enum Conn {
    Nvme(Box<nvme::Conn>),
    Iscsi(Box<iscsi::Conn>),
}

impl Conn {
    pub(crate) fn new(protocol: Protocol, info: Arc<ConnInfo>, rooms: &Rooms, now_us: u64) -> Conn {
        match protocol {
            Protocol::NvmeTcp => Conn::Nvme(Box::new(nvme::Conn::new(info, now_us))),
            Protocol::Iscsi => Conn::Iscsi(Box::new(iscsi::Conn::new(info, &rooms.iscsi, now_us))),
        }
    }

    #[inline]
    pub(crate) fn info(&self) -> &Arc<ConnInfo> {
        match self {
            Conn::Nvme(c) => &c.info,
            Conn::Iscsi(c) => &c.info,
        }
    }

    #[inline]
    pub(crate) fn out(&self) -> &Out {
        match self {
            Conn::Nvme(c) => &c.out,
            Conn::Iscsi(c) => &c.out,
        }
    }

    #[inline]
    pub(crate) fn out_mut(&mut self) -> &mut Out {
        match self {
            Conn::Nvme(c) => &mut c.out,
            Conn::Iscsi(c) => &mut c.out,
        }
    }

    #[inline]
    pub(crate) fn ending(&self) -> Option<Ending> {
        match self {
            Conn::Nvme(c) => c.ending,
            Conn::Iscsi(c) => c.ending,
        }
    }

    pub(crate) fn end(&mut self, ending: Ending) {
        match self {
            Conn::Nvme(c) => c.ending = Some(ending),
            Conn::Iscsi(c) => c.ending = Some(ending),
        }
    }

    /// Whether it belongs to an association by now.
    #[inline]
    pub(crate) fn is_joined(&self) -> bool {
        match self {
            Conn::Nvme(c) => c.controller.is_some(),
            Conn::Iscsi(c) => c.is_joined(),
        }
    }

    /// Who it is, for the scope of faults.
    pub(crate) fn who(&self) -> Who {
        match self {
            Conn::Nvme(c) => c.who(),
            Conn::Iscsi(c) => c.who(),
        }
    }

    /// Takes whole PDUs from the front of `bytes`; returns how many bytes were taken.
    #[inline]
    pub(crate) fn receive(&mut self, env: &Env<'_>, bytes: &[u8]) -> usize {
        match self {
            Conn::Nvme(c) => c.receive(&env.nvme(), bytes),
            Conn::Iscsi(c) => c.receive(&env.iscsi(), bytes),
        }
    }

    /// Would it take a PDU now? Not while too much waits to be sent or to be done.
    #[inline]
    pub(crate) fn is_taking(&self) -> bool {
        match self {
            Conn::Nvme(c) => c.is_taking(),
            Conn::Iscsi(c) => c.is_taking(),
        }
    }

    /// Does what is due by now.
    pub(crate) fn tick(&mut self, env: &Env<'_>) {
        match self {
            Conn::Nvme(c) => c.tick(&env.nvme()),
            Conn::Iscsi(c) => c.tick(&env.iscsi()),
        }
    }

    /// When [`Conn::tick`] has something to do next.
    pub(crate) fn deadline_us(&self) -> u64 {
        match self {
            Conn::Nvme(c) => c.deadline_us(),
            Conn::Iscsi(c) => c.deadline_us(),
        }
    }

    /// Looks at what other threads have changed.
    pub(crate) fn look_around(&mut self, env: &Env<'_>) {
        match self {
            Conn::Nvme(c) => c.look_around(&env.nvme()),
            Conn::Iscsi(c) => c.look_around(&env.iscsi()),
        }
    }

    /// Lets go of everything; called once before it is dropped.
    pub(crate) fn close(&mut self, rooms: &Rooms) {
        match self {
            Conn::Nvme(c) => c.close(&rooms.nvme),
            Conn::Iscsi(c) => c.close(&rooms.iscsi),
        }
    }

    /// Looks after the association whose life hangs on this connection; returns when to look again, in target time.
    pub(crate) fn keep_alive(&mut self, rooms: &Rooms, now_us: u64) -> Option<u64> {
        match self {
            Conn::Nvme(c) => c.keep_alive(&rooms.nvme, now_us),
            Conn::Iscsi(_) => None,
        }
    }

    /// A held write of this connection was applied.
    pub(crate) fn landed(&mut self, env: &Env<'_>, tag: u32, result: Result<(), MediumError>) {
        match self {
            Conn::Nvme(c) => {
                let status = result.map_or_else(StatusField::from, |()| StatusField::SUCCESS);
                c.respond(&env.nvme(), tag as u16, status, 0);
            }
            Conn::Iscsi(c) => c.landed(&env.iscsi(), tag, result),
        }
    }

    /// What it wants of disks beneath, to be taken away after each pass.
    #[inline]
    pub(crate) fn orders(&mut self) -> &mut Vec<Order> {
        match self {
            Conn::Nvme(c) => &mut c.orders,
            Conn::Iscsi(c) => &mut c.orders,
        }
    }

    /// A job of this connection on a disk beneath is over.
    pub(crate) fn finished(&mut self, env: &Env<'_>, ended: Ended) {
        let Ended { tag, result, data, .. } = ended;
        match self {
            Conn::Nvme(c) => c.finished(&env.nvme(), tag, result, data),
            Conn::Iscsi(c) => c.finished(&env.iscsi(), tag, result, data),
        }
    }

    /// Ends command `tag` because somebody else asked for it. `true` when it was still waiting and is now aborted.
    fn abort(&mut self, env: &Env<'_>, tag: u32) -> bool {
        match self {
            Conn::Nvme(c) => c.abort(&env.nvme(), tag as u16),
            // Tasks are aborted through their own session only.
            Conn::Iscsi(_) => false,
        }
    }

    /// What became of the command that this connection wanted aborted by `tag`.
    pub(crate) fn aborted(&mut self, env: &Env<'_>, tag: u32, aborted: bool) {
        if let Conn::Nvme(c) = self {
            c.respond(&env.nvme(), tag as u16, StatusField::SUCCESS, u64::from(!aborted));
        }
    }

    /// Has nothing any more of what is to be quiet.
    pub(crate) fn quiesce(&mut self, env: &Env<'_>, what: &Quiesce) {
        match self {
            Conn::Nvme(c) => c.quiesce(),
            Conn::Iscsi(c) => c.quiesce(&env.iscsi(), what),
        }
    }

    /// One more thread is quiet that this connection waits for.
    pub(crate) fn quiet(&mut self, env: &Env<'_>, tag: u32) {
        match self {
            Conn::Nvme(c) => c.quiet(&env.nvme()),
            Conn::Iscsi(c) => c.quiet(&env.iscsi(), tag),
        }
    }

    /// Says something of its own accord. `false` when its protocol has no words for it.
    pub(crate) fn announce(&mut self, env: &Env<'_>, what: Announcement) -> bool {
        match self {
            Conn::Nvme(_) => false,
            Conn::Iscsi(c) => c.announce(&env.iscsi(), what),
        }
    }
}

/// Aborts command `victim` on `conn`, if that is there still, and lets the thread that asked answer for it.
pub(crate) fn abort(env: &Env<'_>, conn: Option<&mut Conn>, victim: u32, reply: Address) {
    let aborted = conn.is_some_and(|conn| conn.abort(env, victim));
    env.rooms.send(reply, Msg::Aborted { to: reply, aborted });
}
