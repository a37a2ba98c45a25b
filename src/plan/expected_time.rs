//! The time that a stage is expected to take: the mean of what earlier runs measured of stages of
//! its type, on the same model if there are such, with the most similar options.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::results::{self, VariantManifest};
use secateur_store::cache::list_products;

/// The options of the stage that loads or makes a model; they say which model later stages have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelSource(Map<String, Value>);

/// One run of a stage.
struct Measurement {
    options: Map<String, Value>,
    /// None if it is not known.
    model: Option<ModelSource>,
    seconds: f64,
}

/// What earlier runs measured, by stage type.
pub(super) struct Measurements {
    by_type: BTreeMap<String, Vec<Measurement>>,
}

/// How well a measurement fits a stage; the largest fits best.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Similarity {
    has_same_model: bool,
    /// Of all options of both stages, the number that are equal.
    equal_options: usize,
}

impl ModelSource {
    /// The source of the models of a list of stages, given as types and options.
    pub(super) fn of_stages<'a>(
        mut stages: impl Iterator<Item = (&'a str, Map<String, Value>)>,
    ) -> Option<Self> {
        let (_, options) = stages.find(|(tag, _)| ["load", "pretrain"].contains(tag))?;
        Some(Self(options))
    }
}

impl Measurements {
    /// Reads the manifests of every pipeline in `results`, then the products in `cache` whose
    /// stages these do not have.
    pub(super) fn read(results: &Path, cache: &Path) -> Self {
        let mut measurements = Self {
            by_type: BTreeMap::new(),
        };
        let pipelines = std::fs::read_dir(results).into_iter().flatten().flatten();
        for pipeline in pipelines {
            for variant in results::variant_folders(&pipeline.path()) {
                if let Some(manifest) = VariantManifest::read(&variant) {
                    measurements.add_variant(manifest);
                }
            }
        }
        for product in list_products(cache) {
            let is_measured = product.wall_seconds > 0.0;
            if is_measured && !measurements.by_type.contains_key(&product.stage) {
                measurements.add(
                    product.stage,
                    Measurement {
                        options: product.options,
                        model: None,
                        seconds: product.wall_seconds,
                    },
                );
            }
        }
        measurements
    }

    fn add_variant(&mut self, manifest: VariantManifest) {
        let stages = manifest.stages.iter();
        let model = ModelSource::of_stages(
            stages.map(|record| (record.stage.as_str(), record.options.clone())),
        );
        for record in manifest.stages {
            self.add(
                record.stage,
                Measurement {
                    options: record.options,
                    model: model.clone(),
                    seconds: record.cost.wall_seconds,
                },
            );
        }
    }

    fn add(&mut self, stage: String, measurement: Measurement) {
        self.by_type.entry(stage).or_default().push(measurement);
    }

    /// The expected seconds of a stage; None if no stage of its type was measured.
    pub(super) fn expected_seconds(
        &self,
        stage: &str,
        options: &Map<String, Value>,
        model: Option<&ModelSource>,
    ) -> Option<f64> {
        let mut best: Option<Similarity> = None;
        let mut seconds = Vec::new();
        for measurement in self.by_type.get(stage)? {
            let similarity = Similarity {
                has_same_model: model.is_some() && measurement.model.as_ref() == model,
                equal_options: equal_options(options, &measurement.options),
            };
            if best.is_none_or(|best| similarity > best) {
                best = Some(similarity);
                seconds.clear();
            }
            if best == Some(similarity) {
                seconds.push(measurement.seconds);
            }
        }
        (!seconds.is_empty()).then(|| seconds.iter().sum::<f64>() / seconds.len() as f64)
    }
}

fn equal_options(one: &Map<String, Value>, other: &Map<String, Value>) -> usize {
    let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| one.get(*key) == other.get(*key));
    keys.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn the_most_similar_measurements_count() {
        let mut measurements = Measurements {
            by_type: BTreeMap::new(),
        };
        let [small, large] =
            ["small", "large"].map(|model| ModelSource(map(&json!({ "model": model }))));
        let mut add = |options: Value, model: Option<&ModelSource>, seconds: f64| {
            measurements.add(
                "prune".to_owned(),
                Measurement {
                    options: map(&options),
                    model: model.cloned(),
                    seconds,
                },
            );
        };
        add(json!({ "ratio": 0.5, "scope": "local" }), Some(&small), 2.0);
        add(
            json!({ "ratio": 0.25, "scope": "local" }),
            Some(&small),
            4.0,
        );
        add(
            json!({ "ratio": 0.1, "scope": "global" }),
            Some(&small),
            9.0,
        );
        add(
            json!({ "ratio": 0.1, "scope": "local" }),
            Some(&large),
            100.0,
        );
        let expected =
            |options: Value, model| measurements.expected_seconds("prune", &map(&options), model);
        let options = json!({ "ratio": 0.1, "scope": "local" });
        // Of the same model two measurements differ in one option.
        assert_eq!(expected(options.clone(), Some(&large)), Some(100.0));
        assert_eq!(
            expected(json!({ "ratio": 0.3, "scope": "local" }), Some(&small)),
            Some(3.0)
        );
        assert_eq!(expected(options, None), Some(100.0));
        assert_eq!(
            measurements.expected_seconds("recover", &Map::new(), Some(&small)),
            None
        );
    }
}
