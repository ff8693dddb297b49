//! `serve-ring`: the whole back-end, as `polypathd` has it, in a process of its own; and that process as its parent sees it.

use super::{MAX_QD, Medium, RAM_BYTES};
use crate::output;
use anyhow::Context as _;
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{GroupSpec, Stack, StackConfig, wait_group_live, wait_live};
use polypath_block::{Device, DiskUri};
use polypath_reactor::{CpuList, IdlePolicy};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long the disk may take to come up.
const LIVE_LIMIT: Duration = Duration::from_secs(10);
/// Entries a ring may have.
const RING: u16 = 1024;

const _: () = assert!(3 * MAX_QD <= RING);

/// What to serve.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where to listen.
    pub socket: PathBuf,
    /// What the disk is made of.
    pub medium: Medium,
    /// A group of one path, as `polypathd` makes of every disk, or the disk as it is.
    pub group: bool,
    /// Core of the reactor.
    pub cpu: usize,
    /// What it does when there is nothing to do.
    pub idle: IdlePolicy,
}

/// Serves until standard input ends; says `ready` when front-ends may come.
///
/// # Errors
/// When the reactor, the disk or the server cannot be had.
pub fn serve(config: &ServeConfig) -> anyhow::Result<()> {
    let stack = Stack::start(StackConfig {
        cpus: Some(CpuList(vec![config.cpu])),
        idle: config.idle,
        huge_pages: true,
        ..StackConfig::default()
    })?;
    let mut server = start(&stack, config)?;
    output::line("ready")?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context("waiting for the end of standard input")?;
    server.stop()?;
    Ok(())
}

/// The server on the reactors of `stack`.
pub(super) fn start(stack: &Stack, config: &ServeConfig) -> anyhow::Result<Server> {
    let device = open(stack, config)?;
    Ok(Server::start(ServerConfig {
        queue_size: RING,
        ..ServerConfig::new("ring", &config.socket, device, stack.hosts())
    })?)
}

fn open(stack: &Stack, config: &ServeConfig) -> anyhow::Result<Arc<dyn Device>> {
    let uri: DiskUri = match config.medium {
        Medium::Null => "null://64GiB".parse()?,
        Medium::Ram => format!("ram://{RAM_BYTES}").parse()?,
    };
    if config.group {
        let group = stack.open_group(GroupSpec::new("ring", [uri]))?;
        wait_group_live(&group, LIVE_LIMIT)?;
        return Ok(group);
    }
    let device = stack.open_device(&uri)?;
    wait_live(&*device, LIVE_LIMIT)?;
    Ok(device)
}

/// A back-end in a process of its own, in a folder of its own. It ends when its standard input is closed: with this value, or with this
/// process.
pub(super) struct Whole {
    pub(super) socket: PathBuf,
    folder: PathBuf,
    child: Child,
}

impl Whole {
    /// `command` is what runs this program: nothing, or a tool that counts.
    ///
    /// # Errors
    /// When the process, or the back-end in it, does not start.
    pub(super) fn start(
        tool: Option<Command>,
        medium: Medium,
        group: bool,
        cpu: usize,
        idle: IdlePolicy,
    ) -> anyhow::Result<Whole> {
        let program = std::env::current_exe().context("asking for the name of this program")?;
        let name = format!("polypath-bench-ring-{}-{:x}", std::process::id(), rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let socket = folder.join("socket");
        let mut command = match tool {
            None => Command::new(&program),
            Some(mut tool) => {
                tool.arg(&program);
                tool
            }
        };
        command.arg("serve-ring").arg(&socket).args(["--medium", medium.as_str()]);
        command.args(["--cpu", &cpu.to_string(), "--idle", idle.as_str()]);
        if !group {
            command.arg("--no-group");
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("starting {}", Path::new(command.get_program()).display()));
        let mut whole = Whole { socket, child: child.inspect_err(|_| remove(&folder))?, folder };
        let out = whole.child.stdout.take().context("the back-end has no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).context("waiting for the back-end")?;
        anyhow::ensure!(line.trim() == "ready", "the back-end did not start: {:?}", whole.end());
        Ok(whole)
    }

    /// Ends it, and waits for that.
    pub(super) fn end(&mut self) -> std::io::Result<ExitStatus> {
        drop(self.child.stdin.take());
        self.child.wait()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "waiting for the back-end");
        }
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!(%error, folder = %folder.display(), "cannot be removed");
    }
}
