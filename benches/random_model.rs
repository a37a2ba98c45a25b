//! A LLaMA checkpoint of any shape with random weights, for measurements: the same bytes for the same seed, written shard by
//! shard, so that a model larger than the memory can be made.
//!
//! ```sh
//! cargo run --release --example random_model -- /tmp/110m --shape 110m
//! cargo run --release --example random_model -- /tmp/7b --shape 7b --half
//! cargo run --release --example random_model -- /tmp/own --hidden 512 --mlp 1376 --layers 4 --heads 8 --keys 8 --vocabulary 512
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use rand::{Rng, RngExt};
use rayon::prelude::*;
use safetensors::View;
use safetensors::tensor::Dtype;
use secateur_base::random::Seed;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Writes a LLaMA checkpoint with random weights, and rows of random tokens")]
struct Arguments {
    /// The folder to write.
    folder: PathBuf,
    /// A known shape; the options below change it.
    #[arg(long)]
    shape: Option<Known>,
    #[arg(long)]
    hidden: Option<usize>,
    #[arg(long)]
    mlp: Option<usize>,
    #[arg(long)]
    layers: Option<usize>,
    /// Query heads.
    #[arg(long)]
    heads: Option<usize>,
    /// Key/value heads.
    #[arg(long)]
    keys: Option<usize>,
    #[arg(long)]
    vocabulary: Option<usize>,
    /// The embedding is the head.
    #[arg(long)]
    tied: bool,
    /// float16 instead of float32.
    #[arg(long)]
    half: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes after which a new file begins.
    #[arg(long, default_value_t = 2 << 30)]
    shard: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Known {
    #[value(name = "110m")]
    Million110,
    #[value(name = "1.1b")]
    Billion1,
    #[value(name = "7b")]
    Billion7,
}

struct Shape {
    hidden: usize,
    mlp: usize,
    layers: usize,
    heads: usize,
    keys: usize,
    vocabulary: usize,
    tied: bool,
}

impl Shape {
    fn of(arguments: &Arguments) -> Self {
        let (hidden, mlp, layers, heads, keys, tied) = match arguments.shape {
            None => (512, 1376, 4, 8, 8, false),
            Some(Known::Million110) => (768, 2048, 12, 12, 12, true),
            Some(Known::Billion1) => (2048, 5632, 22, 32, 4, false),
            Some(Known::Billion7) => (4096, 11008, 32, 32, 32, false),
        };
        Self {
            hidden: arguments.hidden.unwrap_or(hidden),
            mlp: arguments.mlp.unwrap_or(mlp),
            layers: arguments.layers.unwrap_or(layers),
            heads: arguments.heads.unwrap_or(heads),
            keys: arguments.keys.unwrap_or(keys),
            vocabulary: arguments.vocabulary.unwrap_or(32_000),
            tied: tied || arguments.tied,
        }
    }

    /// Every tensor with its shape, in the order of the forward pass.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let head_dim = self.hidden / self.heads;
        let (h, kv) = (self.hidden, self.keys * head_dim);
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocabulary, h],
        )];
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![h, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, h]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![self.mlp, h]),
                ("mlp.up_proj", vec![self.mlp, h]),
                ("mlp.down_proj", vec![h, self.mlp]),
            ];
            tensors.extend(
                parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)),
            );
        }
        tensors.push(("model.norm.weight".to_owned(), vec![h]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, h]));
        }
        tensors
    }
}

/// A tensor whose numbers are drawn when they are written: uniform with a standard deviation of 0.02, norms near 1.
struct Random {
    seed: Seed,
    shape: Vec<usize>,
    half: bool,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        if self.half { Dtype::F16 } else { Dtype::F32 }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        const TOGETHER: usize = 1 << 18;
        let width = if self.half { 2 } else { 4 };
        let (middle, spread) = if self.shape.len() == 1 {
            (1.0, 0.1)
        } else {
            (0.0, 0.02 * 3f32.sqrt())
        };
        let mut bytes = vec![0; self.data_len()];
        bytes
            .par_chunks_mut(TOGETHER * width)
            .enumerate()
            .for_each(|(i, bytes)| {
                let mut stream = self.seed.derive(&i.to_string()).rng();
                for to in bytes.chunks_exact_mut(width) {
                    let value = middle + spread * stream.random_range(-1.0f32..1.0);
                    match self.half {
                        true => to.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                        false => to.copy_from_slice(&value.to_le_bytes()),
                    }
                }
            });
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.half { 2 } else { 4 }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let shape = Shape::of(&arguments);
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)?;
    let seed = Seed::from_u64(arguments.seed);
    let mut shards: Vec<Vec<(String, Random)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (name, dims) in shape.tensors() {
        let tensor = Random {
            seed: seed.derive(&name),
            shape: dims,
            half: arguments.half,
        };
        if bytes > 0 && bytes + tensor.data_len() > arguments.shard {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.data_len();
        if let Some(shard) = shards.last_mut() {
            shard.push((name, tensor));
        }
    }
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        safetensors::serialize_to_file(
            shard,
            Some([("format".to_owned(), "pt".to_owned())].into()),
            &folder.join(&file),
        )?;
    }
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        json!({ "metadata": {}, "weight_map": map }).to_string(),
    )?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.mlp, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.keys, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": shape.tied,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": if arguments.half { "float16" } else { "float32" },
    });
    std::fs::write(
        folder.join("config.json"),
        serde_json::to_string_pretty(&config)?,
    )?;
    let mut stream = seed.derive("rows").rng();
    for (rows, length) in [(10, 128), (8, 128), (10, 64)] {
        let mut text = String::new();
        for _ in 0..rows {
            let ids: Vec<u32> = (0..length)
                .map(|_| 3 + stream.next_u32() % (shape.vocabulary as u32 - 3))
                .collect();
            writeln!(text, "{{\"ids\": {ids:?}}}")?;
        }
        std::fs::write(folder.join(format!("rows-{rows}x{length}.jsonl")), text)?;
    }
    Ok(())
}
