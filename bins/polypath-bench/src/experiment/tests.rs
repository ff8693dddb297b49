//! What can be said without a network.

use super::network::on_the_wire;
use super::outcome::{Grid, Line, Outcome, Panel, Picture};
use super::{Part, chart, write};
use crate::protocol::Protocol;

#[test]
fn a_limit_is_of_data_alone() {
    // 2,441.4 reads of 4,096 bytes a second; each has 24 or 48 bytes of header, and every 1,448 of these bytes 66 around them.
    assert_eq!(on_the_wire(10_000_000, 4096, 24), 10_517_064);
    assert_eq!(on_the_wire(10_000_000, 4096, 48), 10_578_329);
    assert_eq!(on_the_wire(0, 4096, 48), 0);
}

#[test]
fn tables_are_what_their_readers_expect() {
    let mut grid = Grid::new(&["case", "mb_s"]);
    grid.rows.push(vec!["one path, closed".into(), "9.9".into()]);
    assert_eq!(write::csv(&grid), "case,mb_s\n\"one path, closed\",9.9\n");
    assert_eq!(write::markdown(&grid), "| case | mb_s |\n| --- | --- |\n| one path, closed | 9.9 |\n");
}

#[test]
fn charts_name_what_they_show() {
    let bars = vec![("queue-length".to_owned(), 199.0), ("round-robin".to_owned(), 4.0)];
    let bars = Outcome::new(Part::C, Protocol::NvmeTcp, "Rules", Picture::Bars { unit: "MB/s", bars, limit: 202.0 });
    let lines = vec![Line { name: "one path".into(), points: vec![(0.5, 10.0), (1.0, 0.0)] }];
    let marks = vec![(0.7, "a path is cut".to_owned())];
    for logarithmic in [false, true] {
        let (lines, marks) = (lines.clone(), marks.clone());
        let picture = Picture::Lines { axes: ["seconds", "MB/s"], logarithmic, lines, marks };
        let svg = chart::draw(&Outcome::new(Part::B, Protocol::Iscsi, "Cut", picture)).unwrap();
        assert!(svg.contains("one path") && svg.contains("(b) Cut, iscsi") && svg.contains("seconds"), "{svg}");
        assert_eq!(svg.contains("a path is cut"), !logarithmic);
    }
    let svg = chart::draw(&bars).unwrap();
    let panel =
        |unit| Panel { unit, bars: vec![("kernel, no limit".to_owned(), 7.0), ("ours, no limit".to_owned(), 8.5)] };
    let panels = Picture::Panels(vec![panel("MB/s"), panel("p99, ms")]);
    let mut panels = Outcome::new(Part::D, Protocol::Iscsi, "Kernel", panels);
    panels.guest = "qemu";
    assert_eq!(panels.stem(), "d-iscsi-qemu");
    let drawn = chart::draw(&panels).unwrap();
    assert!(["kernel, no limit", "8.5", "MB/s", "p99, ms"].iter().all(|word| drawn.contains(word)), "{drawn}");
    assert!(!drawn.contains("sum of the paths"), "there is no limit: {drawn}");
    assert!(["queue-length", "round-robin", "199.0", "sum of the paths"].iter().all(|word| svg.contains(word)));
}
