//! The one integration binary. Each module holds one kind of promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod evaluate;
mod model;
mod pruning;
mod recover;
