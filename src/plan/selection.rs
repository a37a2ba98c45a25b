//! The part of a sweep that a run takes: variants by name, a shard of them, and the stages that
//! must run even if their products are stored.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::pipeline::problem::{Problem, SourceTexts, format_count, suggest};
use crate::plan::ids::PerNode;
use crate::plan::shard::Shard;
use crate::plan::{PlanNode, Variant};
use crate::stages::OptionFault;
use secateur_base::spelling::closest;

/// Which variants a run takes.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Ids, or prefixes that only one variant has. Empty: all variants.
    pub only: Vec<String>,
    /// Of the variants that `only` selects, the shard takes its part. None: all of them.
    pub shard: Option<Shard>,
}

impl Selection {
    /// Whether all variants are selected.
    pub(super) fn is_everything(&self) -> bool {
        self.only.is_empty() && self.shard.is_none()
    }

    /// The selected variants, and the others.
    pub(super) fn split_variants(
        &self,
        variants: Vec<Variant>,
        sources: &mut SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> (Vec<Variant>, Vec<Variant>) {
        let named = self.named_variants(&variants, sources, problems);
        let mut candidates: Vec<usize> = (0..variants.len()).collect();
        if let Some(named) = named {
            candidates.retain(|index| named.contains(index));
        }
        if let Some(shard) = self.shard {
            let candidate_variants: Vec<&Variant> =
                candidates.iter().map(|&index| &variants[index]).collect();
            let in_shard = shard.select(&candidate_variants);
            if in_shard.is_empty() && problems.iter().all(Problem::is_warning) {
                let span = sources.add_argument(&format!("--shard {shard}"));
                problems.push(empty_shard_warning(span, candidates.len(), sources));
            }
            candidates = in_shard
                .into_iter()
                .map(|index| candidates[index])
                .collect();
        }
        let candidates = BTreeSet::from_iter(candidates);
        let (mut selected, mut unselected) = (Vec::new(), Vec::new());
        for (index, variant) in variants.into_iter().enumerate() {
            if candidates.contains(&index) {
                selected.push(variant);
            } else {
                unselected.push(variant);
            }
        }
        (selected, unselected)
    }

    /// The indices of the variants that `only` names; None if it is empty.
    fn named_variants(
        &self,
        variants: &[Variant],
        sources: &mut SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<BTreeSet<usize>> {
        if self.only.is_empty() {
            return None;
        }
        let indices_where = |matches: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let indices = 0..variants.len();
            indices
                .filter(|&index| matches(&variants[index].id))
                .collect()
        };
        let mut named = BTreeSet::new();
        for name in &self.only {
            let span = sources.add_argument(&format!("--only {name}"));
            // A name that is a whole id selects that variant, even if longer ids begin with it.
            let mut found = indices_where(&|id| id == name);
            if found.is_empty() {
                found = indices_where(&|id| id.starts_with(name));
            }
            match &found[..] {
                [index] => {
                    named.insert(*index);
                }
                [] => {
                    let ids: Vec<&str> =
                        variants.iter().map(|variant| variant.id.as_str()).collect();
                    let help = match closest(name, ids.iter().copied()) {
                        Some(close) => format!("did you mean `{close}`?"),
                        None => format!("there are: {}", ids.join(", ")),
                    };
                    let message = format!("no variant is called `{name}`");
                    problems.push(sources.problem(span, message, help));
                }
                several => {
                    let ids: Vec<&str> = several
                        .iter()
                        .map(|&index| variants[index].id.as_str())
                        .collect();
                    problems.push(sources.problem(
                        span,
                        format!("several variants begin with `{name}`"),
                        format!("they are: {}", ids.join(", ")),
                    ));
                }
            }
        }
        Some(named)
    }
}

fn empty_shard_warning(span: Range<usize>, variant_count: usize, sources: &SourceTexts) -> Problem {
    let warning = OptionFault::warning(
        "shard",
        format!(
            "this shard has no variant: the shards are more than the {}",
            format_count(variant_count, "variant")
        ),
        "nothing runs; the results can be merged with those of the other shards",
    );
    sources.option_problem(span, warning)
}

/// Marks the nodes that must run even if their products are stored: all of them if `force_all`,
/// else those of the types in `force_from` and their descendants.
pub(super) fn mark_forced(
    nodes: &mut PerNode<PlanNode>,
    force_all: bool,
    force_from: &[String],
    sources: &mut SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut tags: Vec<&str> = nodes.iter().map(|node| node.step.stage.tag()).collect();
    tags.sort_unstable();
    tags.dedup();
    for tag in force_from {
        // Without nodes the pipeline has other problems, which are reported already.
        if !tags.is_empty() && !tags.contains(&tag.as_str()) {
            let span = sources.add_argument(&format!("--from {tag}"));
            problems.push(sources.problem(
                span,
                format!("the pipeline has no stage of type `{tag}`"),
                suggest(tag, &tags),
            ));
        }
    }
    // A node comes before its children, so one pass reaches all descendants.
    for id in nodes.ids() {
        let tag = nodes[id].step.stage.tag();
        if force_all {
            nodes[id].forced_by = Some("--force".to_owned());
        } else if nodes[id].forced_by.is_none() && force_from.iter().any(|forced| forced == tag) {
            nodes[id].forced_by = Some(format!("--from {tag}"));
        }
        if let Some(option) = nodes[id].forced_by.clone() {
            for child in nodes[id].children.clone() {
                nodes[child].forced_by = Some(option.clone());
            }
        }
    }
}
