//! `runner plan`

use std::process::ExitCode;

use secateur::plan::text::{to_json, to_text};
use secateur::run::mark_killed_runs;

use crate::commands::arguments::{OutputFormat, PipelineArgs};
use crate::commands::output::{print, print_json, print_warnings};
use crate::commands::prepare::{PreparedRun, prepare};

/// Prints the tree of variants and stages, and why each stage must run.
pub(crate) fn plan(arguments: &PipelineArgs) -> ExitCode {
    match prepare(arguments) {
        Err(code) => code,
        Ok(PreparedRun { plan, keys, survey }) => {
            mark_killed_runs(&plan.settings.run.results.join(&plan.name));
            match arguments.format {
                OutputFormat::Text => {
                    print_warnings(&plan);
                    print(&to_text(&plan, &survey))
                }
                OutputFormat::Json => print_json(&to_json(&plan, &keys, &survey)),
            }
        }
    }
}
