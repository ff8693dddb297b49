//! `polypath discover --devices`: connects to what sources list, and shows one device for each disk.

use anyhow::Result;
use polypath::block::Device;
use polypath::multipath::PathState;
use polypath::sources::{DeviceReport, Report, SourceUri, Sources, SourcesConfig};
use polypath::{Stack, StackConfig};
use polypath_bench::output;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long sources and paths are waited for unless told otherwise.
pub(super) const WAIT: Duration = Duration::from_secs(10);
/// How often groups are looked at while they verify their paths.
const LOOK: Duration = Duration::from_millis(5);

/// What is known once every source has answered and every path is known, or the time is up.
pub(super) fn gather(sources: Vec<SourceUri>, wait: Duration) -> Result<Arc<Report>> {
    look(sources, wait, Arc::clone)
}

/// Asks, connects, and hands over the report while the devices are there.
fn look<T>(sources: Vec<SourceUri>, wait: Duration, show: impl FnOnce(&Arc<Report>) -> T) -> Result<T> {
    let stack = Stack::start(StackConfig { buffer_bytes: 2 << 20, huge_pages: false, ..StackConfig::default() })?;
    let all = Sources::start(&stack, SourcesConfig::default())?;
    for source in sources {
        all.add(source)?;
    }
    let until = Instant::now() + wait;
    let mut report = all.wait(wait, Report::is_settled);
    while report.devices.iter().any(is_connecting) && Instant::now() < until {
        std::thread::sleep(LOOK);
        report = all.report();
    }
    let shown = show(&report);
    all.close();
    stack.stop(Duration::from_secs(2));
    Ok(shown)
}

fn is_connecting(device: &DeviceReport) -> bool {
    let paths = device.group().map(|group| group.statistics()).unwrap_or_default();
    paths.iter().any(|path| path.state == PathState::Connecting)
}

/// Runs it: prints a list or JSON; fails if a source did not answer.
pub(super) fn run(sources: Vec<SourceUri>, wait_s: u64, as_json: bool) -> Result<ExitCode> {
    let shown = look(sources, Duration::from_secs(wait_s), |report| describe(report))?;
    if as_json {
        output::line(serde_json::to_string_pretty(&shown)?)?;
    } else {
        for line in lines(&shown) {
            output::line(line)?;
        }
    }
    let failed = each(&shown, "sources").any(|source| !source["problem"].is_null());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn describe(report: &Report) -> Value {
    let devices: Vec<Value> = report.devices.iter().map(device).collect();
    let sources = report.sources.iter().map(|source| {
        let problem = match (&source.problem, source.answered) {
            (None, None) => Some("it has not answered in time".to_owned()),
            (problem, _) => problem.clone(),
        };
        json!({ "uri": source.uri, "type": source.kind.as_str(), "services": source.services, "paths": source.paths,
            "left_out": source.left_out, "problem": problem })
    });
    let unused = report.loose.iter().map(|path| json!({ "name": path.name, "why": path.why }));
    json!({ "devices": devices, "unused": unused.collect::<Vec<_>>(), "sources": sources.collect::<Vec<_>>() })
}

fn device(device: &DeviceReport) -> Value {
    let group = device.group();
    let statistics = group.as_ref().map(|group| group.statistics()).unwrap_or_default();
    let read_only = group.and_then(|group| group.state().info().map(|info| info.limits.read_only));
    let paths = device.paths.iter().map(|path| {
        let now = statistics.iter().find(|p| p.name == path.name);
        json!({
            "uri": path.uri.to_string(), "state": now.map(|p| p.state.to_string()),
            "access": now.and_then(|p| p.access).map(|access| format!("{access:?}").to_lowercase()), "why": now.map(|p| p.why.clone()),
        })
    });
    json!({
        "name": device.name, "proven": device.proven, "bytes": device.geometry.bytes(), "block_size": device.geometry.block_size,
        "blocks": device.geometry.blocks, "read_only": read_only, "conflict": device.conflict, "paths": paths.collect::<Vec<_>>(),
    })
}

fn each<'a>(shown: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    shown[key].as_array().into_iter().flatten()
}

fn lines(shown: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = Vec::new();
    for device in each(shown, "devices") {
        let (bytes, block) = (device["bytes"].as_u64().unwrap_or(0), &device["block_size"]);
        let proven = if each(device, "proven").next().is_none() { ", proves nothing: stays alone" } else { "" };
        lines.push(format!("{}  {}, blocks of {block}{proven}", text(&device["name"]), size(bytes)));
        if let Some(other) = device["conflict"].as_str() {
            lines.push(format!("  differs from {other}, with which it has an identifier in common"));
        }
        for path in each(device, "paths") {
            lines.push(format!("  {:<11} {:<13} {}", text(&path["state"]), text(&path["access"]), text(&path["uri"])));
        }
    }
    if lines.is_empty() {
        lines.push("no devices".into());
    }
    let unused = each(shown, "unused").map(|path| format!("not used: {}: {}", text(&path["name"]), text(&path["why"])));
    let problems = each(shown, "sources").filter(|source| !source["problem"].is_null());
    let problems = problems.map(|source| format!("source {}: {}", text(&source["uri"]), text(&source["problem"])));
    let left_out = each(shown, "sources").filter(|source| source["left_out"].as_u64().unwrap_or(0) > 0).map(|source| {
        format!(
            "source {}: {} of what it lists is left out, for there is too much",
            text(&source["uri"]),
            source["left_out"]
        )
    });
    lines.extend(unused.chain(problems).chain(left_out));
    lines
}

/// A size in the largest unit in which it is whole, or nearly.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_with_their_paths() {
        let text = |uris: &[&str]| -> Value {
            let sources = uris.iter().map(|uri| uri.parse().unwrap()).collect();
            look(sources, WAIT, |report| describe(report)).unwrap()
        };
        let shown = text(&["ram://1MiB", "null://1537KiB?bs=4096"]);
        let lines = lines(&shown).join("\n");
        assert!(lines.contains("1 MiB, blocks of 512") && lines.contains("usable"), "{lines}");
        assert!(lines.contains("proves nothing") || !lines.contains("null://1537KiB  "), "{lines}");
        assert_eq!(each(&shown, "devices").count(), 2);
        assert_eq!(size(1_574_912), "1.5 MiB");
    }
}
