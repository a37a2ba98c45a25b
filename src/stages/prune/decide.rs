//! Which units go (LLM-Pruner, section 3.3; the reference's rule of counting, `int()` and all, in double precision).

use super::{Compat, Options, RepeatPosition};
use crate::stages::products::GroupScores;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};

/// Two scores closer than this share of the larger are a near-tie: float32 programs may order them either way.
const NEAR_TIE_TOLERANCE: f64 = 3e-5;

/// Which units go, and which lie so close to the border that float32 programs may decide otherwise; group by group.
pub struct UnitSelection {
    pub removed: Vec<Vec<usize>>,
    pub is_near_tie: Vec<Vec<bool>>,
}

/// Every group for itself: the lowest-scored units, so many that `share` of the initial width is gone.
pub fn select_per_group(
    options: &Options,
    share: f64,
    model: &Model,
    graph: &DependencyGraph,
    scores: &GroupScores,
    initial: &[usize],
) -> UnitSelection {
    let groups = graph.groups.iter().zip(&scores.groups).zip(initial);
    let mut untouched = Vec::new();
    let removed: Vec<Vec<usize>> = groups
        .map(|((group, scores), &initial)| {
            let width = match group.kind {
                GroupKind::Attention => group.min_channels_per_unit(model),
                GroupKind::Mlp | GroupKind::Hidden | GroupKind::Layer => 1,
            };
            let count = units_to_remove(group.unit_count, initial, width, share);
            if count == 0
                && units_to_remove(group.unit_count * width, initial * width, 1, share) > 0
            {
                untouched.push(group.layer);
            }
            lowest_scored(
                scores,
                limit_removal_count(options, group, round_removal_count(options, group, count)),
            )
        })
        .collect();
    if !untouched.is_empty() {
        // the reference raises an error here
        tracing::warn!(share, layers = ?untouched, "less than one head would go: the heads of these layers stay");
    }
    let near = scores.groups.iter().zip(&removed);
    let near = near
        .flat_map(|(scores, removed)| near_ties(&[scores], std::slice::from_ref(removed)))
        .collect();
    UnitSelection {
        removed,
        is_near_tie: near,
    }
}

/// The share that is gone after this time, reached linearly.
pub fn scheduled_share(ratio: f64, schedule: Option<RepeatPosition>) -> f64 {
    schedule
        .map_or(ratio, |s| {
            f64::from(s.iteration) / f64::from(s.iterations) * ratio
        })
        .min(1.0)
}

/// n = current − int(initial · (1 − share)) channels, of which whole units of `width` channels go.
pub fn units_to_remove(units: usize, initial: usize, width: usize, share: f64) -> usize {
    let stay = ((initial * width) as f64 * (1.0 - share)) as usize;
    (units * width).saturating_sub(stay) / width
}

/// Fewer units, so that the width that stays is a multiple of `round_to`.
fn round_removal_count(options: &Options, group: &Group, count: usize) -> usize {
    if options.round_to == 1 || matches!(group.kind, GroupKind::Attention | GroupKind::Layer) {
        return count;
    }
    let stay = (group.unit_count - count.min(group.unit_count)).next_multiple_of(options.round_to);
    if stay > group.unit_count {
        let (layer, kind, units) = (group.layer, group.kind.name(), group.unit_count);
        tracing::warn!(
            layer,
            group = kind,
            units,
            "no smaller multiple of `round_to` is large enough; the group is left alone"
        );
    }
    group.unit_count.saturating_sub(stay)
}

/// No group is emptied: the reference leaves it alone, the corrected rule leaves it one unit.
fn limit_removal_count(options: &Options, group: &Group, count: usize) -> usize {
    if count < group.unit_count {
        return count;
    }
    let (layer, kind) = (group.layer, group.kind.name());
    tracing::warn!(layer, group = kind, "this ratio would empty the group");
    match options.compat {
        Compat::Reference => 0,
        Compat::Corrected => group.unit_count - 1,
    }
}

/// The `count` lowest scores; of equals the lower index goes first.
fn lowest_scored(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// All groups ranked together, a unit of a group against a unit of another.
pub fn select_across_groups(
    options: &Options,
    share: f64,
    graph: &DependencyGraph,
    scores: &GroupScores,
    initial: &[usize],
) -> UnitSelection {
    let now: usize = graph.groups.iter().map(|group| group.unit_count).sum();
    let count = units_to_remove(now, initial.iter().sum(), 1, share);
    let (comparable, removed) = match options.compat {
        Compat::Reference => (
            scores.groups.clone(),
            select_below_threshold(graph, scores, count),
        ),
        Compat::Corrected => {
            let comparable: Vec<Vec<f64>> = scores
                .groups
                .iter()
                .map(|scores| normalize_to_unit_mean(scores))
                .collect();
            let removed = select_lowest_ranked(graph, &comparable, count);
            (comparable, removed)
        }
    };
    let near = near_ties(&comparable, &removed);
    // Rounding gives back the best of those that were to go.
    let removed =
        graph
            .groups
            .iter()
            .zip(&scores.groups)
            .zip(removed)
            .map(|((group, scores), removed)| {
                let count = round_removal_count(options, group, removed.len());
                if count == removed.len() {
                    removed
                } else {
                    lowest_scored(scores, count)
                }
            });
    UnitSelection {
        removed: removed.collect(),
        is_near_tie: near,
    }
}

/// Scores divided by their mean, so that those of different groups can be compared.
fn normalize_to_unit_mean(scores: &[f64]) -> Vec<f64> {
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    if mean > 0.0 {
        scores.iter().map(|score| score / mean).collect()
    } else {
        scores.to_vec()
    }
}

/// The reference: raw scores, everything at or below the count-th lowest, a group that would be emptied left alone.
fn select_below_threshold(
    graph: &DependencyGraph,
    scores: &GroupScores,
    count: usize,
) -> Vec<Vec<usize>> {
    let mut all: Vec<f64> = scores.groups.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let threshold = count
        .checked_sub(1)
        .and_then(|last| all.get(last))
        .copied()
        .unwrap_or(f64::NEG_INFINITY);
    graph
        .groups
        .iter()
        .zip(&scores.groups)
        .map(|(group, scores)| {
            let below: Vec<usize> = (0..group.unit_count)
                .filter(|&unit| scores[unit] <= threshold)
                .collect();
            if below.len() == group.unit_count {
                tracing::warn!(
                    layer = group.layer,
                    group = group.kind.name(),
                    "the threshold would empty the group; it is left alone"
                );
                return Vec::new();
            }
            below
        })
        .collect()
}

/// The corrected rule: comparable scores, exactly `count` units, at least one left in every group.
fn select_lowest_ranked(
    graph: &DependencyGraph,
    comparable: &[Vec<f64>],
    count: usize,
) -> Vec<Vec<usize>> {
    let mut order: Vec<(f64, usize, usize)> = Vec::new();
    for (g, scores) in comparable.iter().enumerate() {
        order.extend(
            scores
                .iter()
                .enumerate()
                .map(|(unit, &score)| (score, g, unit)),
        );
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut removed = vec![Vec::new(); graph.groups.len()];
    let mut left = count;
    for (_, g, unit) in order {
        if left > 0 && removed[g].len() + 1 < graph.groups[g].unit_count {
            removed[g].push(unit);
            left -= 1;
        }
    }
    removed.iter_mut().for_each(|units| units.sort_unstable());
    removed
}

/// Which units lie so close to the border between kept and removed that rounding may decide. The groups given are ranked
/// together.
fn near_ties(scores: &[impl AsRef<[f64]>], removed: &[Vec<usize>]) -> Vec<Vec<bool>> {
    let units = || {
        scores.iter().zip(removed).flat_map(|(scores, removed)| {
            scores
                .as_ref()
                .iter()
                .enumerate()
                .map(|(unit, &score)| (removed.binary_search(&unit).is_ok(), score))
        })
    };
    let highest_removed = units()
        .filter(|(gone, _)| *gone)
        .map(|(_, score)| score)
        .fold(f64::NEG_INFINITY, f64::max);
    let lowest_kept = units()
        .filter(|(gone, _)| !gone)
        .map(|(_, score)| score)
        .fold(f64::INFINITY, f64::min);
    let near = |a: f64, b: f64| {
        b.is_finite() && (a - b).abs() <= NEAR_TIE_TOLERANCE * a.abs().max(b.abs())
    };
    let of_group = |(scores, removed): (&_, &Vec<usize>)| {
        let scores: &[f64] = AsRef::as_ref(scores);
        let border = |unit: usize| {
            if removed.binary_search(&unit).is_ok() {
                lowest_kept
            } else {
                highest_removed
            }
        };
        scores
            .iter()
            .enumerate()
            .map(|(unit, &score)| near(score, border(unit)))
            .collect()
    };
    scores.iter().zip(removed).map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_reference() {
        // 4096 channels in heads of 128: a quarter is 8 heads, a fifth 6 (6.4), half 16, six tenths 19
        let heads = |share| units_to_remove(32, 32, 128, share);
        assert_eq!(
            [heads(0.25), heads(0.2), heads(0.5), heads(0.6)],
            [8, 6, 16, 19]
        );
        let channels = |share| units_to_remove(11008, 11008, 1, share);
        assert_eq!(
            [channels(0.25), channels(0.2), channels(0.6)],
            [2752, 2202, 6605]
        );
        // double precision: 100 · (1 − 0.8) is 19.999…, truncated
        assert_eq!(units_to_remove(100, 100, 1, 0.8), 81);
    }

    #[test]
    fn counts_equal_the_references_in_double_precision() {
        let rows: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/data/counts.json"))
                .expect("JSON");
        let mut compared = 0;
        for row in rows.as_array().expect("a list") {
            let number = |of: &serde_json::Value, key: &str| of[key].as_u64().expect(key) as usize;
            let (initial, width, times) = (
                number(row, "init"),
                number(row, "unit"),
                number(row, "iterative_steps") as u32,
            );
            for step in row["steps"].as_array().expect("a list") {
                let schedule = RepeatPosition {
                    iteration: number(step, "t") as u32,
                    iterations: times,
                };
                let share =
                    scheduled_share(row["ratio"].as_f64().expect("a ratio"), Some(schedule));
                let removed = units_to_remove(
                    number(step, "current") / width,
                    initial / width,
                    width,
                    share,
                );
                assert_eq!(removed, number(step, "units_removed"), "{row} {step}");
                compared += 1;
            }
        }
        assert!(compared > 500, "{compared}");
    }

    #[test]
    fn ties_break_by_the_lower_index() {
        assert_eq!(lowest_scored(&[1.0, 0.5, 0.5, 0.5, 2.0], 2), [1, 2]);
        assert_eq!(
            near_ties(&[[1.0, 0.5, 0.5, 3.0]], &[vec![1]]),
            [[false, true, true, false]]
        );
        // ranked together, the border is one
        assert_eq!(
            near_ties(&[vec![1.0, 2.0], vec![2.00001, 3.0]], &[vec![0, 1], vec![]]),
            [[false, true], [true, false]]
        );
    }
}
