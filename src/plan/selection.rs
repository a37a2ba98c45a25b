//! What of a sweep runs: variants by name, a shard of them, and what of them must run again.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::plan::ids::PerNode;
use crate::plan::{PlanNode, Variant};
use secateur_base::spelling::closest;

/// The variants that are asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these, by id or by a beginning of it that is theirs alone. Empty: all.
    pub only: Vec<String>,
    /// Of those, the ones that fall to this shard.
    pub shard: Option<Shard>,
}

/// One of several machines, and its share of the variants. A variant falls to a shard by the hash of its options, so it stays
/// there when others are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    number: u64,
    count: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, of) = text
            .split_once('/')
            .and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)))
            .unwrap_or((0, 0));
        if (1..=of).contains(&number) {
            Ok(Self { number, count: of })
        } else {
            Err("a shard is K/N, such as 1/4: the first of four".to_owned())
        }
    }
}

impl Shard {
    fn has(self, variant: &Variant) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = variant.hash;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) % self.count == self.number - 1
    }
}

impl Selection {
    /// Those that are asked for, and the others.
    pub fn split_variants(
        &self,
        variants: Vec<Variant>,
        sources: &mut SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> (Vec<Variant>, Vec<Variant>) {
        let named = self.resolve_names(&variants, sources, problems);
        let is_wanted = |(v, variant): &(usize, Variant)| {
            named.as_ref().is_none_or(|named| named.contains(v))
                && self.shard.is_none_or(|shard| shard.has(variant))
        };
        let (selected, others): (Vec<_>, Vec<_>) =
            variants.into_iter().enumerate().partition(is_wanted);
        let without_numbers = |numbered: Vec<(usize, Variant)>| {
            numbered.into_iter().map(|(_, variant)| variant).collect()
        };
        (without_numbers(selected), without_numbers(others))
    }

    /// The variants that have been named; None if none has.
    fn resolve_names(
        &self,
        variants: &[Variant],
        sources: &mut SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<BTreeSet<usize>> {
        let mut wanted = BTreeSet::new();
        for name in &self.only {
            let at = sources.add_argument(&format!("--only {name}"));
            let exact: Vec<usize> = (0..variants.len())
                .filter(|&v| variants[v].id == *name)
                .collect();
            let begin: Vec<usize> = (0..variants.len())
                .filter(|&v| variants[v].id.starts_with(name))
                .collect();
            match if exact.is_empty() {
                &begin[..]
            } else {
                &exact[..]
            } {
                [one] => drop(wanted.insert(*one)),
                [] => {
                    let ids = || variants.iter().map(|v| v.id.as_str());
                    let help = closest(name, ids()).map_or_else(
                        || format!("there are: {}", ids().collect::<Vec<_>>().join(", ")),
                        |close| format!("did you mean `{close}`?"),
                    );
                    problems.push(sources.problem(
                        at,
                        format!("no variant is called `{name}`"),
                        help,
                    ));
                }
                several => {
                    let ids: Vec<&str> = several.iter().map(|&v| variants[v].id.as_str()).collect();
                    problems.push(sources.problem(
                        at,
                        format!("several variants begin with `{name}`"),
                        format!("they are: {}", ids.join(", ")),
                    ));
                }
            }
        }
        (!self.only.is_empty()).then_some(wanted)
    }
}

/// Marks the nodes that must run, whatever is kept: all of them, or those of these types and all that follow.
pub fn mark_forced(
    nodes: &mut PerNode<PlanNode>,
    all: bool,
    from: &[String],
    sources: &mut SourceTexts,
    problems: &mut Vec<Problem>,
) {
    for tag in from {
        let mut tags: Vec<&str> = nodes.iter().map(|node| node.step.stage.tag()).collect();
        if !nodes.is_empty() && !tags.contains(&tag.as_str()) {
            tags.sort_unstable();
            tags.dedup();
            let at = sources.add_argument(&format!("--from {tag}"));
            problems.push(sources.problem(
                at,
                format!("the pipeline has no stage of type `{tag}`"),
                suggest(tag, &tags),
            ));
        }
    }
    for at in nodes.ids() {
        let tag = nodes[at].step.stage.tag();
        if all {
            nodes[at].forced_by = Some("--force".to_owned());
        } else if nodes[at].forced_by.is_none() && from.iter().any(|from| from == tag) {
            nodes[at].forced_by = Some(format!("--from {tag}"));
        }
        // a node stands before its children
        let forced = nodes[at].forced_by.clone();
        if forced.is_some() {
            nodes[at]
                .children
                .clone()
                .into_iter()
                .for_each(|child| nodes[child].forced_by.clone_from(&forced));
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
