//! The command line: its arguments, one file per subcommand, and what they print. No file outside
//! of this folder prints.

pub(crate) mod arguments;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod clean;
pub(crate) mod gpu_failure;
pub(crate) mod intention;
pub(crate) mod lock;
pub(crate) mod merge;
pub(crate) mod output;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod terminal;
