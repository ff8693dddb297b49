//! Opening a disk: policies, a thread that may block, and a future that waits for it.

use crate::disk::{Disk, OwnedDevice, Parts};
use crate::error::Error;
use crate::group::{GroupSpec, wait_group_live};
use crate::poller::{DiskPoller, Setup};
use crate::poller_count::PollerCount;
use crate::stack::{Stack, wait_live};
use crate::submission_queue::SubmissionQueue;
use polypath_block::{
    Armed, Cx, Device, DeviceInfo, DiskUri, OpenError, Poller, QueueConfig, Scheme, Turn, UriError, Waits,
};
use polypath_multipath::Group;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// How long a reactor may take to open a queue, which never waits for anything: longer means that it is stuck.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);

/// One URI, or several that are paths to one disk.
pub trait IntoUris {
    /// Parses them.
    ///
    /// # Errors
    /// Names the part of the first URI that does not do.
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError>;
}

impl IntoUris for &str {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        Ok(vec![self.parse()?])
    }
}

impl IntoUris for String {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.as_str().into_uris()
    }
}

impl IntoUris for &String {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.as_str().into_uris()
    }
}

impl IntoUris for DiskUri {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        Ok(vec![self])
    }
}

impl IntoUris for Vec<DiskUri> {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        Ok(self)
    }
}

impl<S: AsRef<str>> IntoUris for &[S] {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.iter().map(|s| s.as_ref().parse()).collect()
    }
}

impl<S: AsRef<str>> IntoUris for &Vec<S> {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.as_slice().into_uris()
    }
}

impl<S: AsRef<str>, const N: usize> IntoUris for [S; N] {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.as_slice().into_uris()
    }
}

impl<S: AsRef<str>, const N: usize> IntoUris for &[S; N] {
    fn into_uris(self) -> Result<Vec<DiskUri>, UriError> {
        self.as_slice().into_uris()
    }
}

enum Source {
    Uris(Result<Vec<DiskUri>, UriError>),
    Group(GroupSpec),
    Device(Arc<dyn Device>),
}

/// How a disk is to be opened. What names it (URIs, a group, a device) may be given once; the last one counts.
#[must_use = "nothing happens before open()"]
pub struct Builder {
    source: Source,
    stack: Option<Stack>,
    depth: u16,
    timeout: Duration,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Builder { source: Source::Uris(Ok(Vec::new())), stack: None, depth: 128, timeout: Duration::from_secs(15) }
    }

    /// One URI, or several that are paths to one disk.
    pub fn uris(mut self, uris: impl IntoUris) -> Self {
        self.source = Source::Uris(uris.into_uris());
        self
    }

    /// A multipath disk with its policies: selector, time-outs, expected identifiers.
    pub fn group(mut self, spec: GroupSpec) -> Self {
        self.source = Source::Group(spec);
        self
    }

    /// A device that is open already. It stays open when the disk is closed.
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.source = Source::Device(device);
        self
    }

    /// The stack to run on; [`Stack::shared`] if none is given.
    pub fn stack(mut self, stack: &Stack) -> Self {
        self.stack = Some(stack.clone());
        self
    }

    /// Operations per reactor that are with the device at a time, 1 to 4096; 128 if not given. A device that takes less is given less.
    pub fn depth(mut self, depth: u16) -> Self {
        self.depth = depth.clamp(1, 4096);
        self
    }

    /// How long to wait for the disk to answer; 15 s if not given.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Begins to open it, on a thread of its own.
    ///
    /// # Errors
    /// Of the future: what does not do, or what kept the disk from answering in time.
    pub fn open(self) -> Opening {
        let shared = Arc::new(Mutex::new(Answer::default()));
        let promise = Promise(shared.clone());
        let spawned = thread::Builder::new().name("polypath-open".into()).spawn(move || {
            let result = self.open_blocking();
            promise.fulfil(result);
        });
        if let Err(source) = spawned {
            let error = Error::System { what: "starting a thread to open a disk", source };
            Promise(shared.clone()).fulfil(Err(error));
        }
        Opening(shared)
    }

    /// Opens it on this thread, which may be held up for as long as [`Builder::timeout`]. Never call it on a reactor.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open_blocking(self) -> Result<Disk, Error> {
        let stack = self.stack.map_or_else(Stack::shared, Ok)?;
        let (device, group, owned): (Arc<dyn Device>, _, bool) = match self.source {
            Source::Device(device) => (device, None, false),
            Source::Group(spec) => with_group(stack.open_group(spec)?),
            Source::Uris(uris) => match uris?.as_slice() {
                [] => {
                    let problem = "no URI given; expected one, or several paths".into();
                    return Err(Error::Spec { what: "disk".into(), problem });
                }
                // One disk of this machine as it is; what may be lost and come back as a group, which waits and sends again.
                [uri] if !matches!(uri.scheme, Scheme::NvmeTcp | Scheme::Iscsi) => {
                    (stack.open_device(uri)?, None, true)
                }
                uris => with_group(stack.open_group(GroupSpec::new("", uris.iter().cloned()))?),
            },
        };
        let live = match &group {
            Some(group) => wait_group_live(group, self.timeout),
            None => wait_live(&*device, self.timeout),
        };
        let opened = live.and_then(|info| attach(&stack, &device, info, owned, self.depth));
        if opened.is_err() && owned {
            device.close();
        }
        opened
    }
}

fn with_group(group: Arc<Group>) -> (Arc<dyn Device>, Option<Arc<Group>>, bool) {
    (group.clone(), Some(group), true)
}

fn attach(
    stack: &Stack,
    device: &Arc<dyn Device>,
    info: Arc<DeviceInfo>,
    owned: bool,
    depth: u16,
) -> Result<Disk, Error> {
    let arena = stack.arena()?;
    let blocks = Arc::new(AtomicU64::new(info.geometry.blocks));
    let (pollers, depth) = (PollerCount::new(), depth.min(info.max_depth.max(1)));
    let (tell, told) = mpsc::channel();
    let owned_device = owned.then(|| Arc::new(OwnedDevice(device.clone())));
    let hosts = stack.hosts();
    for host in hosts.iter().take(info.max_queues.max(1).into()) {
        let (submissions, rx) = SubmissionQueue::new(host.clone(), depth.into());
        let counted = [pollers.enter(), stack.pollers().enter()];
        let (device, info, blocks, tell) = (device.clone(), info.clone(), blocks.clone(), tell.clone());
        let owned_device = owned_device.clone();
        host.spawn(Box::new(move |cx| {
            let made = open_queue(cx, &device, depth).map(|(queue, row)| {
                let setup = Setup {
                    queue,
                    submissions: submissions.clone(),
                    rx,
                    device,
                    owned_device,
                    info,
                    blocks,
                    row,
                    depth,
                    counted,
                };
                (submissions, DiskPoller::new(setup))
            });
            let (answer, poller): (_, Box<dyn Poller>) = match made {
                Ok((submissions, poller)) => (Ok(submissions), Box::new(poller)),
                Err(error) => (Err(error), Box::new(Ended)),
            };
            // Whoever opens waits for every reactor; if it has gone, so has its submission queue, and the poller ends.
            if let Err(mpsc::SendError(Ok(submissions))) = tell.send(answer) {
                submissions.close();
            }
            poller
        }));
    }
    drop(tell);
    let (mut queues, mut failed) = (Vec::new(), None);
    let deadline = Instant::now() + ATTACH_LIMIT;
    while let Ok(answer) = told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        match answer {
            Ok(submissions) => queues.push(submissions),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if queues.is_empty() => return Err(error),
        Some(error) => tracing::warn!(device = device.name(), %error, "served by fewer reactors than there are"),
        None => {}
    }
    if queues.is_empty() {
        return Err(Error::Gone { name: device.name().into(), reason: "its reactors have ended, or are stuck".into() });
    }
    let (device, stack) = (device.clone(), stack.clone());
    Ok(Disk::new(Parts { device, owned_device, info, blocks, queues, pollers, arena, stack }))
}

type Opened = (Box<dyn polypath_block::IoQueue>, polypath_block::SegRow);

fn open_queue(cx: &mut Cx<'_>, device: &Arc<dyn Device>, depth: u16) -> Result<Opened, Error> {
    let row = cx
        .segs
        .reserve(depth.into(), 1)
        .map_err(|error| Error::Queue(OpenError::System { name: device.name().into(), reason: error.to_string() }))?;
    match device.open_queue(QueueConfig { depth }) {
        Ok(queue) => Ok((queue, row)),
        Err(error) => {
            cx.segs.release(row);
            Err(error.into())
        }
    }
}

/// A poller in place of one that could not be made.
struct Ended;

impl Poller for Ended {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "disk (could not be opened)"
    }
}

#[derive(Default)]
struct Answer {
    result: Option<Result<Disk, Error>>,
    waker: Option<Waker>,
    fulfilled: bool,
}

struct Promise(Arc<Mutex<Answer>>);

impl Promise {
    fn fulfil(&self, result: Result<Disk, Error>) {
        let mut answer = self.0.lock().unwrap_or_else(|p| p.into_inner());
        if std::mem::replace(&mut answer.fulfilled, true) {
            return;
        }
        answer.result = Some(result);
        let waker = answer.waker.take();
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let source = std::io::Error::other("the thread that opened it has ended without a word");
        self.fulfil(Err(Error::System { what: "opening a disk", source }));
    }
}

/// A disk that is being opened. Dropping it lets the disk go as soon as it is open.
#[must_use = "the disk is closed again if nobody takes it"]
pub struct Opening(Arc<Mutex<Answer>>);

impl Future for Opening {
    type Output = Result<Disk, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = self.0.lock().unwrap_or_else(|p| p.into_inner());
        match answer.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
