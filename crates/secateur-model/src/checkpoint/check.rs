//! The checks of an opened checkpoint: its tensors against each other, the family and the config.

use super::{Checkpoint, CheckpointError};
use crate::family::BlockShape;
use crate::stored::StorageDtype;
use crate::wiring::{Axis, BlockTensor, ChannelSpace, TensorId};

impl Checkpoint {
    /// An error unless every tensor is present in a supported type, shapes fit each other and the
    /// config, and no other tensors are stored for the blocks. Returns warnings, one sentence each.
    pub(super) fn check(&self) -> Result<Vec<String>, CheckpointError> {
        let names = self.stored_names();
        self.refuse_quantised(&names)?;
        self.check_missing(&names)?;
        for name in &names {
            let found = self.tensor_info(name)?.1.dtype;
            if StorageDtype::from_stored(found).is_none() {
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
        let unused = self.check_other_tensors(&names)?;
        Ok(unused
            .into_iter()
            .chain(self.unused_quantization_config())
            .collect())
    }

    /// Returns [`CheckpointError::Shape`] unless `fits`. `expected` completes "the tensor has shape
    /// …;".
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

    /// Returns [`CheckpointError::Shape`] unless a stored tensor has this shape, which `reason`
    /// (config.json, or a tensor of the block) requires.
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
        let hidden_key = format!("config.json ({})", keys.hidden);
        let vocab_and_hidden_keys = format!("config.json ({}, {})", keys.vocab, keys.hidden);
        let embedding = self.family.tensor_name(TensorId::Embedding);
        self.expect_shape(embedding, &[vocab, hidden], &vocab_and_hidden_keys)?;
        let final_norm = self.family.tensor_name(TensorId::FinalNorm);
        self.expect_shape(final_norm, &[hidden], &hidden_key)?;
        if self.family.norms_have_biases() {
            let bias = self.family.final_norm_bias_name();
            self.expect_shape(bias, &[hidden], &hidden_key)?;
        }
        if !self.config.tied_embeddings {
            let lm_head = self.family.tensor_name(TensorId::LmHead);
            self.expect_shape(lm_head, &[vocab, hidden], &vocab_and_hidden_keys)?;
        }
        Ok(())
    }

    /// Checks the tensors of a block against each other and the config. The numbers of heads and of
    /// MLP channels are read from the weights' shapes and may differ between layers.
    fn check_block_shapes(&self, layer: usize) -> Result<BlockShape, CheckpointError> {
        let (hidden, head_dim, family) = (self.config.hidden, self.config.head_dim, self.family);
        let stored_name = |tensor| family.stored_name(TensorId::Block(layer, tensor));
        // Every tensor that reads the residual stream has its width.
        for spec in family.block_tensors {
            let name = stored_name(spec.tensor);
            if !spec.tensor.is_matrix() {
                let reason = format!("config.json ({})", family.keys.hidden);
                self.expect_shape(name, &[hidden], &reason)?;
            } else if spec.reads.0 == ChannelSpace::Hidden {
                let fits = match *self.stored_shape(&name)? {
                    [rows, cols] => cols == hidden && rows > 0,
                    _ => false,
                };
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
                "its rows must be a multiple of {unit}: {} parts, heads of {head_dim} channels \
                 (config.json)",
                module.parts.len()
            );
            self.expect(name, fits, expected)?;
        }
        let mlp_writer = family.mlp_writer();
        // These three widths determine the shapes of the block's other matrices.
        let query_width = self.logical_rows(layer, BlockTensor::Q)?;
        let key_width = self.logical_rows(layer, BlockTensor::K)?;
        let mlp_channels = self.logical_rows(layer, mlp_writer)?;
        self.expect(
            stored_name(BlockTensor::Q),
            query_width.is_multiple_of(head_dim),
            format!(
                "its rows must be heads of {head_dim} channels ({})",
                self.head_dim_origin()
            ),
        )?;
        self.expect(
            stored_name(BlockTensor::K),
            key_width.is_multiple_of(head_dim) && query_width.is_multiple_of(key_width),
            format!(
                "its rows must be heads of {head_dim} channels ({}) that share the {} query heads \
                 evenly",
                self.head_dim_origin(),
                query_width / head_dim
            ),
        )?;
        let shape = BlockShape {
            query_heads: query_width / head_dim,
            key_value_heads: key_width / head_dim,
            mlp_channels,
        };
        for spec in family.block_tensors {
            let is_alone = family.fused_module(spec.tensor).is_none();
            if !spec.tensor.is_matrix() || !is_alone {
                continue;
            }
            let (rows, cols) = family.tensor_shape(spec.tensor, hidden, head_dim, shape);
            // the matrix from whose rows the shape follows, for the message
            let reference = match (spec.tensor, spec.reads.0, spec.writes) {
                (BlockTensor::V, ..) => BlockTensor::K,
                (_, ChannelSpace::Mlp, _) | (_, _, Some((ChannelSpace::Mlp, _))) => mlp_writer,
                _ => BlockTensor::Q,
            };
            let reason = format!("{} beside it", family.peft_module(reference));
            self.expect_shape(stored_name(spec.tensor), &[rows, cols], &reason)?;
        }
        for &tensor in &self.config.declared_biases {
            let weight_shape = self.stored_shape(&stored_name(tensor))?;
            // A bias has one number for each row of its matrix, or for each element of its norm.
            let outputs = match family.bias_axis(tensor) {
                Axis::Rows => weight_shape[0],
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

    /// Where the width of a head comes from, for messages.
    fn head_dim_origin(&self) -> String {
        let keys = &self.family.keys;
        match self.config.raw.has("head_dim") {
            true => "config.json's head_dim".to_owned(),
            false => format!(
                "config.json's {} / {}; it has no head_dim",
                keys.hidden, keys.query_heads
            ),
        }
    }

    /// Rows of a logical matrix. The parts of a fused tensor have equally many.
    fn logical_rows(&self, layer: usize, tensor: BlockTensor) -> Result<usize, CheckpointError> {
        let name = self.family.stored_name(TensorId::Block(layer, tensor));
        let stored_rows = self.stored_shape(&name)?[0];
        let parts = self
            .family
            .fused_module(tensor)
            .map_or(1, |(module, _)| module.parts.len());
        Ok(stored_rows / parts)
    }

    /// An error if no layer has a width that config.json declares. Layers may differ from the
    /// config, but if all of them do, config and weights belong to different models.
    fn check_declared_widths(&self, blocks: &[BlockShape]) -> Result<(), CheckpointError> {
        let (keys, declared_widths) = (&self.family.keys, self.config.declared_widths);
        type Width = fn(&BlockShape) -> usize;
        // For each width: its key, the tensor that an error names, its declared value, and how it
        // is read from a block's shape.
        let widths: [(Option<&str>, BlockTensor, Option<usize>, Width); 3] = [
            (
                Some(keys.query_heads),
                BlockTensor::Q,
                declared_widths.query_heads,
                |block| block.query_heads,
            ),
            (
                keys.key_value_heads,
                BlockTensor::K,
                declared_widths.key_value_heads,
                |block| block.key_value_heads,
            ),
            (
                Some(keys.mlp_channels),
                self.family.mlp_writer(),
                declared_widths.mlp_channels,
                |block| block.mlp_channels,
            ),
        ];
        for (key, tensor, declared, width) in widths {
            let (Some(key), Some(declared)) = (key, declared) else {
                continue;
            };
            let name = self.family.stored_name(TensorId::Block(0, tensor));
            let says = match self.config.raw.has(key) {
                true => format!("config.json says {key} = {declared}"),
                false => format!("config.json has no {key}, which stands for {declared}"),
            };
            let expected = format!(
                "{says}, and no layer has it (heads of {} channels)",
                self.config.head_dim
            );
            let fits = blocks.iter().any(|block| width(block) == declared);
            self.expect(name, fits, expected)?;
        }
        Ok(())
    }
}
