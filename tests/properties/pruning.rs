//! Properties of pruning for random models, ratios and groupings.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur::stages::products::{GroupScores, PruningResult};
use secateur::stages::{aggregate, dependencies, importance, prune};
use secateur_model::config::{BlockWidths, Config, RopeConfig, RopeScaling};
use secateur_model::cost::ModelShape;
use secateur_model::family::Residual;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};
use secateur_model::hooks::BlockHooks;
use secateur_model::plan::PruningPlan;
use secateur_model::stored::StorageDtype;
use secateur_model::walk::{self, Sequence};
use secateur_model::wiring::BlockTensor;
use secateur_model::{Block, Model, families};
use secateur_tensor::ops::{self, TokenTarget};
use secateur_tensor::{Activations, AnyTape, Weight};
use serde_json::json;

use crate::support::{self, context, largest, largest_difference};

/// The shape of a random LLaMA, and the seed of its weights.
#[derive(Clone, Debug)]
struct RandomModel {
    seed: u64,
    layers: usize,
    kv_heads: usize,
    queries_per_kv_head: usize,
    /// Half of the width of a head, which the rotary embedding needs to be even.
    half_dim: usize,
    hidden: usize,
    mlp: usize,
    tied: bool,
}

fn random_model() -> impl Strategy<Value = RandomModel> {
    let widths = (1..4usize, 1..4usize, 1..3usize, 1..4usize);
    (any::<u64>(), widths, 2..20usize, 2..24usize, any::<bool>()).prop_map(
        |(seed, (layers, kv_heads, queries_per_kv_head, half_dim), hidden, mlp, tied)| {
            RandomModel {
                seed,
                layers,
                kv_heads,
                queries_per_kv_head,
                half_dim,
                hidden,
                mlp,
                tied,
            }
        },
    )
}

const VOCAB: usize = 23;

impl RandomModel {
    fn model(&self) -> Model {
        let mut stream = ChaCha8Rng::seed_from_u64(self.seed);
        // Uniform values of this mean; a vector (one row) varies less than a matrix.
        let mut weight = |rows: usize, cols: usize, mean: f32| {
            let scale = if rows == 1 {
                0.2
            } else {
                1.5 / (cols as f32).sqrt()
            };
            let values = (0..rows * cols)
                .map(|_| mean + scale * stream.random_range(-1.0..1.0f32))
                .collect();
            Weight::new(values, rows, cols)
        };
        let Self { hidden, mlp, .. } = *self;
        let dim = 2 * self.half_dim;
        let (query_rows, kv_rows) = (
            self.kv_heads * self.queries_per_kv_head * dim,
            self.kv_heads * dim,
        );
        let embedding = weight(VOCAB, hidden, 0.0);
        let blocks = (0..self.layers).map(|_| {
            let weights = [
                weight(1, hidden, 1.0),
                weight(query_rows, hidden, 0.0),
                weight(kv_rows, hidden, 0.0),
                weight(kv_rows, hidden, 0.0),
                weight(hidden, query_rows, 0.0),
                weight(1, hidden, 1.0),
                weight(mlp, hidden, 0.0),
                weight(mlp, hidden, 0.0),
                weight(hidden, mlp, 0.0),
            ];
            Block::new(families::default_family().block_tensor_ids().zip(weights))
        });
        let blocks = blocks.collect();
        let norm = weight(1, hidden, 1.0);
        let head = (!self.tied).then(|| weight(VOCAB, hidden, 0.0));
        let config = Config {
            hidden,
            layers: self.layers,
            head_dim: dim,
            declared_widths: BlockWidths::default(),
            vocab: VOCAB,
            max_positions: 64,
            norm_epsilon: 1e-5,
            tied_embeddings: self.tied,
            declared_biases: Default::default(),
            rope: RopeConfig {
                theta: 10_000.0,
                scaling: RopeScaling::None,
                rotated_share: 1.0,
            },
            residual: Residual::Sequential,
            raw: Default::default(),
        };
        Model {
            family: families::default_family(),
            config,
            embedding,
            blocks,
            final_norm: norm,
            final_norm_bias: None,
            lm_head: head,
            tokenizer: None,
            source: Default::default(),
        }
    }

    /// Token ids to evaluate.
    fn ids(&self) -> Vec<u32> {
        let mut stream = ChaCha8Rng::seed_from_u64(self.seed ^ 1);
        (0..9)
            .map(|_| stream.random_range(0..VOCAB as u32))
            .collect()
    }
}

/// The output of the matrix `part` of the first block with its bias, as a mean over the tokens: one
/// value per hidden channel.
fn mean_output(model: &Model, part: BlockTensor, ids: &[u32]) -> Vec<f32> {
    struct RecordOutput {
        recorded_part: BlockTensor,
        layer: usize,
        output: Rc<RefCell<Vec<f32>>>,
    }
    impl BlockHooks for RecordOutput {
        fn linear<T: AnyTape>(
            &self,
            part: BlockTensor,
            weight: &Weight,
            x: Activations<T>,
        ) -> Activations<T> {
            let y = ops::linear(x, weight, None);
            if part == self.recorded_part && self.layer == 0 {
                *self.output.borrow_mut() = y.values().into_owned();
            }
            y
        }
    }
    let output = Rc::<RefCell<Vec<f32>>>::default();
    let sequence = Sequence {
        ids: ids.to_vec(),
        targets: Vec::new(),
    };
    walk::forward(model, &[sequence], |layer, _| RecordOutput {
        recorded_part: part,
        layer,
        output: output.clone(),
    })
    .unwrap();
    // [tokens, hidden]
    let values = output.take();
    let width = model.config.hidden;
    let bias = model.blocks[0]
        .bias(part)
        .map_or_else(|| vec![0.0; width], |bias| bias.values().to_vec());
    (0..width)
        .map(|channel| {
            let column_sum = values.iter().skip(channel).step_by(width).sum::<f32>();
            column_sum / ids.len() as f32 + bias[channel]
        })
        .collect()
}

/// The log probability of every token at every position: the logits up to a constant for each
/// position.
fn outputs(model: &Model, ids: &[u32]) -> Vec<f64> {
    let targets: Vec<TokenTarget> = (0..ids.len())
        .flat_map(|position| {
            (0..VOCAB as u32).map(move |id| TokenTarget {
                position,
                token_id: id,
            })
        })
        .collect();
    let scores = walk::token_scores(
        model,
        &[Sequence {
            ids: ids.to_vec(),
            targets,
        }],
    )
    .unwrap();
    scores[0]
        .iter()
        .map(|score| score.log_probability)
        .collect()
}

fn graph(model: &Model, grouping: &str) -> DependencyGraph {
    dependencies::run(
        &serde_json::from_value(json!({ "grouping": grouping })).unwrap(),
        model,
    )
    .unwrap()
}

/// Prunes by random scores.
fn prune_randomly(
    model: &Model,
    graph: &DependencyGraph,
    seed: u64,
    options: serde_json::Value,
) -> (Model, PruningResult) {
    let mut stream = ChaCha8Rng::seed_from_u64(seed ^ 2);
    let groups = graph
        .groups
        .iter()
        .map(|group| {
            (0..group.unit_count)
                .map(|_| stream.random::<f64>())
                .collect()
        })
        .collect();
    let options: prune::Options = serde_json::from_value(options).unwrap();
    let (pruned, pruning, _) = prune::run(
        &options,
        None,
        model,
        graph,
        &GroupScores {
            groups,
            input_means: Vec::new(),
        },
        None,
    )
    .unwrap();
    (pruned, pruning)
}

/// The channels of the removed units, in a member with `width` channels for each unit.
fn removed_channels(group: &Group, kept: &[usize], width: usize) -> Vec<usize> {
    (0..group.unit_count)
        .filter(|unit| !kept.contains(unit))
        .flat_map(|unit| unit * width..(unit + 1) * width)
        .collect()
}

/// The model with the outputs of the removed units set to zero and all widths unchanged.
fn masked(model: &Model, graph: &DependencyGraph, kept: &[Vec<usize>]) -> Model {
    let mut masked = model.clone();
    let zero_columns = |weight: &mut Weight, columns: &[usize]| {
        let cols = weight.cols();
        weight.update(|values| {
            for row in values.chunks_exact_mut(cols) {
                for &column in columns {
                    row[column] = 0.0;
                }
            }
        });
    };
    for (group, kept) in graph.groups.iter().zip(kept) {
        match group.kind {
            GroupKind::Attention | GroupKind::Mlp => {
                let part = if group.kind == GroupKind::Attention {
                    BlockTensor::O
                } else {
                    BlockTensor::Down
                };
                let weight = &mut masked.blocks[group.layer][part];
                let width = weight.cols() / group.unit_count;
                zero_columns(weight, &removed_channels(group, kept, width));
            }
            GroupKind::Hidden => {
                let removed = removed_channels(group, kept, 1);
                let kept_share = kept.len() as f32 / group.unit_count as f32;
                zero_columns(&mut masked.embedding, &removed);
                for block in &mut masked.blocks {
                    for part in [BlockTensor::O, BlockTensor::Down] {
                        let cols = block[part].cols();
                        block[part].update(|values| {
                            for row in &removed {
                                values[row * cols..(row + 1) * cols].fill(0.0);
                            }
                        });
                    }
                }
                // The pruned model's norm divides by the kept width: x / √(Σx² / kept + ε) · w.
                // Written with the full width, and s = kept / all, that is
                // x / √(Σx² / all + ε · s) · w · √s.
                masked.config.norm_epsilon *= kept_share;
                let scale = |weights: &mut [f32]| {
                    for weight in weights {
                        *weight *= kept_share.sqrt();
                    }
                };
                masked.final_norm.update(scale);
                for block in &mut masked.blocks {
                    block[BlockTensor::InputNorm].update(scale);
                    block[BlockTensor::PostAttentionNorm].update(scale);
                }
            }
            GroupKind::Layer => {
                for layer in (0..group.unit_count).filter(|layer| !kept.contains(layer)) {
                    for part in [BlockTensor::O, BlockTensor::Down] {
                        masked.blocks[layer][part].update(|values| values.fill(0.0));
                    }
                }
            }
        }
    }
    masked
}

fn weights(model: &Model) -> Vec<Weight> {
    model
        .tensor_ids()
        .into_iter()
        .map(|tensor_id| model.weight(tensor_id).clone())
        .collect()
}

fn groupings() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("block"), Just("channel"), Just("layer")]
}

fn scopes() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("local"), Just("global")]
}

test!(pruned_and_masked_models_agree);
test!(plan_rebuilds_the_pruned_model);
test!(empty_plan_changes_nothing);
test!(bias_compensation_keeps_the_mean_output);
test!(predictions_are_causal);
proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    fn pruned_and_masked_models_agree(
        spec in random_model(),
        grouping in groupings(),
        scope in scopes(),
        ratio in 0.05..0.95f64,
    ) {
        let model = spec.model();
        let graph = graph(&model, grouping);
        let options = json!({ "ratio": ratio, "scope": scope });
        let (pruned, pruning) = prune_randomly(&model, &graph, spec.seed, options);
        let masked = masked(&model, &graph, &pruning.kept_units);
        let pruned_outputs = outputs(&pruned, &spec.ids());
        let masked_outputs = outputs(&masked, &spec.ids());
        let largest_output = largest(pruned_outputs.iter().map(|output| output.abs()));
        let worst = largest_difference(&pruned_outputs, &masked_outputs);
        prop_assert!(worst <= 1e-5 * largest_output, "{worst:.1e} of {largest_output}");
        // No group is empty and no layer has width 0.
        let shape = ModelShape::from_model(&pruned);
        prop_assert!(pruning.kept_units.iter().all(|kept| !kept.is_empty()));
        let mut blocks = shape.blocks.iter();
        let has_width = blocks.all(|block| block.query_heads > 0 && block.mlp_channels > 0);
        prop_assert!(shape.hidden > 0 && !shape.blocks.is_empty() && has_width);
        prop_assert_eq!(shape.parameter_count(), pruned.parameter_count());
    }

    fn plan_rebuilds_the_pruned_model(
        spec in random_model(),
        grouping in groupings(),
        ratio in 0.05..0.95f64,
        round_to in 1..4usize,
    ) {
        let model = spec.model();
        let graph = graph(&model, grouping);
        let options = json!({ "ratio": ratio, "round_to": round_to });
        let (pruned, pruning) = prune_randomly(&model, &graph, spec.seed, options);
        let saved = serde_json::to_string(&pruning.plan).unwrap();
        let read: PruningPlan = serde_json::from_str(&saved).unwrap();
        let rebuilt = read.apply(&model).unwrap();
        prop_assert!(weights(&rebuilt) == weights(&pruned));
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), saved);
        // A second pruning, of the pruned model.
        let graph = self::graph(&pruned, "block");
        let options: prune::Options = serde_json::from_value(json!({ "ratio": 0.5 })).unwrap();
        // The score of a unit is its index.
        let unit_indices = |group: &Group| (0..group.unit_count).map(|unit| unit as f64).collect();
        let scores = GroupScores {
            groups: graph.groups.iter().map(unit_indices).collect(),
            input_means: Vec::new(),
        };
        let (pruned_twice, pruning, _) =
            prune::run(&options, None, &pruned, &graph, &scores, Some(&pruning)).unwrap();
        prop_assert!(weights(&pruning.plan.apply(&model).unwrap()) == weights(&pruned_twice));
    }

    fn empty_plan_changes_nothing(spec in random_model()) {
        let model = spec.model();
        let same = PruningPlan::default().apply(&model).unwrap();
        prop_assert!(weights(&same) == weights(&model));
        let graph = graph(&model, "block");
        let kept = graph.groups.iter().map(|group| (0..group.unit_count).collect()).collect();
        let empty_pruning = PruningResult {
            kept_units: kept,
            plan: PruningPlan::default(),
            initial_units: Default::default(),
            added_biases: Vec::new(),
        };
        let same = prune::apply_pruning(&model, &graph, &empty_pruning);
        prop_assert!(weights(&same) == weights(&model));
    }

    /// FLAP's bias keeps the mean of what the first attention or the first MLP adds to the residual
    /// stream.
    fn bias_compensation_keeps_the_mean_output(
        spec in random_model(),
        ratio in 0.2..0.8f64,
        attention in any::<bool>(),
    ) {
        let model = spec.model();
        // Only one group is pruned, so that its inputs are the same before and after.
        let (attention_layers, mlp_layers) =
            if attention { ([0, 1], [0, 0]) } else { ([0, 0], [0, 1]) };
        let options = json!({ "attention_layers": attention_layers, "mlp_layers": mlp_layers });
        let graph = dependencies::run(&serde_json::from_value(options).unwrap(), &model).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let corpus = folder.path().join("rows.jsonl");
        let ids = spec.ids();
        std::fs::write(&corpus, format!("{{\"ids\": {ids:?}}}")).unwrap();
        let options = json!({ "method": "wifv", "corpus": corpus, "sample": "file" });
        let options = serde_json::from_value(options).unwrap();
        let scores = importance::run(&options, &context(), &model, &graph).unwrap().0;
        let options = serde_json::from_value(json!({ "with": "last" })).unwrap();
        let units = aggregate::run(&options, &model, &graph, &scores).unwrap().0;
        let prune = |compensation: &str| {
            let options = json!({ "ratio": ratio, "compensation": compensation });
            let options = serde_json::from_value(options).unwrap();
            prune::run(&options, None, &model, &graph, &units, None).unwrap().0
        };
        let part = if attention { BlockTensor::O } else { BlockTensor::Down };
        let dense = mean_output(&model, part, &ids);
        let (compensated, plain) = (prune("bias"), prune("none"));
        let scale = largest(dense.iter().map(|output| output.abs())).max(1e-3);
        let worst =
            |model: &Model| largest_difference(&dense, &mean_output(model, part, &ids)) / scale;
        prop_assert!(worst(&compensated) < 1e-4, "{}", worst(&compensated));
        if compensated.blocks[0][part] != model.blocks[0][part] {
            prop_assert!(worst(&plain) > worst(&compensated));
            let added_parameters = compensated.parameter_count() - plain.parameter_count();
            prop_assert_eq!(added_parameters, model.config.hidden as u64);
            // Saved and loaded, and pruned channel-wise together with its bias.
            compensated.save(&folder.path().join("hf"), StorageDtype::Float32).unwrap();
            let read = Model::load(&folder.path().join("hf")).unwrap();
            prop_assert!(outputs(&read, &ids) == outputs(&compensated, &ids));
            let config = support::json(&folder.path().join("hf/config.json"));
            // transformers' LlamaForCausalLM needs a hidden width that is a multiple of the heads.
            let heads = config["num_attention_heads"].as_u64().unwrap() as usize;
            let is_multiple = compensated.config.hidden.is_multiple_of(heads);
            let class = if is_multiple { "LlamaForCausalLM" } else { "GraniteForCausalLM" };
            prop_assert_eq!(&config["architectures"][0], class, "Mistral has no biases");
            let channel_graph = self::graph(&compensated, "channel");
            let options = json!({ "ratio": 0.4 });
            let narrow = prune_randomly(&compensated, &channel_graph, spec.seed, options).0;
            let bias = narrow.blocks[0].bias(part).map(|bias| bias.len());
            prop_assert_eq!(bias, Some(narrow.config.hidden));
        }
    }

    /// A changed token changes no prediction before it.
    fn predictions_are_causal(spec in random_model(), position in 1..8usize) {
        let (model, mut ids) = (spec.model(), spec.ids());
        let before = outputs(&model, &ids);
        ids[position] = (ids[position] + 1) % VOCAB as u32;
        let after = outputs(&model, &ids);
        prop_assert!(before[..position * VOCAB] == after[..position * VOCAB]);
    }
}

test!(scores_do_not_depend_on_threads);
proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Neither the number of threads nor the number of sequences processed at once changes a bit.
    /// The batch is the same in all runs, because a sum over a batch equals the sum of its parts
    /// only up to rounding.
    fn scores_do_not_depend_on_threads(
        spec in random_model(),
        form in prop_oneof![
            Just("vector"),
            Just("element-first"),
            Just("element-second"),
            Just("element-mixed"),
        ],
        method in prop_oneof![Just("taylor"), Just("wifv"), Just("wanda")],
    ) {
        let model = spec.model();
        let graph = graph(&model, "block");
        let folder = tempfile::tempdir().unwrap();
        let corpus = folder.path().join("rows.jsonl");
        let mut stream = ChaCha8Rng::seed_from_u64(spec.seed ^ 3);
        let rows: Vec<String> = (0..7)
            .map(|_| {
                let length = stream.random_range(2..12);
                let ids: Vec<usize> =
                    (0..length).map(|_| stream.random_range(0..VOCAB)).collect();
                format!("{{\"ids\": {ids:?}}}")
            })
            .collect();
        std::fs::write(&corpus, rows.join("\n")).unwrap();
        let options =
            json!({ "method": method, "taylor": form, "corpus": corpus, "sample": "file" });
        let options: importance::Options = serde_json::from_value(options).unwrap();
        let score = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let scores = importance::run(&options, &context(), &model, &graph).unwrap().0;
                let options = serde_json::from_value(json!({ "with": "last" })).unwrap();
                aggregate::run(&options, &model, &graph, &scores).unwrap().0
            })
        };
        let on_one_thread = score(1);
        prop_assert!(score(2) == on_one_thread && score(5) == on_one_thread);
    }
}
