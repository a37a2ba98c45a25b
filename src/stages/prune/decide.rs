//! Selects the units that are removed (LLM-Pruner, section 3.3). Counts are computed as in the
//! reference: truncated by `int()`, in double precision.

use super::{Compat, Options};
use crate::stages::RepeatPosition;
use crate::stages::products::GroupScores;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};

/// Two scores that differ by at most this share of the larger are a near-tie: programs that compute
/// in float32 may order them either way.
const NEAR_TIE_TOLERANCE: f64 = 3e-5;

/// The units to remove, group by group in the order of the graph.
pub(crate) struct UnitSelection {
    /// Units that are removed, ascending.
    pub removed: Vec<Vec<usize>>,
    /// For each unit, whether its score is so close to the border between kept and removed that
    /// rounding may decide.
    pub is_near_tie: Vec<Vec<bool>>,
}

/// Ranks every group by itself: removes its lowest-scored units until `share` of its initial units
/// is removed.
///
/// `initial_counts`: units of each group that `share` refers to.
pub(crate) fn select_per_group(
    options: &Options,
    share: f64,
    model: &Model,
    graph: &DependencyGraph,
    scores: &GroupScores,
    initial_counts: &[usize],
) -> UnitSelection {
    let mut removed = Vec::with_capacity(graph.groups.len());
    let mut is_near_tie = Vec::with_capacity(graph.groups.len());
    let mut unpruned_layers = Vec::new();
    for (index, group) in graph.groups.iter().enumerate() {
        let initial = initial_counts[index];
        // The reference counts channels. A head is removed whole; the other kinds of units count as
        // one channel.
        let width = match group.kind {
            GroupKind::Attention => group.min_channels_per_unit(model),
            GroupKind::Mlp | GroupKind::Hidden | GroupKind::Layer => 1,
        };
        let unit_count = units_to_remove(group.unit_count, initial, width, share);
        let channel_count = units_to_remove(group.unit_count * width, initial * width, 1, share);
        if unit_count == 0 && channel_count > 0 {
            unpruned_layers.push(group.layer);
        }
        let rounded_count = round_removal_count(options, group, unit_count);
        let count = limit_removal_count(options, group, rounded_count);
        let group_scores = &scores.groups[index];
        let lowest = lowest_scored(group_scores, count);
        is_near_tie.extend(near_ties(&[group_scores], std::slice::from_ref(&lowest)));
        removed.push(lowest);
    }
    if !unpruned_layers.is_empty() {
        // The reference raises an error here.
        tracing::warn!(
            share,
            layers = ?unpruned_layers,
            "the share is less than one head: these layers keep all heads"
        );
    }
    UnitSelection {
        removed,
        is_near_tie,
    }
}

/// The share that is removed after this iteration of a repeat: `ratio · iteration / iterations`.
pub(crate) fn scheduled_share(ratio: f64, repeat_position: Option<RepeatPosition>) -> f64 {
    let share = match repeat_position {
        Some(repeat) => f64::from(repeat.iteration) / f64::from(repeat.iterations) * ratio,
        None => ratio,
    };
    share.min(1.0)
}

/// How many of the `units` present units of `width` channels each are removed, so that `share` of
/// the `initial` units is removed: `units · width − int(initial · width · (1 − share))` channels,
/// rounded down to whole units.
pub(crate) fn units_to_remove(units: usize, initial: usize, width: usize, share: f64) -> usize {
    let kept_channels = ((initial * width) as f64 * (1.0 - share)) as usize;
    (units * width).saturating_sub(kept_channels) / width
}

/// Lowers a count of units to remove, so that the number of kept units is a multiple of `round_to`.
fn round_removal_count(options: &Options, group: &Group, count: usize) -> usize {
    if options.round_to == 1 || matches!(group.kind, GroupKind::Attention | GroupKind::Layer) {
        return count;
    }
    let kept = group.unit_count - count.min(group.unit_count);
    let rounded = kept.next_multiple_of(options.round_to);
    if rounded > group.unit_count {
        let (layer, kind, units) = (group.layer, group.kind.name(), group.unit_count);
        tracing::warn!(
            layer,
            group = kind,
            units,
            "no multiple of `round_to` lies between the width to keep and the width of the group; \
             the group is not pruned"
        );
    }
    group.unit_count.saturating_sub(rounded)
}

/// Limits a count of units to remove, so that the group keeps at least one unit: the reference then
/// removes none, the corrected rule all but one.
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

/// The indices of the `count` lowest scores, ascending. Of equal scores the lower index is taken
/// first.
fn lowest_scored(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Ranks the units of all groups together: removes the lowest-scored ones until `share` of all
/// initial units is removed.
pub(crate) fn select_across_groups(
    options: &Options,
    share: f64,
    graph: &DependencyGraph,
    scores: &GroupScores,
    initial_counts: &[usize],
) -> UnitSelection {
    let current: usize = graph.groups.iter().map(|group| group.unit_count).sum();
    let count = units_to_remove(current, initial_counts.iter().sum(), 1, share);
    let (ranked_scores, selection) = match options.compat {
        Compat::Reference => {
            let selected = select_below_threshold(graph, scores, count);
            (scores.groups.clone(), selected)
        }
        Compat::Corrected => {
            let normalized: Vec<Vec<f64>> = scores
                .groups
                .iter()
                .map(|group_scores| normalize_to_unit_mean(group_scores))
                .collect();
            let selected = select_lowest_ranked(graph, &normalized, count);
            (normalized, selected)
        }
    };
    let is_near_tie = near_ties(&ranked_scores, &selection);
    // If rounding lowers the count of a group, the selected units with the highest scores are kept.
    let mut removed = Vec::with_capacity(selection.len());
    for (index, selected) in selection.into_iter().enumerate() {
        let rounded = round_removal_count(options, &graph.groups[index], selected.len());
        removed.push(if rounded == selected.len() {
            selected
        } else {
            lowest_scored(&scores.groups[index], rounded)
        });
    }
    UnitSelection {
        removed,
        is_near_tie,
    }
}

/// Scores divided by their mean, so that those of different groups are comparable. Unchanged if the
/// mean is not positive.
fn normalize_to_unit_mean(scores: &[f64]) -> Vec<f64> {
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    if mean > 0.0 {
        scores.iter().map(|score| score / mean).collect()
    } else {
        scores.to_vec()
    }
}

/// The reference's rule: compares raw scores, removes every unit at or below the count-th lowest,
/// and skips a group that would lose all units.
fn select_below_threshold(
    graph: &DependencyGraph,
    scores: &GroupScores,
    count: usize,
) -> Vec<Vec<usize>> {
    let mut all_scores: Vec<f64> = scores.groups.iter().flatten().copied().collect();
    all_scores.sort_by(f64::total_cmp);
    let threshold = match count.checked_sub(1).and_then(|last| all_scores.get(last)) {
        Some(&threshold) => threshold,
        None => f64::NEG_INFINITY,
    };
    let mut selected = Vec::with_capacity(graph.groups.len());
    for (group, group_scores) in graph.groups.iter().zip(&scores.groups) {
        let below: Vec<usize> = (0..group.unit_count)
            .filter(|&unit| group_scores[unit] <= threshold)
            .collect();
        if below.len() == group.unit_count {
            tracing::warn!(
                layer = group.layer,
                group = group.kind.name(),
                "the threshold would empty the group; the group is not pruned"
            );
            selected.push(Vec::new());
        } else {
            selected.push(below);
        }
    }
    selected
}

/// The corrected rule: removes exactly the `count` units with the lowest normalised scores, but
/// never the last unit of a group.
fn select_lowest_ranked(
    graph: &DependencyGraph,
    normalized: &[Vec<f64>],
    count: usize,
) -> Vec<Vec<usize>> {
    let mut order: Vec<(f64, usize, usize)> = Vec::new();
    for (group, scores) in normalized.iter().enumerate() {
        let units = scores.iter().enumerate();
        order.extend(units.map(|(unit, &score)| (score, group, unit)));
    }
    // Of equal scores the lower group, then the lower unit comes first.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut removed = vec![Vec::new(); graph.groups.len()];
    let mut remaining = count;
    for (_, group, unit) in order {
        let leaves_one = removed[group].len() + 1 < graph.groups[group].unit_count;
        if remaining > 0 && leaves_one {
            removed[group].push(unit);
            remaining -= 1;
        }
    }
    removed.iter_mut().for_each(|units| units.sort_unstable());
    removed
}

/// For each unit, whether its score is so close to the border between kept and removed that
/// rounding may decide. `scores`: those of groups that were ranked together. A removed unit is
/// compared with the lowest score that is kept, a kept unit with the highest score that is removed.
fn near_ties(scores: &[impl AsRef<[f64]>], removed: &[Vec<usize>]) -> Vec<Vec<bool>> {
    let is_removed = |group: usize, unit: usize| removed[group].binary_search(&unit).is_ok();
    let mut highest_removed = f64::NEG_INFINITY;
    let mut lowest_kept = f64::INFINITY;
    for (group, group_scores) in scores.iter().enumerate() {
        for (unit, &score) in group_scores.as_ref().iter().enumerate() {
            if is_removed(group, unit) {
                highest_removed = highest_removed.max(score);
            } else {
                lowest_kept = lowest_kept.min(score);
            }
        }
    }
    // The border is infinite if nothing is removed, or nothing kept: then there are no near-ties.
    let is_near = |score: f64, border: f64| {
        let tolerance = NEAR_TIE_TOLERANCE * score.abs().max(border.abs());
        border.is_finite() && (score - border).abs() <= tolerance
    };
    let mut ties = Vec::with_capacity(scores.len());
    for (group, group_scores) in scores.iter().enumerate() {
        let mut group_ties = Vec::new();
        for (unit, &score) in group_scores.as_ref().iter().enumerate() {
            let border = if is_removed(group, unit) {
                lowest_kept
            } else {
                highest_removed
            };
            group_ties.push(is_near(score, border));
        }
        ties.push(group_ties);
    }
    ties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_reference() {
        // 4096 channels in heads of 128: a quarter is 8 heads, a fifth 6 (6.4), half 16, six tenths
        // 19
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
        // in double precision 100 · (1 − 0.8) is 19.999…, which truncates to 19
        assert_eq!(units_to_remove(100, 100, 1, 0.8), 81);
    }

    #[test]
    fn counts_equal_the_references_in_double_precision() {
        let rows: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/data/counts.json"))
                .expect("JSON");
        let mut compared = 0;
        for row in rows.as_array().expect("list") {
            let number =
                |row: &serde_json::Value, key: &str| row[key].as_u64().expect(key) as usize;
            let (initial, width) = (number(row, "init"), number(row, "unit"));
            let iterations = number(row, "iterative_steps") as u32;
            for step in row["steps"].as_array().expect("list") {
                let position = RepeatPosition {
                    iteration: number(step, "t") as u32,
                    iterations,
                };
                let share = scheduled_share(row["ratio"].as_f64().expect("ratio"), Some(position));
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
        // groups that are ranked together share one border
        assert_eq!(
            near_ties(&[vec![1.0, 2.0], vec![2.00001, 3.0]], &[vec![0, 1], vec![]]),
            [[false, true], [true, false]]
        );
    }
}
