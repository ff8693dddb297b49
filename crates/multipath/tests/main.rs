//! All tests of the group but the one that counts allocations.

mod common;

mod access;
mod asked;
mod cross_fence;
mod defects;
mod doubt;
mod endings;
mod fencing;
mod flush;
mod group;
mod logs;
mod losses;
mod numbers;
mod passthrough;
mod paths;
mod pieces;
mod preferred;
mod random;
mod refusals;
mod reports;
mod reservations;
mod room;
mod rounds;
mod scenarios;
mod sequences;
mod shares;
mod sleep;
mod slices;
mod stated;
mod storm;
mod straight;
mod unfit;
mod verification;
mod waits;
