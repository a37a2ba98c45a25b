//! `runner schema`

use std::process::ExitCode;

use crate::commands::output::print_json;

/// Prints the JSON Schema of a pipeline.
pub(crate) fn schema() -> ExitCode {
    print_json(&secateur::pipeline::schema::schema())
}
