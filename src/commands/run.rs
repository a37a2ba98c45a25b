//! `runner PIPELINE`

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secateur::plan::{Plan, lockfile};
use secateur::progress::Progress;
use secateur::run::log::{self, Console, LogFiles, Verbosity};
use secateur::run::{self, RunContext, RunOutcome};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::commands::arguments::{OutputFormat, PipelineArgs, RunOptions};
use crate::commands::output::{
    EXIT_INTERRUPTED, exit_with_error, print, print_json, print_to_stderr, render_diagnostic,
    wrap_paragraphs,
};
use crate::commands::prepare::{PreparedRun, prepare};
use crate::commands::terminal::Stream;

/// Checks a pipeline and runs every variant that is not complete.
pub(crate) fn run(arguments: &PipelineArgs, options: &RunOptions) -> ExitCode {
    let is_preparing = exit_on_signals();
    let PreparedRun { plan, keys, survey } = match prepare(arguments) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let (progress, log) = start_log(&plan, options.verbosity());
    let stop = Arc::default();
    stop_on_signals(&stop, &progress);
    is_preparing.store(false, Ordering::SeqCst);
    for warning in &plan.warnings {
        tracing::warn!("{}", warning.one_line());
    }
    lockfile::update(&plan, &keys);
    let device = plan.settings.run.device;
    if let Err(missing) = secateur_tensor::select_device(device) {
        let help = missing.help();
        return exit_with_error(&format!(
            "the device `{device}` cannot be used: {missing}; {help}"
        ));
    }
    // Every variant that is being built keeps a lock file open; the usual limit of open files is
    // below the number of variants of a large sweep.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!("the limit of open files stays: {error}");
    }
    let context = RunContext {
        progress,
        log,
        stop,
        fail_fast: options.fail_fast,
    };
    match run::run(&plan, &keys, &survey, &context) {
        Ok(outcome) => finish(&outcome, arguments, options),
        Err(error) => {
            print_to_stderr(&wrap_paragraphs(&format!("the run ended: {error}")));
            ExitCode::FAILURE
        }
    }
}

/// The signals that stop a run: Ctrl-C, SIGTERM, and SIGHUP of a terminal or connection that was
/// closed, unless the program is to ignore it (`nohup`).
fn stop_signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether the program was started with a signal ignored. False where the system does not say.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Ends the program on a signal that stops a run as long as the returned flag is set: nothing has been
/// written yet.
fn exit_on_signals() -> Arc<AtomicBool> {
    let is_preparing = Arc::new(AtomicBool::new(true));
    for signal in stop_signals() {
        let flag = is_preparing.clone();
        // An error leaves the default, which ends the program as well.
        drop(signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(EXIT_INTERRUPTED),
            flag,
        ));
    }
    is_preparing
}

/// Sets the flag on a signal that stops a run, removes the bars and says what happens. A second signal ends
/// the program at once.
fn stop_on_signals(stop: &Arc<AtomicBool>, progress: &Progress) {
    let (stop, progress) = (stop.clone(), progress.clone());
    let signals = match Signals::new(stop_signals()) {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!("signals cannot be caught ({error}); Ctrl-C will end the run at once");
            return;
        }
    };
    std::thread::spawn(move || wait_for_signals(signals, &stop, &progress));
}

fn wait_for_signals(mut signals: Signals, stop: &AtomicBool, progress: &Progress) {
    for _ in signals.forever() {
        if stop.swap(true, Ordering::SeqCst) {
            signal_hook::low_level::exit(i32::from(EXIT_INTERRUPTED));
        }
        progress.remove_bars();
        tracing::warn!(
            "the run stops as soon as the current step is done and its state is saved; a second \
             signal ends it at once"
        );
    }
}

/// Starts the progress display and the log.
fn start_log(plan: &Plan, verbosity: Option<Verbosity>) -> (Progress, LogFiles) {
    let progress = if verbosity.is_some_and(|verbosity| verbosity < Verbosity::Normal) {
        Progress::default()
    } else if Stream::Error.can_move_cursor() {
        Progress::with_terminal_bars(|| Stream::Error.width())
    } else {
        Progress::with_log_lines()
    };
    let log_files = LogFiles::default();
    let console = Console {
        verbosity,
        has_color: Stream::Error.has_color(),
        terminal_width: Stream::Error
            .is_terminal()
            .then_some(|| Stream::Error.width()),
    };
    log::init(plan.settings.run.log, console, &progress, &log_files);
    (progress, log_files)
}

/// Prints the outcome of a run and returns its exit code.
fn finish(outcome: &RunOutcome, arguments: &PipelineArgs, options: &RunOptions) -> ExitCode {
    for failure in &outcome.failures {
        print_to_stderr(&render_diagnostic(failure));
    }
    match arguments.format {
        OutputFormat::Text if options.verbosity() == Some(Verbosity::Errors) => {}
        OutputFormat::Text => match outcome.report.to_text(Stream::Output.width()) {
            Ok(text) => {
                let folder = outcome.report.folder.display();
                print(&format!("\n{text}\nresults: {folder}\n"));
            }
            Err(error) => print_to_stderr(&wrap_paragraphs(&error.to_string())),
        },
        OutputFormat::Json => {
            print_json(&outcome_json(outcome));
        }
    }
    if outcome.is_interrupted {
        // With these options the next run would repeat the stages that this one has completed.
        let without = if arguments.force || !arguments.from.is_empty() {
            " without --force and --from"
        } else {
            ""
        };
        print_to_stderr(&wrap_paragraphs(&format!(
            "interrupted; what was made is kept: run it again{without} to go on"
        )));
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    if outcome.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The rows of the tables that belong to the variants of this run.
fn outcome_json(outcome: &RunOutcome) -> Value {
    let is_of_this_run = |record: &Value| {
        let mut variants = outcome.variants.iter();
        variants.any(|variant| record["variant"] == variant.description.id.as_str())
    };
    let mut report = outcome.report.to_json();
    for table in ["variants", "generations"] {
        if let Some(records) = report[table].as_array_mut() {
            records.retain(is_of_this_run);
        }
    }
    report
}
