//! The model before training: random weights in the shape that the options ask for.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::Options;
use secateur_base::random::Seed;
use secateur_model::config::{BlockWidths, Config, RopeConfig, RopeScaling};
use secateur_model::family::Residual;
use secateur_model::tokenizer::Tokenizer;
use secateur_model::{Block, Model, families};
use secateur_tensor::Weight;

/// Normal weights with a deviation of 1/√inputs, those that write to the residual stream scaled down by √(2·blocks)
/// (GPT-2); norms of one; the head is the embedding.
pub fn initial_model(options: &Options, tokenizer: Tokenizer, seed: Seed) -> Model {
    let ((kv_heads, head_dim), hidden) = (options.kv_heads_and_head_dim(), options.hidden);
    let vocab = tokenizer.vocabulary_size();
    let mut stream = seed.rng();
    let mut normal = |rows: usize, cols: usize, deviation: f32| {
        Weight::new(
            (0..rows * cols)
                .map(|_| deviation * standard_normal(&mut stream))
                .collect(),
            rows,
            cols,
        )
    };
    // 1/√inputs: small models stand still from GPT-2's 0.02, which is the same at a width of 2500
    let fan_in = |inputs: usize| 1.0 / (inputs as f32).sqrt();
    let (wide, out) = (fan_in(hidden), 1.0 / (2.0 * options.blocks as f32).sqrt());
    let embedding = normal(vocab, hidden, 0.5 * wide);
    let ones = || Weight::new(vec![1.0; hidden], 1, hidden);
    let (queries, keys) = (options.heads * head_dim, kv_heads * head_dim);
    let family = families::default_family();
    let blocks = (0..options.blocks)
        .map(|_| {
            let weights = [
                ones(),
                normal(queries, hidden, wide),
                normal(keys, hidden, wide),
                normal(keys, hidden, wide),
                normal(hidden, queries, out * fan_in(queries)),
                ones(),
                normal(options.mlp, hidden, wide),
                normal(options.mlp, hidden, wide),
                normal(hidden, options.mlp, out * fan_in(options.mlp)),
            ];
            Block::new(family.block_tensor_ids().zip(weights))
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
        raw: serde_json::Map::new(),
    };
    Model {
        family,
        config,
        embedding,
        blocks,
        final_norm: ones(),
        final_norm_bias: None,
        lm_head: None,
        tokenizer: Some(Arc::new(tokenizer)),
    }
}

/// A standard normal number (Box and Muller 1958).
fn standard_normal(stream: &mut impl Rng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - stream.random::<f64>(), stream.random());
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
}
