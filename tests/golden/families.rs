//! Families of models against transformers' own numbers (shared fixtures), and against themselves:
//! gradients against finite differences, pruned models against masked ones, saved models against
//! loaded ones, on the CPU and on `cpu-as-gpu`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use secateur_base::random::Seed;
use secateur_model::cost::ModelShape;
use secateur_model::family::{BlockShape, Family};
use secateur_model::groups::{self, Group, GroupKind, UnitLayout};
use secateur_model::lora::Adapter;
use secateur_model::plan::{self, PruningPlan};
use secateur_model::random::{RandomModel, random_model};
use secateur_model::stored::StorageDtype;
use secateur_model::walk::{self, BackwardOptions, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::{Axis, BlockTensor, ChannelSpace, TensorId};
use secateur_model::{Dropout, Factor, Model, ParameterId, TrainedAdapters, families};
use secateur_tensor::ops::{GradientQuery, GradientResult};
use secateur_tensor::{Device, Weight, select_device};
use serde_json::{Value, json};

use crate::support::{Sandbox, copy_folder, golden_data, json, numbers, shared, table, text};

/// The largest allowed difference of a logit from that of transformers.
const LOGIT_TOLERANCE: f32 = 1e-4;

/// Runs a test on the CPU and with the operations of a GPU on the CPU. A build with CUDA has no
/// `cpu-as-gpu`.
fn on_both_devices(test: impl Fn(Device)) {
    let devices: &[Device] = match cfg!(feature = "cuda") {
        true => &[Device::Cpu],
        false => &[Device::Cpu, Device::CpuAsGpu],
    };
    for &device in devices {
        select_device(device).unwrap();
        test(device);
    }
    select_device(Device::Cpu).unwrap();
}

/// The shared folders of families that are known: their models load.
fn shared_folders() -> Vec<PathBuf> {
    let root = shared("families");
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        match Model::load(&folder) {
            Ok(_) => folders.push(folder),
            Err(refusal) => {
                let refusal = refusal.to_string();
                let is_refused = |key: &str| refusal.contains(&format!("`{key}` = "));
                assert!(
                    is_refused("model_type") || is_refused("sliding_window"),
                    "{name}: {refusal}"
                );
            }
        }
    }
    folders.sort();
    let names: Vec<&str> = folders
        .iter()
        .map(|folder| folder.file_name().unwrap().to_str().unwrap())
        .collect();
    for name in [
        "gpt_neox",
        "llama",
        "llama-bf16-sharded",
        "llama-f16",
        "mistral",
        "qwen2",
        "vicuna",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    folders
}

/// The mean over positions 2..T of the negative log probability of the token there.
fn mean_cross_entropy(model: &Model, ids: &[u32]) -> f64 {
    let sequence = Sequence::new(ids.to_vec(), &vec![true; ids.len()]);
    let scores = walk::token_scores(model, &[sequence]).unwrap();
    -scores[0]
        .iter()
        .map(|score| score.log_probability)
        .sum::<f64>()
        / scores[0].len() as f64
}

/// Compares a model with expected values; `prompts` holds the ids, `expected` the values.
fn check_prompts(label: &str, model: &Model, prompts: &Value, expected: &Value) {
    for (prompt, expected) in prompts
        .as_array()
        .unwrap()
        .iter()
        .zip(expected.as_array().unwrap())
    {
        let ids: Vec<u32> = numbers(&prompt["input_ids"]);
        let last_logits: Vec<f32> = numbers(&expected["last_logits"]);
        let logits = walk::logits(model, &ids).unwrap().into_vec();
        let last = &logits[logits.len() - last_logits.len()..];
        let worst = largest_difference(last, &last_logits);
        assert!(
            worst < LOGIT_TOLERANCE,
            "{label}, {} ids: {worst:.1e}",
            ids.len()
        );
        let loss = mean_cross_entropy(model, &ids);
        let expected_loss = expected["mean_cross_entropy"].as_f64().unwrap();
        assert!(
            (loss - expected_loss).abs() < 1e-4,
            "{label}: {loss} {expected_loss}"
        );
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..13).map(|i| i * 7 % model.config.vocab as u32).collect();
    walk::logits(model, &ids).unwrap().into_vec()
}

test!(logits_equal_transformers, needs = [Shared("families")]);
fn logits_equal_transformers() {
    let folders = shared_folders();
    on_both_devices(|device| {
        for folder in &folders {
            let label = format!("{} on {device}", folder.display());
            let expected = json(&folder.join("expected.json"));
            let model = Model::load(folder).unwrap();
            check_prompts(&label, &model, &expected["prompts"], &expected["prompts"]);
            assert_eq!(
                model.parameter_count(),
                expected["parameter_count"].as_u64().unwrap()
            );
            let streamed = Model::open_streaming(folder).unwrap();
            assert!(
                logits(&streamed) == logits(&model),
                "{label}: streamed weights differ"
            );
        }
    });
}

test!(logits_equal_the_golden_ones);
/// Numbers that need no shared material: checkpoints filled by a formula, and logits of an
/// implementation in Python (`scripts/family_golden.py`).
fn logits_equal_the_golden_ones() {
    let golden = json(&golden_data("families.json"));
    for case in golden["cases"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            case["config"].to_string(),
        )
        .unwrap();
        let mut tensors = Vec::new();
        for (tensor_number, tensor) in case["tensors"].as_array().unwrap().iter().enumerate() {
            let name = tensor["name"].as_str().unwrap().to_owned();
            let shape: Vec<usize> = numbers(&tensor["shape"]);
            let is_norm = name.contains("norm") && name.ends_with(".weight");
            // Element i of tensor t is 0.4 sin(1.7 i + 2.3 t); for the weight of a norm, 1 plus a
            // quarter of that.
            let value = |i: usize| {
                let wave = 0.4 * (1.7 * i as f64 + 2.3 * tensor_number as f64).sin();
                if is_norm { 1.0 + 0.25 * wave } else { wave }
            };
            let bytes: Vec<u8> = (0..shape.iter().product())
                .flat_map(|i| (value(i) as f32).to_le_bytes())
                .collect();
            tensors.push((name, shape, bytes));
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let dtype = safetensors::tensor::Dtype::F32;
            let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        });
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).unwrap();
        let (ids, expected): (Vec<u32>, Vec<Vec<f32>>) =
            (numbers(&case["ids"]), numbers(&case["logits"]));
        let model = Model::load(folder.path()).unwrap();
        on_both_devices(|device| {
            let found = walk::logits(&model, &ids).unwrap().into_vec();
            let worst = largest_difference(&found, &expected.concat());
            assert!(
                worst < 1e-5,
                "{} on {device}: {worst:.1e}",
                case["config"]["model_type"]
            );
        });
    }
}

test!(
    both_styles_of_a_config_are_the_same_model,
    needs = [Shared("families")]
);
/// The older keys of config.json describe the same model.
fn both_styles_of_a_config_are_the_same_model() {
    for folder in shared_folders() {
        let legacy = folder.join("config.legacy.json");
        if !legacy.exists() {
            continue;
        }
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&folder, copy.path());
        std::fs::copy(&legacy, copy.path().join("config.json")).unwrap();
        let (newer, older) = (
            Model::load(&folder).unwrap(),
            Model::load(copy.path()).unwrap(),
        );
        assert_eq!(newer.config.rope, older.config.rope);
        assert!(logits(&newer) == logits(&older), "{}", folder.display());
    }
}

/// Indices that a unit owns on one axis of a stored tensor: (offset, stride, length).
type Segments = BTreeSet<(usize, usize, usize)>;

/// A group in the terms of groups.json: stored tensor and axis → segments.
type StoredMembers = BTreeMap<(String, usize), Segments>;

/// The members of a group as they are stored, the biases that are pruned with them included.
fn stored_members(model: &Model, group: &Group) -> StoredMembers {
    let family = model.family;
    let mut members = StoredMembers::new();
    let mut add = |name: String, dim: usize, segments: (usize, usize, usize)| {
        members.entry((name, dim)).or_default().insert(segments);
    };
    for member in &group.members {
        let UnitLayout::AlongAxis(axis) = member.unit_layout else {
            panic!("a group of layers")
        };
        if member.tensor_id == TensorId::LmHead && model.lm_head.is_none() {
            continue;
        }
        let width = group.channels_per_unit(model, member);
        let (mut dim, mut segments) = (usize::from(axis == Axis::Cols), (0, width, width));
        if let TensorId::Block(layer, tensor) = member.tensor_id {
            if let (Some((module, part)), Axis::Rows) = (family.fused_module(tensor), axis) {
                let rows = module.segments(part, model.config.head_dim);
                segments = (rows.offset, rows.stride, rows.length);
            }
            if !tensor.is_matrix() {
                dim = 0;
            }
            if family.bias_axis(tensor) == axis && model.blocks[layer].bias(tensor).is_some() {
                add(family.stored_bias_name(layer, tensor), 0, segments);
            }
        }
        if member.tensor_id == TensorId::FinalNorm {
            dim = 0;
            if model.final_norm_bias.is_some() {
                add(family.final_norm_bias_name(), 0, segments);
            }
        }
        add(family.stored_name(member.tensor_id), dim, segments);
    }
    members
}

/// A group of groups.json.
fn expected_members(group: &Value) -> StoredMembers {
    let mut members = StoredMembers::new();
    for member in group["members"].as_array().unwrap() {
        let name = member["tensor"].as_str().unwrap().to_owned();
        let dim = member["dim"].as_u64().unwrap() as usize;
        for segment in member["segments"].as_array().unwrap() {
            let number = |key: &str| segment[key].as_u64().unwrap() as usize;
            let segment = (number("offset"), number("stride"), number("length"));
            members
                .entry((name.clone(), dim))
                .or_default()
                .insert(segment);
        }
    }
    members
}

test!(groups_equal_the_references, needs = [Shared("families")]);
fn groups_equal_the_references() {
    for folder in shared_folders() {
        if !folder.join("groups.json").exists() {
            continue;
        }
        let expected = json(&folder.join("groups.json"));
        let model = Model::load(&folder).unwrap();
        let check = |label: &str, group: &Group, expected: &Value| {
            let label = format!("{} {label}", folder.display());
            assert_eq!(
                group.unit_count as u64,
                expected["num_units"].as_u64().unwrap(),
                "{label}"
            );
            assert_eq!(
                stored_members(&model, group),
                expected_members(expected),
                "{label}"
            );
        };
        for (layer, expected) in expected["layers"].as_array().unwrap().iter().enumerate() {
            let attention = groups::block_group(&model, ChannelSpace::Heads, layer);
            check("attention", &attention, &expected["attention"]);
            let mlp = groups::block_group(&model, ChannelSpace::Mlp, layer);
            check("mlp", &mlp, &expected["mlp"]);
        }
        check(
            "channel",
            &groups::residual_group(&model),
            &expected["channel"],
        );
    }
}

/// The groups of an example of pruned.json, each with the units that stay.
fn example_groups(model: &Model, removed: &Value) -> Vec<(Group, Vec<usize>)> {
    let kept = |group: &Group, removed: &Value| -> Vec<usize> {
        let removed: Vec<usize> = numbers(removed);
        (0..group.unit_count)
            .filter(|unit| !removed.contains(unit))
            .collect()
    };
    if let Some(channels) = removed.get("channel") {
        let group = groups::residual_group(model);
        let kept = kept(&group, channels);
        return vec![(group, kept)];
    }
    let mut all = Vec::new();
    for (key, space) in [
        ("attention", ChannelSpace::Heads),
        ("mlp", ChannelSpace::Mlp),
    ] {
        for (layer, units) in removed[key].as_object().unwrap() {
            let group = groups::block_group(model, space, layer.parse().unwrap());
            let kept = kept(&group, units);
            all.push((group, kept));
        }
    }
    all
}

/// The model pruned to the kept units of each group.
fn prune(model: &Model, kept: &[(Group, Vec<usize>)]) -> Model {
    kept.iter().fold(model.clone(), |model, (group, kept)| {
        plan::keep_units(&model, group, kept)
    })
}

/// The model of the same widths in which the units that are not kept have zero output weights.
fn masked(model: &Model, kept: &[(Group, Vec<usize>)]) -> Model {
    let mut masked = model.clone();
    for (group, kept) in kept {
        let output = group
            .members
            .iter()
            .find(|member| member.is_output)
            .unwrap();
        let width = group.channels_per_unit(model, output);
        let cols = model.weight(output.tensor_id).cols();
        masked.weight_mut(output.tensor_id).update(|values| {
            for (index, value) in values.iter_mut().enumerate() {
                if !kept.contains(&(index % cols / width)) {
                    *value = 0.0;
                }
            }
        });
    }
    masked
}

test!(worked_prunings_are_reproduced, needs = [Shared("families")]);
fn worked_prunings_are_reproduced() {
    let folders = shared_folders();
    on_both_devices(|device| {
        for folder in &folders {
            if !folder.join("pruned.json").exists() {
                continue;
            }
            let model = Model::load(folder).unwrap();
            let prompts = json(&folder.join("expected.json"))["prompts"].clone();
            for example in json(&folder.join("pruned.json"))["examples"]
                .as_array()
                .unwrap()
            {
                let label = format!("{} {} on {device}", folder.display(), example["name"]);
                let kept = example_groups(&model, &example["removed"]);
                let pruned = prune(&model, &kept);
                check_prompts(&label, &pruned, &prompts, &example["prompts"]);
                let expected = example["parameter_count"].as_u64().unwrap();
                assert_eq!(pruned.parameter_count(), expected, "{label}");
                assert_eq!(
                    ModelShape::from_model(&pruned).parameter_count(),
                    expected,
                    "{label}"
                );
                check_save_and_load(&label, &pruned);
            }
        }
    });
}

/// A saved model is loaded with the same bits, in memory and streamed, and both are saved again to
/// the same files.
fn check_save_and_load(label: &str, model: &Model) {
    let first = tempfile::tempdir().unwrap();
    model.save(first.path(), StorageDtype::Float32).unwrap();
    let expected = logits(model);
    let read = Model::load(first.path()).unwrap();
    let streamed = Model::open_streaming(first.path()).unwrap();
    for (source, model) in [("read", &read), ("streamed", &streamed)] {
        assert!(logits(model) == expected, "{label}: {source} logits differ");
        let again = tempfile::tempdir().unwrap();
        model.save(again.path(), StorageDtype::Float32).unwrap();
        for file in ["model.safetensors", "config.json"] {
            let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(
                bytes(first.path()) == bytes(again.path()),
                "{label}: {source}, {file} differs"
            );
        }
    }
}

/// A small model with random weights, of every family.
fn random_models() -> Vec<(&'static str, Model)> {
    ["llama", "qwen2", "gpt_neox"]
        .into_iter()
        .map(|name| {
            (
                name,
                random_model_of(families::find(name).unwrap().0, name != "llama"),
            )
        })
        .collect()
}

fn random_model_of(family: &'static Family, tied_embeddings: bool) -> Model {
    let shared_heads = if family.keys.key_value_heads.is_some() {
        2
    } else {
        1
    };
    random_model(&RandomModel {
        family,
        hidden: 24,
        head_dim: 8,
        vocab: 31,
        blocks: vec![
            BlockShape {
                query_heads: 3 * shared_heads,
                key_value_heads: 3,
                mlp_channels: 20,
            };
            2
        ],
        tied_embeddings,
        seed: 5,
    })
}

/// Three sequences of 9 to 11 tokens.
fn some_rows(model: &Model) -> Vec<Sequence> {
    let vocab = model.config.vocab as u32;
    let row = |row: u32| {
        (0..9 + row)
            .map(|i| (row * 13 + i * 7) % vocab)
            .collect::<Vec<u32>>()
    };
    (0..3)
        .map(row)
        .map(|ids| {
            let counts = vec![true; ids.len()];
            Sequence::new(ids, &counts)
        })
        .collect()
}

/// Adds up the gradient of every weight; a tied output matrix's goes to the embedding.
struct WeightGradients<'a> {
    model: &'a Model,
    sums: BTreeMap<TensorId, Vec<f32>>,
}

impl WeightGradients<'_> {
    fn add(&mut self, id: TensorId, result: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = result else {
            panic!("a gradient was requested")
        };
        let id = match id {
            TensorId::LmHead if self.model.lm_head.is_none() => TensorId::Embedding,
            id => id,
        };
        add_into(self.sums.entry(id).or_default(), &gradient.into_vec());
    }
}

fn add_into(sum: &mut Vec<f32>, values: &[f32]) {
    sum.resize(values.len(), 0.0);
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

impl GradientVisitor for WeightGradients<'_> {
    fn query(&self, _: ParameterId, _: &Pack) -> Option<GradientQuery> {
        Some(GradientQuery::Gradient)
    }

    fn receive(&mut self, parameter: ParameterId, _: &Pack, result: GradientResult) {
        self.add(parameter.weight().unwrap(), result);
    }
}

/// The loss and the gradient of every weight from the block `lowest_layer` up.
fn backward(model: &Model, lowest_layer: usize) -> (f64, BTreeMap<TensorId, Vec<f32>>) {
    let mut visitor = WeightGradients {
        model,
        sums: BTreeMap::new(),
    };
    let options = BackwardOptions {
        lowest_layer,
        ..BackwardOptions::default()
    };
    let loss = walk::backward(model, &some_rows(model), &options, &mut visitor).unwrap();
    (loss.mean, visitor.sums)
}

fn loss(model: &Model) -> f64 {
    backward(model, model.blocks.len()).0
}

/// Along the direction of its gradient g the loss L rises at the rate |g|. Checks it by central
/// differences: (L(w + h g / |g|) − L(w − h g / |g|)) / 2 h = |g|. `moved` returns the model with
/// values added to one weight.
fn check_slope(label: &str, gradient: &[f32], moved: impl Fn(&[f32]) -> Model) {
    let add_square = |sum: f64, g: &f32| sum + f64::from(*g).powi(2);
    let length = gradient.iter().fold(0.0, add_square).sqrt();
    // The two losses differ by about 0.02.
    let step = 0.01 / length;
    let loss_at = |step: f64| {
        let moves: Vec<f32> = gradient
            .iter()
            .map(|g| (step * f64::from(*g) / length) as f32)
            .collect();
        loss(&moved(&moves))
    };
    let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
    assert!(
        (slope / length - 1.0).abs() < 0.01,
        "{label}: {slope} against {length}"
    );
}

test!(weight_gradients_equal_differences);
fn weight_gradients_equal_differences() {
    on_both_devices(|device| {
        for (name, model) in random_models() {
            let (_, gradients) = backward(&model, 0);
            assert_eq!(gradients.len(), model.tensor_ids().len());
            for (id, gradient) in &gradients {
                check_slope(&format!("{name} {id:?} on {device}"), gradient, |moves| {
                    let mut moved = model.clone();
                    moved.weight_mut(*id).update(|values| {
                        for (value, change) in values.iter_mut().zip(moves) {
                            *value += change;
                        }
                    });
                    moved
                });
            }
        }
    });
}

/// Adds up the gradients of an adapter's factors.
#[derive(Default)]
struct FactorGradients {
    sums: BTreeMap<(usize, BlockTensor, Factor), Vec<f32>>,
}

impl GradientVisitor for FactorGradients {
    fn query(&self, parameter: ParameterId, _: &Pack) -> Option<GradientQuery> {
        matches!(parameter, ParameterId::LoraFactor(..)).then_some(GradientQuery::Gradient)
    }

    fn receive(&mut self, parameter: ParameterId, _: &Pack, result: GradientResult) {
        let (
            ParameterId::LoraFactor(layer, tensor, factor),
            GradientResult::Gradient { gradient, .. },
        ) = (parameter, result)
        else {
            panic!("gradients of factors were requested")
        };
        add_into(
            self.sums.entry((layer, tensor, factor)).or_default(),
            &gradient.into_vec(),
        );
    }
}

/// An adapter of every matrix whose B is not zero.
fn some_adapter(model: &Model, targets: &[BlockTensor]) -> Adapter {
    let mut adapter = Adapter::new(model, targets, 2, 3.0, Seed::from_u64(8));
    for (index, factors) in adapter.factors.values_mut().enumerate() {
        factors.b.update(|values| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = 0.1 * (i as f32 + 7.0 * index as f32).sin();
            }
        });
    }
    adapter
}

test!(adapter_gradients_equal_differences);
fn adapter_gradients_equal_differences() {
    on_both_devices(|device| {
        for (name, model) in random_models() {
            let targets: Vec<BlockTensor> = model.family.matrices().collect();
            let adapter = some_adapter(&model, &targets);
            let options = BackwardOptions {
                adapters: Some(TrainedAdapters {
                    adapter: &adapter,
                    dropout: Dropout {
                        probability: 0.0,
                        seed: Seed::from_u64(1),
                        first_sequence: 0,
                    },
                }),
                ..BackwardOptions::default()
            };
            let mut visitor = FactorGradients::default();
            walk::backward(&model, &some_rows(&model), &options, &mut visitor).unwrap();
            assert_eq!(visitor.sums.len(), 2 * model.blocks.len() * targets.len());
            for (&(layer, tensor, factor), gradient) in &visitor.sums {
                let label = format!("{name} {layer} {tensor:?} {factor:?} on {device}");
                check_slope(&label, gradient, |moves| {
                    let mut moved = adapter.clone();
                    let pair = moved.factors.get_mut(&(layer, tensor)).unwrap();
                    let weight = match factor {
                        Factor::A => &mut pair.a,
                        Factor::B => &mut pair.b,
                    };
                    weight.update(|values| {
                        for (value, change) in values.iter_mut().zip(moves) {
                            *value += change;
                        }
                    });
                    moved.merge_into(&model)
                });
            }
        }
    });
}

test!(adapters_are_read_back_from_pefts_layout);
fn adapters_are_read_back_from_pefts_layout() {
    for (name, model) in random_models() {
        let all: Vec<BlockTensor> = model.family.matrices().collect();
        for targets in [
            &all[..],
            &[BlockTensor::V, BlockTensor::Down],
            &[BlockTensor::Q, BlockTensor::K],
        ] {
            let adapter = some_adapter(&model, targets);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("adapter_model.safetensors");
            adapter.save(&path).unwrap();
            let read = Adapter::load(&path, &model, targets, 2, 3.0).unwrap();
            assert!(read == adapter, "{name} {targets:?}");
        }
    }
}

test!(a_fused_adapter_is_what_peft_computes);
/// PEFT has one adapter for the fused matrix of q, k and v. Its rank is three times that of each
/// part, and B · A has the rows of the three products in the order of the fused matrix.
fn a_fused_adapter_is_what_peft_computes() {
    let model = random_model_of(families::find("gpt_neox").unwrap().0, false);
    let targets = [BlockTensor::Q, BlockTensor::K, BlockTensor::V];
    let adapter = some_adapter(&model, &targets);
    let config = adapter.peft_config(Some("models/x"), 0.05);
    assert_eq!(config["target_modules"], json!(["query_key_value"]));
    assert_eq!(config["rank_pattern"], json!({ "query_key_value": 6 }));
    assert_eq!(config["alpha_pattern"], json!({ "query_key_value": 9 }));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    adapter.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let factor = |factor: &str| -> (Vec<usize>, Vec<f32>) {
        let module = "gpt_neox.layers.1.attention.query_key_value";
        let name = format!("base_model.model.{module}.lora_{factor}.weight");
        let tensor = file.tensor(&name).unwrap();
        let chunks = tensor.data().chunks_exact(4);
        let values = chunks.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        (tensor.shape().to_vec(), values.collect())
    };
    let ((a_shape, a), (b_shape, b)) = (factor("A"), factor("B"));
    assert_eq!((a_shape, b_shape), (vec![6, 24], vec![72, 6]));
    for head in 0..3 {
        for (part, tensor) in targets.into_iter().enumerate() {
            let factors = &adapter.factors[&(1, tensor)];
            let merged =
                Weight::new(vec![0.0; 24 * 24], 24, 24).add_low_rank(secateur_tensor::LowRank {
                    a: factors.a.clone(),
                    b: factors.b.clone(),
                    scale: 1.0,
                });
            for channel in 0..8 {
                let fused_row = head * 24 + part * 8 + channel;
                let own_row = head * 8 + channel;
                for col in 0..24 {
                    let product: f32 = (0..6).map(|k| b[fused_row * 6 + k] * a[k * 24 + col]).sum();
                    let expected = merged.values()[own_row * 24 + col];
                    assert!(
                        (product - expected).abs() < 1e-6,
                        "{head} {tensor:?} {channel} {col}"
                    );
                }
            }
        }
    }

    // An adapter that mixes the parts is refused: here a row of q has a value in a column of k.
    let mut mixed = b;
    mixed[3] = 1.0;
    let stored = [('A', vec![6, 24], a), ('B', vec![72, 6], mixed)];
    let mut views = Vec::new();
    for layer in 0..2 {
        for (factor, shape, values) in &stored {
            let module = format!("gpt_neox.layers.{layer}.attention.query_key_value");
            let name = format!("base_model.model.{module}.lora_{factor}.weight");
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            views.push((name, shape.clone(), bytes));
        }
    }
    let views = views.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::tensor::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).unwrap();
    let refusal = Adapter::load(&path, &model, &targets, 2, 3.0)
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("mixes q, k, v: row 0 has a value in column 3"),
        "{refusal}"
    );
}

test!(pruned_and_masked_models_agree);
fn pruned_and_masked_models_agree() {
    on_both_devices(|device| {
        for (name, model) in random_models() {
            let mut kept = Vec::new();
            for layer in 0..2 {
                let attention = groups::block_group(&model, ChannelSpace::Heads, layer);
                kept.push((attention, vec![layer, 2]));
                let mlp = groups::block_group(&model, ChannelSpace::Mlp, layer);
                kept.push((mlp, (0..20).filter(|unit| unit % 3 != layer).collect()));
            }
            let (pruned, masked) = (prune(&model, &kept), masked(&model, &kept));
            let worst = largest_difference(&logits(&pruned), &logits(&masked));
            assert!(worst < 1e-5, "{name} on {device}: {worst:.1e}");
            // The plan rebuilds the pruned model.
            let mut plan = PruningPlan::default();
            for (group, kept) in &kept {
                plan.record_kept_units(group, kept);
            }
            let rebuilt = plan.apply(&model).unwrap();
            assert!(logits(&rebuilt) == logits(&pruned), "{name} on {device}");
        }
    });
}

test!(what_is_saved_is_read_back);
fn what_is_saved_is_read_back() {
    for (name, model) in random_models() {
        check_save_and_load(name, &model);
        let layers = groups::whole_layer_group(&model);
        assert!(
            layers.kind == GroupKind::Layer
                && layers.members.len() == model.family.matrices().count()
        );
        check_save_and_load(name, &plan::keep_units(&model, &layers, &[1]));
        // Biases that pruning adds to the output matrices.
        let mut biased = model.clone();
        for tensor in [BlockTensor::O, BlockTensor::Down] {
            let bias = Weight::new((0..24).map(|i| i as f32 / 24.0).collect(), 1, 24);
            biased.blocks[1].set_bias(tensor, bias);
        }
        check_save_and_load(name, &biased);
        let narrow = groups::residual_group(&biased);
        let kept: Vec<usize> = (0..24).filter(|channel| channel % 5 != 0).collect();
        check_save_and_load(name, &plan::keep_units(&biased, &narrow, &kept));
    }
}

test!(an_export_names_a_class_that_can_hold_it);
/// transformers' class in an exported `config.json` has every bias of the model.
fn an_export_names_a_class_that_can_hold_it() {
    let class = |model: &Model| -> (String, Value) {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), StorageDtype::Float32).unwrap();
        let config = json(&folder.path().join("config.json"));
        (
            config["architectures"][0].as_str().unwrap().to_owned(),
            config,
        )
    };
    let mut qwen2 = random_model_of(families::find("qwen2").unwrap().0, true);
    assert_eq!(class(&qwen2).0, "Qwen2ForCausalLM");
    qwen2.blocks[0].set_bias(BlockTensor::O, Weight::new(vec![0.5; 24], 1, 24));
    let (name, config) = class(&qwen2);
    assert_eq!(
        (&name[..], &config["attention_bias"]),
        ("LlamaForCausalLM", &json!(true))
    );
    let neox = random_model_of(families::find("gpt_neox").unwrap().0, false);
    let (name, config) = class(&neox);
    assert_eq!(name, "GPTNeoXForCausalLM");
    assert_eq!(config["rotary_pct"], json!(0.25));
    assert_eq!(config["use_parallel_residual"], json!(true));
}

test!(costs_are_those_of_the_family);
/// Costs computed by hand, for two blocks of hidden width 24 with 3 key/value heads of 8 channels
/// (6 query heads in llama and qwen2) and 20 MLP channels, and a vocabulary of 31.
fn costs_are_those_of_the_family() {
    let expected = [
        // Embedding and output matrix, final norm, then per block: norms, matrices, biases.
        (
            "llama",
            2 * 31 * 24 + 24 + 2 * (2 * 24 + (48 + 24 + 24 + 48) * 24 + 3 * 20 * 24),
        ),
        (
            "qwen2",
            31 * 24 + 24 + 2 * (2 * 24 + (48 + 24 + 24 + 48) * 24 + 3 * 20 * 24 + 48 + 24 + 24),
        ),
        (
            "gpt_neox",
            31 * 24 + 2 * 24 + 2 * (4 * 24 + 4 * 24 * 24 + 2 * 20 * 24 + 4 * 24 + 20 + 24),
        ),
    ];
    for ((name, model), (expected_name, parameters)) in random_models().into_iter().zip(expected) {
        assert_eq!(name, expected_name);
        assert_eq!(model.parameter_count(), parameters, "{name}");
        assert_eq!(
            ModelShape::from_model(&model).parameter_count(),
            parameters,
            "{name}"
        );
    }
    // For one token: rotation of 2 of 8 dimensions, attention scores, matrices, GELU, norms; then
    // the final norm and the output matrix.
    let (_, neox) = random_models().pop().unwrap();
    let block = 4 * 3 * 2 + 3 * (2 * 8 + 1) + (4 * 24 * 24 + 2 * 20 * 24) + 20 + 2 * 2 * 24;
    assert_eq!(
        ModelShape::from_model(&neox).macs(1),
        2 * block + 2 * 24 + 24 * 31
    );
}

/// Every stage that needs no tokenizer.
const PIPELINE: &str = r#"
[[stage]]
type = "load"
model = "model"

[[stage]]
type = "evaluate"
corpora = ["rows.jsonl"]
window = 16

[[stage]]
type = "dependencies"
GROUPING

[[stage]]
type = "importance"
METHOD
corpus = "rows.jsonl"
samples = 6
length = 12

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
PRUNE

[[stage]]
type = "recover"
corpus = "rows.jsonl"
rank = 2
batch = 3
learning_rate = 1e-3
duration = { updates = 2 }

[[stage]]
type = "evaluate"
corpora = ["rows.jsonl"]
window = 16

[[stage]]
type = "profile"
repeat = 1
prefill = 8
decode = 3

[[stage]]
type = "export"
formats = ["hf", "plan"]
"#;

/// The options in place of GROUPING, METHOD and PRUNE.
const PIPELINES: [[&str; 3]; 4] = [
    [
        "",
        "method = \"taylor\"\ntaylor = \"element-mixed\"",
        "ratio = 0.34",
    ],
    [
        "",
        "method = \"wifv\"",
        "ratio = 0.34\ncompensation = \"bias\"",
    ],
    [
        "grouping = \"channel\"",
        "method = \"taylor\"\ntaylor = \"vector\"",
        "ratio = 0.2",
    ],
    ["grouping = \"layer\"", "method = \"taylor\"", "ratio = 0.5"],
];

test!(every_stage_works_on_every_family);
fn every_stage_works_on_every_family() {
    for (name, model) in random_models() {
        for [grouping, method, prune] in PIPELINES {
            let sandbox = Sandbox::new();
            model
                .save(&sandbox.path("model"), StorageDtype::Float32)
                .unwrap();
            let row = |row: usize| -> Vec<usize> {
                (0..20).map(|i| (row * 11 + i * (row + 3)) % 31).collect()
            };
            let rows: Vec<String> = (0..8)
                .map(|i| format!("{{\"ids\": {:?}}}", row(i)))
                .collect();
            sandbox.write("rows.jsonl", rows.join("\n"));
            let pipeline = PIPELINE
                .replace("GROUPING", grouping)
                .replace("METHOD", method)
                .replace("PRUNE", prune);
            sandbox.write("family.toml", pipeline);
            let mut kept: Option<Vec<Vec<String>>> = None;
            on_both_devices(|device| {
                let results = format!("on-{device}");
                let set = format!("run.device={device}");
                let ran = sandbox.run(&["family.toml", "--results", &results, "--set", &set]);
                assert_eq!(ran.code, 0, "{name} {method}: {}", ran.err);
                let variant = sandbox.variant_in(&results, "family", "base-");
                let exported = Model::load(&sandbox.path(&format!("{variant}/hf"))).unwrap();
                assert!(
                    exported.parameter_count() < model.parameter_count(),
                    "{name} {method}"
                );
                assert!(exported.is_finite().unwrap());
            });
            for results in ["on-cpu", "on-cpu-as-gpu"] {
                if !sandbox.path(results).exists() {
                    continue;
                }
                let variant = sandbox.variant_in(results, "family", "base-");
                let rows = table(&sandbox.path(&format!("{variant}/prune.parquet")));
                let columns: Vec<Vec<String>> = ["layer", "group", "unit", "kept"]
                    .map(|column| text(&rows[column]))
                    .to_vec();
                match &kept {
                    Some(kept) => assert!(*kept == columns, "{name} {method}: units differ"),
                    None => kept = Some(columns),
                }
            }
        }
    }
}

test!(a_target_that_the_family_lacks_is_refused);
/// A target that the family lacks is named before any work.
fn a_target_that_the_family_lacks_is_refused() {
    let sandbox = Sandbox::new();
    let (_, model) = random_models().pop().unwrap();
    model
        .save(&sandbox.path("model"), StorageDtype::Float32)
        .unwrap();
    sandbox.write("rows.jsonl", "{\"ids\": [1, 2, 3, 4]}");
    let pipeline = |targets: &str| {
        format!(
            "[[stage]]\ntype = \"load\"\nmodel = \"model\"\n\n\
             [[stage]]\ntype = \"recover\"\ncorpus = \"rows.jsonl\"\n\
             targets = {targets}\nduration = {{ updates = 1 }}\nrank = 2\n"
        )
    };
    sandbox.write("family.toml", pipeline("[\"q\", \"gate\"]"));
    let ran = sandbox.run(&["check", "family.toml"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err
            .contains("the model has no matrix `gate`; it has q, k, v, o, up, down"),
        "{}",
        ran.err
    );
    sandbox.write("family.toml", pipeline("[\"q\", \"up\"]"));
    assert_eq!(sandbox.run(&["check", "family.toml"]).code, 0);
}
