//! The stages, one file per `type` of a pipeline, and the code that they share.
//!
//! `type = "prune"` is `prune.rs`: its options with their checks, the function that runs it, how
//! its product is stored and read back, and its summary for logs. The options implement [`Stage`];
//! `registry.rs` lists all types. A stage is a function of its options, its [`Context`] and its
//! input values: it does not depend on other stages, on variants or on the folder of results.

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

pub mod facts;
pub mod products;
pub mod registry;
pub mod repeat;
pub mod stage;
pub mod step;
pub mod train;
pub mod values;

mod checkpoint;
mod context;
mod environment;
mod error;
mod stored;

pub use checkpoint::StageCheckpoint;
pub use context::{Context, Interrupted, MemoryBudget, RepeatPosition};
pub use environment::{
    Environment, OptionFault, ResourceEstimate, UnusedOption, positive_faults, size_faults,
};
pub use error::{RestoreError, StageError};
pub use secateur_data::InputFile;
pub use stage::Stage;
