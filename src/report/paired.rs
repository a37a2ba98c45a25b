//! How sure a difference between two models is. Both answered the same documents, so what a document says counts as a
//! pair: most of what makes documents hard or easy is common to both models and falls out of the difference.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;

use super::numbers::{Measurement, Measurements};
use super::{ReportError, read_parquet};

/// What is read of `evaluate_documents`.
const DOCUMENT_COLUMNS: [&str; 5] = ["step", "task", "metric", "doc", "value"];

/// The standard error of each metric's difference, by the metric's name: √(Σ (d − d̄)² / (n − 1) / n) over its documents, d what a
/// document says of `last` less what it says of `dense`. Left out where documents are missing, where one model was asked others than
/// the other, and where they are fewer than two.
pub fn standard_errors(
    documents: &Path,
    dense: &Measurements,
    last: &Measurements,
) -> Result<BTreeMap<String, f64>, ReportError> {
    if !documents.exists() || !last.keys().any(|metric| dense.contains_key(metric)) {
        return Ok(BTreeMap::new());
    }
    let frame = read_parquet(documents, Some(&DOCUMENT_COLUMNS))?;
    let pair = ["name", "doc"];
    let whole = JoinArgs::new(JoinType::Full).with_coalesce(JoinCoalesce::CoalesceColumns);
    let paired = select_documents(&frame, dense, "dense")?
        .join(
            &select_documents(&frame, last, "last")?,
            pair,
            pair,
            whole,
            None,
        )?
        // the order of a sum decides its last bits, and a join promises none
        .sort(pair, SortMultipleOptions::default())?;
    let names = paired.column("name")?.str()?;
    let (dense, last) = (
        paired.column("dense")?.f64()?,
        paired.column("last")?.f64()?,
    );
    let mut differences: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for i in 0..paired.height() {
        let Some(name) = names.get(i) else { continue };
        let difference = last
            .get(i)
            .zip(dense.get(i))
            .map(|(last, dense)| last - dense);
        differences
            .entry(name.to_owned())
            .or_default()
            .push(difference);
    }
    let known = differences
        .into_iter()
        .filter_map(|(name, of)| Some((name, of.into_iter().collect::<Option<Vec<f64>>>()?)));
    Ok(known
        .filter_map(|(name, of)| Some((name, standard_error(&of)?)))
        .collect())
}

/// What the documents say, in the column `name`, for each metric at the step that its value comes from.
fn select_documents(
    documents: &DataFrame,
    measured: &Measurements,
    name: &str,
) -> Result<DataFrame, PolarsError> {
    let of = |text: fn(&Measurement) -> &str| measured.values().map(text).collect::<Vec<&str>>();
    let steps: Vec<u32> = measured.values().map(|m| m.step).collect();
    let names: Vec<&str> = measured.keys().map(String::as_str).collect();
    let counted = df!("name" => names, "task" => of(|m| &m.task), "metric" => of(|m| &m.metric), "step" => steps)?;
    let question = ["task", "metric", "step"];
    let inner = JoinArgs::new(JoinType::Inner);
    let mut answers = documents
        .join(&counted, question, question, inner, None)?
        .select(["name", "doc", "value"])?;
    answers.rename("value", name.into())?;
    Ok(answers)
}

/// The standard error of a mean; None for fewer than two values.
fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}
