//! Reads the texts that the models of one variant generated, for `generations.parquet`.

use std::collections::BTreeMap;

use super::error::ReportError;
use super::parquet::read_parquet;
use super::step_options::StepOptions;
use super::variant_summary::VariantSummary;
use crate::results::VariantStatus;

/// The columns that are read from `generate.parquet`.
const GENERATE_COLUMNS: [&str; 4] = ["step", "prompt", "input", "output"];

/// Identifies a prompt across the stages of a variant. The number alone is not enough: each
/// `generate` stage has its own list of prompts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PromptKey {
    /// The index in the stage's list of prompts.
    pub(crate) number: u32,
    pub(crate) input: String,
}

/// One row of `generate.parquet`.
struct GeneratedRow {
    step: u32,
    prompt: PromptKey,
    output: String,
}

/// The text for each prompt, and the step that generated it.
type SelectedRows<'a> = BTreeMap<&'a PromptKey, &'a GeneratedRow>;

/// The texts that the models of one variant generated.
#[derive(Default)]
pub(crate) struct GeneratedTexts {
    pub(crate) dense: BTreeMap<PromptKey, String>,
    pub(crate) pruned: BTreeMap<PromptKey, String>,
    pub(crate) last: BTreeMap<PromptKey, String>,
}

impl GeneratedTexts {
    /// Reads the texts of a variant. A variant that did not succeed has no final model.
    pub(crate) fn read(variant: &VariantSummary) -> Result<Self, ReportError> {
        let rows = read_rows(variant)?;
        let options = StepOptions::read(&variant.tables_folder);
        let steps = &variant.description.generate;
        let last_steps: &[u32] = if variant.status == VariantStatus::Succeeded {
            &steps.last
        } else {
            &[]
        };
        let last = select_rows(
            &rows,
            last_steps.iter().rev(),
            &SelectedRows::new(),
            &options,
        );
        let dense = select_rows(&rows, steps.dense.iter(), &last, &options);
        let pruned = select_rows(&rows, steps.pruned.iter().rev(), &last, &options);
        Ok(Self {
            dense: outputs(&dense),
            pruned: outputs(&pruned),
            last: outputs(&last),
        })
    }

    /// Every prompt of any model, sorted.
    pub(crate) fn prompts(&self) -> Vec<&PromptKey> {
        let mut prompts: Vec<&PromptKey> = [&self.dense, &self.pruned, &self.last]
            .into_iter()
            .flat_map(BTreeMap::keys)
            .collect();
        prompts.sort();
        prompts.dedup();
        prompts
    }
}

/// Reads `generate.parquet`; empty if the variant has none.
fn read_rows(variant: &VariantSummary) -> Result<Vec<GeneratedRow>, ReportError> {
    let path = variant.tables_folder.join("generate.parquet");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let table = read_parquet(&path, Some(&GENERATE_COLUMNS))?;
    let steps = table.column("step")?.u32()?;
    let numbers = table.column("prompt")?.u32()?;
    let inputs = table.column("input")?.str()?;
    let outputs = table.column("output")?.str()?;
    let row = |index: usize| {
        Some(GeneratedRow {
            step: steps.get(index)?,
            prompt: PromptKey {
                number: numbers.get(index)?,
                input: inputs.get(index)?.to_owned(),
            },
            output: outputs.get(index)?.to_owned(),
        })
    };
    Ok((0..table.height()).filter_map(row).collect())
}

/// Selects one row per prompt from the stages at `steps`: the first whose options are comparable to
/// those of the stage that `reference` has the prompt from. A prompt that `reference` lacks is
/// comparable.
fn select_rows<'a>(
    rows: &'a [GeneratedRow],
    steps: impl Iterator<Item = &'a u32>,
    reference: &SelectedRows<'_>,
    options: &StepOptions,
) -> SelectedRows<'a> {
    let mut selected = SelectedRows::new();
    for &step in steps {
        for row in rows.iter().filter(|row| row.step == step) {
            let is_comparable = reference
                .get(&row.prompt)
                .is_none_or(|reference| options.are_comparable("", row.step, reference.step));
            if is_comparable {
                selected.entry(&row.prompt).or_insert(row);
            }
        }
    }
    selected
}

fn outputs(rows: &SelectedRows<'_>) -> BTreeMap<PromptKey, String> {
    rows.iter()
        .map(|(prompt, row)| ((*prompt).clone(), row.output.clone()))
        .collect()
}
