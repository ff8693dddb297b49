//! Which cores: a list such as `0,2-4` or a hexadecimal mask such as `0x1d`.

use std::fmt;
use std::str::FromStr;

/// Cores, ascending, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(pub Vec<usize>);

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, cpu) in self.0.iter().enumerate() {
            write!(f, "{}{cpu}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A core list or mask that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("CPU list \"{text}\": {problem}; expected a list such as 0,2-4 or a mask such as 0x1d")]
pub struct CpuListError {
    /// As given.
    pub text: String,
    /// What is wrong.
    pub problem: String,
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let fail = |problem: String| CpuListError { text: text.into(), problem };
        let cpus = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(mask) => from_mask(mask).map_err(fail)?,
            None => from_list(text.trim_start_matches('[').trim_end_matches(']')).map_err(fail)?,
        };
        if cpus.is_empty() { Err(fail("names no core".into())) } else { Ok(CpuList(cpus)) }
    }
}

fn from_mask(digits: &str) -> Result<Vec<usize>, String> {
    let digits: String = digits.chars().filter(|c| *c != ',' && *c != '_').collect();
    let mut cpus = Vec::new();
    for (at, c) in digits.chars().rev().enumerate() {
        let nibble = c.to_digit(16).ok_or_else(|| format!("\"{c}\" is not a hexadecimal digit"))?;
        cpus.extend((0..4).filter(|bit| nibble >> bit & 1 == 1).map(|bit| at * 4 + bit));
    }
    check_range(cpus)
}

fn from_list(text: &str) -> Result<Vec<usize>, String> {
    let number = |s: &str| s.trim().parse::<usize>().map_err(|_| format!("\"{s}\" is not a core number"));
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|p| !p.trim().is_empty()) {
        let (from, to) = match part.split_once('-') {
            Some((a, b)) => (number(a)?, number(b)?),
            None => (number(part)?, number(part)?),
        };
        if from > to || to >= LIMIT {
            return Err(format!("range \"{part}\" is upside down or passes {}", LIMIT - 1));
        }
        cpus.extend(from..=to);
    }
    cpus.sort_unstable();
    cpus.dedup();
    check_range(cpus)
}

/// Cores that a kernel's CPU set holds.
const LIMIT: usize = 1024;

fn check_range(cpus: Vec<usize>) -> Result<Vec<usize>, String> {
    match cpus.iter().find(|&&c| c >= LIMIT) {
        Some(c) => Err(format!("core {c} is beyond {}", LIMIT - 1)),
        None => Ok(cpus),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks() {
        let cpus = |s: &str| s.parse::<CpuList>().map(|l| l.0);
        assert_eq!(cpus("0,2-4,3"), Ok(vec![0, 2, 3, 4]));
        assert_eq!(cpus("0x1d"), Ok(vec![0, 2, 3, 4]));
        assert_eq!(cpus("[1]"), Ok(vec![1]));
        for bad in ["", "0x0", "a", "3-1", "0-99999", "0xz"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
