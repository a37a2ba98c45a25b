//! What all tests use: the harness, shared material, models, a working directory for the program.

#[macro_use]
pub(crate) mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use secateur::progress::Progress;
use secateur::stages::{Context, MemoryBudget, StageCheckpoint};
use secateur_base::random::Seed;
use secateur_model::Model;
use secateur_model::walk::{self, Sequence};

pub(crate) use harness::{comparison_device, shared};

/// The context of a stage that is called outside a pipeline.
pub(crate) fn context() -> Context {
    Context {
        seed: Seed::from_u64(42),
        data_folder: harness::find_shared("data"),
        output_folder: std::env::temp_dir(),
        memory_budget: MemoryBudget {
            bytes: u64::MAX,
            stream_override: None,
        },
        occurrence: 0,
        repeat_position: None,
        checkpoint: StageCheckpoint::default(),
        progress: Progress::default(),
        stop_requested: Arc::default(),
    }
}

/// The root of the project: `SECATEUR_ROOT`, for tests that run where they were not built
/// (`scripts/gpu_check.sh`), else where they were built.
pub(crate) fn project_root() -> PathBuf {
    let built_at = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("SECATEUR_ROOT").map_or_else(built_at, PathBuf::from)
}

/// The program: `SECATEUR_RUNNER`, else the one that Cargo built for these tests.
pub(crate) fn runner() -> PathBuf {
    let built_at = || PathBuf::from(env!("CARGO_BIN_EXE_runner"));
    std::env::var_os("SECATEUR_RUNNER").map_or_else(built_at, PathBuf::from)
}

/// The folder of the model that ships with the project.
pub(crate) fn tiny_folder() -> PathBuf {
    project_root().join("models/tiny")
}

/// The model that ships with the project.
pub(crate) fn tiny() -> Model {
    Model::load(&tiny_folder()).unwrap()
}

/// A file of `tests/golden/data`: numbers of other programs that are part of the repository.
pub(crate) fn golden_data(file: &str) -> PathBuf {
    project_root().join("tests/golden/data").join(file)
}

/// The largest of some values that are not negative, 0 if there are none, and NaN if one is NaN.
///
/// `fold(0.0, f64::max)` would skip NaN: results of NaN would then stay below every tolerance.
pub(crate) fn largest<T: Into<f64>>(values: impl IntoIterator<Item = T>) -> f64 {
    let mut largest = 0.0;
    for value in values {
        let value = value.into();
        if value.is_nan() {
            return value;
        }
        largest = f64::max(largest, value);
    }
    largest
}

/// max |aᵢ − bᵢ|; NaN if one of the values is NaN.
pub(crate) fn largest_difference<T: Into<f64> + Copy>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "lists of different lengths");
    largest(a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).abs()))
}

/// A JSON file.
pub(crate) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A JSON array of numbers.
pub(crate) fn numbers<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Copies the files of a folder, so that they can be changed.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(
            to.join(entry.file_name()),
            std::fs::read(entry.path()).unwrap(),
        )
        .unwrap();
    }
}

/// The perplexity of a stream of ids in windows of 128 tokens, as LLM-Pruner measures it: exp of
/// the mean negative log probability of the 127 tokens of each window that have a token before
/// them.
pub(crate) fn stream_perplexity(model: &Model, ids: &[u32]) -> f64 {
    let windows: Vec<Sequence> = ids
        .chunks_exact(128)
        .map(|ids| Sequence::new(ids.to_vec(), &[true; 128]))
        .collect();
    let scores = walk::token_scores(model, &windows).unwrap();
    (-scores
        .iter()
        .flatten()
        .map(|score| score.log_probability)
        .sum::<f64>()
        / (windows.len() * 127) as f64)
        .exp()
}

/// A temporary working directory with the model and the data sets that ship with the project.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
}

/// The exit code and the output of a call of the program.
pub(crate) struct ProgramOutput {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = project_root();
        copy_folder(
            &root.join("models/tiny"),
            &folder.path().join("models/tiny"),
        );
        copy_folder(&root.join("datasets"), &folder.path().join("datasets"));
        Self { folder }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(path), content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn json(&self, path: &str) -> serde_json::Value {
        json(&self.path(path))
    }

    /// A call of the program in this folder, without the environment variables that would change
    /// its output.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(runner());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("SECATEUR_LOG")
            .env_remove("COLUMNS");
        for key in secateur::pipeline::settings::SETTING_KEYS {
            command.env_remove(format!("RUNNER_{}", key.to_uppercase()));
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> ProgramOutput {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        ProgramOutput {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The only folder of `results/<pipeline>` whose name starts with `beginning`.
    pub(crate) fn variant(&self, pipeline: &str, beginning: &str) -> String {
        self.variant_in("results", pipeline, beginning)
    }

    /// The same in another results folder.
    pub(crate) fn variant_in(&self, results: &str, pipeline: &str, beginning: &str) -> String {
        let names = std::fs::read_dir(self.path(&format!("{results}/{pipeline}"))).unwrap();
        let names = names
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap());
        let found: Vec<String> = names.filter(|name| name.starts_with(beginning)).collect();
        assert_eq!(found.len(), 1, "{beginning}: {found:?}");
        format!("{results}/{pipeline}/{}", found[0])
    }
}

/// Starts the program in the background.
#[cfg(unix)]
pub(crate) fn spawn(sandbox: &Sandbox, arguments: &[&str]) -> std::process::Child {
    sandbox
        .command(arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[cfg(unix)]
pub(crate) fn signal(child: &std::process::Child, name: &str) {
    let sent = std::process::Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// The entry of a process in `status.json`.
pub(crate) fn run_status(
    sandbox: &Sandbox,
    pipeline: &str,
    process: u32,
) -> Option<serde_json::Value> {
    let text = std::fs::read(sandbox.path(&format!("results/{pipeline}/status.json"))).ok()?;
    let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let mut runs = status["runs"].as_array()?.iter();
    runs.find(|run| run["process"] == process).cloned()
}

/// The paths of everything below a folder.
pub(crate) fn walk(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = |entry: std::fs::DirEntry| {
        let path = entry.path();
        let mut all = vec![path.display().to_string()];
        if path.is_dir() && !path.is_symlink() {
            all.extend(walk(&path));
        }
        all
    };
    entries.flat_map(inside).collect()
}

/// A Parquet file as one batch of rows.
pub(crate) fn table(path: &Path) -> arrow::array::RecordBatch {
    let file =
        std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<_> = reader
        .build()
        .unwrap()
        .map(|batch| batch.unwrap())
        .collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

/// A column as strings; null is the empty string.
pub(crate) fn text(column: &arrow::array::ArrayRef) -> Vec<String> {
    let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
    arrow::array::AsArray::as_string::<i32>(&column)
        .iter()
        .map(|text| text.unwrap_or_default().to_owned())
        .collect()
}

/// The names and types of a table's columns.
pub(crate) fn columns(path: &Path) -> Vec<String> {
    table(path)
        .schema()
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .collect()
}

/// A small pipeline with every stage from `load` to `export`.
pub(crate) const CHAIN: &str = r#"
[[stage]]
type = "load"
model = "models/tiny"

[[stage]]
type = "evaluate"
tasks = ["tiny_boolq", "tiny_piqa"]
limit = 6
corpora = ["heldout.jsonl"]

[[stage]]
type = "dependencies"
mlp_layers = [1, 5]

[[stage]]
type = "importance"
method = "taylor"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
samples = 6
length = 24

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.25

[[stage]]
type = "evaluate"
tasks = ["tiny_boolq"]
limit = 6

[[stage]]
type = "recover"
corpus = "datasets/tiny_world.txt"
separator = "\n<|endoftext|>\n"
rank = 2
batch = 5
learning_rate = 1e-3
duration = { updates = 3 }

[[stage]]
type = "evaluate"
tasks = ["tiny_boolq", "tiny_piqa"]
limit = 6
corpora = ["heldout.jsonl"]

[[stage]]
type = "export"
formats = ["hf", "plan"]
"#;

/// A working directory with [`CHAIN`] as `chain.toml` and the corpus that it evaluates.
pub(crate) fn chain() -> Sandbox {
    let sandbox = Sandbox::new();
    let heldout = String::from_utf8(sandbox.read("datasets/tiny_world_heldout.jsonl")).unwrap();
    let first_lines: Vec<&str> = heldout.lines().take(8).collect();
    sandbox.write("heldout.jsonl", first_lines.join("\n"));
    sandbox.write("chain.toml", CHAIN);
    sandbox
}

/// The files that must not differ between two runs of a variant: tables, plan, adapter and weights.
pub(crate) fn outcome(sandbox: &Sandbox, variant: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<String> = std::fs::read_dir(sandbox.path(variant))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".parquet") || name == "pipeline.toml" || name == "plan.json")
        .collect();
    files.extend(
        [
            "hf/model.safetensors",
            "hf/config.json",
            "adapter/adapter_model.safetensors",
        ]
        .map(str::to_owned),
    );
    files.sort();
    files
        .into_iter()
        .map(|file| (file.clone(), sandbox.read(&format!("{variant}/{file}"))))
        .collect()
}
