//! The one list of stages, the file, the check, the tree of variants, and the spine that walks it.

pub mod check;
pub mod file;
pub mod order;
pub mod plan;
pub mod problem;
pub mod settings;
pub mod stage;
pub mod sweep;
