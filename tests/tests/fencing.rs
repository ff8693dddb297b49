//! The ghost write: a target holds a write whose path is lost, and applies it late. Over NVMe/TCP and over iSCSI.
//!
//! Inside the bound it cannot make the disk return old data; with the fence switched off it can; beyond the bound it can too, and then it is
//! the target that is reported. A target that takes an iSCSI session anew has ended what the one before it held. Real sockets, real
//! time; no Linux needed.

use anyhow::{Context, Result, ensure};
use polypath::block::{Device, Proof};
use polypath::multipath::{EventKind, Events, Fencing};
use polypath::{Disk, GroupSpec, PathSpec, Stack, StackConfig, block_on, wait_live};
use polypath_bench::conformance::{Redriven, Verdict, judge};
use polypath_bench::verify::{Outcome, Verifier, VerifierConfig, VerifyError};
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::thread;
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.polypath:fencing";
const IQN: &str = "iqn.2026-01.org.polypath:fencing";
/// What a lost iSCSI session is given where its target does not take it anew.
const FENCE_MS: u64 = 1200;
/// How long a lost iSCSI session is given before the disk is reset through another one.
const PATIENCE_MS: u64 = 50;
/// After how long a command is aborted.
const IO_TIMEOUT_MS: u64 = 200;
/// Keep-alive timeout asked for; the target rounds to 100 ms, so the fence takes twice this and the quiesce time.
const KEEP_ALIVE_MS: u64 = 500;
const CQT_MS: u16 = 300;
const LIMIT: Duration = Duration::from_secs(30);

/// What is spoken, and how the path is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// NVMe/TCP; its listener closes.
    NvmeTcp,
    /// iSCSI; its portal closes.
    Iscsi,
    /// iSCSI; its connection is reset and its portal takes the next one.
    IscsiReset,
    /// iSCSI; the network eats whatever goes to its portal and comes from there. LOGICAL UNIT RESET through the other path is allowed.
    IscsiSilent,
    /// iSCSI; its connection lives, and the write is not answered.
    IscsiUnanswered,
}

struct Played {
    errors: Vec<VerifyError>,
    verdict: Verdict,
    proofs: Vec<Proof>,
    /// From the loss of the path to the acknowledgement of the write that was held.
    write_took: Duration,
    /// From the report that the write is suspect to its being sent again, where it was.
    proof_took: Option<Duration>,
    held_after_loss_ms: i64,
    log_names_proof: bool,
}

#[test]
fn a_late_write_inside_its_bound_cannot_bring_back_old_data() -> Result<()> {
    let played = play(Over::NvmeTcp, Fencing::On, 700, false)?;
    ensure!(played.errors.is_empty(), "old data came back although fenced: {:?}", played.errors);
    ensure!(played.verdict == Verdict::Clean);
    let bound = Duration::from_millis(2 * KEEP_ALIVE_MS + u64::from(CQT_MS));
    ensure!(played.write_took >= bound, "acknowledged after {:?}, before the bound {bound:?}", played.write_took);
    let named = |p: &Proof| matches!(p, Proof::KeepAliveBound { kato_ms: 500, multiple: 2, cqt_ms: 300 });
    ensure!(played.proofs.iter().any(named), "the proof is not named: {:?}", played.proofs);
    ensure!(played.log_names_proof, "the log does not name the proof");
    ensure!(played.held_after_loss_ms > 0, "the held write was applied before the path was lost: nothing was tested");
    Ok(())
}

#[test]
fn without_the_fence_the_same_late_write_brings_back_old_data() -> Result<()> {
    let played = play(Over::NvmeTcp, Fencing::Off, 700, false)?;
    ensure!(!played.errors.is_empty(), "no old data came back: the oracle is blind, or the fence is not off");
    ensure!(matches!(played.verdict, Verdict::Unfenced { .. }), "{}", played.verdict);
    Ok(())
}

#[test]
fn a_target_later_than_its_own_bound_is_detected_and_reported() -> Result<()> {
    let played = play(Over::NvmeTcp, Fencing::On, 3500, true)?;
    ensure!(!played.errors.is_empty(), "a write beyond every bound landed and the oracle did not see it");
    ensure!(matches!(played.verdict, Verdict::NonConforming { .. }), "{}", played.verdict);
    ensure!(played.verdict.to_string().contains("non-conforming"), "{}", played.verdict);
    Ok(())
}

#[test]
fn a_late_write_of_an_iscsi_session_inside_its_bound_cannot_bring_back_old_data() -> Result<()> {
    let played = play(Over::Iscsi, Fencing::On, 700, false)?;
    ensure!(played.errors.is_empty(), "old data came back although fenced: {:?}", played.errors);
    let bound = Duration::from_millis(FENCE_MS);
    ensure!(played.write_took >= bound, "acknowledged after {:?}, before the bound {bound:?}", played.write_took);
    let named = |p: &Proof| matches!(p, Proof::ConfiguredBound { bound_ms } if u64::from(*bound_ms) == FENCE_MS);
    ensure!(played.proofs.iter().any(named), "the proof is not named: {:?}", played.proofs);
    ensure!(played.log_names_proof, "the log does not name the proof");
    ensure!(played.held_after_loss_ms > 0, "the held write was applied before the path was lost: nothing was tested");
    Ok(())
}

#[test]
fn without_the_fence_the_late_write_of_an_iscsi_session_brings_back_old_data() -> Result<()> {
    let played = play(Over::Iscsi, Fencing::Off, 700, false)?;
    ensure!(!played.errors.is_empty(), "no old data came back: the oracle is blind, or the fence is not off");
    ensure!(matches!(played.verdict, Verdict::Unfenced { .. }), "{}", played.verdict);
    Ok(())
}

/// The target answers: nobody waits for a bound, and what was held is never applied.
#[test]
fn a_session_that_is_taken_anew_ends_the_write_that_the_one_before_it_held() -> Result<()> {
    let played = play(Over::IscsiReset, Fencing::On, 700, false)?;
    ensure!(played.errors.is_empty(), "old data came back although the session was taken anew: {:?}", played.errors);
    ensure!(played.proofs.contains(&Proof::Reinstated), "the proof is not named: {:?}", played.proofs);
    ensure!(played.log_names_proof, "the log does not name the proof");
    let bound = Duration::from_millis(FENCE_MS);
    ensure!(played.write_took < bound, "acknowledged after {:?}: that is the bound, not an answer", played.write_took);
    // Nothing, or carried out before the login was answered.
    let (held, again) = (played.held_after_loss_ms, played.write_took.as_millis() as i64);
    ensure!(
        held <= again,
        "applied {held} ms after the loss, when the write had been acknowledged for {} ms",
        held - again
    );
    println!("taken anew, and the write sent again and acknowledged, {:?} after the loss", played.write_took);
    Ok(())
}

/// Nothing can be heard where the write went, and no login is answered there: the disk itself is asked, through the other path.
#[test]
fn a_reset_through_the_other_path_ends_the_write_that_a_silent_one_holds() -> Result<()> {
    let played = play(Over::IscsiSilent, Fencing::On, 60_000, false)?;
    ensure!(played.errors.is_empty(), "old data came back although the disk was reset: {:?}", played.errors);
    ensure!(played.proofs.contains(&Proof::UnitReset), "the proof is not named: {:?}", played.proofs);
    ensure!(played.log_names_proof, "the log does not name the proof");
    let took = played.proof_took.context("the write was suspect")?;
    ensure!(took < Duration::from_millis(FENCE_MS / 2), "quiet after {took:?}: that is no answer");
    ensure!(played.held_after_loss_ms > 0, "the held write was applied before the path was lost: nothing was tested");
    Ok(())
}

/// What each proof takes where the target answers, and where it does not. For `docs/PERFORMANCE.md`.
#[test]
fn what_each_proof_takes() -> Result<()> {
    let mut rows = Vec::new();
    for (over, proof, apply_after_ms) in [
        (Over::IscsiUnanswered, Proof::Aborted, 60_000),
        (Over::IscsiReset, Proof::Reinstated, 700),
        (Over::IscsiSilent, Proof::UnitReset, 60_000),
        (Over::Iscsi, Proof::ConfiguredBound { bound_ms: FENCE_MS as u32 }, 700),
    ] {
        let played = play(over, Fencing::On, apply_after_ms, false)?;
        ensure!(played.errors.is_empty() && played.proofs.contains(&proof), "{proof}: {:?}", played.proofs);
        let suspect = played.proof_took.map_or("-".into(), |took| format!("{:.0} ms", took.as_secs_f64() * 1e3));
        let ms = played.write_took.as_secs_f64() * 1e3;
        rows.push(format!("| `{proof}` | {suspect} | {ms:.1} ms |"));
    }
    println!(
        "| proof | from suspect to quiet | from the fault to the acknowledgement |\n|---|---|---|\n{}",
        rows.join("\n")
    );
    Ok(())
}

/// One write is held by the path it went to, that path is lost, the write is sent again on the other, a newer write follows, the
/// held one lands `apply_after_ms` after it was taken; then the block is read.
fn play(over: Over, fencing: Fencing, apply_after_ms: u64, beyond: bool) -> Result<Played> {
    let log = capture::start();
    let target = start_target(over)?;
    let stack = Stack::start(StackConfig::default())?;
    let mut spec = GroupSpec { fencing, ..GroupSpec::new("fencing", []) };
    for (i, address) in target.addresses().iter().enumerate() {
        let uri = match over {
            Over::NvmeTcp => format!("nvme-tcp://{address}/{NQN}?ns=1&keep_alive_ms={KEEP_ALIVE_MS}"),
            Over::Iscsi | Over::IscsiReset => {
                format!("iscsi://{address}/{IQN}/0?fence_ms={FENCE_MS}&reconnect_delay_ms=20")
            }
            Over::IscsiSilent => format!(
                "iscsi://{address}/{IQN}/0?fence_ms={FENCE_MS}&silence_timeout_ms=200&unit_reset_fence_ms={PATIENCE_MS}"
            ),
            Over::IscsiUnanswered => format!("iscsi://{address}/{IQN}/0?io_timeout_ms={IO_TIMEOUT_MS}"),
        };
        spec.paths.push(PathSpec { name: Some(format!("path{i}")), ..PathSpec::new(uri.parse()?) });
    }
    let group = stack.open_group(spec)?;
    let events = group.events();
    let info = wait_live(&*group, LIMIT)?;
    let start = Instant::now();
    while group.statistics().iter().filter(|p| p.access.is_some_and(|a| a.usable())).count() < 2 {
        ensure!(start.elapsed() < LIMIT, "both paths must come up: {:?}", group.statistics());
        thread::yield_now();
    }
    let disk = Disk::builder().device(group.clone()).stack(&stack).open_blocking()?;
    let block_size = info.geometry.block_size;
    let config = VerifierConfig { initially_zero: true, ..VerifierConfig::new(64, block_size) };
    let mut verifier = Verifier::open(config).context("verifier")?;
    write(&disk, &mut verifier, 7)?;
    read(&disk, &mut verifier, 7)?.map_err(|e| anyhow::anyhow!("wrong before anything happened: {e:?}"))?;

    // Path 0 is the only optimized one, so the next write goes there, and is held there.
    let hold = match over {
        Over::IscsiUnanswered => {
            Command { op: Some("write".into()), count: Some(1), ..Command::new("lose").listener(0) }
        }
        _ => Command {
            apply_after_ms: Some(apply_after_ms),
            beyond: Some(beyond),
            ..Command::new("hold_write").listener(0)
        },
    };
    target.control(&hold).map_err(anyhow::Error::msg)?;
    let mut data = vec![0; block_size as usize];
    let ticket = verifier.begin_write(7, 1, &mut data).context("a slot for a write")?;
    let mut buffer = disk.buffer(block_size)?;
    buffer.write_at(0, &data)?;
    let writer = disk.clone();
    let held = thread::spawn(move || block_on(writer.write(7 * u64::from(block_size), buffer)).0);
    if over != Over::IscsiUnanswered {
        wait_for("the write to be held", || !target.held_writes().is_empty())?;
    }
    if over == Over::IscsiSilent {
        // The answer says that the target has taken the write.
        read(&disk, &mut verifier, 9)?.map_err(|e| anyhow::anyhow!("wrong before anything happened: {e:?}"))?;
    }
    let lost = Instant::now();
    let lost_unix_us = unix_us();
    match over {
        Over::NvmeTcp | Over::Iscsi => target.close_listener(0),
        Over::IscsiReset => target.reset(0),
        Over::IscsiSilent => target.drop_silently(0),
        Over::IscsiUnanswered => Ok(()),
    }
    .map_err(anyhow::Error::msg)?;
    held.join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))?
        .context("the held write must succeed elsewhere")?;
    let write_took = lost.elapsed();
    verifier.end_write(ticket, Outcome::Acknowledged);

    write(&disk, &mut verifier, 7)?;
    let mut errors = read(&disk, &mut verifier, 7)?.err().unwrap_or_default();
    if over == Over::IscsiReset {
        // It must not be; it would have been by now.
        thread::sleep(Duration::from_millis(apply_after_ms + 100).saturating_sub(lost.elapsed()));
    } else if over != Over::IscsiUnanswered {
        wait_for("the held write to be applied", || {
            target.held_writes().first().is_some_and(|h| h.applied_unix_us.is_some())
        })?;
    }
    errors.extend(read(&disk, &mut verifier, 7)?.err().unwrap_or_default());

    let held = target.held_writes().first().and_then(|held| held.applied_unix_us);
    let applied = held.map_or(0, |at| at as i64 - lost_unix_us as i64);
    let (redriven, proof_took) = redriven(&events);
    let verdict = judge(&errors, &redriven);
    println!("{verdict}");
    block_on(disk.close());
    group.close();
    drop(disk);
    drop(stack);
    target.stop();
    Ok(Played {
        errors,
        verdict,
        proofs: redriven.iter().map(|r| r.proof).collect(),
        write_took,
        proof_took,
        held_after_loss_ms: applied / 1000,
        log_names_proof: log.contains(match over {
            Over::NvmeTcp => "keep-alive-bound",
            Over::Iscsi => "configured-bound(1200ms)",
            Over::IscsiReset => "session-reinstated",
            Over::IscsiSilent => "logical-unit-reset",
            Over::IscsiUnanswered => "aborted-by-controller",
        }),
    })
}

fn start_target(over: Over) -> Result<TargetHandle> {
    let mut config = TargetConfig { kas_ms: 100, cqt_ms: CQT_MS, ..TargetConfig::default() };
    for ana in [polypath_target::AnaState::Optimized, polypath_target::AnaState::NonOptimized] {
        let listener = match over {
            Over::NvmeTcp => ListenerConfig::new("127.0.0.1:0"),
            _ => ListenerConfig::iscsi("127.0.0.1:0"),
        };
        config.listeners.push(ListenerConfig { ana, ..listener });
    }
    let namespaces = vec![NamespaceConfig::new("ram://16MiB?bs=4096")];
    config.subsystems.push(SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new(NQN, namespaces) });
    Target::start(config).context("target")
}

fn write(disk: &Disk, verifier: &mut Verifier, lba: u64) -> Result<()> {
    let block_size = disk.geometry().block_size;
    let mut data = vec![0; block_size as usize];
    let ticket = verifier.begin_write(lba, 1, &mut data).context("a slot for a write")?;
    let mut buffer = disk.buffer(block_size)?;
    buffer.write_at(0, &data)?;
    block_on(disk.write(lba * u64::from(block_size), buffer)).0?;
    verifier.end_write(ticket, Outcome::Acknowledged);
    Ok(())
}

fn read(disk: &Disk, verifier: &mut Verifier, lba: u64) -> Result<Result<(), Vec<VerifyError>>> {
    let block_size = disk.geometry().block_size;
    let ticket = verifier.begin_read(lba, 1).context("a slot for a read")?;
    let (result, buffer) = block_on(disk.read(lba * u64::from(block_size), disk.buffer(block_size)?));
    result?;
    Ok(verifier.end_read(ticket, &buffer.to_vec()))
}

/// What was sent again, once the incident has been summed up (that takes a moment of quiet).
/// And how long the first change among it was suspect.
fn redriven(events: &Events) -> (Vec<Redriven>, Option<Duration>) {
    let (mut out, start) = (Vec::<Redriven>::new(), Instant::now());
    let (mut suspect, mut took) = (None, None);
    while start.elapsed() < LIMIT && !out.iter().any(|r| r.changes > 0) {
        let Some(event) = events.next_within(Duration::from_millis(50)) else { continue };
        if matches!(event.kind, EventKind::PathSuspect { .. }) {
            suspect.get_or_insert(event.at);
        }
        if let (EventKind::Redriven { changes, proof, .. }, Some((_, path))) = (event.kind, event.path) {
            took = took.or(suspect.filter(|_| changes > 0).map(|from| event.at.since(from)));
            out.push(Redriven { path: path.to_string(), changes, proof });
        }
    }
    (out, took)
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn unix_us() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_micros() as u64)
}

/// What the library logs, as an operator would see it.
mod capture {
    use std::io::Write;
    use std::sync::{Arc, Mutex, OnceLock};

    #[derive(Clone, Default)]
    pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub(super) fn contains(&self, text: &str) -> bool {
            String::from_utf8_lossy(&self.0.lock().unwrap_or_else(|p| p.into_inner())).contains(text)
        }
    }

    impl Write for Log {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(|p| p.into_inner()).extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// One log for the process: the tests of this file only look for what must be there.
    pub(super) fn start() -> Log {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Log::default();
            let writer = log.clone();
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
            log
        })
        .clone()
    }
}
