//! The part of a sweep that a run takes: variants by name, a shard of them, and the stages that
//! must run even if their products are stored.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::plan::ids::PerNode;
use crate::plan::{PlanNode, Variant};
use secateur_base::spelling::closest;

/// Which variants a run takes.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Ids, or prefixes that only one variant has. Empty: all variants.
    pub only: Vec<String>,
    /// Of the variants that `only` selects, the shard takes its part. None: all of them.
    pub shard: Option<Shard>,
}

/// One of several machines that share the variants. The hash of a variant's options decides its
/// shard, so a variant stays in its shard when others are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// 1 to `count`.
    number: u64,
    count: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, count) = text
            .split_once('/')
            .and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)))
            .unwrap_or((0, 0));
        if (1..=count).contains(&number) {
            Ok(Self { number, count })
        } else {
            Err("a shard is K/N, such as 1/4: the first of four".to_owned())
        }
    }
}

impl Shard {
    fn contains(self, variant: &Variant) -> bool {
        // The first eight bytes of the hash, as a number.
        let [a, b, c, d, e, f, g, h, ..] = variant.hash;
        let hash_number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        hash_number % self.count == self.number - 1
    }
}

impl Selection {
    /// The selected variants, and the others.
    pub(super) fn split_variants(
        &self,
        variants: Vec<Variant>,
        sources: &mut SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> (Vec<Variant>, Vec<Variant>) {
        let named = self.named_variants(&variants, sources, problems);
        let (mut selected, mut unselected) = (Vec::new(), Vec::new());
        for (index, variant) in variants.into_iter().enumerate() {
            let is_named = named.as_ref().is_none_or(|named| named.contains(&index));
            let is_in_shard = self.shard.is_none_or(|shard| shard.contains(&variant));
            if is_named && is_in_shard {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_a_number_and_a_count() {
        assert_eq!(
            "2/3".parse(),
            Ok(Shard {
                number: 2,
                count: 3
            })
        );
        for wrong in ["0/3", "4/3", "1", "1/", "/2", "a/b", "1/0", "-1/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
