//! `runner`: arguments, events, exit code. The only file that prints.

mod cli;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use cli::{CacheAction, Cli, Command, Common, Format};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use secateur::pipeline::cache::{self, Cache};
use secateur::pipeline::check::{Overrides, check};
use secateur::pipeline::log::{self, LogFiles};
use secateur::pipeline::plan::{self, Plan};
use secateur::pipeline::problem::{InvalidPipeline, Sources};
use secateur::pipeline::recipe::Recipes;
use secateur::pipeline::run::{self, Surroundings};
use secateur::pipeline::select::Selection;
use secateur::pipeline::survey::{Survey, survey};
use secateur::pipeline::{lockfile, merge, report, schema, settings, world};
use secateur::progress::Progress;
use secateur::tensor;

/// The exit code of a wrong command line or pipeline.
const INVALID: u8 = 2;
/// The exit code of an interrupted run.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    end_with_the_gpu();
    let cli = Cli::parse();
    match (cli.command, cli.run) {
        (Some(Command::Check { common, no_world }), _) => check_only(&common, !no_world),
        (Some(Command::Plan { common }), _) => show_plan(&common),
        (Some(Command::Report { results, format }), _) => match report::report(&results, format == Format::Json) {
            Ok(text) => print(&text),
            Err(error) => complain(&error),
        },
        (Some(Command::Merge { results, into }), _) => join(&results, into.as_deref()),
        (Some(Command::Cache { action, cache, results, format }), _) => look_after(action, cache, results, format),
        (Some(Command::Schema), _) => print(&format!("{:#}\n", schema::schema())),
        (None, Some(common)) => run_pipeline(&common, cli.fail_fast),
        (None, None) => complain(&"give a pipeline, or a command; see --help"),
    }
}

/// A GPU that fails fails for good, and with it every attempt to give its memory back: then the program ends at once. What was
/// complete is on disk.
fn end_with_the_gpu() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.contains("CUDA_ERROR_") && !text.contains("CUDA_ERROR_OUT_OF_MEMORY") {
            warn(&format!("the GPU failed: {text}\nwhat was complete is kept: run it again to go on\n"));
            signal_hook::low_level::exit(1);
        }
        usual(panic);
    }));
}

/// What is known before a run.
struct Prepared {
    plan: Plan,
    recipes: Recipes,
    survey: Survey,
}

impl Common {
    fn check(&self, world: bool) -> Result<Plan, InvalidPipeline> {
        let overrides = Overrides {
            set: self.set.clone(),
            results: self.results.clone(),
            selection: Selection { only: self.only.clone(), shard: self.shard },
            force: self.force,
            from: self.from.clone(),
            locked: self.locked,
        };
        check(&self.pipeline, &overrides, world)
    }

    /// Checks the pipeline, and its lock file if it must hold, and looks at what is kept.
    fn prepare(&self) -> Result<Prepared, ExitCode> {
        self.prepare_checked(self.check(true).map_err(|invalid| refuse(&invalid, self.format))?)
    }

    /// As [`Common::prepare`], of a pipeline that has been checked.
    fn prepare_checked(&self, plan: Plan) -> Result<Prepared, ExitCode> {
        let refuse = |invalid: InvalidPipeline| refuse(&invalid, self.format);
        // This thread is one of the pool, so that the operations find all cores at once.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(plan.settings.run.threads.unwrap_or(0)).use_current_thread();
        pool.build_global().map_err(|error| complain(&error))?;
        let recipes = Recipes::of(&plan).map_err(|error| complain(&error))?;
        lockfile::verify(&plan, &recipes).map_err(refuse)?;
        let survey = survey(&plan, &recipes);
        world::room(&plan, Some(&survey)).map_err(refuse)?;
        Ok(Prepared { plan, recipes, survey })
    }
}

fn check_only(common: &Common, world: bool) -> ExitCode {
    let refuse = |invalid| refuse(&invalid, common.format);
    // Files are read whole only for a lock file; otherwise nothing is taken for kept.
    let checked = common.check(world).map_err(refuse).and_then(|plan| match (world, plan.settings.run.locked) {
        (false, _) => Ok(plan),
        (true, true) => common.prepare_checked(plan).map(|prepared| prepared.plan),
        (true, false) => world::room(&plan, None).map(|()| plan).map_err(refuse),
    });
    match (checked, common.format) {
        (Ok(plan), Format::Text) => {
            let (runs, alone) = plan.stage_runs();
            print(&format!(
                "{} is in order: {}, {runs} stages ({alone} without sharing)\n",
                common.pipeline.display(),
                plan::count(plan.variants.len(), "variant")
            ))
        }
        (Ok(_), Format::Json) => print("[]\n"),
        (Err(code), _) => code,
    }
}

fn show_plan(common: &Common) -> ExitCode {
    match (common.prepare(), common.format) {
        (Ok(Prepared { plan, survey, .. }), Format::Text) => print(&plan.text(&survey)),
        (Ok(Prepared { plan, recipes, survey }), Format::Json) => print(&format!("{:#}\n", plan.json(&recipes, &survey))),
        (Err(code), _) => code,
    }
}

fn join(results: &[PathBuf], into: Option<&Path>) -> ExitCode {
    let merged = match merge::merge(results, into) {
        Ok(merged) => merged,
        Err(error @ merge::MergeError::NoResults(_)) => return complain(&error),
        Err(error) => {
            warn(&format!("{error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for one in &merged {
        print(&format!("{}\n\n{}", one.folder.display(), one.summary));
        one.holes.iter().for_each(|(id, why)| warn(&format!("missing: {id}: {why}\n")));
    }
    if merged.iter().all(|one| one.holes.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn look_after(action: Option<CacheAction>, folder: Option<PathBuf>, results: Option<PathBuf>, format: Format) -> ExitCode {
    let mut problems = Vec::new();
    let mut settings = settings::layer(None, &[], &mut Sources::new("environment", ""), &mut problems).run;
    if !problems.is_empty() {
        return refuse(&InvalidPipeline { name: "environment".to_owned(), problems }, format);
    }
    if let Some(results) = results {
        settings.results = results;
    }
    let folder = folder.unwrap_or_else(|| settings.cache());
    if !cache::is_cache(&folder) {
        return complain(&format!("`{}` is no folder of kept products", folder.display()));
    }
    let opened = || Cache::open(&folder, settings.cache_limit.as_u64());
    match (action.unwrap_or(CacheAction::List), format) {
        (CacheAction::List, Format::Text) => print(&format!("{}\n\n{}", folder.display(), cache::text(&cache::list(&folder)))),
        (CacheAction::List, Format::Json) => print(&format!("{:#}\n", serde_json::json!(cache::list(&folder)))),
        (CacheAction::Verify, _) => match opened() {
            Ok(cache) => {
                let (damaged, whole) = (cache.verify(), cache.list().len());
                print(&format!("{damaged} damaged products were removed, {whole} are whole\n"))
            }
            Err(error) => complain(&error),
        },
        (CacheAction::Clean { limit }, _) => match opened() {
            Ok(cache) => {
                let (removed, bytes) = cache.trim_to(limit.map_or(0, |limit| limit.as_u64()));
                print(&format!("{removed} products were removed, {}\n", indicatif::HumanBytes(bytes)))
            }
            Err(error) => complain(&error),
        },
    }
}

fn run_pipeline(common: &Common, fail_fast: bool) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the program at once.
        let armed = signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), stop.clone());
        if let Err(error) = armed.and_then(|_| signal_hook::flag::register(signal, stop.clone())) {
            warn(&format!("signals cannot be caught ({error}); Ctrl-C will end the run at once\n"));
        }
    }
    let Prepared { plan, recipes, survey } = match common.prepare() {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let terminal = io::stderr().is_terminal();
    let progress = if terminal { Progress::terminal() } else { Progress::lines() };
    let log = LogFiles::default();
    log::start(plan.settings.run.log, terminal, &progress, &log);
    lockfile::update(&plan, &recipes);
    if let Err(missing) = tensor::select(plan.settings.run.device) {
        return complain(&format!("the device `{}` cannot be used: {missing}; {}", plan.settings.run.device, missing.help()));
    }
    // A variant that is being built holds a file; the usual limit is for interactive programs.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!("the limit of open files stays: {error}");
    }
    let outcome = match run::run(&plan, &recipes, &survey, &Surroundings { progress, log, stop, fail_fast }) {
        Ok(outcome) => outcome,
        Err(error) => {
            warn(&format!("the run ended: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for failure in &outcome.failures {
        warn(&rendered(failure));
    }
    match common.format {
        Format::Text => {
            print(&format!("\n{}\nresults: {}\n", outcome.summary, outcome.folder.display()));
        }
        Format::Json => {
            let variant = |v: &report::VariantSummary| serde_json::json!({ "variant": v.shape.id, "status": v.status.name(), "error": v.error });
            let variants: Vec<_> = outcome.variants.iter().map(variant).collect();
            print(&format!("{:#}\n", serde_json::json!({ "results": outcome.folder, "variants": variants })));
        }
    }
    if outcome.interrupted {
        let again = if common.force || !common.from.is_empty() { " without --force and --from" } else { "" };
        warn(&format!("interrupted; what was made is kept: run it again{again} to go on\n"));
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
