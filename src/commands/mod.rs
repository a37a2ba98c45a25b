//! The command line: its arguments, one file per subcommand, and what they print. No file outside
//! of this folder prints.

pub mod arguments;
pub mod cache;
pub mod check;
pub mod gpu_failure;
pub mod merge;
pub mod output;
pub mod plan;
pub mod prepare;
pub mod report;
pub mod run;
pub mod schema;
