//! Few-shot prompts: the examples that lm-evaluation-harness draws, put before the question as it
//! puts them.

use super::error::TaskError;
use super::python_random::PythonRandom;
use super::question::{CompiledQuestion, RenderedQuestion};
use super::render_error::RenderError;
use super::rows::RowSource;
use super::template_engine::row_variables;
use crate::data_file::{Columns, DataRow};

/// How many examples precede a question, and the seed of their draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FewShot {
    pub count: usize,
    pub seed: u32,
}

/// The section `[examples]` of a task file.
#[derive(Clone, Debug)]
pub(crate) struct ExampleSource {
    /// `None`: examples are drawn from the task's own rows.
    pub(crate) rows: Option<RowSource>,
    /// Follows each example, and so also separates the last one from the question.
    pub(crate) delimiter: String,
}

/// Draws the examples of one question after another. The draws depend on each other: one generator
/// draws for all questions, in their order, as in the harness.
pub(crate) struct ExampleSampler {
    /// The rows to draw from.
    rows: Vec<DataRow>,
    /// Whether `rows` are the task's own rows, so that a question is one of them.
    is_task_rows: bool,
    few_shot: FewShot,
    random: PythonRandom,
    delimiter: String,
}

impl ExampleSampler {
    /// Reads the rows of the examples. `task_rows` are the task's own rows.
    pub(crate) fn load(
        source: &ExampleSource,
        task_rows: &RowSource,
        few_shot: FewShot,
    ) -> Result<Self, TaskError> {
        let (rows, is_task_rows) = match &source.rows {
            None => (task_rows.read(None, &Columns::All)?, true),
            // The file may name the task's own rows as the source of its examples.
            Some(example_rows) => {
                let is_task_rows = example_rows.list_files()? == task_rows.list_files()?;
                (example_rows.read(None, &Columns::All)?, is_task_rows)
            }
        };
        Ok(Self {
            rows,
            is_task_rows,
            few_shot,
            random: PythonRandom::new(few_shot.seed),
            delimiter: source.delimiter.clone(),
        })
    }

    /// Draws the examples for the question that `question_row` became and returns the text that
    /// precedes it. Each example is a context, a space, and its right choice.
    pub(crate) fn prompt_prefix(
        &mut self,
        question_row: &DataRow,
        compiled: &CompiledQuestion<'_>,
    ) -> Result<String, RenderError> {
        let example_indices = self.draw_indices(question_row)?;
        let mut prefix = String::new();
        for index in example_indices {
            let row = &self.rows[index];
            let RenderedQuestion { requests, gold } = compiled
                .render(&row_variables(row))
                .map_err(|error| RenderError::for_row(error, row))?;
            let (context, right_choice) = &requests[gold];
            prefix.push_str(context);
            prefix.push(' ');
            prefix.push_str(right_choice);
            prefix.push_str(&self.delimiter);
        }
        Ok(prefix)
    }

    /// Draws the indices of the examples. Where the question is one of the rows, the harness draws
    /// one example more than needed, removes the question if it was drawn, and takes the first
    /// `count`.
    fn draw_indices(&mut self, question_row: &DataRow) -> Result<Vec<usize>, TaskError> {
        let count = self.few_shot.count;
        if !self.is_task_rows {
            return self.sample_indices(self.rows.len(), count);
        }
        let drawn = self.sample_indices(self.rows.len(), count + 1)?;
        let is_other_row = |index: &usize| !self.rows[*index].has_same_fields(question_row);
        let mut examples: Vec<usize> = drawn.into_iter().filter(is_other_row).collect();
        examples.truncate(count);
        if examples.len() == count {
            return Ok(examples);
        }
        // The same question is in several rows and more than one of them was drawn. The harness
        // would use fewer examples; here they are drawn again from the rows that differ.
        let other_rows: Vec<usize> = (0..self.rows.len()).filter(is_other_row).collect();
        let drawn = self.sample_indices(other_rows.len(), count)?;
        Ok(drawn.into_iter().map(|index| other_rows[index]).collect())
    }

    fn sample_indices(&mut self, population: usize, count: usize) -> Result<Vec<usize>, TaskError> {
        let population_u32 = u32::try_from(population).unwrap_or(u32::MAX);
        let count_u32 = u32::try_from(count).unwrap_or(u32::MAX);
        if let Some(numbers) = self.random.sample(population_u32, count_u32) {
            return Ok(numbers.into_iter().map(|number| number as usize).collect());
        }
        // The message counts the rows without the question itself, for which one more was drawn.
        let is_one_more_drawn = self.is_task_rows && count > self.few_shot.count;
        Err(TaskError::TooFewExamples {
            requested: self.few_shot.count,
            found: population - usize::from(is_one_more_drawn),
        })
    }
}
