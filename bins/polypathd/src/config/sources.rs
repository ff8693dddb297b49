//! `[[source]]` and `[sources]`: where disks come from that nobody has named, and how they are looked after.

use super::{ConfigError, Source};
use crate::values::{self, FencingName, no_path_timeout};
use polypath::sources::{MOST_SOURCES, SourceUri, SourcesConfig};
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Least pause between two questions to a source, in milliseconds.
const LEAST_REFRESH_MS: u64 = 100;

/// One source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    uri: Spanned<String>,
}

impl RawSource {
    pub(super) fn check(&self, at: &Source<'_>, i: usize, others: &[SourceUri]) -> Result<SourceUri, ConfigError> {
        let key = format!("source[{i}].uri");
        let fail = |problem: String| at.error(Some(self.uri.span().start), Some(&key), problem);
        values::fits_a_line(self.uri.get_ref(), "a URI").map_err(fail)?;
        let uri: SourceUri = at.parse(&key, &self.uri)?;
        if others.iter().any(|other| other.to_string() == uri.to_string()) {
            return Err(fail(format!("{uri} is listed twice; expected each source once")));
        }
        if others.len() >= MOST_SOURCES {
            return Err(fail(format!("is one source more than {MOST_SOURCES}, the most there can be")));
        }
        Ok(uri)
    }
}

/// What holds for all sources, and for the disks that they lead to.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSourceConfig {
    refresh_ms: Option<Spanned<u64>>,
    rounds: Option<Spanned<u32>>,
    selector: Option<Spanned<String>>,
    no_path_timeout_ms: Option<Spanned<i64>>,
    fencing: Option<Spanned<String>>,
}

impl RawSourceConfig {
    pub(super) fn check(&self, at: &Source<'_>) -> Result<SourcesConfig, ConfigError> {
        let mut config = SourcesConfig::default();
        let fail = |offset: usize, key: &str, problem: String| {
            at.error(Some(offset), Some(&format!("sources.{key}")), problem)
        };
        if let Some(given) = &self.refresh_ms {
            match *given.get_ref() {
                ms @ LEAST_REFRESH_MS..=86_400_000 => config.refresh = Duration::from_millis(ms),
                ms => {
                    let problem = format!("is {ms}; expected {LEAST_REFRESH_MS} to 86400000");
                    return Err(fail(given.span().start, "refresh_ms", problem));
                }
            }
        }
        if let Some(given) = &self.rounds {
            if *given.get_ref() == 0 {
                return Err(fail(given.span().start, "rounds", "is 0; expected 1 or more".into()));
            }
            config.rounds = *given.get_ref();
        }
        if let Some(given) = &self.selector {
            config.policy.selector = at.parse("sources.selector", given)?;
        }
        if let Some(given) = &self.no_path_timeout_ms {
            config.policy.no_path_timeout_ms =
                no_path_timeout(*given.get_ref()).map_err(|e| fail(given.span().start, "no_path_timeout_ms", e))?;
        }
        if let Some(given) = &self.fencing {
            config.policy.fencing = at.parse::<FencingName>("sources.fencing", given)?.0;
        }
        Ok(config)
    }
}
