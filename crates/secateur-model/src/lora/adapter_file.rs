//! A safetensors file of LoRA factors in PEFT's layout, while it is read.

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::*;

/// A safetensors file of factors while it is read.
pub(super) struct AdapterFile<'a> {
    pub(super) path: String,
    pub(super) tensors: SafeTensors<'a>,
    /// Names of the tensors that were read.
    pub(super) used: Vec<String>,
}

impl AdapterFile<'_> {
    /// Reads a factor of this shape.
    pub(super) fn read(
        &mut self,
        name: String,
        rows: usize,
        cols: usize,
    ) -> Result<Weight, AdapterError> {
        let tensor = self
            .tensors
            .tensor(&name)
            .map_err(|_| AdapterError::MissingTensor {
                path: self.path.clone(),
                name: name.clone(),
            })?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [rows, cols] {
            return Err(AdapterError::Shape {
                path: self.path.clone(),
                found: tensor.shape().to_vec(),
                dtype: format!("{:?}", tensor.dtype()),
                name,
                expected: [rows, cols],
            });
        }
        let values = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        self.used.push(name);
        Ok(Weight::new(values, rows, cols))
    }

    /// Reads the factors of a fused module and splits them: one pair for each of its n targets.
    ///
    /// The stored A is (n·rank, inputs): the targets' A, one after the other. The stored B is
    /// (fused rows, n·rank); of a row of target i only the columns i·rank .. (i + 1)·rank may be
    /// non-zero.
    pub(super) fn read_fused(
        &mut self,
        model: &Model,
        layer: usize,
        fused: &FusedTargets,
        rank: usize,
    ) -> Result<Vec<(BlockTensor, LoraFactors)>, AdapterError> {
        let block = &model.blocks[layer];
        let part_rows: Vec<usize> = fused
            .module
            .parts
            .iter()
            .map(|&part| block[part].rows())
            .collect();
        let (count, inputs) = (fused.targets.len(), block[fused.targets[0]].cols());
        let name = |factor| peft_tensor_name(model.family, layer, fused.targets[0], factor);
        let stacked_a = self.read(name('A'), count * rank, inputs)?;
        let fused_b = self.read(name('B'), part_rows.iter().sum(), count * rank)?;
        let (a_values, b_values) = (stacked_a.values(), fused_b.values());
        // (target rows, rank) for each target
        let mut target_b: Vec<Vec<f32>> = fused
            .targets
            .iter()
            .map(|&target| vec![0.0; block[target].rows() * rank])
            .collect();
        let order = fused.row_order(&part_rows, model.config.head_dim);
        let rows = b_values.chunks_exact(count * rank);
        for (row, (values, (owner, part_row))) in rows.zip(order).enumerate() {
            for (col, &value) in values.iter().enumerate() {
                if owner == Some(col / rank) {
                    target_b[col / rank][part_row * rank + col % rank] = value;
                } else if value != 0.0 {
                    let roles: Vec<&str> = fused.targets.iter().map(|part| part.role()).collect();
                    return Err(AdapterError::NotBlockStructured {
                        path: self.path.clone(),
                        name: name('B'),
                        parts: roles.join(", "),
                        row,
                        col,
                    });
                }
            }
        }
        let factors = fused.targets.iter().zip(target_b).enumerate();
        Ok(factors
            .map(|(index, (&target, b))| {
                let len = rank * inputs;
                let a = a_values[index * len..(index + 1) * len].to_vec();
                let factors = LoraFactors {
                    a: Weight::new(a, rank, inputs),
                    b: Weight::new(b, block[target].rows(), rank),
                };
                (target, factors)
            })
            .collect())
    }

    /// An error if the file holds a tensor that was not read.
    pub(super) fn check_all_used(&self) -> Result<(), AdapterError> {
        let is_unused = |name: &&str| !self.used.iter().any(|used| used == name);
        match self.tensors.names().into_iter().find(is_unused) {
            Some(name) => Err(AdapterError::UnusedTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }
}
