//! Multiple choice: how a row becomes contexts, choices, and the right one.

use std::ops::Range;

use minijinja::{Environment, Value};

use super::template::{Expression, Template, TemplateError, TemplateSource};

/// The `[question]` of a task file.
#[derive(Clone, Debug)]
pub struct QuestionTemplates {
    /// One for all choices, or one for each.
    pub contexts: Vec<TemplateSource>,
    pub choices: ChoiceTemplates,
    /// The index of the right choice, or its label.
    pub gold: TemplateSource,
    pub labels: Option<ChoiceLabels>,
}

#[derive(Clone, Debug)]
pub enum ChoiceTemplates {
    /// A template for each choice.
    PerChoice(Vec<TemplateSource>),
    /// An expression that gives the list of them.
    ListExpression(TemplateSource),
}

#[derive(Clone, Debug)]
pub enum ChoiceLabels {
    Fixed(Vec<String>),
    ListExpression(TemplateSource),
}

/// A question that a row became: a context and a choice for each request, and the index of the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedQuestion {
    pub requests: Vec<(String, String)>,
    pub gold: usize,
}

/// A question whose templates are compiled.
pub struct CompiledQuestion<'e> {
    contexts: Vec<Template<'e>>,
    choices: CompiledChoices<'e>,
    gold: Expression<'e>,
    labels: Option<CompiledLabels<'e>>,
    /// Where the choices are written.
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
    pub fn compile<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<CompiledQuestion<'e>, TemplateError> {
        let templates = |written: &'e [TemplateSource]| {
            written
                .iter()
                .map(|w| w.compile_template(engine))
                .collect::<Result<Vec<_>, _>>()
        };
        let (choices, choices_at) = match &self.choices {
            ChoiceTemplates::PerChoice(written) => (
                CompiledChoices::PerChoice(templates(written)?),
                written.first().map_or(0..0, |w| w.span.clone()),
            ),
            ChoiceTemplates::ListExpression(written) => (
                CompiledChoices::ListExpression(written.compile_expression(engine)?),
                written.span.clone(),
            ),
        };
        let labels = match &self.labels {
            Some(ChoiceLabels::Fixed(labels)) => Some(CompiledLabels::Fixed(labels)),
            Some(ChoiceLabels::ListExpression(written)) => Some(CompiledLabels::ListExpression(
                written.compile_expression(engine)?,
            )),
            None => None,
        };
        Ok(CompiledQuestion {
            contexts: templates(&self.contexts)?,
            choices,
            gold: self.gold.compile_expression(engine)?,
            labels,
            choices_span: choices_at,
        })
    }
}

impl CompiledQuestion<'_> {
    /// What is asked of a row.
    pub fn render(&self, row: &Value) -> Result<RenderedQuestion, TemplateError> {
        let contexts = self
            .contexts
            .iter()
            .map(|template| template.render(row))
            .collect::<Result<Vec<_>, _>>()?;
        let choices = match &self.choices {
            CompiledChoices::PerChoice(templates) => templates
                .iter()
                .map(|t| t.render(row))
                .collect::<Result<Vec<_>, _>>()?,
            CompiledChoices::ListExpression(expression) => expression.evaluate_strings(row)?,
        };
        let unfit = |message| TemplateError {
            message,
            span: self.choices_span.clone(),
            is_row_independent: false,
        };
        if choices.len() < 2 {
            return Err(unfit(format!(
                "there is nothing to choose from {} choice",
                choices.len()
            )));
        }
        if let Some(empty) = choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(unfit(format!("choice {empty} is empty")));
        }
        if contexts.len() > 1 && contexts.len() != choices.len() {
            let message = format!(
                "there are {} contexts for {} choices",
                contexts.len(),
                choices.len()
            );
            return Err(self.contexts[0].row_error(message));
        }
        let gold = self.gold_index(row, choices.len())?;
        // One context serves all choices.
        let contexts = contexts.iter().cycle().cloned();
        Ok(RenderedQuestion {
            requests: contexts.zip(choices).collect(),
            gold,
        })
    }

    fn gold_index(&self, row: &Value, choices: usize) -> Result<usize, TemplateError> {
        let gold = match &self.labels {
            None => self.gold.evaluate_index(row)?,
            Some(labels) => {
                let gold = self.gold.evaluate_label(row)?;
                let labels = match labels {
                    CompiledLabels::Fixed(labels) => labels.to_vec(),
                    CompiledLabels::ListExpression(labels) => labels.evaluate_strings(row)?,
                };
                if labels.len() != choices {
                    return Err(self.gold.row_error(format!(
                        "there are {} labels for {choices} choices",
                        labels.len()
                    )));
                }
                let mut found = labels
                    .iter()
                    .enumerate()
                    .filter(|(_, label)| **label == gold)
                    .map(|(i, _)| i);
                let first = found.next().ok_or_else(|| {
                    self.gold
                        .row_error(format!("no choice has the label `{gold}`"))
                })?;
                if found.next().is_some() {
                    return Err(self
                        .gold
                        .row_error(format!("more than one choice has the label `{gold}`")));
                }
                first
            }
        };
        if gold >= choices {
            return Err(self.gold.row_error(format!(
                "the right choice is number {gold}, and there are {choices}"
            )));
        }
        Ok(gold)
    }
}
