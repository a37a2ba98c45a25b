//! Greedy decoding against transformers, through the `generate` stage and the KV cache.

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use secateur::stages::generate::{self, Options};
use secateur_model::Model;
use secateur_model::walk::Decoder;

use crate::support::{context, json, numbers, shared, text};

test!(
    greedy_texts_equal_transformers,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/logits_stories260K.json")
    ]
);
fn greedy_texts_equal_transformers() {
    let (folder, golden) = (
        shared("models/stories260K"),
        shared("golden/logits_stories260K.json"),
    );
    let model = Model::load(&folder).unwrap();
    let golden = json(&golden);
    let golden = golden["prompts"].as_array().unwrap();
    let prompts = golden
        .iter()
        .map(|prompt| prompt["prompt"].as_str().unwrap().to_owned())
        .collect();
    let options = Options {
        prompts,
        max_new_tokens: 40,
        ignore_eos: true,
        ..Options::default()
    };
    let rows = generate::run(&options, &context(), &model)
        .unwrap()
        .swap_remove(0)
        .rows;
    for (row, golden) in golden.iter().enumerate() {
        let ids = rows["ids"].as_list::<i32>().value(row);
        assert_eq!(
            ids.as_primitive::<UInt32Type>().values().to_vec(),
            numbers::<u32>(&golden["greedy_token_ids"])
        );
        // A text decoded alone loses its leading space.
        assert_eq!(
            text(&rows["output"])[row].trim_start(),
            golden["greedy_text"].as_str().unwrap().trim_start()
        );
    }
}

test!(
    cached_greedy_decoding_equals_transformers,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/logits_stories260K.json")
    ]
);
fn cached_greedy_decoding_equals_transformers() {
    let (folder, golden) = (
        shared("models/stories260K"),
        shared("golden/logits_stories260K.json"),
    );
    let model = Model::load(&folder).unwrap();
    let golden = json(&golden);
    let prompts = golden["prompts"].as_array().unwrap();
    let mut decoder = Decoder::new(&model, prompts.len(), 512);
    let mut on: Vec<(usize, Vec<u32>)> = prompts
        .iter()
        .map(|p| numbers(&p["token_ids"]))
        .enumerate()
        .collect();
    let mut written = vec![Vec::new(); prompts.len()];
    for _ in 0..40 {
        let next = decoder.extend_sequences(&on).unwrap();
        for ((_, ids), (logits, written)) in on.iter_mut().zip(next.iter().zip(&mut written)) {
            let best = (0..logits.len())
                .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                .unwrap() as u32;
            written.push(best);
            *ids = vec![best];
        }
    }
    for (prompt, written) in prompts.iter().zip(written) {
        assert_eq!(
            written,
            numbers::<u32>(&prompt["greedy_token_ids"]),
            "{}",
            prompt["prompt"]
        );
    }
}
