//! The program as users call it: the files that it writes, its exit codes, and equal bytes for
//! equal input.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, UInt64Type};

use super::accumulation::unwrapped;
use crate::support::{CHAIN, ProgramOutput, Sandbox, chain, columns, outcome, table, text};

test!(run_writes_the_files_and_columns_of_the_contract);
fn run_writes_the_files_and_columns_of_the_contract() {
    let sandbox = chain();
    let ran = sandbox.run(&["chain.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("tiny_boolq.acc") && ran.out.contains("results: results/chain"),
        "{}",
        ran.out
    );
    let variant = sandbox.variant("chain", "base-");
    let column_list =
        |table: &str| columns(&sandbox.path(&format!("{variant}/{table}.parquet"))).join(", ");
    let first_columns = "variant: Utf8, step: UInt32, stage: Utf8, ";
    for (table, next_columns) in [
        (
            "evaluate",
            "task: Utf8, split: Utf8, metric: Utf8, value: Float64, stderr: Float64, n: UInt64, \
             protocol: Utf8, chance: Float64, majority: Float64, truncated: UInt64, oversized: UInt64",
        ),
        (
            "evaluate_documents",
            "task: Utf8, metric: Utf8, doc: UInt64, value: Float64",
        ),
        (
            "evaluate_samples",
            "task: Utf8, doc: UInt64, choice: UInt32, loglikelihood: Float64, tokens: UInt32, \
             chars: UInt32, greedy: Boolean, gold: Boolean",
        ),
        (
            "importance",
            "layer: UInt32, group: Utf8, member: Utf8, channel: UInt32, score: Float64",
        ),
        (
            "aggregate",
            "layer: UInt32, group: Utf8, unit: UInt32, score: Float64",
        ),
        (
            "prune",
            "layer: UInt32, group: Utf8, unit: UInt32, kept: Boolean",
        ),
        (
            "prune_sizes",
            "params_before: UInt64, params_after: UInt64, macs_before: UInt64, \
             macs_after: UInt64, bytes_before: UInt64, bytes_after: UInt64, \
             group_ratio: Float64, param_ratio: Float64, dtype: Utf8",
        ),
        (
            "recover",
            "update: UInt32, loss: Float64, grad_norm: Float64, lr: Float64, tokens: UInt64",
        ),
    ] {
        assert!(
            column_list(table).starts_with(&format!("{first_columns}{next_columns}")),
            "{table}: {}",
            column_list(table)
        );
    }
    let rows = table(&sandbox.path(&format!("{variant}/evaluate.parquet")));
    // Dense: two tasks and a text; pruned: one task; recovered: as dense. One row for each metric.
    assert_eq!(rows.num_rows(), 4 + 1 + 4);
    let manifest = sandbox.json(&format!("{variant}/manifest.json"));
    assert_eq!(
        (manifest["status"].as_str(), manifest["seed"].as_u64()),
        (Some("succeeded"), Some(42))
    );
    assert_eq!(manifest["stages"].as_array().unwrap().len(), 10);
    assert!(
        manifest["inputs"]["models/tiny/model.safetensors"]
            .as_str()
            .unwrap()
            .len()
            == 64
    );
    let log = String::from_utf8(sandbox.read(&format!("{variant}/log.jsonl"))).unwrap();
    assert!(log.lines().count() > 20);
    assert!(log.lines().all(|line| {
        serde_json::from_str::<serde_json::Value>(line)
            .is_ok_and(|event| event["level"].is_string())
    }));

    let variants = table(&sandbox.path("results/chain/variants.parquet"));
    let number = |name: &str| variants[name].as_primitive::<Float64Type>().value(0);
    let delta = number("tiny_boolq.acc") - number("tiny_boolq.acc.dense");
    assert!((number("tiny_boolq.acc.delta") - delta).abs() < 1e-15);
    assert!(number("heldout.perplexity") > 1.0 && number("param_ratio") > 0.05);
    let count = |name: &str| variants[name].as_primitive::<UInt64Type>().value(0);
    assert_eq!(count("bytes_after"), 4 * count("params_after"));
    assert_eq!(text(&variants["dtype"]), ["float32"]);
    assert!(count("params_after") < count("params_before"));

    let report = sandbox.run(&["report", "results"]);
    assert_eq!(report.code, 0);
    assert!(report.out.contains(variant.rsplit('/').next().unwrap()));
    let records: serde_json::Value = serde_json::from_str(
        &sandbox
            .run(&["report", "results/chain", "--format", "json"])
            .out,
    )
    .unwrap();
    assert_eq!(records[0]["variants"][0]["status"], "succeeded");
}

test!(reruns_single_variants_and_one_thread_give_the_same_bytes);
fn reruns_single_variants_and_one_thread_give_the_same_bytes() {
    let sandbox = chain();
    sandbox.write(
        "sweep.toml",
        format!(
            "{CHAIN}\n\
                 [sweep]\n\"aggregate.with\" = [\"sum\", \"max\"]\n\"prune.ratio\" = [0.25, 0.5]\n"
        ),
    );
    assert_eq!(sandbox.run(&["sweep.toml"]).code, 0);
    let variant = sandbox.variant("sweep", "max-ratio0.25");
    let first = outcome(&sandbox, &variant);
    assert!(first.len() >= 10, "{first:?}");
    let id = variant.rsplit('/').next().unwrap();
    let assert_same = |ran: ProgramOutput, folder: &str| {
        assert_eq!(ran.code, 0, "{}", ran.err);
        let again = outcome(&sandbox, folder);
        assert_eq!(again.len(), first.len());
        for ((name, before), (other, after)) in first.iter().zip(&again) {
            assert_eq!(name, other);
            // The variant of a resolved pipeline has the same hash in its id, but another prefix.
            let is_renamed = folder.contains("/base-");
            let is_equal = if is_renamed && name.ends_with(".parquet") {
                let rows = |variant: &str| {
                    let mut rows = table(&sandbox.path(&format!("{variant}/{name}")));
                    rows.remove_column(rows.schema().index_of("variant").unwrap());
                    rows
                };
                rows(folder) == rows(&variant)
            } else {
                (is_renamed && name == "pipeline.toml") || before == after
            };
            assert!(is_equal, "{folder}: {name} differs");
        }
    };
    assert_same(sandbox.run(&["sweep.toml", "--force"]), &variant);
    assert_same(
        sandbox.run(&[
            "sweep.toml",
            "--force",
            "--only",
            id,
            "--set",
            "run.threads=1",
        ]),
        &variant,
    );
    assert_same(
        sandbox.run(&["sweep.toml", "--only", id, "--results", "elsewhere"]),
        &variant.replace("results/", "elsewhere/"),
    );
    let resolved = format!("{variant}/pipeline.toml");
    for options in [&[][..], &["--force"]] {
        let ran = sandbox.run(&[&[&resolved[..]], options].concat());
        let alone = sandbox.variant("pipeline", "base-");
        assert_eq!(
            alone.rsplit('-').next(),
            variant.rsplit('-').next(),
            "the hash of options and seed"
        );
        assert_same(ran, &alone);
    }
}

test!(failed_variant_does_not_stop_the_others);
fn failed_variant_does_not_stop_the_others() {
    let sandbox = chain();
    sandbox.write(
        "fails.toml",
        format!("{CHAIN}\n[sweep]\n\"recover.learning_rate\" = [1e38, 1e-3]\n"),
    );
    let ran = sandbox.run(&["fails.toml"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.err.contains("this stage") && ran.err.contains("training has diverged"),
        "{}",
        ran.err
    );
    assert!(ran.out.contains("failed: learning-rate1e38"), "{}", ran.out);
    let variants = table(&sandbox.path("results/fails/variants.parquet"));
    let text = |name: &str| -> Vec<Option<String>> {
        let column =
            arrow::compute::cast(&variants[name], &arrow::datatypes::DataType::Utf8).unwrap();
        column
            .as_string::<i32>()
            .iter()
            .map(|value| value.map(str::to_owned))
            .collect()
    };
    assert_eq!(
        text("status"),
        [Some("failed".to_owned()), Some("succeeded".to_owned())]
    );
    assert!(
        text("error")[0]
            .as_ref()
            .unwrap()
            .contains("lower `learning_rate`")
            && text("error")[1].is_none()
    );
    assert!(variants["tiny_boolq.acc"].is_null(0) && variants["tiny_boolq.acc"].is_valid(1));
    // The measurements before the failure are kept.
    let failed = sandbox.variant("fails", "learning-rate1e38");
    assert!(sandbox.path(&format!("{failed}/prune.parquet")).exists());
    assert_eq!(
        sandbox.json(&format!("{failed}/manifest.json"))["status"],
        "failed"
    );
}

#[cfg(unix)]
test!(interrupted_run_exits_130_and_keeps_complete_results);
#[cfg(unix)]
fn interrupted_run_exits_130_and_keeps_complete_results() {
    let sandbox = chain();
    sandbox.write(
        "long.toml",
        format!("{CHAIN}\n[sweep]\n\"recover.duration.updates\" = [1, 100000]\n"),
    );
    let mut command = sandbox.command(&["long.toml"]);
    let mut child = command
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let has_succeeded = |folder: &std::path::Path| {
        let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap_or_default();
        manifest.contains("\"status\": \"succeeded\"")
    };
    loop {
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was interrupted"
        );
        let variants = std::fs::read_dir(sandbox.path("results/long"))
            .into_iter()
            .flatten()
            .flatten();
        if variants
            .map(|entry| entry.path())
            .any(|path| has_succeeded(&path))
        {
            break;
        }
    }
    let signalled = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let status =
        |variant: &str| sandbox.json(&format!("{variant}/manifest.json"))["status"].clone();
    let complete = sandbox.variant("long", "updates1-");
    let interrupted = sandbox.variant("long", "updates100000-");
    assert_eq!(
        (status(&complete), status(&interrupted)),
        ("succeeded".into(), "interrupted".into())
    );
    assert!(
        table(&sandbox.path(&format!("{interrupted}/prune.parquet"))).num_rows() > 0,
        "complete tables are kept"
    );
    let variants = table(&sandbox.path("results/long/variants.parquet"));
    assert!(variants["tiny_boolq.acc"].is_valid(0) && variants["tiny_boolq.acc"].is_null(1));
    let has_partial_file = |folder: &str| {
        let entries = std::fs::read_dir(sandbox.path(folder)).unwrap().flatten();
        entries
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(".partial-"))
    };
    assert!(
        !has_partial_file(&complete)
            && !has_partial_file(&interrupted)
            && !has_partial_file("results/long")
    );
}

test!(complete_result_stays_until_its_replacement_is_complete);
fn complete_result_stays_until_its_replacement_is_complete() {
    let sandbox = chain();
    assert_eq!(sandbox.run(&["chain.toml"]).code, 0);
    let variant = sandbox.variant("chain", "base-");
    let before = outcome(&sandbox, &variant);
    let rows = sandbox.read("heldout.jsonl");
    sandbox.write("heldout.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}");
    assert_eq!(sandbox.run(&["chain.toml"]).code, 1);
    assert_eq!(outcome(&sandbox, &variant), before);
    assert_eq!(
        sandbox.json(&format!("{variant}/manifest.json"))["status"],
        "succeeded"
    );
    sandbox.write("heldout.jsonl", rows);
    assert_eq!(sandbox.run(&["chain.toml"]).code, 0);
    assert_eq!(outcome(&sandbox, &variant), before);
}

test!(unselected_variants_keep_their_rows);
fn unselected_variants_keep_their_rows() {
    let sandbox = chain();
    sandbox.write(
        "sweep.toml",
        format!("{CHAIN}\n[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n"),
    );
    for only in ["ratio0.5", "ratio0.25"] {
        assert_eq!(sandbox.run(&["sweep.toml", "--only", only]).code, 0);
    }
    let variants = table(&sandbox.path("results/sweep/variants.parquet"));
    let ratios = variants["prune.ratio"]
        .as_primitive::<Float64Type>()
        .values()
        .to_vec();
    assert_eq!(ratios, [0.25, 0.5], "in the order of the sweep");
    assert_eq!(variants["tiny_boolq.acc"].null_count(), 0);
}

test!(concurrent_runs_of_different_variants_both_succeed);
fn concurrent_runs_of_different_variants_both_succeed() {
    let sandbox = chain();
    sandbox.write(
        "sweep.toml",
        format!("{CHAIN}\n[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n"),
    );
    let exit_codes: Vec<_> = ["ratio0.25", "ratio0.5"]
        .map(|only| {
            sandbox
                .command(&["sweep.toml", "--only", only])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .into_iter()
        .map(|mut child| child.wait().unwrap().code())
        .collect();
    assert_eq!(exit_codes, [Some(0), Some(0)]);
    for only in ["ratio0.25", "ratio0.5"] {
        assert!(outcome(&sandbox, &sandbox.variant("sweep", only)).len() >= 10);
    }
}

test!(next_run_removes_partial_files_of_a_killed_run);
fn next_run_removes_partial_files_of_a_killed_run() {
    let sandbox = chain();
    std::fs::create_dir_all(sandbox.path("results/chain/.partial-dead/hf")).unwrap();
    sandbox.write("results/chain/.partial-table", "half");
    assert_eq!(
        sandbox
            .run(&["chain.toml", "--set", "recover.duration.updates=1"])
            .code,
        0
    );
    assert!(
        !sandbox.path("results/chain/.partial-dead").exists()
            && !sandbox.path("results/chain/.partial-table").exists()
    );
}

test!(invalid_command_line_exits_2);
fn invalid_command_line_exits_2() {
    let sandbox = chain();
    for arguments in [
        &[][..],
        &["nowhere.toml"],
        &["chain.toml", "--what"],
        &["report", "nowhere"],
        &["check"],
    ] {
        let ran = sandbox.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{arguments:?}");
    }
    let ran = sandbox.run(&["chain.toml", "--only", "bass-"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("no variant is called `bass-`") && ran.err.contains("did you mean `base-"),
        "{}",
        ran.err
    );
    let help = sandbox.run(&["--help"]);
    assert_eq!(help.code, 0);
    insta::assert_snapshot!("help", help.out);
}

test!(surplus_words_name_what_was_probably_meant);
fn surplus_words_name_what_was_probably_meant() {
    let sandbox = chain();
    for (arguments, message) in [
        (
            &["validate", "chain.toml"][..],
            "there is neither a command nor a file `validate`",
        ),
        (
            &["chain.toml", "prune.ratio=0.3"],
            "`runner chain.toml --set 'prune.ratio=0.3'`",
        ),
        (
            &["chain.toml", "--results", "x", "check"],
            "the command is written first: `runner check chain.toml`",
        ),
        (&["chain.toml", "--dry-run"], "`runner plan PIPELINE` shows"),
        (&["help", "chek"], "did you mean `check`?"),
        (
            &["chain.toml", "--shard", "1/99999999999"],
            "there are at most 65536 shards",
        ),
        (
            &["cache", "clean", "--limit", "lots"],
            "a size is a number of bytes, or such as \"20 GiB\"",
        ),
    ] {
        let ran = sandbox.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(
            unwrapped(&ran.err).contains(message),
            "{arguments:?}: {}",
            ran.err
        );
    }
    let unknown = sandbox.run(&["chain.toml", "--set", "prune.ratio=0.3", "--what"]);
    assert!(
        unknown.err.contains("unexpected argument '--what'") && !unknown.err.contains("-- --what"),
        "{}",
        unknown.err
    );
}

test!(schema_describes_every_option);
fn schema_describes_every_option() {
    let sandbox = Sandbox::new();
    let schema: serde_json::Value = serde_json::from_str(&sandbox.run(&["schema"]).out).unwrap();
    let stages = schema["properties"]["stage"]["items"]["oneOf"]
        .as_array()
        .unwrap();
    let tags: Vec<&str> = stages
        .iter()
        .map(|stage| stage["properties"]["type"]["const"].as_str().unwrap())
        .collect();
    assert_eq!(
        tags,
        [
            "load",
            "pretrain",
            "dependencies",
            "importance",
            "aggregate",
            "prune",
            "recover",
            "evaluate",
            "generate",
            "profile",
            "export",
            "repeat"
        ]
    );
    for stage in stages {
        for (option, schema) in stage["properties"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "type")
        {
            assert!(
                schema["description"].is_string(),
                "{} {option} is not described",
                stage["properties"]["type"]
            );
        }
    }
}
