//! The disk: connecting, properties, and queues to open.

use crate::blk;
use crate::config::{ClientConfig, ClientError};
use crate::connection::Connection;
use crate::keeper::Keeper;
use crate::queue::ClientQueue;
use crate::regions::Regions;
use crate::ring::{Layout, bell};
use crate::shared::{Beginning, Order, Shared};
use crate::wire::{self, request};
use polypath_block::{Device, DeviceState, IoQueue, OpenError, QueueConfig};
use polypath_memory::Region;
use std::sync::Arc;
use std::time::Duration;

/// A disk behind a vhost-user-blk socket. Dropping it closes it; queues that are open stay so.
pub struct VhostUserDisk {
    shared: Arc<Shared>,
}

impl VhostUserDisk {
    /// Connects. Blocks for as long as the back-end takes to answer, at most [`ClientConfig::control_timeout`] for each of a dozen
    /// questions: one that does not answer at all is told after the first.
    ///
    /// # Errors
    /// [`ClientError`] says at which step, and what to do.
    pub fn connect(config: &ClientConfig) -> Result<Arc<VhostUserDisk>, ClientError> {
        let path = &config.path;
        let fail = |step, problem: String| ClientError { path: path.clone(), step, problem };
        config.check().map_err(|(what, problem)| fail("reading its configuration", format!("{what} {problem}")))?;
        let mut connection =
            Connection::open(path, config.control_timeout).map_err(|e| fail(e.step, e.trouble.to_string()))?;
        let offer = connection.negotiate(blk::WANTED).map_err(|e| fail(e.step, e.trouble.to_string()))?;
        let info = blk::describe(&offer, config).map_err(|why| fail("reading its properties", why))?;
        let slots = offer.slots.checked_sub(2).map(|more| more + 1);
        let slots = slots.ok_or_else(|| {
            let problem = format!("it takes {} memory regions; we need two, for rings and for data", offer.slots);
            fail("reading its properties", problem)
        })?;

        let len = Layout::new(config.queue_size).len as u64 * u64::from(config.queues);
        let rings = Region::allocate(len, false).map_err(|e| fail("making memory for rings", e.to_string()))?;
        let mut regions = Regions::new();
        let base = regions.allot(rings.len()).ok_or_else(|| fail("making memory for rings", "too long".into()))?;
        connection
            .tell(request::ADD_MEM_REG, &wire::region(base, rings.len(), 0), rings.fd())
            .map_err(|e| fail(e.step, e.trouble.to_string()))?;

        let keeper_bell = bell().map_err(|e| fail("making an eventfd", e.to_string()))?;
        let shared = Shared::new(Beginning {
            name: format!("vhost-user-blk://{path}"),
            config: config.clone(),
            info,
            abilities: blk::Abilities::of(offer.features),
            rings,
            rings_base: base,
            slots,
            regions,
            keeper_bell,
        });
        Keeper::start(shared.clone(), connection).map_err(|e| fail("starting its thread", e.to_string()))?;
        Ok(Arc::new(VhostUserDisk { shared }))
    }
}

impl Device for VhostUserDisk {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn state(&self) -> DeviceState {
        self.shared.state()
    }

    fn version(&self) -> u64 {
        self.shared.version()
    }

    /// What the back-end had taken from its rings it may carry out when we have gone; nothing proves that it has.
    fn landing_bound(&self) -> Duration {
        if self.shared.config.read_only { Duration::ZERO } else { self.shared.config.fence }
    }

    /// The queue takes requests at once; they leave when the back-end has taken its ring.
    fn open_queue(&self, _config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let name = || self.shared.name.clone();
        let gone = |reason: String| OpenError::Gone { name: name(), reason };
        if let DeviceState::Gone { reason } = self.shared.state() {
            return Err(gone(reason));
        }
        let seat = match self.shared.take_seat() {
            Ok(Some(seat)) => seat,
            Ok(None) => return Err(OpenError::NoQueue { name: name(), granted: self.shared.info.max_queues }),
            Err(error) => return Err(OpenError::System { name: name(), reason: format!("eventfd: {error}") }),
        };
        if !self.shared.order(Order::Start(seat.clone())) {
            self.shared.leave_seat(seat, None);
            return Err(gone("closed".into()));
        }
        Ok(Box::new(ClientQueue::new(seat, self.shared.clone())))
    }

    fn close(&self) {
        self.shared.close();
    }
}

impl Drop for VhostUserDisk {
    fn drop(&mut self) {
        self.shared.close();
    }
}
