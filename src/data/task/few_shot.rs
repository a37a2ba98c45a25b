//! Few-shot: the examples that lm-evaluation-harness draws, put before the question as it puts them.

use super::error::Unfitted;
use super::python_random::PythonRandom;
use super::question::{Asked, Compiled};
use super::rows::{Row, Rows};
use super::{Shots, TaskError};

/// The `[examples]` of a task file.
#[derive(Clone, Debug)]
pub struct ExamplesAt {
    /// None: the task's own rows.
    pub rows: Option<Rows>,
    /// Stands between examples, and before the question.
    pub delimiter: String,
}

/// The examples of a task, and the generator that draws of them, document after document.
pub struct Examples {
    rows: Vec<Row>,
    /// They are the task's own rows, of which the question is one.
    own: bool,
    shots: Shots,
    random: PythonRandom,
    delimiter: String,
}

impl Examples {
    pub fn read(at: &ExamplesAt, own: &Rows, shots: Shots) -> Result<Self, TaskError> {
        let files = at.rows.as_ref().map(Rows::files).transpose()?;
        let is_own = match &files {
            Some(files) => *files == own.files()?,
            None => true,
        };
        let rows = at.rows.as_ref().unwrap_or(own).read(None)?;
        Ok(Self { rows, own: is_own, shots, random: PythonRandom::new(shots.seed), delimiter: at.delimiter.clone() })
    }

    /// What stands before the question that a row became.
    pub fn before(&mut self, question: &Row, compiled: &Compiled<'_>) -> Result<String, Unfitted> {
        let drawn = self.draw(question)?;
        let mut text = String::new();
        for row in drawn.into_iter().map(|i| &self.rows[i]) {
            let Asked { requests, gold } = compiled.ask(&row.value()).map_err(|unfit| Unfitted::row(unfit, row))?;
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
    fn draw(&mut self, question: &Row) -> Result<Vec<usize>, TaskError> {
        let count = self.shots.count;
        if !self.own {
            return self.among(self.rows.len(), count);
        }
        let drawn = self.among(self.rows.len(), count + 1)?;
        let another = |i: &usize| self.rows[*i].fields != question.fields;
        let mut examples: Vec<usize> = drawn.into_iter().filter(another).collect();
        examples.truncate(count);
        if examples.len() < count {
            // The question stands in the rows more than once, and more than one of it was drawn.
            let pool: Vec<usize> = (0..self.rows.len()).filter(another).collect();
            examples = self.among(pool.len(), count)?.into_iter().map(|i| pool[i]).collect();
        }
        Ok(examples)
    }

    fn among(&mut self, population: usize, count: usize) -> Result<Vec<usize>, TaskError> {
        let [below, asked] = [population, count].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let drawn = self.random.sample(below, asked);
        let others = population - usize::from(self.own && count > self.shots.count);
        let too_few = TaskError::TooFewExamples { asked: self.shots.count, found: others };
        drawn.map(|drawn| drawn.into_iter().map(|i| i as usize).collect()).ok_or(too_few)
    }
}
