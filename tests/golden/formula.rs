//! Scores and selections of LLM-Pruner on models whose weights follow from a formula. Always runs.

use std::collections::BTreeMap;

use secateur::stages::importance::taylor::{self, GradientSums, TaylorCriterion};
use secateur::stages::importance::{self, Fisher, Taylor};
use secateur::stages::products::{ChannelScores, Compat, GroupScores};
use secateur::stages::{aggregate, dependencies, prune};
use secateur_model::config::{BlockWidths, Config, RopeConfig, RopeScaling};
use secateur_model::family::Residual;
use secateur_model::groups::GroupKind;
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_model::{Block, Model, families};
use secateur_tensor::{Gradient, Weight};
use serde_json::{Value, json};

use crate::support::{self, context, numbers};

/// The number `t` of a tensor in the formula, and whether it is a norm, whose values are around 1.
fn formula_number(tensor_id: TensorId) -> (f64, bool) {
    match tensor_id {
        TensorId::Embedding => (1001.0, false),
        TensorId::FinalNorm => (1002.0, true),
        TensorId::LmHead => (1003.0, false),
        TensorId::Block(layer, part) => {
            let (number, is_norm) = match part {
                BlockTensor::Q => (1, false),
                BlockTensor::K => (2, false),
                BlockTensor::V => (3, false),
                BlockTensor::O => (4, false),
                BlockTensor::Gate => (5, false),
                BlockTensor::Up => (6, false),
                BlockTensor::Down => (7, false),
                BlockTensor::InputNorm => (8, true),
                BlockTensor::PostAttentionNorm => (9, true),
            };
            ((10 * layer + number) as f64, is_norm)
        }
    }
}

/// The values of `formula` for the elements 0, 1, …, `len` − 1.
fn filled(len: usize, formula: impl Fn(f64) -> f64) -> Vec<f32> {
    (0..len).map(|index| formula(index as f64) as f32).collect()
}

/// Element i of tensor t is 0.05 sin(0.1 i + t); of a norm, 1 + 0.1 sin(0.1 i + t).
fn model(config: &Value) -> Model {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, mlp, layers, heads, dim, vocab) = (
        size("hidden"),
        size("intermediate"),
        size("layers"),
        size("heads"),
        size("head_dim"),
        size("vocab"),
    );
    let kv_heads = config["kv_heads"]
        .as_u64()
        .map_or(heads, |count| count as usize);
    let weight = |tensor_id: TensorId, rows: usize, cols: usize| {
        let (t, is_norm) = formula_number(tensor_id);
        let value = |i: f64| {
            if is_norm {
                1.0 + 0.1 * (0.1 * i + t).sin()
            } else {
                0.05 * (0.1 * i + t).sin()
            }
        };
        Weight::new(filled(rows * cols, value), rows, cols)
    };
    let block = |layer: usize| {
        let shape = |part: BlockTensor| match part {
            BlockTensor::InputNorm | BlockTensor::PostAttentionNorm => (1, hidden),
            BlockTensor::Q => (heads * dim, hidden),
            BlockTensor::K | BlockTensor::V => (kv_heads * dim, hidden),
            BlockTensor::O => (hidden, heads * dim),
            BlockTensor::Gate | BlockTensor::Up => (mlp, hidden),
            BlockTensor::Down => (hidden, mlp),
        };
        let tensors = families::default_family().block_tensor_ids();
        Block::new(tensors.map(|tensor| {
            let (rows, cols) = shape(tensor);
            (tensor, weight(TensorId::Block(layer, tensor), rows, cols))
        }))
    };
    Model {
        family: families::default_family(),
        embedding: weight(TensorId::Embedding, vocab, hidden),
        blocks: (0..layers).map(block).collect(),
        final_norm: weight(TensorId::FinalNorm, 1, hidden),
        final_norm_bias: None,
        lm_head: Some(weight(TensorId::LmHead, vocab, hidden)),
        tokenizer: None,
        source: Default::default(),
        config: Config {
            hidden,
            layers,
            head_dim: dim,
            declared_widths: BlockWidths::default(),
            vocab,
            max_positions: 64,
            norm_epsilon: 1e-6,
            tied_embeddings: false,
            declared_biases: Default::default(),
            rope: RopeConfig {
                theta: 10_000.0,
                scaling: RopeScaling::None,
                rotated_share: 1.0,
            },
            residual: Residual::Sequential,
            raw: Default::default(),
        },
    }
}

/// Element i of the gradient of tensor t is 0.01 cos(0.07 i + 2 t), and of its squares
/// 0.5 (1 + sin(0.05 i + 3 t)).
fn gradients(model: &Model) -> BTreeMap<TensorId, GradientSums> {
    let sums = |tensor_id: TensorId| {
        let (t, len) = (formula_number(tensor_id).0, model.weight(tensor_id).len());
        let gradient = filled(len, |i| 0.01 * (0.07 * i + 2.0 * t).cos());
        let squares = filled(len, |i| 0.5 * (1.0 + (0.05 * i + 3.0 * t).sin()));
        let shaped = |values| {
            Gradient::new(
                values,
                model.weight(tensor_id).rows(),
                model.weight(tensor_id).cols(),
            )
        };
        (
            tensor_id,
            GradientSums {
                gradient: shaped(gradient),
                squares: Some(shaped(squares)),
            },
        )
    };
    model.tensor_ids().into_iter().map(sums).collect()
}

/// The largest difference, relative to each score, or to the largest score where terms of different
/// sign cancel in the scores.
fn relative_difference(found: &[f64], expected: &[f64], terms_cancel: bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().copied().fold(0.0, f64::max);
    let difference = |(found, expected): (&f64, &f64)| {
        let scale = if terms_cancel {
            largest
        } else {
            expected.abs()
        };
        (found - expected).abs() / scale
    };
    support::largest(found.iter().zip(expected).map(difference))
}

/// The removed channels of the group's root, `width` for each unit; `None` where the gap between
/// the scores of kept and removed units is so small that float32 rounding could change the
/// selection.
fn removed(scores: &[f64], kept: &[usize], width: usize) -> Option<Vec<usize>> {
    let is_kept = |unit: &usize| kept.contains(unit);
    let units = 0..scores.len();
    let highest_removed = units
        .clone()
        .filter(|unit| !is_kept(unit))
        .map(|unit| scores[unit])
        .fold(f64::NEG_INFINITY, f64::max);
    let lowest_kept = units
        .clone()
        .filter(is_kept)
        .map(|unit| scores[unit])
        .fold(f64::INFINITY, f64::min);
    let channels = units
        .filter(|unit| !is_kept(unit))
        .flat_map(|unit| unit * width..(unit + 1) * width)
        .collect();
    ((lowest_kept - highest_removed) / lowest_kept > 3e-5).then_some(channels)
}

test!(scores_and_selections_equal_llm_pruner);
fn scores_and_selections_equal_llm_pruner() {
    let golden = support::json(&support::golden_data("formula.json"));
    let (mut compared, mut selections, mut largest) = (0, 0, 0f64);
    for case in golden["cases"].as_array().unwrap() {
        let model = model(&case["config"]);
        let channelwise = case["name"] == "mha_channel";
        let grouping = if channelwise {
            json!({ "grouping": "channel" })
        } else {
            json!({ "attention_layers": [1, 2], "mlp_layers": [1, 2] })
        };
        let graph = dependencies::run(&serde_json::from_value(grouping).unwrap(), &model).unwrap();
        let gradients = gradients(&model);
        for result in case["results"].as_array().unwrap() {
            let label = format!(
                "{} {} {} {}",
                case["name"], result["pruner"], result["taylor"], result["reduction"]
            );
            let taylor = match result["taylor"].as_str() {
                Some("vectorize") => Some(Taylor::Vector),
                Some("param_first") => Some(Taylor::ElementFirst),
                Some("param_second") => Some(Taylor::ElementSecond),
                Some(_) => Some(Taylor::ElementMixed),
                None => None,
            };
            let scores = match taylor {
                Some(taylor) => ChannelScores {
                    groups: taylor::scores_from_gradients(
                        TaylorCriterion {
                            form: taylor,
                            fisher: Fisher::Mean,
                        },
                        &model,
                        &graph,
                        1,
                        &gradients,
                    ),
                    is_signed: taylor == Taylor::Vector,
                    is_magnitude: false,
                    compat: Compat::Reference,
                    input_means: Vec::new(),
                },
                None => {
                    let options = json!({ "method": result["pruner"], "compat": "reference" });
                    importance::run(
                        &serde_json::from_value(options).unwrap(),
                        &context(),
                        &model,
                        &graph,
                    )
                    .unwrap()
                    .0
                }
            };
            let with = result["reduction"]
                .as_str()
                .unwrap()
                .replace("prod", "product");
            let options = serde_json::from_value(json!({ "with": with })).unwrap();
            let units = aggregate::run(&options, &model, &graph, &scores).unwrap().0;
            let terms_cancel = taylor == Some(Taylor::Vector);
            let options: prune::Options = serde_json::from_value(
                json!({ "ratio": if channelwise { 0.25 } else { 0.5 }, "compat": "reference" }),
            )
            .unwrap();
            let plan = prune::run(&options, None, &model, &graph, &units, None)
                .unwrap()
                .1
                .plan;
            for (index, group) in graph.groups.iter().enumerate() {
                let (scores, members, root, width) = match group.kind {
                    GroupKind::Hidden => ("channel_importance", "members", "pruned_ratio_0.25", 1),
                    GroupKind::Mlp => ("mlp_channel_importance", "mlp_members", "gate_proj", 1),
                    _ => (
                        "attn_unit_importance",
                        "attn_members",
                        case["root"].as_str().unwrap(),
                        group.min_channels_per_unit(&model),
                    ),
                };
                let GroupScores { groups, .. } = &units;
                let expected: Vec<f64> = numbers(&result[scores]);
                let difference = relative_difference(&groups[index], &expected, terms_cancel);
                assert!(difference < 6e-6, "{label} {scores}: {difference:.1e}");
                (compared, largest) = (compared + 1, largest.max(difference));
                let names: Vec<String> = numbers(&result[members]);
                let ours: Vec<&str> = group
                    .members
                    .iter()
                    .map(|member| member.name.trim_end_matches(".weight"))
                    .collect();
                if group.kind == GroupKind::Hidden {
                    // The reference visits the members in another order: the first member and the
                    // set are the same.
                    let set = |names: Vec<&str>| {
                        names
                            .into_iter()
                            .map(str::to_owned)
                            .collect::<std::collections::BTreeSet<_>>()
                    };
                    let theirs = names
                        .iter()
                        .map(|name| name.rsplit_once('.').unwrap().0)
                        .collect::<Vec<_>>();
                    assert_eq!(
                        (set(ours.clone()), ours[0]),
                        (set(theirs.clone()), theirs[0]),
                        "{label}"
                    );
                } else {
                    let theirs = names.iter().map(|name| name.split_once('.').unwrap().0);
                    assert!(
                        ours.iter()
                            .zip(theirs)
                            .all(|(ours, theirs)| ours.ends_with(theirs)),
                        "{label}: {ours:?} {names:?}"
                    );
                }
                let stored = if group.kind == GroupKind::Hidden {
                    &result[root]
                } else {
                    &result["pruned_root_indices_ratio_0.5"][root]
                };
                let kept = &plan.find_entry(group.kind, group.layer).unwrap().kept;
                if let Some(removed) = removed(&groups[index], kept, width) {
                    assert_eq!(removed, numbers::<usize>(stored), "{label} {root}");
                    selections += 1;
                }
            }
        }
    }
    note!(
        "{compared} groups of scores, largest difference {largest:.1e}; \
         {selections} selections equal"
    );
    assert_eq!(compared, 2 * 2 * 26 + 6);
    assert!(selections > 90);
}
