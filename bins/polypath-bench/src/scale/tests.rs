//! What is computed from what was measured, and the chart.

use super::chart::kept;
use super::memory::Memory;
use super::report::{Busy, BusyTurn, GrowthCase, ReactorCase, ReactorTurn, ScaleReport};
use super::*;

fn config() -> ScaleConfig {
    ScaleConfig {
        parts: vec![Part::Disks],
        media: vec![ScaleMedium::Null],
        disks: vec![1],
        paths: vec![1],
        memory_disks: 1,
        depths: vec![1],
        turns: 1,
        time: Duration::from_millis(100),
        ramp: Duration::ZERO,
        cpus: None,
    }
}

fn turn(base: f64, grown: f64) -> BusyTurn {
    BusyTurn {
        base_iops: base / 2.0,
        iops: grown / 2.0,
        base_iops_quiet: base,
        iops_quiet: grown,
        base_p50_us: 1.0,
        p50_us: 2.0,
    }
}

fn case(medium: ScaleMedium, disks: u32, paths: u16, anon_kib: u64, kept: f64) -> GrowthCase {
    let arrangement = Arrangement { disks, paths, rings: 2 };
    GrowthCase {
        medium,
        arrangement,
        base: Arrangement { disks: 1, ..arrangement },
        live_ms: 1.0,
        served_ms: 2.0,
        connected_ms: 3.0,
        end_ms: 4.0,
        empty: Memory::default(),
        memory: Memory { anon_kib, page_tables_kib: u64::from(disks), ..Memory::default() },
        memory_after: Memory::default(),
        idle_cpu_pct: 0.5,
        pollers: 6,
        resting: 5,
        busy: vec![Busy::new(1, vec![turn(100.0, 100.0 * kept)], 0)],
    }
}

#[test]
fn memory_is_read_as_the_kernel_tells_it() {
    let status = "Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t  800 kB\nVmRSS:\t     700 kB\nRssAnon:\t 300 kB\nRssFile:\t 390 kB\n\
                  RssShmem:\t  10 kB\nVmPTE:\t  40 kB\nThreads:\t12\n";
    let memory = Memory::parse(status, 7).unwrap();
    let said = [memory.anon_kib, memory.rss_kib, memory.shared_kib, memory.page_tables_kib, memory.peak_kib];
    assert_eq!((said, memory.threads, memory.descriptors), ([300, 700, 10, 40, 800], 12, 7));
    assert_eq!(Memory::parse(&status.replace("RssAnon", "RssElse"), 7), None);
    let more = Memory { anon_kib: 700, page_tables_kib: 60, ..memory };
    assert_eq!((more.each_kib(&memory, 100), memory.each_kib(&more, 4)), (4.2, -105.0));
    let now = Memory::now().unwrap();
    assert!(now.anon_kib > 0 && now.threads > 0 && now.descriptors > 2, "{now:?}");
}

#[test]
fn ratios_are_of_medians_and_of_turns() {
    let busy = Busy::new(32, vec![turn(100.0, 90.0), turn(200.0, 100.0), turn(110.0, 99.0)], 3);
    assert_eq!((busy.base_iops_quiet, busy.iops_quiet, busy.iops_quiet_ratio), (110.0, 99.0, 0.9));
    assert_eq!((busy.iops_ratio_paired, busy.base_iops, busy.p50_us, busy.errors), (0.9, 55.0, 2.0, 3));
    let one = |one: f64, two: f64| ReactorTurn {
        one_iops: one,
        two_iops: two,
        one_iops_quiet: 2.0 * one,
        two_iops_quiet: 4.0 * one,
        core_taken_pct: [0.0, 0.0],
    };
    let reactors = ReactorCase::new(ScaleMedium::Ram, 32, vec![one(10.0, 20.0), one(20.0, 30.0), one(30.0, 30.0)], 0);
    assert_eq!((reactors.iops_ratio_paired, reactors.iops_quiet_ratio, reactors.one_iops), (1.5, 2.0, 20.0));
}

#[test]
fn what_one_more_takes_is_between_the_least_and_the_most_over_tcp() {
    let mut report = ScaleReport::new([0, 1], &config());
    report.conclude();
    assert_eq!((report.memory.disk_among_most_kib, report.memory.controller_kib), (None, None));
    assert_eq!((report.goals.busy_reached, report.goals.reactors_reached), (None, None));
    report.disks = vec![
        case(ScaleMedium::Tcp, 101, 2, 5200, 0.95),
        case(ScaleMedium::Null, 1001, 2, 9, 0.9),
        case(ScaleMedium::Tcp, 1, 2, 200, 1.0),
        case(ScaleMedium::Tcp, 11, 2, 999, 1.1),
    ];
    report.paths = vec![case(ScaleMedium::Tcp, 1, 4, 200, 1.0)];
    report.conclude();
    assert_eq!((report.memory.disk_among_most_kib, report.memory.controller_kib), (Some(51.0), None));
    assert_eq!(report.goals.busy_reached, Some(true));
    report.disks.push(case(ScaleMedium::Ram, 10, 2, 9, 0.89));
    report.paths.push(case(ScaleMedium::Tcp, 1, 8, 1200, 0.1));
    report.conclude();
    assert_eq!((report.goals.busy_reached, report.memory.controller_kib), (Some(false), Some(250.0)));
    report.disks[0].busy[0].errors = 2;
    assert_eq!(report.errors(), 2);
}

#[test]
fn the_chart_has_a_line_for_each_medium_and_depth() {
    let mut report = ScaleReport::new([0, 1], &config());
    let empty = draw(&report).unwrap();
    assert!(empty.starts_with("<svg") && !empty.contains("QD"), "{empty}");
    report.disks = vec![case(ScaleMedium::Tcp, 1, 2, 2048, 1.0), case(ScaleMedium::Tcp, 1000, 2, 307_200, 0.95)];
    let lines = kept(&report.disks, |arrangement| f64::from(arrangement.disks));
    assert_eq!((lines.len(), lines[0].name.as_str()), (1, "tcp QD 1"));
    assert_eq!(lines[0].points, [(1.0, 1.0), (1000.0, 0.95)]);
    let svg = draw(&report).unwrap();
    for word in ["tcp QD 1", "A busy disk beside others", "A busy disk over many paths", "MiB", "</svg>"] {
        assert!(svg.contains(word), "{word}: {svg}");
    }
}

#[test]
fn what_cannot_be_measured_is_told_first() {
    let long = Duration::from_millis(1900);
    for (config, word) in [
        (ScaleConfig { parts: Vec::new(), ..config() }, "--part"),
        (ScaleConfig { media: Vec::new(), ..config() }, "--media"),
        (ScaleConfig { depths: Vec::new(), ..config() }, "--qd"),
        (ScaleConfig { disks: vec![1, 0], ..config() }, "--disks"),
        (ScaleConfig { paths: vec![0], ..config() }, "--paths"),
        (ScaleConfig { turns: 0, ..config() }, "--turns"),
        (ScaleConfig { time: Duration::ZERO, ..config() }, "--time"),
        (ScaleConfig { time: long, ramp: Duration::from_millis(200), ..config() }, "take more --turns"),
    ] {
        let error = run(&config, |line| panic!("{line}")).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
