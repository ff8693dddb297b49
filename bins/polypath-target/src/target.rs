//! Starting and stopping a target inside a program.

mod beneath;

use crate::config::{ConfigError, TargetConfig};
use crate::control::{self, Command, ListenerName};
use crate::mail::{Msg, ThreadHandle};
use crate::rooms::Rooms;
use crate::shell::{Seat, Shell, bind};
use beneath::Reactors;
use polypath_net::{SocketAccess, UnixSocket};
use serde_json::Value;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Why a target did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// A target that serves, until [`TargetHandle::stop`] or drop.
pub struct TargetHandle {
    rooms: Arc<Rooms>,
    threads: Vec<JoinHandle<()>>,
    control: Option<UnixSocket>,
    /// What the threads are where there are disks beneath.
    reactors: Option<Reactors>,
}

/// Starts targets.
pub struct Target;

impl Target {
    /// Opens every medium, listens on every address and serves from threads of its own. All listeners are up when it returns.
    ///
    /// # Errors
    /// [`StartError`] says which part of the configuration, or which system call.
    pub fn start(config: TargetConfig) -> Result<TargetHandle, StartError> {
        config.check()?;
        let system = |what: String| move |source| StartError::System { what, source };
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for l in &config.listeners {
            let listener = listen(&l.address).map_err(system(format!("listen on {}", l.address)))?;
            addresses.push(listener.local_addr().map_err(system(format!("address of {}", l.address)))?);
            listeners.push(listener);
        }
        let control = config.control.clone();
        let stack = beneath::stack(&config)?;
        let rooms = Arc::new(Rooms::new(config, &addresses, stack.as_ref())?);
        let handles: io::Result<Vec<_>> = (0..rooms.config.threads).map(|_| ThreadHandle::new()).collect();
        // The cell is fresh, so it takes the value.
        let _ = rooms.threads.set(handles.map_err(system("eventfd".into()))?);
        let mut target = TargetHandle { rooms: rooms.clone(), threads: Vec::new(), control: None, reactors: None };
        let mut seats = Vec::new();
        for index in 0..rooms.config.threads {
            let mine = if index == 0 { std::mem::take(&mut listeners) } else { Vec::new() };
            seats.push(Seat::new(index, rooms.clone(), mine).map_err(system("epoll".into()))?);
        }
        if let Some(stack) = stack {
            target.reactors = Some(Reactors::start(stack, std::mem::take(&mut seats), &rooms.beneath)?);
        }
        for (index, seat) in seats.into_iter().enumerate() {
            let cpu = rooms.config.cpus.get(index).copied();
            let thread = std::thread::Builder::new()
                .name(format!("target-{index}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin(cpu);
                    }
                    Shell::new(seat).run();
                })
                .map_err(system("thread".into()))?;
            target.threads.push(thread);
        }
        if let Some(path) = control {
            let what = format!("control socket {}", path.display());
            // One that is left over from a target that is gone is in the way, and nothing else is.
            let file = UnixSocket::listen(&path, SocketAccess::default()).map_err(io::Error::other);
            let file = file.map_err(system(what.clone()))?;
            let socket = file.listener().try_clone();
            target.control = Some(file);
            let socket = socket.map_err(system(what.clone()))?;
            let thread = std::thread::Builder::new()
                .name("target-control".into())
                .spawn(move || control::serve(&rooms, &socket))
                .map_err(system(what))?;
            target.threads.push(thread);
        }
        Ok(target)
    }
}

impl TargetHandle {
    /// The address each listener really has, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.rooms.listeners.iter().map(|l| l.address).collect()
    }

    /// The port of listener `index`.
    ///
    /// # Panics
    /// If there is no such listener.
    pub fn port(&self, index: usize) -> u16 {
        self.rooms.listeners[index].address.port()
    }

    /// Does what a line on the control socket would do; see [`Command`].
    ///
    /// # Errors
    /// The text the socket would have answered.
    pub fn control(&self, command: &Command) -> Result<Value, String> {
        control::execute(&self.rooms, command)
    }

    /// Everything there is to know: connections, controllers, counters, faults, held writes.
    pub fn status(&self) -> Value {
        crate::status::status(&self.rooms)
    }

    /// Records of all writes that were held, oldest first (the last 1024).
    pub fn held_writes(&self) -> Vec<crate::faults::HeldRecord> {
        self.rooms.held.records()
    }

    /// Lets the network eat everything on listener `index`: see `drop_silently` of [`Command`].
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn drop_silently(&self, index: usize) -> Result<(), String> {
        self.on_listener("drop_silently", index)
    }

    /// Ends [`TargetHandle::drop_silently`]; connections of before are reset.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn restore(&self, index: usize) -> Result<(), String> {
        self.on_listener("restore", index)
    }

    /// Resets every connection of listener `index`; it goes on listening.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn reset(&self, index: usize) -> Result<(), String> {
        self.on_listener("reset", index)
    }

    /// Closes listener `index` and resets its connections.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn close_listener(&self, index: usize) -> Result<(), String> {
        self.on_listener("close_listener", index)
    }

    /// Opens listener `index` again, at the address it had.
    ///
    /// # Errors
    /// When there is no such listener or its address is taken.
    pub fn open_listener(&self, index: usize) -> Result<(), String> {
        self.on_listener("open_listener", index)
    }

    /// Sets the ANA state of every group on listener `index` (all subsystems must be one; else use [`TargetHandle::control`]).
    ///
    /// # Errors
    /// When there is no such listener or more than one subsystem.
    pub fn set_ana(&self, index: usize, state: &str) -> Result<(), String> {
        let command = Command { state: Some(state.into()), ..Command::new("set_ana").listener(index) };
        self.control(&command).map(|_| ())
    }

    /// Limits listener `index` to so many bytes a second in both directions together; 0 for no limit.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn bandwidth(&self, index: usize, bytes_per_s: u64) -> Result<(), String> {
        let command = Command { bytes_per_s: Some(bytes_per_s), ..Command::new("bandwidth").listener(index) };
        self.control(&command).map(|_| ())
    }

    /// Makes every command on listener `index` take so much longer; 0 ends it.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn latency(&self, index: usize, us: u64) -> Result<(), String> {
        self.control(&Command { us: Some(us), ..Command::new("latency").listener(index) }).map(|_| ())
    }

    /// Ends all connections and threads, and waits for them. Held writes that are not due yet are not applied.
    pub fn stop(mut self) {
        self.halt();
    }

    fn on_listener(&self, cmd: &str, index: usize) -> Result<(), String> {
        let command = Command { listener: Some(ListenerName::Index(index)), ..Command::new(cmd) };
        self.control(&command).map(|_| ())
    }

    fn halt(&mut self) {
        self.rooms.stopping.store(true, Ordering::Release);
        for thread in self.rooms.threads.get().into_iter().flatten() {
            thread.send(Msg::Stop);
        }
        if let Some(reactors) = self.reactors.take() {
            reactors.end(&self.rooms.beneath);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the target had panicked");
            }
        }
        if let Some(file) = self.control.take()
            && let Err(error) = file.remove()
        {
            tracing::warn!(%error, path = %file.path().display(), "the control socket stays");
        }
    }
}

impl Drop for TargetHandle {
    fn drop(&mut self) {
        self.halt();
    }
}

fn listen(text: &str) -> io::Result<TcpListener> {
    let address = text.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    bind(address)
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        tracing::warn!(cpu, "no such CPU; not pinned");
        return;
    }
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "not pinned");
    }
}
