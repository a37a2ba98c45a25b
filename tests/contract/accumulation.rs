//! Runs of one pipeline accumulate: complete variants keep their rows until `runner clean` removes
//! them, and options of the command line are columns and parts of names.

use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use secateur::plan::check::{Overrides, check};
use secateur_base::locks::SharedFolder;

use super::kept_products::run_ok;
use super::shards::SHORT;
use crate::support::{Sandbox, table, text};

/// A message without the line breaks that wrap it.
pub(crate) fn unwrapped(message: &str) -> String {
    let lines = message
        .lines()
        .map(|line| line.trim().trim_start_matches("│ "));
    lines.collect::<Vec<_>>().join(" ")
}

/// A working directory with [`SHORT`] and a sweep as `short.toml`.
fn short(sweep: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("short.toml", format!("{SHORT}{sweep}"));
    sandbox
}

/// The ids of the variants of `short.toml` with `--set` arguments.
fn ids(sandbox: &Sandbox, set: &[&str]) -> Vec<String> {
    let overrides = Overrides {
        set: set.iter().map(|&argument| argument.to_owned()).collect(),
        ..Overrides::default()
    };
    let plan = check(&sandbox.path("short.toml"), &overrides, false).unwrap();
    plan.variants
        .iter()
        .map(|variant| variant.id.clone())
        .collect()
}

/// The readable parts of ids.
fn names(ids: &[String]) -> Vec<&str> {
    ids.iter()
        .map(|id| id.rsplit_once('-').unwrap().0)
        .collect()
}

/// The readable parts of the ids in the sweep's table, each with whether it is current.
fn rows(sandbox: &Sandbox) -> Vec<(String, bool)> {
    let rows = table(&sandbox.path("results/short/variants.parquet"));
    let ids = text(&rows["variant"]);
    let names = names(&ids).into_iter().map(str::to_owned);
    let current = text(&rows["current"])
        .into_iter()
        .map(|text| text == "true");
    names.zip(current).collect()
}

fn row(name: &str, is_current: bool) -> (String, bool) {
    (name.to_owned(), is_current)
}

test!(options_of_the_command_line_are_in_the_name);
fn options_of_the_command_line_are_in_the_name() {
    let plain = short("");
    let name = |set: &[&str]| names(&ids(&plain, set)).join(" ");
    assert_eq!(name(&[]), "base");
    assert_eq!(name(&["prune.ratio=0.3"]), "ratio0.3");
    assert_eq!(name(&["run.seed=7"]), "seed7");
    assert_eq!(name(&["load.model=/some/where/else"]), "else");
    // What the file says already tells the variant from nothing.
    let same = ["prune.ratio=0.25", "run.seed=42", "run.threads=1"];
    assert_eq!(ids(&plain, &same), ids(&plain, &[]));
    // The last of several values counts, and the order of the arguments does not.
    let one = ids(&plain, &["prune.ratio=0.3", "aggregate.with=max"]);
    let other = ids(
        &plain,
        &["prune.ratio=0.7", "aggregate.with=max", "prune.ratio=0.3"],
    );
    assert_eq!(names(&one), ["max-ratio0.3"]);
    assert_eq!(one, other);

    // A value in place of those of the sweep has the place and the id that it has in the sweep.
    let swept = short(
        "[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n\
         zip = { \"importance.method\" = [\"l1\", \"l2\"], \"aggregate.with\" = [\"max\", \"sum\"] }\n",
    );
    let all = ids(&swept, &[]);
    assert_eq!(
        names(&all),
        [
            "ratio0.25-l1-max",
            "ratio0.25-l2-sum",
            "ratio0.5-l1-max",
            "ratio0.5-l2-sum"
        ]
    );
    assert_eq!(ids(&swept, &["prune[1].ratio=0.5"]), all[2..]);
    assert_eq!(
        names(&ids(&swept, &["aggregate.with=max", "prune.scope=global"])),
        [
            "ratio0.25-l1-max-global",
            "ratio0.25-l2-max-global",
            "ratio0.5-l1-max-global",
            "ratio0.5-l2-max-global"
        ]
    );
    // A new option never changes the hash of what it does not change.
    let hash = |id: &str| id.rsplit_once('-').unwrap().1.to_owned();
    swept.write("short.toml", SHORT.replace("0.25", "0.3"));
    assert_eq!(
        hash(&ids(&swept, &[])[0]),
        hash(&ids(&plain, &["prune.ratio=0.3"])[0])
    );
}

test!(complete_variants_keep_their_rows);
fn complete_variants_keep_their_rows() {
    let sandbox = short("");
    run_ok(&sandbox, &["short.toml"]);
    run_ok(&sandbox, &["short.toml", "--set", "prune.ratio=0.3"]);
    run_ok(&sandbox, &["short.toml", "--set", "run.seed=7"]);
    assert_eq!(
        rows(&sandbox),
        [row("seed7", true), row("base", true), row("ratio0.3", true)]
    );
    // Each row has the value that its variant has, from the file or from the command line.
    let written = table(&sandbox.path("results/short/variants.parquet"));
    let ratios = written["prune.ratio"].as_primitive::<Float64Type>();
    let seeds = written["run.seed"].as_primitive::<Int64Type>();
    assert_eq!(
        (ratios.values().to_vec(), seeds.values().to_vec()),
        (vec![0.25, 0.25, 0.3], vec![7, 42, 42])
    );
    assert!(written["params_after"].null_count() == 0);

    // A value of the sweep that goes keeps its row, and so do variants that are not selected.
    sandbox.write(
        "short.toml",
        format!("{SHORT}[sweep]\n\"prune.ratio\" = [0.5, 0.3, 0.25]\n"),
    );
    run_ok(&sandbox, &["short.toml", "--only", "ratio0.5"]);
    sandbox.write(
        "short.toml",
        format!("{SHORT}[sweep]\n\"prune.ratio\" = [0.25]\n"),
    );
    run_ok(&sandbox, &["short.toml"]);
    // `base` and `ratio0.25` are the same variant: it has one row, under its present name.
    assert_eq!(
        rows(&sandbox),
        [
            row("ratio0.25", true),
            row("ratio0.3", true),
            row("ratio0.5", true),
            row("seed7", true)
        ]
    );

    // Another option in the file: the earlier rows are not of its present state.
    sandbox.write("short.toml", SHORT.replace("\"l2\"", "\"l1\""));
    let ran = sandbox.run(&["short.toml", "--format", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let found = rows(&sandbox);
    assert_eq!(found[0], row("base", true));
    // `base` of before, which is also `ratio0.25`, has one row.
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(
        found[1..].iter().all(|(_, is_current)| !is_current),
        "{found:?}"
    );
    // The same state again.
    sandbox.write("short.toml", SHORT);
    run_ok(&sandbox, &["short.toml", "--set", "prune.ratio=0.3"]);
    let found = rows(&sandbox);
    assert_eq!(
        found.iter().filter(|(_, is_current)| !is_current).count(),
        1,
        "{found:?}"
    );
    // A sweep of the command line names its variants as `--set` does.
    run_ok(&sandbox, &["short.toml", "--sweep", "prune.ratio=0.3,0.4"]);
    assert_eq!(
        rows(&sandbox)[..2],
        [row("ratio0.3", true), row("ratio0.4", true)]
    );
    assert_eq!(rows(&sandbox).len(), found.len() + 1);
    run_ok(&sandbox, &["clean", "--remove", "--only", "ratio0.4"]);
    assert_eq!(rows(&sandbox), found);
    // An input that has changed: only the variant that runs again is of the present state.
    let config = String::from_utf8(sandbox.read("models/tiny/config.json")).unwrap();
    sandbox.write("models/tiny/config.json", format!("{config}\n"));
    run_ok(&sandbox, &["short.toml", "--set", "prune.ratio=0.3"]);
    let with_new_input = rows(&sandbox);
    assert_eq!(with_new_input[0], row("ratio0.3", true));
    assert!(
        with_new_input[1..]
            .iter()
            .all(|(_, is_current)| !is_current),
        "{with_new_input:?}"
    );
    sandbox.write("models/tiny/config.json", config);
    run_ok(&sandbox, &["short.toml", "--set", "prune.ratio=0.3"]);
    assert_eq!(rows(&sandbox), found);
    // A failed run takes no row away.
    let failed = sandbox.run(&["short.toml", "--set", "prune.ratio=0.999"]);
    assert_ne!(failed.code, 2, "{}", failed.err);
    assert!(rows(&sandbox).len() >= found.len());
}

test!(two_pipelines_of_one_name_do_not_share_a_folder);
fn two_pipelines_of_one_name_do_not_share_a_folder() {
    let sandbox = Sandbox::new();
    for (folder, ratio) in [("a", "0.25"), ("b", "0.5")] {
        std::fs::create_dir(sandbox.path(folder)).unwrap();
        sandbox.write(
            &format!("{folder}/short.toml"),
            SHORT.replace("0.25", ratio),
        );
    }
    run_ok(&sandbox, &["a/short.toml"]);
    for command in [
        &["b/short.toml"][..],
        &["check", "b/short.toml"],
        &["plan", "b/short.toml"],
    ] {
        let refused = sandbox.run(command);
        assert_eq!(refused.code, 2);
        let message = unwrapped(&refused.err);
        assert!(
            message.contains("has those of `a/short.toml`") && message.contains("--results"),
            "{message}"
        );
    }
    assert_eq!(rows(&sandbox), [row("base", true)]);
    run_ok(&sandbox, &["check", "b/short.toml", "--no-world"]);
    run_ok(&sandbox, &["b/short.toml", "--results", "results-b"]);
    // The same file by another path, and another checkout with the results of this one.
    let absolute = sandbox.path("a/short.toml");
    run_ok(&sandbox, &[absolute.to_str().unwrap()]);
    let checkout = Sandbox::new();
    std::fs::create_dir(checkout.path("a")).unwrap();
    checkout.write("a/short.toml", SHORT.replace("0.25", "0.4"));
    std::fs::create_dir(checkout.path("results")).unwrap();
    copy_tree(
        &sandbox.path("results/short"),
        &checkout.path("results/short"),
    );
    run_ok(&checkout, &["a/short.toml"]);
    assert_eq!(rows(&checkout), [row("base", true), row("base", false)]);
    // The file was moved, and changed on the way.
    std::fs::rename(sandbox.path("a"), sandbox.path("moved")).unwrap();
    sandbox.write("moved/short.toml", SHORT.replace("0.25", "0.4"));
    run_ok(&sandbox, &["moved/short.toml"]);
}

/// Copies a folder with its subfolders.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

test!(pipelines_of_variants_run_side_by_side);
fn pipelines_of_variants_run_side_by_side() {
    let sandbox = short("[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n");
    run_ok(&sandbox, &["short.toml"]);
    for name in ["ratio0.25", "ratio0.5"] {
        let pipeline = format!("{}/pipeline.toml", sandbox.variant("short", name));
        run_ok(&sandbox, &[&pipeline, "--results", "again"]);
    }
    let rows = table(&sandbox.path("again/pipeline/variants.parquet"));
    assert_eq!(text(&rows["current"]), ["true", "true"]);
}

test!(clean_removes_what_no_pipeline_names);
fn clean_removes_what_no_pipeline_names() {
    let sandbox = short("[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n");
    run_ok(&sandbox, &["short.toml"]);
    let nothing = run_ok(&sandbox, &["clean"]);
    assert!(nothing.contains("nothing to remove"), "{nothing}");
    run_ok(
        &sandbox,
        &[
            "short.toml",
            "--set",
            "aggregate.with=max",
            "--only",
            "ratio0.5",
        ],
    );
    sandbox.write(
        "short.toml",
        format!("{SHORT}[sweep]\n\"prune.ratio\" = [0.5]\n"),
    );
    // An incomplete variant, as a killed run leaves it.
    let complete = sandbox.variant("short", "ratio0.5-max");
    let manifest = String::from_utf8(sandbox.read(&format!("{complete}/manifest.json"))).unwrap();
    let killed = manifest.replace("\"status\": \"succeeded\"", "\"status\": \"running\"");
    std::fs::create_dir(sandbox.path("results/short/killed-00000000")).unwrap();
    sandbox.write("results/short/killed-00000000/manifest.json", killed);
    // Without --remove everything stays.
    let before = rows(&sandbox);
    assert_eq!(before.len(), 3);
    let listed = run_ok(&sandbox, &["clean"]);
    for line in [
        "not in the pipeline file: prune.ratio = 0.25",
        "not in the pipeline file: prune.ratio = 0.5, aggregate.with = \"max\"",
        "incomplete: interrupted",
        "3 results",
    ] {
        assert!(listed.contains(line), "{line}: {listed}");
    }
    assert!(rows(&sandbox) == before && sandbox.path(&complete).exists());
    // One of them, then the others; one is in use.
    run_ok(
        &sandbox,
        &["clean", "results/short", "--remove", "--only", "ratio0.25"],
    );
    assert_eq!(
        rows(&sandbox),
        [row("ratio0.5-max", true), row("ratio0.5", true)]
    );
    let folder = SharedFolder::open(&sandbox.path("results/short")).unwrap();
    let claim = folder.try_claim("killed-00000000").unwrap();
    let in_use = sandbox.run(&["clean", "short.toml", "--remove"]);
    assert_eq!(in_use.code, 1);
    assert!(
        unwrapped(&in_use.err)
            .contains("killed-00000000` was not removed: another run is working on it")
            && in_use.out.contains("1 of 2 removed"),
        "{}{}",
        in_use.err,
        in_use.out
    );
    drop((claim, folder));
    let removed = sandbox.run(&[
        "clean",
        "results",
        "short.toml",
        "--remove",
        "--format",
        "json",
    ]);
    let records: serde_json::Value = serde_json::from_str(&removed.out).unwrap();
    assert_eq!(
        (
            records[0]["variant"].as_str(),
            records[0]["removed"].as_bool()
        ),
        (Some("killed-00000000"), Some(true))
    );
    assert!(!sandbox.path(&complete).exists());
    let left = table(&sandbox.path("results/short/variants.parquet"));
    assert_eq!(left.num_rows(), 1);
    assert!(left.schema().field_with_name("aggregate.with").is_err());
    assert!(left.schema().field_with_name("prune.ratio").is_ok());
    // The products are still stored, and a removed variant is made again from them.
    run_ok(&sandbox, &["short.toml", "--set", "aggregate.with=max"]);
    assert_eq!(rows(&sandbox).len(), 2);
    // A pipeline file that is not there: only a folder that is named is emptied.
    std::fs::rename(sandbox.path("short.toml"), sandbox.path("aside.toml")).unwrap();
    let kept = run_ok(&sandbox, &["clean", "--remove"]);
    assert!(
        kept.contains("not removed: its pipeline file is not there"),
        "{kept}"
    );
    assert_eq!(rows(&sandbox).len(), 2);
    run_ok(&sandbox, &["clean", "results/short", "--remove"]);
    assert_eq!(rows(&sandbox).len(), 0);
    for wrong in [
        &["clean", "nowhere"][..],
        &["clean", "models"],
        &["clean", "results", "models"],
        &["clean", "--only", "nothing"],
    ] {
        assert_eq!(sandbox.run(wrong).code, 2, "{wrong:?}");
    }
}

test!(clean_refuses_the_results_of_another_pipeline_file);
fn clean_refuses_the_results_of_another_pipeline_file() {
    let sandbox = short("");
    run_ok(&sandbox, &["short.toml"]);
    let text = std::fs::read_to_string(sandbox.path("short.toml")).unwrap();
    std::fs::create_dir(sandbox.path("other")).unwrap();
    sandbox.write("other/short.toml", format!("# another pipeline\n{text}"));
    for arguments in [
        &["clean", "other/short.toml", "--remove"][..],
        &["clean", "results/short", "other/short.toml", "--remove"],
    ] {
        let ran = sandbox.run(arguments);
        assert_eq!(ran.code, 2, "{}", ran.out);
        assert!(
            unwrapped(&ran.err).contains("has the results of `short.toml`"),
            "{}",
            ran.err
        );
    }
    assert_eq!(rows(&sandbox).len(), 1);
}

test!(a_seed_of_the_environment_is_a_column);
fn a_seed_of_the_environment_is_a_column() {
    let sandbox = short("");
    run_ok(&sandbox, &["short.toml"]);
    let mut command = sandbox.command(&["short.toml"]);
    let ran = command.env("RUNNER_SEED", "9").output().unwrap();
    assert!(ran.status.success());
    let table = table(&sandbox.path("results/short/variants.parquet"));
    assert!(table.schema().field_with_name("run.seed").is_ok());
    let names = format!("{:?}", rows(&sandbox));
    assert!(names.contains("seed9") && names.contains("base"), "{names}");
}

test!(report_names_what_a_folder_is);
fn report_names_what_a_folder_is() {
    let sandbox = short("[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n");
    run_ok(&sandbox, &["short.toml"]);
    let variant = sandbox.variant("short", "ratio0.5");
    let one = run_ok(&sandbox, &["report", &variant]);
    assert!(
        one.contains("ratio0.5-") && !one.contains("ratio0.25-"),
        "{one}"
    );
    for (path, message) in [
        ("models", "`models` holds no results"),
        ("short.toml", "`short.toml` is a file"),
        ("nowhere", "there is no `nowhere`"),
        ("results/.cache", "`results/.cache` holds no results"),
    ] {
        let refused = sandbox.run(&["report", path]);
        assert!(
            refused.code == 2 && unwrapped(&refused.err).contains(message),
            "{path}: {}",
            refused.err
        );
    }
}
