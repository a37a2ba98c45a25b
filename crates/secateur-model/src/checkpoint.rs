//! A Hugging Face folder in: `config.json`, one or several safetensors files (with their index),
//! f32, f16 or bf16.
//!
//! Everything is checked before a weight is read: headers, offsets, shapes against each other and
//! against the config. Weights are widened to f32 as they are read: at once, or whenever an
//! operation needs one that stays on disk. Parts of a fused tensor are read as tensors of their
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::config::{Config, ConfigError};
use crate::family::{BlockShape, Family, RowSegments};
use crate::stored_tensor::{CheckpointRows, CheckpointTensor};
use crate::wiring::{Axis, BlockTensor, ChannelSpace, TensorId};
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

/// An opened checkpoint: headers read and checked, weights still on disk.
pub struct Checkpoint {
    pub family: &'static Family,
    pub config: Config,
    shards: Vec<Shard>,
    /// Tensor → index of the file that holds it.
    shard_by_tensor: BTreeMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    file: Arc<File>,
    /// Where the tensors' bytes begin.
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
        let config_path = folder.join("config.json");
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

    /// A weight that stays on disk. It is read once, to see whether it is whole.
    pub fn open_weight(&self, id: TensorId) -> Result<Weight, CheckpointError> {
        let tensor = self.locate_weight(id)?;
        tensor.read()?;
        Ok(Weight::from_file(tensor.file, tensor.rows, tensor.cols))
    }

    /// Reads the bias beside a block's tensor, widened to f32.
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

    /// Where a tensor's rows lie in a fused one, and the number of its parts.
    fn fused_segments(&self, tensor: BlockTensor) -> Option<(RowSegments, usize)> {
        let (module, part_index) = self.family.fused_module(tensor)?;
        let segments = module.segments(part_index, self.config.head_dim);
        Some((segments, module.parts.len()))
    }

    /// A stored tensor, or some rows of it. A vector is one row; with `as_column` it is one column,
    /// so that its elements can be selected as rows.
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

    /// The place of every weight that the model has.
    fn tensor_ids(&self) -> impl Iterator<Item = TensorId> + use<> {
        crate::tensor_ids(self.family, self.config.layers, self.config.tied_embeddings)
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

    /// Every tensor is there in a supported type, shapes fit each other and the config, and nothing
    /// else is stored for the blocks.
    fn check(&self) -> Result<(), CheckpointError> {
        let names = self.stored_names();
        for name in &names {
            let found = self.tensor_info(name)?.1.dtype;
            if !matches!(found, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(CheckpointError::Dtype {
                    name: name.clone(),
                    found,
                });
            }
        }
        self.check_outer_shapes()?;
        let blocks = (0..self.config.layers)
            .map(|layer| self.check_block_shapes(layer))
            .collect::<Result<Vec<_>, _>>()?;
        self.check_declared_widths(&blocks)?;
        self.check_other_tensors(&names)
    }

    /// An error unless a stored tensor's shape fits.
    fn expect(&self, name: String, fits: bool, expected: String) -> Result<(), CheckpointError> {
        if fits {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            found: self.stored_shape(&name)?.to_vec(),
            name,
            expected,
        })
    }

    /// An error unless a stored tensor has this shape, which `reason` asks for.
    fn expect_shape(
        &self,
        name: String,
        shape: &[usize],
        reason: &str,
    ) -> Result<(), CheckpointError> {
        let fits = self.stored_shape(&name)? == shape;
        self.expect(name, fits, format!("{reason} asks for {shape:?}"))
    }

    /// The embedding, the final norm and the output matrix.
    fn check_outer_shapes(&self) -> Result<(), CheckpointError> {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let keys = &self.family.keys;
        let by_width = format!("config.json ({})", keys.hidden);
        let by_both = format!("config.json ({}, {})", keys.vocab, keys.hidden);
        let name = |id| self.family.tensor_name(id);
        self.expect_shape(name(TensorId::Embedding), &[vocab, hidden], &by_both)?;
        self.expect_shape(name(TensorId::FinalNorm), &[hidden], &by_width)?;
        if self.family.norms_have_biases() {
            let bias = self.family.final_norm_bias_name();
            self.expect_shape(bias, &[hidden], &by_width)?;
        }
        if !self.config.tied_embeddings {
            self.expect_shape(name(TensorId::LmHead), &[vocab, hidden], &by_both)?;
        }
        Ok(())
    }

    /// The tensors of a block against each other and the config. Heads and MLP widths are the
    /// weights' own and may differ between layers.
    fn check_block_shapes(&self, layer: usize) -> Result<BlockShape, CheckpointError> {
        let (hidden, head_dim, family) = (self.config.hidden, self.config.head_dim, self.family);
        let stored_name = |tensor| family.stored_name(TensorId::Block(layer, tensor));
        // Everything that reads the residual stream has its width.
        for spec in family.block_tensors {
            let name = stored_name(spec.tensor);
            if !spec.tensor.is_matrix() {
                let reason = format!("config.json ({})", family.keys.hidden);
                self.expect_shape(name, &[hidden], &reason)?;
            } else if spec.reads.0 == ChannelSpace::Hidden {
                let fits = matches!(self.stored_shape(&name)?, [rows, cols] if *cols == hidden && *rows > 0);
                let key = family.keys.hidden;
                let expected = format!("it must read the {hidden} channels of config.json's {key}");
                self.expect(name, fits, expected)?;
            }
        }
        for module in family.fused {
            let name = stored_name(module.parts[0]);
            let unit = module.row_unit(head_dim);
            let fits = self.stored_shape(&name)?[0].is_multiple_of(unit);
            let expected = format!(
                "its rows must be a multiple of {unit}: {} parts, heads of {head_dim} channels (config.json)",
                module.parts.len()
            );
            self.expect(name, fits, expected)?;
        }
        let mlp_writer = family.mlp_writer();
        let [queries, keys, mlp_channels] = [
            self.logical_rows(layer, BlockTensor::Q)?,
            self.logical_rows(layer, BlockTensor::K)?,
            self.logical_rows(layer, mlp_writer)?,
        ];
        self.expect(
            stored_name(BlockTensor::Q),
            queries.is_multiple_of(head_dim),
            format!("its rows must be heads of {head_dim} channels (config.json)"),
        )?;
        self.expect(
            stored_name(BlockTensor::K),
            keys.is_multiple_of(head_dim) && queries.is_multiple_of(keys),
            format!(
                "its rows must be heads of {head_dim} channels (config.json) that share the {} query heads evenly",
                queries / head_dim
            ),
        )?;
        let shape = BlockShape {
            query_heads: queries / head_dim,
            key_value_heads: keys / head_dim,
            mlp_channels,
        };
        // The other matrices follow from these three.
        for spec in family.block_tensors {
            let is_alone = family.fused_module(spec.tensor).is_none();
            if !spec.tensor.is_matrix() || !is_alone {
                continue;
            }
            let (rows, cols) = family.tensor_shape(spec.tensor, hidden, head_dim, shape);
            let decisive = match (spec.tensor, spec.reads.0, spec.writes) {
                (BlockTensor::V, ..) => BlockTensor::K,
                (_, ChannelSpace::Mlp, _) | (_, _, Some((ChannelSpace::Mlp, _))) => mlp_writer,
                _ => BlockTensor::Q,
            };
            let reason = format!("{} beside it", family.peft_module(decisive));
            self.expect_shape(stored_name(spec.tensor), &[rows, cols], &reason)?;
        }
        for &tensor in &self.config.declared_biases {
            let matrix = self.stored_shape(&stored_name(tensor))?;
            // a bias has one number for each row of its matrix, or each element of its norm
            let outputs = match family.bias_axis(tensor) {
                Axis::Rows => matrix[0],
                Axis::Cols => hidden,
            };
            let reason = match tensor.is_matrix() {
                true => "the matrix beside it",
                false => "the norm beside it",
            };
            self.expect_shape(family.stored_bias_name(layer, tensor), &[outputs], reason)?;
        }
        Ok(shape)
    }

    /// Rows of a logical matrix.
    fn logical_rows(&self, layer: usize, tensor: BlockTensor) -> Result<usize, CheckpointError> {
        let name = self.family.stored_name(TensorId::Block(layer, tensor));
        let stored_rows = self.stored_shape(&name)?[0];
        let parts = self
            .family
            .fused_module(tensor)
            .map_or(1, |(module, _)| module.parts.len());
        Ok(stored_rows / parts)
    }

    /// Layers may have widths of their own, but where no layer has the width that config.json says,
    /// the two belong to different models.
    fn check_declared_widths(&self, blocks: &[BlockShape]) -> Result<(), CheckpointError> {
        let (keys, declared) = (&self.family.keys, self.config.declared_widths);
        type Width = fn(&BlockShape) -> usize;
        let widths: [(Option<&str>, BlockTensor, Option<usize>, Width); 3] = [
            (
                Some(keys.query_heads),
                BlockTensor::Q,
                declared.query_heads,
                |block| block.query_heads,
            ),
            (
                keys.key_value_heads,
                BlockTensor::K,
                declared.key_value_heads,
                |block| block.key_value_heads,
            ),
            (
                Some(keys.mlp_channels),
                self.family.mlp_writer(),
                declared.mlp_channels,
                |block| block.mlp_channels,
            ),
        ];
        for (key, tensor, declared, width) in widths {
            let (Some(key), Some(declared)) = (key, declared) else {
                continue;
            };
            let name = self.family.stored_name(TensorId::Block(0, tensor));
            let expected = format!(
                "config.json says {key} = {declared}, and no layer has it (heads of {} channels)",
                self.config.head_dim
            );
            let fits = blocks.iter().any(|block| width(block) == declared);
            self.expect(name, fits, expected)?;
        }
        Ok(())
    }

    /// Refuses tensors of blocks that the model does not have, and warns of others. Tensors that
    /// hold no parameters of their own are expected: rotary tables, a second copy of a tied output
    /// matrix.
    fn check_other_tensors(&self, names: &[String]) -> Result<(), CheckpointError> {
        let needed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let output_matrix = self.family.tensor_name(TensorId::LmHead);
        for name in self.shard_by_tensor.keys() {
            let is_ignored = |suffix: &&str| name.ends_with(*suffix);
            if needed.contains(name.as_str())
                || *name == output_matrix
                || self.family.ignored_suffixes.iter().any(is_ignored)
            {
                continue;
            }
            if name.starts_with(self.family.block_prefix) {
                return Err(CheckpointError::UnusedTensor {
                    name: name.clone(),
                    layers: self.config.layers,
                });
            }
            tracing::warn!(
                tensor = name,
                "the checkpoint holds a tensor that this family does not have; it is not used"
            );
        }
        Ok(())
    }
}

impl Shard {
    /// Reads the header and checks it: tensors neither overlap nor leave holes, and end with the
    /// file.
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

/// The files that make up a checkpoint, those of them that are there.
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
