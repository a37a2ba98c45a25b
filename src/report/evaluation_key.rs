//! How a stage was asked, as the manifest tells: numbers are paired, and texts put side by side, where two models were asked
//! alike.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::results::VariantManifest;

/// The options of the steps of a variant. Earlier versions did not write them down: then all are alike.
pub struct EvaluationKey {
    options_by_step: BTreeMap<u32, Map<String, Value>>,
}

impl EvaluationKey {
    pub fn read(tables: &Path) -> Self {
        let stages =
            VariantManifest::read(tables).map_or_else(Vec::new, |manifest| manifest.stages);
        Self {
            options_by_step: stages
                .into_iter()
                .map(|stage| (stage.step, stage.options))
                .collect(),
        }
    }

    /// Whether two steps asked the same of a task (of a corpus by its stem), or, of `""`, at all.
    pub fn are_comparable(&self, task: &str, one: u32, other: u32) -> bool {
        one == other || self.comparable_options(task, one) == self.comparable_options(task, other)
    }

    /// All options but the lists of what else was asked; of a corpus, its path.
    fn comparable_options(&self, task: &str, step: u32) -> Map<String, Value> {
        let mut way = self.options_by_step.get(&step).cloned().unwrap_or_default();
        ["tasks", "prompts", "file"]
            .iter()
            .for_each(|key| drop(way.remove(*key)));
        let corpora = way.remove("corpora").unwrap_or_default();
        let is_own = |path: &&Value| {
            path.as_str()
                .is_some_and(|path| Path::new(path).file_stem().is_some_and(|stem| stem == task))
        };
        if let Some(path) = corpora
            .as_array()
            .and_then(|corpora| corpora.iter().find(is_own))
        {
            way.insert("corpus".to_owned(), path.clone());
        }
        way
    }
}
