//! The Polypath daemon: disks with many paths, handed to virtual machines over vhost-user-blk and to others over NBD, steered over JSON-RPC.
//!
//! `polypathd -c FILE.toml`, or quickly: `polypathd -S DIR -m MASK -r SOCKET` and the rest by RPC. SIGTERM, SIGINT and SIGHUP drain:
//! rings stop taking requests, what is in flight completes, sockets and sessions close, then the process ends. Another one, a second
//! or more later, ends it at once. SIGUSR1 and SIGUSR2 do nothing. A panic ends the process: whoever starts it again serves its guests.
//!
//! Threads: one per reactor for the data; up to four that serve NBD, if there is any; one that writes the log, for which nobody waits; this one (a single-threaded tokio runtime) for
//! RPC and signals. Read `daemon.rs` first.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod flush;
mod ledger;
mod log;
mod nbd;
mod preflight;
mod resources;
mod rpc;
mod service;
mod show;
mod signals;
mod state;
mod values;

use anyhow::{Context, Result, bail};
use clap::Parser;
use config::{Config, Overrides};
use daemon::Daemon;
use log::Log;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signals::Signals;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long what is left on the control thread's runtime may take at the end.
const RUNTIME_LIMIT: Duration = Duration::from_secs(1);

/// How long a start that is not wanted any more may take to come to its end.
const START_END_LIMIT: Duration = Duration::from_secs(5);

/// How long an end in order may take: more than all of its steps, each of which has a limit. Files have none.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Multipath storage daemon in user space.
#[derive(Parser, Debug)]
#[command(name = "polypathd", version, about)]
struct Args {
    /// Configuration file (TOML).
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for vhost-user sockets that are named without a path.
    #[arg(short = 'S', long = "socket-dir", value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// Cores to run reactors on, one each: a hexadecimal mask such as 0x3 or 3 (cores 0 and 1), or a list such as [0,2-4] or 0,2-4.
    #[arg(short = 'm', long = "cpumask", value_name = "MASK")]
    cpus: Option<String>,
    /// JSON-RPC 2.0 socket.
    #[arg(short = 'r', long = "rpc-socket", value_name = "SOCKET")]
    rpc_socket: Option<PathBuf>,
    /// Folder for what must outlive the daemon: marks of disks that were not left in order.
    #[arg(long = "state-dir", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long)]
    check: bool,
}

/// How long a panic may take to be told of.
const PANIC_LIMIT: Duration = Duration::from_secs(2);

/// Whoever ends the process flushes it.
static LOG: OnceLock<Log> = OnceLock::new();

fn main() -> ExitCode {
    let args = Args::parse();
    let log = match Log::start() {
        Ok(log) => LOG.get_or_init(|| log),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "polypathd: no thread to write the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("POLYPATH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_writer(log.clone())
        // They would be told by `eprintln!`, which panics when nobody reads: guests are served all the same.
        .log_internal_errors(false)
        .init();
    end_on_panic(log);
    let status = match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody reads it, the status still says it.
            log.add(format!("polypathd: {}\n", polypath::block::Chain(error.as_ref())).as_bytes());
            ExitCode::FAILURE
        }
    };
    log.flush();
    status
}

fn run(args: Args) -> Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    let Args { cpus, socket_dir, rpc_socket, state_dir, .. } = args;
    config.overrule(Overrides { cpus, socket_dir, rpc_socket, state_dir })?;
    if args.check {
        preflight::check(&config).map_err(anyhow::Error::msg)?;
        let (disks, vhosts, nbds) = (config.disks.len(), config.vhosts.len(), config.nbds.len());
        let sources = match config.sources.len() {
            0 => String::new(),
            n => format!(", {n} source(s)"),
        };
        // The answer is the status; a reader who has gone takes nothing from it.
        let _ = writeln!(
            std::io::stdout(),
            "configuration is good: {disks} disk(s), {vhosts} vhost socket(s), {nbds} NBD export(s){sources}"
        );
        return Ok(());
    }
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("control thread")?;
    let result = runtime.block_on(serve(config));
    // A change by RPC that hangs must not keep the process.
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    result
}

/// Guests bring descriptors with their memory and paths need some, so that the usual soft limit (1024, for the sake of select(2), which
/// nobody here calls) is soon used up. The hard limit is what somebody has decided.
fn raise_descriptors() {
    let now = getrlimit(Resource::Nofile);
    if now.current == now.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }) {
        Ok(()) => tracing::debug!(from = now.current, to = now.maximum, "limit of open files raised"),
        Err(error) => tracing::warn!(%error, limit = now.current, "the limit of open files could not be raised"),
    }
}

async fn serve(config: Config) -> Result<()> {
    let mut signals = Signals::new().context("signal handlers")?;
    let Some(daemon) = start(&config, &mut signals).await? else { return Ok(()) };
    let rpc = match rpc::Server::bind(&config.rpc_socket, daemon.clone()) {
        Ok(rpc) => rpc,
        Err(error) => {
            // Guests may have been served already.
            if let Err(also) = drain(daemon, &mut signals).await {
                tracing::error!(error = %also, "what was begun could not be ended in order");
            }
            return Err(error);
        }
    };
    tracing::info!(rpc = %config.rpc_socket.display(), "ready");
    let why = tokio::select! {
        signal = signals.wish_to_end() => signal,
        () = daemon.shutdown_requested() => "shutdown by RPC",
        () = look_after(&daemon) => "nothing to look after",
        // It is what operators have; guests are not cut off for it.
        result = rpc.serve() => match result {
            Ok(()) => "RPC socket closed",
            Err(error) => {
                tracing::error!(%error, "RPC socket");
                "RPC socket failed"
            }
        }
    };
    tracing::info!(why, "draining");
    let calls = rpc.calls();
    drop(rpc);
    let ended = drain(daemon, &mut signals).await;
    calls.answered(RUNTIME_LIMIT).await;
    if ended.is_ok() {
        tracing::info!("drained and ended");
    }
    ended
}

/// Starts the daemon on a thread of its own: signals are heeded meanwhile. Somebody else's back-end, or a folder, may take its time.
/// `None`: it was ended before it had started.
async fn start(config: &Config, signals: &mut Signals) -> Result<Option<Arc<Daemon>>> {
    let unwanted = Arc::new(AtomicBool::new(false));
    let (tell, mut told) = tokio::sync::oneshot::channel();
    let (config, seen) = (config.clone(), unwanted.clone());
    // No thread of the runtime: one that hangs is not waited for at the end.
    std::thread::Builder::new()
        .name("start".into())
        .spawn(move || {
            if let Err(Ok(daemon)) = tell.send(Daemon::start_unless(&config, &seen)) {
                // Nobody waits for it any more.
                daemon.stop();
            }
        })
        .context("thread to start on")?;
    let signal = tokio::select! {
        started = &mut told => return Ok(Some(Arc::new(started.context("starting")??))),
        signal = signals.wish_to_end() => signal,
    };
    tracing::info!(signal, "signalled while starting: ending");
    unwanted.store(true, Ordering::Relaxed);
    tokio::select! {
        started = tokio::time::timeout(START_END_LIMIT, told) => match started {
            Ok(started) => {
                match started.context("starting")? {
                    Ok(daemon) => drain(Arc::new(daemon), signals).await?,
                    Err(error) => tracing::info!(%error, "ended"),
                }
                Ok(None)
            }
            Err(_) => {
                let limit_ms = START_END_LIMIT.as_millis();
                bail!("ended by {signal} while starting, which does not come to an end: {limit_ms} ms were waited")
            }
        },
        signal = signals.wish_to_end_at_once() => end_at_once(signal),
    }
}

/// Ends the daemon in order.
async fn drain(daemon: Arc<Daemon>, signals: &mut Signals) -> Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("end".into())
        .spawn(move || {
            let faults = daemon.stop();
            if !faults.is_empty() {
                // What is in flight is left to the end of the process: to take it down piece by piece could fail it, or wait for it.
                std::mem::forget(daemon);
            }
            // He may have given up waiting.
            let _ = tell.send(faults);
        })
        .context("thread to end on")?;
    let faults = tokio::select! {
        ended = tokio::time::timeout(END_LIMIT, told) => match ended {
            Ok(faults) => faults.context("draining")?,
            Err(_) => vec![format!("it takes longer than {} ms", END_LIMIT.as_millis())],
        },
        signal = signals.wish_to_end_at_once() => end_at_once(signal),
    };
    match faults.is_empty() {
        true => Ok(()),
        false => bail!("not ended in order: {}", faults.join("; ")),
    }
}

/// How often disks are looked after.
const LOOK: Duration = Duration::from_millis(500);

async fn look_after(daemon: &Arc<Daemon>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let daemon = daemon.clone();
        // It may wait for a disk to be written to.
        let _ = tokio::task::spawn_blocking(move || daemon.look_after()).await;
    }
}

/// A thread that panicked leaves rings behind that nobody serves, or locks that nobody can trust: better a process that is started again,
/// for its guests lose nothing by that. The dump is worth having, and has no guest's memory in it.
fn end_on_panic(log: &'static Log) {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Whoever reads it may stop in the middle.
        let limit = std::thread::Builder::new().name("abort".into()).spawn(|| {
            std::thread::sleep(PANIC_LIMIT);
            std::process::abort()
        });
        if limit.is_ok() && log::is_read() {
            tell(panic);
        }
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), %panic, "a thread panicked: the daemon ends");
        log.flush();
        std::process::abort();
    }));
}

/// Somebody does not want to wait for what is in flight.
fn end_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "signalled again while draining: ending at once");
    if let Some(log) = LOG.get() {
        log.flush();
    }
    std::process::exit(1)
}
