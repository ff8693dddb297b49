//! `polypath discover`: what there is at an address, as URIs to use, and which devices it amounts to.

mod devices;

use anyhow::{Context, Result};
use polypath::DiskUri;
use polypath::block::{Endpoint, Scheme};
use polypath::iscsi::discover::discovery_config;
use polypath::nvmf_tcp::{ControllerConfig, discover};
use polypath::sources::{SourceKind, SourceUri};
use polypath_bench::output;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Arguments of `polypath discover`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Discovery services and portals: `nvme-tcp://HOST[:8009]` or just `HOST[:PORT]`, `iscsi://[USER[%SECRET]@]HOST[:3260]`. With --devices
    /// also subsystems, targets and disks.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Print JSON instead of a list.
    #[arg(long)]
    json: bool,
    /// Connect to everything that is listed, and print the devices with their paths: one for each disk that proves who it is.
    #[arg(long)]
    devices: bool,
    /// With --devices: how long to wait for sources and paths to answer, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", requires = "devices")]
    wait: u64,
}

/// Asks, follows referrals, prints.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let sources = args.sources.iter().map(|text| source(text)).collect::<Result<Vec<_>>>()?;
    if args.devices {
        return devices::run(sources, args.wait, args.json);
    }
    let mut rows = Vec::new();
    for source in &sources {
        match source.kind() {
            SourceKind::NvmeDiscovery => rows.extend(subsystems(source)?),
            SourceKind::IscsiPortal => rows.extend(targets(source)?),
            kind => {
                anyhow::bail!("{source} is no discovery service and no portal ({kind}); expected one, or --devices")
            }
        }
    }
    if args.json {
        output::line(serde_json::to_string_pretty(&rows)?)?;
    } else if rows.is_empty() {
        let asked = sources.iter().map(ToString::to_string).collect::<Vec<_>>();
        output::line(format_args!("nothing is listed at {}", asked.join(", ")))?;
    } else {
        for row in &rows {
            let (kind, uri) = (row["type"].as_str().unwrap_or(""), row["uri"].as_str().unwrap_or(""));
            let group = row["portal_group"].as_u64().map_or(String::new(), |tag| format!("  portal group {tag}"));
            output::line(format_args!("{kind:<12} {uri}{group}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A source; without a scheme it is a discovery service of NVMe/TCP.
fn source(text: &str) -> Result<SourceUri> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("nvme-tcp://{text}") };
    whole.parse().with_context(|| format!("source \"{}\"", polypath::block::hide_secret(text)))
}

/// The entries of a discovery log.
fn subsystems(source: &SourceUri) -> Result<Vec<Value>> {
    let config = ControllerConfig::from_uri(source.completed())?;
    let rows = discover(&config)?.into_iter().map(|entry| {
        let port = entry.trsvcid.trim().parse().unwrap_or(0);
        let endpoint = Endpoint::NvmeTcp { host: entry.traddr, port, subnqn: entry.subnqn.as_str().to_owned() };
        // A name cannot add options to it.
        let uri = DiskUri::from_parts(Scheme::NvmeTcp, endpoint, Vec::new());
        let kind = format!("{:?}", entry.subsystem_type).to_lowercase();
        json!({ "uri": uri.to_string(), "type": kind, "transport": format!("{:?}", entry.transport).to_lowercase() })
    });
    Ok(rows.collect())
}

/// The targets of a portal with their portals, and the disks behind them.
fn targets(source: &SourceUri) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for target in polypath::iscsi::discover::discover(&discovery_config(source.completed())?)? {
        for portal in target.portals {
            let (tag, bare) = (portal.group, polypath::iscsi::login::PortalAddress { group: None, ..portal });
            let uri = format!("iscsi://{bare}/{}", target.name);
            rows.push(json!({ "uri": uri, "type": "target", "transport": "tcp", "portal_group": tag }));
        }
    }
    let report = devices::gather(vec![source.clone()], devices::WAIT)?;
    let mut disks: Vec<String> =
        report.devices.iter().flat_map(|device| &device.paths).map(|path| path.uri.to_string()).collect();
    disks.sort();
    rows.extend(disks.into_iter().map(|uri| json!({ "uri": uri, "type": "disk", "transport": "tcp" })));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_enough() {
        for (text, want) in [("10.0.0.1", 8009), ("nvme-tcp://10.0.0.1:4420", 4420), ("[::1]:4420", 4420)] {
            let source = source(text).unwrap();
            let Endpoint::NvmeTcp { port, subnqn, .. } = &source.completed().endpoint else { panic!("{text}") };
            assert_eq!((*port, subnqn.contains("discovery")), (want, true), "{text}");
        }
        assert!(source("::1").is_err());
        let error = format!("{:#}", source("iscsi://joe%word-of-joe-1@h?x=1").unwrap_err());
        assert!(error.contains("option x") && !error.contains("word"), "{error}");
    }
}
