//! `runner report`

use std::process::ExitCode;

use secateur::report::{SweepReport, read_reports};
use secateur::run::mark_killed_runs;
use serde_json::Value;

use crate::commands::arguments::{OutputFormat, ReportArgs};
use crate::commands::output::{exit_with_error, print, print_json};
use crate::commands::terminal::Stream;

/// Prints the summary of results folders.
pub(crate) fn report(arguments: &ReportArgs) -> ExitCode {
    for folder in &arguments.results {
        mark_killed_runs(folder);
    }
    let reports = match read_reports(&arguments.results) {
        Ok(reports) => reports,
        Err(error) => return exit_with_error(&error),
    };
    match arguments.format {
        OutputFormat::Json => print_json(&Value::Array(
            reports.iter().map(SweepReport::to_json).collect(),
        )),
        OutputFormat::Text => {
            let width = Stream::Output.width();
            let texts: Result<Vec<String>, _> = reports
                .iter()
                .map(|report| report.to_titled_text(width))
                .collect();
            match texts {
                Ok(texts) => print(&texts.join("\n")),
                Err(error) => exit_with_error(&error),
            }
        }
    }
}
