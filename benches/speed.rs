//! Times one computation of the program inside the process and prints the seconds. `compare.py`
//! runs it in turns with another program that does the same computation.
//!
//! ```sh
//! cargo run --release --example speed -- forward /tmp/110m
//! cargo run --release --example speed -- --memory 1GiB element-first /tmp/110m
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the program's output is the measured time"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use rand::RngExt;
use secateur::progress::Progress;
use secateur::stages::recover::AdapterTraining;
use secateur::stages::{Context, MemoryBudget, StageCheckpoint, dependencies, importance, load};
use secateur_base::random::Seed;
use secateur_data::corpus::{self, CorpusSource};
use secateur_model::block::BlockSettings;
use secateur_model::family::BlockShape;
use secateur_model::hooks::GradientRequests;
use secateur_model::lora::Adapter;
use secateur_model::random::{RandomModel, random_model};
use secateur_model::walk::{self, Sequence};
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_model::{Model, families};
use secateur_tensor::ops::{self, PackLayout, SequenceSpan};
use secateur_tensor::{self, Activations, Device, PACK_TOKENS, Weight};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    job: Job,
    /// The model, a folder written by `random_model`; for `block` the width.
    model: String,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// `[run] memory`.
    #[arg(long)]
    memory: Option<ByteSize>,
    /// Layers whose attention and MLP are scored, from and to.
    #[arg(long, num_args = 2, default_values_t = [2, 11])]
    layers: Vec<usize>,
    /// Rows for `forward` and `lora`, and with `--length` also for importance.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Use rows of this many random tokens, not the rows in the model's folder.
    #[arg(long)]
    length: Option<usize>,
    /// `[run] device`.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// `load.precision`.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16"])]
    precision: String,
    /// Time only the matrix products of the job.
    #[arg(long)]
    products: bool,
    /// Untimed repetitions, then timed repetitions. The median of the timed ones is printed.
    #[arg(long, num_args = 2, default_values_t = [1, 1])]
    times: Vec<usize>,
}

fn parse_device(text: &str) -> Result<Device, &'static str> {
    text.parse().map_err(|()| "no device")
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Job {
    /// Forward and backward of one block with random weights.
    Block,
    /// The scores of all tokens of the rows.
    Forward,
    /// The importance `taylor = "vector"`.
    Vector,
    /// The importance `taylor = "element-first"`.
    ElementFirst,
    /// The importance `taylor = "element-mixed"`.
    ElementMixed,
    /// One update of LoRA adapters on all rows.
    Lora,
}

/// Runs the job `times[0]` times without and `times[1]` times with a clock. Returns the median of
/// the measured seconds.
fn median_seconds(
    times: &[usize],
    mut job: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    for _ in 0..times[0] {
        job()?;
    }
    let mut seconds = Vec::new();
    for _ in 0..times[1].max(1) {
        let start = Instant::now();
        job()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Rows of random tokens, or the rows in the model's folder, repeated until there are enough.
fn read_or_draw_rows(
    folder: &Path,
    arguments: &Arguments,
    model: &Model,
) -> Result<Vec<Sequence>, Box<dyn Error>> {
    let row_count = arguments.rows;
    if let Some(length) = arguments.length {
        let mut rng = Seed::from_u64(3).rng();
        let mut random_ids = || {
            (0..length)
                .map(|_| rng.random_range(0..model.config.vocab as u32))
                .collect()
        };
        return Ok((0..row_count)
            .map(|_| Sequence::new(random_ids(), &vec![true; length]))
            .collect());
    }
    let source = CorpusSource::from_path(&folder.join("rows-8x128.jsonl"));
    let rows = corpus::read_rows(&source, None, model.config.vocab)?;
    Ok(rows
        .into_iter()
        .map(|row| Sequence::new(row.ids, &row.loss_mask))
        .cycle()
        .take(row_count)
        .collect())
}

/// Times a block with LLaMA's proportions on 8 sequences of 128 tokens: forward, and backward to
/// its input with the gradients of all weights.
fn time_block(width: usize, times: &[usize]) -> Result<f64, Box<dyn Error>> {
    // 288 is the width of stories15M, whose heads have 48 dimensions.
    let head_dim = if width == 288 { 48 } else { 64 };
    let mlp = (width * 8 / 3).next_multiple_of(64);
    let family = families::default_family();
    let heads = width / head_dim;
    let model = random_model(&RandomModel {
        family,
        hidden: width,
        head_dim,
        vocab: 1,
        blocks: vec![BlockShape {
            query_heads: heads,
            key_value_heads: heads,
            mlp_channels: mlp,
        }],
        tied_embeddings: true,
        seed: 1,
    });
    let block = &model.blocks[0];
    let x = Activations::new(
        (0..1024 * width)
            .map(|i| (i % 97) as f32 / 97.0 - 0.5)
            .collect(),
        1024,
        width,
    );
    let spans = (0..8)
        .map(|i| SequenceSpan::from_rows(i * 128..(i + 1) * 128))
        .collect();
    let layout = PackLayout {
        spans,
        rotary: Arc::new(model.rotary_tables(128)),
    };
    median_seconds(times, || {
        let requests = GradientRequests::from_queries(
            family
                .block_tensor_ids()
                .map(|tensor| (tensor, ops::GradientQuery::Gradient)),
        );
        let settings = BlockSettings {
            family,
            config: &model.config,
            layout: &layout,
            kv_cache: None,
        };
        let y = block.forward(x.with_gradient_tape(), &settings, &requests);
        let upstream = Activations::new(vec![1.0; 1024 * width], 1024, width);
        std::hint::black_box(ops::backward(y, upstream, &x));
        std::hint::black_box(requests.into_results().count());
        Ok(())
    })
}

/// Times the matrix products of a job alone: x · Wᵀ of every matrix; in a backward pass also δ · W,
/// and δᵀ · x where the weights have gradients.
fn time_products(
    arguments: &Arguments,
    model: &Model,
    rows: &[Sequence],
) -> Result<f64, Box<dyn Error>> {
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    // The walk processes the tokens in packs of at most PACK_TOKENS.
    let pack_sizes: Vec<usize> = (0..tokens)
        .step_by(PACK_TOKENS)
        .map(|first| PACK_TOKENS.min(tokens - first))
        .collect();
    let sample_activations = |rows: usize, cols: usize| {
        Activations::new(
            (0..rows * cols)
                .map(|i| (i % 97) as f32 / 97.0 - 0.5)
                .collect(),
            rows,
            cols,
        )
    };
    let head = model.weight(TensorId::LmHead);
    let matrices: Vec<&Weight> = model
        .blocks
        .iter()
        .flat_map(|block| block.matrices().map(|(_, weight)| weight))
        .chain([head])
        .collect();
    // One activation for each shape of an input (rows, cols of W) or an output gradient (rows, rows
    // of W), shared by all matrices.
    let mut activations: BTreeMap<(usize, usize), Activations> = BTreeMap::new();
    for &rows in &pack_sizes {
        for matrix in &matrices {
            for cols in [matrix.cols(), matrix.rows()] {
                activations
                    .entry((rows, cols))
                    .or_insert_with(|| sample_activations(rows, cols));
            }
        }
    }
    median_seconds(&arguments.times, || {
        for &rows in &pack_sizes {
            let mut last_result = None;
            for w in &matrices {
                let x = &activations[&(rows, w.cols())];
                if arguments.job == Job::Forward {
                    last_result = Some(ops::linear(x.clone(), w, None));
                    continue;
                }
                // LoRA's base weights and the head are frozen.
                let request = (arguments.job != Job::Lora && !std::ptr::eq(*w, head))
                    .then(ops::GradientRequest::for_gradient);
                let y = ops::linear(x.with_gradient_tape(), w, request.as_ref());
                let output_gradient = activations[&(rows, w.rows())].clone();
                last_result = Some(ops::backward(y, output_gradient, x));
            }
            // A GPU works asynchronously: copying a row of the last result to the host waits for
            // it.
            std::hint::black_box(
                last_result.map(|result| ops::gather_rows(&result, vec![0]).into_vec()),
            );
        }
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    secateur_tensor::select_device(arguments.device)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads)
        .use_current_thread()
        .build_global()?;
    if arguments.job == Job::Block {
        println!(
            "{:.4}",
            time_block(arguments.model.parse()?, &arguments.times)?
        );
        return Ok(());
    }
    let folder = PathBuf::from(&arguments.model);
    let budget = MemoryBudget {
        bytes: arguments.memory.map_or(u64::MAX, |memory| memory.as_u64()),
        stream_override: None,
    };
    let precision = if arguments.precision == "f16" {
        "float16"
    } else {
        "float32"
    };
    let model = load::run(
        &serde_json::from_value(json!({ "model": folder, "precision": precision }))?,
        budget,
    )?;
    if arguments.products {
        let rows = read_or_draw_rows(&folder, &arguments, &model)?;
        println!("{:.5}", time_products(&arguments, &model, &rows)?);
        return Ok(());
    }
    let context = Context {
        seed: Seed::from_u64(1),
        data_folder: None,
        output_folder: std::env::temp_dir(),
        memory_budget: budget,
        occurrence: 0,
        repeat_position: None,
        checkpoint: StageCheckpoint::default(),
        progress: Progress::default(),
        stop_requested: Arc::default(),
    };
    let seconds = match arguments.job {
        // `Job::Block` has returned above.
        Job::Block => 0.0,
        Job::Forward => {
            let rows = read_or_draw_rows(&folder, &arguments, &model)?;
            median_seconds(&arguments.times, || {
                std::hint::black_box(walk::token_scores(&model, &rows)?);
                Ok(())
            })?
        }
        Job::Vector | Job::ElementFirst | Job::ElementMixed => {
            let layers = [arguments.layers[0], arguments.layers[1]];
            let grouping = json!({ "attention_layers": layers, "mlp_layers": layers });
            let graph = dependencies::run(&serde_json::from_value(grouping)?, &model)?;
            let form = match arguments.job {
                Job::Vector => "vector",
                Job::ElementFirst => "element-first",
                _ => "element-mixed",
            };
            let drawn_corpus = tempfile::NamedTempFile::with_suffix(".jsonl")?;
            let mut corpus = folder.join("rows-10x128.jsonl");
            if arguments.length.is_some() {
                let rows = read_or_draw_rows(&folder, &arguments, &model)?;
                let lines: String = rows
                    .iter()
                    .map(|row| format!("{}\n", json!({ "ids": row.ids })))
                    .collect();
                std::fs::write(drawn_corpus.path(), lines)?;
                corpus = drawn_corpus.path().to_owned();
            }
            let options = json!({
                "method": "taylor", "taylor": form,
                "corpus": corpus, "sample": "file", "samples": 1 << 20,
            });
            let options = serde_json::from_value(options)?;
            median_seconds(&arguments.times, || {
                std::hint::black_box(importance::run(&options, &context, &model, &graph)?);
                Ok(())
            })?
        }
        Job::Lora => {
            let rows = read_or_draw_rows(&folder, &arguments, &model)?;
            let options = json!({
                "corpus": "", "rank": 8, "batch": 8, "dropout": 0.0,
                "duration": { "updates": 100 }, "warmup": 0,
            });
            let options = serde_json::from_value(options)?;
            let targets: Vec<BlockTensor> = model.family.matrices().collect();
            let adapter = Adapter::new(&model, &targets, 8, 16.0, Seed::from_u64(2));
            let mut trainer = AdapterTraining::trainer(&options, &context, &model, adapter, 100);
            median_seconds(&arguments.times, || {
                trainer.run_update(&rows)?;
                Ok(())
            })?
        }
    };
    println!("{seconds:.5}");
    Ok(())
}
