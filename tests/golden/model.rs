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
struct All {
    gradients: BTreeMap<TensorId, Vec<f32>>,
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
        let mut all = All::default();
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
        for (place, gradient) in &all.gradients {
            let expected = stored
                .tensor(&format!("grad.{}", model.family.tensor_name(*place)))
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
    walk::backward(&model, &sequences, &BackwardOptions::default(), &mut all).unwrap();
    all.tie();
    let last = model.blocks.len() - 1;
    let places = [0, last].into_iter().flat_map(|layer| {
        let tensors = model.family.block_tensor_ids();
        tensors.map(move |tensor| TensorId::Block(layer, tensor))
    });
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
            let head_only = BackwardOptions {
                lowest_layer: moved.blocks.len(),
                ..BackwardOptions::default()
            };
            walk::backward(&moved, &sequences, &head_only, &mut All::default())
                .unwrap()
                .mean
        };
        let step = 0.01 / length; // the loss moves by about 0.02 in all
        let slope = (loss(step) - loss(-step)) / (2.0 * step);
        assert!(
            (slope / length - 1.0).abs() < 0.01,
            "{place:?}: {slope} against {length}"
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
    let mut all = All::default();
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
    for (place, gradient) in &all.gradients {
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let expected = golden["gradient_norms"][model.family.tensor_name(*place)]
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
        let mut all = All::default();
        let options = BackwardOptions {
            memory_limit: memory,
            ..BackwardOptions::default()
        };
        let loss = walk::backward(&model, &sequences, &options, &mut all).unwrap();
        (loss, all.gradients)
    };
    let kept = with(None);
    assert!(kept == with(Some(0)) && kept == with(Some(u64::MAX)));
}
