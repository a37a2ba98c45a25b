//! Options that will remove nothing, as the sizes of the groups show before the run.

use super::decide::units_to_remove;
use super::{Options, Scope};
use crate::stages::environment::ExpectedGroups;
use crate::stages::facts::EarlierStages;
use crate::stages::{OptionFault, UnusedOption};
use secateur_model::groups::GroupKind;

/// Options that have no effect on the groups of this model.
pub(super) fn unused_options(earlier: &EarlierStages) -> Vec<UnusedOption> {
    let reason = "whole layers are not rounded";
    let unused = UnusedOption::new("round_to", reason);
    earlier
        .has_layer_groups
        .then_some(unused)
        .into_iter()
        .collect()
}

/// Warnings if the ratio is less than one unit of every group, or if `round_to` keeps whole groups.
/// Earlier prunings make groups smaller, and of a smaller group no more units are removed.
pub(super) fn warnings(options: &Options, groups: &[ExpectedGroups]) -> Vec<OptionFault> {
    if !(options.ratio > 0.0 && options.ratio < 1.0) {
        // The option's own check refuses it.
        return Vec::new();
    }
    let ratio_warning = ratio_warning(options, groups);
    if ratio_warning.is_some() {
        return ratio_warning.into_iter().collect();
    }
    rounding_warning(options, groups).into_iter().collect()
}

fn ratio_warning(options: &Options, groups: &[ExpectedGroups]) -> Option<OptionFault> {
    let ratio = options.ratio;
    let removes_any = match options.scope {
        Scope::Local => groups
            .iter()
            .any(|group| units_to_remove(group.units, group.units, group.unit_width, ratio) > 0),
        Scope::Global => {
            let all = groups.iter().map(|group| group.units * group.count).sum();
            units_to_remove(all, all, 1, ratio) > 0
        }
    };
    let largest = groups.iter().map(|group| group.units).max()?;
    if removes_any {
        return None;
    }
    let message = match options.scope {
        Scope::Local => format!(
            "a ratio of {ratio} removes nothing: the largest group has {largest} units, and one \
             of them is more"
        ),
        Scope::Global => {
            format!("a ratio of {ratio} removes nothing: it is less than one unit of all groups")
        }
    };
    Some(OptionFault::warning(
        "ratio",
        message,
        "write a larger ratio",
    ))
}

fn rounding_warning(options: &Options, groups: &[ExpectedGroups]) -> Option<OptionFault> {
    // Heads and layers are not rounded.
    let mut rounded = groups
        .iter()
        .filter(|group| matches!(group.kind, GroupKind::Mlp | GroupKind::Hidden));
    let group = rounded.next()?;
    let units = group.units;
    let smallest_multiple = options.round_to;
    let kept = match options.scope {
        Scope::Local => units - units_to_remove(units, units, group.unit_width, options.ratio),
        // A group can lose any share of its units.
        Scope::Global => 1,
    };
    if options.round_to <= 1 || kept.next_multiple_of(smallest_multiple) < units {
        return None;
    }
    let kind = group.kind.name();
    let message = format!(
        "with a multiple of {smallest_multiple}, {kind} groups of {units} units lose nothing at a \
         ratio of {}",
        options.ratio
    );
    let help = "write a smaller multiple, or a larger ratio";
    Some(OptionFault::warning("round_to", message, help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned_keys(options: serde_json::Value) -> Vec<String> {
        let options: Options = serde_json::from_value(options).expect("options");
        let group = |kind, units, unit_width| ExpectedGroups {
            kind,
            count: 6,
            units,
            unit_width,
        };
        // Six layers of 4 heads and 256 MLP channels: 1560 units.
        let groups = [
            group(GroupKind::Attention, 4, 16),
            group(GroupKind::Mlp, 256, 1),
        ];
        let warnings = warnings(&options, &groups);
        assert!(warnings.iter().all(|warning| warning.is_warning));
        warnings.into_iter().map(|warning| warning.key).collect()
    }

    #[test]
    fn options_that_remove_nothing_are_warned_of() {
        use serde_json::json;
        // A share of at most one channel of 256 still removes one; the reference truncates what is
        // kept.
        assert_eq!(warned_keys(json!({ "ratio": 0.003 })), [""; 0]);
        assert_eq!(
            warned_keys(json!({ "ratio": 0.25, "round_to": 64 })),
            [""; 0]
        );
        // 192 of 256 channels are kept, and the next multiple of 256 is 256.
        assert_eq!(
            warned_keys(json!({ "ratio": 0.25, "round_to": 256 })),
            ["round_to"]
        );
        assert_eq!(
            warned_keys(json!({ "ratio": 0.25, "round_to": 150 })),
            ["round_to"]
        );
        assert_eq!(
            warned_keys(json!({ "ratio": 0.5, "round_to": 150 })),
            [""; 0]
        );
        let only_heads = [ExpectedGroups {
            kind: GroupKind::Attention,
            count: 6,
            units: 4,
            unit_width: 16,
        }];
        let options: Options = serde_json::from_value(json!({ "ratio": 0.2 })).expect("options");
        assert_eq!(warnings(&options, &only_heads)[0].key, "ratio");
        assert!(
            warnings(&options, &[]).is_empty(),
            "the sizes are not known"
        );
    }
}
