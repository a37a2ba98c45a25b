//! Runs a plan.
//!
//! `tree` walks the tree of stages, `node` runs one stage or restores its product, `values` carries
//! the products from stage to stage, `variants` keeps the result folders of the variants, `outcome`
//! writes the report of the sweep. `status` and [`log`] report progress.

pub mod log;
mod log_lines;
pub mod node;
mod outcome;
mod panics;
mod status;
mod tree;
pub mod values;
mod variants;

pub use outcome::{RunError, RunOutcome};
pub use tree::{RunContext, run};
