//! The messages of the check for wrong pipelines, and the variants of valid ones. Snapshots hold
//! the printed text.

use secateur::plan::Plan;
use secateur::plan::check::{Overrides, check};
use secateur::plan::ids::VariantId;

use crate::support::Sandbox;

/// A valid pipeline.
pub(super) const WHOLE: &str = r#"
[[stage]]
type = "load"
model = "models/tiny"

[[stage]]
type = "dependencies"

[[stage]]
type = "importance"
method = "l2"

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.25

[[stage]]
type = "evaluate"
tasks = ["tiny_boolq"]
"#;

/// The plan of a pipeline with these `--set` arguments, or the messages of the check.
fn plan(pipeline: &str, set: &[&str]) -> Result<Plan, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.toml");
    std::fs::write(&path, pipeline).unwrap();
    let overrides = Overrides {
        set: set.iter().map(|argument| (*argument).to_owned()).collect(),
        ..Overrides::default()
    };
    check(&path, &overrides, false).map_err(|invalid| {
        let problems = invalid.problems.into_iter();
        problems.map(|problem| problem.message).collect()
    })
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.variants
        .iter()
        .map(|variant| variant.id.as_str())
        .collect()
}

test!(one_check_reports_every_mistake_with_its_position);
fn one_check_reports_every_mistake_with_its_position() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "broken.toml",
        r#"[run]
sead = 1

[[stage]]
type = "load"
model = "models/tinny"

[[stage]]
type = "dependancies"

[[stage]]
type = "dependencies"
attention_layers = [3, 1]
gruoping = "block"

[[stage]]
type = "importance"
method = "taylr"

[[stage]]
type = "prune"
ratio = 1.0

[[stage]]
type = "recover"
corpus = "nowhere.txt"
duration = { updates = 0 }

[[stage]]
type = "evaluate"
tasks = ["tiny_boolq", "tiny_bolq"]

[[stage]]
type = "export"
formats = ["hf", "gguf"]

[sweep]
"prune.ratio" = [0.1, nan, 0.5]
"aggregate.with" = ["sum", "maks"]
"#,
    );
    let ran = sandbox.run(&["check", "broken.toml"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    insta::assert_snapshot!("every_mistake", ran.err);
    // The same problems as JSON records, alone on standard output.
    let ran = sandbox.run(&["broken.toml", "--format", "json"]);
    assert_eq!((ran.code, ran.err.as_str()), (2, ""));
    let records: Vec<serde_json::Value> = serde_json::from_str(&ran.out).unwrap();
    let places: Vec<(u64, u64)> = records
        .iter()
        .map(|record| {
            let number = |key: &str| record[key].as_u64().unwrap();
            (number("line"), number("column"))
        })
        .collect();
    assert_eq!(
        places,
        [
            (2, 1),
            (6, 9),
            (9, 8),
            (13, 20),
            (14, 1),
            (18, 10),
            (22, 9),
            (26, 10),
            (27, 24),
            (31, 24),
            (35, 18),
            (38, 23),
            (39, 1),
            (39, 28)
        ]
    );
    assert!(!sandbox.path("results").exists(), "no work was started");
}

test!(wrong_stage_order_names_the_missing_input);
fn wrong_stage_order_names_the_missing_input() {
    let messages = |pipeline: &str| plan(pipeline, &[]).err().unwrap();
    assert_eq!(messages(""), ["the pipeline has no stage"]);
    assert_eq!(
        messages("[[stage]]\ntype = \"evaluate\"\ntasks = [\"tiny_boolq\"]"),
        ["`evaluate` needs a model, which no stage before it makes"]
    );
    let two_prunings = format!("{WHOLE}\n[[stage]]\ntype = \"prune\"\nratio = 0.5\n");
    assert_eq!(
        messages(&two_prunings),
        [
            "`prune` needs scores of units, but what earlier stages made is out of date: \
             `prune` changed the model",
            "`prune` needs the groups, but what earlier stages made is out of date: \
             `prune` changed the model"
        ]
    );
    let later_importance = WHOLE.replace(
        "[[stage]]\ntype = \"prune\"",
        "[[stage]]\ntype = \"importance\"\nmethod = \"l1\"\n[[stage]]\ntype = \"prune\"",
    );
    assert_eq!(
        messages(&later_importance),
        [
            "`prune` needs scores of units, but what earlier stages made is out of date: \
             `importance` came after it"
        ]
    );
    let no_plan = "[[stage]]\ntype = \"load\"\nmodel = \"m\"\n\
                   [[stage]]\ntype = \"export\"\nformats = [\"plan\"]";
    assert_eq!(
        messages(no_plan),
        ["`export` needs a pruning plan, which no stage before it makes"]
    );
    assert_eq!(
        messages("[[stage]\ntype = 1").len(),
        1,
        "a broken TOML is one problem"
    );
    assert_eq!(messages("stage = 3"), ["`stage` is not a list of tables"]);
}

test!(out_of_range_values_are_rejected);
fn out_of_range_values_are_rejected() {
    let messages = |set: &str| plan(WHOLE, &[set]).err().unwrap_or_default();
    for (set, message) in [
        ("prune.ratio=0", "a ratio of 0 prunes nothing or everything"),
        ("prune.ratio=1", "a ratio of 1 prunes nothing or everything"),
        (
            "prune.ratio=nan",
            "a ratio of NaN prunes nothing or everything",
        ),
        (
            "prune.ratio=-0.5",
            "a ratio of -0.5 prunes nothing or everything",
        ),
        (
            "prune.round_to=0",
            "`round_to` must be a number from 1 to 1048576, not 0",
        ),
        (
            "importance.samples=0",
            "`samples` must be a number from 1 to 1048576, not 0",
        ),
        (
            "importance.samples=9999999",
            "`samples` must be a number from 1 to 1048576, not 9999999",
        ),
        (
            "importance.method=taylor",
            "this method needs calibration data",
        ),
        ("evaluate.limit=0", "a limit of 0 rows measures nothing"),
        (
            "dependencies.mlp_layers=[2, 1]",
            "the layer range [2, 1] ends before it starts",
        ),
        (
            "aggregate.with=second",
            "`second` exists only in the reference implementation",
        ),
        ("run.threads=0", "0 threads cannot work"),
        ("run[2].seed=1", "`run[2].seed` is not a run setting"),
        (
            "evaluate.tasks=[\"tiny_piqa\", \"tiny_piqa\"]",
            "`tiny_piqa` is measured twice: a row of the table is known by its name",
        ),
        (
            "evaluate.corpora=[\"a/t.txt\", \"b/t.txt\"]",
            "`t` is measured twice: a row of the table is known by its name",
        ),
        (
            "run.seed=-1",
            "`seed` of `[run]` must be at least 0, not the number -1",
        ),
        ("prune.ration=0.5", "unknown key `ration` in `prune`"),
        (
            "prune[2].ratio=0.5",
            "the pipeline has 1 stage of type `prune`, not 2",
        ),
        (
            "recover.rank=8",
            "the pipeline has no stage of type `recover`",
        ),
        (
            "ratio=0.5",
            "`ratio` names no option; an option is `type.key`",
        ),
        ("prune.ratio", "`prune.ratio` has no value"),
    ] {
        assert_eq!(messages(set), [message], "{set}");
    }
}

test!(sweeps_support_grids_zips_and_exclusions);
fn sweeps_support_grids_zips_and_exclusions() {
    let sweep = |sweep: &str| plan(&format!("{WHOLE}[sweep]\n{sweep}"), &[]);
    let grid = sweep("\"aggregate.with\" = [\"sum\", \"max\"]\n\"prune.ratio\" = [0.1, 0.25, 0.5]")
        .unwrap();
    assert_eq!(ids(&grid).len(), 6);
    // load, dependencies and importance once, aggregate twice, prune and evaluate for each of the
    // six.
    assert_eq!(grid.stage_run_counts(), (3 + 2 + 12, 36));
    let zip =
        sweep("zip = [{ \"aggregate.with\" = [\"sum\", \"max\"], \"prune.ratio\" = [0.1, 0.5] }]")
            .unwrap();
    assert_eq!(zip.variants.len(), 2);
    let grid_ids = ids(&grid);
    assert!(
        ids(&zip).iter().all(|id| grid_ids.contains(id)),
        "the id does not depend on how the variant was swept"
    );
    let with_exclusion = sweep(
        "\"aggregate.with\" = [\"sum\", \"max\"]\n\"prune.ratio\" = [0.1, 0.5]\n\
         exclude = [{ \"aggregate.with\" = \"max\", \"prune.ratio\" = 0.5 }]",
    );
    assert_eq!(with_exclusion.unwrap().variants.len(), 3);
    let problems = |text: &str| sweep(text).err().unwrap();
    assert_eq!(
        problems("zip = [{ \"aggregate.with\" = [\"sum\"], \"prune.ratio\" = [0.1, 0.5] }]"),
        ["lists that advance together have 1 and 2 values"]
    );
    assert_eq!(
        problems("\"prune.ratio\" = [0.1]\nexclude = [{ \"prune.ratio\" = 0.2 }]"),
        ["this exclusion matches no variant"]
    );
    assert_eq!(
        problems("\"prune.ratio\" = 0.5"),
        ["`prune.ratio` is swept over what is not a list"]
    );
    assert_eq!(
        problems("\"prune.ratio\" = []"),
        ["`prune.ratio` is swept over an empty list"]
    );
    assert_eq!(
        problems("\"run.seed\" = [1, 2]"),
        ["run settings cannot be swept"]
    );
    assert!(
        problems("\"prune.ratio\" = [0.5, 0.5]")[0]
            .starts_with("two variants of the sweep are the same")
    );
    assert_eq!(
        problems("\"prune.ratio\" = [0.25, 0.5]\n\"prune[1].ratio\" = [0.75]"),
        ["`prune[1].ratio` is an option that `prune.ratio` sweeps too"]
    );
}

test!(set_replaces_the_sweep_of_the_same_key);
fn set_replaces_the_sweep_of_the_same_key() {
    let swept = format!(
        "{WHOLE}[sweep]\n\"prune.ratio\" = [0.1, 0.5]\n\"aggregate.with\" = [\"sum\", \"max\"]\n\
         exclude = [{{ \"prune.ratio\" = 0.5, \"aggregate.with\" = \"max\" }}]"
    );
    let ids_of = |set: &[&str]| {
        ids(&plan(&swept, set).unwrap())
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids_of(&[]).len(), 3);
    assert_eq!(
        ids_of(&["prune.ratio=0.3"]),
        ids_of(&["prune[1].ratio=0.3"]),
        "with one `prune`, both name the same option"
    );
    assert_eq!(ids_of(&["prune.ratio=0.3"]).len(), 2);
    assert_eq!(
        ids_of(&["prune.ratio=0.5"]).len(),
        1,
        "exclusions also apply to values from the command line"
    );
}

test!(variant_id_depends_only_on_options_and_seed);
fn variant_id_depends_only_on_options_and_seed() {
    let id = |set: &[&str]| plan(WHOLE, set).unwrap().variants[VariantId(0)].id.clone();
    let base = id(&[]);
    assert!(base.starts_with("base-"));
    assert_eq!(
        base,
        id(&["run.threads=1", "run.results=elsewhere", "prune.ratio=0.25"])
    );
    for set in ["run.seed=7", "prune.ratio=0.3", "importance.samples=11"] {
        assert_ne!(base, id(&[set]), "{set}");
    }
    // `--set` replaces the sweep of the same option.
    let swept = format!("{WHOLE}[sweep]\n\"prune.ratio\" = [0.1, 0.5]");
    assert_eq!(
        plan(&swept, &["prune.ratio=0.3"]).unwrap().variants.len(),
        1
    );
}

test!(repeat_expands_into_its_stages);
fn repeat_expands_into_its_stages() {
    let inner = "[[stage.stage]]\ntype = \"dependencies\"\n\
                 [[stage.stage]]\ntype = \"importance\"\nmethod = \"l1\"\n\
                 [[stage.stage]]\ntype = \"aggregate\"\n\
                 [[stage.stage]]\ntype = \"prune\"\nratio = 0.5\n";
    let text = format!(
        "[[stage]]\ntype = \"load\"\nmodel = \"m\"\n\
         [[stage]]\ntype = \"repeat\"\ntimes = 3\n{inner}"
    );
    let three_times = plan(&text, &[]).unwrap();
    let variant = &three_times.variants[VariantId(0)];
    assert_eq!(variant.steps.len(), 1 + 3 * 4);
    let iterations: Vec<u32> = variant
        .steps
        .iter()
        .filter_map(|step| step.repeat_position.map(|position| position.iteration))
        .collect();
    assert_eq!(iterations, [1, 2, 3]);
    // The variant's own file holds the `repeat` as it was written.
    let again = plan(&three_times.variant_toml(variant).unwrap(), &[]).unwrap();
    assert_eq!(
        again.variants[VariantId(0)].id.split('-').next_back(),
        variant.id.split('-').next_back()
    );
    assert_eq!(
        plan(&text.replace("times = 3", "times = 0"), &[])
            .err()
            .unwrap(),
        ["the list cannot run 0 times"]
    );
    let mistakes = plan(
        &text
            .replace("times = 3", "")
            .replace("ratio = 0.5", "ratio = 5"),
        &[],
    )
    .err()
    .unwrap();
    assert_eq!(
        mistakes,
        [
            "`repeat` lacks the key `times`",
            "a ratio of 5 prunes nothing or everything"
        ]
    );
}

test!(five_hundred_variants_share_equal_prefixes);
fn five_hundred_variants_share_equal_prefixes() {
    let ratios: Vec<String> = (1..=125)
        .map(|i| format!("{:.3}", f64::from(i) * 0.005))
        .collect();
    let sweep = format!(
        "{WHOLE}[sweep]\n\"aggregate.with\" = [\"sum\", \"max\", \"mean\", \"last\"]\n\
         \"prune.ratio\" = [{}]",
        ratios.join(", ")
    );
    let plan = plan(&sweep, &[]).unwrap();
    assert_eq!(
        (plan.variants.len(), plan.stage_run_counts()),
        (500, (3 + 4 + 2 * 500, 3000))
    );
}

test!(settings_report_the_layer_they_came_from);
fn settings_report_the_layer_they_came_from() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "layers.toml",
        format!("[run]\nseed = 1\nthreads = 1\n{WHOLE}"),
    );
    let plan = |set: &[&str]| {
        let mut command = sandbox.command(&["plan", "layers.toml", "--format", "json"]);
        command
            .args(set)
            .env("RUNNER_SEED", "2")
            .env("RUNNER_CACHE", "2024")
            .env("RUNNER_NAME", "a CI system's own");
        serde_json::from_slice::<serde_json::Value>(&command.output().unwrap().stdout).unwrap()
    };
    let with_environment = plan(&[]);
    assert_eq!(
        (
            &with_environment["settings"]["seed"],
            &with_environment["settings"]["threads"]
        ),
        (&2.into(), &1.into())
    );
    let provenance = &with_environment["provenance"];
    assert_eq!(
        (provenance["seed"].as_str(), provenance["threads"].as_str()),
        (Some("RUNNER_SEED"), Some("the pipeline"))
    );
    assert_eq!(provenance["results"], "default");
    assert_eq!(
        with_environment["settings"]["cache"], "2024",
        "a path is read as text even if it looks like a number"
    );
    let with_set = plan(&["--set", "run.seed=3"]);
    assert_eq!(with_set["settings"]["seed"], 3);
    assert_eq!(with_set["provenance"]["seed"], "--set run.seed=3");
    let mut command = sandbox.command(&["check", "layers.toml"]);
    let output = command.env("RUNNER_SEED", "many").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("the environment variable RUNNER_SEED is wrong")
    );
}

test!(plan_prints_a_tree);
fn plan_prints_a_tree() {
    let sandbox = Sandbox::new();
    let sweep = "[sweep]\n\"aggregate.with\" = [\"sum\", \"max\"]\n\"prune.ratio\" = [0.25, 0.5]\n";
    sandbox.write("sweep.toml", format!("{WHOLE}{sweep}"));
    let ran = sandbox.run(&["plan", "sweep.toml", "--set", "run.threads=2"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    insta::assert_snapshot!("plan", ran.out);
    let ran = sandbox.run(&["check", "sweep.toml"]);
    assert_eq!(
        ran.out,
        "sweep.toml is in order: 4 variants, 13 stages (24 without sharing)\n"
    );
}

test!(invalid_memory_size_is_rejected_with_its_position);
fn invalid_memory_size_is_rejected_with_its_position() {
    let sandbox = Sandbox::new();
    for (value, message) in [
        ("\"lots\"", "a size such as"),
        ("-1", "a size such as"),
        ("true", "a size such as"),
    ] {
        sandbox.write(
            "memory.toml",
            format!(
                "[run]\nmemory = {value}\n\n[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n"
            ),
        );
        let ran = sandbox.run(&["check", "memory.toml"]);
        assert!(
            ran.code == 2 && ran.err.contains(message) && ran.err.contains("memory.toml:2"),
            "{value}: {}",
            ran.err
        );
    }
    for value in ["\"auto\"", "\"4 GiB\"", "4000000000"] {
        sandbox.write(
            "memory.toml",
            format!(
                "[run]\nmemory = {value}\n\n[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n"
            ),
        );
        let ran = sandbox.run(&["check", "memory.toml"]);
        assert_eq!(ran.code, 0, "{value}: {}", ran.err);
    }
}
