//! Counting what test runners say in their closing lines, without taking these lines away from the reader.

/// Tests counted so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TestCounts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// The names of those that failed, where libtest said them.
    pub(crate) failed_names: Vec<String>,
}

impl TestCounts {
    /// Adds what `line` says, if it is a closing line of libtest or nextest, or libtest's line about a test that failed.
    ///
    /// nextest repeats, indented, what libtest said of a test that failed, also of one that passes when it is tried again: that counts
    /// for nothing beside nextest's own closing line.
    pub(crate) fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            self.failed_names.push(name.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            // test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
            let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
            self.add(counts.split(';'));
        } else if let Some(summary) = line.trim_start().strip_prefix("Summary [") {
            // Summary [   0.012s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped
            if let Some((_, counts)) = summary.split_once("run: ") {
                self.add(counts.split(','));
            }
        }
    }

    /// Adds other counts to this one.
    pub(crate) fn merge(&mut self, other: TestCounts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failed_names.extend(other.failed_names);
    }

    /// Adds a second try of exactly the tests that failed in this one: what passes now has not failed. Returns the names of those.
    pub(crate) fn merge_second_try(&mut self, again: TestCounts) -> Vec<String> {
        self.passed += again.passed;
        self.failed = again.failed;
        let first = std::mem::replace(&mut self.failed_names, again.failed_names);
        first.into_iter().filter(|name| !self.failed_names.contains(name)).collect()
    }

    fn add<'a>(&mut self, counts: impl Iterator<Item = &'a str>) {
        for count in counts {
            let mut words = count.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" | "timed" | "exec" => self.failed += number,
                "ignored" | "skipped" => self.ignored += number,
                _ => {}
            }
        }
    }
}

fn strip_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // a colour is ESC [ ... m
            characters.by_ref().find(|c| *c == 'm');
        } else {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_both_runners_are_understood() {
        let mut counts = TestCounts::default();
        counts
            .read("test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.01s");
        counts
            .read("\u{1b}[32;1m     Summary\u{1b}[0m [   0.012s] 7 tests run: 6 passed (1 slow), 1 failed, 2 skipped");
        counts.read("the test result: nothing to see");
        assert_eq!(counts, TestCounts { passed: 11, failed: 3, ignored: 3, failed_names: Vec::new() });
    }

    #[test]
    fn what_nextest_repeats_of_a_failure_is_not_counted() {
        let mut counts = TestCounts::default();
        for line in [
            "  TRY 1 FAIL [   1.461s] (1371/1507) crate::all strangers::one",
            "    test strangers::one ... FAILED",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 52 filtered out; finished in 1.42s",
            "  TRY 2 PASS [   1.867s] (1372/1507) crate::all strangers::one",
            "     Summary [ 228.791s] 1507 tests run: 1507 passed (1 flaky), 0 skipped",
        ] {
            counts.read(line);
        }
        assert_eq!(counts, TestCounts { passed: 1507, ..TestCounts::default() });
    }

    #[test]
    fn a_second_try_judges_those_that_failed() {
        let mut first = TestCounts::default();
        for line in
            ["test a ... ok", "test b ... FAILED", "test c ... FAILED", "test result: FAILED. 1 passed; 2 failed"]
        {
            first.read(line);
        }
        assert_eq!(first.failed_names, ["b", "c"]);
        let mut again = TestCounts::default();
        for line in ["test b ... ok", "test c ... FAILED", "test result: FAILED. 1 passed; 1 failed"] {
            again.read(line);
        }
        assert_eq!(first.merge_second_try(again), ["b"]);
        assert_eq!((first.passed, first.failed, &first.failed_names[..]), (2, 1, &["c".to_owned()][..]));
    }
}
