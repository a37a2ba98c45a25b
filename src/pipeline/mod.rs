//! The one list of stages, the file, the check, the tree of variants, and the spine that walks it.

pub mod check;
pub mod file;
pub mod log;
pub mod order;
pub mod plan;
pub mod problem;
pub mod report;
pub mod results;
pub mod run;
pub mod schema;
pub mod settings;
pub mod stage;
pub mod sweep;
pub mod world;
