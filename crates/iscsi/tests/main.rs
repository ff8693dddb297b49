//! Tests of the crate against what other implementations said to each other.
#![forbid(unsafe_code)]

mod captures;
mod corpus;
mod logins;
mod recorded;
mod script;
mod sessions;
