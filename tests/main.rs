//! The one integration binary. Each module holds one kind of promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod architecture;
mod check;
mod cli;
mod evaluate;
mod formula;
mod inputs;
mod model;
mod pruning;
mod recover;
mod stages;
