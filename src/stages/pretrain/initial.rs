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

/// Normal weights with a standard deviation of 1/√inputs; those of the matrices that write to the
/// residual stream are divided by √(2·blocks) (GPT-2). Norms are ones. The head is the embedding.
pub fn initial_model(options: &Options, tokenizer: Tokenizer, seed: Seed) -> Model {
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
    let residual_factor = 1.0 / (2.0 * options.blocks as f32).sqrt();
    let (query_width, key_width) = (options.heads * head_dim, kv_heads * head_dim);
    let (reads_hidden, reads_heads) = (deviation(hidden), deviation(query_width));
    let reads_mlp = deviation(options.mlp);
    let embedding = normal(vocab, hidden, 0.5 * reads_hidden);
    let ones = || Weight::new(vec![1.0; hidden], 1, hidden);
    let family = families::default_family();
    let blocks = (0..options.blocks)
        .map(|_| {
            let weights = [
                ones(),                                                     // input norm
                normal(query_width, hidden, reads_hidden),                  // q
                normal(key_width, hidden, reads_hidden),                    // k
                normal(key_width, hidden, reads_hidden),                    // v
                normal(hidden, query_width, residual_factor * reads_heads), // o
                ones(),                                                     // norm after attention
                normal(options.mlp, hidden, reads_hidden),                  // gate
                normal(options.mlp, hidden, reads_hidden),                  // up
                normal(hidden, options.mlp, residual_factor * reads_mlp),   // down
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

/// A standard normal number: √(−2·ln u) · cos(2π·v) with u in (0, 1] and v in [0, 1) (Box and
/// Muller 1958).
fn standard_normal(stream: &mut impl Rng) -> f32 {
    let u = 1.0 - stream.random::<f64>(); // never 0
    let v = stream.random::<f64>();
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
}
