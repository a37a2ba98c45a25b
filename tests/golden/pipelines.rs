//! LLM-Pruner's prunings end to end: pipelines as a user writes them, run by the program, and their
//! tables read back. One sweep for each model and grouping; every one-step entry of the golden file
//! is a variant of it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use serde_json::{Value, json};

use crate::support::{self, Sandbox, shared, table, text};

/// A working directory with a model, its calibration rows and its evaluation text; and the golden
/// file of the model.
fn sandbox(name: &str) -> (Sandbox, Value) {
    let model = shared(&format!("models/{name}"));
    let golden = support::json(&shared(&format!("golden/prune_{name}.json")));
    let sandbox = Sandbox::new();
    support::copy_folder(&model, &sandbox.path("model"));
    let row = |ids: &Value| json!({ "ids": ids }).to_string();
    let calibration: Vec<String> = golden["calibration"]["A"]
        .as_array()
        .unwrap()
        .iter()
        .map(row)
        .collect();
    sandbox.write("calibration.jsonl", calibration.join("\n"));
    sandbox.write("stream.jsonl", row(&golden["ppl_stream"]));
    (sandbox, golden)
}

/// The swept options of a variant, in the order of [`KEYS`].
type SweptOptions = [Value; 9];

const KEYS: [&str; 9] = [
    "importance.method",
    "importance.taylor",
    "importance.fisher",
    "importance.compat",
    "aggregate.with",
    "aggregate.level",
    "prune.ratio",
    "prune.scope",
    "prune.compat",
];

/// The `method` and `taylor` options for a name in the golden files.
fn method(name: &str) -> (&str, &'static str) {
    match name {
        "vectorize" => ("taylor", "vector"),
        "param_first" => ("taylor", "element-first"),
        "param_second" => ("taylor", "element-second"),
        "param_mix" => ("taylor", "element-mixed"),
        magnitude => (magnitude, "element-first"),
    }
}

/// The options of an entry of LLM-Pruner's prunings; `None` for `random`, whose scores are random
/// numbers of the reference.
fn reference_options(entry: &Value) -> Option<SweptOptions> {
    let parts: Vec<&str> = entry["scores"].as_str()?.split('/').collect();
    let (name, with) = match parts[..] {
        ["taylor", form, with] => (form, with),
        [method, with] => (method, with),
        _ => return None,
    };
    let compat = if entry["variant"] == "div" {
        "corrected"
    } else {
        "reference"
    };
    // `second` exists only under `compat = "reference"`.
    if compat == "corrected" && with == "second" {
        return None;
    }
    let scope = if entry["global"] == true {
        "global"
    } else {
        "local"
    };
    let ((method, form), with) = (method(name), with.replace("prod", "product"));
    Some([
        json!(method),
        json!(form),
        json!("mean"),
        json!(compat),
        json!(with),
        json!("channel"),
        entry["ratio"].clone(),
        json!(scope),
        json!("reference"),
    ])
}

/// The options of an entry of the paper's prunings.
fn paper_options(entry: &Value) -> Option<SweptOptions> {
    let parts: Vec<&str> = entry["scores"].as_str()?.split('/').collect();
    let (method, form, fisher, compat, with, level) = match parts[..] {
        ["last_only", name] => (
            method(name).0,
            method(name).1,
            "mean",
            "corrected",
            "last",
            "channel",
        ),
        ["last_only", name, fold] => (
            method(name).0,
            method(name).1,
            "mean",
            if fold == "mod" {
                "reference"
            } else {
                "corrected"
            },
            "last",
            "channel",
        ),
        [table, equation, group] => {
            let form = if equation == "eq3" {
                "vector-mixed"
            } else {
                "element-mixed"
            };
            let fisher = if equation == "eq5_no_mean" {
                "sum"
            } else {
                "mean"
            };
            let with = if group == "group_prod" {
                "product"
            } else {
                group.trim_start_matches("group_")
            };
            (
                "taylor",
                form,
                fisher,
                "corrected",
                with,
                if table == "structures" {
                    "unit"
                } else {
                    "channel"
                },
            )
        }
        _ => return None,
    };
    Some([
        json!(method),
        json!(form),
        json!(fisher),
        json!(compat),
        json!(with),
        json!(level),
        entry["ratio"].clone(),
        json!("local"),
        json!("reference"),
    ])
}

/// The smallest score difference between a removed and a kept unit, over the groups where it is not
/// negative.
fn margin(entry: &Value) -> f64 {
    let margins = entry["margin"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, margin)| margin.as_f64());
    margins.filter(|margin| *margin >= 0.0).fold(1.0, f64::min)
}

/// The removed units by group and layer, from a variant's `prune.parquet`.
fn removed_units(sandbox: &Sandbox, folder: &str) -> BTreeMap<(String, u32), BTreeSet<u32>> {
    let rows = table(&sandbox.path(&format!("{folder}/prune.parquet")));
    let (groups, kept) = (text(&rows["group"]), rows["kept"].as_boolean());
    let number = |name: &str| rows[name].as_primitive::<UInt32Type>().values().to_vec();
    let (layers, units) = (number("layer"), number("unit"));
    let mut all: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for row in (0..rows.num_rows()).filter(|&row| !kept.value(row)) {
        all.entry((groups[row].clone(), layers[row]))
            .or_default()
            .insert(units[row]);
    }
    all
}

/// The removed units by group and layer, from the golden file.
fn expected_removed_units(entry: &Value) -> BTreeMap<(String, u32), BTreeSet<u32>> {
    let mut all = BTreeMap::new();
    for (layer, kinds) in entry["removed"].as_object().unwrap() {
        if layer == "hidden" {
            all.insert(
                ("hidden".to_owned(), 0),
                support::numbers(kinds).into_iter().collect(),
            );
            continue;
        }
        for (kind, group) in [("attn", "attention"), ("mlp", "mlp")] {
            let units: Vec<u32> = kinds.get(kind).map(support::numbers).unwrap_or_default();
            all.insert(
                (group.to_owned(), layer.parse().unwrap()),
                units.into_iter().collect(),
            );
        }
    }
    all.retain(|_, units: &mut BTreeSet<u32>| !units.is_empty());
    all
}

fn pipeline(dependencies: &str, rest: &str) -> String {
    format!(
        r#"
[[stage]]
type = "load"
model = "model"
[[stage]]
type = "evaluate"
corpora = ["stream.jsonl"]
window = 128
[[stage]]
type = "dependencies"
{dependencies}
{rest}
[[stage]]
type = "evaluate"
corpora = ["stream.jsonl"]
window = 128
"#
    )
}

/// The stages from `importance` to `prune`.
const SCORE_AND_PRUNE: &str = r#"
[[stage]]
type = "importance"
method = "taylor"
corpus = "calibration.jsonl"
sample = "file"
samples = 1000
[[stage]]
type = "aggregate"
[[stage]]
type = "prune"
ratio = 0.5
"#;

/// Runs all entries as one sweep and compares the removed units, the number of parameters and the
/// perplexity.
fn compare(
    sandbox: &Sandbox,
    golden: &Value,
    stem: &str,
    grouping: &str,
    entries: &[(&Value, SweptOptions)],
) {
    let settings = &golden["settings"];
    let layers = match grouping {
        "block" => format!(
            "attention_layers = {}\nmlp_layers = {}",
            settings["attention_layers"], settings["mlp_layers"]
        ),
        _ => String::new(),
    };
    let axis = |key: usize| {
        let values: Vec<String> = entries
            .iter()
            .map(|(_, options)| options[key].to_string())
            .collect();
        format!("\"{}\" = [{}]", KEYS[key], values.join(", "))
    };
    let sweep: Vec<String> = (0..KEYS.len()).map(axis).collect();
    let dependencies = format!("grouping = \"{grouping}\"\n{layers}");
    let body = format!(
        "{}\n[sweep]\nzip = [{{ {} }}]\n",
        pipeline(&dependencies, SCORE_AND_PRUNE),
        sweep.join(", ")
    );
    sandbox.write(&format!("{stem}.toml"), body);
    let ran = sandbox.run(&[&format!("{stem}.toml")]);
    assert_eq!(
        ran.code,
        0,
        "{}",
        ran.err.chars().take(3000).collect::<String>()
    );
    let rows = table(&sandbox.path(&format!("results/{stem}/variants.parquet")));
    assert_eq!(rows.num_rows(), entries.len());
    let (ids, perplexity) = (
        text(&rows["variant"]),
        rows["stream.perplexity"].as_primitive::<Float64Type>(),
    );
    let dense = rows["stream.perplexity.dense"]
        .as_primitive::<Float64Type>()
        .value(0);
    let mut largest = (dense / golden["dense"]["ppl"].as_f64().unwrap() - 1.0).abs();
    for (row, (entry, options)) in entries.iter().enumerate() {
        assert_eq!(
            removed_units(sandbox, &format!("results/{stem}/{}", ids[row])),
            expected_removed_units(entry),
            "{stem} {options:?}"
        );
        let difference = (perplexity.value(row) / entry["ppl"].as_f64().unwrap() - 1.0).abs();
        assert!(difference < 1e-5, "{stem} {options:?}: {difference:.1e}");
        largest = largest.max(difference);
        // The reference unties a tied head under channel-wise pruning and counts it twice.
        if grouping == "block" {
            let params = rows["params_after"].as_primitive::<UInt64Type>().value(row);
            assert_eq!(Some(params), entry["params"].as_u64(), "{stem} {options:?}");
        }
    }
    note!(
        "{stem}: {} variants equal, largest relative difference of a perplexity {largest:.1e}",
        entries.len()
    );
}

/// The entries whose selection does not depend on float32 rounding, each combination of options
/// once.
fn entries(
    all: &Value,
    is_selected: impl Fn(&Value) -> bool,
    options_of: impl Fn(&Value) -> Option<SweptOptions>,
) -> Vec<(&Value, SweptOptions)> {
    let mut seen = BTreeSet::new();
    let is_unambiguous = |entry: &&Value| {
        entry["comparable"] != false && margin(entry) >= 3e-5 && is_selected(entry)
    };
    let entries = all
        .as_array()
        .unwrap()
        .iter()
        .filter(is_unambiguous)
        .filter_map(|entry| Some((entry, options_of(entry)?)));
    entries
        .filter(|(_, options)| seen.insert(format!("{options:?}")))
        .collect()
}

test!(llm_pruner_prunings_end_to_end, needs = super::LLM_PRUNER);
fn llm_pruner_prunings_end_to_end() {
    for name in ["stories260K", "mha_tiny"] {
        let (sandbox, golden) = sandbox(name);
        for grouping in ["block", "channel"] {
            let is_selected =
                |entry: &Value| entry["granularity"] == grouping && entry["iterative_steps"] == 1;
            let entries = entries(&golden["prunings"], is_selected, reference_options);
            compare(
                &sandbox,
                &golden,
                &format!("{name}_{grouping}"),
                grouping,
                &entries,
            );
        }
    }
}

test!(paper_prunings_end_to_end, needs = super::LLM_PRUNER);
fn paper_prunings_end_to_end() {
    for name in ["stories260K", "mha_tiny"] {
        let (sandbox, golden) = sandbox(name);
        let paper = support::json(&shared(&format!("golden/paper_{name}.json")));
        let entries = entries(&paper["prunings"], |_| true, paper_options);
        compare(
            &sandbox,
            &golden,
            &format!("{name}_paper"),
            "block",
            &entries,
        );
    }
}

test!(first_layers_end_to_end, needs = super::LLM_PRUNER);
fn first_layers_end_to_end() {
    for name in ["stories260K", "mha_tiny"] {
        let (sandbox, golden) = sandbox(name);
        let entries = golden["layer_wise"].as_array().unwrap();
        let layers = entries.len() as f64 + 1.0;
        // A little less than the whole share, because rounding in the last bit could remove one
        // layer more.
        let ratios: Vec<f64> = entries
            .iter()
            .map(|entry| 1.0 - entry["keep_first"].as_f64().unwrap() / layers - 1e-9)
            .collect();
        let rest = "[[stage]]\ntype = \"importance\"\nmethod = \"first\"\n\
                    [[stage]]\ntype = \"aggregate\"\n\
                    [[stage]]\ntype = \"prune\"\nratio = 0.5\n";
        let body = pipeline("grouping = \"layer\"", rest);
        sandbox.write(
            "layers.toml",
            format!("{body}\n[sweep]\n\"prune.ratio\" = {ratios:?}\n"),
        );
        let ran = sandbox.run(&["layers.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let rows = table(&sandbox.path("results/layers/variants.parquet"));
        for (row, entry) in entries.iter().enumerate() {
            assert_eq!(
                Some(rows["params_after"].as_primitive::<UInt64Type>().value(row)),
                entry["params"].as_u64(),
                "{entry}"
            );
            let found = rows["stream.perplexity"]
                .as_primitive::<Float64Type>()
                .value(row);
            assert!(
                (found / entry["ppl"].as_f64().unwrap() - 1.0).abs() < 1e-5,
                "{found} {entry}"
            );
        }
    }
}

test!(
    cases_where_llm_pruner_fails_give_a_result_and_a_warning,
    needs = super::LLM_PRUNER
);
/// Where the reference raises, or leaves a model that cannot run, this program gives a valid result
/// and a warning.
fn cases_where_llm_pruner_fails_give_a_result_and_a_warning() {
    let (sandbox, golden) = sandbox("mha_tiny");
    let settings = &golden["settings"];
    let layers = format!(
        "attention_layers = {}\nmlp_layers = {}",
        settings["attention_layers"], settings["mlp_layers"]
    );
    // Less than one head: the reference raises. Here the heads stay and the MLP is pruned
    // (`skip_empty`).
    let body = pipeline(&layers, SCORE_AND_PRUNE)
        .replace("ratio = 0.5", "ratio = 0.1\ncompat = \"reference\"");
    sandbox.write("little.toml", body);
    let ran = sandbox.run(&["little.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("less than one head"), "{}", ran.err);
    let folder = sandbox.variant("little", "base-");
    let skipped = golden["prunings"].as_array().unwrap().iter().find(|entry| {
        entry["variant"] == "skip_empty"
            && entry["iterative_steps"] == 1
            && entry["scores"] == "taylor/param_first/sum"
    });
    let skipped = skipped.expect("the golden file has this case");
    assert_eq!(skipped["ratio"], 0.1);
    assert_eq!(
        removed_units(&sandbox, &folder),
        expected_removed_units(skipped)
    );

    // Two steps with grouped queries: the reference leaves queries and keys whose widths do not
    // match.
    let (sandbox, golden) = self::sandbox("stories260K");
    let settings = &golden["settings"];
    let layers = format!(
        "attention_layers = {}\nmlp_layers = {}",
        settings["attention_layers"], settings["mlp_layers"]
    );
    let twice = format!(
        "[[stage]]\ntype = \"repeat\"\ntimes = 2\n\
         [[stage.stage]]\ntype = \"dependencies\"\n{layers}\n{}",
        SCORE_AND_PRUNE.replace("[[stage]]", "[[stage.stage]]")
    );
    let body = pipeline(&layers, &twice);
    sandbox.write("twice.toml", body);
    let ran = sandbox.run(&["twice.toml", "--set", "prune.compat=reference"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err
            .contains("separates grouped queries from their keys"),
        "{}",
        ran.err
    );
    // Channel-wise with a second-order form: the reference has no squared gradients and raises.
    let second = SCORE_AND_PRUNE.replace(
        "method = \"taylor\"",
        "method = \"taylor\"\ntaylor = \"element-second\"\ncompat = \"reference\"",
    );
    sandbox.write("channels.toml", pipeline("grouping = \"channel\"", &second));
    let ran = sandbox.run(&["channels.toml", "--set", "prune.ratio=0.25"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("keeps no squared gradients"),
        "{}",
        ran.err
    );
    let intended = golden["prunings"].as_array().unwrap().iter().find(|entry| {
        entry["variant"] == "div"
            && entry["iterative_steps"] == 2
            && entry["ratio"] == 0.5
            && entry["global"] == false
    });
    let rows = table(&sandbox.path("results/twice/variants.parquet"));
    let params = rows["params_after"].as_primitive::<UInt64Type>().value(0);
    assert_eq!(
        Some(params),
        intended.expect("the golden file has this case")["params"].as_u64()
    );
}
