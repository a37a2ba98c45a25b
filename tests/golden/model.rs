//! The forward pass and the gradients against transformers, LLM-Pruner and finite differences.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use secateur_model::walk::{self, BackwardOptions, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::TensorId;
use secateur_model::{Model, ParameterId};
use secateur_tensor::ops::{GradientQuery, GradientResult};

use crate::support::{golden_data, json, largest, largest_difference, numbers, shared, tiny};

/// Collects the gradient of every weight.
#[derive(Default)]
struct AllGradients {
    gradients: BTreeMap<TensorId, Vec<f32>>,
}

impl AllGradients {
    /// Adds the gradient of the output matrix to that of the embedding: in a model whose output
    /// matrix is tied they are one weight.
    fn tie(&mut self) {
        let gradient = self.gradients.remove(&TensorId::LmHead).unwrap();
        self.add_up(TensorId::Embedding, gradient);
    }

    fn add(&mut self, tensor_id: TensorId, result: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = result else {
            panic!("a gradient was requested")
        };
        self.add_up(tensor_id, gradient.into_vec());
    }

    fn add_up(&mut self, tensor_id: TensorId, gradient: Vec<f32>) {
        match self.gradients.get_mut(&tensor_id) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
            None => drop(self.gradients.insert(tensor_id, gradient)),
        }
    }
}

impl GradientVisitor for AllGradients {
    fn query(&self, _: ParameterId, _: &Pack) -> Option<GradientQuery> {
        Some(GradientQuery::Gradient)
    }

    fn receive(&mut self, parameter: ParameterId, _: &Pack, result: GradientResult) {
        self.add(parameter.weight().unwrap(), result);
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
        let logits = walk::logits(&model, &ids).unwrap();
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
        let mut all = AllGradients::default();
        let loss = walk::backward(
            &model,
            &rows(numbers(&golden["calibration"]["A"])),
            &BackwardOptions::default(),
            &mut all,
        )
        .unwrap();
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
        for (tensor_id, gradient) in &all.gradients {
            let stored_gradient = stored
                .tensor(&format!("grad.{}", model.family.tensor_name(*tensor_id)))
                .unwrap();
            let expected: Vec<f32> = stored_gradient
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            let largest_entry = largest(expected.iter().map(|entry| entry.abs()));
            let worst = largest_difference(gradient, &expected);
            assert!(
                worst <= 2e-5 * largest_entry,
                "{tensor_id:?}: {} of the largest entry",
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
/// Along the direction of its gradient g the loss L must rise at the rate |g|. Checks by central
/// differences for every kind of weight: (L(w + h g / |g|) − L(w − h g / |g|)) / 2 h = |g|.
fn gradients_equal_finite_differences() {
    let model = tiny();
    let sequences = some_rows(&model);
    let mut all = AllGradients::default();
    walk::backward(&model, &sequences, &BackwardOptions::default(), &mut all).unwrap();
    all.tie();
    let last = model.blocks.len() - 1;
    let tensor_ids = [0, last].into_iter().flat_map(|layer| {
        let tensors = model.family.block_tensor_ids();
        tensors.map(move |tensor| TensorId::Block(layer, tensor))
    });
    for tensor_id in tensor_ids.chain([TensorId::Embedding, TensorId::FinalNorm]) {
        let gradient = &all.gradients[&tensor_id];
        let length = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let loss = |step: f64| {
            let mut moved = model.clone();
            moved.weight_mut(tensor_id).update(|values| {
                for (value, g) in values.iter_mut().zip(gradient) {
                    *value += (step * f64::from(*g) / length) as f32;
                }
            });
            let head_only = BackwardOptions {
                lowest_layer: moved.blocks.len(),
                ..BackwardOptions::default()
            };
            walk::backward(&moved, &sequences, &head_only, &mut AllGradients::default())
                .unwrap()
                .mean
        };
        // The two losses differ by about 0.02.
        let step = 0.01 / length;
        let slope = (loss(step) - loss(-step)) / (2.0 * step);
        assert!(
            (slope / length - 1.0).abs() < 0.01,
            "{tensor_id:?}: {slope} against {length}"
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
        let logits = walk::logits(&model, &ids).unwrap().into_vec();
        let expected: Vec<f32> = numbers(&text["last_logits"]);
        let last = &logits[logits.len() - expected.len()..];
        let worst = largest_difference(last, &expected);
        assert!(worst < 1e-4, "{}: {worst}", text["text"]);
        all_rows.push(ids);
    }
    let mut all = AllGradients::default();
    let loss = walk::backward(
        &model,
        &rows(all_rows),
        &BackwardOptions::default(),
        &mut all,
    )
    .unwrap();
    assert!(
        (loss.mean / golden["loss"].as_f64().unwrap() - 1.0).abs() < 1e-5,
        "{}",
        loss.mean
    );
    all.tie();
    for (tensor_id, gradient) in &all.gradients {
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let expected = golden["gradient_norms"][model.family.tensor_name(*tensor_id)]
            .as_f64()
            .unwrap();
        assert!(
            (norm / expected - 1.0).abs() < 1e-4,
            "{tensor_id:?}: {norm} {expected}"
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
    let run_backward = |memory_limit: Option<u64>| {
        let mut all = AllGradients::default();
        let options = BackwardOptions {
            memory_limit,
            ..BackwardOptions::default()
        };
        let loss = walk::backward(&model, &sequences, &options, &mut all).unwrap();
        (loss, all.gradients)
    };
    let unlimited = run_backward(None);
    assert!(unlimited == run_backward(Some(0)) && unlimited == run_backward(Some(u64::MAX)));
}
