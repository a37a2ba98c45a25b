//! `runner`: arguments, events, exit code. The only file that prints.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand, ValueEnum};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use secateur::pipeline::check::{Overrides, check};
use secateur::pipeline::log::{self, LogFiles};
use secateur::pipeline::plan::Plan;
use secateur::pipeline::problem::InvalidPipeline;
use secateur::pipeline::run::{self, Surroundings};
use secateur::pipeline::{report, schema};
use secateur::progress::Progress;

/// Prunes language models structurally, and shows what it cost.
///
/// `runner PIPELINE` checks a TOML pipeline and runs every variant of it.
#[derive(Parser)]
#[command(name = "runner", version, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<Common>,
}

const EXIT_CODES: &str = "Exit codes:
  0    every variant succeeded
  1    a stage failed; the other variants still ran
  2    the command line or the pipeline is wrong; no work was started
  130  interrupted by Ctrl-C or SIGTERM; what was complete is kept

Environment:
  RUNNER_SEED, RUNNER_RESULTS, RUNNER_CACHE, RUNNER_DATA, RUNNER_THREADS, RUNNER_DEVICE, RUNNER_LOG
               run settings, over those of the file and under --set
  SECATEUR_LOG which events are shown, in tracing's notation: warn, secateur=debug, …";

#[derive(Subcommand)]
enum Command {
    /// Check a pipeline, every variant of it, and run nothing.
    Check {
        #[command(flatten)]
        common: Common,
        /// Leave out what needs files, folders or the device.
        #[arg(long)]
        no_world: bool,
    },
    /// Print the tree of variants and stages, and where each run setting comes from.
    Plan {
        #[command(flatten)]
        common: Common,
    },
    /// Summarise results: the folder of a pipeline, or a folder of several.
    Report {
        /// `results`, or `results/<pipeline>`.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// How the summary is printed.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print the JSON Schema of a pipeline, for editors.
    Schema,
}

#[derive(Args)]
struct Common {
    /// The pipeline: a TOML file.
    pipeline: PathBuf,
    /// Decide an option: `prune.ratio=0.3`, `evaluate[2].limit=20`, `run.seed=7`. May be repeated.
    #[arg(long, value_name = "TYPE.KEY=VALUE")]
    set: Vec<String>,
    /// Only this variant, by its id or the beginning of it. May be repeated.
    #[arg(long, value_name = "VARIANT")]
    only: Vec<String>,
    /// The folder of results, in place of `results`.
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Run every stage, whatever is kept from earlier runs. Nothing is kept yet, so every stage runs in any case.
    #[arg(long)]
    force: bool,
    /// How the outcome is printed; `json` prints JSON alone on standard output.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// The exit code of a wrong command line or pipeline.
const INVALID: u8 = 2;
/// The exit code of an interrupted run.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match (cli.command, cli.run) {
        (Some(Command::Check { common, no_world }), _) => check_only(&common, !no_world),
        (Some(Command::Plan { common }), _) => show_plan(&common),
        (Some(Command::Report { results, format }), _) => match report::report(&results, format == Format::Json) {
            Ok(text) => print(&text),
            Err(error) => complain(&error),
        },
        (Some(Command::Schema), _) => print(&format!("{:#}\n", schema::schema())),
        (None, Some(common)) => run_pipeline(&common),
        (None, None) => complain(&"give a pipeline, or a command; see --help"),
    }
}

impl Common {
    fn check(&self, world: bool) -> Result<Plan, InvalidPipeline> {
        check(&self.pipeline, &Overrides { set: self.set.clone(), results: self.results.clone(), only: self.only.clone() }, world)
    }
}

fn check_only(common: &Common, world: bool) -> ExitCode {
    match (common.check(world), common.format) {
        (Ok(plan), Format::Text) => {
            let (runs, alone) = plan.stage_runs();
            print(&format!(
                "{} is in order: {} variants, {runs} stages ({alone} without sharing)\n",
                common.pipeline.display(),
                plan.variants.len()
            ))
        }
        (Ok(_), Format::Json) => print("[]\n"),
        (Err(invalid), format) => refuse(&invalid, format),
    }
}

fn show_plan(common: &Common) -> ExitCode {
    match (common.check(true), common.format) {
        (Ok(plan), Format::Text) => print(&plan.text()),
        (Ok(plan), Format::Json) => print(&format!("{:#}\n", plan.json())),
        (Err(invalid), format) => refuse(&invalid, format),
    }
}

fn run_pipeline(common: &Common) -> ExitCode {
    let plan = match common.check(true) {
        Ok(plan) => plan,
        Err(invalid) => return refuse(&invalid, common.format),
    };
    let terminal = std::io::stderr().is_terminal();
    let progress = if terminal { Progress::terminal() } else { Progress::lines() };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the program at once.
        let armed = signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), stop.clone());
        if let Err(error) = armed.and_then(|_| signal_hook::flag::register(signal, stop.clone())) {
            warn(&format!("signals cannot be caught ({error}); Ctrl-C will end the run at once\n"));
        }
    }
    let log = LogFiles::default();
    log::start(plan.settings.run.log, terminal, &progress, &log);
    if let Some(threads) = plan.settings.run.threads
        && let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
    {
        return complain(&error);
    }
    let outcome = match run::run(&plan, &Surroundings { progress, log, stop }) {
        Ok(outcome) => outcome,
        Err(error) => {
            warn(&format!("the run ended: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for failure in outcome.failures.iter().filter(|failure| !failure.interrupted) {
        warn(&rendered(failure));
    }
    match common.format {
        Format::Text => {
            print(&format!("\n{}\nresults: {}\n", outcome.summary, outcome.folder.display()));
        }
        Format::Json => {
            let variant =
                |v: &report::VariantSummary| serde_json::json!({ "variant": v.id, "status": v.status.name(), "error": v.error });
            let variants: Vec<_> = outcome.variants.iter().map(variant).collect();
            print(&format!("{:#}\n", serde_json::json!({ "results": outcome.folder, "variants": variants })));
        }
    }
    if outcome.interrupted {
        warn(&format!("interrupted; variants that were complete are kept in {}\n", outcome.folder.display()));
        return ExitCode::from(INTERRUPTED);
    }
    if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(invalid: &InvalidPipeline, format: Format) -> ExitCode {
    match format {
        Format::Text => warn(&rendered(invalid)),
        Format::Json => {
            let records: Vec<_> = invalid.problems.iter().map(|problem| problem.record()).collect();
            print(&format!("{:#}\n", serde_json::json!(records)));
        }
    }
    ExitCode::from(INVALID)
}

/// A report with its places in the file, coloured on a terminal.
fn rendered(diagnostic: &dyn Diagnostic) -> String {
    let theme = if std::io::stderr().is_terminal() { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let mut text = String::new();
    match GraphicalReportHandler::new_themed(theme).with_links(false).render_report(&mut text, diagnostic) {
        Ok(()) => text,
        Err(_) => format!("{diagnostic}\n"),
    }
}

/// Writes to standard output. Whoever closed it does not want to hear more, which changes no exit code.
fn print(text: &str) -> ExitCode {
    drop(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()));
    ExitCode::SUCCESS
}

/// Writes to standard error, if anybody listens.
fn warn(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

fn complain(error: &dyn std::fmt::Display) -> ExitCode {
    warn(&format!("{error}\n"));
    ExitCode::from(INVALID)
}
