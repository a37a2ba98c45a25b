//! The content of a pipeline file: its text with the span of every value, run settings, the sweep,
//! and the order of its stages. `plan::check` calls these passes in order.

pub(crate) mod assignment;
pub(crate) mod file;
pub mod layers;
pub(crate) mod order;
pub(crate) mod overrides;
pub mod problem;
pub mod schema;
pub mod settings;
pub(crate) mod sweep;
pub(crate) mod unroll;
