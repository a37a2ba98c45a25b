//! `runner`: arguments, events, exit code. The only file that prints.

#[path = "commands/cache_listing.rs"]
mod cache_listing;
#[path = "commands/arguments.rs"]
mod cli;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use cli::{CacheAction, Cli, Command, OutputFormat, PipelineArgs};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use secateur::pipeline::check::{Overrides, check};
use secateur::pipeline::problem::{InvalidPipeline, SourceTexts};
use secateur::pipeline::{environment, schema, settings};
use secateur::plan::keys::ProductKeys;
use secateur::plan::lockfile;
use secateur::plan::selection::Selection;
use secateur::plan::survey::{Survey, survey};
use secateur::plan::{self, Plan};
use secateur::progress::Progress;
use secateur::report::{self, merge};
use secateur::run::log::{self, LogFiles};
use secateur::run::{self, RunContext};
use secateur_store::cache::{self, ProductCache};
use secateur_tensor as tensor;

/// The exit code of a wrong command line or pipeline.
const EXIT_INVALID: u8 = 2;
/// The exit code of an interrupted run.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    exit_on_cuda_failure();
    let cli = Cli::parse();
    match (cli.command, cli.run) {
        (Some(Command::Check { common, no_world }), _) => check_pipeline(&common, !no_world),
        (Some(Command::Plan { common }), _) => show_plan(&common),
        (Some(Command::Report { results, format }), _) => {
            match report::summarize_results(&results, format == OutputFormat::Json) {
                Ok(text) => print(&text),
                Err(error) => exit_with_error(&error),
            }
        }
        (Some(Command::Merge { results, into }), _) => merge_results(&results, into.as_deref()),
        (
            Some(Command::Cache {
                action,
                cache,
                results,
                format,
            }),
            _,
        ) => manage_cache(action, cache, results, format),
        (Some(Command::Schema), _) => print(&format!("{:#}\n", schema::schema())),
        (None, Some(common)) => run_pipeline(&common, cli.fail_fast),
        (None, None) => exit_with_error(&"give a pipeline, or a command; see --help"),
    }
}

/// A GPU that fails fails for good, and with it every attempt to give its memory back: then the program ends at once. What was
/// complete is on disk.
fn exit_on_cuda_failure() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.contains("CUDA_ERROR_") && !text.contains("CUDA_ERROR_OUT_OF_MEMORY") {
            print_to_stderr(&format!(
                "the GPU failed: {text}\nwhat was complete is kept: run it again to go on\n"
            ));
            signal_hook::low_level::exit(1);
        }
        usual(panic);
    }));
}

/// What is known before a run.
struct PreparedRun {
    plan: Plan,
    keys: ProductKeys,
    survey: Survey,
}

impl PipelineArgs {
    fn check(&self, world: bool) -> Result<Plan, InvalidPipeline> {
        let overrides = Overrides {
            set: self.set.clone(),
            results: self.results.clone(),
            selection: Selection {
                only: self.only.clone(),
                shard: self.shard,
            },
            force: self.force,
            force_from: self.from.clone(),
            locked: self.locked,
        };
        check(&self.pipeline, &overrides, world)
    }

    /// Checks the pipeline, and its lock file if it must hold, and looks at what is kept.
    fn prepare(&self) -> Result<PreparedRun, ExitCode> {
        self.prepare_checked(
            self.check(true)
                .map_err(|invalid| report_invalid(&invalid, self.format))?,
        )
    }

    /// As [`Common::prepare`], of a pipeline that has been checked.
    fn prepare_checked(&self, plan: Plan) -> Result<PreparedRun, ExitCode> {
        let refuse = |invalid: InvalidPipeline| report_invalid(&invalid, self.format);
        // This thread is one of the pool, so that the operations find all cores at once.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(plan.settings.run.threads.unwrap_or(0))
            .use_current_thread();
        pool.build_global()
            .map_err(|error| exit_with_error(&error))?;
        let recipes = ProductKeys::from_plan(&plan).map_err(|error| exit_with_error(&error))?;
        lockfile::verify(&plan, &recipes).map_err(refuse)?;
        let survey = survey(&plan, &recipes);
        environment::check_capacity(&plan, Some(&survey)).map_err(refuse)?;
        Ok(PreparedRun {
            plan,
            keys: recipes,
            survey,
        })
    }
}

fn check_pipeline(common: &PipelineArgs, world: bool) -> ExitCode {
    let refuse = |invalid| report_invalid(&invalid, common.format);
    // Files are read whole only for a lock file; otherwise nothing is taken for kept.
    let checked = common.check(world).map_err(refuse).and_then(|plan| {
        match (world, plan.settings.run.locked) {
            (false, _) => Ok(plan),
            (true, true) => common.prepare_checked(plan).map(|prepared| prepared.plan),
            (true, false) => environment::check_capacity(&plan, None)
                .map(|()| plan)
                .map_err(refuse),
        }
    });
    match (checked, common.format) {
        (Ok(plan), OutputFormat::Text) => {
            let (runs, alone) = plan.stage_run_counts();
            print(&format!(
                "{} is in order: {}, {runs} stages ({alone} without sharing)\n",
                common.pipeline.display(),
                plan::format_count(plan.variants.len(), "variant")
            ))
        }
        (Ok(_), OutputFormat::Json) => print("[]\n"),
        (Err(code), _) => code,
    }
}

fn show_plan(common: &PipelineArgs) -> ExitCode {
    match (common.prepare(), common.format) {
        (Ok(PreparedRun { plan, survey, .. }), OutputFormat::Text) => print(&plan.to_text(&survey)),
        (
            Ok(PreparedRun {
                plan,
                keys: recipes,
                survey,
            }),
            OutputFormat::Json,
        ) => print(&format!("{:#}\n", plan.to_json(&recipes, &survey))),
        (Err(code), _) => code,
    }
}

fn merge_results(results: &[PathBuf], into: Option<&Path>) -> ExitCode {
    let merged = match merge::merge(results, into) {
        Ok(merged) => merged,
        Err(error @ merge::MergeError::NoResults(_)) => return exit_with_error(&error),
        Err(error) => {
            print_to_stderr(&format!("{error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for one in &merged {
        print(&format!("{}\n\n{}", one.folder.display(), one.summary));
        one.missing_variants
            .iter()
            .for_each(|(id, why)| print_to_stderr(&format!("missing: {id}: {why}\n")));
    }
    if merged.iter().all(|one| one.missing_variants.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn manage_cache(
    action: Option<CacheAction>,
    folder: Option<PathBuf>,
    results: Option<PathBuf>,
    format: OutputFormat,
) -> ExitCode {
    let mut problems = Vec::new();
    let mut settings = settings::layer_settings(
        None,
        &[],
        &mut SourceTexts::new("environment", ""),
        &mut problems,
    )
    .run;
    if !problems.is_empty() {
        return report_invalid(
            &InvalidPipeline {
                name: "environment".to_owned(),
                problems,
            },
            format,
        );
    }
    if let Some(results) = results {
        settings.results = results;
    }
    let folder = folder.unwrap_or_else(|| settings.cache_folder());
    if !cache::is_cache(&folder) {
        return exit_with_error(&format!(
            "`{}` is no folder of kept products",
            folder.display()
        ));
    }
    let opened = || ProductCache::open(&folder, settings.cache_limit.as_u64());
    match (action.unwrap_or(CacheAction::List), format) {
        (CacheAction::List, OutputFormat::Text) => print(&format!(
            "{}\n\n{}",
            folder.display(),
            cache_listing::format_listing(&cache::list_products(&folder))
        )),
        (CacheAction::List, OutputFormat::Json) => print(&format!(
            "{:#}\n",
            serde_json::json!(cache::list_products(&folder))
        )),
        (CacheAction::Verify, _) => match opened() {
            Ok(cache) => {
                let (damaged, whole) = (cache.verify(), cache.list_products().len());
                print(&format!(
                    "{damaged} damaged products were removed, {whole} are whole\n"
                ))
            }
            Err(error) => exit_with_error(&error),
        },
        (CacheAction::Clean { limit }, _) => match opened() {
            Ok(cache) => {
                let (removed, bytes) = cache.trim_to(limit.map_or(0, |limit| limit.as_u64()));
                print(&format!(
                    "{removed} products were removed, {}\n",
                    indicatif::HumanBytes(bytes)
                ))
            }
            Err(error) => exit_with_error(&error),
        },
    }
}

fn run_pipeline(common: &PipelineArgs, fail_fast: bool) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the program at once.
        let armed = signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(EXIT_INTERRUPTED),
            stop.clone(),
        );
        if let Err(error) = armed.and_then(|_| signal_hook::flag::register(signal, stop.clone())) {
            print_to_stderr(&format!(
                "signals cannot be caught ({error}); Ctrl-C will end the run at once\n"
            ));
        }
    }
    let PreparedRun {
        plan,
        keys: recipes,
        survey,
    } = match common.prepare() {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let terminal = io::stderr().is_terminal();
    let progress = if terminal {
        Progress::with_terminal_bars()
    } else {
        Progress::with_log_lines()
    };
    let log = LogFiles::default();
    log::init(plan.settings.run.log, terminal, &progress, &log);
    lockfile::update(&plan, &recipes);
    if let Err(missing) = tensor::select_device(plan.settings.run.device) {
        return exit_with_error(&format!(
            "the device `{}` cannot be used: {missing}; {}",
            plan.settings.run.device,
            missing.help()
        ));
    }
    // A variant that is being built holds a file; the usual limit is for interactive programs.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!("the limit of open files stays: {error}");
    }
    let outcome = match run::run(
        &plan,
        &recipes,
        &survey,
        &RunContext {
            progress,
            log,
            stop,
            fail_fast,
        },
    ) {
        Ok(outcome) => outcome,
        Err(error) => {
            print_to_stderr(&format!("the run ended: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for failure in &outcome.failures {
        print_to_stderr(&render_diagnostic(failure));
    }
    match common.format {
        OutputFormat::Text => {
            print(&format!(
                "\n{}\nresults: {}\n",
                outcome.summary,
                outcome.folder.display()
            ));
        }
        OutputFormat::Json => {
            let variant = |v: &report::VariantSummary| serde_json::json!({ "variant": v.description.id, "status": v.status.name(), "error": v.error });
            let variants: Vec<_> = outcome.variants.iter().map(variant).collect();
            print(&format!(
                "{:#}\n",
                serde_json::json!({ "results": outcome.folder, "variants": variants })
            ));
        }
    }
    if outcome.is_interrupted {
        let again = if common.force || !common.from.is_empty() {
            " without --force and --from"
        } else {
            ""
        };
        print_to_stderr(&format!(
            "interrupted; what was made is kept: run it again{again} to go on\n"
        ));
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    if outcome.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report_invalid(invalid: &InvalidPipeline, format: OutputFormat) -> ExitCode {
    match format {
        OutputFormat::Text => print_to_stderr(&render_diagnostic(invalid)),
        OutputFormat::Json => {
            let records: Vec<_> = invalid
                .problems
                .iter()
                .map(|problem| problem.to_record())
                .collect();
            print(&format!("{:#}\n", serde_json::json!(records)));
        }
    }
    ExitCode::from(EXIT_INVALID)
}

/// A report with its places in the file, coloured on a terminal.
fn render_diagnostic(diagnostic: &dyn Diagnostic) -> String {
    let theme = if std::io::stderr().is_terminal() {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let mut text = String::new();
    match GraphicalReportHandler::new_themed(theme)
        .with_links(false)
        .render_report(&mut text, diagnostic)
    {
        Ok(()) => text,
        Err(_) => format!("{diagnostic}\n"),
    }
}

/// Writes to standard output. Whoever closed it does not want to hear more, which changes no exit code.
fn print(text: &str) -> ExitCode {
    drop(
        io::stdout()
            .write_all(text.as_bytes())
            .and_then(|()| io::stdout().flush()),
    );
    ExitCode::SUCCESS
}

/// Writes to standard error, if anybody listens.
fn print_to_stderr(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

fn exit_with_error(error: &dyn std::fmt::Display) -> ExitCode {
    print_to_stderr(&format!("{error}\n"));
    ExitCode::from(EXIT_INVALID)
}
