//! A Hugging Face folder in: `config.json`, one or several safetensors files (with their index), f32, f16 or bf16.
//! Everything is checked before a weight is read: headers, offsets, shapes against each other and against the config.
//! Weights are widened to f32 as they are read: at once, or whenever an operation asks for one that stays on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::config::{Config, ConfigError};
use super::stored_tensor::CheckpointTensor;
use super::wiring::{BlockTensor, LLAMA, TensorId};
use secateur_tensor::{Weight, WeightFile, WeightReadError};

/// A checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("there is no model in `{}`: {message}", .folder.display())]
    NoModel { folder: PathBuf, message: String },
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}`: {source}", .path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("`{}` is not a whole safetensors file: {message}", .path.display())]
    Safetensors { path: PathBuf, message: String },
    #[error("`{}`: {message}", .path.display())]
    Index { path: PathBuf, message: String },
    #[error("the tensor `{0}` is missing")]
    MissingTensor(String),
    #[error("the tensor `{name}` has shape {found:?}; {expected}")]
    Shape {
        name: String,
        found: Vec<usize>,
        expected: String,
    },
    #[error("the checkpoint holds `{name}`, and config.json says num_hidden_layers = {layers}")]
    UnusedTensor { name: String, layers: usize },
    #[error("the tensor `{name}` holds {found:?}; supported: F32, F16, BF16")]
    Dtype { name: String, found: Dtype },
    #[error("the tensor `{name}` holds a NaN or an infinity at element {element_index}")]
    NotFinite { name: String, element_index: usize },
    #[error(transparent)]
    Unreadable(#[from] WeightReadError),
    #[error(transparent)]
    Tokenizer(#[from] super::tokenizer::TokenizerError),
}

/// An opened checkpoint: headers read and checked, weights still on disk.
pub struct Checkpoint {
    pub config: Config,
    shards: Vec<Shard>,
    /// Tensor → the file that holds it.
    shard_by_tensor: BTreeMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    file: Arc<File>,
    /// Where the tensors' bytes begin.
    data_offset: usize,
    metadata: Metadata,
}

impl Checkpoint {
    /// Opens a folder and checks all that can be known without reading a weight.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let no_model = |message: &str| CheckpointError::NoModel {
            folder: folder.to_owned(),
            message: message.to_owned(),
        };
        if !folder.is_dir() {
            return Err(no_model("it is not a folder"));
        }
        let config_path = folder.join("config.json");
        if !config_path.exists() {
            return Err(no_model("it has no config.json"));
        }
        let text =
            std::fs::read_to_string(&config_path).map_err(|source| CheckpointError::Read {
                path: config_path.clone(),
                source,
            })?;
        let config =
            Config::parse(&text, LLAMA.model_types).map_err(|source| CheckpointError::Config {
                path: config_path,
                source,
            })?;
        let files = weight_files(folder)?
            .into_iter()
            .map(Shard::open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut holder = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.metadata.tensors().into_keys() {
                if let Some(other) = holder.insert(name.clone(), i) {
                    let message = format!("`{name}` is also in `{}`", files[other].path.display());
                    return Err(CheckpointError::Index {
                        path: file.path.clone(),
                        message,
                    });
                }
            }
        }
        let checkpoint = Self {
            config,
            shards: files,
            shard_by_tensor: holder,
        };
        checkpoint.check_shapes()?;
        Ok(checkpoint)
    }

    /// Parameters, a tied head counted once.
    pub fn parameter_count(&self) -> u64 {
        let weights = self.tensor_ids().map(|place| LLAMA.tensor_name(place));
        let shapes = weights
            .chain(self.bias_names())
            .filter_map(|name| Some(&self.tensor_info(&name).ok()?.1.shape));
        shapes
            .map(|shape| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// Reads one weight, widened to f32.
    pub fn read_weight(&self, place: TensorId) -> Result<Weight, CheckpointError> {
        self.read_tensor(LLAMA.tensor_name(place))
    }

    /// A weight that stays on disk. It is read once, to see whether it is whole.
    pub fn open_weight(&self, place: TensorId) -> Result<Weight, CheckpointError> {
        let (rows, cols) = {
            let weight = self.read_weight(place)?;
            (weight.rows(), weight.cols())
        };
        Ok(Weight::from_file(
            Arc::new(self.locate_tensor(&LLAMA.tensor_name(place))?),
            rows,
            cols,
        ))
    }

    fn locate_tensor(&self, name: &str) -> Result<CheckpointTensor, CheckpointError> {
        let (shard, info) = self.tensor_info(name)?;
        let (rows, cols) = match info.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, info.shape.iter().product()),
        };
        let (file, path) = (shard.file.clone(), shard.path.clone());
        let offset = (shard.data_offset + info.data_offsets.0) as u64;
        Ok(CheckpointTensor {
            file,
            path,
            name: name.to_owned(),
            dtype: info.dtype,
            offset,
            rows,
            cols,
        })
    }

    /// Reads the bias beside a block's matrix, widened to f32.
    pub fn read_bias(&self, layer: usize, part: BlockTensor) -> Result<Weight, CheckpointError> {
        self.read_tensor(LLAMA.bias_name(layer, part))
    }

    fn read_tensor(&self, name: String) -> Result<Weight, CheckpointError> {
        let tensor = self.locate_tensor(&name)?;
        let values = tensor.read()?;
        if let Some(at) = values.par_iter().position_first(|v| !v.is_finite()) {
            return Err(CheckpointError::NotFinite {
                name,
                element_index: at,
            });
        }
        Ok(Weight::new(values, tensor.rows, tensor.cols))
    }

    /// Every weight that the model has.
    fn tensor_ids(&self) -> impl Iterator<Item = TensorId> {
        let blocks = (0..self.config.layers)
            .flat_map(|i| BlockTensor::ALL.map(|part| TensorId::Block(i, part)));
        let head = (!self.config.tied_embeddings).then_some(TensorId::LmHead);
        [TensorId::Embedding]
            .into_iter()
            .chain(blocks)
            .chain([TensorId::FinalNorm])
            .chain(head)
    }

    /// The names of the biases that the config speaks of.
    fn bias_names(&self) -> impl Iterator<Item = String> {
        (0..self.config.layers).flat_map(|layer| {
            self.config
                .biased_tensors()
                .map(move |part| LLAMA.bias_name(layer, part))
        })
    }

    fn tensor_info(&self, name: &str) -> Result<(&Shard, &TensorInfo), CheckpointError> {
        let file = &self.shards[*self
            .shard_by_tensor
            .get(name)
            .ok_or_else(|| CheckpointError::MissingTensor(name.to_owned()))?];
        let info = file
            .metadata
            .info(name)
            .ok_or_else(|| CheckpointError::MissingTensor(name.to_owned()))?;
        Ok((file, info))
    }

    fn tensor_shape(&self, place: TensorId) -> Result<&[usize], CheckpointError> {
        self.tensor_info(&LLAMA.tensor_name(place))
            .map(|(_, info)| &info.shape[..])
    }

    /// Shapes against each other and the config. Heads and MLP widths are the weights' own and may differ by layer.
    fn check_shapes(&self) -> Result<(), CheckpointError> {
        let Config {
            hidden,
            head_dim,
            vocab,
            layers,
            ..
        } = self.config;
        for name in self
            .tensor_ids()
            .map(|place| LLAMA.tensor_name(place))
            .chain(self.bias_names())
        {
            let found = self.tensor_info(&name)?.1.dtype;
            if !matches!(found, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(CheckpointError::Dtype { name, found });
            }
        }
        let expect = |place: TensorId, fits: bool, expected: String| {
            let found = self.tensor_shape(place)?;
            if fits {
                Ok(())
            } else {
                Err(CheckpointError::Shape {
                    name: LLAMA.tensor_name(place),
                    found: found.to_vec(),
                    expected,
                })
            }
        };
        let exactly = |place: TensorId, shape: &[usize], why: &str| {
            expect(
                place,
                self.tensor_shape(place)? == shape,
                format!("{why} asks for {shape:?}"),
            )
        };
        exactly(
            TensorId::Embedding,
            &[vocab, hidden],
            "config.json (vocab_size, hidden_size)",
        )?;
        exactly(TensorId::FinalNorm, &[hidden], "config.json (hidden_size)")?;
        if !self.config.tied_embeddings {
            exactly(
                TensorId::LmHead,
                &[vocab, hidden],
                "config.json (vocab_size, hidden_size)",
            )?;
        }
        for layer in 0..layers {
            let at = |part| TensorId::Block(layer, part);
            for part in [BlockTensor::InputNorm, BlockTensor::PostAttentionNorm] {
                exactly(at(part), &[hidden], "config.json (hidden_size)")?;
            }
            for part in [
                BlockTensor::Q,
                BlockTensor::K,
                BlockTensor::V,
                BlockTensor::Gate,
                BlockTensor::Up,
            ] {
                let fits = matches!(self.tensor_shape(at(part))?, [rows, cols] if *cols == hidden && *rows > 0);
                expect(
                    at(part),
                    fits,
                    format!("it must read the {hidden} channels of config.json's hidden_size"),
                )?;
            }
            let rows = |part| self.tensor_shape(at(part)).map(|shape| shape[0]);
            let (q, k, width) = (
                rows(BlockTensor::Q)?,
                rows(BlockTensor::K)?,
                rows(BlockTensor::Gate)?,
            );
            expect(
                at(BlockTensor::Q),
                q % head_dim == 0,
                format!("its rows must be heads of {head_dim} channels (config.json)"),
            )?;
            expect(
                at(BlockTensor::K),
                k % head_dim == 0 && q % k == 0,
                format!(
                    "its rows must be heads of {head_dim} channels (config.json) that share the {} query heads evenly",
                    q / head_dim
                ),
            )?;
            exactly(at(BlockTensor::V), &[k, hidden], "k_proj beside it")?;
            exactly(at(BlockTensor::O), &[hidden, q], "q_proj beside it")?;
            exactly(at(BlockTensor::Up), &[width, hidden], "gate_proj beside it")?;
            exactly(
                at(BlockTensor::Down),
                &[hidden, width],
                "gate_proj beside it",
            )?;
            for part in self.config.biased_tensors() {
                let (name, rows) = (
                    LLAMA.bias_name(layer, part),
                    self.tensor_shape(at(part))?[0],
                );
                let found = self.tensor_info(&name)?.1.shape.clone();
                if found != [rows] {
                    return Err(CheckpointError::Shape {
                        name,
                        found,
                        expected: format!("the matrix beside it asks for [{rows}]"),
                    });
                }
            }
        }
        self.check_widths()?;
        for name in self
            .shard_by_tensor
            .keys()
            .filter(|name| !self.is_expected_tensor(name))
        {
            if name.starts_with(LLAMA.block_prefix) {
                return Err(CheckpointError::UnusedTensor {
                    name: name.clone(),
                    layers,
                });
            }
            tracing::warn!(
                tensor = name,
                "the checkpoint holds a tensor that this family does not have; it is not used"
            );
        }
        Ok(())
    }

    /// Layers may have widths of their own, but a width that no layer has is a config of another model.
    fn check_widths(&self) -> Result<(), CheckpointError> {
        let Config {
            layers,
            head_dim,
            declared_widths: widths,
            ..
        } = self.config;
        let said = [
            (
                "num_attention_heads",
                BlockTensor::Q,
                widths.query_heads,
                head_dim,
            ),
            (
                "num_key_value_heads",
                BlockTensor::K,
                widths.key_value_heads,
                head_dim,
            ),
            (
                "intermediate_size",
                BlockTensor::Gate,
                widths.mlp_channels,
                1,
            ),
        ];
        for (key, part, said, channels) in said {
            let found = (0..layers).map(|layer| {
                self.tensor_shape(TensorId::Block(layer, part))
                    .map(|shape| shape[0] / channels)
            });
            let found = found.collect::<Result<Vec<_>, _>>()?;
            if let Some(said) = said.filter(|said| !found.contains(said)) {
                let (name, found) = (
                    LLAMA.tensor_name(TensorId::Block(0, part)),
                    self.tensor_shape(TensorId::Block(0, part))?.to_vec(),
                );
                let expected = format!(
                    "config.json says {key} = {said}, and no layer has it (heads of {head_dim} channels)"
                );
                return Err(CheckpointError::Shape {
                    name,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Whether a tensor belongs to the model, or is known to be derivable (rotary tables, a second copy of a tied head).
    fn is_expected_tensor(&self, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq")
            || name == LLAMA.tensor_name(TensorId::LmHead)
            || self
                .tensor_ids()
                .any(|place| LLAMA.tensor_name(place) == name)
            || self.bias_names().any(|bias| bias == name)
    }
}

impl Shard {
    /// Reads the header, which must not lie: its tensors neither overlap nor leave holes, and end with the file.
    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let read = |source| CheckpointError::Read {
            path: path.clone(),
            source,
        };
        let broken = |message: String| CheckpointError::Safetensors {
            path: path.clone(),
            message,
        };
        let file = File::open(&path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut size = [0; size_of::<u64>()];
        let first = size.len() as u64;
        if length < first {
            return Err(broken("it is too short for a header".to_owned()));
        }
        file.read_exact_at(&mut size, 0).map_err(read)?;
        let header = u64::from_le_bytes(size);
        // safetensors' own limit
        if header > (length - first).min(100_000_000) {
            return Err(broken(format!(
                "its header should take {header} bytes, and the file has {length}"
            )));
        }
        let mut text = vec![0; header as usize];
        file.read_exact_at(&mut text, first).map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|e| broken(format!("its header is broken: {e}")))?;
        let expected = first + header + metadata.data_len() as u64;
        if expected != length {
            return Err(broken(format!(
                "its header speaks of {expected} bytes, and the file has {length}"
            )));
        }
        Ok(Self {
            path,
            file: Arc::new(file),
            data_offset: (first + header) as usize,
            metadata,
        })
    }
}

/// The files that make up a checkpoint, as far as they are there.
pub fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let described = ["config.json", "model.safetensors.index.json"].map(|name| folder.join(name));
    described
        .into_iter()
        .filter(|path| path.exists())
        .chain(weight_files(folder).unwrap_or_default())
        .collect()
}

/// The index's files, or `model.safetensors`, or the one safetensors file there is.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let broken = |message: String| CheckpointError::Index {
            path: index.clone(),
            message,
        };
        let text = std::fs::read_to_string(&index).map_err(|source| CheckpointError::Read {
            path: index.clone(),
            source,
        })?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| broken(format!("it is not valid JSON: {e}")))?;
        let map = json
            .get("weight_map")
            .and_then(|m| m.as_object())
            .ok_or_else(|| broken("it has no table `weight_map`".to_owned()))?;
        let mut names: Vec<&str> = Vec::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .filter(|f| !f.contains(['/', '\\']))
                .ok_or_else(|| {
                    broken(format!("the file of `{tensor}` is {file}, not a file name"))
                })?;
            if !names.contains(&file) {
                names.push(file);
            }
        }
        names.sort_unstable();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    Err(CheckpointError::NoModel {
        folder: folder.to_owned(),
        message: "it has neither model.safetensors nor model.safetensors.index.json".to_owned(),
    })
}
