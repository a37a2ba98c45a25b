//! `generations.parquet`: what the variants wrote to the same prompts, beside what the dense and the pruned model wrote; and
//! the same as a person reads it.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::evaluation_key::EvaluationKey;
use super::{ReportError, VariantRow, VariantSummary, read_parquet};
use crate::report::shape::StepsByModel;
use crate::results::VariantStatus;

/// The file of the table, in the folder of a pipeline.
pub const GENERATIONS_FILE: &str = "generations.parquet";

/// What is read of `generate`.
const GENERATE_COLUMNS: [&str; 4] = ["step", "prompt", "input", "output"];

/// How many prompts the summary shows.
const MAX_PROMPTS_SHOWN: usize = 3;

/// How many variants the summary shows of each.
const MAX_VARIANTS_SHOWN: usize = 12;

/// How many characters of a text the summary shows.
const MAX_CHARACTERS_SHOWN: usize = 100;

/// A prompt, by its place in its stage and what it says: stages of one variant may have prompts of their own.
type PromptKey = (u32, String);

/// What the models of one variant wrote.
#[derive(Default)]
pub struct GeneratedTexts {
    dense: BTreeMap<PromptKey, String>,
    pruned: BTreeMap<PromptKey, String>,
    last: BTreeMap<PromptKey, String>,
}

impl GeneratedTexts {
    pub fn read(variant: &VariantSummary) -> Result<Self, ReportError> {
        let path = variant.tables_folder.join("generate.parquet");
        if !path.exists() {
            return Ok(Self::default());
        }
        let frame = read_parquet(&path, Some(&GENERATE_COLUMNS))?;
        let (step, prompt) = (frame.column("step")?.u32()?, frame.column("prompt")?.u32()?);
        let (input, output) = (
            frame.column("input")?.str()?,
            frame.column("output")?.str()?,
        );
        let row = |i: usize| {
            Some((
                step.get(i)?,
                (prompt.get(i)?, input.get(i)?.to_owned()),
                output.get(i)?.to_owned(),
            ))
        };
        let rows: Vec<(u32, PromptKey, String)> = (0..frame.height()).filter_map(row).collect();
        let asked = EvaluationKey::read(&variant.tables_folder);
        // What stands first wins, of what was asked as `of` was.
        let at = |steps: &mut dyn Iterator<Item = &u32>,
                  of: &BTreeMap<PromptKey, (u32, String)>| {
            let mut all: BTreeMap<PromptKey, (u32, String)> = BTreeMap::new();
            for row in steps.flat_map(|step| rows.iter().filter(move |row| row.0 == *step)) {
                if of
                    .get(&row.1)
                    .is_none_or(|of| asked.are_comparable("", row.0, of.0))
                {
                    all.entry(row.1.clone())
                        .or_insert_with(|| (row.0, row.2.clone()));
                }
            }
            all
        };
        let texts = |of: BTreeMap<PromptKey, (u32, String)>| {
            of.into_iter()
                .map(|(prompt, (_, text))| (prompt, text))
                .collect()
        };
        let StepsByModel {
            dense,
            pruned,
            last,
        } = &variant.description.generate;
        let mut last = if variant.status == VariantStatus::Succeeded {
            last.clone()
        } else {
            Vec::new()
        };
        last.reverse();
        let last = at(&mut last.iter(), &BTreeMap::new());
        let (dense, pruned) = (
            at(&mut dense.iter(), &last),
            at(&mut pruned.iter().rev(), &last),
        );
        Ok(Self {
            dense: texts(dense),
            pruned: texts(pruned),
            last: texts(last),
        })
    }

    /// Every prompt that any model was given, in order.
    fn prompts(&self) -> Vec<&PromptKey> {
        let mut prompts: Vec<&PromptKey> = [&self.dense, &self.pruned, &self.last]
            .into_iter()
            .flat_map(BTreeMap::keys)
            .collect();
        prompts.sort();
        prompts.dedup();
        prompts
    }
}

/// One row for each variant and prompt; None if nothing was written.
pub fn generations_frame(rows: &[VariantRow]) -> Result<Option<DataFrame>, ReportError> {
    let asked = rows.iter().flat_map(|row| {
        row.texts
            .prompts()
            .into_iter()
            .map(move |prompt| (row, prompt))
    });
    let asked: Vec<(&VariantRow, &PromptKey)> = asked.collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let text = |name: &str, texts: fn(&GeneratedTexts) -> &BTreeMap<PromptKey, String>| {
        let texts = asked
            .iter()
            .map(|(row, prompt)| texts(&row.texts).get(*prompt).map(String::as_str));
        Column::new(name.into(), texts.collect::<Vec<Option<&str>>>())
    };
    let columns = vec![
        Column::new(
            "variant".into(),
            asked
                .iter()
                .map(|(row, _)| row.variant.description.id.as_str())
                .collect::<Vec<_>>(),
        ),
        Column::new(
            "prompt".into(),
            asked.iter().map(|(_, prompt)| prompt.0).collect::<Vec<_>>(),
        ),
        Column::new(
            "input".into(),
            asked
                .iter()
                .map(|(_, prompt)| prompt.1.as_str())
                .collect::<Vec<_>>(),
        ),
        text("dense", |texts| &texts.dense),
        text("pruned", |texts| &texts.pruned),
        text("output", |texts| &texts.last),
    ];
    Ok(Some(DataFrame::new(asked.len(), columns)?))
}

/// The first prompts: each, and below it what the dense model and the variants wrote, a line each.
pub fn format_generations(frame: &DataFrame) -> Result<String, PolarsError> {
    let (variant, prompt) = (
        frame.column("variant")?.str()?,
        frame.column("prompt")?.u32()?,
    );
    let (input, dense, output) = (
        frame.column("input")?.str()?,
        frame.column("dense")?.str()?,
        frame.column("output")?.str()?,
    );
    let mut asked: Vec<((u32, &str), Vec<usize>)> = Vec::new();
    for i in 0..frame.height() {
        let (Some(number), Some(input)) = (prompt.get(i), input.get(i)) else {
            continue;
        };
        match asked
            .iter_mut()
            .find(|(known, _)| *known == (number, input))
        {
            Some((_, rows)) => rows.push(i),
            None => asked.push(((number, input), vec![i])),
        }
    }
    let shown = asked
        .iter()
        .take(MAX_PROMPTS_SHOWN)
        .flat_map(|(_, rows)| rows.iter().take(MAX_VARIANTS_SHOWN));
    let names = shown.filter_map(|&i| variant.get(i)).chain(["dense"]);
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for ((number, input), rows) in asked.iter().take(MAX_PROMPTS_SHOWN) {
        text.push_str(&format!("\nprompt {number}: {}\n", single_line(input)));
        let mut write = |name: &str, output: Option<&str>| {
            let output = output.map_or_else(|| "–".to_owned(), single_line);
            text.push_str(format!("  {name:<width$}  {output}").trim_end());
            text.push('\n');
        };
        let mut of_dense = rows.iter().filter_map(|&i| dense.get(i));
        let first = of_dense.next();
        // Variants of several models have no dense line in common.
        if first.is_some() && of_dense.all(|other| Some(other) == first) {
            write("dense", first);
        }
        for &i in rows.iter().take(MAX_VARIANTS_SHOWN) {
            write(variant.get(i).unwrap_or_default(), output.get(i));
        }
    }
    if asked.len() > MAX_PROMPTS_SHOWN
        || asked
            .iter()
            .any(|(_, rows)| rows.len() > MAX_VARIANTS_SHOWN)
    {
        text.push_str(&format!("\nall that was written: {GENERATIONS_FILE}\n"));
    }
    Ok(text)
}

/// A text on one line, cut.
fn single_line(text: &str) -> String {
    // a model may write any character, also those that command a terminal
    let plain = |c: char| {
        if c.is_whitespace() || c.is_control() {
            ' '
        } else {
            c
        }
    };
    let text: String = text
        .trim()
        .chars()
        .take(MAX_CHARACTERS_SHOWN + 1)
        .map(plain)
        .collect();
    match text.char_indices().nth(MAX_CHARACTERS_SHOWN) {
        Some(_) => text
            .chars()
            .take(MAX_CHARACTERS_SHOWN - 1)
            .chain(['…'])
            .collect(),
        None => text,
    }
}
