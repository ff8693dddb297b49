//! All tests of the back-end over its socket but those that count allocations or mappings.

mod common;

mod blkio;
mod front_end;
mod held;
mod migration;
mod neighbours;
mod strangers;
mod survivors;
mod write_through;
