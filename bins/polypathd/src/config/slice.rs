//! `[[slice]]`: parts of disks.

use super::{Config, ConfigError, Source};
use crate::values::{self, SizeValue};
use polypath::SliceRange;
use serde::Deserialize;
use toml::Spanned;

/// Part of a disk, which is served under a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceConfig {
    pub(crate) name: String,
    pub(crate) disk: String,
    pub(crate) range: SliceRange,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSlice {
    name: Spanned<String>,
    disk: Spanned<String>,
    offset: Spanned<SizeValue>,
    length: Spanned<SizeValue>,
}

impl RawSlice {
    pub(super) fn check(&self, at: &Source<'_>, i: usize, config: &Config) -> Result<SliceConfig, ConfigError> {
        let fail =
            |offset: usize, k: &str, problem: String| at.error(Some(offset), Some(&format!("slice[{i}].{k}")), problem);
        let (name, name_at) = (self.name.get_ref(), self.name.span().start);
        values::disk_name(name).map_err(|e| fail(name_at, "name", e))?;
        let taken = config.disks.iter().any(|d| d.name == *name) || config.slices.iter().any(|s| s.name == *name);
        if taken {
            let problem = format!("\"{name}\" is the name of another disk or slice; expected a new one");
            return Err(fail(name_at, "name", problem));
        }
        let disk = self.disk.get_ref();
        if !config.disks.iter().any(|d| d.name == *disk) {
            let names: Vec<_> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
            let problem = format!("no disk is called \"{disk}\"; expected one of: {}", names.join(", "));
            return Err(fail(self.disk.span().start, "disk", problem));
        }
        let bytes = |given: &Spanned<SizeValue>, key| {
            given.get_ref().bytes().map_err(|problem| fail(given.span().start, key, problem))
        };
        let range =
            SliceRange { offset_bytes: bytes(&self.offset, "offset")?, length_bytes: bytes(&self.length, "length")? };
        values::slice_range(range).map_err(|(key, problem)| {
            let given = if key == "offset" { &self.offset } else { &self.length };
            fail(given.span().start, key, problem)
        })?;
        let beside = |other: &&SliceConfig| other.disk == *disk && other.range.overlaps(range);
        if let Some(other) = config.slices.iter().find(beside) {
            let problem =
                format!("{range} overlaps \"{}\", which is {}; expected a range of its own", other.name, other.range);
            return Err(fail(self.offset.span().start, "offset", problem));
        }
        Ok(SliceConfig { name: name.clone(), disk: disk.clone(), range })
    }
}

impl Config {
    /// The disk that `name` is, or is a slice of.
    pub(crate) fn disk_of<'a>(&'a self, name: &'a str) -> &'a str {
        self.slices.iter().find(|slice| slice.name == name).map_or(name, |slice| &slice.disk)
    }

    /// The name of a disk or slice that can be served, if there is one of that name.
    pub(super) fn can_serve(&self, name: &Spanned<String>) -> Result<String, String> {
        let name = name.get_ref();
        let slices: Vec<_> = self.slices.iter().filter(|s| s.disk == *name).map(|s| s.name.as_str()).collect();
        if !slices.is_empty() {
            return Err(format!("\"{name}\" has slices, which share it; expected one of them: {}", slices.join(", ")));
        }
        let disks = self.disks.iter().map(|disk| disk.name.as_str());
        let names: Vec<_> = disks.chain(self.slices.iter().map(|slice| slice.name.as_str())).collect();
        match names.contains(&name.as_str()) {
            true => Ok(name.clone()),
            // A source may lead to it.
            false if !self.sources.is_empty() => values::disk_name(name).map(|_| name.clone()),
            false => Err(format!("no disk is called \"{name}\"; expected one of: {}", names.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(slices: &str, serve: &str) -> Result<Config, String> {
        let disks =
            "[[disk]]\nname = \"d\"\npaths = [\"ram://1MiB\"]\n[[disk]]\nname = \"e\"\npaths = [\"ram://1MiB\"]\n";
        let serve = format!("[[vhost]]\ndisk = \"{serve}\"\nsocket = \"s.sock\"\n");
        Config::parse("f", &format!("{disks}{slices}{serve}")).map_err(|e| e.to_string())
    }

    fn slice(name: &str, disk: &str, offset: &str, length: &str) -> String {
        format!("[[slice]]\nname = \"{name}\"\ndisk = \"{disk}\"\noffset = {offset}\nlength = {length}\n")
    }

    #[test]
    fn slices_are_read_and_served_by_their_names() {
        let both =
            slice("a", "d", "0", "\"64KiB\"") + &slice("b", "d", "\"64KiB\"", "65536") + &slice("c", "e", "0", "512");
        let config = parse(&both, "b").unwrap();
        assert_eq!(config.slices[1].range, SliceRange { offset_bytes: 65536, length_bytes: 65536 });
        assert_eq!((config.disk_of("b"), config.disk_of("e"), config.vhosts[0].disk.as_str()), ("d", "e", "b"));
        for (slices, serve, words) in [
            (both.clone(), "d", ["vhost[0].disk", "expected one of them: a, b"]),
            (both.clone(), "f", ["vhost[0].disk", "d, e, a, b, c"]),
            (slice("e", "d", "0", "512"), "e", ["slice[0].name", "another disk"]),
            (slice("a", "x", "0", "512"), "e", ["slice[0].disk", "d, e"]),
            (slice("a", "d", "0", "0"), "e", ["slice[0].length", "0"]),
            (slice("a", "d", "\"3 apples\"", "512"), "e", ["slice[0].offset", "unit"]),
            (slice("a", "d", "7", "512"), "e", ["slice[0].offset", "512"]),
            (slice("a", "d", "0", "1000"), "e", ["slice[0].length", "512"]),
            (slice("a", "d", "512", "9223372036854775296"), "e", ["slice[0].length", "beyond"]),
            (both.clone() + &slice("n", "d", "65024", "1024"), "e", ["slice[3].offset", "overlaps \"a\""]),
        ] {
            let error = parse(&slices, serve).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
