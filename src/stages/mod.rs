//! The stages, one file per `type` of a pipeline, and what every stage is handed.
//!
//! A stage is a plain function `run(&Options, &Context, inputs) -> Result<(output, tables), Error>`. No stage knows
//! another stage, the tree of variants, or the results folder; errors carry no place, the spine adds it.

pub mod aggregate;
pub mod dependencies;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod importance;
pub mod load;
pub mod pretrain;
pub mod profile;
pub mod prune;
pub mod recover;
pub mod registry;
pub mod repeat;
pub mod train;

pub mod products;

mod context;
mod environment;
mod state;

pub use context::{Context, Interrupted, MemoryBudget};
pub use environment::{Environment, OptionFault, ResourceEstimate, positive_faults, size_faults};
pub use secateur_data::InputFile;
pub use state::StageCheckpoint;
