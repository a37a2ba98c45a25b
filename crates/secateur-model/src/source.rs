//! What a model keeps of the folder that it was read from: the folder's name, the type in which its
//! weights are stored, and the files that an export copies.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::CheckpointError;
use crate::checkpoint::{CONFIG_FILE, checkpoint_files};
use crate::regular_file;
use crate::stored::StorageDtype;

/// Where a model comes from.
#[derive(Clone, Debug, Default)]
pub struct ModelSource {
    /// The folder as the user named it. None: the model was not read from a user's folder.
    pub name: Option<String>,
    /// The element type of most of the stored weights, by bytes. float32 for a model that was not
    /// read from a file.
    pub dtype: StorageDtype,
    /// The folder's other files, as far as they belong to a pruned model too.
    pub files: Arc<CarriedFiles>,
    /// Whether units were removed after the model was read.
    pub is_pruned: bool,
}

/// The files of a model's folder besides config and weights: tokenizer, chat templates, generation
/// config, licences. They are copied unchanged, whether or not this program understands them. Left
/// behind is what describes the source alone: weights in other forms, quantisation, code of the
/// model, model cards and pictures, files of a training, other folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedFiles {
    /// Path relative to the folder, and content; sorted by path.
    pub carried: Vec<(PathBuf, Vec<u8>)>,
    /// Names of the files and folders that are left behind, sorted.
    pub left_behind: Vec<String>,
}

/// The paths of the files of a folder, relative to it.
#[derive(Debug, Default)]
pub(crate) struct FoundFiles {
    carried: Vec<PathBuf>,
    left_behind: Vec<String>,
}

impl CarriedFiles {
    /// Finds the files without reading them.
    ///
    /// # Errors
    /// If the folder cannot be read, or one of the files is not a file (a named pipe, a link to
    /// nothing).
    pub(crate) fn find(folder: &Path) -> Result<FoundFiles, CheckpointError> {
        let mut found = FoundFiles::default();
        let tokenizer_code = tokenizer_code(folder);
        let model_files = checkpoint_files(folder);
        for name in names_in(folder)? {
            let path = folder.join(&name);
            if name.starts_with('.') || model_files.contains(&path) {
                continue;
            }
            if path.is_dir() {
                match CARRIED_FOLDERS.contains(&name.to_lowercase().as_str()) {
                    true => found.carried.extend(files_below(folder, Path::new(&name))?),
                    false => found.left_behind.push(format!("{name}/")),
                }
            } else if (belongs_to_model(&name) || tokenizer_code.contains(&name))
                && file_length(&path)? <= MAX_CARRIED_BYTES
            {
                found.carried.push(name.into());
            } else {
                found.left_behind.push(name);
            }
        }
        Ok(found)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// As [`CarriedFiles::find`], and if a file cannot be read.
    pub(crate) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let found = Self::find(folder)?;
        let read = |relative: PathBuf| {
            let path = folder.join(&relative);
            let content = regular_file::read(&path).map_err(read_error(&path))?;
            Ok((relative, content))
        };
        let carried: Result<Vec<_>, CheckpointError> =
            found.carried.into_iter().map(read).collect();
        Ok(Self {
            carried: carried?,
            left_behind: found.left_behind,
        })
    }
}

/// The paths of the files of a model's folder that an export copies.
pub fn carried_files(folder: &Path) -> Vec<PathBuf> {
    let found = CarriedFiles::find(folder).unwrap_or_default();
    let paths = found.carried.iter();
    paths.map(|relative| folder.join(relative)).collect()
}

/// Folders whose files are carried.
const CARRIED_FOLDERS: [&str; 6] = [
    "additional_chat_templates",
    "chat_templates",
    "license",
    "licenses",
    "licence",
    "licences",
];

/// A larger file is left behind: it is no tokenizer and no licence.
const MAX_CARRIED_BYTES: u64 = 64 << 20;

/// Whether a file, by its name, belongs to a pruned model as well as to its source.
fn belongs_to_model(name: &str) -> bool {
    /// Parts of the names of licences, which are carried whatever their ending.
    const LICENCES: [&str; 7] = [
        "license",
        "licence",
        "notice",
        "copying",
        "copyright",
        "use_policy",
        "terms",
    ];
    /// Endings of weights in any form, and of an optimiser's state.
    const WEIGHTS: [&str; 16] = [
        "safetensors",
        "bin",
        "pt",
        "pth",
        "ckpt",
        "gguf",
        "ggml",
        "h5",
        "msgpack",
        "onnx",
        "onnx_data",
        "ot",
        "npz",
        "npy",
        "tflite",
        "pkl",
    ];
    /// Endings of code, of texts and pictures about the source, of data and logs.
    const ABOUT_SOURCE: [&str; 23] = [
        "py", "pyc", "ipynb", "md", "rst", "html", "pdf", "png", "jpg", "jpeg", "gif", "svg",
        "webp", "parquet", "jsonl", "csv", "log", "zip", "gz", "md5", "sha1", "sha256", "sha512",
    ];
    /// Quantisation, shapes, adapters, training.
    const SOURCE_NAMES: [&str; 14] = [
        CONFIG_FILE,
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
        "quantization_config.json",
        "params.json",
        "adapter_config.json",
        "trainer_state.json",
        "training_args.json",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
        "predict_results.json",
        "latest",
    ];
    let lower = name.to_lowercase();
    let (stem, ending) = lower.rsplit_once('.').unwrap_or((&lower, ""));
    if WEIGHTS.contains(&ending) || lower.ends_with(".index.json") || ending == "py" {
        return false;
    }
    let is_licence = LICENCES.iter().any(|part| stem.contains(part));
    let is_vocabulary = stem.contains("vocab") || stem.contains("tokenizer");
    if is_licence || is_vocabulary {
        return true;
    }
    let is_about_source = ABOUT_SOURCE.contains(&ending)
        || SOURCE_NAMES.contains(&lower.as_str())
        || stem == "readme"
        || lower.starts_with("config.")
        || lower.starts_with("events.out.tfevents");
    !is_about_source
}

/// The files of Python code that `tokenizer_config.json` names (`auto_map`), and those that these
/// import from beside them: a pruned model has the same tokenizer.
fn tokenizer_code(folder: &Path) -> Vec<String> {
    let json = |name: &str| -> Option<Value> {
        serde_json::from_slice(&regular_file::read(&folder.join(name)).ok()?).ok()
    };
    let Some(config) = json("tokenizer_config.json") else {
        return Vec::new();
    };
    // "tokenization_x.XTokenizer", alone, in a list or in a table of lists
    let mut open = vec![&config["auto_map"]];
    let mut code = Vec::new();
    while let Some(value) = open.pop() {
        match value {
            Value::Object(table) => open.extend(table.values()),
            Value::Array(list) => open.extend(list),
            Value::String(class) => {
                let module = class
                    .rsplit_once("--")
                    .map_or(class.as_str(), |(_, name)| name);
                code.extend(module.split_once('.').map(|(file, _)| format!("{file}.py")));
            }
            _ => {}
        }
    }
    let mut read = 0;
    while read < code.len() {
        let text = regular_file::read(&folder.join(&code[read])).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            let module = line.trim().strip_prefix("from .");
            let name = module.and_then(|module| module.split([' ', '.']).next());
            let file = name.map(|name| format!("{name}.py"));
            code.extend(file.filter(|file| !code.contains(file)));
        }
        read += 1;
    }
    code
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    }
}

/// The length of a file, in bytes.
fn file_length(path: &Path) -> Result<u64, CheckpointError> {
    regular_file::check(path)
        .and_then(|()| path.metadata())
        .map(|metadata| metadata.len())
        .map_err(read_error(path))
}

/// The names in a folder, sorted.
fn names_in(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read_error(folder))? {
        let name = entry.map_err(read_error(folder))?.file_name();
        // A name that is not UTF-8 is no file of a model.
        names.extend(name.into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// The files below a subfolder, relative to the folder, sorted.
fn files_below(folder: &Path, subfolder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = Vec::new();
    for name in names_in(&folder.join(subfolder))? {
        let relative = subfolder.join(&name);
        let path = folder.join(&relative);
        if name.starts_with('.') || path.is_dir() {
            continue;
        }
        regular_file::check(&path).map_err(read_error(&path))?;
        files.push(relative);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_model_are_carried_and_those_of_the_source_are_not() {
        for name in [
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer.model.v3",
            "tekken.json",
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "qwen.tiktoken",
            "spiece.model",
            "ice_text.model",
            "special_tokens_map.json",
            "added_tokens.json",
            "preprocessor_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "generation_config.json",
            "LICENSE",
            "LICENSE.md",
            "Notice.txt",
            "USE_POLICY.md",
            "COPYING",
            "a vocabulary of an unknown kind",
        ] {
            assert!(belongs_to_model(name), "{name}");
        }
        for name in [
            "README.md",
            "README",
            "modeling_x.py",
            "quantize_config.json",
            "params.json",
            "trainer_state.json",
            "architecture.png",
            "config.json.bak",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "training_args.bin",
            "optimizer.pt",
            "model.gguf",
        ] {
            assert!(!belongs_to_model(name), "{name}");
        }
    }
}
