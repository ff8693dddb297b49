//! The host's side of one connection, without socket and clock.
