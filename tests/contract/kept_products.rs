//! Kept products: no stage runs twice, damaged products are rebuilt, and the plan says which stages
//! must run and why.

use super::shards::SHORT;
use crate::support::{CHAIN, Sandbox, chain, outcome};

/// The number of stages that the last run of a pipeline executed, and of those that it took from
/// the cache.
fn stage_counts(sandbox: &Sandbox, pipeline: &str) -> (u64, u64) {
    let stages = sandbox.json(&format!("results/{pipeline}/status.json"))["stages"].clone();
    (
        stages["run"].as_u64().unwrap(),
        stages["kept"].as_u64().unwrap(),
    )
}

/// The stages of a plan that must run, with their reasons.
pub(crate) fn must_run(sandbox: &Sandbox, arguments: &[&str]) -> Vec<String> {
    let ran = sandbox.run(&[&["plan"], arguments, &["--format", "json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let plan: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let nodes = plan["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["state"] != "kept");
    nodes
        .map(|node| {
            format!(
                "{} {}: {}",
                node["step"],
                node["stage"].as_str().unwrap(),
                node["reason"].as_str().unwrap()
            )
        })
        .collect()
}

/// Flips one byte in each file of the cache. Returns the number of files.
fn flip_a_byte_in_every_file(sandbox: &Sandbox) -> usize {
    fn damage(folder: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(folder)
            .unwrap()
            .flatten()
            .map(|entry| entry.path());
        let damaged = |path: std::path::PathBuf| {
            if path.is_dir() {
                return damage(&path);
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let Some(middle) = bytes.len().checked_div(2).filter(|_| !bytes.is_empty()) else {
                return 0;
            };
            bytes[middle] ^= 1;
            // Writes a new file: a result may be a hard link to the old one and must stay as it is.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            1
        };
        entries.map(damaged).sum()
    }
    damage(&sandbox.path("results/.cache"))
}

pub(crate) fn run_ok(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let ran = sandbox.run(arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
    ran.err + &ran.out
}

test!(no_stage_runs_twice);
fn no_stage_runs_twice() {
    let sandbox = chain();
    run_ok(&sandbox, &["chain.toml"]);
    let variant = sandbox.variant("chain", "base-");
    let (first, table) = (
        outcome(&sandbox, &variant),
        sandbox.read("results/chain/variants.parquet"),
    );
    assert_eq!(stage_counts(&sandbox, "chain"), (10, 0));
    assert_eq!(must_run(&sandbox, &["chain.toml"]), [""; 0]);
    // Everything is complete: no stage is executed or restored.
    run_ok(&sandbox, &["chain.toml"]);
    assert_eq!(stage_counts(&sandbox, "chain"), (0, 0));
    // The results are gone: they are assembled from kept products.
    std::fs::remove_dir_all(sandbox.path("results/chain")).unwrap();
    run_ok(&sandbox, &["chain.toml"]);
    assert_eq!(stage_counts(&sandbox, "chain"), (0, 10));
    assert!(
        outcome(&sandbox, &variant) == first
            && sandbox.read("results/chain/variants.parquet") == table
    );
    let manifest = sandbox.json(&format!("{variant}/manifest.json"));
    assert!(
        manifest["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["kept"] == true)
    );
    // The cache is gone: a complete result does not need it.
    std::fs::remove_dir_all(sandbox.path("results/.cache")).unwrap();
    run_ok(&sandbox, &["chain.toml"]);
    assert_eq!(stage_counts(&sandbox, "chain"), (0, 0));
    // Another cache folder, and a pipeline with another name but the same variant.
    run_ok(
        &sandbox,
        &["chain.toml", "--force", "--set", "run.cache=elsewhere"],
    );
    sandbox.write("renamed.toml", CHAIN);
    run_ok(&sandbox, &["renamed.toml", "--set", "run.cache=elsewhere"]);
    assert_eq!(stage_counts(&sandbox, "renamed"), (0, 10));
    let renamed = outcome(&sandbox, &sandbox.variant("renamed", "base-"));
    assert_eq!(renamed.len(), first.len());
    // The first lines of `pipeline.toml` name the pipeline, so only this file differs.
    assert!(
        renamed
            .iter()
            .zip(&first)
            .all(|(renamed, first)| renamed == first || renamed.0 == "pipeline.toml")
    );
}

test!(new_sweep_value_runs_only_new_stages);
fn new_sweep_value_runs_only_new_stages() {
    let sandbox = chain();
    let sweep = |values: &str| format!("{CHAIN}\n[sweep]\n\"prune.ratio\" = [{values}]\n");
    sandbox.write("sweep.toml", sweep("0.25"));
    run_ok(&sandbox, &["sweep.toml"]);
    sandbox.write("sweep.toml", sweep("0.25, 0.5"));
    let new_stages = [
        "5 prune: new",
        "6 evaluate: new",
        "7 recover: new",
        "8 evaluate: new",
        "9 export: new",
    ];
    assert_eq!(must_run(&sandbox, &["sweep.toml"]), new_stages);
    run_ok(&sandbox, &["sweep.toml"]);
    assert_eq!(stage_counts(&sandbox, "sweep"), (5, 5));
    // Every type of stage was measured.
    let plan = run_ok(
        &sandbox,
        &["plan", "sweep.toml", "--set", "prune.ratio=0.3"],
    );
    assert!(
        plan.contains("5 of 10 stages must run, about 00:"),
        "{plan}"
    );
    assert!(
        plan.contains("prune ratio=0.3 scope=local  must run: new, about 00:01, "),
        "{plan}"
    );
    // An option of the dense evaluation affects no other stage.
    assert_eq!(
        must_run(&sandbox, &["sweep.toml", "--set", "evaluate[1].limit=7"]),
        ["1 evaluate: new"]
    );
    let seed = must_run(&sandbox, &["sweep.toml", "--set", "run.seed=7"]);
    assert!(
        seed.iter().any(|node| node == "3 importance: new"),
        "{seed:?}"
    );
    assert!(
        !seed.iter().any(|node| node.starts_with("1 evaluate")),
        "the evaluation uses no random numbers: {seed:?}"
    );
}

test!(plan_shows_the_expected_time);
fn plan_shows_the_expected_time() {
    let sandbox = Sandbox::new();
    sandbox.write("short.toml", SHORT);
    let plan = |pipeline: &str| -> (String, serde_json::Value) {
        let json = run_ok(&sandbox, &["plan", pipeline, "--format", "json"]);
        let text = run_ok(&sandbox, &["plan", pipeline]);
        (text, serde_json::from_str(&json).unwrap())
    };
    // Nothing was measured yet.
    let (text, json) = plan("short.toml");
    assert!(text.contains("5 of 5 stages must run; "), "{text}");
    assert!(json["nodes"][0]["expected_seconds"].is_null());
    assert_eq!(json["stages_without_expected_seconds"], 5);
    run_ok(&sandbox, &["short.toml"]);
    let (text, json) = plan("short.toml");
    assert!(text.contains("0 of 5 stages must run; "), "{text}");
    assert_eq!(json["expected_seconds"], 0.0);
    // Another pipeline: its scores are other ones, and no run has evaluated.
    let evaluate = "\n[[stage]]\ntype = \"evaluate\"\ntasks = [\"tiny_boolq\"]\nlimit = 2\n";
    let longer = SHORT.replace("\"l2\"", "\"l1\"") + evaluate;
    sandbox.write("longer.toml", longer);
    // Measurements of results are enough, and so are those of stored products.
    std::fs::rename(sandbox.path("results/.cache"), sandbox.path("aside")).unwrap();
    let (text, json) = plan("longer.toml");
    assert!(
        text.contains("6 of 6 stages must run, at least 00:01; "),
        "{text}"
    );
    assert!(
        text.contains("importance method=l1  must run: new, about 00:01"),
        "{text}"
    );
    let nodes = json["nodes"].as_array().unwrap();
    let measured = nodes[..5]
        .iter()
        .map(|node| node["expected_seconds"].as_f64());
    let total: f64 = measured.map(Option::unwrap).sum();
    assert!((json["expected_seconds"].as_f64().unwrap() - total).abs() < 1e-9 && total > 0.0);
    assert!(nodes[5]["expected_seconds"].is_null());
    assert_eq!(json["stages_without_expected_seconds"], 1);
    std::fs::rename(sandbox.path("aside"), sandbox.path("results/.cache")).unwrap();
    std::fs::remove_dir_all(sandbox.path("results/short")).unwrap();
    let (text, _) = plan("longer.toml");
    assert!(
        text.contains("4 of 6 stages must run, at least 00:01; "),
        "{text}"
    );
}

test!(plan_says_why_a_stage_must_run);
fn plan_says_why_a_stage_must_run() {
    let sandbox = chain();
    assert_eq!(
        must_run(&sandbox, &["chain.toml"])[..2],
        ["0 load: new", "1 evaluate: new"]
    );
    run_ok(&sandbox, &["chain.toml"]);
    let heldout = sandbox.read("heldout.jsonl");
    sandbox.write(
        "heldout.jsonl",
        [&heldout[..], b"\n{\"text\": \"one more\"}\n"].concat(),
    );
    let changed = "evaluate: `heldout.jsonl` has changed";
    assert_eq!(
        must_run(&sandbox, &["chain.toml"]),
        [format!("1 {changed}"), format!("8 {changed}")]
    );
    sandbox.write("heldout.jsonl", heldout);
    assert_eq!(
        must_run(&sandbox, &["chain.toml", "--from", "recover"]),
        [
            "7 recover: --from recover",
            "8 evaluate: --from recover",
            "9 export: --from recover"
        ]
    );
    assert_eq!(must_run(&sandbox, &["chain.toml", "--force"]).len(), 10);
    // A changed model makes every stage run again.
    let config = String::from_utf8(sandbox.read("models/tiny/config.json")).unwrap();
    sandbox.write("models/tiny/config.json", format!("{config}\n"));
    let all = must_run(&sandbox, &["chain.toml"]);
    assert_eq!(
        all[..2],
        [
            "0 load: `models/tiny/config.json` has changed",
            "1 evaluate: `load` makes another model"
        ]
    );
    assert_eq!(all.len(), 10);
    sandbox.write("models/tiny/config.json", config);
    std::fs::remove_dir_all(sandbox.path("results/.cache")).unwrap();
    std::fs::remove_file(sandbox.path(&format!(
        "{}/prune.parquet",
        sandbox.variant("chain", "base-")
    )))
    .unwrap();
    assert!(
        must_run(&sandbox, &["chain.toml"])
            .iter()
            .all(|node| node.ends_with("its product is no longer stored"))
    );
    let wrong = sandbox.run(&["plan", "chain.toml", "--from", "improtance"]);
    assert_eq!(wrong.code, 2);
    assert!(
        wrong.err.contains("did you mean `importance`?"),
        "{}",
        wrong.err
    );
}

test!(damaged_products_are_rebuilt);
fn damaged_products_are_rebuilt() {
    let sandbox = chain();
    run_ok(&sandbox, &["chain.toml"]);
    let variant = sandbox.variant("chain", "base-");
    let first = outcome(&sandbox, &variant);
    assert!(flip_a_byte_in_every_file(&sandbox) > 30);
    // A complete result does not read the damaged products.
    assert!(!run_ok(&sandbox, &["chain.toml"]).contains("damaged"));
    std::fs::remove_dir_all(sandbox.path("results/chain")).unwrap();
    let output = run_ok(&sandbox, &["chain.toml"]);
    assert!(
        output
            .matches("a kept product is damaged: it is made again")
            .count()
            >= 8,
        "{output}"
    );
    assert!(outcome(&sandbox, &variant) == first);
    // Damaged values that no table shows: everything before the last stage comes from the cache.
    run_ok(&sandbox, &["cache", "verify"]);
    for entry in std::fs::read_dir(sandbox.path("results/.cache"))
        .unwrap()
        .flatten()
    {
        let product = entry.path().join("product");
        if product.exists() {
            std::fs::write(product, "no product").unwrap();
        }
    }
    let output = run_ok(&sandbox, &["chain.toml", "--from", "export"]);
    assert!(output.contains("damaged"), "{output}");
    assert!(outcome(&sandbox, &variant) == first);
    // A product whose entry cannot be read.
    let entry = std::fs::read_dir(sandbox.path("results/.cache"))
        .unwrap()
        .flatten();
    let entry = entry
        .map(|entry| entry.path().join("entry.json"))
        .find(|path| path.exists())
        .unwrap();
    std::fs::write(entry, "").unwrap();
    assert!(run_ok(&sandbox, &["cache"]).contains("(damaged)"));
    assert!(run_ok(&sandbox, &["cache", "verify"]).contains("1 damaged product was removed"));
    // A damaged result whose folder also has a file of the user.
    sandbox.write(&format!("{variant}/hf/model.gguf"), "mine");
    sandbox.write(&format!("{variant}/evaluate.parquet"), "no table");
    let output = run_ok(&sandbox, &["chain.toml"]);
    assert!(
        output.contains("a result is damaged: it is assembled again")
            && output.contains("evaluate.parquet"),
        "{output}"
    );
    assert!(outcome(&sandbox, &variant) == first);
    assert_eq!(sandbox.read(&format!("{variant}/hf/model.gguf")), b"mine");
    // A folder that no run wrote is not overwritten.
    std::fs::remove_dir_all(sandbox.path(&variant)).unwrap();
    std::fs::create_dir(sandbox.path(&variant)).unwrap();
    sandbox.write(&format!("{variant}/notes.md"), "mine");
    let refused = sandbox.run(&["chain.toml"]);
    assert!(
        refused.code == 1 && refused.err.contains("no run of this program wrote"),
        "{}",
        refused.err
    );
    assert_eq!(sandbox.read(&format!("{variant}/notes.md")), b"mine");
}

test!(cache_stays_below_its_limit);
fn cache_stays_below_its_limit() {
    let sandbox = chain();
    run_ok(&sandbox, &["chain.toml"]);
    let first = outcome(&sandbox, &sandbox.variant("chain", "base-"));
    let listed = run_ok(&sandbox, &["cache"]);
    assert!(
        listed.contains("10 products") && listed.contains("importance method=taylor"),
        "{listed}"
    );
    // The least recently used products are removed first, and rebuilt when they are needed.
    let json: serde_json::Value =
        serde_json::from_str(&run_ok(&sandbox, &["cache", "--format", "json"])).unwrap();
    let sizes: Vec<u64> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|listed| listed["bytes"].as_u64().unwrap())
        .collect();
    let (oldest, all) = (sizes[..2].iter().sum::<u64>(), sizes.iter().sum::<u64>());
    let limit = (all - oldest).to_string();
    run_ok(&sandbox, &["cache", "clean", "--limit", &limit]);
    let remaining: serde_json::Value =
        serde_json::from_str(&run_ok(&sandbox, &["cache", "--format", "json"])).unwrap();
    // The order is compared by key: the time since the last use grows between the two listings.
    let keys = |listing: &serde_json::Value| -> Vec<String> {
        let products = listing.as_array().unwrap().iter();
        products
            .map(|product| product["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(keys(&remaining)[..], keys(&json)[2..], "in their order");
    // A run with a cache limit of 0.
    run_ok(
        &sandbox,
        &["chain.toml", "--force", "--set", "run.cache_limit=0"],
    );
    assert!(run_ok(&sandbox, &["cache"]).contains("0 products"));
    assert!(outcome(&sandbox, &sandbox.variant("chain", "base-")) == first);
    run_ok(
        &sandbox,
        &["chain.toml", "--force", "--set", "run.cache_limit=\"1 GB\""],
    );
    assert!(run_ok(&sandbox, &["cache", "clean"]).contains("10 products were removed"));
    // A folder that is not a cache is not changed.
    std::fs::create_dir_all(sandbox.path("mine/.locks")).unwrap();
    sandbox.write("mine/train.state", "mine");
    let refused = sandbox.run(&["cache", "clean", "--cache", "mine"]);
    assert!(
        refused.code == 2 && refused.err.contains("`mine` is no folder of kept products"),
        "{}",
        refused.err
    );
    assert!(sandbox.path("mine/.locks").exists() && !sandbox.path("mine/.lock").exists());
    let wrong = sandbox.run(&["chain.toml", "--set", "run.cache_limit=\"much\""]);
    assert!(
        wrong.code == 2 && wrong.err.contains("cache_limit"),
        "{}",
        wrong.err
    );
    assert_eq!(sandbox.run(&["cache", "--cache", "nowhere"]).code, 2);
}

test!(only_failed_stages_are_retried);
fn only_failed_stages_are_retried() {
    let sandbox = chain();
    let sweep = format!("{CHAIN}\n[sweep]\n\"recover.learning_rate\" = [1e38, 1e-3, 2e-3]\n");
    sandbox.write("fails.toml", &sweep);
    let stopped = sandbox.run(&["fails.toml", "--fail-fast"]);
    assert_eq!(stopped.code, 1);
    assert!(
        stopped.out.contains("not run: learning-rate1e38"),
        "{}",
        stopped.out
    );
    assert_eq!(
        stage_counts(&sandbox, "fails"),
        (7, 0),
        "all up to the one that failed"
    );
    let first = sandbox.run(&["fails.toml"]);
    assert_eq!(first.code, 1);
    // Everything before the failed stage is kept; the failed `recover` is not counted.
    assert_eq!(stage_counts(&sandbox, "fails"), (6, 7));
    let status = sandbox.json("results/fails/status.json");
    assert_eq!(
        (
            status["state"].as_str(),
            status["variants"]["failed"].as_u64()
        ),
        (Some("failed"), Some(1))
    );
    assert!(
        status["variants"]["succeeded"].as_u64() == Some(2)
            && status["seconds_left"].as_f64() == Some(0.0),
        "{status}"
    );
    let again = must_run(&sandbox, &["fails.toml"]);
    assert_eq!(
        again,
        [
            "7 recover: it failed",
            "8 evaluate: not reached yet",
            "9 export: not reached yet"
        ]
    );
    let second = sandbox.run(&["fails.toml"]);
    assert_eq!(second.code, 1);
    assert!(
        second.err.contains("2 of 3 variants are complete"),
        "{}",
        second.err
    );
    assert_eq!(stage_counts(&sandbox, "fails"), (0, 7));
}

test!(failed_attempt_leaves_its_reason_beside_the_complete_result);
fn failed_attempt_leaves_its_reason_beside_the_complete_result() {
    let sandbox = chain();
    run_ok(&sandbox, &["chain.toml"]);
    let variant = sandbox.variant("chain", "base-");
    let before = outcome(&sandbox, &variant);
    let rows = sandbox.read("heldout.jsonl");
    sandbox.write("heldout.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}");
    let failed = sandbox.run(&["chain.toml"]);
    assert_eq!(failed.code, 1);
    assert!(outcome(&sandbox, &variant) == before);
    let attempt = sandbox.json(&format!("{variant}/attempt/manifest.json"));
    assert_eq!(attempt["status"], "failed");
    assert!(attempt["error"].as_str().unwrap().contains("heldout.jsonl"));
    let table = crate::support::table(&sandbox.path("results/chain/variants.parquet"));
    assert_eq!(crate::support::text(&table["status"]), ["failed"]);
    assert!(
        table
            .schema()
            .fields()
            .iter()
            .all(|field| !field.name().contains("acc")),
        "no value of an earlier run"
    );
    sandbox.write("heldout.jsonl", rows);
    run_ok(&sandbox, &["chain.toml"]);
    assert!(!sandbox.path(&format!("{variant}/attempt")).exists());
}

test!(trained_model_is_restored_unchanged);
fn trained_model_is_restored_unchanged() {
    let sandbox = Sandbox::new();
    let pipeline = r#"
[[stage]]
type = "pretrain"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
vocabulary = 300
hidden = 20
blocks = 1
heads = 3
head_dim = 4
mlp = 16
length = 16
updates = 2

[[stage]]
type = "dependencies"

[[stage]]
type = "importance"
method = "l2"

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.4

[[stage]]
type = "export"
"#;
    sandbox.write("train.toml", pipeline);
    run_ok(&sandbox, &["train.toml"]);
    let variant = sandbox.variant("train", "base-");
    let files = [
        "hf/model.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
        "hf/tokenizer_config.json",
    ];
    let read = || files.map(|file| sandbox.read(&format!("{variant}/{file}")));
    let first = read();
    run_ok(&sandbox, &["train.toml", "--from", "export"]);
    assert_eq!(stage_counts(&sandbox, "train"), (1, 5));
    assert!(read() == first);
}
