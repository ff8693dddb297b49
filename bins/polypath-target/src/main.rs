//! `polypath-target`: an NVMe/TCP target in software, and the client of its control socket.
#![forbid(unsafe_code)]

use polypath_target::cli::{self, Request};
use polypath_target::{Target, TargetConfig};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match cli::parse(std::env::args()) {
        Ok(Request::Serve(config)) => serve(*config),
        Ok(Request::Control(socket, command)) => cli::run_control(&socket, &command),
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody reads it, the status still says it.
            let _ = writeln!(std::io::stderr(), "polypath-target: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: TargetConfig) -> Result<(), String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_writer(std::io::stderr)
        // They would be told by `eprintln!`, which panics when nobody reads: hosts are served all the same.
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        // Before anything is up, so that a signal is never missed.
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
        let target = Target::start(config).map_err(|e| e.to_string())?;
        let mut out = std::io::stdout();
        let lines: String = target.addresses().iter().map(|a| format!("listening on {a}\n")).collect();
        // Without a reader of our output we serve all the same.
        let _ = writeln!(out, "{lines}ready").and_then(|()| out.flush());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        target.stop();
        Ok(())
    })
}
