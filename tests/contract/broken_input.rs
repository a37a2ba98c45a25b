//! Broken input: each kind gives a named error with its position, and leaves no partial file.

use serde_json::{Value, json};

use crate::support::{Sandbox, runner};

/// Loads a model and measures the perplexity of a text.
const MEASURE: &str = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\
                       [[stage]]\ntype = \"evaluate\"\ncorpora = [\"rows.jsonl\"]\n";

/// A working directory with the pipeline [`MEASURE`] as `measure.toml`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("measure.toml", MEASURE);
    sandbox.write("rows.jsonl", "{\"text\": \"Anna is in the garden.\"}\n");
    sandbox
}

/// The message of the check after `change` was applied to a valid working directory.
fn check_error(change: impl FnOnce(&Sandbox)) -> String {
    let sandbox = sandbox();
    change(&sandbox);
    let ran = sandbox.run(&["measure.toml", "--format", "json"]);
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    assert!(!sandbox.path("results").exists());
    let problems: Value = serde_json::from_str(&ran.out).unwrap();
    let [problem] = &problems.as_array().unwrap()[..] else {
        panic!("{problems}")
    };
    problem["message"].as_str().unwrap().to_owned()
}

/// The error of the failed stage after `change` was applied to a valid working directory.
fn stage_error(change: impl FnOnce(&Sandbox)) -> String {
    let sandbox = sandbox();
    change(&sandbox);
    let ran = sandbox.run(&["measure.toml"]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let folder = sandbox.variant("measure", "base-");
    assert!(
        !sandbox.path(&format!("{folder}/evaluate.parquet")).exists(),
        "a failed stage leaves no table"
    );
    let error = sandbox.json(&format!("{folder}/manifest.json"))["error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        ran.err.contains("measure.toml:"),
        "the position is shown: {}",
        ran.err
    );
    error
}

const WEIGHTS: &str = "models/tiny/model.safetensors";
const CONFIG: &str = "models/tiny/config.json";

/// Changes a value of the model's `config.json`.
fn config(key: &'static str, value: Value) -> impl FnOnce(&Sandbox) {
    move |sandbox| {
        let mut config = sandbox.json(CONFIG);
        config[key] = value;
        sandbox.write(CONFIG, config.to_string());
    }
}

/// Changes the header of the safetensors file.
fn header(change: impl FnOnce(&mut Value)) -> impl FnOnce(&Sandbox) {
    move |sandbox| {
        let bytes = sandbox.read(WEIGHTS);
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        change(&mut header);
        let text = header.to_string();
        let file = [
            &(text.len() as u64).to_le_bytes(),
            text.as_bytes(),
            &bytes[end..],
        ]
        .concat();
        sandbox.write(WEIGHTS, file);
    }
}

test!(broken_checkpoints_are_named);
fn broken_checkpoints_are_named() {
    let remove = |path: &'static str| {
        move |sandbox: &Sandbox| std::fs::remove_file(sandbox.path(path)).unwrap()
    };
    assert_eq!(
        check_error(remove(CONFIG)),
        "there is no model in `models/tiny`: it has no config.json"
    );
    assert_eq!(
        check_error(remove(WEIGHTS)),
        "there is no model in `models/tiny`: it has neither model.safetensors nor \
         model.safetensors.index.json"
    );
    for length in [0, 4, 8, 100, 5000, 200_000] {
        let message = check_error(|sandbox| {
            let bytes = sandbox.read(WEIGHTS);
            sandbox.write(WEIGHTS, &bytes[..length]);
        });
        assert!(
            message
                .starts_with("`models/tiny/model.safetensors` is not a whole safetensors file: "),
            "{length}: {message}"
        );
    }
    let assert_not_whole = |change: fn(&mut Value)| {
        let message = check_error(header(change));
        assert!(
            message.contains("is not a whole safetensors file"),
            "{message}"
        );
    };
    assert_not_whole(|header| header["model.norm.weight"]["data_offsets"] = json!([0, 1u64 << 40]));
    assert_not_whole(|header| header["model.norm.weight"]["data_offsets"] = json!([8, 4]));
    assert_not_whole(|header| {
        header["model.norm.weight"]["shape"] = json!([1u64 << 40, 1u64 << 40])
    });
    assert_not_whole(|header| header["model.norm.weight"]["dtype"] = json!("F33"));
    assert_eq!(
        check_error(header(
            |header| header["model.norm.weight"]["dtype"] = json!("I32")
        )),
        "the tensor `model.norm.weight` holds I32; supported: F32, F16, BF16"
    );
    assert!(
        check_error(header(|header| {
            let tensor = header["model.norm.weight"].take();
            header.as_object_mut().unwrap().remove("model.norm.weight");
            header["model.norn.weight"] = tensor;
        }))
        .ends_with("the tensor `model.norm.weight` is missing")
    );
}

test!(configs_that_do_not_fit_are_named);
fn configs_that_do_not_fit_are_named() {
    let error_of = |key, value| check_error(config(key, value));
    let hidden = error_of("hidden_size", json!(1));
    assert!(
        hidden.starts_with("the tensor `model.embed_tokens.weight` has shape [950, 96]")
            && hidden.ends_with("[950, 1]"),
        "{hidden}"
    );
    assert_eq!(
        error_of("hidden_size", json!(u64::MAX)),
        "`models/tiny/config.json`: `hidden_size` is 18446744073709551615, which is not a whole \
         number from 1 to 16777216"
    );
    assert_eq!(
        error_of("model_type", json!("gpt2")),
        "`models/tiny/config.json`: `model_type` = gpt2 is not supported; supported: llama, \
         mistral, granite, qwen2, gpt_neox"
    );
    assert_eq!(
        error_of("attention_bias", json!(true)),
        "24 tensors are missing: `model.layers.N.self_attn.k_proj.bias` for N = 0-5, \
         `model.layers.N.self_attn.o_proj.bias` for N = 0-5, \
         `model.layers.N.self_attn.q_proj.bias` for N = 0-5, \
         `model.layers.N.self_attn.v_proj.bias` for N = 0-5"
    );
    let seventh_layer = error_of("num_hidden_layers", json!(7));
    assert!(
        seventh_layer.starts_with("9 tensors are missing: ")
            && seventh_layer.contains("`model.layers.6.mlp.down_proj.weight`"),
        "{seventh_layer}"
    );
    assert_eq!(
        error_of("head_dim", json!(7)),
        "`models/tiny/config.json`: `head_dim` is 7, which is not an even number above 0"
    );
    assert!(
        error_of("rope_scaling", json!({ "rope_type": "yarn" }))
            .contains("`rope_type` = yarn is not supported")
    );
    let vocab = error_of("vocab_size", json!(100));
    assert!(
        vocab.starts_with("the tensor `model.embed_tokens.weight` has shape [")
            && vocab.contains("asks for [100, "),
        "{vocab}"
    );
    assert!(
        check_error(|sandbox| sandbox.write(CONFIG, "{"))
            .starts_with("`models/tiny/config.json`: it is not valid JSON")
    );
}

test!(config_widths_that_no_layer_has_are_named);
fn config_widths_that_no_layer_has_are_named() {
    for (key, value) in [
        ("intermediate_size", 100),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
    ] {
        let message = check_error(config(key, json!(value)));
        assert!(
            message.contains(&format!(
                "config.json says {key} = {value}, and no layer has it"
            )),
            "{message}"
        );
    }
    assert!(check_error(config("head_dim", json!(8))).contains("and no layer has it"));
    assert_eq!(
        check_error(config("num_hidden_layers", json!(5))),
        "the checkpoint holds `model.layers.5.input_layernorm.weight`, and config.json says \
         num_hidden_layers = 5"
    );
    assert!(
        check_error(config("partial_rotary_factor", json!(0.5)))
            .contains("`partial_rotary_factor` = 0.5 is not supported")
    );
}

test!(tokenizers_that_do_not_fit_are_named);
fn tokenizers_that_do_not_fit_are_named() {
    let path = "models/tiny/tokenizer.json";
    assert!(
        check_error(|sandbox| sandbox.write(path, "{}"))
            .starts_with("`models/tiny/tokenizer.json` is not a tokenizer: ")
    );
    let wrong_special_id = check_error(|sandbox| {
        let mut tokenizer = sandbox.json(path);
        tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([9999]);
        sandbox.write(path, tokenizer.to_string());
    });
    assert!(
        wrong_special_id.contains("the token id 9999 is outside the model's vocabulary"),
        "{wrong_special_id}"
    );
    assert_eq!(
        check_error(|sandbox| std::fs::remove_file(sandbox.path(path)).unwrap()),
        "`rows.jsonl` is text, and the model's folder has no tokenizer.json"
    );
}

test!(nan_weights_fail_the_load);
fn nan_weights_fail_the_load() {
    let error = stage_error(|sandbox| {
        let mut bytes = sandbox.read(WEIGHTS);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        sandbox.write(WEIGHTS, bytes);
    });
    assert!(
        error.contains("`load` failed: cannot load the model: the tensor `")
            && error.contains("holds a NaN"),
        "{error}"
    );
}

test!(unparsable_rows_are_named_by_line);
fn unparsable_rows_are_named_by_line() {
    let rows = |rows: &'static str| stage_error(move |sandbox| sandbox.write("rows.jsonl", rows));
    let valid_row = "{\"text\": \"Anna is in the garden.\"}";
    assert!(
        rows("{\"text\": \"a b\"}\n\n{\"text\": 3}")
            .ends_with("`rows.jsonl`, line 3: `text` is 3, not a text")
    );
    let in_check = |rows: &'static str| check_error(move |s| s.write("rows.jsonl", rows));
    assert!(
        rows("{\"text\": \"a b\"}\n{\"text\": \"a")
            .contains("`rows.jsonl`, line 2: it is not valid JSON")
    );
    assert!(
        rows("{\"ids\": [1, 99999]}")
            .contains("line 1: the token id 99999 lies outside the vocabulary")
    );
    assert!(in_check("\n\n").contains("`rows.jsonl` holds no document"));
    assert!(in_check("{\"text\": 3}").ends_with("`rows.jsonl`, line 1: `text` is 3, not a text"));
    assert!(rows("{\"ids\": [1]}").contains("has nothing to predict"));
    assert!(
        check_error(|sandbox| sandbox.write("rows.jsonl", "")).contains("`rows.jsonl` is empty")
    );
    assert!(
        check_error(|sandbox| std::fs::remove_file(sandbox.path("rows.jsonl")).unwrap())
            .starts_with("cannot read `rows.jsonl`")
    );
    let bytes = check_error(|sandbox| {
        sandbox.write("rows.jsonl", [valid_row.as_bytes(), b"\n\xff\xfe"].concat())
    });
    assert!(
        bytes.contains("is not UTF-8 text from byte 35 on"),
        "{bytes}"
    );
    // An invalid row of a task is named by its line.
    let sandbox = sandbox();
    sandbox.write(
        "datasets/tiny_boolq.jsonl",
        "{\"passage\": \"a\", \"question\": \"b\", \"label\": 1}\n{\"passage\": \"a\"}\n",
    );
    sandbox.write(
        "task.toml",
        MEASURE.replace("corpora = [\"rows.jsonl\"]", "tasks = [\"tiny_boolq\"]"),
    );
    let ran = sandbox.run(&["task.toml"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("tiny_boolq.jsonl`, line 2: it lacks the field `question`"),
        "{}",
        ran.err
    );
}

test!(hub_models_are_reserved);
fn hub_models_are_reserved() {
    let sandbox = sandbox();
    let set = ["--set", "load.model=hf://owner/name@main"];
    assert_eq!(
        sandbox
            .run(&["check", "measure.toml", "--no-world", set[0], set[1]])
            .code,
        0
    );
    let ran = sandbox.run(&["measure.toml", set[0], set[1]]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("not from the Hugging Face Hub")
            && ran
                .err
                .contains("hf download owner/name --revision main --local-dir models/name"),
        "{}",
        ran.err
    );
}

test!(empty_folder_names_are_rejected);
fn empty_folder_names_are_rejected() {
    let sandbox = sandbox();
    for key in ["results", "cache", "data"] {
        let ran = sandbox.run(&["measure.toml", "--set", &format!("run.{key}=")]);
        assert!(
            ran.code == 2 && ran.err.contains(&format!("`{key}` is empty")),
            "{}",
            ran.err
        );
    }
}

test!(unwritable_results_folder_is_rejected);
fn unwritable_results_folder_is_rejected() {
    let sandbox = sandbox();
    sandbox.write("results", "a file in place of the folder");
    let ran = sandbox.run(&["measure.toml"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("the results folder `results` cannot be written"),
        "{}",
        ran.err
    );
    std::fs::remove_file(sandbox.path("results")).unwrap();
    std::fs::create_dir(sandbox.path("results")).unwrap();
    sandbox.write(
        "results/measure",
        "a file in place of the folder of this pipeline's results",
    );
    let ran = sandbox.run(&["measure.toml", "--results", "results"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("a file stands there") && ran.err.contains("[--results results:1:1]"),
        "{}",
        ran.err
    );
}

#[cfg(unix)]
test!(unwritable_table_fails_its_variant);
/// A table that cannot be stored fails its variant with a named error; the other variants still
/// run.
#[cfg(unix)]
fn unwritable_table_fails_its_variant() {
    let sandbox = sandbox();
    sandbox.write(
        "scores.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\
         [[stage]]\ntype = \"dependencies\"\n[[stage]]\ntype = \"importance\"\nmethod = \"l1\"\n\
         [sweep]\n\"importance.method\" = [\"l1\", \"l2\"]\n",
    );
    let output = run_with_file_size_limit(&sandbox, 20, "scores.toml");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    for method in ["l1", "l2"] {
        let manifest = sandbox.json(&format!(
            "{}/manifest.json",
            sandbox.variant("scores", method)
        ));
        assert!(
            manifest["error"]
                .as_str()
                .unwrap()
                .contains("`importance` failed: its results cannot be stored"),
            "{manifest}"
        );
    }
}

/// Runs a pipeline under a limit on the size of a file, in KiB: writes fail in the middle of a
/// file.
#[cfg(unix)]
fn run_with_file_size_limit(sandbox: &Sandbox, kib: usize, pipeline: &str) -> std::process::Output {
    let script = format!(
        "trap '' XFSZ; ulimit -f {kib}; exec '{}' {pipeline}",
        runner().display()
    );
    std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(sandbox.path(""))
        .output()
        .unwrap()
}

#[cfg(unix)]
test!(full_disk_leaves_no_partial_file);
/// A limit on the size of files simulates a full disk.
#[cfg(unix)]
fn full_disk_leaves_no_partial_file() {
    let sandbox = sandbox();
    sandbox.write(
        "export.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\
         [[stage]]\ntype = \"evaluate\"\ncorpora = [\"rows.jsonl\"]\n\
         [[stage]]\ntype = \"export\"\n",
    );
    let output = run_with_file_size_limit(&sandbox, 1000, "export.toml");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("`export` failed: cannot write `") && err.contains("File too large"),
        "{err}"
    );
    let folder = sandbox.variant("export", "base-");
    assert!(
        sandbox.path(&format!("{folder}/evaluate.parquet")).exists(),
        "complete tables are kept"
    );
    assert!(!sandbox.path(&format!("{folder}/hf")).exists());
    let names: Vec<String> = std::fs::read_dir(sandbox.path("results/export"))
        .unwrap()
        .chain(std::fs::read_dir(sandbox.path(&folder)).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        names.iter().all(|name| !name.starts_with(".partial-")),
        "{names:?}"
    );
}

test!(invalid_config_values_and_training_inputs_are_named);
fn invalid_config_values_and_training_inputs_are_named() {
    let message = |key, value| check_error(config(key, value));
    assert!(
        message("tie_word_embeddings", json!(false))
            .ends_with("the tensor `lm_head.weight` is missing")
    );
    assert!(
        message("tie_word_embeddings", json!("true"))
            .contains("`tie_word_embeddings` is \"true\", which is not true or false")
    );
    assert!(
        message("rope_scaling", json!("linear"))
            .contains("`rope_scaling` is \"linear\", which is not a table")
    );
    assert!(
        message("rope_scaling", json!({ "factor": 4.0 }))
            .contains("the key `rope_type` is missing")
    );
    assert!(message("hidden_act", json!(5)).contains("`hidden_act` is 5, which is not a text"));
    assert!(
        message("rms_norm_eps", json!(1e300))
            .contains("`rms_norm_eps` is 1e+300, which is not a positive number")
    );

    // Dropout in a tokenizer, left over from its training, must not make encoding random.
    let sandbox = sandbox();
    let perplexity = || {
        let ran = sandbox.run(&["measure.toml", "--format", "json"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        sandbox.read(&format!(
            "{}/evaluate.parquet",
            sandbox.variant("measure", "base-")
        ))
    };
    let before = perplexity();
    let mut tokenizer = sandbox.json("models/tiny/tokenizer.json");
    tokenizer["model"]["dropout"] = json!(0.9);
    sandbox.write("models/tiny/tokenizer.json", tokenizer.to_string());
    assert_eq!(perplexity(), before);

    // The same task twice, once by name and once by path.
    sandbox.write(
        "twice.toml",
        MEASURE.replace(
            "corpora = [\"rows.jsonl\"]",
            "tasks = [\"tiny_piqa\", \"datasets/tiny_piqa.toml\"]",
        ),
    );
    let ran = sandbox.run(&["check", "twice.toml"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("`tiny_piqa` is measured twice"),
        "{}",
        ran.err
    );

    // Training that ends with weights that are not finite.
    sandbox.write("text.txt", "Anna is in the garden.\n\nTom is in the barn.");
    let train = |options: &str| {
        format!(
            "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\
             [[stage]]\ntype = \"recover\"\ncorpus = \"text.txt\"\n{options}"
        )
    };
    sandbox.write(
        "diverges.toml",
        train("batch = 1\nlearning_rate = 1e38\nduration = { updates = 1 }\n"),
    );
    let ran = sandbox.run(&["diverges.toml"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.err
            .contains("a weight is no number after the last update"),
        "{}",
        ran.err
    );

    // A row longer than the model's positions, and an empty separator.
    sandbox.write("text.txt", "Anna is in the garden. ".repeat(300));
    sandbox.write(
        "long.toml",
        train("sample = \"file\"\nbatch = 1\nduration = { updates = 1 }\n"),
    );
    let ran = sandbox.run(&["long.toml"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("document 1: its ")
            && ran.err.contains("more than the model's 512 positions"),
        "{}",
        ran.err
    );
    let ran = sandbox.run(&["check", "long.toml", "--set", "recover.separator="]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("an empty text separates nothing"),
        "{}",
        ran.err
    );
}

#[cfg(unix)]
test!(closed_output_changes_no_exit_code);
/// An output that cannot be written does not change the exit code. `/dev/full` fails every write.
#[cfg(unix)]
fn closed_output_changes_no_exit_code() {
    let sandbox = sandbox();
    for (arguments, code) in [
        ("check measure.toml", 0),
        ("schema", 0),
        ("check nowhere.toml", 2),
    ] {
        let script = format!(
            "'{}' {arguments} >/dev/full 2>/dev/full",
            runner().display()
        );
        let status = std::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(sandbox.path(""))
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{arguments}");
    }
}
