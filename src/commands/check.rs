//! `runner check`

use std::process::ExitCode;

use secateur::pipeline::problem::format_count;
use secateur::plan::Plan;
use secateur::plan::capacity::check_capacity;

use crate::commands::arguments::{CheckArgs, OutputFormat};
use crate::commands::output::{print, print_problems_json, print_warnings, report_invalid};
use crate::commands::prepare::{check_pipeline, prepare_plan};

/// Checks a pipeline and prints its problems, or the numbers of its variants and stages.
pub(crate) fn check(arguments: &CheckArgs) -> ExitCode {
    let plan = match checked_plan(arguments) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    match arguments.common.format {
        OutputFormat::Json => print_problems_json(&plan.warnings),
        OutputFormat::Text => {
            print_warnings(&plan);
            let (stage_runs, unshared_runs) = plan.stage_run_counts();
            print(&format!(
                "{} is in order: {}, {stage_runs} stages ({unshared_runs} without sharing)\n",
                arguments.common.pipeline.display(),
                format_count(plan.variants.len(), "variant")
            ))
        }
    }
}

fn checked_plan(arguments: &CheckArgs) -> Result<Plan, ExitCode> {
    let common = &arguments.common;
    let refuse = |invalid| report_invalid(&invalid, common.format);
    let with_environment = !arguments.no_world;
    let plan = check_pipeline(common, with_environment).map_err(refuse)?;
    if !with_environment {
        return Ok(plan);
    }
    if plan.settings.run.locked {
        // The comparison with the lock file needs the hash of every input.
        return Ok(prepare_plan(plan, common)?.plan);
    }
    // Without keys it is unknown which products are stored, so every stage counts.
    check_capacity(&plan, None).map_err(refuse)?;
    Ok(plan)
}
