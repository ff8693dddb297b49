//! Several reactors, one per core of a list.

use crate::cpus::CpuList;
use crate::idle::IdlePolicy;
use crate::turn::{Reactor, ReactorConfig, ReactorError, ReactorHandle};
use polypath_block::{Host, SegTable};
use std::sync::Arc;
use std::thread::JoinHandle;

/// How a pool is to run.
#[derive(Clone, Debug, Default)]
pub struct PoolConfig {
    /// Cores; `None` starts one reactor that is not pinned.
    pub cpus: Option<CpuList>,
    /// What reactors do without work.
    pub idle: IdlePolicy,
}

/// Reactors that are stopped when the pool is dropped.
#[derive(Debug)]
pub struct Pool {
    handles: Vec<ReactorHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts one reactor per core.
    ///
    /// # Errors
    /// The first reactor that cannot be started; those before it are stopped again.
    pub fn start(config: &PoolConfig) -> Result<Pool, ReactorError> {
        let cpus: Vec<Option<usize>> = match &config.cpus {
            Some(list) => list.0.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let mut pool = Pool { handles: Vec::new(), threads: Vec::new() };
        for (id, cpu) in cpus.into_iter().enumerate() {
            let (handle, thread) = Reactor::start(ReactorConfig {
                id: id as u16,
                cpu,
                idle: config.idle,
                segments_limit: SegTable::DEFAULT_LIMIT,
            })?;
            pool.handles.push(handle);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Its reactors.
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// Its reactors, for floors that know them only as hosts.
    pub fn hosts(&self) -> Vec<Arc<dyn Host>> {
        self.handles.iter().map(|h| Arc::new(h.clone()) as Arc<dyn Host>).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.stop();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reactor thread panicked");
            }
        }
    }
}
