//! One job of the program, timed inside the process, so that another program's same job can be timed beside it
//! (`compare.py`): prints its seconds.
//!
//! ```sh
//! cargo run --release --example speed -- forward /tmp/110m
//! cargo run --release --example speed -- --memory 1GiB element-first /tmp/110m
//! ```

#![expect(clippy::print_stdout, reason = "a program that measures says what it measured")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use rand::RngExt;
use secateur::data::corpus::{self, CorpusSource};
use secateur::model::Model;
use secateur::model::blocks::{Block, BlockSettings, Slots};
use secateur::model::lora::Adapter;
use secateur::model::walk::{self, Sequence};
use secateur::model::wiring::Part;
use secateur::ops::{self, Layout, Rotary, Span};
use secateur::progress::Progress;
use secateur::random::Seed;
use secateur::stages::recover::Training;
use secateur::stages::{Budget, Context, State, dependencies, importance, load};
use secateur::tensor::{Hidden, Weight};
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
    /// Rows of 128 tokens for `forward` and `lora`.
    #[arg(long, default_value_t = 8)]
    rows: usize,
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
fn timed(times: &[usize], mut job: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
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

fn rows(folder: &Path, n: usize, model: &Model) -> Result<Vec<Sequence>, Box<dyn Error>> {
    let source = CorpusSource::whole(&folder.join("rows-8x128.jsonl"));
    let rows = corpus::rows(&source, None, model.config.vocab)?;
    Ok(rows.into_iter().map(|row| Sequence::new(row.ids, &row.counts)).cycle().take(n).collect())
}

/// A block of LLaMA's proportions, 8 sequences of 128: forward and backward to its input, weights' gradients included.
fn block(width: usize, times: &[usize]) -> Result<f64, Box<dyn Error>> {
    let (head_dim, mlp) = (if width == 288 { 48 } else { 64 }, (width * 8 / 3).next_multiple_of(64));
    let mut stream = Seed::root(1).stream();
    let mut weight =
        |rows: usize, cols: usize| Weight::new((0..rows * cols).map(|_| stream.random_range(-0.03..0.03)).collect(), rows, cols);
    let block = Block::new([
        weight(1, width),
        weight(width, width),
        weight(width, width),
        weight(width, width),
        weight(width, width),
        weight(1, width),
        weight(mlp, width),
        weight(mlp, width),
        weight(width, mlp),
    ]);
    let x = Hidden::new((0..1024 * width).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect(), 1024, width);
    let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
    let spans = (0..8).map(|i| Span::of(i * 128..(i + 1) * 128)).collect();
    let layout = Layout { spans, rotary: Arc::new(Rotary::new(&frequencies, 128)) };
    timed(times, || {
        let slots = Slots::of(Part::ALL.map(|part| (part, ops::Ask::Gradient)));
        let settings = BlockSettings { norm_epsilon: 1e-5, head_dim, layout: &layout, past: None };
        let y = block.forward(x.recorded(), &settings, &slots);
        let upstream = Hidden::new(vec![1.0; 1024 * width], 1024, width);
        std::hint::black_box(ops::backward(y, upstream, &x));
        std::hint::black_box(slots.answers().count());
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).use_current_thread().build_global()?;
    if arguments.job == Job::Block {
        println!("{:.4}", block(arguments.model.parse()?, &arguments.times)?);
        return Ok(());
    }
    let folder = PathBuf::from(&arguments.model);
    let budget = Budget { bytes: arguments.memory.map_or(u64::MAX, |memory| memory.as_u64()), stream: None };
    let model = load::run(&serde_json::from_value(json!({ "model": folder }))?, budget)?;
    let context = Context {
        seed: Seed::root(1),
        data: None,
        folder: std::env::temp_dir(),
        budget,
        occurrence: 0,
        state: State::default(),
        progress: Progress::default(),
        stop: Arc::default(),
    };
    let seconds = match arguments.job {
        Job::Block => 0.0,
        Job::Forward => {
            let rows = rows(&folder, arguments.rows, &model)?;
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
            let corpus = folder.join("rows-10x128.jsonl");
            let options = json!({ "method": "taylor", "taylor": form, "corpus": corpus, "sample": "file" });
            let options = serde_json::from_value(options)?;
            timed(&arguments.times, || {
                std::hint::black_box(importance::run(&options, &context, &model, &graph)?);
                Ok(())
            })?
        }
        Job::Lora => {
            let rows = rows(&folder, arguments.rows, &model)?;
            let options = json!({
                "corpus": "", "rank": 8, "batch": 8, "dropout": 0.0, "duration": { "updates": 100 }, "warmup": 0,
            });
            let options = serde_json::from_value(options)?;
            let targets = Part::MATRICES;
            let mut training = Training::new(Adapter::new(&model, &targets, 8, 16.0, Seed::root(2)));
            timed(&arguments.times, || {
                training.update(&options, &context, &model, &rows, 100)?;
                Ok(())
            })?
        }
    };
    println!("{seconds:.4}");
    Ok(())
}
