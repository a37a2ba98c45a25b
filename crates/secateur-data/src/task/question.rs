//! Multiple choice: how a row becomes contexts, choices, and the index of the right choice.

use std::collections::BTreeSet;
use std::ops::Range;

use minijinja::{Environment, Value};

use super::template::{Expression, Template, TemplateSource};
use super::template_error::TemplateError;
use crate::data_file::Columns;
use crate::python;

/// A multiple-choice question: one request for each choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceQuestion {
    /// Index of the row among the task's rows, from 0.
    pub index: u64,
    pub requests: Vec<LikelihoodRequest>,
    /// The index of the right choice.
    pub gold: usize,
}

/// A request for the log likelihood of a continuation, given a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LikelihoodRequest {
    pub context: String,
    /// The choice, after the space that separates it from the context.
    pub continuation: String,
    /// The characters of the choice, without that space.
    pub choice_chars: u32,
}

/// The section `[question]` of a task file.
#[derive(Clone, Debug)]
pub(crate) struct QuestionTemplates {
    /// One for all choices, or one for each.
    pub(crate) contexts: Vec<TemplateSource>,
    pub(crate) choices: ChoiceTemplates,
    /// An expression: the index of the right choice, or with `labels` its label.
    pub(crate) gold: TemplateSource,
    pub(crate) labels: Option<ChoiceLabels>,
}

#[derive(Clone, Debug)]
pub(crate) enum ChoiceTemplates {
    /// A template for each choice.
    PerChoice(Vec<TemplateSource>),
    /// An expression that gives the list of choices.
    ListExpression(TemplateSource),
}

#[derive(Clone, Debug)]
pub(crate) enum ChoiceLabels {
    /// The labels, in the order of the choices.
    Fixed(Vec<String>),
    /// An expression that gives the list of labels.
    ListExpression(TemplateSource),
}

/// A row rendered as a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RenderedQuestion {
    /// The context and the text of each choice.
    pub(crate) requests: Vec<(String, String)>,
    /// The index of the right choice.
    pub(crate) gold: usize,
}

/// A [`QuestionTemplates`] whose templates are compiled.
pub(crate) struct CompiledQuestion<'e> {
    contexts: Vec<Template<'e>>,
    choices: CompiledChoices<'e>,
    gold: Expression<'e>,
    labels: Option<CompiledLabels<'e>>,
    /// The bytes of the task file that contain the choices.
    choices_span: Range<usize>,
}

enum CompiledChoices<'e> {
    PerChoice(Vec<Template<'e>>),
    ListExpression(Expression<'e>),
}

enum CompiledLabels<'e> {
    Fixed(&'e [String]),
    ListExpression(Expression<'e>),
}

impl QuestionTemplates {
    pub(crate) fn compile<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<CompiledQuestion<'e>, TemplateError> {
        let compile_all = |sources: &'e [TemplateSource]| {
            sources
                .iter()
                .map(|source| source.compile_template(engine))
                .collect::<Result<Vec<_>, _>>()
        };
        let (choices, choices_span) = match &self.choices {
            ChoiceTemplates::PerChoice(sources) => (
                CompiledChoices::PerChoice(compile_all(sources)?),
                sources.first().map_or(0..0, |source| source.span.clone()),
            ),
            ChoiceTemplates::ListExpression(source) => (
                CompiledChoices::ListExpression(source.compile_expression(engine)?),
                source.span.clone(),
            ),
        };
        let labels = match &self.labels {
            Some(ChoiceLabels::Fixed(labels)) => Some(CompiledLabels::Fixed(labels)),
            Some(ChoiceLabels::ListExpression(source)) => Some(CompiledLabels::ListExpression(
                source.compile_expression(engine)?,
            )),
            None => None,
        };
        Ok(CompiledQuestion {
            contexts: compile_all(&self.contexts)?,
            choices,
            gold: self.gold.compile_expression(engine)?,
            labels,
            choices_span,
        })
    }
}

impl CompiledQuestion<'_> {
    /// The fields that the templates read.
    pub(crate) fn columns(&self) -> Columns {
        let mut names: BTreeSet<String> = self.gold.fields().into_iter().collect();
        let templates = match &self.choices {
            CompiledChoices::PerChoice(templates) => &templates[..],
            CompiledChoices::ListExpression(expression) => {
                names.extend(expression.fields());
                &[]
            }
        };
        names.extend(
            self.contexts
                .iter()
                .chain(templates)
                .flat_map(Template::fields),
        );
        if let Some(CompiledLabels::ListExpression(expression)) = &self.labels {
            names.extend(expression.fields());
        }
        Columns::Only(names)
    }

    /// Renders a row as a question.
    pub(crate) fn render(&self, row: &Value) -> Result<RenderedQuestion, TemplateError> {
        let contexts = render_all(&self.contexts, row)?;
        let choices = match &self.choices {
            CompiledChoices::PerChoice(templates) => render_all(templates, row)?,
            CompiledChoices::ListExpression(expression) => expression.evaluate_strings(row)?,
        };
        self.check_choices(&choices)?;
        if contexts.len() > 1 && contexts.len() != choices.len() {
            let message = format!(
                "there are {} contexts for {} choices",
                contexts.len(),
                choices.len()
            );
            return Err(self.contexts[0].row_error(message));
        }
        let gold = self.gold_index(row, choices.len())?;
        // A single context is repeated for every choice.
        let context_per_choice = contexts.iter().cycle().cloned();
        Ok(RenderedQuestion {
            requests: context_per_choice.zip(choices).collect(),
            gold,
        })
    }

    fn check_choices(&self, choices: &[String]) -> Result<(), TemplateError> {
        let row_error = |message| TemplateError {
            message,
            span: self.choices_span.clone(),
            is_row_independent: false,
        };
        if choices.len() < 2 {
            return Err(row_error(too_few_choices(choices.len())));
        }
        match choices.iter().position(|choice| python::is_blank(choice)) {
            Some(index) => Err(row_error(format!("choice {index} is empty"))),
            None => Ok(()),
        }
    }

    /// The index of the right choice.
    fn gold_index(&self, row: &Value, choice_count: usize) -> Result<usize, TemplateError> {
        let gold = match &self.labels {
            None => self.gold.evaluate_index(row)?,
            Some(labels) => self.labelled_gold_index(labels, row, choice_count)?,
        };
        if gold >= choice_count {
            return Err(self.gold.row_error(format!(
                "the right choice has the index {gold}, and the {choice_count} choices have 0 to \
                 {}",
                choice_count - 1
            )));
        }
        Ok(gold)
    }

    /// The index of the choice whose label is the value of `gold`.
    fn labelled_gold_index(
        &self,
        labels: &CompiledLabels<'_>,
        row: &Value,
        choice_count: usize,
    ) -> Result<usize, TemplateError> {
        let gold_label = self.gold.evaluate_label(row)?;
        let labels = match labels {
            CompiledLabels::Fixed(labels) => labels.to_vec(),
            CompiledLabels::ListExpression(expression) => expression.evaluate_strings(row)?,
        };
        if labels.len() != choice_count {
            return Err(self.gold.row_error(format!(
                "there are {} labels for {choice_count} choices",
                labels.len()
            )));
        }
        let matching: Vec<usize> = (0..labels.len())
            .filter(|&index| labels[index] == gold_label)
            .collect();
        match matching[..] {
            [index] => Ok(index),
            [] => Err(self
                .gold
                .row_error(format!("no choice has the label `{gold_label}`"))),
            _ => Err(self
                .gold
                .row_error(format!("more than one choice has the label `{gold_label}`"))),
        }
    }
}

/// The message for fewer than two choices.
pub(crate) fn too_few_choices(count: usize) -> String {
    format!("a question has at least 2 choices, and this one has {count}")
}

fn render_all(templates: &[Template<'_>], row: &Value) -> Result<Vec<String>, TemplateError> {
    templates
        .iter()
        .map(|template| template.render(row))
        .collect()
}
