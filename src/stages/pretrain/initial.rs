//! The model before training: random weights in the shape that the options define.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::Options;
use secateur_base::random::Seed;
use secateur_model::config::{BlockWidths, Config, RawConfig, RopeConfig, RopeScaling};
use secateur_model::family::Residual;
use secateur_model::tokenizer::Tokenizer;
use secateur_model::wiring::BlockTensor::{
    Down, Gate, InputNorm, K, O, PostAttentionNorm, Q, Up, V,
};
use secateur_model::{Block, Model, ModelSource, families};
use secateur_tensor::Weight;

/// Normal weights with a standard deviation of 1/√inputs, which is divided by √(2·blocks) for the
/// matrices that write to the residual stream (GPT-2) and by 2 for the embedding. Norms are ones.
/// The output matrix is the embedding.
pub(crate) fn initial_model(options: &Options, tokenizer: Tokenizer, seed: Seed) -> Model {
    let ((kv_heads, head_dim), hidden) = (options.kv_heads_and_head_dim(), options.hidden);
    let vocab = tokenizer.vocabulary_size();
    let mut stream = seed.rng();
    let mut normal = |rows: usize, cols: usize, deviation: f32| {
        let values = (0..rows * cols).map(|_| deviation * standard_normal(&mut stream));
        Weight::new(values.collect(), rows, cols)
    };
    // GPT-2's constant 0.02 equals 1/√inputs at a width of 2500; with it, small models hardly
    // learn.
    let deviation = |inputs: usize| 1.0 / (inputs as f32).sqrt();
    let output_factor = 1.0 / (2.0 * options.blocks as f32).sqrt();
    let (query_width, key_width) = (options.heads * head_dim, kv_heads * head_dim);
    // by what a matrix reads: the residual stream, the attention's heads, the MLP's channels
    let hidden_deviation = deviation(hidden);
    let heads_deviation = deviation(query_width);
    let mlp_deviation = deviation(options.mlp);
    let embedding = normal(vocab, hidden, 0.5 * hidden_deviation);
    let ones = || Weight::new(vec![1.0; hidden], 1, hidden);
    let blocks = (0..options.blocks)
        .map(|_| {
            // The order of the tensors is the order of the random numbers.
            Block::new([
                (InputNorm, ones()),
                (Q, normal(query_width, hidden, hidden_deviation)),
                (K, normal(key_width, hidden, hidden_deviation)),
                (V, normal(key_width, hidden, hidden_deviation)),
                (
                    O,
                    normal(hidden, query_width, output_factor * heads_deviation),
                ),
                (PostAttentionNorm, ones()),
                (Gate, normal(options.mlp, hidden, hidden_deviation)),
                (Up, normal(options.mlp, hidden, hidden_deviation)),
                (
                    Down,
                    normal(hidden, options.mlp, output_factor * mlp_deviation),
                ),
            ])
        })
        .collect();
    let config = Config {
        hidden,
        layers: options.blocks,
        head_dim,
        declared_widths: BlockWidths::default(),
        vocab,
        max_positions: options.max_positions(),
        norm_epsilon: 1e-5,
        tied_embeddings: true,
        declared_biases: Default::default(),
        rope: RopeConfig {
            theta: options.rope_theta,
            scaling: RopeScaling::None,
            rotated_share: 1.0,
        },
        residual: Residual::Sequential,
        raw: RawConfig::default(),
    };
    Model {
        family: families::default_family(),
        config,
        embedding,
        blocks,
        final_norm: ones(),
        final_norm_bias: None,
        lm_head: None,
        tokenizer: Some(Arc::new(tokenizer)),
        source: ModelSource::default(),
    }
}

/// A standard normal number: √(−2·ln u) · cos(2π·v) with u in (0, 1] and v in [0, 1) (Box and
/// Muller 1958).
fn standard_normal(stream: &mut impl Rng) -> f32 {
    let u = 1.0 - stream.random::<f64>(); // never 0
    let v = stream.random::<f64>();
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
}
