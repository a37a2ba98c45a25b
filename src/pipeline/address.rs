//! Addresses of options, such as `prune.ratio`.

use std::collections::BTreeMap;

/// An option of a stage: `prune.ratio`, `recover.duration.updates`, `evaluate[2].limit`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OptionAddress {
    pub tag: String,
    /// The stage among those of its type, from 1. None: all of them.
    pub index: Option<usize>,
    /// The key inside the stage's table, split at its dots: `["duration", "updates"]`. Not empty.
    pub path: Vec<String>,
}

/// The number of stages of each type, those inside a `repeat` included.
pub(crate) type CountByType = BTreeMap<String, usize>;

impl OptionAddress {
    /// Parses `type.key`, `type[2].key`, `type.key.sub`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let no_option = || format!("`{text}` names no option; an option is `type.key`");
        let (stage, path) = text.split_once('.').ok_or_else(no_option)?;
        let indexed = stage
            .strip_suffix(']')
            .and_then(|stage| stage.split_once('['));
        let (tag, index) = match indexed {
            None => (stage, None),
            Some((tag, index)) => match index.parse() {
                Ok(index @ 1..) => (tag, Some(index)),
                _ => {
                    return Err(format!(
                        "`{index}` is not the number of a stage; the first is 1"
                    ));
                }
            },
        };
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(no_option());
        }
        Ok(Self {
            tag: tag.to_owned(),
            index,
            path,
        })
    }

    /// The index, with `type[1]` read as `type` if the pipeline has one stage of the type, so that
    /// `prune[1].ratio` and `prune.ratio` compare as equal there.
    fn normalized_index(&self, counts: &CountByType) -> Option<usize> {
        let is_only_stage = self.index == Some(1) && counts.get(&self.tag) == Some(&1);
        self.index.filter(|_| !is_only_stage)
    }

    /// Whether an assignment to `self` replaces every assignment to `other`.
    pub(crate) fn covers(&self, other: &Self, counts: &CountByType) -> bool {
        let own_index = self.normalized_index(counts);
        self.tag == other.tag
            && (own_index.is_none() || own_index == other.normalized_index(counts))
            && other.path.starts_with(&self.path)
    }

    /// Whether assignments to `self` and `other` set an option in common.
    pub(crate) fn overlaps(&self, other: &Self, counts: &CountByType) -> bool {
        let own_index = self.normalized_index(counts);
        let other_index = other.normalized_index(counts);
        let has_common_stage =
            own_index.is_none() || other_index.is_none() || own_index == other_index;
        self.tag == other.tag
            && has_common_stage
            && (self.path.starts_with(&other.path) || other.path.starts_with(&self.path))
    }
}
