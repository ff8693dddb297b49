//! What a turn gives: figures from what the guest says.

use super::Initiator;
use crate::experiment::load::mb_s;
use anyhow::Context as _;
use serde_json::Value;

/// Of one turn, or the mean of several.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Figures {
    pub(super) iops: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p99_9_us: f64,
    /// Part of its time that the guest's processor was busy, for whomever.
    pub(super) busy: f64,
    /// Requests that failed or never came back.
    pub(super) failed: u64,
}

impl Figures {
    /// From what `measured` of `lab/iscsi-initiator.sh` prints: the processor's times before and after, and a report.
    pub(super) fn parse(said: &str, initiator: Initiator) -> anyhow::Result<Figures> {
        let mut lines = said.lines();
        let mut times = || Times::parse(lines.next().unwrap_or_default());
        let (before, after) = (times()?, times()?);
        // fio may have remarks before its report.
        let report = said.find('{').map_or("", |at| &said[at..]);
        let report: Value = serde_json::from_str(report).with_context(|| format!("there is no report in {said:?}"))?;
        let figures = match initiator {
            Initiator::Kernel => of_fio(&report),
            Initiator::Ours => of_ours(&report),
        };
        Ok(Figures { busy: before.busy_until(after)?, ..figures? })
    }

    /// The mean of each; nought of nothing.
    pub(super) fn mean<'a>(all: impl Iterator<Item = &'a Figures> + Clone) -> Figures {
        let count = all.clone().count().max(1) as f64;
        let mean = |of: fn(&Figures) -> f64| all.clone().map(of).sum::<f64>() / count;
        Figures {
            iops: mean(|f| f.iops),
            p50_us: mean(|f| f.p50_us),
            p99_us: mean(|f| f.p99_us),
            p99_9_us: mean(|f| f.p99_9_us),
            busy: mean(|f| f.busy),
            failed: all.map(|f| f.failed).sum(),
        }
    }

    pub(super) fn mb_s(&self) -> f64 {
        mb_s(self.iops, 1.0)
    }

    /// Time of the guest's processor for each request, in microseconds.
    pub(super) fn cpu_us(&self) -> f64 {
        if self.iops > 0.0 { self.busy * 1e6 / self.iops } else { 0.0 }
    }

    /// A row of a table.
    pub(super) fn cells(&self) -> Vec<String> {
        vec![
            format!("{:.2}", self.mb_s()),
            format!("{:.0}", self.iops),
            format!("{:.0}", self.p50_us),
            format!("{:.0}", self.p99_us),
            format!("{:.0}", self.p99_9_us),
            format!("{:.1}", self.busy * 100.0),
            format!("{:.1}", self.cpu_us()),
        ]
    }

    /// The same of one against another.
    pub(super) fn against(&self, other: &Figures) -> Vec<String> {
        let each = |f: &Figures| [f.mb_s(), f.iops, f.p50_us, f.p99_us, f.p99_9_us, f.busy, f.cpu_us()];
        each(self).iter().zip(each(other)).map(|(mine, others)| format!("{:.2}", mine / others)).collect()
    }
}

/// The first line of `/proc/stat` (proc_stat(5)), in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Times {
    all: u64,
    idle: u64,
}

impl Times {
    /// Fields past the eighth are guests' time, which the first ones hold already.
    const FIELDS: usize = 8;
    /// `idle` and `iowait`.
    const IDLE: std::ops::Range<usize> = 3..5;

    fn parse(line: &str) -> anyhow::Result<Times> {
        let fields =
            line.strip_prefix("cpu ").with_context(|| format!("{line:?} is not the first line of /proc/stat"))?;
        let fields: Result<Vec<u64>, _> = fields.split_whitespace().take(Self::FIELDS).map(str::parse).collect();
        let fields = fields.with_context(|| format!("/proc/stat says {line:?}"))?;
        let idle = fields.get(Self::IDLE).with_context(|| format!("/proc/stat says no more than {line:?}"))?;
        Ok(Times { all: fields.iter().sum(), idle: idle.iter().sum() })
    }

    /// Part of the time from here to `after` that was not idle.
    fn busy_until(self, after: Times) -> anyhow::Result<f64> {
        anyhow::ensure!(after.all > self.all, "the guest's processor times did not go on: {self:?}, {after:?}");
        // Idle time may step back by a tick where it is put right afterwards (proc_stat(5)).
        let (all, idle) = (after.all - self.all, after.idle.saturating_sub(self.idle));
        Ok(all.saturating_sub(idle) as f64 / all as f64)
    }
}

/// The report of fio with one job and `--lat_percentiles=1`, which counts from submission to completion.
fn of_fio(report: &Value) -> anyhow::Result<Figures> {
    let job = &report["jobs"][0];
    let read = &job["read"];
    let percentile = |name: &str| number(&read["lat_ns"]["percentile"][name], name).map(|ns| ns / 1000.0);
    Ok(Figures {
        iops: number(&read["iops"], "read.iops")?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p99_9_us: percentile("99.900000")?,
        busy: 0.0,
        // An error number; without `--continue_on_error` fio ends with its first one.
        failed: u64::from(number(&job["error"], "error")? != 0.0),
    })
}

/// The report of `polypath-bench run`.
fn of_ours(report: &Value) -> anyhow::Result<Figures> {
    let latency = |name: &str| number(&report["lat_us"][name], name);
    // One that did not join would leave fewer paths than the kernel has.
    for path in report["paths"].as_array().into_iter().flatten() {
        anyhow::ensure!(
            number(&path["ios"], "ios")? > 0.0,
            "nothing was read over {}, {}",
            path["name"],
            path["state"]
        );
    }
    let failed = number(&report["errors"], "errors")? + number(&report["unanswered"], "unanswered")?;
    Ok(Figures {
        iops: number(&report["iops"], "iops")?,
        p50_us: latency("p50")?,
        p99_us: latency("p99")?,
        p99_9_us: latency("p99_9")?,
        busy: 0.0,
        failed: failed as u64,
    })
}

fn number(value: &Value, name: &str) -> anyhow::Result<f64> {
    value.as_f64().with_context(|| format!("the report has no number {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::LatencyUs;
    use serde_json::json;

    const BEFORE: &str = "cpu  100 0 50 1000 10 5 5 0 0 0";
    const AFTER: &str = "cpu  150 0 90 1050 20 10 15 0 7 0";

    /// As fio 3.33 prints it, without what is not read here.
    const FIO: &str = r#"{
  "fio version" : "fio-3.33",
  "jobs" : [ {
    "jobname" : "kernel", "error" : 0,
    "read" : {
      "io_bytes" : 40960000, "iops" : 2440.5, "runtime" : 4098,
      "lat_ns" : { "min" : 1000, "max" : 90000, "mean" : 26000.5, "N" : 10000,
        "percentile" : { "50.000000" : 26345472, "99.000000" : 31588352, "99.900000" : 43778048 } }
    }
  } ]
}"#;

    #[test]
    fn what_fio_says_is_read() {
        let figures =
            Figures::parse(&format!("{BEFORE}\n{AFTER}\nnote: both are set\n{FIO}\n"), Initiator::Kernel).unwrap();
        let want = Figures {
            iops: 2440.5,
            p50_us: 26345.472,
            p99_us: 31588.352,
            p99_9_us: 43778.048,
            // 105 of 165 ticks.
            busy: 105.0 / 165.0,
            failed: 0,
        };
        assert_eq!(figures, want);
        assert!((figures.cpu_us() - 260.75).abs() < 0.01 && (figures.mb_s() - 9.996).abs() < 0.001, "{figures:?}");
        let failed = Figures::parse(
            &format!("{BEFORE}\n{AFTER}\n{}", FIO.replace("\"error\" : 0", "\"error\" : 5")),
            Initiator::Kernel,
        );
        assert_eq!(failed.unwrap().failed, 1);
    }

    #[test]
    fn what_we_say_is_read() {
        let latency = LatencyUs { p50: 1.0, p99: 2.0, p99_9: 3.0, ..LatencyUs::default() };
        let report = json!({"mode": "run", "iops": 1000.0, "lat_us": latency, "errors": 1, "unanswered": 2,
            "paths": [{"name": "a", "state": "live", "ios": 7}]});
        let figures = Figures::parse(&format!("{BEFORE}\n{AFTER}\n{report}"), Initiator::Ours).unwrap();
        assert_eq!((figures.iops, figures.p50_us, figures.p99_us, figures.p99_9_us), (1000.0, 1.0, 2.0, 3.0));
        assert_eq!(figures.failed, 3);
        let report = report.to_string().replace("\"ios\":7", "\"ios\":0");
        let error = Figures::parse(&format!("{BEFORE}\n{AFTER}\n{report}"), Initiator::Ours).unwrap_err();
        assert!(error.to_string().contains("nothing was read over \"a\""), "{error:#}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases = [
            ("", "is not the first line"),
            ("cpu0 1 2 3 4 5", "is not the first line"),
            ("cpu  1 2 three 4 5", "invalid digit"),
            ("cpu  1 2 3", "no more than"),
        ];
        for (line, why) in cases {
            let error = Times::parse(line).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{line}: {error:#}");
        }
        for (said, why) in [
            (format!("{AFTER}\n{BEFORE}\n{FIO}"), "did not go on"),
            (format!("{BEFORE}\n{AFTER}\nKilled"), "no report"),
            (format!("{BEFORE}\n{AFTER}\n{{\"jobs\": []}}"), "no number read.iops"),
        ] {
            let error = Figures::parse(&said, Initiator::Kernel).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{said}: {error:#}");
        }
    }
}
