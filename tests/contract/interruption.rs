//! Interrupted runs: killed at random moments, stopped by a signal, several at once. The next run
//! ends with the same bytes as a run that was not interrupted.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{CHAIN, Sandbox, chain, outcome, run_status, signal, spawn, walk};

/// The stage that `status.json` names as the one that a process is running.
fn running_stage(sandbox: &Sandbox, pipeline: &str, process: u32) -> Option<String> {
    let run = run_status(sandbox, pipeline, process)?;
    run["now"]["stage"].as_str().map(str::to_owned)
}

/// Waits until a stage of this type runs, then for `delay`. False if the run ended before.
fn wait_for_stage(
    sandbox: &Sandbox,
    pipeline: &str,
    child: &mut Child,
    stage: &str,
    delay: Duration,
) -> bool {
    loop {
        if running_stage(sandbox, pipeline, child.id()).as_deref() == Some(stage) {
            std::thread::sleep(delay);
            return child.try_wait().unwrap().is_none();
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The seconds that each stage type took, from the manifest of a run.
fn seconds(sandbox: &Sandbox, variant: &str) -> BTreeMap<String, f64> {
    let manifest = sandbox.json(&format!("{variant}/manifest.json"));
    let records = manifest["stages"].as_array().unwrap().iter();
    records
        .map(|record| {
            (
                record["stage"].as_str().unwrap().to_owned(),
                record["wall_seconds"].as_f64().unwrap(),
            )
        })
        .collect()
}

/// Asserts that no temporary file or folder is left.
fn assert_tidy(sandbox: &Sandbox) {
    let leftover = walk(&sandbox.path("results"))
        .into_iter()
        .find(|path| path.contains(".partial-"));
    assert_eq!(
        leftover, None,
        "temporary files of a killed run remain after the next run"
    );
}

test!(killed_runs_resume_to_the_same_bytes);
fn killed_runs_resume_to_the_same_bytes() {
    const STAGES: [&str; 8] = [
        "load",
        "evaluate",
        "dependencies",
        "importance",
        "aggregate",
        "prune",
        "recover",
        "export",
    ];
    let undisturbed = chain();
    assert_eq!(undisturbed.run(&["chain.toml"]).code, 0);
    let variant = undisturbed.variant("chain", "base-");
    let expected = outcome(&undisturbed, &variant);
    let table = undisturbed.read("results/chain/variants.parquet");
    let seconds = seconds(&undisturbed, &variant);

    let sandbox = chain();
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut kills: BTreeMap<&str, u32> = BTreeMap::new();
    let resume_and_compare = |sandbox: &Sandbox| {
        let ran = sandbox.run(&["chain.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(!ran.err.contains("damaged"), "{}", ran.err);
        let found = outcome(sandbox, &variant);
        assert_eq!(found.len(), expected.len());
        for ((name, before), (other, after)) in expected.iter().zip(found) {
            assert!(*name == other && *before == after, "{name} differs");
        }
        assert!(
            sandbox.read("results/chain/variants.parquet") == table,
            "variants.parquet differs"
        );
        assert_tidy(sandbox);
    };
    // Kills in every stage: the products of the stages before it are kept, and `--from` makes it
    // run.
    for round in 0..6 {
        for stage in STAGES {
            for attempt in 0.. {
                assert!(attempt < 20, "`{stage}` was not reached in 20 attempts");
                let arguments: &[&str] = if round == 0 {
                    &["chain.toml"]
                } else {
                    &["chain.toml", "--from", stage]
                };
                let mut child = spawn(&sandbox, arguments);
                // Up to 1.2 times the run time of the stage, so that some kills happen while its
                // results are written.
                let delay = Duration::from_secs_f64(seconds[stage] * random.random_range(0.0..1.2));
                let is_reached = wait_for_stage(&sandbox, "chain", &mut child, stage, delay);
                child.kill().unwrap();
                let is_killed = child.wait().unwrap().code().is_none();
                if is_reached && is_killed {
                    *kills.entry(stage).or_default() += 1;
                    break;
                }
                // The first round starts with nothing kept: a stage that has completed does not run
                // again.
                if round == 0 {
                    break;
                }
            }
            if round % 2 == 1 {
                resume_and_compare(&sandbox);
            }
        }
    }
    resume_and_compare(&sandbox);
    // Kills at any time of a run that starts with nothing kept.
    let run_time = Duration::from_secs_f64(seconds.values().sum::<f64>() + 0.2);
    for _ in 0..12 {
        std::fs::remove_dir_all(sandbox.path("results")).unwrap();
        for _ in 0..3 {
            let mut child = spawn(&sandbox, &["chain.toml"]);
            std::thread::sleep(run_time.mul_f64(random.random_range(0.0..1.0)));
            child.kill().unwrap();
            if child.wait().unwrap().code().is_none() {
                *kills.entry("any").or_default() += 1;
            }
        }
        resume_and_compare(&sandbox);
    }
    note!("killed: {kills:?}");
    assert!(
        STAGES
            .iter()
            .all(|stage| kills.get(stage).is_some_and(|count| *count >= 5)),
        "{kills:?}"
    );
    assert!(kills.values().sum::<u32>() >= 50, "{kills:?}");
}

/// Two stages that train, so that there is a checkpoint to resume from.
const LONG: &str = r#"
[[stage]]
type = "pretrain"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
vocabulary = 300
hidden = 16
blocks = 1
heads = 2
mlp = 16
length = 16
batch = 2
updates = UPDATES

[[stage]]
type = "recover"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
rank = 2
batch = 2
dropout = 0.1
duration = { updates = UPDATES }

[[stage]]
type = "export"
"#;

test!(interrupted_stages_resume_where_they_stopped);
fn interrupted_stages_resume_where_they_stopped() {
    let sandbox = Sandbox::new();
    sandbox.write("long.toml", LONG.replace("UPDATES", "1500"));
    let undisturbed = sandbox.run(&["long.toml", "--results", "undisturbed"]);
    assert_eq!(undisturbed.code, 0, "{}", undisturbed.err);
    let mut resumed = Vec::new();
    for (stage, name) in [("pretrain", "INT"), ("recover", "TERM")] {
        let mut child = spawn(&sandbox, &["long.toml"]);
        assert!(
            wait_for_stage(
                &sandbox,
                "long",
                &mut child,
                stage,
                Duration::from_millis(100)
            ),
            "{stage}"
        );
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{stage}");
        assert_eq!(
            reason_to_run(&sandbox, "long.toml", stage),
            INTERRUPTED,
            "{stage}"
        );
        let status = sandbox.json("results/long/status.json");
        assert_eq!(status["state"], "interrupted");
    }
    let ran = sandbox.run(&["long.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    resumed.push(ran.err);
    assert!(
        resumed[0].contains("recovery goes on where it was interrupted"),
        "{resumed:?}"
    );
    let variant = sandbox.variant("long", "base-");
    let log = String::from_utf8(sandbox.read(&format!("{variant}/log.jsonl"))).unwrap();
    assert!(log.contains("goes on where it was interrupted"), "{log}");
    let elsewhere = variant.replace("results/", "undisturbed/");
    for file in [
        "pretrain.parquet",
        "recover.parquet",
        "hf/model.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
    ] {
        let resumed = sandbox.read(&format!("{variant}/{file}"));
        let expected = sandbox.read(&format!("{elsewhere}/{file}"));
        assert!(resumed == expected, "{file} differs");
    }
    // An evaluation resumes as well: documents that were scored or read are not scored or read
    // again.
    sandbox.write(
        "datasets/text.toml",
        "name = \"text\"\nversion = 1\nsplit = \"all\"\n\
         metrics = [\"perplexity\", \"bits_per_byte\"]\n\
         [rows]\nbeside = \"long.txt\"\n[text]\n",
    );
    sandbox.write(
        "datasets/long.txt",
        sandbox.read("datasets/tiny_world.txt").repeat(3),
    );
    for (name, tasks) in [
        ("score", "\"tiny_boolq\", \"tiny_piqa\""),
        ("read", "\"text\""),
    ] {
        let pipeline = format!("{name}.toml");
        let evaluate = format!(
            "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\
             [[stage]]\ntype = \"evaluate\"\ntasks = [{tasks}]\n"
        );
        sandbox.write(&pipeline, evaluate);
        assert_eq!(
            sandbox.run(&[&pipeline, "--results", "undisturbed"]).code,
            0
        );
        let undisturbed = sandbox.variant_in("undisturbed", name, "base-");
        let stage_time = Duration::from_secs_f64(seconds(&sandbox, &undisturbed)["evaluate"]);
        interrupt_and_resume_evaluation(&sandbox, name, stage_time);
        let variant = sandbox.variant(name, "base-");
        let elsewhere = variant.replace("results/", "undisturbed/");
        for (file, bytes) in tables(&sandbox, &variant) {
            assert!(
                bytes == sandbox.read(&format!("{elsewhere}/{file}")),
                "{file} differs"
            );
        }
    }
    // A complete stage leaves no checkpoint.
    let leftover = walk(&sandbox.path("results/.cache"))
        .into_iter()
        .find(|path| path.ends_with(".state"));
    assert_eq!(leftover, None);
}

/// Interrupts the stage `evaluate` after it has completed a part of its work, and runs it to its
/// end. How long the part takes depends on the load of the machine, so later attempts wait for a
/// larger share of the time that the stage took undisturbed.
fn interrupt_and_resume_evaluation(sandbox: &Sandbox, name: &str, stage_time: Duration) {
    let pipeline = format!("{name}.toml");
    for share in [0.3, 0.4, 0.5, 0.6, 0.8] {
        let mut child = spawn(sandbox, &[&pipeline, "--force"]);
        let wait = stage_time.mul_f64(share);
        assert!(wait_for_stage(sandbox, name, &mut child, "evaluate", wait));
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(130));
        if reason_to_run(sandbox, &pipeline, "evaluate") != INTERRUPTED {
            continue;
        }
        let ran = sandbox.run(&[&pipeline]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        // The checkpoint of a stage that was interrupted at its beginning is empty.
        if ran.err.contains("goes on where it was interrupted") {
            return;
        }
    }
    panic!("`{name}` was never interrupted with a part of its work done");
}

/// The reason in the plan for a stage that was interrupted and left a checkpoint.
const INTERRUPTED: &str = "it was interrupted and resumes from its checkpoint";

/// Why the plan says that the first stage of this type must run.
fn reason_to_run(sandbox: &Sandbox, pipeline: &str, stage: &str) -> String {
    let ran = sandbox.run(&["plan", pipeline, "--format", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let nodes = plan["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["stage"] == stage).unwrap();
    node["reason"].as_str().unwrap().to_owned()
}

/// The tables of a variant, by file name.
fn tables(sandbox: &Sandbox, variant: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(sandbox.path(variant)).unwrap().flatten();
    let names = files
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".parquet"));
    names
        .map(|name| (name.clone(), sandbox.read(&format!("{variant}/{name}"))))
        .collect()
}

test!(input_changed_during_a_run_is_an_error);
fn input_changed_during_a_run_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.write("long.toml", LONG.replace("UPDATES", "1500"));
    let mut command = sandbox.command(&["long.toml"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(wait_for_stage(
        &sandbox,
        "long",
        &mut child,
        "pretrain",
        Duration::from_millis(50)
    ));
    let text = sandbox.read("datasets/tiny_world.txt");
    sandbox.write("datasets/tiny_world.txt", [&text[..], b" "].concat());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("`datasets/tiny_world.txt` changed while the run was using it"),
        "{err}"
    );
    assert_eq!(sandbox.run(&["long.toml"]).code, 0);
}

test!(truncated_checkpoint_during_a_run_is_an_error);
fn truncated_checkpoint_during_a_run_is_an_error() {
    let sandbox = chain();
    let slow = CHAIN.replace("updates = 3", "updates = 100000");
    sandbox.write("cut.toml", slow);
    // Streamed: the weights are read from the file as long as the run lasts.
    let mut command = sandbox.command(&["cut.toml", "--set", "run.stream=true"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_reached = wait_for_stage(&sandbox, "cut", &mut child, "recover", Duration::ZERO);
    assert!(is_reached, "`recover` was not reached");
    let weights = sandbox.path("models/tiny/model.safetensors");
    let file = std::fs::File::options().write(true).open(&weights).unwrap();
    file.set_len(100_000).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("model.safetensors"), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    let variant = sandbox.variant("cut", "base-");
    let manifest = sandbox.json(&format!("{variant}/manifest.json"));
    assert_eq!(manifest["status"], "failed");
}

test!(run_takes_over_from_a_killed_run);
fn run_takes_over_from_a_killed_run() {
    let sandbox = chain();
    sandbox.write(
        "slow.toml",
        CHAIN.replace("updates = 3", "updates = 100000"),
    );
    let mut first = spawn(&sandbox, &["slow.toml"]);
    assert!(wait_for_stage(
        &sandbox,
        "slow",
        &mut first,
        "recover",
        Duration::ZERO
    ));
    // The second run of the same variant waits until the first has ended, then continues.
    let mut second = spawn(&sandbox, &["slow.toml"]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(second.try_wait().unwrap().is_none(), "the second run waits");
    first.kill().unwrap();
    first.wait().unwrap();
    let began = Instant::now();
    while running_stage(&sandbox, "slow", second.id()).as_deref() != Some("recover") {
        assert!(began.elapsed() < Duration::from_secs(60) && second.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&second, "TERM");
    assert_eq!(second.wait().unwrap().code(), Some(130));
}
