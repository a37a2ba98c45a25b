//! One job of the program, timed inside the process, so that another program's same job can be timed beside it
//! (`compare.py`): prints its seconds.
//!
//! ```sh
//! cargo run --release --example speed -- forward /tmp/110m
//! cargo run --release --example speed -- --memory 1GiB element-first /tmp/110m
//! ```

#![expect(
    clippy::print_stdout,
    reason = "a program that measures says what it measured"
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
    /// The model, a folder of `random_model`; for `block` the width.
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
    /// Rows for `forward` and `lora`, and with a length for importance.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Rows of so many random tokens, instead of those beside the model.
    #[arg(long)]
    length: Option<usize>,
    /// `[run] device`.
    #[arg(long, default_value = "cpu", value_parser = |text: &str| text.parse::<Device>().map_err(|()| "no device"))]
    device: Device,
    /// `load.precision`.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16"])]
    precision: String,
    /// Nothing but the products of matrices that the job consists of.
    #[arg(long)]
    products: bool,
    /// Times that the job is done before it is timed, and times that it is timed; the median counts.
    #[arg(long, num_args = 2, default_values_t = [1, 1])]
    times: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Job {
    Block,
    Forward,
    Vector,
    ElementFirst,
    ElementMixed,
    Lora,
}

/// The median of the timed runs.
fn timed(
    times: &[usize],
    mut job: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    for _ in 0..times[0] {
        job()?;
    }
    let mut seconds = Vec::new();
    for _ in 0..times[1].max(1) {
        let began = Instant::now();
        job()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Rows beside the model, or of random tokens.
fn rows(
    folder: &Path,
    arguments: &Arguments,
    model: &Model,
) -> Result<Vec<Sequence>, Box<dyn Error>> {
    let n = arguments.rows;
    if let Some(length) = arguments.length {
        let mut stream = Seed::from_u64(3).rng();
        let mut row = || {
            (0..length)
                .map(|_| stream.random_range(0..model.config.vocab as u32))
                .collect()
        };
        return Ok((0..n)
            .map(|_| Sequence::new(row(), &vec![true; length]))
            .collect());
    }
    let source = CorpusSource::from_path(&folder.join("rows-8x128.jsonl"));
    let rows = corpus::read_rows(&source, None, model.config.vocab)?;
    Ok(rows
        .into_iter()
        .map(|row| Sequence::new(row.ids, &row.loss_mask))
        .cycle()
        .take(n)
        .collect())
}

/// A block of LLaMA's proportions, 8 sequences of 128: forward and backward to its input, weights' gradients included.
fn block(width: usize, times: &[usize]) -> Result<f64, Box<dyn Error>> {
    let (head_dim, mlp) = (
        if width == 288 { 48 } else { 64 },
        (width * 8 / 3).next_multiple_of(64),
    );
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
    timed(times, || {
        let slots = GradientRequests::from_queries(
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
        let y = block.forward(x.with_gradient_tape(), &settings, &slots);
        let upstream = Activations::new(vec![1.0; 1024 * width], 1024, width);
        std::hint::black_box(ops::backward(y, upstream, &x));
        std::hint::black_box(slots.into_results().count());
        Ok(())
    })
}

/// The products of a job alone: x · Wᵀ of every matrix, δ · W where it goes back, δᵀ · x where weights are scored.
fn products(
    arguments: &Arguments,
    model: &Model,
    rows: &[Sequence],
) -> Result<f64, Box<dyn Error>> {
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    let packs: Vec<usize> = (0..tokens)
        .step_by(PACK_TOKENS)
        .map(|first| PACK_TOKENS.min(tokens - first))
        .collect();
    let noise = |rows: usize, cols: usize| {
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
    // of one shape there is one matrix
    let inputs: BTreeMap<(usize, usize), Activations> = packs
        .iter()
        .flat_map(|&n| {
            matrices
                .iter()
                .flat_map(move |w| [(n, w.cols()), (n, w.rows())])
        })
        .map(|(n, cols)| ((n, cols), noise(n, cols)))
        .collect();
    timed(&arguments.times, || {
        for &n in &packs {
            let mut last = None;
            for w in &matrices {
                let x = &inputs[&(n, w.cols())];
                if arguments.job == Job::Forward {
                    last = Some(ops::linear(x.clone(), w, None));
                    continue;
                }
                // the head is frozen
                let slot = (arguments.job != Job::Lora && !std::ptr::eq(*w, head))
                    .then(ops::GradientRequest::for_gradient);
                let y = ops::linear(x.with_gradient_tape(), w, slot.as_ref());
                last = Some(ops::backward(y, inputs[&(n, w.rows())].clone(), x));
            }
            // a few numbers leave the device when all is done
            std::hint::black_box(last.map(|last| ops::gather_rows(&last, vec![0]).into_vec()));
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
        println!("{:.4}", block(arguments.model.parse()?, &arguments.times)?);
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
        println!(
            "{:.5}",
            products(&arguments, &model, &rows(&folder, &arguments, &model)?)?
        );
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
        Job::Block => 0.0,
        Job::Forward => {
            let rows = rows(&folder, &arguments, &model)?;
            timed(&arguments.times, || {
                std::hint::black_box(walk::token_scores(&model, &rows));
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
            let random = tempfile::NamedTempFile::with_suffix(".jsonl")?;
            let mut corpus = folder.join("rows-10x128.jsonl");
            if arguments.length.is_some() {
                let rows = rows(&folder, &arguments, &model)?;
                let lines: String = rows
                    .iter()
                    .map(|row| format!("{}\n", json!({ "ids": row.ids })))
                    .collect();
                std::fs::write(random.path(), lines)?;
                corpus = random.path().to_owned();
            }
            let options = json!({ "method": "taylor", "taylor": form, "corpus": corpus, "sample": "file", "samples": 1 << 20 });
            let options = serde_json::from_value(options)?;
            timed(&arguments.times, || {
                std::hint::black_box(importance::run(&options, &context, &model, &graph)?);
                Ok(())
            })?
        }
        Job::Lora => {
            let rows = rows(&folder, &arguments, &model)?;
            let options = json!({
                "corpus": "", "rank": 8, "batch": 8, "dropout": 0.0, "duration": { "updates": 100 }, "warmup": 0,
            });
            let options = serde_json::from_value(options)?;
            let targets: Vec<BlockTensor> = model.family.matrices().collect();
            let adapter = Adapter::new(&model, &targets, 8, 16.0, Seed::from_u64(2));
            let mut trainer = AdapterTraining::trainer(&options, &context, &model, adapter, 100);
            timed(&arguments.times, || {
                trainer.run_update(&rows)?;
                Ok(())
            })?
        }
    };
    println!("{seconds:.5}");
    Ok(())
}
