//! The outcome of a run, and the report of its sweep.

use crate::pipeline::problem::StageFailure;
use crate::plan::Plan;
use crate::plan::ids::VariantId;
use crate::plan::keys::ProductKeys;
use crate::report::{self, ReportError, SweepReport, VariantSummary};
use crate::results::VariantStatus;
use crate::run::variants::RunVariants;
use secateur_base::files::FileError;

/// The outcome of a run.
#[derive(Debug)]
pub struct RunOutcome {
    /// In the order of the plan.
    pub variants: Vec<VariantSummary>,
    pub failures: Vec<StageFailure>,
    pub is_interrupted: bool,
    /// The tables of the sweep, in the results folder of the pipeline.
    pub report: SweepReport,
}

/// Why a run could not go on: the results folder failed. A stage that fails ends only its variants.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("the variant's own pipeline cannot be written: {0}")]
    Resolve(#[from] toml::ser::Error),
}

/// Writes the tables of the sweep: the variants of this run, and those that earlier runs left in
/// the results folder. Returns the variants of this run and the tables.
pub(crate) fn write_report(
    plan: &Plan,
    keys: &ProductKeys,
    variants: &RunVariants<'_>,
) -> Result<(Vec<VariantSummary>, SweepReport), RunError> {
    // Of several runs that end at the same time, each reads the variants after it has the claim, so
    // the last one that writes has seen all results.
    let _claim = variants.wait_for_report_claim()?;
    let summaries: Vec<VariantSummary> = plan
        .variants
        .ids()
        .map(|id| summarize(plan, variants, id))
        .collect();
    let folder = variants.results_folder();
    let mut rows = summaries.clone();
    let input_hashes = keys.input_hashes();
    rows.extend(report::unselected_summaries(plan, folder, &input_hashes));
    let sweep_position = |id: &str| plan.variant_order.iter().position(|other| other == id);
    rows.sort_by_key(|row| sweep_position(&row.description.id));
    let earlier = report::earlier_summaries(plan, folder, &input_hashes, &rows);
    rows.extend(earlier);
    let report = report::write_report_tables(folder, &rows)?;
    Ok((summaries, report))
}

/// How a variant ended: in this run, or as its folder records it if another run completed it.
fn summarize(plan: &Plan, variants: &RunVariants<'_>, id: VariantId) -> VariantSummary {
    let variant = &plan.variants[id];
    let folder = variants.results_folder();
    if let Some(ending) = variants.ending(id) {
        let ending = ending.clone();
        return VariantSummary::new(
            variant.into(),
            ending.status,
            ending.error,
            ending.tables_folder,
        );
    }
    VariantSummary::from_folder(variant.into(), folder).unwrap_or_else(|| {
        let variant_folder = folder.join(&variant.id);
        VariantSummary::new(
            variant.into(),
            VariantStatus::Interrupted,
            None,
            variant_folder,
        )
    })
}
