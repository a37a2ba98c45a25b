//! Reports of a sweep, built from the tables of its variants: `variants.parquet` (one row per
//! variant), `generations.parquet` (the texts that the variants generated, side by side), and both
//! as text or JSON.
//!
//! arrow writes the tables of a single variant while it runs; this module reads them with polars,
//! joins them and summarises them. The data flows one way:
//!
//! 1. [`crate::results`] and [`shape`] describe the folder of a variant and the steps that measured
//!    it.
//!    `other_variants` finds the variants that a run did not visit, so that runs accumulate.
//! 2. `numbers` and `generations` read the variant's tables; `paired` computes standard errors.
//! 3. `tables` writes one row per variant.
//! 4. [`SweepReport`] holds both tables; `text` and `json` format them. [`merge`] joins the folders
//!    of several machines.

pub mod clean;
mod error;
mod generations;
mod json;
pub mod merge;
mod metrics;
mod numbers;
mod option_values;
mod other_variants;
mod paired;
mod parquet;
pub mod shape;
mod step_options;
mod summarize;
mod sweep_report;
mod tables;
mod text;
mod variant_summary;

pub use error::ReportError;
pub(crate) use other_variants::{earlier_summaries, unselected_summaries};
pub(crate) use parquet::VARIANTS_FILE;
pub use summarize::read_reports;
pub use sweep_report::SweepReport;
pub use tables::write_report_tables;
pub use variant_summary::VariantSummary;
