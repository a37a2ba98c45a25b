//! The content of a pipeline file: its text with the span of every value, run settings, the sweep,
//! and the order of its stages. `plan::check` calls these passes in order.

pub(crate) mod address;
pub(crate) mod arguments;
pub(crate) mod assignment;
pub(crate) mod decode;
pub(crate) mod file;
mod hints;
pub mod layers;
pub(crate) mod option_type;
pub(crate) mod order;
pub mod problem;
pub mod schema;
pub mod settings;
pub(crate) mod sweep;
pub(crate) mod syntax;
pub(crate) mod table_check;
pub(crate) mod unroll;
pub(crate) mod value_words;
