//! `runner merge`

use std::process::ExitCode;

use secateur::report::ReportError;
use secateur::report::merge::{self, MergeError, MergedPipeline};
use serde_json::{Value, json};

use crate::commands::arguments::{MergeArgs, OutputFormat};
use crate::commands::output::{
    exit_with_error, print, print_json, print_to_stderr, wrap_paragraphs,
};
use crate::commands::terminal::Stream;

/// Joins the results of shards. Fails if the folders contradict each other or a variant is missing.
pub(crate) fn merge(arguments: &MergeArgs) -> ExitCode {
    let merged = match merge::merge(&arguments.results, arguments.into.as_deref()) {
        Ok(merged) => merged,
        Err(error @ MergeError::NoResults(_)) => return exit_with_error(&error),
        Err(error) => {
            print_to_stderr(&wrap_paragraphs(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match print_merged(&merged, arguments.format) {
        Ok(())
            if merged
                .iter()
                .all(|pipeline| pipeline.missing_variants.is_empty()) =>
        {
            ExitCode::SUCCESS
        }
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            print_to_stderr(&wrap_paragraphs(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Prints the joined tables, and the variants that no folder has.
fn print_merged(merged: &[MergedPipeline], format: OutputFormat) -> Result<(), ReportError> {
    if format == OutputFormat::Json {
        print_json(&Value::Array(merged.iter().map(to_json).collect()));
        return Ok(());
    }
    for pipeline in merged {
        print(&pipeline.report.to_titled_text(Stream::Output.width())?);
        for (variant, reason) in &pipeline.missing_variants {
            print_to_stderr(&wrap_paragraphs(&format!("missing: {variant}: {reason}")));
        }
    }
    Ok(())
}

/// The tables as `runner report` prints them, and the missing variants.
fn to_json(pipeline: &MergedPipeline) -> Value {
    let missing = pipeline.missing_variants.iter();
    let missing: Vec<Value> = missing
        .map(|(variant, reason)| json!({ "variant": variant, "reason": reason }))
        .collect();
    let mut report = pipeline.report.to_json();
    report["missing"] = Value::Array(missing);
    report
}
