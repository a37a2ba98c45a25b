//! What `check`, `plan` and `run` have in common: the checked pipeline, its keys and its survey.

use std::process::ExitCode;

use secateur::pipeline::problem::InvalidPipeline;
use secateur::plan::capacity::check_capacity;
use secateur::plan::check::{Overrides, check};
use secateur::plan::keys::ProductKeys;
use secateur::plan::selection::Selection;
use secateur::plan::survey::Survey;
use secateur::plan::{Plan, lockfile};

use crate::commands::arguments::PipelineArgs;
use crate::commands::output::{exit_with_error, report_invalid};

/// A plan, and what is known of it before a run.
pub(crate) struct PreparedRun {
    pub plan: Plan,
    pub keys: ProductKeys,
    pub survey: Survey,
}

/// Checks the pipeline; files, folders and the device only if `with_environment` is set.
pub(crate) fn check_pipeline(
    arguments: &PipelineArgs,
    with_environment: bool,
) -> Result<Plan, InvalidPipeline> {
    let overrides = Overrides {
        set: arguments.set.clone(),
        sweep: arguments.sweep.clone(),
        results: arguments.results.clone(),
        selection: Selection {
            only: arguments.only.clone(),
            shard: arguments.shard,
        },
        force: arguments.force,
        force_from: arguments.from.clone(),
        locked: arguments.locked,
    };
    check(&arguments.pipeline, &overrides, with_environment)
}

/// Checks the pipeline and prepares the plan. Prints what is wrong; the error is the exit code.
pub(crate) fn prepare(arguments: &PipelineArgs) -> Result<PreparedRun, ExitCode> {
    let plan = check_pipeline(arguments, true)
        .map_err(|invalid| report_invalid(&invalid, arguments.format))?;
    prepare_plan(plan, arguments)
}

/// Hashes the inputs of a plan, compares them with the lock file, and reads what earlier runs left.
pub(crate) fn prepare_plan(plan: Plan, arguments: &PipelineArgs) -> Result<PreparedRun, ExitCode> {
    let refuse = |invalid: InvalidPipeline| report_invalid(&invalid, arguments.format);
    // The pool is started from this thread and includes it, so that operations which this thread
    // begins use all cores.
    rayon::ThreadPoolBuilder::new()
        .num_threads(plan.settings.run.threads.unwrap_or(0))
        .use_current_thread()
        .build_global()
        .map_err(|error| exit_with_error(&error))?;
    let keys = ProductKeys::from_plan(&plan).map_err(|error| exit_with_error(&error))?;
    lockfile::verify(&plan, &keys).map_err(refuse)?;
    let survey = Survey::new(&plan, &keys);
    check_capacity(&plan, Some(&survey)).map_err(refuse)?;
    Ok(PreparedRun { plan, keys, survey })
}
