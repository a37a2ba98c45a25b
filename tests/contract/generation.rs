//! Generated texts, and profiles of models before and after pruning.

use arrow::array::{Array, AsArray};
use secateur::stages::generate::{self, Options};
use secateur_model::Model;

use crate::support::{Sandbox, context, copy_folder, table, text, tiny_folder};

test!(generation_stops_at_eos_or_at_the_last_position);
fn generation_stops_at_eos_or_at_the_last_position() {
    // This model was not trained to emit EOS, so the full stop is made the EOS token.
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny_folder(), folder.path());
    let config = std::fs::read_to_string(folder.path().join("tokenizer_config.json")).unwrap();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        config.replace("</s>", "."),
    )
    .unwrap();
    let model = Model::load(folder.path()).unwrap();
    let generate_rows = |options: &Options| {
        generate::run(options, &context(), &model)
            .unwrap()
            .swap_remove(0)
            .rows
    };
    let ids = |rows: &arrow::array::RecordBatch, row| rows["ids"].as_list::<i32>().value(row).len();
    let tools = ["page", "apple", "pipe", "poster"];
    let prompts: Vec<String> = (0..40)
        .map(|i| format!("Question: how do you clean the {}\nAnswer:", tools[i % 4]))
        .collect();
    let options = Options {
        prompts,
        max_new_tokens: 4000,
        ..Options::default()
    };
    let rows = generate_rows(&options);
    assert_eq!(rows.num_rows(), 40);
    assert!(
        rows["finished"]
            .as_boolean()
            .iter()
            .all(|finished| finished == Some(true))
            && ids(&rows, 0) < 100
    );
    assert!(
        text(&rows["output"])
            .iter()
            .all(|output| output.starts_with(" with the ") && !output.contains('.'))
    );
    let alone = generate_rows(&Options {
        prompts: vec![options.prompts[39].clone()],
        ..options.clone()
    });
    assert_eq!(
        text(&alone["output"])[0],
        text(&rows["output"])[39],
        "the other prompts of a batch change nothing"
    );

    let without_eos = generate_rows(&Options {
        prompts: vec!["a".to_owned()],
        ignore_eos: true,
        ..options.clone()
    });
    let prompt_length = model
        .tokenizer
        .as_ref()
        .unwrap()
        .encode("a", true)
        .unwrap()
        .len();
    assert_eq!(
        ids(&without_eos, 0) + prompt_length,
        model.config.max_positions
    );
    assert!(!without_eos["finished"].as_boolean().value(0));

    let sampled = Options {
        prompts: options.prompts[..3].to_vec(),
        temperature: 9.0,
        max_new_tokens: 8,
        ..options.clone()
    };
    assert_eq!(generate_rows(&sampled), generate_rows(&sampled));
    assert_ne!(
        generate_rows(&sampled),
        generate_rows(&Options {
            seed: 1,
            ..sampled.clone()
        })
    );
    let too_long = Options {
        prompts: vec!["word ".repeat(600)],
        ..options
    };
    let error = generate::run(&too_long, &context(), &model)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("prompt 0 has ")
            && error.ends_with("leaves no room in the model's 512 positions"),
        "{error}"
    );
}

const PIPELINE: &str = r#"
[[stage]]
type = "load"
model = "models/tiny"

[[stage]]
type = "profile"
repeat = 1

[[stage]]
type = "generate"
prompts = ["Question: which tool"]
file = "prompts.txt"
max_new_tokens = 12

[[stage]]
type = "dependencies"

[[stage]]
type = "importance"
method = "l2"

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.5

[[stage]]
type = "generate"
prompts = ["Question: which tool"]
file = "prompts.txt"
max_new_tokens = 12

[[stage]]
type = "profile"
repeat = 6
warm_up = 1
prefill = 16
decode = 4
batch = 2

[sweep]
"prune.ratio" = [0.25, 0.5]
"#;

test!(sweep_holds_texts_side_by_side_and_profiles_of_both_models);
fn sweep_holds_texts_side_by_side_and_profiles_of_both_models() {
    let sandbox = Sandbox::new();
    sandbox.write("prompts.txt", "The smith has\n\nWho is the baker?\n");
    sandbox.write("beside.toml", PIPELINE);
    let ran = sandbox.run(&["beside.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let generations = table(&sandbox.path("results/beside/generations.parquet"));
    assert_eq!(generations.num_rows(), 6);
    assert_eq!(
        text(&generations["input"])[..3],
        ["Question: which tool", "The smith has", "Who is the baker?"]
    );
    assert_eq!(
        text(&generations["dense"])[..3],
        text(&generations["dense"])[3..]
    );
    assert_ne!(text(&generations["dense"]), text(&generations["output"]));
    assert!(
        ran.out.contains("The smith has") && ran.out.contains("dense"),
        "{}",
        ran.out
    );

    let variant = sandbox.variant("beside", "ratio0.5");
    let generated = table(&sandbox.path(&format!("{variant}/generate.parquet")));
    assert_eq!(
        text(&generated["output"])[3..],
        text(&generations["output"])[3..]
    );
    let first = sandbox.json(&format!("{variant}/profile.json"));
    assert!(
        first["dense"].is_null() && first["ratio"].is_null(),
        "the first profile is of the dense model: {first}"
    );
    let second = sandbox.json(&format!("{variant}/profile-2.json"));
    let sizes = table(&sandbox.path(&format!("{variant}/prune_sizes.parquet")));
    for (figure, column) in [
        ("parameters", "params"),
        ("macs", "macs"),
        ("bytes", "bytes"),
    ] {
        let size = |when: &str| {
            sizes[&format!("{column}_{when}")[..]]
                .as_primitive::<arrow::datatypes::UInt64Type>()
                .value(0) as f64
        };
        assert_eq!(second["model"][figure].as_f64(), Some(size("after")));
        assert_eq!(second["dense"][figure].as_f64(), Some(size("before")));
        assert_eq!(
            second["ratio"][figure].as_f64(),
            Some(size("after") / size("before"))
        );
    }
    for figure in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_memory",
    ] {
        assert!(
            second["model"][figure].as_f64().unwrap() > 0.0
                && second["ratio"][figure].as_f64().unwrap() > 0.0
        );
    }
    assert_eq!(
        (&first["rounds"], &second["rounds"]),
        (&1.into(), &6.into())
    );
    for phase in ["prefill", "decode"] {
        let median = |of: &str| {
            second[of][format!("{phase}_tokens_per_second")]
                .as_f64()
                .unwrap()
        };
        let bound = |of: &str, index: usize| {
            second[of][format!("{phase}_interval")][index]
                .as_f64()
                .unwrap()
        };
        for of in ["model", "dense", "ratio"] {
            assert!(
                bound(of, 0) <= median(of) && median(of) <= bound(of, 1),
                "{second}"
            );
        }
        let expected = match (bound("ratio", 0) > 1.0, bound("ratio", 1) < 1.0) {
            (true, _) => "faster",
            (_, true) => "slower",
            _ => "too noisy to say",
        };
        assert_eq!(second["ratio"][format!("{phase}_verdict")], expected);
        assert!(
            first["model"][format!("{phase}_interval")].is_null(),
            "one round"
        );
    }
    assert!(
        ran.out.contains("speed in tokens per second"),
        "{}",
        ran.out
    );
    let again = sandbox.run(&["report", "results/beside"]);
    assert!(again.out.contains("    decode   "), "{}", again.out);
    let manifest = sandbox.json(&format!("{variant}/manifest.json"));
    assert_eq!(manifest["stages"][7]["options"]["max_new_tokens"], 12);
    assert!(
        !std::fs::read_dir(sandbox.path(&variant))
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name() == "profile.parquet")
    );
}
