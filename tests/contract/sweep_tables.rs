//! The tables of a sweep, from evaluation tables that the tests write: paired differences, chance,
//! and generated texts side by side.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use secateur::plan::check::{Overrides, check};
use secateur::plan::ids::VariantId;
use secateur::report::merge::merge;
use secateur::report::shape::{StepsByModel, SweepManifest, VariantDescription};
use secateur::report::{VariantSummary, read_reports, write_report_tables};
use secateur::results::{VariantManifest, VariantStatus};
use secateur_store::tables::{Table, TablePart, write_parts};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::support::{Sandbox, chain, columns, json, table, text};

/// A row of `evaluate.parquet`.
#[derive(Clone, Serialize, Deserialize)]
struct EvaluateRow {
    task: String,
    split: String,
    metric: String,
    value: f64,
    stderr: Option<f64>,
    n: u64,
    protocol: String,
    chance: Option<f64>,
    majority: Option<f64>,
    truncated: u64,
    oversized: u64,
}

/// A row of `evaluate.parquet` as earlier versions wrote it.
#[derive(Serialize, Deserialize)]
struct OldEvaluateRow {
    task: String,
    split: String,
    metric: String,
    value: f64,
    stderr: Option<f64>,
    n: u64,
}

/// A row of `evaluate_documents.parquet`.
#[derive(Serialize, Deserialize)]
struct DocumentRow {
    task: String,
    metric: String,
    doc: u64,
    value: f64,
}

/// A row of `generate.parquet`.
#[derive(Serialize, Deserialize)]
struct GenerateRow {
    prompt: u32,
    input: String,
    output: String,
    ids: Vec<u32>,
    finished: bool,
}

/// The measurement of one metric at one step: step, task, metric, (document, value) pairs, chance.
type Measured<'a> = (u32, &'a str, &'a str, &'a [(u64, f64)], Option<f64>);

/// The description of a variant whose dense model is measured at steps 1 and 2, the pruned one at
/// 6, the final one at 8 and 9.
fn description(id: &str) -> VariantDescription {
    let steps = StepsByModel {
        dense: vec![1, 2],
        pruned: vec![6],
        last: vec![8, 9],
    };
    VariantDescription {
        id: id.to_owned(),
        swept: vec![("prune.ratio".to_owned(), 0.5.into())],
        evaluate: steps.clone(),
        generate: steps,
    }
}

fn summary_of(folder: &Path, id: &str) -> VariantSummary {
    VariantSummary::new(
        description(id),
        VariantStatus::Succeeded,
        None,
        folder.join(id),
    )
}

/// Writes the tables of the sweep, and returns them as text of 80 characters.
fn write_summary(folder: &Path, variants: &[VariantSummary]) -> String {
    let report = write_report_tables(folder, variants).unwrap();
    report.to_text(80).unwrap()
}

/// The tables of a results folder as text.
fn read_summary(folder: &Path) -> String {
    read_reports(&[folder.to_owned()]).unwrap()[0]
        .to_text(80)
        .unwrap()
}

/// The tables of a results folder as JSON.
fn read_json(folder: &Path) -> serde_json::Value {
    read_reports(&[folder.to_owned()]).unwrap()[0].to_json()
}

/// Writes a table of a variant, step by step.
fn write_table<R: Serialize + DeserializeOwned>(
    folder: &Path,
    id: &str,
    name: &str,
    steps: Vec<(u32, Vec<R>)>,
) {
    let part = |(step, rows): &(u32, Vec<R>)| TablePart {
        step: *step,
        stage: name.to_owned(),
        table: Table::from_rows(name, rows).unwrap(),
    };
    let parts: Vec<TablePart> = steps.iter().map(part).collect();
    std::fs::create_dir_all(folder.join(id)).unwrap();
    write_parts(
        &folder.join(id).join(format!("{name}.parquet")),
        name,
        id,
        &parts.iter().collect::<Vec<_>>(),
    )
    .unwrap();
}

/// The row of a measurement: its value is the mean over the documents.
fn evaluate_row((_, task, metric, documents, chance): &Measured) -> EvaluateRow {
    let n = documents.len() as f64;
    let value = documents.iter().map(|(_, value)| value).sum::<f64>() / n;
    // The standard error of a mean p of n zeros and ones: √(p (1 − p) / (n − 1)).
    let stderr = chance.map(|_| (value * (1.0 - value) / (n - 1.0)).sqrt());
    let [task, metric, split] = [*task, *metric, "test"].map(str::to_owned);
    let (protocol, n) = ("harness".to_owned(), documents.len() as u64);
    EvaluateRow {
        task,
        split,
        metric,
        value,
        stderr,
        n,
        protocol,
        chance: *chance,
        majority: None,
        truncated: 0,
        oversized: 0,
    }
}

fn document_row((_, task, metric, ..): &Measured, doc: u64, value: f64) -> DocumentRow {
    DocumentRow {
        task: (*task).to_owned(),
        metric: (*metric).to_owned(),
        doc,
        value,
    }
}

/// Writes both tables of `evaluate`.
fn write_measurements(folder: &Path, id: &str, measured: &[Measured]) {
    write_table(
        folder,
        id,
        "evaluate",
        measured
            .iter()
            .map(|measurement| (measurement.0, vec![evaluate_row(measurement)]))
            .collect(),
    );
    let document_rows = |measurement: &Measured| {
        measurement
            .3
            .iter()
            .map(|&(doc, value)| document_row(measurement, doc, value))
            .collect::<Vec<_>>()
    };
    write_table(
        folder,
        id,
        "evaluate_documents",
        measured
            .iter()
            .map(|measurement| (measurement.0, document_rows(measurement)))
            .collect(),
    );
}

fn generation(prompt: u32, input: &str, output: &str) -> GenerateRow {
    let [input, output] = [input, output].map(str::to_owned);
    GenerateRow {
        prompt,
        input,
        output,
        ids: vec![1, 2],
        finished: true,
    }
}

fn number(table: &RecordBatch, name: &str, row: usize) -> Option<f64> {
    let column = table[name].as_primitive::<Float64Type>();
    column.is_valid(row).then(|| column.value(row))
}

/// The values of the documents 0, 1, 2, …
fn numbered(values: &[f64]) -> Vec<(u64, f64)> {
    (0..).zip(values.iter().copied()).collect()
}

test!(differences_have_paired_standard_errors);
fn differences_have_paired_standard_errors() {
    let folder = tempfile::tempdir().unwrap();
    let [dense, last] =
        [[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]].map(|values| numbered(&values));
    // Values that must not be reported.
    let decoy = numbered(&[0.0, 0.0, 1.0, 0.0]);
    let [perplexity, later] =
        [[10.0, 12.0, 14.0], [11.0, 15.0, 16.0]].map(|values| numbered(&values));
    let reversed: Vec<(u64, f64)> = later.iter().rev().copied().collect();
    let single = numbered(&[1.0]);
    let other_documents: Vec<(u64, f64)> =
        dense.iter().map(|(doc, value)| (doc + 1, *value)).collect();
    let measured: &[Measured] = &[
        (1, "a", "acc", &dense, Some(0.5)),
        (1, "text", "perplexity", &perplexity, None),
        (1, "single", "acc", &single, None),
        (1, "moved", "acc", &dense, Some(0.25)),
        (1, "more", "acc", &dense[..3], Some(0.25)),
        (1, "gone", "acc", &dense, Some(0.25)),
        // Of the dense model the first measurement counts; of the final model the last one that has
        // the metric.
        (2, "a", "acc", &decoy, Some(0.5)),
        (6, "a", "acc", &decoy, Some(0.5)),
        (8, "a", "acc", &decoy, Some(0.5)),
        (8, "text", "perplexity", &reversed, None),
        (8, "single", "acc", &single, None),
        (8, "moved", "acc", &other_documents, Some(0.25)),
        (8, "more", "acc", &dense, Some(0.25)),
        (8, "new", "acc", &dense, Some(0.25)),
        (9, "a", "acc", &last, Some(0.5)),
    ];
    write_measurements(folder.path(), "v", measured);
    write_report_tables(folder.path(), &[summary_of(folder.path(), "v")]).unwrap();
    let rows = table(&folder.path().join("variants.parquet"));
    let value_of = |name: &str| number(&rows, name, 0);
    // The differences are 0, −1, 0, 0: mean −1/4, sample variance (3/16 + 9/16) / 3 = 1/4, and
    // √(1/4 / 4) = 1/4.
    assert_eq!(
        [
            value_of("a.acc"),
            value_of("a.acc.dense"),
            value_of("a.acc.delta")
        ],
        [Some(0.5), Some(0.75), Some(-0.25)]
    );
    assert_eq!(
        (value_of("a.acc.delta_stderr"), value_of("a.acc.chance")),
        (Some(0.25), Some(0.5))
    );
    assert_eq!(
        [value_of("a.acc.dense_stderr"), value_of("a.acc.stderr")],
        [Some(0.25), Some((0.25f64 / 3.0).sqrt())]
    );
    // The differences are 1, 3, 2: mean 2, sample variance 1, standard error √(1 / 3).
    assert_eq!(
        (
            value_of("text.perplexity.delta"),
            value_of("text.perplexity.chance")
        ),
        (Some(2.0), None)
    );
    assert!(
        (value_of("text.perplexity.delta_stderr").unwrap() - (1.0f64 / 3.0).sqrt()).abs() < 1e-15
    );
    for (metric, has_delta) in [
        ("single", true),
        ("moved", true),
        ("more", true),
        ("gone", false),
        ("new", false),
    ] {
        assert_eq!(
            value_of(&format!("{metric}.acc.delta")).is_some(),
            has_delta,
            "{metric}"
        );
        assert_eq!(
            value_of(&format!("{metric}.acc.delta_stderr")),
            None,
            "{metric}: no pairs"
        );
    }
    assert_eq!(
        (value_of("new.acc.chance"), value_of("gone.acc.chance")),
        (Some(0.25), Some(0.25))
    );

    // Without the table of documents there is a difference, but no standard error.
    std::fs::remove_file(folder.path().join("v/evaluate_documents.parquet")).unwrap();
    write_report_tables(folder.path(), &[summary_of(folder.path(), "v")]).unwrap();
    let rows = table(&folder.path().join("variants.parquet"));
    assert_eq!(
        (
            number(&rows, "a.acc.delta", 0),
            number(&rows, "a.acc.delta_stderr", 0)
        ),
        (Some(-0.25), None)
    );
}

test!(results_of_earlier_versions_are_read);
fn results_of_earlier_versions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let row = |value: f64| {
        let [task, split, metric] = ["a", "test", "acc"].map(str::to_owned);
        OldEvaluateRow {
            task,
            split,
            metric,
            value,
            stderr: Some(0.1),
            n: 20,
        }
    };
    write_table(
        folder.path(),
        "v",
        "evaluate",
        vec![(1, vec![row(0.75)]), (8, vec![row(0.5)])],
    );
    let summary = write_summary(folder.path(), &[summary_of(folder.path(), "v")]);
    let rows = table(&folder.path().join("variants.parquet"));
    let value_of = |name: &str| number(&rows, name, 0);
    assert_eq!(
        (
            value_of("a.acc.delta"),
            value_of("a.acc.delta_stderr"),
            value_of("a.acc.chance")
        ),
        (Some(-0.25), None, None)
    );
    let expected = "                 a.acc, %
variant  ratio   final  difference
───────  ─────   ─────  ──────────
dense             75.0
v        0.5      50.0       -25.0

difference: final minus dense (of % in points)
";
    assert_eq!(summary, expected);
    // An older table: without the columns that were added since.
    let kept = (0..rows.num_columns()).filter(|&column| {
        let name = rows.schema().field(column).name().clone();
        ![".delta_stderr", ".dense_stderr", ".chance", ".majority"]
            .iter()
            .any(|new| name.ends_with(new))
    });
    let kept: Vec<usize> = kept.collect();
    assert_eq!(kept.len() + 4, rows.num_columns());
    let old = Table {
        name: "variants".to_owned(),
        rows: rows.project(&kept).unwrap(),
    };
    old.save(&folder.path().join("variants.parquet")).unwrap();
    assert_eq!(read_summary(folder.path()), summary);
    // An older list of the sweep's variants.
    let old =
        r#"{"variants": [{"id": "v", "swept": [], "dense": [1], "pruned": [], "last": [8]}]}"#;
    std::fs::write(folder.path().join("sweep.json"), old).unwrap();
    let read = SweepManifest::read(folder.path())
        .unwrap()
        .variants
        .remove(0);
    assert_eq!(
        (read.evaluate.last, read.generate),
        (vec![8], StepsByModel::default())
    );
}

test!(summary_shows_the_uncertainty_of_differences);
fn summary_shows_the_uncertainty_of_differences() {
    let folder = tempfile::tempdir().unwrap();
    let mut answers = vec![1.0; 100];
    answers[..20].fill(0.0);
    let dense = numbered(&answers);
    let text = numbered(&[10.0, 12.0, 14.0]);
    let half = numbered(&[[0.0; 50], [1.0; 50]].concat());
    let better = numbered(&[vec![0.0; 45], vec![1.0; 55]].concat());
    let other_documents: Vec<(u64, f64)> =
        half.iter().map(|(doc, value)| (doc + 1, *value)).collect();
    // A variant with `wrong_count` wrong answers of 100 in task a, and these values in tasks b and
    // t.
    let variant = |id: &str, wrong_count: usize, b: &[(u64, f64)], t: [f64; 3]| {
        let mut answers = vec![1.0; 100];
        answers[..wrong_count].fill(0.0);
        let (last, later) = (numbered(&answers), numbered(&t));
        let mut measured: Vec<Measured> = vec![
            (1, "a", "acc", &dense, Some(0.5)),
            (1, "b", "acc", &half, Some(0.5)),
            (1, "t", "word_perplexity", &text, None),
            (8, "a", "acc", &last, Some(0.5)),
            (8, "t", "word_perplexity", &later, None),
        ];
        if !b.is_empty() {
            measured.push((8, "b", "acc", b, Some(0.5)));
        }
        write_measurements(folder.path(), id, &measured);
        summary_of(folder.path(), id)
    };
    // With 42 of 100 wrong, 0.58 exceeds the chance of 0.5 by less than two standard errors of
    // 0.0496; with 39 wrong, 0.61 exceeds it by more.
    let variants = [
        variant("few", 21, &better, [11.0, 15.0, 16.0]),
        variant("many", 39, &other_documents, [110.0, 12.0, 14.0]),
        variant("guess", 42, &[], [10.0, 12.0, 14.0]),
    ];
    let summary = write_summary(folder.path(), &variants);
    let expected = "\
variant  ratio
───────  ─────
few      0.5
many     0.5
guess    0.5

          a.acc, %            b.acc, %             t.word_perplexity
variant   final  difference    final  difference     final       difference
───────   ─────  ──────────   ──────  ──────────   ───────  ───────────────
dense      80.0                ~50.0                12.000
chance     50.0                 50.0
few       *79.0   -1.0 ±1.0   *~55.0   +5.0 ±2.2    14.000   +2.000 ±0.577
many       61.0  -19.0 ±3.9    ~50.0   +0.0         45.333  +33.333 ±33.333
guess     ~58.0  -22.0 ±4.2        –               *12.000   +0.000 ±0.000

* the best of the variants with equal params
~ not above chance by two standard errors
difference: final minus dense (of % in points), ± its paired standard error
";
    assert_eq!(summary, expected);
    assert_eq!(read_summary(folder.path()), summary);
}

test!(values_below_the_majority_share_are_marked);
fn values_below_the_majority_share_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let answers = |right: usize| numbered(&[vec![1.0; right], vec![0.0; 100 - right]].concat());
    let row = |step: u32, right: usize| {
        let documents = answers(right);
        let measured: Measured = (step, "yes_no", "acc", &documents, Some(0.5));
        let row = EvaluateRow {
            majority: Some(0.62),
            ..evaluate_row(&measured)
        };
        (step, vec![row])
    };
    // √(0.65 · 0.35 / 99) = 0.048: 0.65 is above chance, and not above the majority share.
    for (id, right) in [("less", 65), ("more", 75)] {
        write_table(
            folder.path(),
            id,
            "evaluate",
            vec![row(1, 70), row(8, right)],
        );
    }
    let variants = ["less", "more"].map(|id| summary_of(folder.path(), id));
    let summary = write_summary(folder.path(), &variants);
    let rows = table(&folder.path().join("variants.parquet"));
    for row in 0..2 {
        assert_eq!(number(&rows, "yes_no.acc.majority", row), Some(0.62));
        assert_eq!(number(&rows, "yes_no.acc.chance", row), Some(0.5));
    }
    let is_marked = |name: &str| {
        let mut lines = summary.lines();
        lines
            .find(|line| line.starts_with(name))
            .unwrap()
            .contains('~')
    };
    assert!(is_marked("less") && !is_marked("more"), "{summary}");
    assert!(
        summary
            .lines()
            .any(|line| line.starts_with("majority") && line.contains("62.0"))
    );
}

test!(generated_texts_stand_side_by_side);
fn generated_texts_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let long = "word ".repeat(30);
    let steps = || {
        vec![
            (
                1,
                vec![
                    generation(0, "Once", "upon\na time"),
                    generation(1, "Two", "three"),
                ],
            ),
            (2, vec![generation(0, "Once", "a decoy")]),
            (6, vec![generation(0, "Once", "pruned")]),
            (
                8,
                vec![
                    generation(0, "Once", "a decoy"),
                    generation(1, "Two", &long),
                ],
            ),
            // Another input at the same index is another prompt.
            (
                9,
                vec![
                    generation(0, "Once", "last\u{1b}[2J"),
                    generation(1, "Three", "four"),
                ],
            ),
        ]
    };
    write_table(folder.path(), "v", "generate", steps());
    write_table(folder.path(), "w", "generate", steps());
    let none = VariantSummary::new(
        description("none"),
        VariantStatus::Failed,
        Some("it broke".to_owned()),
        folder.path().join("none"),
    );
    let mut failed = VariantSummary::new(
        description("w"),
        VariantStatus::Failed,
        Some("it broke".to_owned()),
        folder.path().join("w"),
    );
    let summary = write_summary(
        folder.path(),
        &[summary_of(folder.path(), "v"), failed.clone(), none],
    );
    let path = folder.path().join("generations.parquet");
    assert_eq!(
        columns(&path),
        [
            "variant: Utf8",
            "prompt: UInt32",
            "input: Utf8",
            "dense: Utf8",
            "pruned: Utf8",
            "output: Utf8"
        ]
    );
    let rows = table(&path);
    let column = |name: &str| text(&rows[name]);
    assert_eq!(column("variant"), ["v", "v", "v", "w", "w"]);
    assert_eq!(column("input"), ["Once", "Three", "Two", "Once", "Two"]);
    assert_eq!(
        column("dense"),
        ["upon\na time", "", "three", "upon\na time", "three"]
    );
    assert_eq!(column("pruned"), ["pruned", "", "", "pruned", ""]);
    assert_eq!(column("output"), ["last\u{1b}[2J", "four", &long, "", ""]);
    assert!(rows["dense"].is_null(1) && rows["output"].is_null(3));
    let first_characters = &long[..70];
    let shown = format!(
        "
prompt 0: Once
  dense  upon a time
  v      last [2J
  w      –

prompt 1: Three
  v      four

prompt 1: Two
  dense  three
  v      {first_characters}…
  w      –
"
    );
    assert!(summary.ends_with(&shown), "{summary}");
    let report = read_json(folder.path());
    let record = &report["generations"][1];
    assert_eq!(
        (record["prompt"].as_u64(), record["output"].as_str()),
        (Some(1), Some("four"))
    );
    assert!(record["dense"].is_null() && report["generations"].as_array().unwrap().len() == 5);
    assert_eq!(read_summary(folder.path()), summary);

    // The table is removed when no variant generates texts.
    failed.description.generate = StepsByModel::default();
    write_report_tables(folder.path(), &[failed]).unwrap();
    assert!(!path.exists());
    let report = read_json(folder.path());
    assert_eq!(report["generations"], serde_json::json!([]));
}

test!(summary_shows_only_the_first_prompts_and_variants);
fn summary_shows_only_the_first_prompts_and_variants() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..13).map(|i| format!("v{i}")).collect();
    for id in &ids {
        let prompts =
            (0..4).map(|i| generation(i, &format!("prompt of {i}"), &format!("{id} says {i}")));
        write_table(folder.path(), id, "generate", vec![(8, prompts.collect())]);
    }
    let variants: Vec<VariantSummary> =
        ids.iter().map(|id| summary_of(folder.path(), id)).collect();
    let summary = write_summary(folder.path(), &variants);
    assert!(
        summary.contains("prompt of 2") && !summary.contains("prompt of 3"),
        "{summary}"
    );
    assert!(
        summary.contains("v11 says 2") && !summary.contains("v12 says"),
        "{summary}"
    );
    assert!(
        !summary.contains("  dense  ")
            && summary.ends_with("\nall generated texts: generations.parquet\n"),
        "{summary}"
    );
    assert_eq!(
        table(&folder.path().join("generations.parquet")).num_rows(),
        13 * 4
    );
}

test!(merged_shards_give_the_same_tables);
fn merged_shards_give_the_same_tables() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = SweepManifest {
        variants: ["v", "w"].map(description).to_vec(),
        ..SweepManifest::default()
    };
    let write_results = |name: &str, ids: &[&str]| -> PathBuf {
        let pipeline_folder = folder.path().join(name).join("sweep");
        for id in ids {
            let [dense, last] = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]].map(|values| numbered(&values));
            write_measurements(
                &pipeline_folder,
                id,
                &[
                    (1, "a", "acc", &dense, Some(0.5)),
                    (8, "a", "acc", &last, Some(0.5)),
                ],
            );
            write_table(
                &pipeline_folder,
                id,
                "generate",
                vec![
                    (1, vec![generation(0, "Once", "upon")]),
                    (8, vec![generation(0, "Once", id)]),
                ],
            );
            let manifest_path = pipeline_folder.join(id).join("manifest.json");
            std::fs::write(manifest_path, manifest(id)).unwrap();
        }
        sweep.write(&pipeline_folder).unwrap();
        pipeline_folder
    };
    let unsharded = write_results("unsharded", &["v", "w"]);
    let summaries = ["v", "w"].map(|id| summary_of(&unsharded, id));
    write_report_tables(&unsharded, &summaries).unwrap();
    let shards = [write_results("one", &["v"]), write_results("two", &["w"])];
    let merged = merge(&shards, Some(&folder.path().join("joined"))).unwrap();
    let summary = merged[0].report.to_text(80).unwrap();
    assert!(
        merged[0].missing_variants.is_empty() && summary.contains("prompt 0: Once"),
        "{:?}",
        merged[0]
    );
    for name in ["variants.parquet", "generations.parquet"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(
            read(&unsharded) == read(&merged[0].report.folder),
            "{name} differs"
        );
    }
    let rows = table(&unsharded.join("generations.parquet"));
    assert_eq!(
        (text(&rows["dense"]), text(&rows["output"])),
        (
            vec!["upon".to_owned(); 2],
            vec!["v".to_owned(), "w".to_owned()]
        )
    );
}

/// The manifest of a complete variant.
fn manifest(id: &str) -> String {
    let manifest = serde_json::json!({
        "program": "secateur",
        "source": "",
        "pipeline": "",
        "variant": id,
        "seed": 42,
        "device": "cpu",
        "processor": "",
        "threads": 1,
        "dtype": "float32",
        "may_differ": "",
        "inputs": {},
        "status": "succeeded",
        "error": null,
        "stages": [],
        "outputs": {},
    });
    serde_json::from_value::<VariantManifest>(manifest.clone()).unwrap();
    manifest.to_string()
}

test!(evaluation_steps_are_assigned_to_dense_pruned_and_final_model);
fn evaluation_steps_are_assigned_to_dense_pruned_and_final_model() {
    let sandbox = chain();
    let plan = check(&sandbox.path("chain.toml"), &Overrides::default(), false).unwrap();
    let description = VariantDescription::from(&plan.variants[VariantId(0)]);
    let position = |index: usize| plan.variants[VariantId(0)].steps[index].position;
    let expected = StepsByModel {
        dense: vec![position(1)],
        pruned: vec![position(6)],
        last: vec![position(8)],
    };
    assert_eq!(
        (&description.evaluate, &description.generate),
        (&expected, &StepsByModel::default())
    );
    // The file keeps the key names of its first version.
    let sweep = SweepManifest {
        variants: vec![description.clone()],
        ..SweepManifest::default()
    };
    sweep.write(&sandbox.path("")).unwrap();
    let written = json(&sandbox.path("sweep.json"));
    assert_eq!(
        written["variants"][0]["pruned"],
        serde_json::json!(expected.pruned)
    );
    assert_eq!(SweepManifest::read(&sandbox.path("")).unwrap(), sweep);
}

test!(only_equal_evaluations_are_paired);
/// Evaluations with two windows before and after pruning: each is paired with the one of the same
/// window. Without an equal one there is no paired standard error.
fn only_equal_evaluations_are_paired() {
    let sandbox = Sandbox::new();
    let evaluate = |window: usize| {
        format!(
            "[[stage]]\ntype = \"evaluate\"\n\
             corpora = [\"datasets/tiny_world_heldout.jsonl\"]\nwindow = {window}\n"
        )
    };
    let prune = "[[stage]]\ntype = \"dependencies\"\n\
                 [[stage]]\ntype = \"importance\"\nmethod = \"l2\"\n\
                 [[stage]]\ntype = \"aggregate\"\n\
                 [[stage]]\ntype = \"prune\"\nratio = 0.25\n";
    let load = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n";
    for (name, after, is_paired) in [("both", vec![16, 64], true), ("another", vec![32], false)] {
        let after: String = after.into_iter().map(evaluate).collect();
        sandbox.write(
            &format!("{name}.toml"),
            [load, &evaluate(16), &evaluate(64), prune, &after].concat(),
        );
        let ran = sandbox.run(&[&format!("{name}.toml")]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let row = table(&sandbox.path(&format!("results/{name}/variants.parquet")));
        let column = |suffix: &str| {
            row[&format!("tiny_world_heldout.perplexity{suffix}")[..]]
                .as_primitive::<Float64Type>()
                .clone()
        };
        let evaluated = table(&sandbox.path(&format!(
            "{}/evaluate.parquet",
            sandbox.variant(name, "base-")
        )));
        let values = evaluated["value"].as_primitive::<Float64Type>();
        // The dense measurements, at windows 16 and 64, come first.
        assert_eq!(
            column(".dense").value(0),
            values.value(usize::from(is_paired))
        );
        assert_eq!(column("").value(0), values.value(values.len() - 1));
        assert_eq!(column(".delta_stderr").is_valid(0), is_paired);
    }
}
