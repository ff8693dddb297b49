//! `polypath discover`: what subsystems there are at an address, as URIs to use.

use anyhow::{Context, Result};
use polypath::DiskUri;
use polypath::nvmf_tcp::{ControllerConfig, discover};
use polypath_bench::output;
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `polypath discover`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Discovery service: `nvme-tcp://HOST[:8009]`, or just `HOST[:PORT]`.
    address: String,
    /// Print a JSON array instead of a list.
    #[arg(long)]
    json: bool,
}

/// Asks, follows referrals, prints.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let config = ControllerConfig::from_uri(&uri(&args.address)?)?;
    let entries = discover(&config)?;
    let mut rows = Vec::new();
    for entry in &entries {
        let host = if entry.traddr.contains(':') { format!("[{}]", entry.traddr) } else { entry.traddr.clone() };
        let uri = format!("nvme-tcp://{host}:{}/{}", entry.trsvcid, entry.subnqn);
        let kind = format!("{:?}", entry.subsystem_type).to_lowercase();
        rows.push(json!({ "uri": uri, "type": kind, "transport": format!("{:?}", entry.transport).to_lowercase() }));
    }
    if args.json {
        output::line(serde_json::to_string_pretty(&rows)?)?;
    } else if rows.is_empty() {
        output::line(format_args!("nothing is listed at {}", args.address))?;
    } else {
        for row in &rows {
            let (kind, uri) = (row["type"].as_str().unwrap_or(""), row["uri"].as_str().unwrap_or(""));
            output::line(format_args!("{kind:<12} {uri}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The discovery controller at an address; its port is 8009 unless said otherwise.
fn uri(address: &str) -> Result<DiskUri> {
    const NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
    let rest = address.strip_prefix("nvme-tcp://").unwrap_or(address).trim_end_matches('/');
    let text = if rest.contains('/') { format!("nvme-tcp://{rest}") } else { format!("nvme-tcp://{rest}/{NQN}") };
    text.parse().with_context(|| format!("discovery service \"{address}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath::block::Endpoint;

    #[test]
    fn an_address_is_enough() {
        for (text, want) in [("10.0.0.1", 8009), ("nvme-tcp://10.0.0.1:4420", 4420), ("[::1]:4420", 4420)] {
            let Endpoint::NvmeTcp { port, subnqn, .. } = uri(text).unwrap().endpoint else { panic!("{text}") };
            assert_eq!((port, subnqn.contains("discovery")), (want, true), "{text}");
        }
        assert!(uri("::1").is_err());
    }
}
