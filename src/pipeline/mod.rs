//! What a pipeline file says: its text with the place of every value, run settings, the sweep, and
//! the order of its stages. `plan::check` puts the passes together.

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
