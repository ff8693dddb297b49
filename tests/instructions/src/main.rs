//! What `cargo xtask instructions` counts: each part of the middle at work, alone in one thread and in virtual time, so that the same
//! code takes the same number of instructions wherever and however often it runs.
//!
//! `polypath-instructions --list` names what can be measured, a line each: name, what is taken off it (or `-`), what it is.
//! `polypath-instructions NAME ROUNDS` gives it `ROUNDS` rounds of [`guest::DEPTH`] requests of 4 KiB, and prints how many requests that were.
//!
//! Only what is to be counted runs inside [`counted::counted`], between whose entry and return callgrind collects. What
//! [`counted::uncounted`] calls from within stands for the kernel, and is left out again.
//!
//! No `unsafe`. Read `counted.rs` first.
#![forbid(unsafe_code)]

mod counted;
mod guest;
mod queues;
mod ring;
mod tcp;
mod wire;

use anyhow::{Context, Result, bail};
use polypath_block::Op;
use polypath_multipath::SelectorKind;
use std::process::ExitCode;

/// Something that is measured.
struct Measure {
    name: String,
    /// The measure whose count is taken off, so that what is left is the price of the layer alone.
    less: Option<&'static str>,
    what: String,
    run: Box<dyn Fn(u64) -> Result<()>>,
}

/// The disk below a group and behind a ring, and what a group's price is told without.
const NULL: &str = "null-queue";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("polypath-instructions: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[String]) -> Result<()> {
    match words {
        [list] if list == "--list" => {
            for Measure { name, less, what, .. } in measures() {
                println!("{name}\t{}\t{what}", less.unwrap_or("-"));
            }
            Ok(())
        }
        [name, rounds] => {
            let rounds: u64 = rounds.parse().with_context(|| format!("`{rounds}` is no number of rounds"))?;
            let found = measures().into_iter().find(|measure| measure.name == *name);
            (found.with_context(|| format!("there is no measure `{name}`; --list names them"))?.run)(rounds)?;
            println!("{}", rounds * u64::from(guest::DEPTH));
            Ok(())
        }
        _ => bail!("usage: polypath-instructions --list | NAME ROUNDS"),
    }
}

fn measures() -> Vec<Measure> {
    let mut all = vec![Measure {
        name: NULL.into(),
        less: None,
        what: "a request to a queue of null://: submit, kick, poll".into(),
        run: Box::new(queues::null),
    }];
    let group = |name: String, paths: usize, selector: SelectorKind| Measure {
        name,
        less: Some(NULL),
        what: format!("what a group of {paths} over null:// adds to a request, selector {}", selector.as_str()),
        run: Box::new(move |rounds| queues::group(paths, selector, rounds)),
    };
    all.push(group("group-1-path".into(), 1, SelectorKind::default()));
    for selector in SelectorKind::ALL {
        all.push(group(format!("group-4-paths-{}", selector.as_str()), 4, selector));
    }
    all.push(Measure {
        name: "ring-request".into(),
        less: None,
        what: "a read in a split ring of vhost-user-blk over null://: the turn of the ring's poller".into(),
        run: Box::new(ring::requests),
    });
    let tcp = |op: Op, name: &str, what: &str| Measure {
        name: name.into(),
        less: None,
        what: what.into(),
        run: Box::new(move |rounds| tcp::requests(op, rounds)),
    };
    let read = "a read over NVMe/TCP, sharing and the copy of the data included: submit, kick, poll";
    all.push(tcp(Op::Read, "nvme-tcp-read", read));
    let write = "a write over NVMe/TCP, sharing included: submit, kick, poll";
    all.push(tcp(Op::Write, "nvme-tcp-write", write));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_listed_runs() {
        for measure in measures() {
            if let Err(e) = (measure.run)(3) {
                panic!("{}: {e:#}", measure.name);
            }
        }
    }

    /// Renewing the numbers puts this right.
    #[test]
    fn the_numbers_of_the_repository_are_those_of_what_is_listed() {
        let stored = include_str!("../../../docs/instructions.tsv").lines().filter(|line| !line.starts_with('#'));
        let stored: Vec<&str> = stored.filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(stored, measures().iter().map(|measure| measure.name.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn names_are_words_of_their_own_and_what_is_taken_off_is_measured() {
        let all = measures();
        for (at, measure) in all.iter().enumerate() {
            assert!(!measure.name.contains(char::is_whitespace) && !measure.what.contains(['\t', '\n']));
            assert!(all[..at].iter().all(|earlier| earlier.name != measure.name), "{} twice", measure.name);
            if let Some(less) = measure.less {
                assert!(all[..at].iter().any(|earlier| earlier.name == less && earlier.less.is_none()), "{less}");
            }
        }
    }
}
