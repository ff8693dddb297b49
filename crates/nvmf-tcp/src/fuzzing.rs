//! Bodies of the fuzz targets, here so that `cargo test` replays the committed corpus. Not an interface.
