//! Scores, selections, shapes, sizes and perplexities against those of LLM-Pruner (commit 128a07d),
//! and against the paper's equations in float64.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use secateur::stages::RepeatPosition;
use secateur::stages::importance::taylor::{self, GradientSums, TaylorCriterion};
use secateur::stages::importance::{self, Fisher, Taylor};
use secateur::stages::products::{ChannelScores, Compat, GroupScores, PruningResult};
use secateur::stages::{aggregate, dependencies, prune};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, GroupKind};
use secateur_model::plan::PruningPlan;
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_tensor::Gradient;
use serde_json::{Value, json};

use crate::support::{self, context, numbers, shared, stream_perplexity};

/// A model with the golden numbers of the reference.
struct Golden {
    name: &'static str,
    model: Model,
    /// The numbers of LLM-Pruner's program.
    json: Value,
    /// The numbers of the paper's equations in float64.
    paper: Value,
    /// The gradients that the reference computed for the calibration sample A.
    gradients: BTreeMap<TensorId, GradientSums>,
    /// The calibration samples as corpora, `A.jsonl` and `B.jsonl`.
    folder: tempfile::TempDir,
}

/// The parts of the key of a stored score, such as `taylor/param_first/sum`.
#[derive(Clone, Copy)]
struct Key<'a> {
    method: &'a str,
    form: Option<&'a str>,
    with: &'a str,
}

fn key(text: &str) -> Key<'_> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [method, form, with] => Key {
            method,
            form: Some(form),
            with,
        },
        [method, with] => Key {
            method,
            form: None,
            with,
        },
        _ => Key {
            method: text,
            form: None,
            with: "sum",
        },
    }
}

impl Key<'_> {
    fn taylor(self) -> Option<Taylor> {
        Some(match self.form? {
            "vectorize" => Taylor::Vector,
            "param_first" => Taylor::ElementFirst,
            "param_second" => Taylor::ElementSecond,
            _ => Taylor::ElementMixed,
        })
    }
    fn with(self) -> &'static str {
        match self.with {
            "sum" => "sum",
            "mean" => "mean",
            "max" => "max",
            "prod" => "product",
            "first" => "first",
            "last" => "last",
            _ => "second",
        }
    }
}

fn load(name: &'static str) -> Golden {
    let model = Model::load(&shared(&format!("models/{name}"))).unwrap();
    let json = support::json(&shared(&format!("golden/prune_{name}.json")));
    let paper = support::json(&shared(&format!("golden/paper_{name}.json")));
    let bytes = std::fs::read(shared(&format!("golden/prune_{name}_grads.safetensors"))).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: String| -> Vec<f32> {
        stored
            .tensor(&name)
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    };
    let sums = |tensor_id: &TensorId| {
        let name = model.family.tensor_name(*tensor_id);
        let (rows, cols) = (
            model.weight(*tensor_id).rows(),
            model.weight(*tensor_id).cols(),
        );
        let gradients_of_kind =
            |kind: &str| Gradient::new(tensor(format!("{kind}.{name}")), rows, cols);
        (
            *tensor_id,
            GradientSums {
                gradient: gradients_of_kind("grad"),
                squares: Some(gradients_of_kind("acc")),
            },
        )
    };
    let gradients = model.tensor_ids().iter().map(sums).collect();
    let folder = tempfile::tempdir().unwrap();
    for sample in ["A", "B"] {
        let rows: Vec<Vec<u32>> = numbers(&json["calibration"][sample]);
        let lines: String = rows
            .iter()
            .map(|ids| format!("{{\"ids\": {ids:?}}}\n"))
            .collect();
        std::fs::write(folder.path().join(format!("{sample}.jsonl")), lines).unwrap();
    }
    Golden {
        name,
        model,
        json,
        paper,
        gradients,
        folder,
    }
}

fn golden_models() -> impl Iterator<Item = Golden> {
    ["stories260K", "mha_tiny"].into_iter().map(load)
}

impl Golden {
    fn graph(&self, model: &Model, grouping: &str) -> DependencyGraph {
        let settings = &self.json["settings"];
        let options = json!({
            "grouping": grouping,
            "attention_layers": settings["attention_layers"],
            "mlp_layers": settings["mlp_layers"],
        });
        dependencies::run(&serde_json::from_value(options).unwrap(), model).unwrap()
    }

    /// Scores from the stored gradients of the reference.
    fn scores_from_stored_gradients(
        &self,
        graph: &DependencyGraph,
        form: TaylorCriterion,
        compat: Compat,
    ) -> ChannelScores {
        // The stored squares are already a mean over the samples, hence 1 sample.
        let groups = taylor::scores_from_gradients(form, &self.model, graph, 1, &self.gradients);
        ChannelScores {
            groups,
            is_signed: matches!(form.form, Taylor::Vector | Taylor::VectorMixed),
            is_magnitude: false,
            compat,
            input_means: Vec::new(),
        }
    }

    /// Scores from gradients that this program computes.
    fn computed_scores(
        &self,
        model: &Model,
        graph: &DependencyGraph,
        method: &str,
        taylor: Option<Taylor>,
        compat: Compat,
        sample: &str,
    ) -> ChannelScores {
        let corpus = self.folder.path().join(format!("{sample}.jsonl"));
        let mut options =
            json!({ "method": method, "compat": compat, "corpus": corpus, "sample": "file" });
        if let Some(taylor) = taylor {
            options["taylor"] = json!(taylor);
        }
        importance::run(
            &serde_json::from_value(options).unwrap(),
            &context(),
            model,
            graph,
        )
        .unwrap()
        .0
    }

    fn perplexity(&self, model: &Model) -> f64 {
        stream_perplexity(model, &numbers::<u32>(&self.json["ppl_stream"]))
    }
}

fn units(
    model: &Model,
    graph: &DependencyGraph,
    scores: &ChannelScores,
    with: &str,
    level: &str,
) -> GroupScores {
    let options = serde_json::from_value(json!({ "with": with, "level": level })).unwrap();
    aggregate::run(&options, model, graph, scores).unwrap().0
}

fn numbers_or_empty<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    if value.is_null() {
        Vec::new()
    } else {
        numbers(value)
    }
}

/// The stored scores in the order of the graph's groups; empty for a kind that is not stored.
fn expected(graph: &DependencyGraph, stored: &Value) -> Vec<Vec<f64>> {
    let group = |group: &secateur_model::groups::Group| match group.kind {
        GroupKind::Hidden => numbers_or_empty(stored),
        GroupKind::Attention => numbers_or_empty(&stored[group.layer.to_string()]["attn"]),
        _ => numbers_or_empty(&stored[group.layer.to_string()]["mlp"]),
    };
    graph.groups.iter().map(group).collect()
}

/// The largest difference, relative to each score or to the largest score of its group.
fn relative_difference(found: &[Vec<f64>], expected: &[Vec<f64>], of_largest: bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let groups = found
        .iter()
        .zip(expected)
        .filter(|(_, expected)| !expected.is_empty())
        .map(|(found, expected)| {
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().copied().fold(0.0, f64::max);
            let difference =
                |(a, b): (&f64, &f64)| (a - b).abs() / if of_largest { largest } else { b.abs() };
            // Equal values are left out: the relative difference of two zeros would be 0 / 0.
            let unequal = found.iter().zip(expected).filter(|(a, b)| a != b);
            support::largest(unequal.map(difference))
        });
    support::largest(groups)
}

/// The number of factors of a product. Each has a relative error of up to ε, so a product of n
/// factors has one of up to n·ε.
fn factor_count(key: Key<'_>, graph: &DependencyGraph) -> f64 {
    if key.with == "prod" {
        let member_counts = graph.groups.iter().map(|group| group.members.len());
        member_counts.max().unwrap() as f64
    } else {
        1.0
    }
}

/// The stored tables of scores to compare: (key, values, grouping, compat).
fn tables(golden: &Golden) -> Vec<(&str, &Value, &'static str, Compat)> {
    let entries_of_field = |field: &str, grouping, compat| {
        let entries = golden.json[field].as_object().into_iter().flatten();
        entries
            .map(move |(key, value)| (key.as_str(), value, grouping, compat))
            .collect::<Vec<_>>()
    };
    let mut tables = entries_of_field("scores", "block", Compat::Reference);
    tables.extend(entries_of_field("scores_div", "block", Compat::Corrected));
    tables.extend(entries_of_field(
        "channel_scores",
        "channel",
        Compat::Reference,
    ));
    // Products over all members of the residual stream underflow in the reference's float32.
    tables.retain(|(key, _, grouping, _)| {
        *key != "random" && !(*grouping == "channel" && key.ends_with("/prod"))
    });
    assert!(
        tables.len() >= 52,
        "only {} tables of scores are stored",
        tables.len()
    );
    tables
}

test!(
    scores_from_stored_gradients_equal_llm_pruner,
    needs = super::LLM_PRUNER
);
fn scores_from_stored_gradients_equal_llm_pruner() {
    for golden in golden_models() {
        let mut largest = 0f64;
        let tables = tables(&golden);
        for (name, stored, grouping, compat) in &tables {
            let (key, graph) = (key(name), golden.graph(&golden.model, grouping));
            let scores = match key.taylor() {
                Some(taylor) => golden.scores_from_stored_gradients(
                    &graph,
                    TaylorCriterion {
                        form: taylor,
                        fisher: Fisher::Mean,
                    },
                    *compat,
                ),
                None => {
                    golden.computed_scores(&golden.model, &graph, key.method, None, *compat, "A")
                }
            };
            let found = units(&golden.model, &graph, &scores, key.with(), "channel");
            let vector = key.form == Some("vectorize");
            let difference = relative_difference(&found.groups, &expected(&graph, stored), vector);
            assert!(
                difference <= 1e-6 * factor_count(key, &graph),
                "{} {grouping} {name}: {difference:.1e}",
                golden.name
            );
            largest = largest.max(difference / factor_count(key, &graph));
        }
        note!(
            "{}: {} tables of scores from stored gradients, largest difference {largest:.1e}",
            golden.name,
            tables.len()
        );
    }
}

test!(
    scores_from_own_gradients_equal_llm_pruner,
    needs = super::LLM_PRUNER
);
fn scores_from_own_gradients_equal_llm_pruner() {
    for golden in golden_models() {
        let mut largest = 0f64;
        // Scores by method, form, grouping and compat: the aggregations share them.
        let mut computed = BTreeMap::new();
        for (name, stored, grouping, compat) in tables(&golden) {
            let (key, graph) = (key(name), golden.graph(&golden.model, grouping));
            let id = (key.method, key.form, grouping, compat == Compat::Reference);
            let scores = computed.entry(id).or_insert_with(|| {
                golden.computed_scores(&golden.model, &graph, key.method, key.taylor(), compat, "A")
            });
            let found = units(&golden.model, &graph, scores, key.with(), "channel");
            let vector = key.form == Some("vectorize");
            let difference = relative_difference(&found.groups, &expected(&graph, stored), vector);
            assert!(
                difference <= 2e-5 * factor_count(key, &graph),
                "{} {grouping} {name}: {difference:.1e}",
                golden.name
            );
            largest = largest.max(difference / factor_count(key, &graph));
        }
        note!(
            "{}: from our own gradients, largest difference {largest:.1e}",
            golden.name
        );
    }
}

test!(member_scores_equal_llm_pruner, needs = super::LLM_PRUNER);
fn member_scores_equal_llm_pruner() {
    for golden in golden_models() {
        let bytes = std::fs::read(shared(&format!(
            "golden/prune_{}_members.safetensors",
            golden.name
        )))
        .unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let graph = golden.graph(&golden.model, "block");
        let (mut largest, mut compared) = (0f64, 0);
        for mode in [
            "l1",
            "l2",
            "vectorize",
            "param_first",
            "param_second",
            "param_mix",
        ] {
            let key = Key {
                method: mode,
                form: Some(mode).filter(|mode| !mode.starts_with('l')),
                with: "sum",
            };
            let scores = match key.taylor() {
                Some(taylor) => golden.scores_from_stored_gradients(
                    &graph,
                    TaylorCriterion {
                        form: taylor,
                        fisher: Fisher::Mean,
                    },
                    Compat::Reference,
                ),
                None => golden.computed_scores(
                    &golden.model,
                    &graph,
                    mode,
                    None,
                    Compat::Reference,
                    "A",
                ),
            };
            for (group, members) in graph.groups.iter().zip(&scores.groups) {
                for scored in members {
                    let member = &group.members[scored.member_index];
                    let side = if member.is_output { "in" } else { "out" };
                    let part = member
                        .name
                        .trim_end_matches(".weight")
                        .rsplit('.')
                        .next()
                        .unwrap();
                    let kind = if group.kind == GroupKind::Attention {
                        "attn"
                    } else {
                        "mlp"
                    };
                    let name = format!("{mode}.layer{}.{kind}.{part}.{side}", group.layer);
                    let tensor = stored.tensor(&name).unwrap();
                    let expected: Vec<f64> = tensor
                        .data()
                        .chunks_exact(8)
                        .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()))
                        .collect();
                    let found: Vec<f64> = scored.channels.iter().map(|score| score.abs()).collect();
                    let difference =
                        relative_difference(&[found], &[expected], mode == "vectorize");
                    assert!(
                        difference <= 1e-6,
                        "{} {name}: {difference:.1e}",
                        golden.name
                    );
                    (largest, compared) = (largest.max(difference), compared + 1);
                }
            }
        }
        assert_eq!(
            compared,
            stored.names().len(),
            "every stored member was compared"
        );
        note!(
            "{}: {compared} members' scores, largest difference {largest:.1e}",
            golden.name
        );
    }
}

/// The Taylor form and the Fisher reduction of one of the paper's tables.
fn equation(name: &str) -> (Taylor, Fisher) {
    match name {
        "eq3" => (Taylor::VectorMixed, Fisher::Mean),
        "eq5" => (Taylor::ElementMixed, Fisher::Mean),
        "eq5_no_mean" => (Taylor::ElementMixed, Fisher::Sum),
        _ => (Taylor::Vector, Fisher::Mean),
    }
}

test!(scores_equal_the_paper_equations, needs = super::LLM_PRUNER);
fn scores_equal_the_paper_equations() {
    for golden in golden_models() {
        let graph = golden.graph(&golden.model, "block");
        let samples = golden.json["calibration"]["A"].as_array().unwrap().len();
        let (mut largest, mut compared) = (0f64, 0);
        for (table, level) in [("structures", "unit"), ("channelwise", "channel")] {
            for (name, layers) in golden.paper[table].as_object().unwrap() {
                let (taylor, fisher) = equation(name);
                let form = TaylorCriterion {
                    form: taylor,
                    fisher: Fisher::Mean,
                };
                let mut scores =
                    golden.scores_from_stored_gradients(&graph, form, Compat::Corrected);
                if fisher == Fisher::Sum {
                    // The stored squares are a mean over the samples; the sum is that times their
                    // number.
                    let with_summed_squares = |mean: &GradientSums| {
                        let (rows, cols) = mean.gradient.shape();
                        let squares = mean
                            .squares
                            .as_ref()
                            .unwrap()
                            .values()
                            .iter()
                            .map(|&square| square * samples as f32)
                            .collect();
                        GradientSums {
                            gradient: mean.gradient.clone(),
                            squares: Some(Gradient::new(squares, rows, cols)),
                        }
                    };
                    let sums = golden
                        .gradients
                        .iter()
                        .map(|(tensor_id, mean)| (*tensor_id, with_summed_squares(mean)))
                        .collect();
                    scores.groups = taylor::scores_from_gradients(
                        TaylorCriterion {
                            form: taylor,
                            fisher,
                        },
                        &golden.model,
                        &graph,
                        samples,
                        &sums,
                    );
                }
                for (group, with) in [
                    ("group_sum", "sum"),
                    ("group_prod", "product"),
                    ("group_max", "max"),
                    ("group_last", "last"),
                ] {
                    let found = units(&golden.model, &graph, &scores, with, level);
                    let stored_scores = |model_group: &secateur_model::groups::Group| {
                        let kind = if model_group.kind == GroupKind::Attention {
                            "attn"
                        } else {
                            "mlp"
                        };
                        numbers(&layers[model_group.layer.to_string()][kind][group])
                    };
                    let stored: Vec<Vec<f64>> = graph.groups.iter().map(stored_scores).collect();
                    let difference = relative_difference(&found.groups, &stored, scores.is_signed);
                    assert!(
                        difference <= 4e-6,
                        "{} {table}/{name}/{group}: {difference:.1e}",
                        golden.name
                    );
                    (largest, compared) = (largest.max(difference), compared + 1);
                }
            }
        }
        for (name, stored) in golden.paper["last_only"].as_object().unwrap() {
            let (form, fold) = name.split_once('/').unwrap_or((name, "div"));
            let compat = if fold == "mod" {
                Compat::Reference
            } else {
                Compat::Corrected
            };
            let key = if form.starts_with('l') {
                key(form)
            } else {
                Key {
                    method: "taylor",
                    form: Some(form),
                    with: "last",
                }
            };
            let scores = match key.taylor() {
                Some(taylor) => golden.scores_from_stored_gradients(
                    &graph,
                    TaylorCriterion {
                        form: taylor,
                        fisher: Fisher::Mean,
                    },
                    compat,
                ),
                None => golden.computed_scores(&golden.model, &graph, form, None, compat, "A"),
            };
            let found = units(&golden.model, &graph, &scores, "last", "channel");
            let difference =
                relative_difference(&found.groups, &expected(&graph, stored), scores.is_signed);
            assert!(
                difference <= 1e-6,
                "{} last_only/{name}: {difference:.1e}",
                golden.name
            );
            (largest, compared) = (largest.max(difference), compared + 1);
        }
        assert!(compared >= 34, "only {compared} tables were compared");
        note!(
            "{}: {compared} tables of the paper's equations, largest difference {largest:.1e}",
            golden.name
        );
    }
}

/// Prunes with the options of one entry of the golden file, and returns the model and the plan.
fn pruned(golden: &Golden, entry: &Value) -> (Model, PruningPlan) {
    let variant = entry["variant"].as_str().unwrap();
    let compat = if variant == "div" {
        Compat::Corrected
    } else {
        Compat::Reference
    };
    let (name, grouping) = (
        entry["scores"].as_str().unwrap(),
        entry["granularity"].as_str().unwrap(),
    );
    let key = key(name);
    let scope = if entry["global"].as_bool().unwrap() {
        "global"
    } else {
        "local"
    };
    let options: prune::Options = serde_json::from_value(
        json!({ "ratio": entry["ratio"], "scope": scope, "compat": "reference" }),
    )
    .unwrap();
    let times = entry["iterative_steps"].as_u64().unwrap() as u32;
    let (mut model, mut earlier) = (golden.model.clone(), None::<PruningResult>);
    for time in 1..=times {
        let graph = golden.graph(&model, grouping);
        let field = if grouping == "channel" {
            "channel_scores"
        } else {
            "scores"
        };
        let scores = match key.method {
            "random" => GroupScores {
                groups: expected(&graph, &golden.json[field]["random"]),
                input_means: Vec::new(),
            },
            _ => {
                let sample = if time == 1 { "A" } else { "B" };
                let scores = golden.computed_scores(
                    &model,
                    &graph,
                    key.method,
                    key.taylor(),
                    compat,
                    sample,
                );
                units(&model, &graph, &scores, key.with(), "channel")
            }
        };
        let schedule = (times > 1).then_some(RepeatPosition {
            iteration: time,
            iterations: times,
        });
        let (pruned, pruning, _) = prune::run(
            &options,
            schedule,
            &model,
            &graph,
            &scores,
            earlier.as_ref(),
        )
        .unwrap();
        (model, earlier) = (pruned, Some(pruning));
    }
    (model, earlier.unwrap().plan)
}

/// The removed units of a plan, by layer and kind.
fn removed(plan: &PruningPlan) -> BTreeMap<(String, &'static str), Vec<usize>> {
    let removed_units = |entry: &secateur_model::plan::KeptUnits| {
        (0..entry.units)
            .filter(|unit| !entry.kept.contains(unit))
            .collect::<Vec<_>>()
    };
    let kind = |kind| match kind {
        GroupKind::Attention => "attn",
        GroupKind::Mlp => "mlp",
        _ => "hidden",
    };
    plan.groups
        .iter()
        .map(|entry| {
            let key = (entry.layer.to_string(), kind(entry.kind));
            (key, removed_units(entry))
        })
        .filter(|(_, removed)| !removed.is_empty())
        .collect()
}

fn expected_removed(entry: &Value) -> BTreeMap<(String, &'static str), Vec<usize>> {
    let mut all = BTreeMap::new();
    for (layer, kinds) in entry["removed"].as_object().unwrap() {
        if layer == "hidden" {
            all.insert(("0".to_owned(), "hidden"), numbers(kinds));
            continue;
        }
        for kind in ["attn", "mlp"] {
            all.insert((layer.clone(), kind), numbers_or_empty(&kinds[kind]));
        }
    }
    all.retain(|_, removed: &mut Vec<usize>| !removed.is_empty());
    all
}

/// The smallest score difference between a removed and a kept unit, over the groups and steps where
/// it is not negative.
fn margin(entry: &Value) -> f64 {
    let smallest = |margins: &Value| {
        margins
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, margin)| margin.as_f64())
            .filter(|margin| *margin >= 0.0)
            .fold(1.0, f64::min)
    };
    let steps = entry["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| smallest(&step["margin"]));
    steps.fold(smallest(&entry["margin"]), f64::min)
}

test!(
    pruned_units_shapes_sizes_and_perplexities_equal_llm_pruner,
    needs = super::LLM_PRUNER
);
fn pruned_units_shapes_sizes_and_perplexities_equal_llm_pruner() {
    for golden in golden_models() {
        let dense = golden.perplexity(&golden.model);
        let (mut largest, mut compared, mut left_out) = (
            (dense / golden.json["dense"]["ppl"].as_f64().unwrap() - 1.0).abs(),
            0,
            Vec::new(),
        );
        // Perplexities by removed units: several entries remove the same.
        let mut perplexities: BTreeMap<String, f64> = BTreeMap::new();
        for entry in golden.json["prunings"].as_array().unwrap() {
            let label = format!(
                "{} {} {} global {} ratio {} steps {} {}",
                golden.name,
                entry["granularity"],
                entry["scores"],
                entry["global"],
                entry["ratio"],
                entry["iterative_steps"],
                entry["variant"]
            );
            // In the second global step the reference scores an untouched group with the sum of
            // both steps' gradients. The `clean` entries hold the intended result.
            let stale = entry["global"] == true
                && entry["iterative_steps"] == 2
                && entry["variant"] == "reference";
            if entry["comparable"] == false || stale || margin(entry) < 3e-5 {
                left_out.push(label);
                continue;
            }
            let (model, plan) = pruned(&golden, entry);
            assert_eq!(removed(&plan), expected_removed(entry), "{label}");
            for (layer, shapes) in entry["shapes"].as_object().unwrap() {
                // The embedding, the norm and the head are compared by the parameter count below.
                let Ok(layer) = layer.parse::<usize>() else {
                    continue;
                };
                let block = &model.blocks[layer];
                for (name, part) in [
                    ("q_proj", BlockTensor::Q),
                    ("k_proj", BlockTensor::K),
                    ("v_proj", BlockTensor::V),
                    ("o_proj", BlockTensor::O),
                    ("gate_proj", BlockTensor::Gate),
                    ("up_proj", BlockTensor::Up),
                    ("down_proj", BlockTensor::Down),
                ] {
                    assert_eq!(
                        json!([block[part].rows(), block[part].cols()]),
                        shapes[name],
                        "{label} {layer} {name}"
                    );
                }
            }
            // The reference unties a tied head under channel-wise pruning and counts it twice.
            let untied = entry["granularity"] == "channel" && model.lm_head.is_none();
            let second_head = if untied {
                (model.config.vocab * model.config.hidden) as u64
            } else {
                0
            };
            assert_eq!(
                model.parameter_count() + second_head,
                entry["params"].as_u64().unwrap(),
                "{label}"
            );
            assert_eq!(
                plan.apply(&golden.model).unwrap().parameter_count(),
                model.parameter_count()
            );
            let found = *perplexities
                .entry(format!("{:?}", removed(&plan)))
                .or_insert_with(|| golden.perplexity(&model));
            let difference = (found / entry["ppl"].as_f64().unwrap() - 1.0).abs();
            assert!(difference < 1e-5, "{label}: {found} {}", entry["ppl"]);
            (largest, compared) = (largest.max(difference), compared + 1);
        }
        note!(
            "{}: {compared} prunings equal, largest relative difference of a perplexity \
             {largest:.1e}",
            golden.name
        );
        for label in &left_out {
            note!("  left out: {label}");
        }
        assert!(compared >= 184, "only {compared} prunings were compared");
        assert!(left_out.len() <= 14);
    }
}
