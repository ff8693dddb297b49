//! What the kernel's switches say about transparent huge pages of 2 MiB.
//!
//! They are read to tell the truth about it, and to leave alone what would not help; the kernel itself decides page by page.

use std::fs;

/// `/sys` of this machine.
const SWITCHES: &str = "/sys/kernel/mm/transparent_hugepage";

/// Whose pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Of one process.
    Private,
    /// Of a file in memory.
    Shared,
}

impl Kind {
    fn switch(self) -> &'static str {
        match self {
            Kind::Private => "enabled",
            Kind::Shared => "shmem_enabled",
        }
    }
}

/// Does who asks for them get them? Otherwise says what forbids it.
pub(crate) fn may_be_asked(kind: Kind) -> Result<(), String> {
    let read = |at: &str| fs::read_to_string(format!("{SWITCHES}/{at}")).ok();
    let switch = kind.switch();
    let (all, size) = (read(switch), read(&format!("hugepages-2048kB/{switch}")));
    if allowed(kind, all.as_deref(), size.as_deref()) {
        return Ok(());
    }
    let word = if kind == Kind::Private { "madvise" } else { "advise" };
    Err(format!("transparent ones are switched off; to have them: echo {word} > {SWITCHES}/{switch}"))
}

/// By the switch for all sizes, and the one for this size, which newer kernels have (6.8, for shared memory 6.12).
fn allowed(kind: Kind, all: Option<&str>, size: Option<&str>) -> bool {
    let all = all.and_then(chosen).unwrap_or("never");
    match (kind, all, size.and_then(chosen)) {
        (Kind::Shared, "deny", _) => false,
        (Kind::Shared, "force", _) => true,
        (_, all, None | Some("inherit")) => all != "never",
        (_, _, Some(size)) => size != "never",
    }
}

/// The word in brackets.
fn chosen(switch: &str) -> Option<&str> {
    switch.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_read_as_the_kernel_reads_them() {
        let (private, shared) = (Kind::Private, Kind::Shared);
        for (kind, all, size, may) in [
            (private, Some("always [madvise] never\n"), None, true),
            (private, Some("[always] madvise never\n"), Some("always [inherit] madvise never"), true),
            (private, Some("always madvise [never]"), Some("always [inherit] madvise never"), false),
            (private, Some("always madvise [never]"), Some("always inherit [madvise] never"), true),
            (private, Some("[always] madvise never"), Some("always inherit madvise [never]"), false),
            (private, None, None, false),
            (shared, Some("always within_size advise [never] deny force"), None, false),
            (shared, Some("always within_size [advise] never deny force"), Some("always [inherit] never"), true),
            (shared, Some("always within_size advise never [deny] force"), Some("[always] inherit never"), false),
            (shared, Some("always within_size advise never deny [force]"), Some("always inherit [never]"), true),
            (shared, Some("nonsense"), None, false),
        ] {
            assert_eq!(allowed(kind, all, size), may, "{kind:?} {all:?} {size:?}");
        }
    }

    #[test]
    fn who_gets_none_is_told_which_switch_it_is() {
        for (kind, words) in [(Kind::Private, "madvise > "), (Kind::Shared, "advise > ")] {
            if let Err(said) = may_be_asked(kind) {
                assert!(said.contains(words) && said.ends_with(kind.switch()), "{said}");
            }
        }
    }
}
