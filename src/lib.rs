//! secateur prunes language models structurally, in the way of LLM-Pruner (NeurIPS 2023), and
//! measures what the pruning costs.
//!
//! A pipeline is a TOML file. Its stages run in order, and each takes values that stages before it
//! made:
//!
//! | stage                | takes                 | makes                                             |
//! |----------------------|-----------------------|---------------------------------------------------|
//! | `load` or `pretrain` | a folder              | a [`Model`](secateur_model::Model)                |
//! | `dependencies`       | model                 | a [`DependencyGraph`](secateur_model::groups::DependencyGraph): the coupled structures |
//! | `importance`         | model, graph          | [`ChannelScores`](stages::products::ChannelScores): one number per channel of each member |
//! | `aggregate`          | graph, channel scores | [`GroupScores`](stages::products::GroupScores): one number per unit |
//! | `prune`              | model, group scores   | a [`PruningPlan`](secateur_model::plan::PruningPlan) and a smaller model |
//! | `recover`            | model                 | an [`Adapter`](secateur_model::lora::Adapter), and the model with the adapter merged |
//! | `evaluate`           | model                 | rows: accuracies and perplexities                 |
//! | `export`             | model                 | a folder that other tools load                    |
//!
//! `type = "prune"` in a pipeline is `stages/prune.rs` and writes `prune.parquet`.
//!
//! # Modules
//!
//! Each module uses only those below it:
//!
//! - `commands` (in the program `runner`): the command line.
//! - [`run`]: runs the stages of a plan.
//! - [`report`]: tables and texts of results.
//! - [`plan`]: [`check`](plan::check::check) turns a pipeline into a [`Plan`](plan::Plan): the
//!   variants of its sweep, and the tree of the stages that they share.
//! - [`results`]: the folder of a variant's results.
//! - [`pipeline`]: the content of a pipeline file, and the span of every value in it.
//! - [`stages`]: one file per stage type.
//! - [`progress`], `machine`: progress bars; the description of the processor and the device.
//!
//! # Example
//!
//! Two variants that share a stage:
//!
//! ```
//! use secateur::plan::check::{Overrides, check};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("grouping.toml");
//! std::fs::write(
//!     &path,
//!     r#"
//!         [[stage]]
//!         type = "load"
//!         model = "models/tiny"
//!
//!         [[stage]]
//!         type = "dependencies"
//!
//!         [sweep]
//!         "dependencies.grouping" = ["block", "channel"]
//!     "#,
//! )?;
//!
//! // `false`: files and the device are not looked at, so the model need not exist.
//! let plan = check(&path, &Overrides::default(), false)?;
//! assert_eq!(plan.variants.len(), 2);
//! // `load` runs once and `dependencies` twice; without sharing there would be four runs.
//! assert_eq!(plan.stage_run_counts(), (3, 4));
//!
//! // A mistake is reported at its place, with a suggestion.
//! std::fs::write(&path, "[[stage]]\ntype = \"laod\"\n")?;
//! let invalid = check(&path, &Overrides::default(), false).unwrap_err();
//! let problem = invalid.problems[0].to_record();
//! assert_eq!(problem.message, "unknown stage `laod`");
//! assert_eq!((problem.line, problem.column), (2, 8));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod machine;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod report;
pub mod results;
pub mod run;
pub mod stages;
