//! The order pass of the check: earlier stages must have made the values that a stage needs, no
//! stage since then may have made them stale, and options of different stages must fit each other.

use std::collections::HashMap;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::stages::Stage;
use crate::stages::facts::EarlierStages;
use crate::stages::registry;
use crate::stages::step::{Step, UnrolledStage};
use crate::stages::values::ValueKind;

/// Whether a value that was made can still be used.
#[derive(Clone, Copy)]
enum ValueState {
    Fresh,
    /// A stage of an unknown type may have made it. No mistake is reported about it.
    Assumed,
    /// A stage of this type made it stale: it changed what the value describes.
    StaleAfter(&'static str),
}

/// The values that the stages so far have made.
type ValueStates = HashMap<ValueKind, ValueState>;

/// Checks the unrolled stages of one variant, and records which of their options have no effect.
pub(crate) fn check_order(
    list: &mut [UnrolledStage],
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut states = ValueStates::new();
    let mut earlier = EarlierStages::default();
    for unrolled in list {
        match unrolled {
            UnrolledStage::Step(step) => {
                for need in step.stage.needs() {
                    let problem = missing_value_problem(&*step.stage, need, &states);
                    problems.extend(
                        problem.map(|(message, help)| {
                            sources.problem(step.span.clone(), message, help)
                        }),
                    );
                }
                for fault in step.stage.faults_after(&earlier) {
                    if !step.reports(&fault) {
                        continue;
                    }
                    let span = step.key_spans.get(&fault.key).unwrap_or(&step.span);
                    problems.push(sources.option_problem(span.clone(), fault));
                }
                step.unused_options = step.stage.unused_options(&earlier);
                step.stage.state_facts(&mut earlier);
                if !step.replaced_keys.is_empty() {
                    earlier.forget(step.stage.makes());
                }
                apply_step(step, &mut states);
            }
            // What an invalid stage would have made counts as made, so that its mistake is not
            // reported again at later stages.
            UnrolledStage::Invalid(tag) => {
                let outputs = registry::outputs_of_type(tag);
                earlier.forget(outputs);
                let state = match tag.as_str() {
                    "" => ValueState::Assumed,
                    _ => ValueState::Fresh,
                };
                states.extend(outputs.iter().map(|&kind| (kind, state)));
            }
        }
    }
}

/// Marks what the stage spends as stale and what it makes as fresh.
fn apply_step(step: &Step, states: &mut ValueStates) {
    for spent in step.stage.spends() {
        if let Some(state @ ValueState::Fresh) = states.get_mut(spent) {
            *state = ValueState::StaleAfter(step.stage.tag());
        }
    }
    let makes = step.stage.makes().iter();
    states.extend(makes.map(|&kind| (kind, ValueState::Fresh)));
}

/// Message and help if a value that the stage needs was not made or is stale.
fn missing_value_problem(
    stage: &dyn Stage,
    need: ValueKind,
    states: &ValueStates,
) -> Option<(String, String)> {
    let tag = stage.tag();
    let value = need.phrase();
    let maker = registry::usual_maker(need);
    match states.get(&need) {
        Some(ValueState::Fresh | ValueState::Assumed) => None,
        // Without any model only the missing `ValueKind::Model` is reported.
        None if need == ValueKind::Dense && !states.contains_key(&ValueKind::Model) => None,
        None => Some((
            format!("`{tag}` needs {value}, which no stage before it makes"),
            format!("put a stage of type `{maker}` before it"),
        )),
        Some(ValueState::StaleAfter(spender)) => {
            let changes_model = registry::outputs_of_type(spender).contains(&ValueKind::Model);
            let reason = if changes_model {
                "changed the model"
            } else {
                "came after it"
            };
            Some((
                format!(
                    "`{tag}` needs {value}, but what earlier stages made is out of date: \
                     `{spender}` {reason}"
                ),
                format!("add another stage of type `{maker}` between the two"),
            ))
        }
    }
}
