//! The one integration binary. Each module holds one kind of promise.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed; it says what it saw"
)]

mod support;

mod architecture;
mod check;
mod cli;
mod devices;
mod evaluate;
mod families;
mod formula;
mod generate;
mod inputs;
mod kept;
mod mistakes;
mod model;
mod parity;
mod perplexity;
mod properties;
mod pruning;
mod recover;
mod report;
mod resume;
mod sharing;
mod sizes;
mod stages;
mod streaming;
mod tasks;
