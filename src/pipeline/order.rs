//! The order pass: what a stage needs must have been made by a stage before it, and must still fit the model.

use std::collections::HashMap;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::stages::aggregate::Reduction;
use crate::stages::dependencies::Grouping;
use crate::stages::export::Format;
use crate::stages::importance::Method;
use crate::stages::products::Compat;
use crate::stages::registry::{Stage, UnrolledStage, ValueKind};

/// What became of a product.
#[derive(Clone, Copy)]
enum ValueState {
    Fresh,
    /// The stage that made it stale.
    StaleAfter(&'static str),
}

/// Checks one variant's unrolled list.
pub fn check_order(list: &[UnrolledStage], sources: &SourceTexts, problems: &mut Vec<Problem>) {
    let mut states: HashMap<ValueKind, ValueState> = HashMap::new();
    for listed in list {
        let step = match listed {
            UnrolledStage::Step(step) => step,
            UnrolledStage::Invalid(tag) => {
                states.extend(
                    Stage::outputs_of_type(tag)
                        .iter()
                        .map(|&made| (made, ValueState::Fresh)),
                );
                continue;
            }
        };
        let tag = step.stage.tag();
        let plan =
            matches!(&step.stage, Stage::Export(options) if options.formats.contains(&Format::Plan)).then_some(ValueKind::Plan);
        for &need in step.stage.needs().iter().chain(&plan) {
            let (what, maker) = need.phrase_and_maker();
            let message = match states.get(&need) {
                Some(ValueState::Fresh) => continue,
                // one mistake is told once
                None if need == ValueKind::Dense && !states.contains_key(&ValueKind::Model) => {
                    continue;
                }
                Some(ValueState::StaleAfter(spender)) => {
                    let changes = Stage::outputs_of_type(spender).contains(&ValueKind::Model);
                    let why = if changes {
                        "changed the model"
                    } else {
                        "came after them"
                    };
                    (
                        format!(
                            "`{tag}` needs {what}, and those of before no longer fit: `{spender}` {why}"
                        ),
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
            if let Some(state @ ValueState::Fresh) = states.get_mut(&spent) {
                *state = ValueState::StaleAfter(tag);
            }
        }
        states.extend(
            step.stage
                .makes()
                .iter()
                .map(|&made| (made, ValueState::Fresh)),
        );
    }
    check_compatible_options(list, sources, problems);
}

/// Options of different stages that must fit each other.
fn check_compatible_options(
    list: &[UnrolledStage],
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let (mut grouping, mut importance) = (Grouping::Block, None);
    for listed in list {
        let UnrolledStage::Step(step) = listed else {
            continue;
        };
        let mut refuse = |key: &str, message: &str, help: &str| {
            let span = step.key_spans.get(key).unwrap_or(&step.span).clone();
            problems.push(sources.problem(span, message, help));
        };
        match &step.stage {
            Stage::Dependencies(options) => grouping = options.grouping,
            Stage::Importance(options) => {
                if matches!(options.method, Method::Wanda | Method::Wifv)
                    && grouping != Grouping::Block
                {
                    refuse(
                        "method",
                        "this method looks at the inputs of matrices and scores blocks only",
                        "write grouping = \"block\", or another method",
                    );
                }
                importance = Some((options.method, options.compat));
            }
            Stage::Aggregate(options) => {
                let Some((method, compat)) = importance else {
                    continue;
                };
                if options.with == Some(Reduction::Second) && compat != Compat::Reference {
                    refuse(
                        "with",
                        "`second` exists only in the reference implementation",
                        "write `last`, or compat = \"reference\" in the importance",
                    );
                }
                if method == Method::Wifv
                    && matches!(options.with, Some(Reduction::First | Reduction::Second))
                {
                    refuse(
                        "with",
                        "`wifv` scores only the last member of a group",
                        "write `last` or `sum`",
                    );
                }
            }
            _ => {}
        }
    }
}
