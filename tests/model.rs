//! The forward pass and the gradients against transformers' and LLM-Pruner's own numbers, and against differences.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use secateur::model::Model;
use secateur::model::blocks::Lens;
use secateur::model::walk::{self, Sequence, Visitor};
use secateur::model::wiring::{LLAMA, Part, Place};
use secateur::ops::Slot;

use crate::support::{json, numbers, shared};

/// Gathers the gradient of every weight.
#[derive(Default)]
struct All {
    gradients: BTreeMap<Place, Vec<f32>>,
}

struct Slots(Vec<Slot>);

impl Lens for Slots {
    fn slot(&self, part: Part) -> Option<&Slot> {
        Some(&self.0[part as usize])
    }
}

impl All {
    fn add(&mut self, place: Place, gradient: Vec<f32>) {
        match self.gradients.get_mut(&place) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
            None => drop(self.gradients.insert(place, gradient)),
        }
    }
}

impl Visitor for All {
    type Lens = Slots;
    type Found = Vec<(Part, Vec<f32>)>;
    fn lens(&self, _: usize, _: usize) -> Slots {
        Slots((0..9).map(|_| Slot::default()).collect())
    }
    fn found(lens: Slots) -> Self::Found {
        Part::ALL.into_iter().zip(&lens.0).filter_map(|(part, slot)| Some((part, slot.take()?))).collect()
    }
    fn block(&mut self, layer: usize, _: usize, found: Self::Found) {
        found.into_iter().for_each(|(part, gradient)| self.add(Place::Block(layer, part), gradient));
    }
    fn wants(&self, _: Place) -> bool {
        true
    }
    fn outside(&mut self, at: Place, _: usize, gradient: Vec<f32>) {
        self.add(at, gradient);
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

#[test]
fn logits_equal_transformers() {
    let (Some(folder), Some(golden)) = (shared("models/stories260K"), shared("golden/logits_stories260K.json")) else { return };
    let model = Model::load(&folder).unwrap();
    for prompt in json(&golden)["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = numbers(&prompt["token_ids"]);
        let logits = walk::logits(&model, &ids);
        let last = &logits.as_vec()[(ids.len() - 1) * 512..];
        let expected: Vec<f32> = numbers(&prompt["last_logits"]);
        let worst = last.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{ids:?}: {worst}");
    }
}

#[test]
fn gradients_equal_llm_pruner() {
    for name in ["stories260K", "mha_tiny"] {
        let (Some(folder), Some(golden), Some(stored)) = (
            shared(&format!("models/{name}")),
            shared(&format!("golden/prune_{name}.json")),
            shared(&format!("golden/prune_{name}_grads.safetensors")),
        ) else {
            return;
        };
        let model = Model::load(&folder).unwrap();
        let golden = json(&golden);
        let mut all = All::default();
        let loss = walk::backward(&model, &rows(numbers(&golden["calibration"]["A"])), 0, &mut all);
        let expected = golden["calibration"]["A_batch_mean_loss"].as_f64().unwrap();
        assert!((loss.mean / expected - 1.0).abs() < 1e-6, "{} {expected}", loss.mean);
        if model.head.is_none() {
            let head = all.gradients.remove(&Place::Head).unwrap();
            all.add(Place::Embedding, head);
        }
        let bytes = std::fs::read(stored).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let mut compared = 0;
        for (place, gradient) in &all.gradients {
            let expected = stored.tensor(&format!("grad.{}", LLAMA.tensor(*place))).unwrap();
            let expected: Vec<f32> = expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
            let worst = gradient.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= 2e-5 * largest, "{place:?}: {} of the largest entry", worst / largest);
            compared += 1;
        }
        assert_eq!(compared, model.places().len());
    }
}
