//! `polypath nbd URI...`: one disk for whoever speaks NBD, until a signal ends it.

use anyhow::{Context, Result, bail};
use polypath::multipath::SelectorKind;
use polypath::{Disk, DiskUri, GroupSpec, Stack, StackConfig};
use polypath_bench::output;
use polypath_nbd::{Address, ExportConfig, Limits, Server, SocketAccess};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long requests may take that are in flight when it ends, and then the last flush.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long reactors may take to let go.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `polypath nbd`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The disk; several URIs are paths to one disk.
    #[arg(required = true, value_name = "URI")]
    uris: Vec<DiskUri>,
    #[command(flatten)]
    place: Place,
    /// Name of the export. Clients that name none get it, whatever it is called.
    #[arg(long, default_value = "")]
    name: String,
    /// Take no changes.
    #[arg(long)]
    read_only: bool,
    /// Rule for choosing a path.
    #[arg(long)]
    selector: Option<SelectorKind>,
}

/// Where clients come.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Place {
    /// UNIX socket to listen on, for this user alone.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// TCP address to listen on. NBD has no passwords: whoever reaches it reaches the disk.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

/// Serves until SIGINT or SIGTERM; another one ends the program at once.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("threads to serve on")?;
    let served = runtime.block_on(serve(args));
    runtime.shutdown_timeout(STOP_LIMIT);
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: &Args) -> Result<()> {
    let mut signals = Signals::new()?;
    let stack = Stack::start(StackConfig::default())?;
    let builder = match (&args.uris[..], args.selector) {
        ([uri], None) => Disk::builder().uris(uri.clone()),
        (uris, selector) => Disk::builder()
            .group(GroupSpec { selector: selector.unwrap_or_default(), ..GroupSpec::new("", uris.iter().cloned()) }),
    };
    let disk = tokio::select! {
        disk = builder.stack(&stack).open() => disk?,
        name = signals.next() => bail!("ended by {name} before the disk had answered"),
    };
    let server = match (&args.place.socket, args.place.listen) {
        (Some(path), _) => Server::unix(path, SocketAccess::default(), Limits::default())?,
        (None, Some(address)) => {
            if !address.ip().is_loopback() {
                output::remark(format_args!(
                    "{address}: NBD has no passwords; whoever reaches this address reaches the disk"
                ));
            }
            Server::tcp(address, Limits::default())?
        }
        (None, None) => bail!("nowhere to listen; expected --socket or --listen"),
    };
    server.add(ExportConfig { read_only: args.read_only, ..ExportConfig::new(&args.name, disk.clone()) })?;
    output::line(format_args!("{}: {} bytes, {}", disk.name(), disk.size(), uri(server.address(), &args.name)))?;
    signals.next().await;
    let ended = tokio::select! {
        ended = end(&server, &disk) => ended,
        name = signals.next() => bail!("ended at once by another {name}, with requests in flight"),
    };
    drop((server, disk));
    match stack.stop(STOP_LIMIT) {
        true => ended,
        false => ended.and_then(|()| bail!("reactors still have work in flight after {STOP_LIMIT:?}")),
    }
}

/// Clients go when they are answered, then the disk.
async fn end(server: &Server, disk: &Disk) -> Result<()> {
    if !server.stop().wait(DRAIN_LIMIT).await {
        bail!("requests were still in flight after {DRAIN_LIMIT:?}");
    }
    let flushed = tokio::time::timeout(DRAIN_LIMIT, disk.flush()).await;
    disk.close().await;
    match flushed {
        Ok(flushed) => flushed.context("the last flush"),
        Err(_) => bail!("the last flush takes longer than {DRAIN_LIMIT:?}"),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
        Ok(Signals { interrupt, terminate })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// What clients are given (`doc/uri.md` of the NBD project).
fn uri(address: &Address, name: &str) -> String {
    match address {
        Address::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd+unix:///{}?socket={}", escaped(name), escaped(&path.to_string_lossy()))
        }
        Address::Tcp(address) => format!("nbd://{address}/{}", escaped(name)),
    }
}

/// Whatever means something in a URI, and whatever is not plain, by number.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02x}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn there_is_one_place_and_at_least_one_path() {
        let parse = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.args);
        let good = parse("nbd ram://1MiB ram://2MiB --socket s --name x --read-only --selector hash").unwrap();
        assert_eq!((good.uris.len(), good.name.as_str(), good.read_only), (2, "x", true));
        assert!(parse("nbd --listen 127.0.0.1:0 ram://1MiB").unwrap().place.listen.is_some());
        for (line, word) in [
            ("nbd ram://1MiB", "--socket"),
            ("nbd --socket s", "URI"),
            ("nbd ram://1MiB --socket s --listen 127.0.0.1:0", "cannot be used"),
            ("nbd ram://1MiB --listen localhost", "--listen"),
            ("nbd rum://1MiB --socket s", "scheme"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn clients_are_given_a_uri() {
        let unix = Address::Unix("/run/a b.sock".into());
        assert_eq!(uri(&unix, ""), "nbd+unix:///?socket=/run/a%20b.sock");
        assert_eq!(uri(&unix, "größe?"), "nbd+unix:///gr%c3%b6%c3%9fe%3f?socket=/run/a%20b.sock");
        assert_eq!(uri(&Address::Tcp(([127, 0, 0, 1], 10809).into()), "vm"), "nbd://127.0.0.1:10809/vm");
        assert_eq!(uri(&Address::Tcp("[::1]:1".parse().unwrap()), "vm"), "nbd://[::1]:1/vm");
    }

    /// What is on a command line ends in logs when it is wrong.
    #[test]
    fn what_is_wrong_with_a_disk_is_told_without_its_secret() {
        for wrong in [
            "iscsi://joe%word-of-joe-1@10.0.0.1/iqn.2026-01.org.example:a",
            "iscsi://joe%word-of/joe-1@10.0.0.1/iqn.2026-01.org.example:a/0",
            "--uri=iscsi://joe%word-of-joe-1@10.0.0.1/iqn.2026-01.org.example:a/0",
        ] {
            let error = Line::try_parse_from(["nbd", wrong, "--socket", "s"]).unwrap_err();
            let error = output::hide_secrets(error).to_string();
            assert!(!error.contains("word-of"), "{error}");
            assert!(wrong.starts_with("--") || error.contains("iscsi://joe%***@"), "{error}");
        }
    }
}
