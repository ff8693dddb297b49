//! Both sides of a vhost-user-blk connection: a guest and its front-end, and a disk that does what a test tells it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod client;
pub mod fds;
pub mod guest;
pub mod ram;
