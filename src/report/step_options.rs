//! The options of each stage of a variant, as its manifest records them. Two measurements are
//! paired, and two texts are shown side by side, only if their stages had comparable options.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::results::VariantManifest;

/// Options that list what else a stage measured, or where it wrote; they do not change how one task
/// is measured.
const IGNORED_OPTIONS: [&str; 3] = ["tasks", "prompts", "file"];

/// The options of the steps of one variant. Manifests of earlier versions have no options: then all
/// steps are comparable.
pub(crate) struct StepOptions {
    options_by_step: BTreeMap<u32, Map<String, Value>>,
}

impl StepOptions {
    pub(crate) fn read(tables_folder: &Path) -> Self {
        let stages =
            VariantManifest::read(tables_folder).map_or_else(Vec::new, |manifest| manifest.stages);
        Self {
            options_by_step: stages
                .into_iter()
                .map(|stage| (stage.step, stage.options))
                .collect(),
        }
    }

    /// Whether two steps measured `task` with the same options. The task of a corpus is its file
    /// stem; an empty name compares the options that do not belong to one task.
    pub(crate) fn are_comparable(&self, task: &str, one_step: u32, other_step: u32) -> bool {
        one_step == other_step
            || self.comparable_options(task, one_step) == self.comparable_options(task, other_step)
    }

    /// The options of a step that decide how it measures `task`. The list of corpora is replaced by
    /// the path of the one that `task` names: two corpora in different folders can have one stem.
    fn comparable_options(&self, task: &str, step: u32) -> Map<String, Value> {
        let mut options = self.options_by_step.get(&step).cloned().unwrap_or_default();
        for key in IGNORED_OPTIONS {
            options.remove(key);
        }
        if let Some(Value::Array(corpora)) = options.remove("corpora")
            && let Some(corpus) = corpora.into_iter().find(|path| has_file_stem(path, task))
        {
            options.insert("corpus".to_owned(), corpus);
        }
        options
    }
}

fn has_file_stem(path: &Value, stem: &str) -> bool {
    path.as_str()
        .and_then(|path| Path::new(path).file_stem())
        .is_some_and(|file_stem| file_stem == stem)
}
