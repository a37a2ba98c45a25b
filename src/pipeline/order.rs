//! The order pass: what a stage needs must have been made by a stage before it, and must still fit the model.

use std::collections::HashMap;

use super::problem::{Problem, Sources};
use super::stage::{Listed, Product, Stage};
use crate::stages::aggregate::Reduction;
use crate::stages::dependencies::Grouping;
use crate::stages::export::Format;
use crate::stages::importance::Method;
use crate::stages::products::Compat;

/// What became of a product.
#[derive(Clone, Copy)]
enum State {
    Fresh,
    /// The stage that made it stale.
    SpentBy(&'static str),
}

/// Checks one variant's unrolled list.
pub fn check(list: &[Listed], sources: &Sources, problems: &mut Vec<Problem>) {
    let mut states: HashMap<Product, State> = HashMap::new();
    for listed in list {
        let step = match listed {
            Listed::Step(step) => step,
            Listed::Unread(tag) => {
                states.extend(Stage::made_by(tag).iter().map(|&made| (made, State::Fresh)));
                continue;
            }
        };
        let tag = step.stage.tag();
        let plan =
            matches!(&step.stage, Stage::Export(options) if options.formats.contains(&Format::Plan)).then_some(Product::Plan);
        for &need in step.stage.needs().iter().chain(&plan) {
            let (what, maker) = need.described();
            let message = match states.get(&need) {
                Some(State::Fresh) => continue,
                // one mistake is told once
                None if need == Product::Dense && !states.contains_key(&Product::Model) => continue,
                Some(State::SpentBy(spender)) => {
                    let changes = Stage::made_by(spender).contains(&Product::Model);
                    let why = if changes { "changed the model" } else { "came after them" };
                    (
                        format!("`{tag}` needs {what}, and those of before no longer fit: `{spender}` {why}"),
                        format!("repeat the stage `{maker}` between the two"),
                    )
                }
                None => (
                    format!("`{tag}` needs {what}, which no stage before it makes"),
                    format!("put a stage of type `{maker}` before it"),
                ),
            };
            problems.push(sources.problem(step.span.clone(), message.0, message.1));
        }
        for &spent in step.stage.spends() {
            if let Some(state @ State::Fresh) = states.get_mut(&spent) {
                *state = State::SpentBy(tag);
            }
        }
        states.extend(step.stage.makes().iter().map(|&made| (made, State::Fresh)));
    }
    agree(list, sources, problems);
}

/// Options of different stages that must fit each other.
fn agree(list: &[Listed], sources: &Sources, problems: &mut Vec<Problem>) {
    let (mut grouping, mut importance) = (Grouping::Block, None);
    for listed in list {
        let Listed::Step(step) = listed else { continue };
        let mut refuse = |key: &str, message: &str, help: &str| {
            let span = step.key_spans.get(key).unwrap_or(&step.span).clone();
            problems.push(sources.problem(span, message, help));
        };
        match &step.stage {
            Stage::Dependencies(options) => grouping = options.grouping,
            Stage::Importance(options) => {
                if matches!(options.method, Method::Wanda | Method::Wifv) && grouping != Grouping::Block {
                    refuse(
                        "method",
                        "this method looks at the inputs of matrices and scores blocks only",
                        "write grouping = \"block\", or another method",
                    );
                }
                importance = Some((options.method, options.compat));
            }
            Stage::Aggregate(options) => {
                let Some((method, compat)) = importance else { continue };
                if options.with == Some(Reduction::Second) && compat != Compat::Reference {
                    refuse(
                        "with",
                        "`second` exists only in the reference implementation",
                        "write `last`, or compat = \"reference\" in the importance",
                    );
                }
                if method == Method::Wifv && matches!(options.with, Some(Reduction::First | Reduction::Second)) {
                    refuse("with", "`wifv` scores only the last member of a group", "write `last` or `sum`");
                }
            }
            _ => {}
        }
    }
}
