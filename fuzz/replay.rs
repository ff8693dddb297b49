//! Replays the committed corpus of a target, so that what fuzzing once found stays found. A part of the `corpus` test of every crate
//! that has targets; these are in `fuzz/fuzz_targets`, their bodies in `src/fuzzing.rs` of the crate.

use std::path::Path;

/// Runs a target over its corpus and over every prefix of each input.
pub(crate) fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut count = 0;
    for file in files {
        let input = std::fs::read(file.unwrap().path()).unwrap();
        let step = if input.len() > 512 { 61 } else { 1 };
        for end in (0..input.len()).step_by(step) {
            body(&input[..end]);
        }
        body(&input);
        count += 1;
    }
    assert!(count > 0, "{} is empty", dir.display());
}

macro_rules! targets {
    ($crate_name:ident: $($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            replay::replay(stringify!($name), $crate_name::fuzzing::$name);
        }
    )*};
}
pub(crate) use targets;
