//! Warnings about options that are written and have no effect.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::pipeline::layers::LayeredSettings;
use crate::pipeline::option_type;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::RunSettings;
use crate::plan::Variant;
use crate::plan::ids::NodeId;
use crate::stages::step::Step;
use crate::stages::{OptionFault, UnusedOption};

/// A warning for each written value that has no effect in any stage of any variant. One line can
/// reach several stages (`--set evaluate.limit=20`), and several variants share the lines of the
/// file, so a line is warned of only if no stage uses it.
///
/// `by_node`: what the files and headers of the checked nodes show.
pub(super) fn warnings<'a>(
    variants: impl Iterator<Item = &'a Variant>,
    by_node: &BTreeMap<NodeId, Vec<UnusedOption>>,
    sources: &SourceTexts,
) -> Vec<Problem> {
    // By the place of the value; None: a stage uses it.
    let mut by_place: BTreeMap<(usize, usize), Option<OptionFault>> = BTreeMap::new();
    for variant in variants {
        for (index, step) in variant.steps.iter().enumerate() {
            let node = variant.nodes.get(index);
            let of_node = node.and_then(|node| by_node.get(node));
            for (key, span) in &step.key_spans {
                let mut unused = step
                    .unused_options
                    .iter()
                    .chain(of_node.into_iter().flatten());
                let unused = unused.find(|unused| unused.key == key);
                let fault = unused.filter(|_| !is_default(step, key)).map(warning);
                let entry = by_place
                    .entry((span.start, span.end))
                    .or_insert_with(|| fault.clone());
                if fault.is_none() {
                    *entry = None;
                }
            }
        }
    }
    by_place
        .into_iter()
        .filter_map(|((start, end), fault)| Some(sources.option_problem(start..end, fault?)))
        .collect()
}

fn warning(unused: &UnusedOption) -> OptionFault {
    let UnusedOption { key, reason } = unused;
    let message = format!("`{key}` has no effect: {reason}");
    OptionFault::warning(*key, message, "leave it out")
}

/// A warning if a seed is written and no stage uses it. `span`: where it is written.
pub(super) fn seed_warning<'a>(
    mut variants: impl Iterator<Item = &'a Variant>,
    settings: &LayeredSettings,
    span: Range<usize>,
    sources: &SourceTexts,
) -> Option<Problem> {
    let is_default = settings.run.seed == RunSettings::default().seed;
    let uses_seed = |step: &Step| step.stage.stage_type().uses_seed;
    if is_default || variants.any(|variant| variant.steps.iter().any(uses_seed)) {
        return None;
    }
    let message = "`seed` has no effect on the results: no stage draws random numbers from it";
    let fault = OptionFault::warning("seed", message, "leave it out");
    Some(sources.option_problem(span, fault))
}

/// Whether the option has its default value: this changes nothing, wherever it is written. The
/// `pipeline.toml` of a variant has every default.
fn is_default(step: &Step, key: &str) -> bool {
    let table = option_type::stage_table(step.stage.tag());
    let option = table.and_then(|table| table.option(key));
    let default = option.and_then(|option| option.default.as_ref());
    default.is_some() && step.stage.options().get(key) == default
}
