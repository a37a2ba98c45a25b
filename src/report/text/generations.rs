//! Generated texts, side by side: each prompt, and below it one line per model.

use std::ops::RangeInclusive;

use polars::prelude::*;

use super::VariantNames;
use super::columns::NO_VALUE;
use crate::report::parquet::GENERATIONS_FILE;

/// How many prompts are printed.
const MAX_PROMPTS_SHOWN: usize = 3;

/// How many variants are printed of each prompt.
const MAX_VARIANTS_SHOWN: usize = 12;

/// How many characters of a text are printed at most, and at least: fewer would say nothing.
const CHARACTERS_SHOWN: RangeInclusive<usize> = 20..=100;

/// The columns of `generations.parquet` that are printed.
struct GenerationColumns<'a> {
    variants: &'a StringChunked,
    numbers: &'a UInt32Chunked,
    inputs: &'a StringChunked,
    dense: &'a StringChunked,
    outputs: &'a StringChunked,
    names: &'a VariantNames,
    /// The longest line.
    width: usize,
}

/// The rows of one prompt.
struct PromptRows<'a> {
    number: u32,
    input: &'a str,
    rows: Vec<usize>,
}

impl PromptRows<'_> {
    fn shown_rows(&self) -> &[usize] {
        &self.rows[..self.rows.len().min(MAX_VARIANTS_SHOWN)]
    }
}

/// The first prompts: each, and below it what the dense model and the first variants generated, in
/// lines of at most `width` characters.
pub(crate) fn format_generations(
    table: &DataFrame,
    names: &VariantNames,
    width: usize,
) -> Result<String, PolarsError> {
    let columns = GenerationColumns {
        variants: table.column("variant")?.str()?,
        numbers: table.column("prompt")?.u32()?,
        inputs: table.column("input")?.str()?,
        dense: table.column("dense")?.str()?,
        outputs: table.column("output")?.str()?,
        names,
        width,
    };
    let prompts = columns.group_by_prompt(table.height());
    let shown_prompts = &prompts[..prompts.len().min(MAX_PROMPTS_SHOWN)];
    let name_width = columns.name_width(shown_prompts);
    let mut text = String::new();
    for prompt in shown_prompts {
        text.push_str(&columns.format_prompt(prompt, name_width));
    }
    let is_cut = prompts.len() > MAX_PROMPTS_SHOWN
        || prompts
            .iter()
            .any(|prompt| prompt.rows.len() > MAX_VARIANTS_SHOWN);
    if is_cut {
        text.push_str(&format!("\nall generated texts: {GENERATIONS_FILE}\n"));
    }
    Ok(text)
}

impl<'a> GenerationColumns<'a> {
    /// Groups the rows by prompt, in the order of each prompt's first row.
    fn group_by_prompt(&self, height: usize) -> Vec<PromptRows<'a>> {
        let mut prompts: Vec<PromptRows<'a>> = Vec::new();
        for row in 0..height {
            let (Some(number), Some(input)) = (self.numbers.get(row), self.inputs.get(row)) else {
                continue;
            };
            let known = prompts
                .iter_mut()
                .find(|prompt| prompt.number == number && prompt.input == input);
            match known {
                Some(prompt) => prompt.rows.push(row),
                None => prompts.push(PromptRows {
                    number,
                    input,
                    rows: vec![row],
                }),
            }
        }
        prompts
    }

    /// The characters of the longest name that is printed.
    fn name_width(&self, prompts: &[PromptRows<'_>]) -> usize {
        let shown_rows = prompts.iter().flat_map(PromptRows::shown_rows);
        let names = shown_rows.map(|&row| self.name(row).chars().count());
        names.max().unwrap_or(0).max("dense".len())
    }

    /// The name of the variant in a row, so short that some of its text fits beside it.
    fn name(&self, row: usize) -> String {
        let room = self.width.saturating_sub(CHARACTERS_SHOWN.start() + 4);
        let id = self.variants.get(row).unwrap_or_default();
        self.names.fitting(id, room)
    }

    fn format_prompt(&self, prompt: &PromptRows<'_>, name_width: usize) -> String {
        let line = |name: &str, output: Option<&str>| {
            let room = self.width.saturating_sub(name_width + 4);
            let output = output.map_or_else(
                || NO_VALUE.to_owned(),
                |output| to_single_line(output, room),
            );
            let line = format!("  {name:<name_width$}  {output}");
            line.trim_end().to_owned() + "\n"
        };
        let title = format!("prompt {}: ", prompt.number);
        let room = self.width.saturating_sub(title.chars().count());
        let mut text = format!("\n{title}{}\n", to_single_line(prompt.input, room));
        if let Some(dense) = self.common_dense(prompt) {
            text.push_str(&line("dense", Some(dense)));
        }
        for &row in prompt.shown_rows() {
            text.push_str(&line(&self.name(row), self.outputs.get(row)));
        }
        text
    }

    /// The text of the dense model, if all variants have the same: variants of different dense
    /// models have no common line for it.
    fn common_dense(&self, prompt: &PromptRows<'_>) -> Option<&'a str> {
        let mut texts = prompt.rows.iter().filter_map(|&row| self.dense.get(row));
        let first = texts.next()?;
        texts.all(|text| text == first).then_some(first)
    }
}

/// The text on one line, cut to `room` characters within [`CHARACTERS_SHOWN`]. Control characters
/// become spaces: a model can generate escape sequences, which a terminal would execute.
fn to_single_line(text: &str, room: usize) -> String {
    let room = room.clamp(*CHARACTERS_SHOWN.start(), *CHARACTERS_SHOWN.end());
    let is_separator = |character: char| character.is_whitespace() || character.is_control();
    let line: String = text
        .trim()
        .chars()
        .take(room + 1)
        .map(|character| {
            if is_separator(character) {
                ' '
            } else {
                character
            }
        })
        .collect();
    if line.chars().count() <= room {
        return line;
    }
    let cut = line.chars().take(room - 1);
    cut.chain(['…']).collect()
}
