//! What the programs say: reports and results on standard output, remarks on standard error, JSON into a file.
//!
//! Whoever reads them may stop reading (`... | head`). `println!` panics then; what is here ends the program quietly instead, the
//! way other tools end by SIGPIPE, but only after everything that is open was closed in order.

use anyhow::Context as _;
use polypath_block::{Chain, hide_secret};
use serde::Serialize;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Exit status after a closed pipe: what a shell reports of a program that SIGPIPE (13) ended.
const CLOSED_PIPE: u8 = 128 + 13;

/// Whoever read standard output has gone. No fault, and nobody is left to be told: [`fail`] says nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("whoever read standard output has gone")]
pub struct OutputClosed;

/// Writes `text` to standard output, and flushes it.
///
/// # Errors
/// [`OutputClosed`] when nobody reads it any more; otherwise what the operating system says.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("writing to standard output"),
    }
}

/// Writes `text` and an end of line to standard output, and flushes it.
///
/// # Errors
/// Those of [`print()`].
pub fn line(text: impl Display) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}

/// Writes a line to standard error. That nobody reads it is no reason to stop.
pub fn remark(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Tells on standard error why `program` failed, and returns `status`; says nothing and returns 141 for [`OutputClosed`].
pub fn fail(program: &str, error: &anyhow::Error, status: u8) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::from(CLOSED_PIPE);
    }
    remark(format_args!("{program}: {}", Chain(error.as_ref())));
    ExitCode::from(status)
}

/// The arguments of the program, or its end with what is wrong with them.
pub fn arguments<A: clap::Parser>() -> A {
    A::try_parse().unwrap_or_else(|error| hide_secrets(error).exit())
}

/// The same error without the secrets of disks that are in what it shows: what is on a command line and wrong ends in logs.
pub fn hide_secrets(mut error: clap::Error) -> clap::Error {
    use clap::error::ContextValue;
    let texts = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, ContextValue::String(hide_secret(text)))),
        _ => None,
    });
    for (kind, value) in texts.collect::<Vec<_>>() {
        error.insert(kind, value);
    }
    error
}

/// Logs to standard error what `POLYPATH_LOG` asks for, or `default`: in colours only on a terminal, and never where `NO_COLOR`
/// is set.
pub fn log(default: &str) {
    let filter = EnvFilter::try_from_env("POLYPATH_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal() && !plain)
        .with_writer(io::stderr)
        // They would be told by `eprintln!`, which panics when the error is that nobody reads.
        .log_internal_errors(false)
        .init();
}

/// Fails if `path`, the value of `option`, cannot be written. What is in it stays.
///
/// # Errors
/// What the operating system says.
pub fn try_file(option: &str, path: &Path) -> anyhow::Result<()> {
    let what = || format!("{option} {}: cannot be written; expected a file in a folder that exists", path.display());
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map(|_| ())
        }
        Err(error) => Err(error),
    }
    .with_context(what)
}

/// Where a JSON report goes. Made before anything is measured, so that a file that cannot be written costs no measurement.
#[derive(Debug)]
pub struct JsonOutput(Place);

#[derive(Debug)]
enum Place {
    Nowhere,
    Stdout,
    /// A file that was there before stays as it is until there is something to replace it with.
    Existing(PathBuf, File),
    /// One that could be made.
    New(PathBuf),
}

impl JsonOutput {
    /// For `--json`: none, `-` for standard output, or a file. What is in the file stays until [`JsonOutput::emit`].
    ///
    /// # Errors
    /// When the file can be neither opened for writing nor made.
    pub fn open(path: Option<&Path>) -> anyhow::Result<JsonOutput> {
        let Some(path) = path else { return Ok(JsonOutput(Place::Nowhere)) };
        if path.as_os_str() == "-" {
            return Ok(JsonOutput(Place::Stdout));
        }
        let what =
            || format!("--json {}: cannot be written; expected a file in a folder that exists, or -", path.display());
        match OpenOptions::new().write(true).create_new(true).open(path) {
            // Nothing is left behind by a measurement that fails.
            Ok(_) => std::fs::remove_file(path).with_context(what)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).with_context(what)?;
                return Ok(JsonOutput(Place::Existing(path.to_owned(), file)));
            }
            Err(error) => return Err(error).with_context(what),
        }
        Ok(JsonOutput(Place::New(path.to_owned())))
    }

    /// One JSON object to where it is wanted; `text` to standard output unless the JSON goes there.
    ///
    /// # Errors
    /// Those of [`print()`], and what the operating system says of the file; the text is printed all the same.
    pub fn emit<T: Serialize>(self, report: &T, text: impl Display) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)? + "\n";
        let (path, written) = match self.0 {
            Place::Nowhere => return print(text),
            Place::Stdout => return print(json),
            Place::Existing(path, file) => (path, replace(file, &json)),
            Place::New(path) => {
                let written = std::fs::write(&path, &json);
                (path, written)
            }
        };
        let printed = print(text);
        written.with_context(|| format!("--json {}: writing the report", path.display()))?;
        printed
    }
}

/// Replaces what is in `file`, if it is one that keeps anything (no pipe, no terminal).
fn replace(mut file: File, text: &str) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_tried_and_stays_as_it_is_until_there_is_a_report() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        std::fs::write(&old, "the report of yesterday, longer than the one of today").unwrap();
        let (a, b) = (JsonOutput::open(Some(&new)).unwrap(), JsonOutput::open(Some(&old)).unwrap());
        assert!(!new.exists() && std::fs::read_to_string(&old).unwrap().starts_with("the report"));
        for (output, path) in [(a, new), (b, old)] {
            output.emit(&[1], "").unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), "[\n  1\n]\n");
        }
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("missing/report"), dir.path().to_owned()] {
            let error = format!("{:#}", JsonOutput::open(Some(&path)).unwrap_err());
            assert!(error.contains(&format!("--json {}", path.display())) && error.contains("expected"), "{error}");
        }
    }
}
