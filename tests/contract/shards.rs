//! Shards of a sweep, and the merge of their results.

use super::accumulation::unwrapped;
use super::kept_products::{must_run, run_ok};
use crate::support::{CHAIN, Sandbox, chain, table, text};

/// A pipeline that prunes by magnitude and runs in a moment.
pub(crate) const SHORT: &str = r#"
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
with = "sum"

[[stage]]
type = "prune"
ratio = 0.25
"#;

/// The ids of the variants in a plan, and the number of its stages.
fn plan(sandbox: &Sandbox, arguments: &[&str]) -> (Vec<String>, u64) {
    let ran = sandbox.run(&[&["plan"], arguments, &["--format", "json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let plan: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let variants = plan["variants"].as_array().unwrap().iter();
    let ids = variants.map(|variant| variant["id"].as_str().unwrap().to_owned());
    (ids.collect(), plan["stage_runs"].as_u64().unwrap())
}

test!(merge_joins_shards_into_one_table);
fn merge_joins_shards_into_one_table() {
    let sandbox = chain();
    let sweep = format!(
        "{CHAIN}\n[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n\
         \"aggregate.with\" = [\"sum\", \"max\", \"last\"]\n"
    );
    sandbox.write("sweep.toml", &sweep);
    let short_run = [
        "--set",
        "recover.duration.updates=1",
        "--set",
        "evaluate.limit=2",
    ];
    let run = |extra: &[&str]| sandbox.run(&[&["sweep.toml"], &short_run[..], extra].concat());
    assert_eq!(run(&["--results", "unsharded"]).code, 0);
    let shards = ["1/2", "2/2"];
    let results_of = |shard: &str| format!("shard-{}", &shard[..1]);
    let mut variant_count = 0;
    for shard in shards {
        let ran = run(&["--shard", shard, "--results", &results_of(shard)]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let folder = std::fs::read_dir(sandbox.path(&format!("{}/sweep", results_of(shard))))
            .unwrap()
            .flatten();
        variant_count += folder
            .filter(|entry| entry.path().join("manifest.json").exists())
            .count();
    }
    assert_eq!(
        variant_count, 6,
        "each variant belongs to exactly one shard"
    );
    // A missing variant is named, and the others are merged.
    let incomplete = sandbox.run(&["merge", "shard-2/sweep", "--into", "joined"]);
    assert_eq!(incomplete.code, 1);
    let message = unwrapped(&incomplete.err);
    assert!(
        message.contains("missing: ")
            && message
                .contains("no folder has it; the results of shard 1/2 are not among the folders"),
        "{message}"
    );
    let merge = ["merge", "shard-1", "shard-2", "--into", "joined"];
    run_ok(&sandbox, &merge);
    let unsharded = sandbox.read("unsharded/sweep/variants.parquet");
    assert!(sandbox.read("joined/sweep/variants.parquet") == unsharded);
    run_ok(&sandbox, &merge);
    run_ok(&sandbox, &["merge", "joined"]);
    assert!(
        sandbox.read("joined/sweep/variants.parquet") == unsharded,
        "merging again changes nothing"
    );
    // The merged results are complete: nothing must run.
    assert_eq!(
        must_run(
            &sandbox,
            &[&["sweep.toml"], &short_run[..], &["--results", "joined"]].concat()
        ),
        [""; 0]
    );
    // A variant that is in both folders with different contents.
    let entries = std::fs::read_dir(sandbox.path("shard-1/sweep"))
        .unwrap()
        .flatten();
    let id = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .find(|name| name.contains("ratio"))
        .unwrap();
    let manifest = format!("shard-1/sweep/{id}/manifest.json");
    let manifest_text = String::from_utf8(sandbox.read(&manifest)).unwrap();
    let table = sandbox.read(&format!("shard-1/sweep/{id}/evaluate.parquet"));
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let altered = [&table[..], b" "].concat();
    // Writes new files: the merged ones may be hard links to the old ones.
    for file in [&manifest, &format!("shard-1/sweep/{id}/evaluate.parquet")] {
        std::fs::remove_file(sandbox.path(file)).unwrap();
    }
    sandbox.write(&manifest, &manifest_text);
    sandbox.write(&format!("shard-1/sweep/{id}/evaluate.parquet"), &altered);
    let damaged = sandbox.run(&["merge", "shard-1", "--into", "alone"]);
    assert!(
        damaged.code == 1 && unwrapped(&damaged.err).contains("evaluate.parquet` is damaged"),
        "{}",
        damaged.err
    );
    let with_new_length = manifest_text.replace(
        &format!("\"bytes\": {}", table.len()),
        &format!("\"bytes\": {}", altered.len()),
    );
    sandbox.write(
        &manifest,
        with_new_length.replace(&hash(&table), &hash(&altered)),
    );
    let conflict = sandbox.run(&["merge", "joined", "shard-1"]);
    assert_eq!(conflict.code, 1);
    assert!(
        unwrapped(&conflict.err).contains(&id)
            && unwrapped(&conflict.err).contains("evaluate.parquet` differ"),
        "{}",
        conflict.err
    );
    assert!(
        sandbox.read("joined/sweep/variants.parquet") == unsharded,
        "nothing was written"
    );
    assert_eq!(sandbox.run(&["merge", "nowhere"]).code, 2);
    // A shard that was measured on other data.
    sandbox.write(
        "heldout.jsonl",
        "{\"text\": \"Another text, and long enough for a window.\"}",
    );
    assert_eq!(run(&["--shard", "1/2", "--results", "other-data"]).code, 0);
    let mixed = sandbox.run(&["merge", "shard-2", "other-data", "--into", "mixed"]);
    assert!(
        mixed.code == 1 && unwrapped(&mixed.err).contains("another `heldout.jsonl` than"),
        "{}",
        mixed.err
    );
    assert!(!sandbox.path("mixed").exists(), "nothing was written");
}

test!(shards_are_balanced_and_slices_keep_shared_stages_together);
fn shards_are_balanced_and_slices_keep_shared_stages_together() {
    let sandbox = Sandbox::new();
    let sweep = |ratios: &str| {
        format!(
            "{SHORT}[sweep]\n\"prune.ratio\" = [{ratios}]\n\
             \"importance.method\" = [\"l1\", \"l2\", \"random\"]\n"
        )
    };
    sandbox.write("sweep.toml", sweep("0.1, 0.2, 0.3, 0.4"));
    let (mut all, _) = plan(&sandbox, &["sweep.toml"]);
    assert_eq!(all.len(), 12);
    all.sort();
    for (prefix, count) in [
        ("", 3),
        ("", 5),
        ("slice:", 3),
        ("slice:", 5),
        ("slice:", 13),
    ] {
        let mut found = Vec::new();
        let mut sizes = Vec::new();
        for number in 1..=count {
            let shard = format!("{prefix}{number}/{count}");
            let (ids, _) = plan(&sandbox, &["sweep.toml", "--shard", &shard]);
            sizes.push(ids.len());
            found.extend(ids);
        }
        found.sort();
        assert_eq!(found, all, "each variant is in exactly one shard");
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most - least <= 1, "{prefix}K/{count}: {sizes:?}");
    }
    // The ratio comes first in the sweep and last in the pipeline: a slice has one method.
    for (number, method) in [(1, "l1"), (2, "l2"), (3, "random")] {
        let shard = format!("slice:{number}/3");
        let (ids, stages) = plan(&sandbox, &["sweep.toml", "--shard", &shard]);
        assert!(ids.iter().all(|id| id.contains(method)), "{ids:?}");
        assert_eq!(stages, 4 + 4, "all but the four prunings are shared");
    }
    // Most variants stay in their shard when others are added.
    let shards = |ratios: &str| -> Vec<Vec<String>> {
        sandbox.write("more.toml", sweep(ratios));
        let shard = |number: usize| {
            let shard = format!("{number}/4");
            plan(&sandbox, &["more.toml", "--shard", &shard]).0
        };
        (1..=4).map(shard).collect()
    };
    let few = shards("0.1, 0.2, 0.3, 0.4, 0.5, 0.6");
    let many = shards("0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7");
    let stayed = few
        .iter()
        .zip(&many)
        .map(|(few, many)| few.iter().filter(|id| many.contains(id)).count());
    let stayed: usize = stayed.sum();
    assert!(stayed >= 12, "{stayed} of 18 variants stay");
}

test!(empty_shard_says_so_and_can_be_merged);
fn empty_shard_says_so_and_can_be_merged() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "sweep.toml",
        format!("{SHORT}[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n"),
    );
    for number in 1..=3 {
        let (shard, results) = (format!("slice:{number}/3"), format!("part-{number}"));
        let arguments = ["sweep.toml", "--shard", &shard, "--results", &results];
        let output = run_ok(&sandbox, &arguments);
        assert_eq!(
            output.contains("this shard has no variant"),
            number == 3,
            "{output}"
        );
    }
    assert_eq!(
        table(&sandbox.path("part-3/sweep/variants.parquet")).num_rows(),
        0
    );
    let reported = sandbox.run(&["report", "part-3"]);
    assert_eq!(reported.code, 0, "{}", reported.err);
    run_ok(
        &sandbox,
        &["merge", "part-3", "part-2", "part-1", "--into", "joined"],
    );
    assert_eq!(
        table(&sandbox.path("joined/sweep/variants.parquet")).num_rows(),
        2
    );
    let wrong = sandbox.run(&["sweep.toml", "--shard", "slice:4/3"]);
    assert!(
        wrong.code == 2 && unwrapped(&wrong.err).contains("slice:K/N"),
        "{}",
        wrong.err
    );
}

test!(merge_keeps_results_of_earlier_runs);
fn merge_keeps_results_of_earlier_runs() {
    let sandbox = Sandbox::new();
    let sweep = |ratios: &str| format!("{SHORT}[sweep]\n\"prune.ratio\" = [{ratios}]\n");
    sandbox.write("sweep.toml", sweep("0.25, 0.5"));
    run_ok(&sandbox, &["sweep.toml", "--results", "one"]);
    // Another state of the file, and an option of the command line.
    sandbox.write("sweep.toml", sweep("0.3").replace("\"l2\"", "\"l1\""));
    run_ok(&sandbox, &["sweep.toml", "--results", "one"]);
    let set = ["--set", "aggregate.with=max"];
    run_ok(
        &sandbox,
        &[&["sweep.toml", "--results", "two"], &set[..]].concat(),
    );
    let rows = |folder: &str| -> Vec<(String, String)> {
        let rows = table(&sandbox.path(&format!("{folder}/sweep/variants.parquet")));
        let names = text(&rows["variant"]).into_iter();
        let prefixes = names.map(|name| name.rsplit_once('-').unwrap().0.to_owned());
        prefixes.zip(text(&rows["current"])).collect()
    };
    let row = |name: &str, is_current: &str| (name.to_owned(), is_current.to_owned());
    let expected = [
        row("ratio0.3", "true"),
        row("ratio0.25", "false"),
        row("ratio0.5", "false"),
    ];
    assert_eq!(rows("one"), expected);
    run_ok(&sandbox, &["merge", "one", "two", "--into", "joined"]);
    let mut joined = rows("joined");
    assert_eq!(joined.remove(1), row("ratio0.3-max", "true"));
    assert_eq!(joined, expected);
    // A later merge into the same folder adds to it.
    sandbox.write("sweep.toml", sweep("0.6"));
    run_ok(&sandbox, &["sweep.toml", "--results", "three"]);
    run_ok(&sandbox, &["merge", "three", "--into", "joined"]);
    assert_eq!(rows("joined").len(), 5);
    // Two pipelines with one file name are no shards of one sweep.
    std::fs::create_dir(sandbox.path("b")).unwrap();
    sandbox.write("b/sweep.toml", sweep("0.7"));
    run_ok(&sandbox, &["b/sweep.toml", "--results", "other"]);
    let conflict = sandbox.run(&["merge", "three", "other", "--into", "mixed"]);
    assert_eq!(conflict.code, 1);
    assert!(
        unwrapped(&conflict.err).contains("has the results of `sweep.toml`"),
        "{}",
        conflict.err
    );
    assert!(!sandbox.path("mixed").exists(), "nothing was written");
}
