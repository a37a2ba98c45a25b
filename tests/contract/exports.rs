//! What an export holds: the files that belong to the model, config values as they were written,
//! the element type of the checkpoint; and what an adapter says of its base.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use safetensors::tensor::Dtype;
use secateur::stages::{Environment, Stage, export};
use secateur_model::{Model, ModelHeader};
use serde_json::{Value, json};

use super::model_folders::{ModelFolder, StoredTensor, read_tensors, write_tensors};
use crate::support::{Sandbox, json as read_json, table, text};

/// Prunes a quarter and exports, without a tokenizer.
const PRUNE: &str = r#"
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
type = "export"
"#;

/// The exported folder of a successful run of [`PRUNE`], relative to the sandbox.
fn prune(sandbox: &Sandbox, arguments: &[&str]) -> String {
    sandbox.write("prune.toml", PRUNE);
    let ran = sandbox.run(&[&["prune.toml"], arguments].concat());
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    // Options of the command line are in the name of the variant.
    let name = if arguments.is_empty() {
        "base-"
    } else {
        "float32-"
    };
    format!("{}/hf", sandbox.variant("prune", name))
}

test!(files_that_belong_to_the_model_travel_with_it);
fn files_that_belong_to_the_model_travel_with_it() {
    let sandbox = Sandbox::new();
    let model = |name: &str| format!("models/tiny/{name}");
    for folder in ["additional_chat_templates", "chat_templates", "licenses"] {
        std::fs::create_dir(sandbox.path(&model(folder))).unwrap();
    }
    std::fs::create_dir(sandbox.path(&model("onnx"))).unwrap();
    std::fs::remove_file(sandbox.path(&model("tokenizer.json"))).unwrap();
    let carried = [
        "tokenizer_config.json",
        "tokenizer.model",
        "qwen.tiktoken",
        "ice_text.model",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "chat_templates/default.jinja",
        "licenses/MIT.txt",
        "vocab.json.gz",
        "LICENSE.md",
        "NOTICE",
        "USE_POLICY.md",
        "tokenization_x.py",
        "helper_x.py",
    ];
    let left = [
        "README.md",
        "modeling_x.py",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "trainer_state.json",
        "model.safetensors.sha256",
        "onnx/model.onnx",
        ".gitattributes",
    ];
    for name in carried.iter().chain(&left) {
        sandbox.write(&model(name), format!("content of {name}"));
    }
    // The tokenizer's code is named by its config and still holds; the model's code does not.
    sandbox.write(
        &model("tokenizer_config.json"),
        json!({ "auto_map": { "AutoTokenizer": ["tokenization_x.XTokenizer", null] } }).to_string(),
    );
    sandbox.write(&model("tokenization_x.py"), "from .helper_x import f\n");
    let mut config = sandbox.json(&model("config.json"));
    config["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_x.XModel" });
    config["_name_or_path"] = json!("/home/someone/x");
    sandbox.write(&model("config.json"), config.to_string());
    std::os::unix::fs::symlink("NOTICE", sandbox.path(&model("LICENSE"))).unwrap();

    sandbox.write("prune.toml", PRUNE);
    let ran = sandbox.run(&["prune.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let hf = format!("{}/hf", sandbox.variant("prune", "base-"));
    for name in carried {
        assert_eq!(
            sandbox.read(&format!("{hf}/{name}")),
            sandbox.read(&model(name)),
            "{name}"
        );
    }
    let link = sandbox.path(&format!("{hf}/LICENSE"));
    assert!(link.symlink_metadata().unwrap().is_file(), "its content");
    for name in left {
        assert!(!sandbox.path(&format!("{hf}/{name}")).exists(), "{name}");
    }
    let config = sandbox.json(&format!("{hf}/config.json"));
    assert!(config["auto_map"].is_null() && config["_name_or_path"].is_null());
    let line = ran
        .err
        .lines()
        .find(|line| line.contains("left out of the export"))
        .expect("a line says what was left out");
    for name in [
        "auto_map",
        "_name_or_path",
        "modeling_x.py",
        "README.md",
        "onnx/",
    ] {
        assert!(line.contains(name), "{name}: {line}");
    }

    // A changed template makes a new export.
    sandbox.write(&model("chat_template.jinja"), "another");
    prune(&sandbox, &[]);
    assert_eq!(
        sandbox.read(&format!("{hf}/chat_template.jinja")),
        b"another"
    );
}

test!(values_of_the_config_keep_their_text);
fn values_of_the_config_keep_their_text() {
    let sandbox = Sandbox::new();
    let path = "models/tiny/config.json";
    let kept = [
        "\"rms_norm_eps\": 1e-05",
        "\"rope_theta\": 100",
        "\"initializer_range\": 0.020000000000000001",
        "\"seen_tokens\": 123456789012345678901234567890",
        "\"pretraining_tp\": null",
        "\"use_cache\": true",
        "\"layer_types\": [\"full_attention\",  \"full_attention\"]",
        "\"max_position_embeddings\": 512",
        "\"rope_scaling\": {\n    \"rope_type\": \"llama3\",\n    \"factor\": 32.0,\n    \
         \"low_freq_factor\": 1,\n    \"high_freq_factor\": 4.0,\n    \
         \"original_max_position_embeddings\": 64\n  }",
    ];
    let config = sandbox.json(path);
    let changed = |key: &&String| {
        !kept
            .iter()
            .any(|line| line.starts_with(&format!("\"{key}\"")))
    };
    let mut lines: Vec<String> = config
        .as_object()
        .unwrap()
        .keys()
        .filter(changed)
        .map(|key| format!("\"{key}\": {}", config[key]))
        .collect();
    lines.extend(kept.map(str::to_owned));
    sandbox.write(path, format!("{{{}}}", lines.join(", ")));
    let hf = prune(&sandbox, &[]);
    let exported = String::from_utf8(sandbox.read(&format!("{hf}/config.json"))).unwrap();
    for line in kept {
        assert!(exported.contains(line), "{line}: {exported}");
    }
    let exported: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(exported["num_attention_heads"], json!(6));
    assert_eq!(exported["num_key_value_heads"], json!(3));
    assert!(Model::load(&sandbox.path(&hf)).is_ok());

    // A list with an entry for each layer does not hold for fewer layers.
    sandbox.write("layers.toml", PRUNE);
    let ran = sandbox.run(&["layers.toml", "--set", "dependencies.grouping=layer"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let variant = sandbox.variant("layers", "layer-");
    let exported = sandbox.json(&format!("{variant}/hf/config.json"));
    assert!(exported["num_hidden_layers"].as_u64() < Some(6));
    assert!(exported["layer_types"].is_null(), "{exported}");
    assert!(ran.err.contains("layer_types"), "{}", ran.err);
}

test!(configs_in_the_newer_style_stay_in_it);
fn configs_in_the_newer_style_stay_in_it() {
    let folder = ModelFolder::new();
    let mut config = read_json(&folder.path("config.json"));
    let keys = config.as_object_mut().unwrap();
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        keys.remove(key);
    }
    keys.insert("dtype".to_owned(), json!("float32"));
    keys.insert(
        "rope_parameters".to_owned(),
        json!({ "rope_type": "default", "rope_theta": 100.0 }),
    );
    folder.write("config.json", config.to_string());
    let model = Model::load(folder.root()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let float16 = serde_json::from_value(json!("float16")).unwrap();
    model.save(out.path(), float16).unwrap();
    let mut expected = config.clone();
    expected["dtype"] = json!("float16");
    assert_eq!(read_json(&out.path().join("config.json")), expected);
    assert_eq!(
        Model::load(out.path()).unwrap().config.rope,
        model.config.rope
    );
}

/// The tensors in another type.
fn cast(tensors: Vec<StoredTensor>, dtype: Dtype) -> Vec<StoredTensor> {
    let values = |bytes: &[u8]| -> Vec<f32> {
        let numbers = bytes.chunks_exact(4);
        numbers
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    };
    let encode = |value: f32| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes(),
        _ => half::bf16::from_f32(value).to_le_bytes(),
    };
    tensors
        .into_iter()
        .map(|(name, _, shape, bytes)| {
            let bytes = values(&bytes).into_iter().flat_map(encode).collect();
            (name, dtype, shape, bytes)
        })
        .collect()
}

test!(an_export_has_the_type_of_the_checkpoint);
fn an_export_has_the_type_of_the_checkpoint() {
    for (dtype, name) in [(Dtype::F16, "float16"), (Dtype::BF16, "bfloat16")] {
        let sandbox = Sandbox::new();
        let weights = sandbox.path("models/tiny/model.safetensors");
        let mut tensors = cast(read_tensors(&weights), dtype);
        // A mixed checkpoint has the type of most of its bytes: the norms stay in float32.
        for tensor in &mut tensors {
            if tensor.0.ends_with("norm.weight") {
                tensor.1 = Dtype::F32;
                tensor.3 = 1.0f32.to_le_bytes().repeat(tensor.2[0]);
            }
        }
        write_tensors(&weights, &tensors);
        let hf = prune(&sandbox, &[]);
        let exported = sandbox.path(&format!("{hf}/model.safetensors"));
        let length = |path| std::fs::metadata(path).unwrap().len();
        assert!(length(&exported) < length(&weights), "it is smaller");
        assert!(
            read_tensors(&exported)
                .iter()
                .all(|tensor| tensor.1 == dtype)
        );
        assert_eq!(
            sandbox.json(&format!("{hf}/config.json"))["torch_dtype"],
            name
        );
        let sizes = table(&sandbox.path(&hf.replace("/hf", "/prune_sizes.parquet")));
        let count = |column: &str| sizes[column].as_primitive::<UInt64Type>().value(0);
        assert_eq!(count("bytes_before"), 2 * count("params_before"));
        assert_eq!(count("bytes_after"), 2 * count("params_after"));
        assert_eq!(text(&sizes["dtype"]), [name]);
        let variants = table(&sandbox.path("results/prune/variants.parquet"));
        assert_eq!(text(&variants["dtype"]), [name]);
        let header = ModelHeader::read(&sandbox.path(&hf)).unwrap();
        assert_eq!(header.dtype.torch_name(), name);
        // The estimate of the disk space has the same type.
        let parameters = header.parameters;
        let mut environment = Environment {
            model: Some(header),
            ..Environment::default()
        };
        export::Options::default().environment_faults(&mut environment);
        assert_eq!(environment.estimate.disk_space, 2 * parameters);

        // What the pipeline says counts before the checkpoint's type.
        let other = Sandbox::new();
        write_tensors(&other.path("models/tiny/model.safetensors"), &tensors);
        let hf = prune(&other, &["--set", "export.dtype=float32"]);
        let exported = read_tensors(&other.path(&format!("{hf}/model.safetensors")));
        assert!(exported.iter().all(|tensor| tensor.1 == Dtype::F32));
    }
}

/// Trains an adapter of the dense and then of the pruned model.
const RECOVER: &str = r#"
[[stage]]
type = "recover"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
rank = 2
batch = 2
length = 16
dropout = 0.1
duration = { updates = 2 }
"#;

test!(an_adapter_names_the_model_that_it_belongs_to);
fn an_adapter_names_the_model_that_it_belongs_to() {
    let sandbox = Sandbox::new();
    let load = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n";
    let prune = PRUNE.split("[[stage]]\ntype = \"export\"").next().unwrap();
    let adapter = |name: &str, pipeline: String| {
        sandbox.write(&format!("{name}.toml"), pipeline);
        let ran = sandbox.run(&[&format!("{name}.toml")]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let folder = format!("{}/adapter", sandbox.variant(name, "base-"));
        let readme = String::from_utf8(sandbox.read(&format!("{folder}/README.md"))).unwrap();
        (
            sandbox.json(&format!("{folder}/adapter_config.json")),
            readme,
        )
    };
    let (config, readme) = adapter("dense", format!("{load}{RECOVER}"));
    assert_eq!(config["base_model_name_or_path"], "models/tiny");
    assert!(readme.contains("`models/tiny`") && !readme.contains("plan.json"));
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(2)),
        ("lora_alpha", json!(16)),
        ("lora_dropout", json!(0.1)),
        ("bias", json!("none")),
        ("inference_mode", json!(true)),
        ("revision", Value::Null),
        ("modules_to_save", Value::Null),
    ] {
        assert_eq!(config.get(key), Some(&value), "{key}");
    }
    let (config, readme) = adapter("pruned", format!("{prune}{RECOVER}"));
    assert_eq!(config["base_model_name_or_path"], "models/tiny");
    assert!(readme.contains("after pruning") && readme.contains("`plan.json`"));
}

test!(a_trained_tokenizer_states_the_positions_of_its_model);
/// Also with the smallest vocabulary: 256 bytes and two special tokens.
fn a_trained_tokenizer_states_the_positions_of_its_model() {
    let sandbox = Sandbox::new();
    let pretrain = |vocabulary: usize| {
        format!(
            "[[stage]]\ntype = \"pretrain\"\ncorpus = \"datasets/tiny_world.txt\"\n\
             separator = \"\\n<|endoftext|>\\n\"\nvocabulary = {vocabulary}\nhidden = 16\n\
             blocks = 1\nheads = 2\nmlp = 16\nlength = 600\nbatch = 1\nupdates = 1\n\
             [[stage]]\ntype = \"export\"\n"
        )
    };
    sandbox.write("trained.toml", pretrain(258));
    let ran = sandbox.run(&["trained.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let hf = format!("{}/hf", sandbox.variant("trained", "base-"));
    let json = |name: &str| sandbox.json(&format!("{hf}/{name}"));
    assert_eq!(json("config.json")["vocab_size"], 258);
    assert_eq!(json("config.json")["max_position_embeddings"], 600);
    assert_eq!(json("tokenizer_config.json")["model_max_length"], 600);
    sandbox.write("trained.toml", pretrain(257));
    let ran = sandbox.run(&["trained.toml"]);
    assert!(
        ran.code == 2 && ran.err.contains("257 entries cannot hold the 256 bytes"),
        "{}",
        ran.err
    );
}
