//! Models with random weights: for documentation, tests and benchmarks.

use rand::{Rng, RngExt};

use crate::config::{BlockWidths, Config, DEFAULT_ROPE_THETA, RawConfig, RopeConfig, RopeScaling};
use crate::family::{
    BiasCondition, BlockShape, Family, Positions, Residual, ResidualRule, RotaryShare,
};
use crate::{Block, Model, ModelSource};
use secateur_base::random::Seed;
use secateur_tensor::Weight;

/// The shape of a random model.
pub struct RandomModel {
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// One for each block.
    pub blocks: Vec<BlockShape>,
    pub tied_embeddings: bool,
    pub seed: u64,
}

/// A model of this shape. The elements of a block's matrices are uniform within ±√(3 / inputs),
/// which is a standard deviation of 1/√inputs; those of the embedding and the output matrix are
/// within ±1, of norms within 1 ± 0.1, of biases within ±0.1. Keys of `config.json` have the
/// family's defaults.
pub fn random_model(shape: &RandomModel) -> Model {
    let (family, hidden) = (shape.family, shape.hidden);
    let mut stream = Seed::from_u64(shape.seed).derive("random model").rng();
    let blocks = shape
        .blocks
        .iter()
        .map(|&block| random_block(shape, block, &mut stream))
        .collect();
    let Positions::RotaryHalves { share, .. } = family.positions;
    let config = Config {
        hidden,
        layers: shape.blocks.len(),
        head_dim: shape.head_dim,
        declared_widths: BlockWidths::default(),
        vocab: shape.vocab,
        max_positions: 512,
        norm_epsilon: family.keys.norm_epsilon.1 as f32,
        tied_embeddings: shape.tied_embeddings,
        declared_biases: Default::default(),
        rope: RopeConfig {
            theta: DEFAULT_ROPE_THETA,
            scaling: RopeScaling::None,
            rotated_share: match share {
                RotaryShare::Whole => 1.0,
                RotaryShare::Keys { default, .. } => default,
            },
        },
        residual: match family.residual {
            ResidualRule::Always(residual) => residual,
            ResidualRule::ParallelIf { default: true, .. } => Residual::Parallel,
            ResidualRule::ParallelIf { default: false, .. } => Residual::Sequential,
        },
        raw: RawConfig::default(),
    };
    let mut vocab_matrix = || uniform(shape.vocab, hidden, 0.0, 1.0, &mut stream);
    let embedding = vocab_matrix();
    let lm_head = (!shape.tied_embeddings).then(vocab_matrix);
    Model {
        family,
        config,
        embedding,
        blocks,
        final_norm: uniform(1, hidden, 1.0, 0.1, &mut stream),
        final_norm_bias: family
            .norms_have_biases()
            .then(|| uniform(1, hidden, 0.0, 0.1, &mut stream)),
        lm_head,
        tokenizer: None,
        source: ModelSource::default(),
    }
}

fn random_block(shape: &RandomModel, block_shape: BlockShape, stream: &mut impl Rng) -> Block {
    let family = shape.family;
    let mut weights = Vec::new();
    for tensor in family.block_tensor_ids() {
        let (rows, cols) = family.tensor_shape(tensor, shape.hidden, shape.head_dim, block_shape);
        let weight = match tensor.is_matrix() {
            true => uniform(rows, cols, 0.0, (3.0 / cols as f32).sqrt(), stream),
            false => uniform(rows, cols, 1.0, 0.1, stream),
        };
        weights.push((tensor, weight));
    }
    let mut block = Block::new(weights);
    let default_rules = family.biases.iter().filter(|rule| match rule.when {
        BiasCondition::Always => true,
        BiasCondition::Key { default, .. } => default,
    });
    let biased_norms = family
        .block_tensor_ids()
        .filter(|tensor| !tensor.is_matrix() && family.norms_have_biases());
    let biased: Vec<_> = default_rules
        .flat_map(|rule| rule.tensors)
        .copied()
        .chain(biased_norms)
        .collect();
    for tensor in biased {
        let outputs = match tensor.is_matrix() {
            true => block[tensor].rows(),
            false => block[tensor].cols(),
        };
        block.set_bias(tensor, uniform(1, outputs, 0.0, 0.1, stream));
    }
    block
}

/// A weight with uniform elements in [centre − bound, centre + bound).
fn uniform(rows: usize, cols: usize, centre: f32, bound: f32, stream: &mut impl Rng) -> Weight {
    let values = (0..rows * cols)
        .map(|_| centre + stream.random_range(-bound..bound))
        .collect();
    Weight::new(values, rows, cols)
}
