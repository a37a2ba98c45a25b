//! The forward pass and the gradients against transformers, LLM-Pruner and finite differences;
//! checkpoints and exports.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use secateur::stages::{Context, export};
use secateur_model::blocks::GradientRequests;
use secateur_model::plan::{self, PruningPlan};
use secateur_model::walk::{self, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::{BlockTensor, ChannelSpace, LLAMA, TensorId};
use secateur_model::{Model, groups};
use secateur_tensor::ops::{GradientQuery, GradientResult};
use serde_json::Value;

use crate::support::{
    context, copy_folder, golden_data, json, largest, largest_difference, numbers, shared, tiny,
};

/// Collects the gradient of every weight.
#[derive(Default)]
struct All {
    gradients: BTreeMap<TensorId, Vec<f32>>,
    memory: Option<u64>,
}

impl All {
    /// Adds the head's gradient to the embedding's, for a model whose head is tied.
    fn tie(&mut self) {
        let gradient = self.gradients.remove(&TensorId::LmHead).unwrap();
        self.add_up(TensorId::Embedding, gradient);
    }

    fn add(&mut self, place: TensorId, answer: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = answer else {
            panic!("a gradient was asked for")
        };
        self.add_up(place, gradient.into_vec());
    }

    fn add_up(&mut self, place: TensorId, gradient: Vec<f32>) {
        match self.gradients.get_mut(&place) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
            None => drop(self.gradients.insert(place, gradient)),
        }
    }
}

impl GradientVisitor for All {
    type Hooks = GradientRequests;
    fn hooks(&self, _: usize, _: &Pack) -> GradientRequests {
        GradientRequests::from_queries(BlockTensor::ALL.map(|part| (part, GradientQuery::Gradient)))
    }
    fn visit_block(&mut self, layer: usize, _: &Pack, lens: GradientRequests) {
        lens.into_results()
            .for_each(|(part, answer)| self.add(TensorId::Block(layer, part), answer));
    }
    fn query(&self, _: TensorId, _: &Pack) -> Option<GradientQuery> {
        Some(GradientQuery::Gradient)
    }
    fn visit_outer_tensor(&mut self, at: TensorId, _: &Pack, answer: GradientResult) {
        self.add(at, answer);
    }
    fn memory_limit(&self) -> Option<u64> {
        self.memory
    }
}

fn rows(ids: Vec<Vec<u32>>) -> Vec<Sequence> {
    ids.into_iter()
        .map(|ids| {
            let counts = vec![true; ids.len()];
            Sequence::new(ids, &counts)
        })
        .collect()
}

test!(
    logits_equal_transformers,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/logits_stories260K.json")
    ]
);
fn logits_equal_transformers() {
    let (folder, golden) = (
        shared("models/stories260K"),
        shared("golden/logits_stories260K.json"),
    );
    let model = Model::load(&folder).unwrap();
    for prompt in json(&golden)["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = numbers(&prompt["token_ids"]);
        let logits = walk::logits(&model, &ids);
        let last = &logits.into_vec()[(ids.len() - 1) * 512..];
        let expected: Vec<f32> = numbers(&prompt["last_logits"]);
        let worst = largest_difference(last, &expected);
        assert!(worst < 1e-4, "{ids:?}: {worst}");
    }
}

test!(gradients_equal_llm_pruner, needs = super::LLM_PRUNER);
fn gradients_equal_llm_pruner() {
    for name in ["stories260K", "mha_tiny"] {
        let (folder, golden, stored) = (
            shared(&format!("models/{name}")),
            shared(&format!("golden/prune_{name}.json")),
            shared(&format!("golden/prune_{name}_grads.safetensors")),
        );
        let model = Model::load(&folder).unwrap();
        let golden = json(&golden);
        let mut all = All::default();
        let loss = walk::backward(
            &model,
            &rows(numbers(&golden["calibration"]["A"])),
            0,
            &mut all,
        );
        let expected = golden["calibration"]["A_batch_mean_loss"].as_f64().unwrap();
        assert!(
            (loss.mean / expected - 1.0).abs() < 1e-6,
            "{} {expected}",
            loss.mean
        );
        if model.lm_head.is_none() {
            all.tie();
        }
        let bytes = std::fs::read(stored).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let mut compared = 0;
        for (place, gradient) in &all.gradients {
            let expected = stored
                .tensor(&format!("grad.{}", LLAMA.tensor_name(*place)))
                .unwrap();
            let expected: Vec<f32> = expected
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let largest_entry = largest(expected.iter().map(|entry| entry.abs()));
            let worst = largest_difference(gradient, &expected);
            assert!(
                worst <= 2e-5 * largest_entry,
                "{place:?}: {} of the largest entry",
                worst / largest_entry
            );
            compared += 1;
        }
        assert_eq!(compared, model.tensor_ids().len());
    }
}

fn some_rows(model: &Model) -> Vec<Sequence> {
    let vocab = model.config.vocab as u32;
    rows(
        (0..3)
            .map(|row| (0..9 + row).map(|i| (row * 131 + i * 37) % vocab).collect())
            .collect(),
    )
}

test!(gradients_equal_finite_differences);
/// Central differences: along its own gradient the loss must rise at the rate of the gradient's
/// length. Checks every kind of weight.
fn gradients_equal_finite_differences() {
    let model = tiny();
    let sequences = some_rows(&model);
    let mut all = All::default();
    walk::backward(&model, &sequences, 0, &mut all);
    all.tie();
    let last = model.blocks.len() - 1;
    let places = [0, last]
        .into_iter()
        .flat_map(|layer| BlockTensor::ALL.map(|part| TensorId::Block(layer, part)));
    for place in places.chain([TensorId::Embedding, TensorId::FinalNorm]) {
        let gradient = &all.gradients[&place];
        let length = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let loss = |step: f64| {
            let mut moved = model.clone();
            moved.weight_mut(place).update(|w| {
                w.iter_mut()
                    .zip(gradient)
                    .for_each(|(w, g)| *w += (step * f64::from(*g) / length) as f32);
            });
            walk::backward(&moved, &sequences, moved.blocks.len(), &mut All::default()).mean
        };
        let step = 0.01 / length; // the loss moves by about 0.02 in all
        let slope = (loss(step) - loss(-step)) / (2.0 * step);
        assert!(
            (slope / length - 1.0).abs() < 0.01,
            "{place:?}: {slope} against {length}"
        );
    }
}

/// A copy of models/tiny with its tensors spread over `files`, each stored as `dtype`, and its
/// config changed by `change`.
fn rewritten(
    files: &[&str],
    dtype: Dtype,
    change: impl FnOnce(&mut Value),
) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny")),
        folder.path(),
    );
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::remove_file(weights).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let cast = |data: &[u8]| -> Vec<u8> {
        let values = data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        match dtype {
            Dtype::F16 => values
                .flat_map(|v| half::f16::from_f32(v).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .flat_map(|v| half::bf16::from_f32(v).to_le_bytes())
                .collect(),
            _ => data.to_vec(),
        }
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), cast(view.data())))
        .collect();
    let mut index = serde_json::Map::new();
    for (i, file) in files.iter().enumerate() {
        let own = tensors.iter().skip(i).step_by(files.len());
        let views = own.map(|(name, shape, data)| {
            index.insert(name.clone(), (*file).into());
            (
                name.clone(),
                TensorView::new(dtype, shape.clone(), data).unwrap(),
            )
        });
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &folder.path().join(file))
            .unwrap();
    }
    if files.len() > 1 {
        let text = serde_json::json!({ "metadata": {}, "weight_map": index }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config = json(&path);
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    let model = Model::load(folder.path()).unwrap();
    (folder, model)
}

test!(sharded_and_half_precision_checkpoints_load_the_same_model);
fn sharded_and_half_precision_checkpoints_load_the_same_model() {
    let model = tiny();
    let logits = |model: &Model| walk::logits(model, &[0, 5, 9, 300, 44]).into_vec();
    let newer = |config: &mut Value| {
        let config = config.as_object_mut().unwrap();
        let theta = config.remove("rope_theta").unwrap();
        config.remove("rope_scaling");
        config.remove("torch_dtype");
        config.insert("dtype".to_owned(), "float32".into());
        config.insert(
            "rope_parameters".to_owned(),
            serde_json::json!({ "rope_type": "default", "rope_theta": theta }),
        );
    };
    let three = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    let (_folder, sharded) = rewritten(&three, Dtype::F32, newer);
    assert_eq!(logits(&sharded), logits(&model));
    for dtype in [Dtype::F16, Dtype::BF16] {
        let (_folder, halved) = rewritten(&["model.safetensors"], dtype, |_| {});
        let round = |v: f32| {
            if dtype == Dtype::F16 {
                half::f16::from_f32(v).to_f32()
            } else {
                half::bf16::from_f32(v).to_f32()
            }
        };
        for place in model.tensor_ids() {
            let expected: Vec<f32> = model
                .weight(place)
                .values()
                .iter()
                .map(|&v| round(v))
                .collect();
            assert_eq!(halved.weight(place).values(), expected, "{place:?}");
        }
    }
    let (folder, _) = rewritten(&three, Dtype::F32, |_| {});
    std::fs::remove_file(folder.path().join(three[1])).unwrap();
    let error = Model::load(folder.path()).err().unwrap().to_string();
    assert!(
        error.contains("cannot read") && error.contains(three[1]),
        "{error}"
    );
}

test!(exported_model_loads_with_the_same_logits);
/// A model whose widths differ between layers is exported and loaded without a changed bit.
fn exported_model_loads_with_the_same_logits() {
    let model = tiny();
    let kept: Vec<Vec<usize>> = vec![
        vec![0, 2],
        vec![1],
        vec![0, 1, 2, 3],
        vec![3],
        vec![0, 3],
        vec![1, 2, 3],
    ];
    let mut pruned = model.clone();
    let mut plan = PruningPlan::default();
    for (layer, heads) in kept.iter().enumerate() {
        for (space, units) in [
            (ChannelSpace::Heads, heads.clone()),
            (ChannelSpace::Mlp, (0..100 + 7 * layer).collect()),
        ] {
            let group = groups::block_group(&pruned, space, layer);
            pruned = plan::keep_units(&pruned, &group, &units);
            plan.record_kept_units(&group, &units);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let context = Context {
        output_folder: folder.path().to_owned(),
        ..context()
    };
    let options: export::Options =
        serde_json::from_value(serde_json::json!({ "formats": ["hf", "plan"] })).unwrap();
    export::run(&options, &context, &pruned, Some(&plan)).unwrap();
    let read = Model::load(&folder.path().join("hf")).unwrap();
    let ids = [0, 5, 9, 300, 44, 7];
    assert_eq!(
        walk::logits(&read, &ids).into_vec(),
        walk::logits(&pruned, &ids).into_vec()
    );
    assert_eq!(read.parameter_count(), pruned.parameter_count());
    let text = "Anna is in the garden.";
    let encoded = |model: &Model| {
        model
            .tokenizer
            .as_ref()
            .unwrap()
            .encode(text, true)
            .unwrap()
    };
    assert_eq!(encoded(&read), encoded(&model));
    // The plan applied to the dense checkpoint gives the same model.
    let stored: PruningPlan =
        serde_json::from_value(json(&folder.path().join("plan.json"))).unwrap();
    let rebuilt = stored.apply(&model).unwrap();
    assert!(
        rebuilt
            .tensor_ids()
            .into_iter()
            .all(|place| rebuilt.weight(place) == pruned.weight(place))
    );
    // Exporting the loaded model writes the same files.
    let again = tempfile::tempdir().unwrap();
    export::run(
        &options,
        &Context {
            output_folder: again.path().to_owned(),
            ..context
        },
        &read,
        Some(&plan),
    )
    .unwrap();
    for file in ["hf/model.safetensors", "hf/config.json", "plan.json"] {
        assert_eq!(
            std::fs::read(folder.path().join(file)).unwrap(),
            std::fs::read(again.path().join(file)).unwrap(),
            "{file}"
        );
    }
}

test!(tiny_model_equals_transformers);
/// Always runs: the numbers of transformers and PyTorch for the model that ships with the project.
fn tiny_model_equals_transformers() {
    let golden = json(&golden_data("tiny.json"));
    let model = tiny();
    let mut all_rows = Vec::new();
    for text in golden["texts"].as_array().unwrap() {
        let ids: Vec<u32> = numbers(&text["ids"]);
        let encoded = model
            .tokenizer
            .as_ref()
            .unwrap()
            .encode(text["text"].as_str().unwrap(), true)
            .unwrap();
        assert_eq!(encoded, ids);
        let logits = walk::logits(&model, &ids).into_vec();
        let expected: Vec<f32> = numbers(&text["last_logits"]);
        let last = &logits[logits.len() - expected.len()..];
        let worst = largest_difference(last, &expected);
        assert!(worst < 1e-4, "{}: {worst}", text["text"]);
        all_rows.push(ids);
    }
    let mut all = All::default();
    let loss = walk::backward(&model, &rows(all_rows), 0, &mut all);
    assert!(
        (loss.mean / golden["loss"].as_f64().unwrap() - 1.0).abs() < 1e-5,
        "{}",
        loss.mean
    );
    all.tie();
    for (place, gradient) in &all.gradients {
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let expected = golden["gradient_norms"][LLAMA.tensor_name(*place)]
            .as_f64()
            .unwrap();
        assert!(
            (norm / expected - 1.0).abs() < 1e-4,
            "{place:?}: {norm} {expected}"
        );
    }
    assert_eq!(
        all.gradients.len(),
        golden["gradient_norms"].as_object().unwrap().len()
    );
}

test!(gradients_do_not_depend_on_kept_tapes);
/// Kept tapes and recomputed blocks give the same bits.
fn gradients_do_not_depend_on_kept_tapes() {
    let model = tiny();
    let sequences = some_rows(&model);
    let with = |memory: Option<u64>| {
        let mut all = All {
            memory,
            ..All::default()
        };
        let loss = walk::backward(&model, &sequences, 0, &mut all);
        (loss, all.gradients)
    };
    let kept = with(None);
    assert!(kept == with(Some(0)) && kept == with(Some(u64::MAX)));
}
