//! `runner lock`

use std::process::ExitCode;

use secateur::plan::check::{Overrides, check};
use secateur::plan::keys::ProductKeys;
use secateur::plan::lockfile;

use crate::commands::arguments::{LockArgs, OutputFormat};
use crate::commands::output::{exit_with_error, print, print_json, print_warnings, report_invalid};

/// Checks a pipeline, and writes the hashes of its inputs into the lock file beside it.
pub(crate) fn lock(arguments: &LockArgs) -> ExitCode {
    let overrides = Overrides {
        set: arguments.set.clone(),
        ..Overrides::default()
    };
    let plan = match check(&arguments.pipeline, &overrides, true) {
        Ok(plan) => plan,
        Err(invalid) => return report_invalid(&invalid, arguments.format),
    };
    let written = ProductKeys::from_plan(&plan)
        .map_err(|error| error.to_string())
        .and_then(|keys| lockfile::write(&plan, &keys));
    match (written, arguments.format) {
        (Err(message), _) => exit_with_error(&message),
        (Ok(path), OutputFormat::Json) => print_json(&serde_json::json!({ "lock": path })),
        (Ok(path), OutputFormat::Text) => {
            print_warnings(&plan);
            print(&format!(
                "`{}` has the inputs of {}\n",
                path.display(),
                arguments.pipeline.display()
            ))
        }
    }
}
