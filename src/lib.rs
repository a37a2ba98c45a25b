//! secateur prunes language models structurally, in the way of LLM-Pruner (NeurIPS 2023), and shows what it cost.
//!
//! A pipeline is a TOML file; its stages carry values one way:
//!
//! 1. `load` (or `pretrain`)  a folder → [`secateur_model::Model`]
//! 2. `dependencies`          Model → [`secateur_model::groups::DependencyGraph`], the coupled structures
//! 3. `importance`            Model, graph → [`stages::products::ChannelScores`], one number per channel of each member
//! 4. `aggregate`             graph, Scores → [`stages::products::GroupScores`], one number per unit
//! 5. `prune`                 Model, GroupScores → [`secateur_model::plan::PruningPlan`] and a smaller Model
//! 6. `recover`               Model → [`secateur_model::lora::Adapter`], merged into the Model that follows
//! 7. `evaluate`              Model → rows: accuracies and perplexities
//! 8. `export`                Model → a folder that other tools load
//!
//! `type = "prune"` in a pipeline is `stages/prune.rs` and writes `prune.parquet`.

pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod report;
pub mod run;
pub mod stages;
