//! `runner merge`

use std::process::ExitCode;

use secateur::report::merge::{self, MergeError};

use crate::commands::arguments::MergeArgs;
use crate::commands::output::{exit_with_error, print, print_to_stderr};

/// Joins the results of shards. Fails if the folders contradict each other or a variant is missing.
pub(crate) fn merge(arguments: &MergeArgs) -> ExitCode {
    let merged = match merge::merge(&arguments.results, arguments.into.as_deref()) {
        Ok(merged) => merged,
        Err(error @ MergeError::NoResults(_)) => return exit_with_error(&error),
        Err(error) => {
            print_to_stderr(&format!("{error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let mut is_complete = true;
    for pipeline in &merged {
        print(&format!(
            "{}\n\n{}",
            pipeline.folder.display(),
            pipeline.summary
        ));
        for (variant, reason) in &pipeline.missing_variants {
            print_to_stderr(&format!("missing: {variant}: {reason}\n"));
            is_complete = false;
        }
    }
    if is_complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
