//! A GPU against the CPU: the same pipeline within stated tolerances, the same pruned units, and
//! the same bytes in two runs. A build with CUDA uses GPU 0; a build without it runs the GPU's
//! operations on dfdx's CPU device. `ops/tests.rs` compares operation by operation.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use secateur::stages::{dependencies, importance};
use secateur_model::walk::{self, Sequence};
use secateur_tensor::{self, Device};
use serde_json::json;

use crate::support::{
    self, CHAIN, Sandbox, comparison_device, largest, largest_difference, table, text,
};

/// Runs the chain on a device. Returns the folder of its only variant.
fn run(sandbox: &Sandbox, device: &str, results: &str, extra_arguments: &[&str]) -> String {
    let set = format!("run.device={device}");
    let mut arguments = vec!["chain.toml", "--results", results, "--set", &set];
    arguments.extend(extra_arguments);
    let ran = sandbox.run(&arguments);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let is_half = extra_arguments.contains(&"load.precision=float16");
    sandbox.variant_in(results, "chain", if is_half { "float16-" } else { "base-" })
}

fn chain(taylor: &str) -> Sandbox {
    let sandbox = support::chain();
    let pipeline = CHAIN.replace(
        "method = \"taylor\"",
        &format!("method = \"taylor\"\ntaylor = \"{taylor}\""),
    );
    sandbox.write("chain.toml", pipeline);
    sandbox
}

fn numbers(rows: &RecordBatch, column: &str) -> Vec<Option<f64>> {
    rows[column].as_primitive::<Float64Type>().iter().collect()
}

/// The largest difference between a column of two tables, relative to the largest value of the
/// reference.
fn relative_difference(found: &Path, reference: &Path, column: &str) -> f64 {
    let found = numbers(&table(found), column);
    let reference = numbers(&table(reference), column);
    assert_eq!(found.len(), reference.len());
    let scale = largest(reference.iter().flatten().map(|value| value.abs())).max(1e-12);
    largest(found.iter().zip(&reference).map(|pair| match pair {
        (Some(found), Some(reference)) => (found - reference).abs() / scale,
        (None, None) => 0.0,
        _ => panic!("{column}: one of the two tables has no value"),
    }))
}

/// Table, column, and the largest relative difference that is allowed.
const TOLERANCES: [(&str, &str, f64); 5] = [
    ("importance", "score", 1e-4),
    ("aggregate", "score", 1e-4),
    ("evaluate_samples", "loglikelihood", 1e-4),
    ("recover", "loss", 1e-4),
    ("recover", "grad_norm", 1e-3),
];

test!(gpu_pipeline_agrees_with_the_cpu, needs = [ComparisonDevice]);
fn gpu_pipeline_agrees_with_the_cpu() {
    let device = comparison_device().unwrap();
    let device = device.to_string();
    for taylor in ["vector", "element-first", "element-mixed"] {
        let sandbox = chain(taylor);
        let (cpu, gpu) = (
            run(&sandbox, "cpu", "on-cpu", &[]),
            run(&sandbox, &device, "on-gpu", &[]),
        );
        for (name, column, tolerance) in TOLERANCES {
            let path = |folder: &str| sandbox.path(&format!("{folder}/{name}.parquet"));
            let difference = relative_difference(&path(&gpu), &path(&cpu), column);
            note!("{taylor}: {name}.{column} differs by {difference:.1e}");
            assert!(
                difference <= tolerance,
                "{taylor}: {name}.{column} differs by {difference:.1e}, more than {tolerance:.0e}"
            );
        }
        let pruned = |folder: &str| {
            let rows = table(&sandbox.path(&format!("{folder}/prune.parquet")));
            ["layer", "group", "unit", "kept"].map(|column| text(&rows[column]))
        };
        assert!(
            pruned(&gpu) == pruned(&cpu),
            "{taylor}: the pruned units differ"
        );
    }
}

/// All tables of a variant.
fn tables(sandbox: &Sandbox, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(sandbox.path(folder)).unwrap().flatten();
    let names = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".parquet"));
    names
        .map(|name| (name.clone(), sandbox.read(&format!("{folder}/{name}"))))
        .collect()
}

test!(
    gpu_texts_and_activation_scores_agree_with_the_cpu,
    needs = [ComparisonDevice]
);
/// What the chain leaves out: text generation, and scores from activations.
fn gpu_texts_and_activation_scores_agree_with_the_cpu() {
    let device = comparison_device().unwrap();
    let sandbox = support::chain();
    sandbox.write(
        "chain.toml",
        r#"
[[stage]]
type = "load"
model = "models/tiny"

[[stage]]
type = "generate"
prompts = ["Question: which tool", "The"]
max_new_tokens = 12

[[stage]]
type = "dependencies"

[[stage]]
type = "importance"
method = "wifv"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
samples = 7
length = 30

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.2

[[stage]]
type = "profile"
repeat = 1
prefill = 16
decode = 4
"#,
    );
    let (cpu, gpu) = (
        run(&sandbox, "cpu", "on-cpu", &[]),
        run(&sandbox, &device.to_string(), "on-gpu", &[]),
    );
    let path = |folder: &str, name: &str| sandbox.path(&format!("{folder}/{name}.parquet"));
    let scores = relative_difference(
        &path(&gpu, "importance"),
        &path(&cpu, "importance"),
        "score",
    );
    assert!(scores < 1e-4, "{scores:.1e}");
    let texts = |folder: &str| text(&table(&path(folder, "generate"))["output"]);
    assert_eq!(texts(&gpu), texts(&cpu));
}

test!(
    gpu_cache_capacity_changes_no_bit,
    needs = [ComparisonDevice]
);
/// Without room in GPU memory, blocks are uploaded one by one and tapes are recomputed. Neither
/// changes a bit.
fn gpu_cache_capacity_changes_no_bit() {
    let device = comparison_device().unwrap();
    secateur_tensor::select_device(device).unwrap();
    let model = support::tiny();
    let rows = [
        vec![0u32, 5, 9, 300, 44, 7],
        vec![0, 301, 5, 6, 90],
        vec![0, 5, 9, 12],
    ];
    let rows: Vec<Sequence> = rows
        .into_iter()
        .map(|ids| Sequence::new(ids.clone(), &vec![true; ids.len()]))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("rows.jsonl");
    std::fs::write(
        &corpus,
        rows.iter()
            .map(|row| format!("{{\"ids\": {:?}}}\n", row.ids))
            .collect::<String>(),
    )
    .unwrap();
    let graph = dependencies::run(
        &serde_json::from_value(json!({ "grouping": "channel" })).unwrap(),
        &model,
    )
    .unwrap();
    let compute_scores = || {
        let scores = ["vector", "element-first", "element-mixed"].map(|taylor| {
            let options =
                json!({ "method": "taylor", "taylor": taylor, "corpus": corpus, "sample": "file" });
            importance::run(
                &serde_json::from_value(options).unwrap(),
                &support::context(),
                &model,
                &graph,
            )
            .unwrap()
            .0
        });
        (walk::token_scores(&model, &rows).unwrap(), scores)
    };
    let unlimited = compute_scores();
    secateur_tensor::gpu_weight_cache::set_capacity(0);
    assert!(compute_scores() == unlimited, "with a capacity of 0");
    // Room for a part of the weights.
    secateur_tensor::gpu_weight_cache::set_capacity(100_000);
    assert!(
        compute_scores() == unlimited,
        "with room for a part of the weights"
    );
    // The weights of one model are evicted where two models do not fit.
    let model_bytes = model
        .weights_used_by_walk()
        .map(|weight| 4 * weight.len() as u64)
        .sum::<u64>();
    secateur_tensor::gpu_weight_cache::set_capacity(model_bytes + model_bytes / 2);
    walk::token_scores(&model, &rows).unwrap();
    assert!(model.blocks.iter().all(|block| block.is_on_gpu()));
    let other = support::tiny();
    walk::token_scores(&other, &rows).unwrap();
    assert!(
        other.blocks.iter().all(|block| block.is_on_gpu())
            && !model.blocks.iter().any(|block| block.is_on_gpu())
    );
    assert!(secateur_tensor::gpu_weight_cache::resident_bytes() <= model_bytes);
    secateur_tensor::select_device(Device::Cpu).unwrap();
    for (on_gpu, on_cpu) in unlimited.1.iter().zip(compute_scores().1) {
        for (gpu_member, cpu_member) in on_gpu
            .groups
            .iter()
            .flatten()
            .zip(on_cpu.groups.iter().flatten())
        {
            let scale = largest(cpu_member.channels.iter().map(|score| score.abs()));
            let difference = largest_difference(&gpu_member.channels, &cpu_member.channels) / scale;
            assert!(
                gpu_member.member_index == cpu_member.member_index && difference < 1e-4,
                "member {}: {difference:.1e}",
                gpu_member.member_index
            );
        }
    }
}

test!(
    gpu_runs_are_reproducible_bit_by_bit,
    needs = [ComparisonDevice]
);
fn gpu_runs_are_reproducible_bit_by_bit() {
    let device = comparison_device().unwrap();
    let sandbox = chain("element-mixed");
    let device = device.to_string();
    let once = run(&sandbox, &device, "once", &[]);
    let again = run(
        &sandbox,
        &device,
        "again",
        &["--set", "run.threads=1", "--set", "run.stream=true"],
    );
    let (once, again) = (tables(&sandbox, &once), tables(&sandbox, &again));
    assert!(once.len() >= 6);
    assert_eq!(
        once.keys().collect::<Vec<_>>(),
        again.keys().collect::<Vec<_>>()
    );
    let differing: Vec<&String> = once
        .iter()
        .filter(|(name, bytes)| again[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(differing.is_empty(), "tables differ: {differing:?}");
}

/// Spearman's rank correlation: ρ = 1 − 6 Σ d² / (n (n² − 1)), where d is the difference of the two
/// ranks of a value. Without a correction for ties.
fn rank_correlation(a: &[Option<f64>], b: &[Option<f64>]) -> f64 {
    let ranks = |values: &[Option<f64>]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].partial_cmp(&values[j]).unwrap());
        let mut ranks = vec![0.0; values.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank as f64;
        }
        ranks
    };
    let n = a.len() as f64;
    let squared_differences: f64 = ranks(a)
        .iter()
        .zip(&ranks(b))
        .map(|(rank_a, rank_b)| (rank_a - rank_b) * (rank_a - rank_b))
        .sum();
    1.0 - 6.0 * squared_differences / (n * (n * n - 1.0))
}

/// The log likelihoods of the first evaluation, which measures the dense model. The pruned models
/// of the two precisions can differ: where two scores are nearly equal, half precision can order
/// them differently.
fn dense_log_likelihoods(sandbox: &Sandbox, folder: &str) -> Vec<f64> {
    let rows = table(&sandbox.path(&format!("{folder}/evaluate_samples.parquet")));
    let steps = text(&rows["step"]);
    let values = numbers(&rows, "loglikelihood");
    let pairs = steps.iter().zip(values);
    pairs
        .filter(|(step, _)| **step == steps[0])
        .map(|(_, value)| value.unwrap())
        .collect()
}

test!(
    half_precision_ranks_units_like_single_precision,
    needs = [ComparisonDevice]
);
fn half_precision_ranks_units_like_single_precision() {
    let device = comparison_device().unwrap();
    let device = device.to_string();
    for taylor in ["vector", "element-first", "element-mixed"] {
        let sandbox = chain(taylor);
        let single = run(&sandbox, &device, "single", &[]);
        let half = run(
            &sandbox,
            &device,
            "half",
            &["--set", "load.precision=float16"],
        );
        let scores = |folder: &str| {
            numbers(
                &table(&sandbox.path(&format!("{folder}/aggregate.parquet"))),
                "score",
            )
        };
        let (single_scores, half_scores) = (scores(&single), scores(&half));
        let path = |folder: &str, name: &str| sandbox.path(&format!("{folder}/{name}.parquet"));
        let score_difference = relative_difference(
            &path(&half, "aggregate"),
            &path(&single, "aggregate"),
            "score",
        );
        let sample_difference = largest_difference(
            &dense_log_likelihoods(&sandbox, &half),
            &dense_log_likelihoods(&sandbox, &single),
        );
        let rank = rank_correlation(&half_scores, &single_scores);
        note!(
            "{taylor}: scores differ by {score_difference:.1e}, log likelihoods by \
             {sample_difference:.1e}, rank correlation {rank:.5}"
        );
        assert!(
            score_difference > 0.0 && score_difference < 2e-2,
            "{taylor}: {score_difference:.1e}"
        );
        assert!(
            sample_difference > 0.0 && sample_difference < 0.5,
            "{taylor}: {sample_difference:.1e}"
        );
        assert!(rank > 0.999, "{taylor}: {rank}");
    }
}

test!(cpu_rejects_half_precision);
fn cpu_rejects_half_precision() {
    let sandbox = support::chain();
    let ran = sandbox.run(&[
        "check",
        "chain.toml",
        "--set",
        "load.precision=float16",
        "--set",
        "run.device=cpu",
    ]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("the CPU computes in float32 only"),
        "{}",
        ran.err
    );
}

test!(plan_estimates_gpu_memory, needs = [ComparisonDevice]);
/// The estimate follows from the headers: half as much in half precision, less when blocks are
/// streamed.
fn plan_estimates_gpu_memory() {
    let device = comparison_device().unwrap();
    let sandbox = support::chain();
    // The largest estimate of a stage: with all blocks on the GPU, and with one at a time.
    let estimates = |device: &str, precision: &str| {
        let device = format!("run.device={device}");
        let precision = format!("load.precision={precision}");
        let ran = sandbox.run(&[
            "plan",
            "chain.toml",
            "--format",
            "json",
            "--set",
            &device,
            "--set",
            &precision,
        ]);
        let plan: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let nodes = plan["nodes"].as_array().unwrap().clone();
        let largest = |key: &str| {
            nodes
                .iter()
                .map(|node| node[key].as_u64().unwrap())
                .max()
                .unwrap()
        };
        (largest("gpu_bytes"), largest("gpu_bytes_at_least"))
    };
    assert_eq!(estimates("cpu", "float32"), (0, 0));
    let (single, half) = (
        estimates(&device.to_string(), "float32"),
        estimates(&device.to_string(), "float16"),
    );
    let model = support::tiny();
    let matrix_elements: usize = model
        .blocks
        .iter()
        .flat_map(|block| block.matrices().map(|(_, weight)| weight.len()))
        .sum();
    // The estimate counts vectors like matrices, hence the tolerance.
    let saved = (single.0 - half.0) as f64 / (2 * matrix_elements) as f64;
    assert!((0.95..1.05).contains(&saved), "{single:?} {half:?}");
    assert!(single.1 < single.0 && half.1 < half.0);
}

test!(missing_device_is_named);
fn missing_device_is_named() {
    let sandbox = support::chain();
    for (device, message) in [
        (
            "cuda:7",
            if cfg!(feature = "cuda") {
                "there is no device `cuda:7`"
            } else {
                "this program was built without CUDA"
            },
        ),
        ("gpu", "`cpu-as-gpu`"),
    ] {
        let ran = sandbox.run(&[
            "check",
            "chain.toml",
            "--set",
            &format!("run.device={device}"),
        ]);
        assert_eq!(ran.code, 2, "{device}");
        assert!(ran.err.contains(message), "{device}: {}", ran.err);
    }
}
