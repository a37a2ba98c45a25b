//! Runs a plan.
//!
//! `tree` walks the tree of stages, `node` runs one stage or restores its product, `values` carries
//! the products from stage to stage. `record` keeps what the run has done, `variants` the result
//! folders of the variants, `outcome` writes the report of the sweep. `status` and [`log`] report
//! progress, `stage_logs` keeps the log of shared stages.

mod console;
mod context;
pub mod log;
mod log_lines;
pub mod node;
mod outcome;
mod panics;
mod record;
mod stage_logs;
mod status;
mod status_file;
mod tree;
pub mod values;
mod variants;

pub use context::RunContext;
pub use outcome::{RunError, RunOutcome};
pub use status_file::mark_killed_runs;
pub use tree::run;
