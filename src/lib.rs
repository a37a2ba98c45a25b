//! secateur prunes language models structurally, in the way of LLM-Pruner (NeurIPS 2023), and shows what it cost.
//!
//! A pipeline is a TOML file; its stages carry values one way:
//!
//! 1. `load` (or `pretrain`)  a folder → [`model::Model`]
//! 2. `dependencies`          Model → [`stages::dependencies::DependencyGraph`], the coupled structures
//! 3. `importance`            Model, graph → [`stages::importance::Scores`], one number per channel of each member
//! 4. `aggregate`             graph, Scores → [`stages::aggregate::GroupScores`], one number per unit
//! 5. `prune`                 Model, GroupScores → [`stages::prune::PruningPlan`] and a smaller Model
//! 6. `recover`               Model → [`model::lora::Adapter`], merged into the Model that follows
//! 7. `evaluate`              Model → rows: accuracies and perplexities
//! 8. `export`                Model → a folder that other tools load
//!
//! `type = "prune"` in a pipeline is `stages/prune.rs` and writes `prune.parquet`. The modules below stand in the
//! order of their arrows: each may use those after it, never one before.

pub mod pipeline;

pub mod stages;

pub mod data;
pub mod model;

pub mod adam;
pub mod files;
pub mod locks;
pub mod memory;
pub mod metrics;
pub mod ops;
pub mod progress;
pub mod random;
pub mod spelling;
pub mod tensor;
