//! What a pipeline file says, checked: the file, the run settings, the sweep, the passes of the check.

pub mod check;
pub mod environment;
pub mod file;
pub mod order;
pub mod problem;
pub mod schema;
pub mod settings;
pub mod sweep;
