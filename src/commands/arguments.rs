//! The arguments of the command line. Their comments are the text of `--help`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use secateur::plan::shard::Shard;
use secateur::run::log::Verbosity;

/// Prunes language models structurally, and measures what the pruning costs.
///
/// `runner PIPELINE` checks a TOML pipeline and runs every variant of it that is not complete.
#[derive(Parser)]
#[command(
    name = "runner",
    version,
    args_conflicts_with_subcommands = true,
    after_help = AFTER_HELP
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Option<PipelineArgs>,
    #[command(flatten)]
    pub run_options: RunOptions,
}

// The options of a run that `check` and `plan` do not have.
#[derive(Args)]
pub(crate) struct RunOptions {
    /// End the run at the first failure; the variants that have not run count as interrupted.
    #[arg(long, requires = "pipeline")]
    pub fail_fast: bool,
    /// Print warnings, errors and the table alone: no progress and no line for each stage. Twice:
    /// errors alone.
    #[arg(short, long, action = ArgAction::Count, requires = "pipeline")]
    quiet: u8,
    /// Also print events of level debug, such as the beginning of each stage.
    #[arg(short, long, requires = "pipeline", conflicts_with = "quiet")]
    verbose: bool,
}

impl RunOptions {
    /// What `-q` and `-v` ask for; `None` without them.
    pub(crate) fn verbosity(&self) -> Option<Verbosity> {
        match (self.quiet, self.verbose) {
            (0, false) => None,
            (0, true) => Some(Verbosity::Debug),
            (1, _) => Some(Verbosity::Warnings),
            (_, _) => Some(Verbosity::Errors),
        }
    }
}

const AFTER_HELP: &str = "Exit codes:
  0    every variant succeeded
  1    a stage failed; the other variants still ran
  2    the command line or the pipeline is wrong; no work was started
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; run it again to go on

Environment:
  RUNNER_SEED, RUNNER_RESULTS, RUNNER_CACHE, RUNNER_CACHE_LIMIT, RUNNER_DATA,
  RUNNER_THREADS, RUNNER_MEMORY, RUNNER_STREAM, RUNNER_DEVICE, RUNNER_LOG,
  RUNNER_LOCKED
      run settings: they replace those of the file, and --set replaces them
  SECATEUR_LOG
      which events are shown, in tracing's notation (warn, secateur=debug, …);
      -q and -v replace it
  NO_COLOR, CLICOLOR, CLICOLOR_FORCE, TERM=dumb
      whether output is coloured
  COLUMNS
      the width of output, in place of the terminal's";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check a pipeline, every variant of it, and run nothing.
    Check(CheckArgs),
    /// Print the tree of variants and stages, which are stored, why the others must run, and where
    /// each run setting comes from.
    Plan(PipelineArgs),
    /// Summarise results: the folder of a pipeline, or a folder of several.
    Report(ReportArgs),
    /// Join the results of shards into one folder and one table. Exits with 1 if a variant is
    /// missing or two differ.
    Merge(MergeArgs),
    /// List the results that no pipeline file names any more, and incomplete ones; with --remove,
    /// remove them.
    Clean(CleanArgs),
    /// Write the hashes of a pipeline's inputs into `secateur.lock` beside it, for --locked.
    Lock(LockArgs),
    /// List the stored products, and verify or remove them.
    Cache(CacheArgs),
    /// Print the JSON Schema of a pipeline, for editors.
    Schema,
}

// The structs below have no doc comments: clap would print them in place of those of `Command`.

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub common: PipelineArgs,
    /// Leave out what needs files, folders or the device.
    #[arg(long)]
    pub no_world: bool,
}

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// `results`, or `results/<pipeline>`.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// How the summary is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Args)]
pub(crate) struct MergeArgs {
    /// `results/<pipeline>` of each shard, or folders of several.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// The folder of the joined results, such as `results`. Without it the results are joined in
    /// the first folder.
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// How the joined tables are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Args)]
pub(crate) struct CleanArgs {
    /// `results`, `results/<pipeline>`, a pipeline file whose results are meant, or both. Default:
    /// every pipeline in `results`. A results folder records its pipeline file.
    #[arg(num_args = 0..=2)]
    pub paths: Vec<PathBuf>,
    /// Remove what is listed. Without it nothing is changed.
    #[arg(long)]
    pub remove: bool,
    /// Only this variant, by its id or the beginning of its id. May be repeated.
    #[arg(long, value_name = "VARIANT")]
    pub only: Vec<String>,
    /// How the list is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Args)]
pub(crate) struct LockArgs {
    /// The pipeline: a TOML file.
    pub pipeline: PathBuf,
    /// Set an option, as for a run: the inputs are those of a run with this option. Files that the
    /// lock file has already stay in it. May be repeated.
    #[arg(long, value_name = "TYPE.KEY=VALUE")]
    pub set: Vec<String>,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub action: Option<CacheAction>,
    /// The folder of stored products. Default: `.cache` in the results folder.
    #[arg(long, global = true, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// The folder of results, in place of `results`.
    #[arg(long, global = true, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// How a listing is printed.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Clone, Copy, Subcommand)]
pub(crate) enum CacheAction {
    /// List every product, the least recently used first. The default.
    List,
    /// Read every file, and remove products that are damaged.
    Verify,
    /// Remove the least recently used products until the others fit; without a limit, all of them.
    Clean {
        /// The size of the products that may stay, in bytes or as "20 GiB".
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        limit: Option<ByteSize>,
    },
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let message = || "a size is a number of bytes, or such as \"20 GiB\"".to_owned();
    text.parse().map_err(|_| message())
}

#[derive(Args)]
pub(crate) struct PipelineArgs {
    /// The pipeline: a TOML file.
    pub pipeline: PathBuf,
    /// Set an option: `prune.ratio=0.3`, `evaluate[2].limit=20`, `run.seed=7`. The value is TOML
    /// (`'evaluate.tasks=["boolq"]'`); a text needs no quotes. It replaces what the file and its
    /// `[sweep]` say. May be repeated.
    #[arg(long, value_name = "TYPE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Sweep an option over these values: `prune.ratio=0.25,0.5`. Adds a line to `[sweep]`, or
    /// replaces the line of this option; an option of a `zip` leaves its group. May be repeated; an
    /// option is either set or swept.
    #[arg(long, value_name = "TYPE.KEY=VALUE,…")]
    pub sweep: Vec<String>,
    /// Only this variant, by its id or the beginning of its id. May be repeated.
    #[arg(long, value_name = "VARIANT")]
    pub only: Vec<String>,
    /// The folder of results, in place of `results`.
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Only the variants of this shard, such as 1/4: the first of four, whose sizes differ by at
    /// most one. `slice:1/4` takes contiguous parts of the tree of stages, so that variants with a
    /// common beginning are together. `runner merge` joins the results.
    #[arg(long, value_name = "K/N")]
    pub shard: Option<Shard>,
    /// Run every stage, even if its product is stored.
    #[arg(long)]
    pub force: bool,
    /// Run every stage of this type and all that follow it, even if their products are stored. May
    /// be repeated.
    #[arg(long, value_name = "TYPE")]
    pub from: Vec<String>,
    /// Refuse to run if a file or the program is not the one in `secateur.lock` beside the
    /// pipeline. `runner lock` writes that file.
    #[arg(long)]
    pub locked: bool,
    /// How the outcome is printed; `json` prints JSON alone on standard output.
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[default]
    Text,
    Json,
}
