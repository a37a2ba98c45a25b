//! Multiple choice: how a row becomes contexts, choices, and the right one.

use std::ops::Range;

use minijinja::{Environment, Value};

use super::template::{Expression, Template, Unfit, Written};

/// The `[question]` of a task file.
#[derive(Clone, Debug)]
pub struct Question {
    /// One for all choices, or one for each.
    pub contexts: Vec<Written>,
    pub choices: Choices,
    /// The index of the right choice, or its label.
    pub gold: Written,
    pub labels: Option<Labels>,
}

#[derive(Clone, Debug)]
pub enum Choices {
    /// A template for each choice.
    Given(Vec<Written>),
    /// An expression that gives the list of them.
    OfRow(Written),
}

#[derive(Clone, Debug)]
pub enum Labels {
    Given(Vec<String>),
    OfRow(Written),
}

/// A question that a row became: a context and a choice for each request, and the index of the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub requests: Vec<(String, String)>,
    pub gold: usize,
}

/// A question whose templates are compiled.
pub struct Compiled<'e> {
    contexts: Vec<Template<'e>>,
    choices: CompiledChoices<'e>,
    gold: Expression<'e>,
    labels: Option<CompiledLabels<'e>>,
    /// Where the choices are written.
    choices_at: Range<usize>,
}

enum CompiledChoices<'e> {
    Given(Vec<Template<'e>>),
    OfRow(Expression<'e>),
}

enum CompiledLabels<'e> {
    Given(&'e [String]),
    OfRow(Expression<'e>),
}

impl Question {
    pub fn compile<'e>(&'e self, engine: &'e Environment<'e>) -> Result<Compiled<'e>, Unfit> {
        let templates = |written: &'e [Written]| written.iter().map(|w| w.template(engine)).collect::<Result<Vec<_>, _>>();
        let (choices, choices_at) = match &self.choices {
            Choices::Given(written) => {
                (CompiledChoices::Given(templates(written)?), written.first().map_or(0..0, |w| w.span.clone()))
            }
            Choices::OfRow(written) => (CompiledChoices::OfRow(written.expression(engine)?), written.span.clone()),
        };
        let labels = match &self.labels {
            Some(Labels::Given(labels)) => Some(CompiledLabels::Given(labels)),
            Some(Labels::OfRow(written)) => Some(CompiledLabels::OfRow(written.expression(engine)?)),
            None => None,
        };
        Ok(Compiled { contexts: templates(&self.contexts)?, choices, gold: self.gold.expression(engine)?, labels, choices_at })
    }
}

impl Compiled<'_> {
    /// What is asked of a row.
    pub fn ask(&self, row: &Value) -> Result<Asked, Unfit> {
        let contexts = self.contexts.iter().map(|template| template.render(row)).collect::<Result<Vec<_>, _>>()?;
        let choices = match &self.choices {
            CompiledChoices::Given(templates) => templates.iter().map(|t| t.render(row)).collect::<Result<Vec<_>, _>>()?,
            CompiledChoices::OfRow(expression) => expression.texts(row)?,
        };
        let unfit = |message| Unfit { message, span: self.choices_at.clone(), always: false };
        if choices.len() < 2 {
            return Err(unfit(format!("there is nothing to choose from {} choice", choices.len())));
        }
        if let Some(empty) = choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(unfit(format!("choice {empty} is empty")));
        }
        if contexts.len() > 1 && contexts.len() != choices.len() {
            let message = format!("there are {} contexts for {} choices", contexts.len(), choices.len());
            return Err(self.contexts[0].unfit(message));
        }
        let gold = self.gold(row, choices.len())?;
        // One context serves all choices.
        let contexts = contexts.iter().cycle().cloned();
        Ok(Asked { requests: contexts.zip(choices).collect(), gold })
    }

    fn gold(&self, row: &Value, choices: usize) -> Result<usize, Unfit> {
        let gold = match &self.labels {
            None => self.gold.index(row)?,
            Some(labels) => {
                let gold = self.gold.label(row)?;
                let labels = match labels {
                    CompiledLabels::Given(labels) => labels.to_vec(),
                    CompiledLabels::OfRow(labels) => labels.texts(row)?,
                };
                if labels.len() != choices {
                    return Err(self.gold.unfit(format!("there are {} labels for {choices} choices", labels.len())));
                }
                let mut found = labels.iter().enumerate().filter(|(_, label)| **label == gold).map(|(i, _)| i);
                let first = found.next().ok_or_else(|| self.gold.unfit(format!("no choice has the label `{gold}`")))?;
                if found.next().is_some() {
                    return Err(self.gold.unfit(format!("more than one choice has the label `{gold}`")));
                }
                first
            }
        };
        if gold >= choices {
            return Err(self.gold.unfit(format!("the right choice is number {gold}, and there are {choices}")));
        }
        Ok(gold)
    }
}
