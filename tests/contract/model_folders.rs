//! Model folders as users have them: which file counts, what is refused by what it is, and where
//! config and checkpoint disagree.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use secateur_model::wiring::TensorId;
use secateur_model::{CheckpointError, Model, ModelHeader};
use serde_json::{Value, json};

use crate::support::{Sandbox, copy_folder, json as read_json, tiny, tiny_folder};

/// A tensor of a safetensors file: its name, type, shape and bytes.
pub(crate) type StoredTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of models/tiny that a test changes.
pub(crate) struct ModelFolder {
    folder: tempfile::TempDir,
}

impl ModelFolder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&tiny_folder(), folder.path());
        Self { folder }
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn set(&self, key: &str, value: Value) {
        let mut config = read_json(&self.path("config.json"));
        config[key] = value;
        self.write("config.json", config.to_string());
    }

    pub(crate) fn tensors(&self) -> Vec<StoredTensor> {
        read_tensors(&self.path("model.safetensors"))
    }

    /// Replaces `model.safetensors`.
    pub(crate) fn write_tensors(&self, tensors: &[StoredTensor]) {
        write_tensors(&self.path("model.safetensors"), tensors);
    }

    /// Adds a tensor of zeros in float32 to `model.safetensors`.
    fn add_zeros(&self, name: &str, shape: &[usize]) {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let mut tensors = self.tensors();
        tensors.push((name.to_owned(), Dtype::F32, shape.to_vec(), bytes));
        self.write_tensors(&tensors);
    }

    fn header(&self) -> Result<ModelHeader, CheckpointError> {
        ModelHeader::read(self.root())
    }

    /// The message and the help of the error.
    fn error(&self) -> String {
        let error = self.header().expect_err("it is refused");
        format!("{error}; {}", error.help())
    }

    fn assert_refused(&self, phrases: &[&str]) {
        let error = self.error();
        for phrase in phrases {
            assert!(error.contains(phrase), "{phrase}: {error}");
        }
    }
}

pub(crate) fn read_tensors(path: &Path) -> Vec<StoredTensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors
        .map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        })
        .collect()
}

pub(crate) fn write_tensors(path: &Path, tensors: &[StoredTensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

const INDEX: &str = "model.safetensors.index.json";

test!(a_whole_file_counts_before_an_index);
fn a_whole_file_counts_before_an_index() {
    let folder = ModelFolder::new();
    let shard = "model-00001-of-00002.safetensors";
    let zeros = folder
        .tensors()
        .into_iter()
        .map(|(name, dtype, shape, bytes)| {
            let zeros = vec![0; bytes.len()];
            (name, dtype, shape, zeros)
        });
    let zeros: Vec<StoredTensor> = zeros.collect();
    write_tensors(&folder.path(shard), &zeros);
    let map: serde_json::Map<String, Value> = zeros
        .iter()
        .map(|(name, ..)| (name.clone(), json!(shard)))
        .collect();
    folder.write(INDEX, json!({ "weight_map": map }).to_string());
    let id = TensorId::Embedding;
    let assert_reads_whole_file = || {
        let model = Model::load(folder.root()).unwrap();
        assert_eq!(model.weight(id).values(), tiny().weight(id).values());
        let warnings = folder.header().unwrap().warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains(INDEX),
            "{warnings:?}"
        );
    };
    assert_reads_whole_file();
    // the index may be out of date
    std::fs::remove_file(folder.path(shard)).unwrap();
    assert_reads_whole_file();

    // Without the whole file the index counts, and every missing shard is named.
    std::fs::remove_file(folder.path("model.safetensors")).unwrap();
    let mut map = map;
    map.insert("x".to_owned(), json!("model-00002-of-00002.safetensors"));
    folder.write(INDEX, json!({ "weight_map": map }).to_string());
    folder.assert_refused(&[shard, "model-00002-of-00002.safetensors", "missing"]);
}

test!(one_safetensors_file_of_another_name_is_read_where_there_is_no_other);
fn one_safetensors_file_of_another_name_is_read_where_there_is_no_other() {
    let folder = ModelFolder::new();
    std::fs::rename(
        folder.path("model.safetensors"),
        folder.path("w.safetensors"),
    )
    .unwrap();
    let model = Model::load(folder.root()).unwrap();
    assert_eq!(
        model.embedding.values(),
        tiny().embedding.values(),
        "the only file"
    );
    let warnings = folder.header().unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("`w.safetensors`"),
        "{warnings:?}"
    );
    // An adapter is no model.
    std::fs::copy(
        folder.path("w.safetensors"),
        folder.path("adapter_model.safetensors"),
    )
    .unwrap();
    assert!(folder.header().is_ok());
    std::fs::copy(folder.path("w.safetensors"), folder.path("v.safetensors")).unwrap();
    folder.assert_refused(&["`v.safetensors`, `w.safetensors`", "rename"]);
    // transformers would read the weights in PyTorch's format.
    std::fs::remove_file(folder.path("v.safetensors")).unwrap();
    folder.write("pytorch_model.bin", "x");
    folder.assert_refused(&["`pytorch_model.bin`"]);
}

test!(weights_in_other_forms_are_named);
fn weights_in_other_forms_are_named() {
    for (names, phrases) in [
        (
            &["pytorch_model.bin"][..],
            &["PyTorch", "save_pretrained", "-safetensors`"][..],
        ),
        (
            &[
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00002.bin",
            ],
            &["PyTorch", "save_pretrained"],
        ),
        (&["model-q4.gguf"], &["GGUF", "`model-q4.gguf`"]),
        (
            &["consolidated.00.pth"],
            &["PyTorch", "consolidated.00.pth"],
        ),
        (&["consolidated.safetensors"], &["Mistral"]),
        (&["tf_model.h5"], &["TensorFlow"]),
        (
            &["adapter_model.safetensors", "adapter_config.json"],
            &["an adapter, not a model", "base_model_name_or_path"],
        ),
        (
            &[
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
            &["shards", INDEX],
        ),
        (&["model-00001-of-00002.safetensors"], &["shards", INDEX]),
    ] {
        let folder = ModelFolder::new();
        std::fs::remove_file(folder.path("model.safetensors")).unwrap();
        for name in names {
            folder.write(name, "{}");
        }
        folder.assert_refused(phrases);
    }
    // A folder with an adapter alone has no config.json.
    let folder = ModelFolder::new();
    for name in ["model.safetensors", "config.json"] {
        std::fs::remove_file(folder.path(name)).unwrap();
    }
    folder.write("adapter_config.json", "{}");
    folder.write("adapter_model.safetensors", "");
    folder.assert_refused(&["an adapter, not a model"]);
}

test!(names_that_are_no_folder_say_what_is_meant);
fn names_that_are_no_folder_say_what_is_meant() {
    let sandbox = Sandbox::new();
    std::os::unix::fs::symlink("nowhere", sandbox.path("models/link")).unwrap();
    for (name, phrases) in [
        (
            "models/tinny",
            &["no folder", "did you mean `models/tiny`?"][..],
        ),
        ("model/tiny", &["did you mean `models/tiny`?"]),
        (
            "models/tiny/config.json",
            &["not a folder", "`models/tiny`"],
        ),
        ("models/link", &["a link to `nowhere`"]),
        ("~/models/tiny", &["`~`"]),
        ("someone/some-model", &["hf download someone/some-model"]),
        (
            "hf://someone/some-model",
            &["hf download someone/some-model"],
        ),
        (
            "https://huggingface.co/someone/some-model",
            &["hf download someone/some-model"],
        ),
        ("models", &["no config.json", "did you mean `models/tiny`?"]),
        ("/nowhere/at/all", &["no folder", "config.json"]),
    ] {
        // two places that lead to the same missing folder
        sandbox.write(
            "p.toml",
            format!(
                "[[stage]]\ntype = \"load\"\nmodel = \"{name}\"\n[[stage]]\ntype = \"evaluate\"\n\
                 tasks = [\"tiny_boolq\"]\n[sweep]\n\"evaluate.limit\" = [1, 2]\n"
            ),
        );
        let ran = sandbox.run(&["check", "p.toml", "--format", "json"]);
        assert_eq!(ran.code, 2, "{name}: {}{}", ran.out, ran.err);
        let problems: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
        let text = format!("{}; {}", problems[0]["message"], problems[0]["help"]);
        for phrase in phrases {
            assert!(text.contains(phrase), "{name}: {phrase}: {text}");
        }
    }
}

test!(what_is_no_file_is_an_error_and_does_not_hang);
fn what_is_no_file_is_an_error_and_does_not_hang() {
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE",
    ] {
        let folder = ModelFolder::new();
        let path = folder.path(name);
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        folder.assert_refused(&[name, "named pipe"]);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere/file", &path).unwrap();
        folder.assert_refused(&[name, "a link to `/nowhere/file`"]);
        std::fs::remove_file(&path).unwrap();
        if name != "LICENSE" {
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            folder.assert_refused(&[name, "a device"]);
        }
    }
}

test!(an_output_matrix_that_differs_from_the_embedding_is_kept);
fn an_output_matrix_that_differs_from_the_embedding_is_kept() {
    let folder = ModelFolder::new();
    let vocab = tiny().embedding.rows();
    folder.add_zeros("lm_head.weight", &[vocab, 96]);
    let header = folder.header().unwrap();
    assert!(
        header.warnings.len() == 1
            && header.warnings[0].contains("tie_word_embeddings")
            && header.warnings[0].contains("`lm_head.weight`"),
        "{:?}",
        header.warnings
    );
    let model = Model::load(folder.root()).unwrap();
    assert_eq!(header.parameters, model.parameter_count());
    let head = model.lm_head.as_ref().expect("the checkpoint's");
    assert!(head.values().iter().all(|&value| value == 0.0));
    assert_eq!(
        (model.parameter_count() - tiny().parameter_count()) as usize,
        vocab * 96
    );
    // The export holds both and says so.
    let out = tempfile::tempdir().unwrap();
    model.save(out.path(), Default::default()).unwrap();
    let config = read_json(&out.path().join("config.json"));
    assert_eq!(config["tie_word_embeddings"], json!(false));
    let read = Model::load(out.path()).unwrap();
    assert!(read.lm_head.is_some() && ModelHeader::read(out.path()).unwrap().warnings.is_empty());

    // An equal one is a second copy, also in another type.
    for dtype in [Dtype::F32, Dtype::F16] {
        let folder = ModelFolder::new();
        let mut tensors = folder.tensors();
        let embedding = tensors
            .iter_mut()
            .find(|(name, ..)| name == "model.embed_tokens.weight")
            .unwrap();
        // numbers that float16 holds exactly
        let ones = 1.0f32.to_le_bytes().repeat(vocab * 96);
        embedding.3 = ones.clone();
        let head = match dtype {
            Dtype::F16 => half::f16::ONE.to_le_bytes().repeat(vocab * 96),
            _ => ones,
        };
        tensors.push(("lm_head.weight".to_owned(), dtype, vec![vocab, 96], head));
        folder.write_tensors(&tensors);
        assert!(folder.header().unwrap().warnings.is_empty());
        assert!(Model::load(folder.root()).unwrap().lm_head.is_none());
    }
    // One of another shape belongs to another model.
    let folder = ModelFolder::new();
    folder.add_zeros("lm_head.weight", &[7, 96]);
    folder.assert_refused(&["`lm_head.weight` has shape [7, 96]", "vocab_size"]);
}

test!(tensors_that_the_config_does_not_declare_are_named_with_what_to_write);
fn tensors_that_the_config_does_not_declare_are_named_with_what_to_write() {
    let with_zeros = |tensors: &[(&str, &[usize])]| {
        let folder = ModelFolder::new();
        for (name, shape) in tensors {
            folder.add_zeros(name, shape);
        }
        folder
    };
    let q_bias = "model.layers.0.self_attn.q_proj.bias";
    let folder = with_zeros(&[(q_bias, &[128])]);
    folder.assert_refused(&[
        q_bias,
        "`attention_bias`",
        "\"attention_bias\": true",
        "o_proj",
    ]);
    assert!(!folder.error().contains("num_hidden_layers"));
    with_zeros(&[("model.layers.2.mlp.up_proj.bias", &[256])])
        .assert_refused(&["\"mlp_bias\": true"]);
    // a norm on queries, as in another family
    let q_norm = "model.layers.1.self_attn.q_norm.weight";
    with_zeros(&[(q_norm, &[16])]).assert_refused(&[q_norm, "model_type"]);
    let seventh = "model.layers.6.mlp.up_proj.weight";
    with_zeros(&[(seventh, &[256, 96])]).assert_refused(&[seventh, "num_hidden_layers = 6"]);
    // Buffers hold no parameters; of others there is one warning.
    let folder = with_zeros(&[
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", &[1, 8]),
        ("model.layers.1.self_attn.masked_bias", &[1]),
        ("model.rotary_emb.inv_freq", &[8]),
    ]);
    assert_eq!(folder.header().unwrap().warnings, [""; 0]);
    let folder = with_zeros(&[("score.weight", &[2, 96]), ("v_head.bias", &[1])]);
    let warnings = folder.header().unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("`score.weight`, `v_head.bias`"),
        "{warnings:?}"
    );
}

test!(quantised_checkpoints_are_refused_as_such);
fn quantised_checkpoints_are_refused_as_such() {
    for (name, dtype, bytes_per_value, phrases) in [
        ("qweight", Dtype::I32, 4, &["quantised", "GPTQ or AWQ"][..]),
        (
            "weight.absmax",
            Dtype::U8,
            1,
            &["quantised", "bitsandbytes"],
        ),
        ("weight_scale_inv", Dtype::F32, 4, &["quantised", "FP8"]),
    ] {
        let folder = ModelFolder::new();
        let mut tensors = folder.tensors();
        let name = format!("model.layers.0.self_attn.q_proj.{name}");
        tensors.push((name.clone(), dtype, vec![2], vec![0; 2 * bytes_per_value]));
        folder.write_tensors(&tensors);
        folder.assert_refused(phrases);
        folder.assert_refused(&[&name, "quantised from"]);
        folder.set(
            "quantization_config",
            json!({ "quant_method": "some-method" }),
        );
        folder.assert_refused(&["quantised (some-method)"]);
    }
    let folder = ModelFolder::new();
    let mut tensors = folder.tensors();
    let weight = tensors
        .iter_mut()
        .find(|(name, ..)| name.ends_with("0.mlp.up_proj.weight"))
        .unwrap();
    weight.1 = Dtype::F8_E4M3;
    weight.3.truncate(weight.3.len() / 4);
    folder.write_tensors(&tensors);
    folder.assert_refused(&["quantised", "8 bits"]);
    // The key alone, beside whole weights, is a leftover.
    let folder = ModelFolder::new();
    folder.set("quantization_config", json!({ "quant_method": "gptq" }));
    let warnings = folder.header().unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("`quantization_config`"),
        "{warnings:?}"
    );
}

test!(missing_tensors_are_named_all_at_once_with_the_likely_reason);
fn missing_tensors_are_named_all_at_once_with_the_likely_reason() {
    let without = |gone: &dyn Fn(&str) -> bool| {
        let folder = ModelFolder::new();
        let mut tensors = folder.tensors();
        tensors.retain(|(name, ..)| !gone(name));
        folder.write_tensors(&tensors);
        folder
    };
    let (norm, up) = ("model.norm.weight", "model.layers.3.mlp.up_proj.weight");
    without(&|name| name == norm || name == up).assert_refused(&[norm, up, "2 tensors"]);
    let folder = ModelFolder::new();
    folder.set("tie_word_embeddings", json!(false));
    folder.assert_refused(&[
        "`lm_head.weight` is missing",
        "\"tie_word_embeddings\": true",
    ]);
    let folder = ModelFolder::new();
    folder.set("num_hidden_layers", json!(8));
    folder.assert_refused(&["num_hidden_layers = 8", "holds 6 layers"]);
    let folder = ModelFolder::new();
    let tensors = folder
        .tensors()
        .into_iter()
        .map(|(name, dtype, shape, bytes)| {
            let name = name.replace("model.layers.", "transformer.h.");
            (name, dtype, shape, bytes)
        });
    folder.write_tensors(&tensors.collect::<Vec<_>>());
    folder.assert_refused(&["other names", "model_type"]);
}

test!(warnings_of_a_folder_are_printed_at_its_place);
fn warnings_of_a_folder_are_printed_at_its_place() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "p.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n[[stage]]\ntype = \"export\"\n",
    );
    sandbox.write("models/tiny/model.safetensors.index.json", "{}");
    let check = sandbox.run(&["check", "p.toml", "--format", "json"]);
    assert_eq!(check.code, 0);
    let problems: Value = serde_json::from_str(&check.out).unwrap();
    assert_eq!(problems[0]["severity"], "warning");
    assert_eq!(problems[0]["line"], 3);
    let ran = sandbox.run(&["p.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let warnings = ran.err.matches("the index is not").count();
    assert_eq!(warnings, 1, "{}", ran.err);
}

test!(what_stands_in_place_of_weights_and_a_tokenizer_is_named);
fn what_stands_in_place_of_weights_and_a_tokenizer_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n";
    let gguf = format!("GGUF{}", "\0".repeat(100));
    for (file, content, phrases) in [
        ("model.safetensors", pointer, ["Git LFS", "git lfs pull"]),
        (
            "model.safetensors",
            &gguf,
            ["GGUF", "as transformers writes it"],
        ),
        (
            "model.safetensors",
            "<!DOCTYPE html><html></html>",
            ["a web page", "download"],
        ),
        ("tokenizer.json", pointer, ["Git LFS", "git lfs pull"]),
        (
            "tokenizer_config.json",
            "[1]",
            ["tokenizer_config.json`", "not an object"],
        ),
        ("config.json", "[1]", ["config.json`", "not an object"]),
        (
            "config.json",
            "{\"model_type\": 3}",
            ["`model_type` is 3", "a text"],
        ),
    ] {
        let folder = ModelFolder::new();
        folder.write(file, content);
        folder.assert_refused(&phrases);
        assert!(
            !folder.error().contains("invalid type"),
            "{}",
            folder.error()
        );
    }
    let folder = ModelFolder::new();
    std::fs::remove_file(folder.path("tokenizer.json")).unwrap();
    assert_eq!(
        folder.header().unwrap().missing_tokenizer_help,
        "put the tokenizer beside the model"
    );
    folder.write("tokenizer.model", "");
    let help = folder.header().unwrap().missing_tokenizer_help;
    assert!(
        help.contains("`tokenizer.model` is not read; convert it"),
        "{help}"
    );
}

test!(tensors_of_a_wrapped_model_are_told_from_another_family);
fn tensors_of_a_wrapped_model_are_told_from_another_family() {
    let renamed = |rename: &dyn Fn(&str) -> String| {
        let folder = ModelFolder::new();
        let tensors: Vec<StoredTensor> = folder
            .tensors()
            .into_iter()
            .map(|(name, dtype, shape, bytes)| (rename(&name), dtype, shape, bytes))
            .collect();
        folder.write_tensors(&tensors);
        folder.error()
    };
    let wrapped = renamed(&|name| format!("module.{name}"));
    assert!(wrapped.contains("begin with `module.`"), "{wrapped}");
    let inner = renamed(&|name| name.replacen("model.", "", 1));
    assert!(
        inner.contains("`embed_tokens.weight`; load it with"),
        "{inner}"
    );
    for error in [wrapped, inner] {
        assert!(!error.contains("model_type"), "{error}");
    }
    let folder = ModelFolder::new();
    let adapter = "model.layers.0.self_attn.q_proj.lora_A.weight";
    folder.add_zeros(adapter, &[4, 96]);
    folder.assert_refused(&[adapter, "not merged", "merge_and_unload"]);
    // Scales of stored keys and values: the weights do not depend on them.
    let folder = ModelFolder::new();
    folder.add_zeros("model.layers.0.self_attn.k_scale", &[1]);
    folder.add_zeros("model.layers.0.self_attn.v_proj.v_scale", &[1]);
    let warnings = folder.header().unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("self_attn.k_scale`"),
        "{warnings:?}"
    );
}

test!(a_width_that_the_config_does_not_write_is_not_said_to_be_written);
fn a_width_that_the_config_does_not_write_is_not_said_to_be_written() {
    let folder = ModelFolder::new();
    folder.set("num_key_value_heads", Value::Null);
    folder.assert_refused(&["has no num_key_value_heads, which stands for 8"]);
    let folder = ModelFolder::new();
    folder.set("head_dim", Value::Null);
    folder.assert_refused(&[
        "heads of 12 channels",
        "hidden_size / num_attention_heads",
        "no head_dim",
    ]);
}
