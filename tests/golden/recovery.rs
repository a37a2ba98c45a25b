//! LoRA training against PEFT step by step, and the errors of the `recover` stage.

use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, UInt64Type};
use safetensors::SafeTensors;
use secateur::stages::recover;
use secateur::stages::{Context, StageError};
use secateur_model::Model;
use secateur_model::lora::Adapter;
use secateur_store::tables::Table;
use serde_json::{Value, json};

use crate::support::harness::Need::{self, Shared};
use crate::support::{
    self, copy_folder, largest, largest_difference, numbers, shared, stream_perplexity,
};

const MATERIAL: [Need; 4] = [
    Shared("models/stories260K"),
    Shared("golden/lora_recovery.json"),
    Shared("golden/lora"),
    Shared("golden/prune_stories260K.json"),
];

/// The pruned model that PEFT trained, and the batches it saw as one corpus.
struct Golden {
    folder: tempfile::TempDir,
    json: Value,
    model: Model,
}

fn golden() -> Golden {
    let (dense, golden, lora) = (
        shared("models/stories260K"),
        shared("golden/lora_recovery.json"),
        shared("golden/lora"),
    );
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&dense, &folder.path().join("base"));
    std::fs::copy(
        lora.join("base_pruned.safetensors"),
        folder.path().join("base/model.safetensors"),
    )
    .unwrap();
    let json = support::json(&golden);
    // The tokens of the prompt have no label.
    let row = |ids: &Value, prompt_length: usize| {
        let ids: Vec<i64> = numbers(ids);
        let labels: Vec<i64> = ids
            .iter()
            .enumerate()
            .map(|(position, &id)| if position < prompt_length { -100 } else { id })
            .collect();
        format!("{{\"ids\": {ids:?}, \"labels\": {labels:?}}}\n")
    };
    let batches = json["batches"].as_array().unwrap().iter();
    let rows = batches.flat_map(|batch| {
        let prompt_lengths: Vec<usize> = numbers(&batch["prompt_len"]);
        batch["ids"]
            .as_array()
            .unwrap()
            .iter()
            .zip(prompt_lengths)
            .map(|(ids, prompt_length)| row(ids, prompt_length))
            .collect::<Vec<_>>()
    });
    std::fs::write(folder.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
    let model = Model::load(&folder.path().join("base")).unwrap();
    Golden {
        folder,
        json,
        model,
    }
}

impl Golden {
    fn options(&self, rate: &Value) -> Value {
        json!({
            "corpus": self.folder.path().join("rows.jsonl"),
            "sample": "file",
            "rank": 8,
            "alpha": 16.0,
            "dropout": 0.0,
            "learning_rate": rate,
            "warmup": 10,
            "batch": self.json["batches"][0]["ids"].as_array().unwrap().len(),
            "duration": { "updates": 60 },
            "init": shared("golden/lora/adapter_init.safetensors"),
        })
    }

    fn run(
        &self,
        options: Value,
        folder: &Path,
    ) -> Result<(Model, Adapter, Vec<Table>), StageError> {
        let options: recover::Options = serde_json::from_value(options).unwrap();
        recover::run(
            &options,
            &Context {
                output_folder: folder.to_owned(),
                ..support::context()
            },
            &self.model,
        )
    }
}

fn column(table: &Table, name: &str) -> Vec<f64> {
    table.rows[name]
        .as_primitive::<Float64Type>()
        .values()
        .to_vec()
}

/// The largest difference between two adapter files.
fn difference(a: &Path, b: &Path) -> f64 {
    let (a_bytes, b_bytes) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    let a_tensors = SafeTensors::deserialize(&a_bytes).unwrap();
    let b_tensors = SafeTensors::deserialize(&b_bytes).unwrap();
    assert_eq!(a_tensors.len(), b_tensors.len());
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    };
    let worst = |name: &str| {
        let a_tensor = a_tensors.tensor(name).unwrap();
        let b_tensor = b_tensors.tensor(name).unwrap();
        assert_eq!(a_tensor.shape(), b_tensor.shape(), "{name}");
        largest_difference(&values(a_tensor.data()), &values(b_tensor.data()))
    };
    largest(a_tensors.names().into_iter().map(worst))
}

test!(training_equals_peft, needs = MATERIAL);
fn training_equals_peft() {
    let golden = golden();
    for run in golden.json["runs"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let (merged, _, tables) = golden
            .run(golden.options(&run["peak_lr"]), folder.path())
            .unwrap();
        let (losses, norms, rates) = (
            column(&tables[0], "loss"),
            column(&tables[0], "grad_norm"),
            column(&tables[0], "lr"),
        );
        let tokens = tables[0].rows["tokens"].as_primitive::<UInt64Type>();
        let steps = run["steps"].as_array().unwrap();
        assert_eq!((losses.len(), steps.len()), (60, 60));
        let (mut loss_errors, mut norm_errors) = (Vec::new(), Vec::new());
        for (update, step) in steps.iter().enumerate() {
            let expected = |key: &str| step[key].as_f64().unwrap();
            assert!(
                (rates[update] - expected("lr")).abs() < 1e-12,
                "update {}: lr {}",
                update + 1,
                rates[update]
            );
            assert_eq!(
                tokens.value(update),
                step["target_tokens"].as_u64().unwrap()
            );
            loss_errors.push((losses[update] / expected("loss") - 1.0).abs());
            norm_errors.push((norms[update] / expected("grad_norm") - 1.0).abs());
        }
        let (worst_loss, worst_norm) = (largest(loss_errors), largest(norm_errors));
        let final_adapter = shared(&format!(
            "golden/{}",
            run["snapshots"]["60"].as_str().unwrap()
        ));
        let adapter = difference(
            &folder.path().join("adapter/adapter_model.safetensors"),
            &final_adapter,
        );
        let ids: Vec<u32> =
            numbers(&support::json(&shared("golden/prune_stories260K.json"))["ppl_stream"]);
        let perplexity =
            (stream_perplexity(&merged, &ids) / run["ppl_merged"].as_f64().unwrap() - 1.0).abs();
        note!(
            "peak rate {}: loss {worst_loss:.1e}, gradient norm {worst_norm:.1e}, \
             adapter {adapter:.1e}, perplexity {perplexity:.1e}",
            run["peak_lr"]
        );
        assert!(worst_loss < 2e-6 && worst_norm < 5e-6 && adapter < 2e-6 && perplexity < 1e-5);
    }
}

test!(gradient_accumulation_changes_no_loss, needs = MATERIAL);
fn gradient_accumulation_changes_no_loss() {
    let golden = golden();
    let losses = |micro_batch: usize| {
        let folder = tempfile::tempdir().unwrap();
        let mut options = golden.options(&json!(1e-3));
        options["micro_batch"] = json!(micro_batch);
        options["duration"] = json!({ "updates": 12 });
        column(&golden.run(options, folder.path()).unwrap().2[0], "loss")
    };
    let (whole, parts) = (losses(4), losses(1));
    assert_eq!((whole.len(), parts.len()), (12, 12));
    assert!(
        whole
            .iter()
            .zip(&parts)
            .all(|(a, b)| (a / b - 1.0).abs() < 1e-6),
        "{whole:?} {parts:?}"
    );
}

test!(
    nan_loss_stops_the_stage_with_a_named_error,
    needs = MATERIAL
);
fn nan_loss_stops_the_stage_with_a_named_error() {
    let mut golden = golden();
    let folder = tempfile::tempdir().unwrap();
    let error = golden.run(
        {
            let mut options = golden.options(&json!(1e30));
            options["warmup"] = json!(0);
            options
        },
        folder.path(),
    );
    let error = error.err().expect("diverged").to_string();
    assert!(
        error.starts_with("the loss of update ") && error.contains("lower `learning_rate`"),
        "{error}"
    );
    golden.model.final_norm.update(|w| w[0] = f32::NAN);
    let error = golden
        .run(golden.options(&json!(1e-4)), folder.path())
        .err()
        .expect("broken")
        .to_string();
    assert!(error.starts_with("the loss of update 1 is NaN"), "{error}");
    assert!(!folder.path().join("adapter").exists());
}

test!(adapter_that_does_not_fit_is_rejected, needs = MATERIAL);
fn adapter_that_does_not_fit_is_rejected() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    // The error of a run with this option.
    let error_with = |key: &str, value: Value| {
        let mut options = golden.options(&json!(1e-4));
        options[key] = value;
        golden
            .run(options, folder.path())
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(
        error_with("rank", json!(4))
            .contains("has shape [8, 64] of F32, the model and the rank ask for [4, 64] of F32")
    );
    assert!(error_with("targets", json!(["q"])).contains("which no target of this stage uses"));
    let config = shared("models/stories260K/config.json");
    assert!(error_with("init", json!(config)).contains("is not a whole safetensors file"));
}
