//! Reads a Hugging Face folder: `config.json` and one or several safetensors files (with their
//! index) in f32, f16 or bf16.
//!
//! Before a weight is read, all else is checked: headers, offsets, shapes against each other and
//! against the config. Weights are widened to f32 when they are read: at once, or whenever an
//! operation needs one that stays on disk. Parts of a fused tensor are read as tensors of their
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

mod check;

use crate::config::{Config, ConfigError};
use crate::family::{Family, RowSegments};
use crate::stored_tensor::{CheckpointRows, CheckpointTensor};
use crate::wiring::{BlockTensor, TensorId};
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
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
}

/// The configuration of a model.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// The weights of a checkpoint with one weight file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// The index of a checkpoint with several weight files: which file holds which tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// An opened checkpoint: headers are read and checked, weights are still on disk.
pub struct Checkpoint {
    pub family: &'static Family,
    pub config: Config,
    shards: Vec<Shard>,
    /// Stored tensor's name → index in `shards`.
    shard_by_tensor: BTreeMap<String, usize>,
}

/// One safetensors file of a checkpoint.
struct Shard {
    path: PathBuf,
    file: Arc<File>,
    /// Offset in the file at which the tensors' bytes begin.
    data_offset: usize,
    metadata: Metadata,
}

/// A logical tensor in the file that holds it.
struct LocatedTensor {
    file: Arc<dyn WeightFile>,
    rows: usize,
    cols: usize,
    /// The logical tensor's name, for messages.
    name: String,
}

impl LocatedTensor {
    /// Its values, widened to f32, row-major.
    fn read(&self) -> Result<Vec<f32>, CheckpointError> {
        let values = self.file.read()?;
        match values.par_iter().position_first(|v| !v.is_finite()) {
            Some(element_index) => Err(CheckpointError::NotFinite {
                name: self.name.clone(),
                element_index,
            }),
            None => Ok(values),
        }
    }
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
        let config_path = folder.join(CONFIG_FILE);
        if !config_path.exists() {
            return Err(no_model("it has no config.json"));
        }
        let text =
            std::fs::read_to_string(&config_path).map_err(|source| CheckpointError::Read {
                path: config_path.clone(),
                source,
            })?;
        let (family, config) = Config::parse(&text).map_err(|source| CheckpointError::Config {
            path: config_path,
            source,
        })?;
        let shards = weight_files(folder)?
            .into_iter()
            .map(Shard::open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut shard_by_tensor = BTreeMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().into_keys() {
                if let Some(other) = shard_by_tensor.insert(name.clone(), index) {
                    let message = format!("`{name}` is also in `{}`", shards[other].path.display());
                    return Err(CheckpointError::Index {
                        path: shard.path.clone(),
                        message,
                    });
                }
            }
        }
        let checkpoint = Self {
            family,
            config,
            shards,
            shard_by_tensor,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Parameters, a tied output matrix counted once.
    pub fn parameter_count(&self) -> u64 {
        self.stored_names()
            .iter()
            .filter_map(|name| Some(&self.tensor_info(name).ok()?.1.shape))
            .map(|shape| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// Reads one weight, widened to f32.
    pub fn read_weight(&self, id: TensorId) -> Result<Weight, CheckpointError> {
        let tensor = self.locate_weight(id)?;
        Ok(Weight::new(tensor.read()?, tensor.rows, tensor.cols))
    }

    /// A weight that stays on disk. It is read once, to check that it can be read and is finite.
    pub fn open_weight(&self, id: TensorId) -> Result<Weight, CheckpointError> {
        let tensor = self.locate_weight(id)?;
        tensor.read()?;
        Ok(Weight::from_file(tensor.file, tensor.rows, tensor.cols))
    }

    /// Reads the bias of a block's tensor, widened to f32: (1, outputs).
    pub fn read_bias(&self, layer: usize, tensor: BlockTensor) -> Result<Weight, CheckpointError> {
        let stored_name = self.family.stored_bias_name(layer, tensor);
        let name = self.family.bias_name(layer, tensor);
        let located = self.locate(&stored_name, name, self.fused_segments(tensor), true)?;
        let values = located.read()?;
        let outputs = values.len();
        Ok(Weight::new(values, 1, outputs))
    }

    /// Reads the bias of the final norm, where the family's norms have biases.
    pub fn read_final_norm_bias(&self) -> Result<Option<Weight>, CheckpointError> {
        if !self.family.norms_have_biases() {
            return Ok(None);
        }
        let name = self.family.final_norm_bias_name();
        let located = self.locate(&name, name.clone(), None, false)?;
        Ok(Some(Weight::new(located.read()?, 1, located.cols)))
    }

    fn locate_weight(&self, id: TensorId) -> Result<LocatedTensor, CheckpointError> {
        let segments = match id {
            TensorId::Block(_, tensor) => self.fused_segments(tensor),
            _ => None,
        };
        let name = self.family.tensor_name(id);
        self.locate(&self.family.stored_name(id), name, segments, false)
    }

    /// The rows of a logical tensor in the fused tensor that stores it, and the number of parts of
    /// the fused tensor. None: the tensor is stored alone.
    fn fused_segments(&self, tensor: BlockTensor) -> Option<(RowSegments, usize)> {
        let (module, part_index) = self.family.fused_module(tensor)?;
        let segments = module.segments(part_index, self.config.head_dim);
        Some((segments, module.parts.len()))
    }

    /// A stored tensor, or the rows of one part of it. A vector is one row; with `as_column` it is
    /// one column, so that `segments` can select its elements as rows.
    fn locate(
        &self,
        stored_name: &str,
        name: String,
        segments: Option<(RowSegments, usize)>,
        as_column: bool,
    ) -> Result<LocatedTensor, CheckpointError> {
        let (shard, info) = self.tensor_info(stored_name)?;
        let (rows, cols) = match info.shape[..] {
            [rows, cols] => (rows, cols),
            _ if as_column => (info.shape.iter().product(), 1),
            _ => (1, info.shape.iter().product()),
        };
        let stored = CheckpointTensor {
            file: shard.file.clone(),
            path: shard.path.clone(),
            name: stored_name.to_owned(),
            dtype: info.dtype,
            offset: (shard.data_offset + info.data_offsets.0) as u64,
            rows,
            cols,
        };
        let (file, rows): (Arc<dyn WeightFile>, usize) = match segments {
            None => (Arc::new(stored), rows),
            Some((segments, parts)) => {
                let part_rows = rows / parts;
                let rows = (0..part_rows).map(|row| segments.fused_row(row)).collect();
                (Arc::new(CheckpointRows { stored, rows }), part_rows)
            }
        };
        Ok(LocatedTensor {
            file,
            rows,
            cols,
            name,
        })
    }

    /// The id of every weight that the model has.
    fn tensor_ids(&self) -> impl Iterator<Item = TensorId> + use<> {
        self.family
            .tensor_ids(self.config.layers, self.config.tied_embeddings)
    }

    /// The names of the stored tensors that the model needs, in the order of the forward pass, each
    /// once: weights, then biases.
    fn stored_names(&self) -> Vec<String> {
        let weights = self.tensor_ids().map(|id| self.family.stored_name(id));
        let block_biases = (0..self.config.layers).flat_map(|layer| {
            self.config
                .declared_biases
                .iter()
                .map(move |&tensor| self.family.stored_bias_name(layer, tensor))
        });
        let final_norm_bias = self
            .family
            .norms_have_biases()
            .then(|| self.family.final_norm_bias_name());
        let mut seen = BTreeSet::new();
        weights
            .chain(block_biases)
            .chain(final_norm_bias)
            .filter(|name| seen.insert(name.clone()))
            .collect()
    }

    fn tensor_info(&self, name: &str) -> Result<(&Shard, &TensorInfo), CheckpointError> {
        let missing = || CheckpointError::MissingTensor(name.to_owned());
        let shard = &self.shards[*self.shard_by_tensor.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        Ok((shard, info))
    }

    fn stored_shape(&self, name: &str) -> Result<&[usize], CheckpointError> {
        self.tensor_info(name).map(|(_, info)| &info.shape[..])
    }
}

/// The largest header that the safetensors library accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl Shard {
    /// Reads the header and checks it: the tensors neither overlap nor leave gaps (`Metadata`
    /// checks this as it is deserialised), and the last one ends at the end of the file.
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
        // The file: the header's length as a little-endian u64, the header as JSON, the tensors.
        let file_len = file.metadata().map_err(read)?.len();
        let mut header_len_bytes = [0; size_of::<u64>()];
        let header_start = header_len_bytes.len() as u64;
        if file_len < header_start {
            return Err(broken("it is too short for a header".to_owned()));
        }
        file.read_exact_at(&mut header_len_bytes, 0).map_err(read)?;
        let header_len = u64::from_le_bytes(header_len_bytes);
        if header_len > (file_len - header_start).min(MAX_HEADER_BYTES) {
            return Err(broken(format!(
                "its header should take {header_len} bytes, and the file has {file_len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact_at(&mut header, header_start)
            .map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| broken(format!("its header is broken: {e}")))?;
        let data_offset = header_start + header_len;
        let expected_len = data_offset + metadata.data_len() as u64;
        if expected_len != file_len {
            return Err(broken(format!(
                "its header describes {expected_len} bytes, and the file has {file_len}"
            )));
        }
        Ok(Self {
            path,
            file: Arc::new(file),
            data_offset: data_offset as usize,
            metadata,
        })
    }
}

/// The files of a checkpoint that exist.
pub fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let json_files = [CONFIG_FILE, INDEX_FILE].map(|name| folder.join(name));
    json_files
        .into_iter()
        .filter(|path| path.exists())
        .chain(weight_files(folder).unwrap_or_default())
        .collect()
}

/// The files that the index names, sorted by name; without an index `model.safetensors`.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let index = folder.join(INDEX_FILE);
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
        let weight_map = json
            .get("weight_map")
            .and_then(|map| map.as_object())
            .ok_or_else(|| broken("it has no table `weight_map`".to_owned()))?;
        let mut names: Vec<&str> = Vec::new();
        for (tensor, file) in weight_map {
            let file_name = file
                .as_str()
                .filter(|name| !name.contains(['/', '\\']))
                .ok_or_else(|| {
                    broken(format!("the file of `{tensor}` is {file}, not a file name"))
                })?;
            if !names.contains(&file_name) {
                names.push(file_name);
            }
        }
        names.sort_unstable();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join(WEIGHTS_FILE);
    if single.exists() {
        return Ok(vec![single]);
    }
    Err(CheckpointError::NoModel {
        folder: folder.to_owned(),
        message: "it has neither model.safetensors nor model.safetensors.index.json".to_owned(),
    })
}
