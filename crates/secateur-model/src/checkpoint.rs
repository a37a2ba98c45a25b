//! Reads a Hugging Face folder: `config.json` and one or several safetensors files (with their
//! index) in f32, f16 or bf16.
//!
//! Before a weight is read, all else is checked: headers, offsets, shapes against each other and
//! against the config. Weights are widened to f32 when they are read: at once, or whenever an
//! operation needs one that stays on disk. Parts of a fused tensor are read as tensors of their
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorInfo};

mod check;
mod output_matrix;
mod quantized;
mod shard;
mod tensor_names;
mod weight_files;

use crate::config::{Config, ConfigError};
use crate::family::{Family, RowSegments};
use crate::regular_file;
use crate::stored::StorageDtype;
use crate::stored_tensor::{CheckpointRows, CheckpointTensor};
use crate::wiring::{BlockTensor, TensorId};
use secateur_tensor::{Weight, WeightFile, WeightReadError};
use shard::Shard;
use weight_files::WeightFiles;

/// A checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("there is no model in `{}`: {message}", .folder.display())]
    NoModel {
        folder: PathBuf,
        message: String,
        help: String,
    },
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}`: {source}", .path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("`{}` is not a whole safetensors file: {message}", .path.display())]
    Safetensors { path: PathBuf, message: String },
    #[error("`{}` is no safetensors file: it is {kind}", .path.display())]
    OtherKind {
        path: PathBuf,
        kind: &'static str,
        help: &'static str,
    },
    #[error("`{}`: {message}", .path.display())]
    Index { path: PathBuf, message: String },
    #[error(
        "the checkpoint is quantised ({method}): it holds `{tensor}`; only weights in float32, \
         float16 and bfloat16 are read"
    )]
    Quantised { method: String, tensor: String },
    #[error("{}", describe_missing(*count, list))]
    MissingTensors {
        list: String,
        count: usize,
        help: String,
    },
    #[error("the tensor `{name}` has shape {found:?}; {expected}")]
    Shape {
        name: String,
        found: Vec<usize>,
        expected: String,
    },
    #[error("the checkpoint holds `{name}`, and config.json says {key} = {layers}")]
    ExtraLayer {
        name: String,
        key: &'static str,
        layers: usize,
    },
    #[error("the checkpoint holds biases that config.json does not declare by `{key}`: {list}")]
    UndeclaredBias {
        list: String,
        key: &'static str,
        help: String,
    },
    #[error(
        "the checkpoint holds {list}, which a block of model_type = {model_type} does not have; \
         without them it is another model"
    )]
    UnknownTensors {
        list: String,
        model_type: String,
        help: String,
    },
    #[error("the checkpoint holds an adapter that is not merged into the weights: {list}")]
    UnmergedAdapter { list: String },
    #[error("the tensor `{name}` holds {found:?}; supported: F32, F16, BF16")]
    Dtype { name: String, found: Dtype },
    #[error("the tensor `{name}` holds a NaN or an infinity at element {element_index}")]
    NotFinite { name: String, element_index: usize },
    #[error(transparent)]
    Unreadable(#[from] WeightReadError),
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
}

fn describe_missing(count: usize, list: &str) -> String {
    match count {
        1 => format!("the tensor {list} is missing"),
        _ => format!("{count} tensors are missing: {list}"),
    }
}

impl CheckpointError {
    /// What to write or to do instead. May be empty.
    pub fn help(&self) -> &str {
        match self {
            Self::NoModel { help, .. }
            | Self::MissingTensors { help, .. }
            | Self::UndeclaredBias { help, .. }
            | Self::UnknownTensors { help, .. } => help,
            Self::OtherKind { help, .. } => help,
            Self::Quantised { .. } => "load the checkpoint that it was quantised from",
            Self::UnmergedAdapter { .. } => {
                "merge it, for example with merge_and_unload() of PEFT, and save the model again"
            }
            Self::ExtraLayer { .. } => {
                "write the number of layers that the checkpoint holds, or remove the others"
            }
            _ => "",
        }
    }
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
    /// What the checkpoint holds and the model does not use, in one sentence each.
    pub(crate) warnings: Vec<String>,
    /// Whether the folder has an index that is not read.
    ignores_index: bool,
    shards: Vec<Shard>,
    /// Stored tensor's name → index in `shards`.
    shard_by_tensor: BTreeMap<String, usize>,
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
        let no_model = |message: &str, help: &str| CheckpointError::NoModel {
            folder: folder.to_owned(),
            message: message.to_owned(),
            help: help.to_owned(),
        };
        if !folder.is_dir() {
            return Err(no_model("it is not a folder", ""));
        }
        let weight_files = WeightFiles::find(folder);
        let config_path = folder.join(CONFIG_FILE);
        if config_path.symlink_metadata().is_err() {
            // A folder that holds an adapter alone has no config.json either.
            weight_files?;
            return Err(no_model(
                "it has no config.json",
                "a model is a folder with config.json and safetensors files",
            ));
        }
        let read_error = |source| CheckpointError::Read {
            path: config_path.clone(),
            source,
        };
        let text = regular_file::read(&config_path).map_err(read_error)?;
        let text = String::from_utf8(text)
            .map_err(|_| read_error(std::io::Error::other("it is not UTF-8 text")))?;
        let (family, config) = Config::parse(&text).map_err(|source| CheckpointError::Config {
            path: config_path.clone(),
            source,
        })?;
        let weight_files = weight_files?;
        let shards = weight_files
            .files
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
        let mut checkpoint = Self {
            family,
            config,
            warnings: weight_files.warnings,
            ignores_index: weight_files.ignores_index,
            shards,
            shard_by_tensor,
        };
        let untied = checkpoint.untie_different_output_matrix()?;
        let warnings = checkpoint.check()?;
        checkpoint
            .warnings
            .extend(untied.into_iter().chain(warnings));
        Ok(checkpoint)
    }

    /// The element type of most of the weights, by their bytes.
    pub(crate) fn dtype(&self) -> StorageDtype {
        let mut bytes: BTreeMap<StorageDtype, u64> = BTreeMap::new();
        for name in self.stored_names() {
            if let Ok((_, info)) = self.tensor_info(&name)
                && let Some(dtype) = StorageDtype::from_stored(info.dtype)
            {
                let (start, end) = info.data_offsets;
                *bytes.entry(dtype).or_default() += (end - start) as u64;
            }
        }
        // `max_by_key` returns the last of equal ones; reversed, that is float32, the widest type.
        let most = bytes.into_iter().rev().max_by_key(|&(_, bytes)| bytes);
        most.map_or_else(StorageDtype::default, |(dtype, _)| dtype)
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
        let missing = || CheckpointError::MissingTensors {
            list: format!("`{name}`"),
            count: 1,
            help: String::new(),
        };
        let shard = &self.shards[*self.shard_by_tensor.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        Ok((shard, info))
    }

    fn stored_shape(&self, name: &str) -> Result<&[usize], CheckpointError> {
        self.tensor_info(name).map(|(_, info)| &info.shape[..])
    }
}

/// The files of a checkpoint that are read; none if the folder holds no checkpoint.
pub fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(weights) = WeightFiles::find(folder) else {
        return Vec::new();
    };
    let config = folder.join(CONFIG_FILE);
    let config = config.exists().then_some(config);
    config
        .into_iter()
        .chain(weights.index)
        .chain(weights.files)
        .collect()
}
