//! Writes a LLaMA checkpoint of any shape with random weights, for measurements. The same seed
//! gives the same bytes. A tensor is drawn when it is written, so a model larger than the memory
//! can be made.
//!
//! ```sh
//! cargo run --release --example random_model -- /tmp/110m --shape 110m
//! cargo run --release --example random_model -- /tmp/7b --shape 7b --half
//! cargo run --release --example random_model -- /tmp/own --hidden 512 --mlp 1376 --layers 4 \
//!     --heads 8 --keys 8 --vocabulary 512
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

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
    /// A predefined shape; the options below replace single sizes of it.
    #[arg(long)]
    shape: Option<PredefinedShape>,
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
    /// Use the embedding as the output head.
    #[arg(long)]
    tied: bool,
    /// Write float16 instead of float32.
    #[arg(long)]
    half: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Start a new file before it exceeds this many bytes.
    #[arg(long, default_value_t = 2 << 30)]
    shard: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum PredefinedShape {
    #[value(name = "110m")]
    Million110,
    #[value(name = "1.1b")]
    Billion1,
    #[value(name = "7b")]
    Billion7,
}

/// The sizes of a LLaMA model.
struct Shape {
    hidden: usize,
    /// Channels of the MLP.
    mlp: usize,
    layers: usize,
    /// Query heads.
    heads: usize,
    /// Key/value heads.
    keys: usize,
    vocabulary: usize,
    tied: bool,
}

impl Shape {
    fn from_arguments(arguments: &Arguments) -> Self {
        let (hidden, mlp, layers, heads, keys, tied) = match arguments.shape {
            None => (512, 1376, 4, 8, 8, false),
            Some(PredefinedShape::Million110) => (768, 2048, 12, 12, 12, true),
            Some(PredefinedShape::Billion1) => (2048, 5632, 22, 32, 4, false),
            Some(PredefinedShape::Billion7) => (4096, 11008, 32, 32, 32, false),
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

    /// The name and shape of every tensor, in the order of the forward pass.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let head_dim = self.hidden / self.heads;
        let hidden = self.hidden;
        // Rows of the key and value projections; fewer than `hidden` with grouped queries.
        let key_width = self.keys * head_dim;
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocabulary, hidden],
        )];
        for layer in 0..self.layers {
            let block_tensors = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![key_width, hidden]),
                ("self_attn.v_proj", vec![key_width, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![self.mlp, hidden]),
                ("mlp.up_proj", vec![self.mlp, hidden]),
                ("mlp.down_proj", vec![hidden, self.mlp]),
            ];
            for (name, shape) in block_tensors {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, hidden]));
        }
        tensors
    }
}

/// A tensor whose values are drawn when it is written. Matrices are uniform around 0 with a
/// standard deviation of 0.02, norms uniform in 0.9..1.1.
struct RandomTensor {
    seed: Seed,
    shape: Vec<usize>,
    half: bool,
}

impl View for RandomTensor {
    fn dtype(&self) -> Dtype {
        if self.half { Dtype::F16 } else { Dtype::F32 }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        // Each chunk has a stream of its own, so the values do not depend on the number of threads.
        bytes
            .par_chunks_mut(CHUNK_VALUES * self.value_bytes())
            .enumerate()
            .for_each(|(chunk_index, chunk)| self.fill_chunk(chunk_index, chunk));
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.value_bytes()
    }
}

/// Values that are drawn from one random stream.
const CHUNK_VALUES: usize = 1 << 18;

impl RandomTensor {
    fn value_bytes(&self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Draws the values of one chunk and writes them as little-endian floats.
    fn fill_chunk(&self, chunk_index: usize, chunk: &mut [u8]) {
        // A uniform distribution of half-width w has the standard deviation w / √3.
        let (centre, half_width) = if self.shape.len() == 1 {
            (1.0, 0.1)
        } else {
            (0.0, 0.02 * 3f32.sqrt())
        };
        let mut rng = self.seed.derive(&chunk_index.to_string()).rng();
        for target in chunk.chunks_exact_mut(self.value_bytes()) {
            let value = centre + half_width * rng.random_range(-1.0f32..1.0);
            if self.half {
                target.copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            } else {
                target.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let shape = Shape::from_arguments(&arguments);
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)?;
    let seed = Seed::from_u64(arguments.seed);
    write_weights(&arguments, &shape, seed)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.keys, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": if arguments.half { "float16" } else { "float32" },
    });
    std::fs::write(
        folder.join("config.json"),
        serde_json::to_string_pretty(&config)?,
    )?;
    write_rows(folder, shape.vocabulary as u32, seed)
}

/// Writes the tensors as safetensors shards, and the index that names the shard of each.
fn write_weights(arguments: &Arguments, shape: &Shape, seed: Seed) -> Result<(), Box<dyn Error>> {
    let mut shards: Vec<Vec<(String, RandomTensor)>> = vec![Vec::new()];
    let mut shard_bytes = 0;
    for (name, tensor_shape) in shape.tensors() {
        let tensor = RandomTensor {
            seed: seed.derive(&name),
            shape: tensor_shape,
            half: arguments.half,
        };
        if shard_bytes > 0 && shard_bytes + tensor.data_len() > arguments.shard {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += tensor.data_len();
        if let Some(shard) = shards.last_mut() {
            shard.push((name, tensor));
        }
    }
    let shard_count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file_name = format!("model-{:05}-of-{shard_count:05}.safetensors", i + 1);
        for (tensor_name, _) in &shard {
            weight_map.insert(tensor_name.clone(), file_name.clone());
        }
        safetensors::serialize_to_file(
            shard,
            Some([("format".to_owned(), "pt".to_owned())].into()),
            &arguments.folder.join(&file_name),
        )?;
    }
    std::fs::write(
        arguments.folder.join("model.safetensors.index.json"),
        json!({ "metadata": {}, "weight_map": weight_map }).to_string(),
    )?;
    Ok(())
}

/// Writes rows of random token ids. Ids 0 to 2 are special tokens in LLaMA's vocabulary.
fn write_rows(folder: &Path, vocabulary: u32, seed: Seed) -> Result<(), Box<dyn Error>> {
    let mut rng = seed.derive("rows").rng();
    for (rows, length) in [(10, 128), (8, 128), (10, 64)] {
        let mut lines = String::new();
        for _ in 0..rows {
            let ids: Vec<u32> = (0..length)
                .map(|_| 3 + rng.next_u32() % (vocabulary - 3))
                .collect();
            writeln!(lines, "{{\"ids\": {ids:?}}}")?;
        }
        std::fs::write(folder.join(format!("rows-{rows}x{length}.jsonl")), lines)?;
    }
    Ok(())
}
