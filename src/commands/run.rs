//! `runner PIPELINE`

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use secateur::plan::{Plan, lockfile};
use secateur::progress::Progress;
use secateur::run::log::{self, LogFiles};
use secateur::run::{self, RunContext, RunOutcome};
use serde_json::{Value, json};

use crate::commands::arguments::{OutputFormat, PipelineArgs};
use crate::commands::output::{
    EXIT_INTERRUPTED, exit_with_error, print, print_json, print_to_stderr, render_diagnostic,
};
use crate::commands::prepare::{PreparedRun, prepare};

/// Checks a pipeline and runs every variant that is not complete.
pub(crate) fn run(arguments: &PipelineArgs, fail_fast: bool) -> ExitCode {
    let stop = stop_on_signals();
    let PreparedRun { plan, keys, survey } = match prepare(arguments) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let (progress, log) = start_log(&plan);
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
        fail_fast,
    };
    match run::run(&plan, &keys, &survey, &context) {
        Ok(outcome) => finish(&outcome, arguments),
        Err(error) => {
            print_to_stderr(&format!("the run ended: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// A flag that Ctrl-C and SIGTERM set. A second signal ends the program at once.
fn stop_on_signals() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The order matters: the first handler ends the program only if the flag is already set.
        let registered = signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(EXIT_INTERRUPTED),
            stop.clone(),
        )
        .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
        if let Err(error) = registered {
            print_to_stderr(&format!(
                "signals cannot be caught ({error}); Ctrl-C will end the run at once\n"
            ));
        }
    }
    stop
}

/// Starts the progress display and the log.
fn start_log(plan: &Plan) -> (Progress, LogFiles) {
    let is_terminal = io::stderr().is_terminal();
    let progress = if is_terminal {
        Progress::with_terminal_bars()
    } else {
        Progress::with_log_lines()
    };
    let log_files = LogFiles::default();
    log::init(plan.settings.run.log, is_terminal, &progress, &log_files);
    (progress, log_files)
}

/// Prints the outcome of a run and returns its exit code.
fn finish(outcome: &RunOutcome, arguments: &PipelineArgs) -> ExitCode {
    for failure in &outcome.failures {
        print_to_stderr(&render_diagnostic(failure));
    }
    match arguments.format {
        OutputFormat::Text => {
            let folder = outcome.folder.display();
            print(&format!("\n{}\nresults: {folder}\n", outcome.summary));
        }
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
        print_to_stderr(&format!(
            "interrupted; what was made is kept: run it again{without} to go on\n"
        ));
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    if outcome.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn outcome_json(outcome: &RunOutcome) -> Value {
    let variants: Vec<Value> = outcome
        .variants
        .iter()
        .map(|variant| {
            json!({
                "variant": variant.description.id,
                "status": variant.status.name(),
                "error": variant.error,
            })
        })
        .collect();
    json!({ "results": outcome.folder, "variants": variants })
}
