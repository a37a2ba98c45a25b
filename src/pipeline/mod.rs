//! The one list of stages, the file, the check, the tree of variants, what is kept of it, and the spine that walks it.

pub mod cache;
pub mod check;
pub mod execute;
pub mod file;
pub mod lockfile;
pub mod log;
pub mod make;
pub mod merge;
pub mod order;
pub mod plan;
pub mod problem;
pub mod recipe;
pub mod report;
pub mod results;
pub mod run;
pub mod schema;
pub mod select;
pub mod settings;
pub mod shape;
pub mod stage;
pub mod status;
pub mod survey;
pub mod sweep;
pub mod values;
pub mod world;
