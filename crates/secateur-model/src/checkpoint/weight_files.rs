//! Which files of a folder hold the weights. The order is that of transformers: `model.safetensors`,
//! then the shards of `model.safetensors.index.json`, then PyTorch's files, which are refused. One
//! safetensors file of another name is read where there is nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{CheckpointError, INDEX_FILE, WEIGHTS_FILE};
use crate::regular_file;

/// The files of a checkpoint's weights.
#[derive(Debug)]
pub(super) struct WeightFiles {
    /// The safetensors files, sorted by name.
    pub files: Vec<PathBuf>,
    /// The index that names them, if they are shards.
    pub index: Option<PathBuf>,
    /// Whether the folder has an index that is not read.
    pub ignores_index: bool,
    /// What the folder holds besides and is not read, in one sentence each.
    pub warnings: Vec<String>,
}

impl WeightFiles {
    /// Finds the weights of a folder.
    ///
    /// # Errors
    /// If there are none in a form that is read, or shards are missing; the error says what to do.
    pub(super) fn find(folder: &Path) -> Result<Self, CheckpointError> {
        let names = file_names(folder).map_err(|source| CheckpointError::Read {
            path: folder.to_owned(),
            source,
        })?;
        let has = |name: &str| names.iter().any(|found| found == name);
        let mut warnings = Vec::new();
        if has(ADAPTER_CONFIG_FILE) && (has(WEIGHTS_FILE) || has(INDEX_FILE)) {
            warnings.push(format!(
                "`{}` also holds an adapter ({ADAPTER_CONFIG_FILE}), which is not read",
                folder.display()
            ));
        }
        if has(WEIGHTS_FILE) {
            let ignores_index = has(INDEX_FILE);
            if ignores_index {
                warnings.push(format!(
                    "`{}` holds {WEIGHTS_FILE} and {INDEX_FILE}; {WEIGHTS_FILE} is read, as \
                     transformers does, and the index is not",
                    folder.display()
                ));
            }
            return Ok(Self {
                files: vec![folder.join(WEIGHTS_FILE)],
                index: None,
                ignores_index,
                warnings,
            });
        }
        if has(INDEX_FILE) {
            let index = folder.join(INDEX_FILE);
            return Ok(Self {
                files: shards(folder, &index)?,
                index: Some(index),
                ignores_index: false,
                warnings,
            });
        }
        let name = other_safetensors(folder, &names)?;
        warnings.push(format!(
            "`{}` has no {WEIGHTS_FILE}; its only safetensors file, `{name}`, is read",
            folder.display()
        ));
        Ok(Self {
            files: vec![folder.join(name)],
            index: None,
            ignores_index: false,
            warnings,
        })
    }
}

const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";

/// The names in a folder, sorted.
fn file_names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The files that an index names, sorted by name.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let broken = |message: String| CheckpointError::Index {
        path: index.to_owned(),
        message,
    };
    let text = regular_file::read(index).map_err(|source| CheckpointError::Read {
        path: index.to_owned(),
        source,
    })?;
    let json: Value =
        serde_json::from_slice(&text).map_err(|e| broken(format!("it is not valid JSON: {e}")))?;
    let weight_map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| broken("it has no table `weight_map`".to_owned()))?;
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (tensor, file) in weight_map {
        let is_file_name = |name: &&str| !name.is_empty() && !name.contains(['/', '\\']);
        let name = file
            .as_str()
            .filter(is_file_name)
            .ok_or_else(|| broken(format!("the file of `{tensor}` is {file}, not a file name")))?;
        names.insert(name);
    }
    if names.is_empty() {
        return Err(broken("it names no file".to_owned()));
    }
    let is_missing = |name: &&&str| folder.join(name).symlink_metadata().is_err();
    let missing: Vec<String> = names
        .iter()
        .filter(is_missing)
        .map(|name| format!("`{name}`"))
        .collect();
    if !missing.is_empty() {
        return Err(broken(format!(
            "it names {} files, of which these are missing: {}",
            names.len(),
            missing.join(", ")
        )));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The only safetensors file of a folder without `model.safetensors` and index.
fn other_safetensors<'a>(folder: &Path, names: &'a [String]) -> Result<&'a str, CheckpointError> {
    let no_model = |message: String, help: String| CheckpointError::NoModel {
        folder: folder.to_owned(),
        message,
        help,
    };
    let find = |is_one: &dyn Fn(&str) -> bool| {
        let found = names.iter().map(String::as_str).filter(|name| is_one(name));
        found.collect::<Vec<&str>>()
    };
    let quoted = |names: &[&str]| format!("`{}`", names.join("`, `"));
    let is_pytorch = |name: &str| {
        let is_weights = name.ends_with(".bin") || name.ends_with(".bin.index.json");
        name.starts_with("pytorch_model") && is_weights
    };
    if let Some(name) = find(&is_pytorch).first() {
        return Err(no_model(
            format!("its weights are in PyTorch's own format (`{name}`), which is not read"),
            convert_help(folder),
        ));
    }
    let safetensors = find(&|name| name.ends_with(".safetensors"));
    let is_adapter = |name: &str| name.starts_with("adapter");
    let models: Vec<&str> = safetensors
        .iter()
        .copied()
        .filter(|name| !is_adapter(name))
        .collect();
    match models[..] {
        [name] if name.starts_with("consolidated") => Err(no_model(
            format!(
                "`{name}` names its tensors as Mistral's own program does, not as transformers"
            ),
            "load the folder of the same model as transformers writes it, with model.safetensors"
                .to_owned(),
        )),
        [name] if shard_count(name) <= 1 => Ok(name),
        [_, ..] if models.iter().all(|name| shard_count(name) > 0) => Err(no_model(
            format!(
                "it holds shards ({}), and the file that says what is in which, {INDEX_FILE}, is \
                 missing",
                quoted(&models)
            ),
            "put the index of the checkpoint beside its shards".to_owned(),
        )),
        [_, ..] => Err(no_model(
            format!(
                "it has neither {WEIGHTS_FILE} nor {INDEX_FILE}, and several other safetensors \
                 files: {}",
                quoted(&models)
            ),
            format!("rename the one that is meant to {WEIGHTS_FILE}"),
        )),
        [] if !safetensors.is_empty() || names.iter().any(|name| name == ADAPTER_CONFIG_FILE) => {
            Err(no_model(
                "it holds an adapter, not a model".to_owned(),
                format!(
                    "load the model that the adapter was trained on ({ADAPTER_CONFIG_FILE} names \
                     it as base_model_name_or_path); `recover.init` takes the adapter"
                ),
            ))
        }
        [] => Err(no_weights(names, no_model)),
    }
}

/// The error for a folder without safetensors files.
fn no_weights(
    names: &[String],
    no_model: impl Fn(String, String) -> CheckpointError,
) -> CheckpointError {
    /// Ends of the names of weights in other forms, and what they are.
    const OTHER_FORMS: [(&str, &str); 8] = [
        (".gguf", "GGUF, the format of llama.cpp"),
        (".ggml", "GGML, the old format of llama.cpp"),
        (".pth", "PyTorch's own format"),
        (".pt", "PyTorch's own format"),
        (".bin", "PyTorch's own format"),
        (".h5", "TensorFlow's format"),
        (".msgpack", "Flax's format"),
        (".onnx", "ONNX"),
    ];
    for (end, what) in OTHER_FORMS {
        if let Some(name) = names.iter().find(|name| name.ends_with(end)) {
            return no_model(
                format!("its weights are in {what} (`{name}`), which is not read"),
                "load the folder of the same model as transformers writes it, with safetensors \
                 files"
                    .to_owned(),
            );
        }
    }
    no_model(
        format!("it has neither {WEIGHTS_FILE} nor {INDEX_FILE}"),
        String::new(),
    )
}

/// The command that writes a folder's weights as safetensors.
fn convert_help(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "convert it: python -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('{folder}', torch_dtype='auto').save_pretrained('{folder}-safetensors')\"; \
         copy the tokenizer's files there, and load `{folder}-safetensors`"
    )
}

/// The number of shards that a name such as `model-00001-of-00003.safetensors` states; 0: it states
/// none.
fn shard_count(name: &str) -> usize {
    let stem = name.trim_end_matches(".safetensors");
    stem.rsplit_once("-of-")
        .and_then(|(_, count)| count.parse().ok())
        .unwrap_or(0)
}
