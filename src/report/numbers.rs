//! What a variant's tables hold for its row in `variants.parquet`: metrics of the dense, the pruned and the final model, and
//! sizes.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;

use super::evaluation_key::EvaluationKey;
use super::{ReportError, VariantSummary, paired, read_parquet};
use crate::report::shape::StepsByModel;
use crate::results::VariantStatus;

/// The columns of `prune_sizes` that the table repeats.
pub const SIZE_COLUMNS: [&str; 8] = [
    "params_before",
    "params_after",
    "macs_before",
    "macs_after",
    "bytes_before",
    "bytes_after",
    "group_ratio",
    "param_ratio",
];

/// What an `evaluate` says of a metric.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub task: String,
    pub metric: String,
    /// The step that measured it.
    pub step: u32,
    pub value: f64,
    pub stderr: Option<f64>,
    /// The accuracy of guessing.
    pub chance: Option<f64>,
}

/// Metrics by their names, `task.metric`.
pub type Measurements = BTreeMap<String, Measurement>;

/// The numbers of one variant.
#[derive(Default)]
pub struct VariantMetrics {
    pub dense: Measurements,
    pub pruned: Measurements,
    pub last: Measurements,
    /// Standard errors of the differences of `last` to `dense`.
    pub delta_stderr: BTreeMap<String, f64>,
    pub sizes: BTreeMap<&'static str, AnyValue<'static>>,
}

impl VariantMetrics {
    pub fn read(variant: &VariantSummary) -> Result<Self, ReportError> {
        let evaluate = variant.tables_folder.join("evaluate.parquet");
        let evaluate = if evaluate.exists() {
            Some(read_parquet(&evaluate, None)?)
        } else {
            None
        };
        let asked = EvaluationKey::read(&variant.tables_folder);
        // What stands first wins; before it, what was asked as `of` was.
        let at = |steps: &mut dyn Iterator<Item = &u32>, of: &Measurements| {
            let (mut all, mut others) = (Measurements::new(), Measurements::new());
            for &step in steps {
                let Some(frame) = &evaluate else { break };
                for (name, found) in read_measurements(frame, step)? {
                    let is_alike = of
                        .get(&name)
                        .is_none_or(|of| asked.are_comparable(&found.task, step, of.step));
                    if is_alike { &mut all } else { &mut others }
                        .entry(name)
                        .or_insert(found);
                }
            }
            for (name, found) in others {
                all.entry(name).or_insert(found);
            }
            Ok::<_, ReportError>(all)
        };
        let StepsByModel {
            dense,
            pruned,
            last,
        } = &variant.description.evaluate;
        let none = Measurements::new();
        let last = if variant.status == VariantStatus::Succeeded {
            at(&mut last.iter().rev(), &none)?
        } else {
            Measurements::new()
        };
        let (dense, pruned) = (
            at(&mut dense.iter(), &last)?,
            at(&mut pruned.iter().rev(), &last)?,
        );
        // only what was asked alike can be paired
        let is_paired = |(name, of): &(&String, &Measurement)| {
            last.get(*name)
                .is_some_and(|last| asked.are_comparable(&of.task, of.step, last.step))
        };
        let alike: Measurements = dense
            .iter()
            .filter(is_paired)
            .map(|(name, of)| (name.clone(), of.clone()))
            .collect();
        Ok(Self {
            delta_stderr: paired::standard_errors(
                &variant.tables_folder.join("evaluate_documents.parquet"),
                &alike,
                &last,
            )?,
            dense,
            pruned,
            last,
            sizes: read_sizes(&variant.tables_folder.join("prune_sizes.parquet"))?,
        })
    }
}

/// The metrics of one `evaluate`.
fn read_measurements(frame: &DataFrame, step: u32) -> Result<Measurements, ReportError> {
    let rows = frame.filter(&frame.column("step")?.u32()?.equal(step))?;
    let (task, metric) = (rows.column("task")?.str()?, rows.column("metric")?.str()?);
    let (value, stderr) = (rows.column("value")?.f64()?, rows.column("stderr")?.f64()?);
    // results of earlier versions do not say it
    let chance = rows
        .column("chance")
        .ok()
        .map(|column| column.f64())
        .transpose()?;
    let protocol = rows
        .column("protocol")
        .ok()
        .map(|column| column.str())
        .transpose()?;
    let row = |i: usize| {
        let (task, metric) = (task.get(i)?.to_owned(), metric.get(i)?.to_owned());
        let chance = chance.and_then(|column| column.get(i));
        // what was asked in other ways is another column, so that differences are those of models
        let told = protocol
            .and_then(|column| column.get(i))
            .unwrap_or("harness");
        let is_usual = told == "harness" || (chance.is_none() && told == "llm-pruner");
        let name = if is_usual {
            format!("{task}.{metric}")
        } else {
            format!("{task}.{metric} ({told})")
        };
        Some((
            name,
            Measurement {
                task,
                metric,
                step,
                value: value.get(i)?,
                stderr: stderr.get(i),
                chance,
            },
        ))
    };
    Ok((0..rows.height()).filter_map(row).collect())
}

/// The sizes before the first pruning and after the last.
fn read_sizes(path: &Path) -> Result<BTreeMap<&'static str, AnyValue<'static>>, ReportError> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let frame = read_parquet(path, None)?;
    let mut sizes = BTreeMap::new();
    for name in SIZE_COLUMNS {
        let row = if name.ends_with("_before") {
            0
        } else {
            frame.height() - 1
        };
        sizes.insert(name, frame.column(name)?.get(row)?.into_static());
    }
    // Of several prunings the shares are those of all together.
    if let (AnyValue::UInt64(before), AnyValue::UInt64(after)) =
        (&sizes["params_before"], &sizes["params_after"])
    {
        let removed = 1.0 - *after as f64 / *before as f64;
        sizes.insert("param_ratio", AnyValue::Float64(removed));
    }
    let kept: f64 = frame
        .column("group_ratio")?
        .f64()?
        .iter()
        .flatten()
        .map(|removed| 1.0 - removed)
        .product();
    if frame.height() > 1 {
        sizes.insert("group_ratio", AnyValue::Float64(1.0 - kept));
    }
    Ok(sizes)
}
