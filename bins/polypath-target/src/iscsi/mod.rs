//! stub
use crate::config::ConfigError;
use crate::conn::Ending;
use crate::faults::{Rule, Who};
use crate::mail::{Announcement, Quiesce};
use crate::media::MediumError;
use crate::out::Out;
use crate::shared::{ConnInfo, Shared};
use crate::store::Change;
use std::sync::Arc;

pub(crate) struct Iscsi;
#[allow(dead_code)]
pub(crate) struct Env<'a> {
    pub(crate) now_us: u64,
    pub(crate) iscsi: &'a Iscsi,
    pub(crate) rules: &'a [Arc<Rule>],
}
impl Iscsi {
    pub(crate) fn new(_: Arc<Shared>) -> Result<Iscsi, ConfigError> {
        Ok(Iscsi)
    }
    pub(crate) fn changed(&self, _: usize, _: Change) {}
    pub(crate) fn lose_power(&self) {}
    pub(crate) fn status(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
}
pub(crate) struct Conn {
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) out: Out,
    pub(crate) ending: Option<Ending>,
}
impl Conn {
    pub(crate) fn new(info: Arc<ConnInfo>, _: &Iscsi, _: u64) -> Conn {
        Conn { info, out: Out::new(), ending: Some(Ending::Now) }
    }
    pub(crate) fn is_joined(&self) -> bool {
        false
    }
    pub(crate) fn who(&self) -> Who {
        Who { listener: self.info.listener, session: None, queue: None, conn: self.info.id }
    }
    pub(crate) fn receive(&mut self, _: &Env<'_>, bytes: &[u8]) -> usize {
        bytes.len()
    }
    pub(crate) fn tick(&mut self, _: &Env<'_>) {}
    pub(crate) fn deadline_us(&self) -> u64 {
        u64::MAX
    }
    pub(crate) fn look_around(&mut self, _: &Env<'_>) {}
    pub(crate) fn close(&mut self, _: &Iscsi) {}
    pub(crate) fn landed(&mut self, _: &Env<'_>, _: u32, _: Result<(), MediumError>) {}
    pub(crate) fn quiesce(&mut self, _: &Env<'_>, _: &Quiesce) {}
    pub(crate) fn quiet(&mut self, _: &Env<'_>, _: u32) {}
    pub(crate) fn announce(&mut self, _: &Env<'_>, _: Announcement) -> bool {
        false
    }
}
