//! The printed table of a sweep at the widths of terminals: 80, 120 and 200 characters.

use std::path::Path;

use secateur::report::read_reports;
use secateur_store::tables::{ColumnValues, Table};

/// The numbers of one metric of one variant: pruned, final, difference and its standard error.
type Numbers = (Option<f64>, Option<f64>, Option<f64>, Option<f64>);

/// A `variants.parquet` in the making.
struct VariantsTable {
    columns: Vec<(String, ColumnValues)>,
    /// The share of parameters that each variant has lost.
    removed: Vec<f64>,
}

impl VariantsTable {
    /// Variants with these ids, swept options and removed shares; all succeeded.
    fn new(ids: &[&str], options: &[(&str, &[&str])], removed: &[f64]) -> Self {
        let text = |values: &[&str]| {
            let values = values.iter().map(|value| Some((*value).to_owned()));
            ColumnValues::Text(values.collect())
        };
        let mut columns = vec![("variant".to_owned(), text(ids))];
        for (key, values) in options {
            columns.push(((*key).to_owned(), text(values)));
        }
        let mut table = Self {
            columns,
            removed: removed.to_vec(),
        };
        table.push("status", text(&vec!["succeeded"; ids.len()]));
        table.push("error", ColumnValues::Text(vec![None; ids.len()]));
        table.push_numbers("params_before", |_| Some(756_000.0));
        table.push_numbers("bytes_before", |_| Some(3_024_000.0));
        table.push_numbers("bytes_after", |removed| Some(3_024_000.0 * (1.0 - removed)));
        table.push_numbers("group_ratio", |removed| Some(removed * 1.14));
        table.push_numbers("param_ratio", Some);
        table
    }

    fn push(&mut self, name: &str, values: ColumnValues) {
        self.columns.push((name.to_owned(), values));
    }

    fn replace(&mut self, name: &str, values: ColumnValues) {
        let mut columns = self.columns.iter_mut();
        let (_, column) = columns.find(|(column, _)| column == name).unwrap();
        *column = values;
    }

    fn push_numbers(&mut self, name: &str, number: impl Fn(f64) -> Option<f64>) {
        let numbers = self.removed.iter().map(|&removed| number(removed));
        let values = ColumnValues::F64(numbers.collect());
        self.push(name, values);
    }

    /// The columns of one metric. `dense` and `chance` are equal for all variants.
    fn push_metric(&mut self, name: &str, dense: f64, chance: Option<f64>, numbers: &[Numbers]) {
        let column = |number: fn(&Numbers) -> Option<f64>| {
            ColumnValues::F64(numbers.iter().map(number).collect())
        };
        let equal = |number: Option<f64>| ColumnValues::F64(vec![number; numbers.len()]);
        self.push(name, column(|(_, value, ..)| *value));
        self.push(&format!("{name}.stderr"), equal(chance.map(|_| 0.03)));
        self.push(&format!("{name}.dense"), equal(Some(dense)));
        self.push(
            &format!("{name}.dense_stderr"),
            equal(chance.map(|_| 0.018)),
        );
        self.push(&format!("{name}.pruned"), column(|(pruned, ..)| *pruned));
        self.push(&format!("{name}.delta"), column(|(_, _, delta, _)| *delta));
        self.push(
            &format!("{name}.delta_stderr"),
            column(|(.., stderr)| *stderr),
        );
        self.push(&format!("{name}.chance"), equal(chance));
    }

    /// The table as `runner report` prints it, at each width. Checks that no line is longer.
    fn print(self) -> String {
        let folder = tempfile::tempdir().unwrap();
        self.print_from(folder.path(), 0)
    }

    /// The same; `longest` is the width of ids that do not fit.
    fn print_from(self, folder: &Path, longest: usize) -> String {
        let table = Table::from_columns("variants", self.columns).unwrap();
        table.save(&folder.join("variants.parquet")).unwrap();
        let report = &read_reports(&[folder.to_owned()]).unwrap()[0];
        let mut printed = String::new();
        for width in [80, 120, 200] {
            let text = report.to_text(width).unwrap();
            for line in text.lines() {
                assert!(
                    line.chars().count() <= width.max(longest),
                    "{width}: {line}"
                );
                assert_eq!(line, line.trim_end());
            }
            printed.push_str(&format!("── {width} ──\n{text}"));
        }
        printed
    }
}

/// Differences to `dense` without standard errors.
fn final_values(dense: f64, values: &[f64]) -> Vec<Numbers> {
    let numbers = |&value: &f64| (None, Some(value), Some(value - dense), None);
    values.iter().map(numbers).collect()
}

/// Four variants of two sizes, pruned and recovered.
fn ablation() -> VariantsTable {
    let ids = [
        "taylor-sum-ratio0.25-aa53e08a",
        "taylor-sum-ratio0.5-4ebe5c11",
        "random-sum-ratio0.25-0b0ca7c0",
        "random-sum-ratio0.5-610211f0",
    ];
    let options: [(&str, &[&str]); 3] = [
        (
            "importance.method",
            &["taylor", "taylor", "random", "random"],
        ),
        ("aggregate.with", &["sum"; 4]),
        ("prune.ratio", &["0.25", "0.5", "0.25", "0.5"]),
    ];
    let mut table = VariantsTable::new(&ids, &options, &[0.219, 0.439, 0.219, 0.439]);
    let numbers = |dense: f64, rows: [(f64, f64, f64); 4]| {
        rows.map(|(pruned, value, stderr)| {
            (Some(pruned), Some(value), Some(value - dense), Some(stderr))
        })
    };
    let boolq = [
        (0.779, 0.825, 0.021),
        (0.771, 0.754, 0.029),
        (0.542, 0.508, 0.034),
        (0.496, 0.496, 0.034),
    ];
    let piqa = [
        (0.946, 1.0, 0.005),
        (0.754, 0.989, 0.006),
        (0.732, 1.0, 0.024),
        (0.71, 0.739, 0.026),
    ];
    let perplexity = [
        (3.330, 2.427, 0.019),
        (7.799, 2.739, 0.059),
        (5.332, 2.668, 0.061),
        (38.417, 2.871, 0.083),
    ];
    table.push_metric("tiny_boolq.acc", 0.917, Some(0.5), &numbers(0.917, boolq));
    table.push_metric("tiny_piqa.acc", 1.0, Some(0.5), &numbers(1.0, piqa));
    table.push_metric("tiny_piqa.acc_norm", 1.0, Some(0.5), &numbers(1.0, piqa));
    table.push_metric(
        "heldout.perplexity",
        2.232,
        None,
        &numbers(2.232, perplexity),
    );
    table
}

test!(the_ablation_fits_terminals);
/// The best value is marked within a size: 0.739 is not compared with the values of the larger
/// models, and the two equal values of 1.0 have no mark.
fn the_ablation_fits_terminals() {
    let printed = ablation().print();
    assert!(
        printed.contains("*82.5") && printed.contains("*98.9"),
        "{printed}"
    );
    assert!(
        printed.contains("~50.8") && !printed.contains("*100.0"),
        "{printed}"
    );
    insta::assert_snapshot!("ablation", printed);
}

test!(a_table_without_metrics_has_no_legend);
fn a_table_without_metrics_has_no_legend() {
    let ids = ["ratio0.25-aa53e08a", "ratio0.5-4ebe5c11"];
    let options: [(&str, &[&str]); 1] = [("prune.ratio", &["0.25", "0.5"])];
    let printed = VariantsTable::new(&ids, &options, &[0.219, 0.439]).print();
    insta::assert_snapshot!("without_metrics", printed);
}

test!(many_tasks_are_distributed_over_blocks);
/// Seven tasks and their mean, without measurements before recovery. A single variant is the best
/// of nothing.
fn many_tasks_are_distributed_over_blocks() {
    let ids = ["ratio0.2-aa53e08a", "ratio0.5-4ebe5c11"];
    let options: [(&str, &[&str]); 1] = [("prune.ratio", &["0.2", "0.5"])];
    let mut table = VariantsTable::new(&ids, &options, &[0.19, 0.44]);
    let tasks = [
        "boolq",
        "piqa",
        "hellaswag",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "openbookqa",
        "mean",
    ];
    for (index, task) in tasks.iter().enumerate() {
        let dense = 0.8 - 0.04 * index as f64;
        let numbers = final_values(dense, &[dense - 0.03, dense - 0.2]);
        let name = format!("{task}.acc (llm-pruner)");
        table.push_metric(&name, dense, Some(0.25), &numbers);
    }
    let printed = table.print();
    assert!(!printed.contains('*'), "{printed}");
    insta::assert_snapshot!("many_tasks", printed);
}

test!(reasons_of_failures_are_wrapped);
/// One variant failed, one is of an earlier state of the pipeline, and two share the readable part
/// of their ids.
fn reasons_of_failures_are_wrapped() {
    let ids = [
        "rate0.001-aa53e08a",
        "rate1e38-4ebe5c11",
        "rate0.001-0b0ca7c0",
        "max-0a0b0c0d",
    ];
    let options: [(&str, &[&str]); 1] =
        [("recover.learning_rate", &["0.001", "1e38", "0.001", "1"])];
    let mut table = VariantsTable::new(&ids, &options, &[0.219; 4]);
    let statuses = ["succeeded", "failed", "succeeded", "succeeded"];
    let statuses = statuses.map(|status| Some(status.to_owned()));
    table.replace("status", ColumnValues::Text(statuses.to_vec()));
    let reason = "step 8: `recover` failed: training has diverged: the loss of update 3 is no number; \
                  lower `learning_rate`, or see results/fails/rate1e38-4ebe5c11/log.jsonl";
    let errors = [None, Some(reason.to_owned()), None, None];
    table.replace("error", ColumnValues::Text(errors.to_vec()));
    let current = [true, true, true, false].map(Some);
    table.push("current", ColumnValues::Bool(current.to_vec()));
    let mut numbers = final_values(1234.5, &[1300.0, 0.0, 1234.49, 1500.0]);
    numbers[1] = (None, None, None, None);
    table.push_metric("text.perplexity", 1234.5, None, &numbers);
    let printed = table.print();
    insta::assert_snapshot!("failures", printed);
}

test!(long_ids_stay_whole);
/// An id is needed for `--only`, so it is never cut, and an option that does not fit is.
fn long_ids_stay_whole() {
    let long = format!("{}-aa53e08a", "a-long-name".repeat(9));
    let folder = tempfile::tempdir().unwrap();
    let path = "models/a/folder/with/a/very/long/path/of/its/own/and/then/some/more/llama-7b-hf";
    let options: [(&str, &[&str]); 1] = [("load.model", &[path, "models/tiny"])];
    let table = VariantsTable::new(&[&long, "b-4ebe5c11"], &options, &[0.2, 0.2]);
    let printed = table.print_from(folder.path(), long.len() + 14);
    assert!(
        printed.contains(&long) && printed.contains("…llama-7b-hf"),
        "{printed}"
    );
}

test!(metrics_of_long_ids_fit);
fn metrics_of_long_ids_fit() {
    let ids = [
        "element-first-channel-local-learning-rat-aa0a9604",
        "element-first-channel-local-learning-rat-6b5654ff",
    ];
    let mut table = VariantsTable::new(&ids, &[], &[0.2, 0.2]);
    let numbers = |value| (Some(438.13), Some(value), Some(78.26), Some(10.02));
    let rows = [numbers(431.21), numbers(432.21)];
    table.push_metric(
        "a_perplexity_of_a_long_text.perplexity",
        352.95,
        None,
        &rows,
    );
    let folder = tempfile::tempdir().unwrap();
    let printed = table.print_from(folder.path(), 0);
    assert!(
        printed.contains("-aa0a9604   438.13  *431.21") && printed.contains(ids[1]),
        "{printed}"
    );
}

test!(an_empty_sweep_says_so);
fn an_empty_sweep_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let printed = VariantsTable::new(&[], &[], &[]).print_from(folder.path(), 0);
    assert!(printed.contains("no variants\n"), "{printed}");
}
