//! Several runs in one folder: they divide the work, and `status.json` shows each of them.

#![cfg(unix)]

use std::process::Child;
use std::time::{Duration, Instant};

use secateur_base::locks::SharedFolder;
use serde_json::Value;

use crate::support::{
    CHAIN, Sandbox, chain, outcome, run_status, signal, spawn, table, text, walk,
};

/// How long a test waits for something that another process does.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `condition` holds.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`CHAIN`] as a sweep over its ratio, with this many updates of recovery.
fn sweep(ratios: &str, updates: usize) -> String {
    let chain = CHAIN.replace("updates = 3", &format!("updates = {updates}"));
    format!("{chain}\n[sweep]\n\"prune.ratio\" = [{ratios}]\n")
}

/// The variants for which a process runs a stage of this type at this moment.
fn variants_in(sandbox: &Sandbox, pipeline: &str, child: &Child, stage: &str) -> Vec<String> {
    let now = run_status(sandbox, pipeline, child.id()).map(|run| run["now"].clone());
    let now = now.filter(|now| now["stage"] == stage).unwrap_or_default();
    let variants = now["variants"].as_array().cloned().unwrap_or_default();
    let names = variants
        .iter()
        .map(|name| name.as_str().unwrap().to_owned());
    names.collect()
}

/// How many stages of a pipeline a process has run.
fn stages_run(sandbox: &Sandbox, pipeline: &str, process: u32) -> u64 {
    let run = run_status(sandbox, pipeline, process).unwrap();
    run["stages"]["run"].as_u64().unwrap()
}

test!(later_run_takes_a_variant_that_no_other_run_has);
fn later_run_takes_a_variant_that_no_other_run_has() {
    let sandbox = chain();
    sandbox.write("sweep.toml", sweep("0.25, 0.5", 100_000));
    let mut runs = Vec::new();
    let mut variants = Vec::new();
    for _ in 0..2 {
        let run = spawn(&sandbox, &["sweep.toml", "--set", "run.threads=1"]);
        wait_until("a run recovers", || {
            !variants_in(&sandbox, "sweep", &run, "recover").is_empty()
        });
        variants.extend(variants_in(&sandbox, "sweep", &run, "recover"));
        runs.push(run);
    }
    assert!(
        variants.len() == 2 && variants[0].starts_with("ratio0.25"),
        "{variants:?}"
    );
    assert!(variants[1].starts_with("ratio0.5"), "{variants:?}");
    let [first, second] = &mut runs[..] else {
        unreachable!()
    };
    // The stages before were run once, by the first.
    let before = |run: &Child| stages_run(&sandbox, "sweep", run.id());
    assert_eq!((before(first), before(second)), (7, 2));
    for run in [first, second] {
        signal(run, "TERM");
        assert_eq!(run.wait().unwrap().code(), Some(130));
    }
}

test!(runs_that_start_together_each_do_a_part);
fn runs_that_start_together_each_do_a_part() {
    let sandbox = chain();
    sandbox.write("sweep.toml", sweep("0.1, 0.25, 0.5", 40));
    let alone = sandbox.run(&["sweep.toml", "--results", "alone"]);
    assert_eq!(alone.code, 0, "{}", alone.err);
    let mut runs: Vec<Child> = (0..3).map(|_| spawn(&sandbox, &["sweep.toml"])).collect();
    for run in &mut runs {
        assert_eq!(run.wait().unwrap().code(), Some(0));
    }
    let parts: Vec<u64> = runs
        .iter()
        .map(|run| stages_run(&sandbox, "sweep", run.id()))
        .collect();
    note!("stages run by each: {parts:?}");
    // Five stages are shared, and each variant has five of its own: no stage runs twice.
    assert_eq!(parts.iter().sum::<u64>(), 5 + 3 * 5, "{parts:?}");
    assert!(
        parts.iter().filter(|&&part| part > 0).count() >= 2,
        "{parts:?}"
    );
    let table_of = |results: &str| sandbox.read(&format!("{results}/sweep/variants.parquet"));
    assert!(table_of("results") == table_of("alone"));
    for ratio in ["ratio0.1", "ratio0.25", "ratio0.5"] {
        let variant = sandbox.variant("sweep", ratio);
        let expected = outcome(&sandbox, &variant.replace("results/", "alone/"));
        assert!(outcome(&sandbox, &variant) == expected, "{ratio}");
        // The log of a variant has the stages that it shares with others.
        let log = String::from_utf8(sandbox.read(&format!("{variant}/log.jsonl"))).unwrap();
        assert!(log.contains("importance begins"), "{log}");
    }
    let leftover = walk(&sandbox.path("results"))
        .into_iter()
        .find(|path| path.contains(".partial-"));
    assert_eq!(leftover, None);
}

/// The key of the first stage of a type, as `runner plan` prints it.
fn product_key(sandbox: &Sandbox, pipeline: &str, stage: &str) -> String {
    let ran = sandbox.run(&["plan", pipeline, "--format", "json"]);
    let plan: Value = serde_json::from_str(&ran.out).unwrap();
    let mut nodes = plan["nodes"].as_array().unwrap().iter();
    let node = nodes.find(|node| node["stage"] == stage).unwrap();
    node["key"].as_str().unwrap().to_owned()
}

test!(run_goes_on_past_what_another_run_is_making);
fn run_goes_on_past_what_another_run_is_making() {
    let sandbox = chain();
    sandbox.write("sweep.toml", sweep("0.25, 0.5", 3));
    let alone = sandbox.run(&["sweep.toml", "--results", "alone"]);
    assert_eq!(alone.code, 0, "{}", alone.err);
    // As if another run were making the measurement of the dense model.
    let cache = SharedFolder::open(&sandbox.path("results/.cache")).unwrap();
    let key = product_key(&sandbox, "sweep.toml", "evaluate");
    let claim = cache.try_claim(&key).unwrap();
    assert!(claim.is_some());
    let mut run = spawn(&sandbox, &["sweep.toml"]);
    let process = run.id();
    // Everything else is made: 4 shared stages, and 5 of each variant.
    wait_until("all other stages are run", || {
        let status = run_status(&sandbox, "sweep", process);
        status.is_some_and(|status| status["stages"]["run"] == 14 && status["now"].is_null())
    });
    assert!(run.try_wait().unwrap().is_none(), "the run waits");
    drop(claim);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert_eq!(stages_run(&sandbox, "sweep", process), 15);
    for ratio in ["ratio0.25", "ratio0.5"] {
        let variant = sandbox.variant("sweep", ratio);
        let expected = outcome(&sandbox, &variant.replace("results/", "alone/"));
        assert!(outcome(&sandbox, &variant) == expected, "{ratio}");
        let manifest = sandbox.json(&format!("{variant}/manifest.json"));
        let steps: Vec<u64> = manifest["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stage| stage["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, (0..10).collect::<Vec<u64>>());
    }
}

test!(failure_of_a_shared_stage_is_recorded_in_every_variant);
fn failure_of_a_shared_stage_is_recorded_in_every_variant() {
    let sandbox = chain();
    let diverging = CHAIN.replace("learning_rate = 1e-3", "learning_rate = 1e38");
    let sweep = "[sweep]\n\"evaluate[3].limit\" = [4, 5]\n";
    sandbox.write("sweep.toml", format!("{diverging}\n{sweep}"));
    let ran = sandbox.run(&["sweep.toml"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert_eq!(ran.err.matches("recover failed").count(), 1, "{}", ran.err);
    for limit in ["limit4", "limit5"] {
        let variant = sandbox.variant("sweep", limit);
        let manifest = sandbox.json(&format!("{variant}/manifest.json"));
        assert_eq!(manifest["status"], "failed");
        assert!(manifest["error"].as_str().unwrap().contains("`recover`"));
        // The stages before it are there.
        assert_eq!(manifest["stages"].as_array().unwrap().len(), 7);
        assert!(sandbox.path(&format!("{variant}/prune.parquet")).exists());
    }
}

test!(shared_stages_run_once_without_a_cache);
fn shared_stages_run_once_without_a_cache() {
    let sandbox = chain();
    // `recover` is shared; it writes the adapter that every variant gets.
    let sweep = "[sweep]\n\"evaluate[3].limit\" = [4, 5]\n";
    sandbox.write("sweep.toml", format!("{CHAIN}\n{sweep}"));
    let kept = sandbox.run(&["sweep.toml", "--results", "kept"]);
    assert_eq!(kept.code, 0, "{}", kept.err);
    // No product stays in the cache.
    let ran = sandbox.run(&["sweep.toml", "--set", "run.cache_limit=0"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let status = sandbox.json("results/sweep/status.json");
    assert_eq!(
        (&status["stages"]["run"], &status["stages"]["kept"]),
        (&Value::from(8 + 2 * 2), &Value::from(0))
    );
    for limit in ["limit4", "limit5"] {
        let variant = sandbox.variant("sweep", limit);
        let expected = outcome(&sandbox, &variant.replace("results/", "kept/"));
        assert!(outcome(&sandbox, &variant) == expected, "{limit}");
    }
}

test!(status_of_a_killed_run_says_so);
fn status_of_a_killed_run_says_so() {
    let sandbox = chain();
    sandbox.write(
        "slow.toml",
        CHAIN.replace("updates = 3", "updates = 100000"),
    );
    let mut run = spawn(&sandbox, &["slow.toml"]);
    wait_until("the run recovers", || {
        !variants_in(&sandbox, "slow", &run, "recover").is_empty()
    });
    let status = || sandbox.json("results/slow/status.json");
    let variant = sandbox.variant("slow", "base-");
    let manifest_status = || sandbox.json(&format!("{variant}/manifest.json"))["status"].clone();
    let began = status();
    assert_eq!(
        (&began["state"], manifest_status()),
        (&Value::from("running"), Value::from("running"))
    );
    assert_eq!(began["process"], run.id());
    assert!(began["host"].is_string() && began["process_began"].as_u64().unwrap() > 0);
    // A running run renews its status, and a report leaves it alone.
    sandbox.run(&["report", "results"]);
    let updated = |status: &Value| status["updated"].as_u64().unwrap();
    wait_until("the status is renewed", || {
        updated(&status()) > updated(&began)
    });
    assert_eq!(status()["state"], "running");
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(status()["state"], "running", "no process has changed it");
    sandbox.run(&["plan", "slow.toml"]);
    let killed = status();
    assert_eq!(
        (&killed["state"], manifest_status()),
        (&Value::from("killed"), Value::from("interrupted"))
    );
    assert!(killed["now"].is_null(), "{killed}");
    // The next run has an entry of its own.
    let mut next = spawn(&sandbox, &["slow.toml"]);
    wait_until("the next run recovers", || {
        !variants_in(&sandbox, "slow", &next, "recover").is_empty()
    });
    let both = status();
    assert_eq!(both["process"], next.id());
    let states: Vec<&str> = both["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["killed", "running"]);
    signal(&next, "TERM");
    assert_eq!(next.wait().unwrap().code(), Some(130));
    assert_eq!(status()["state"], "interrupted");
}

test!(report_of_a_killed_run_does_not_call_its_variant_running);
fn report_of_a_killed_run_does_not_call_its_variant_running() {
    let sandbox = chain();
    sandbox.write("sweep.toml", sweep("0.25, 0.5", 100_000));
    let mut run = spawn(&sandbox, &["sweep.toml"]);
    wait_until("the run recovers", || {
        !variants_in(&sandbox, "sweep", &run, "recover").is_empty()
    });
    run.kill().unwrap();
    run.wait().unwrap();
    // A run of the other variant writes the table.
    let mut other = spawn(&sandbox, &["sweep.toml", "--only", "ratio0.5"]);
    wait_until("the other run recovers", || {
        !variants_in(&sandbox, "sweep", &other, "recover").is_empty()
    });
    signal(&other, "TERM");
    assert_eq!(other.wait().unwrap().code(), Some(130));
    let rows = table(&sandbox.path("results/sweep/variants.parquet"));
    assert_eq!(text(&rows["status"]), ["interrupted", "interrupted"]);
}
