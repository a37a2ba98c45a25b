//! Few-shot: the examples that lm-evaluation-harness draws, put before the question as it puts them.

use super::error::RenderError;
use super::python_random::PythonRandom;
use super::question::{CompiledQuestion, RenderedQuestion};
use super::rows::{RowSource, TaskRow};
use super::{FewShot, TaskError};

/// The `[examples]` of a task file.
#[derive(Clone, Debug)]
pub struct ExampleSource {
    /// None: the task's own rows.
    pub rows: Option<RowSource>,
    /// Stands between examples, and before the question.
    pub delimiter: String,
}

/// The examples of a task, and the generator that draws of them, document after document.
pub struct ExampleSampler {
    rows: Vec<TaskRow>,
    /// They are the task's own rows, of which the question is one.
    is_task_rows: bool,
    few_shot: FewShot,
    random: PythonRandom,
    delimiter: String,
}

impl ExampleSampler {
    pub fn load(at: &ExampleSource, own: &RowSource, shots: FewShot) -> Result<Self, TaskError> {
        let files = at.rows.as_ref().map(RowSource::list_files).transpose()?;
        let is_own = match &files {
            Some(files) => *files == own.list_files()?,
            None => true,
        };
        let rows = at.rows.as_ref().unwrap_or(own).read(None)?;
        Ok(Self {
            rows,
            is_task_rows: is_own,
            few_shot: shots,
            random: PythonRandom::new(shots.seed),
            delimiter: at.delimiter.clone(),
        })
    }

    /// What stands before the question that a row became.
    pub fn prompt_prefix(
        &mut self,
        question: &TaskRow,
        compiled: &CompiledQuestion<'_>,
    ) -> Result<String, RenderError> {
        let drawn = self.draw_indices(question)?;
        let mut text = String::new();
        for row in drawn.into_iter().map(|i| &self.rows[i]) {
            let RenderedQuestion { requests, gold } = compiled
                .render(&row.to_template_value())
                .map_err(|unfit| RenderError::for_row(unfit, row))?;
            // The right choice after its own context.
            let (context, choice) = &requests[gold];
            text.push_str(context);
            text.push(' ');
            text.push_str(choice);
            text.push_str(&self.delimiter);
        }
        Ok(text)
    }

    /// The harness's draw, as indices: one example more than are needed where the question may be among them, and the
    /// question put out.
    fn draw_indices(&mut self, question: &TaskRow) -> Result<Vec<usize>, TaskError> {
        let count = self.few_shot.count;
        if !self.is_task_rows {
            return self.sample_indices(self.rows.len(), count);
        }
        let drawn = self.sample_indices(self.rows.len(), count + 1)?;
        let another = |i: &usize| self.rows[*i].fields != question.fields;
        let mut examples: Vec<usize> = drawn.into_iter().filter(another).collect();
        examples.truncate(count);
        if examples.len() < count {
            // The question stands in the rows more than once, and more than one of it was drawn.
            let pool: Vec<usize> = (0..self.rows.len()).filter(another).collect();
            examples = self
                .sample_indices(pool.len(), count)?
                .into_iter()
                .map(|i| pool[i])
                .collect();
        }
        Ok(examples)
    }

    fn sample_indices(&mut self, population: usize, count: usize) -> Result<Vec<usize>, TaskError> {
        let [below, asked] = [population, count].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let drawn = self.random.sample(below, asked);
        let others = population - usize::from(self.is_task_rows && count > self.few_shot.count);
        let too_few = TaskError::TooFewExamples {
            requested: self.few_shot.count,
            found: others,
        };
        drawn
            .map(|drawn| drawn.into_iter().map(|i| i as usize).collect())
            .ok_or(too_few)
    }
}
