//! `runner report`

use std::process::ExitCode;

use secateur::report::summarize_results;

use crate::commands::arguments::{OutputFormat, ReportArgs};
use crate::commands::output::{exit_with_error, print};

/// Prints the summary of results folders.
pub(crate) fn report(arguments: &ReportArgs) -> ExitCode {
    let is_json = arguments.format == OutputFormat::Json;
    match summarize_results(&arguments.results, is_json) {
        Ok(text) => print(&text),
        Err(error) => exit_with_error(&error),
    }
}
