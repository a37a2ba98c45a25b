//! `runner`: reads the command line and calls the subcommand. The subcommands are in `commands`.

mod commands;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::arguments::{Cli, Command};
use crate::commands::output::exit_with_error;
use crate::commands::{
    cache, check, clean, gpu_failure, intention, lock, merge, plan, report, run, schema,
};

fn main() -> ExitCode {
    gpu_failure::install_panic_hook();
    if std::env::args_os().len() <= 1 {
        return intention::explain_first_steps();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return intention::explain_error(error),
    };
    match (cli.command, cli.run) {
        (Some(Command::Check(arguments)), _) => check::check(&arguments),
        (Some(Command::Plan(arguments)), _) => plan::plan(&arguments),
        (Some(Command::Report(arguments)), _) => report::report(&arguments),
        (Some(Command::Merge(arguments)), _) => merge::merge(&arguments),
        (Some(Command::Clean(arguments)), _) => clean::clean(&arguments),
        (Some(Command::Lock(arguments)), _) => lock::lock(&arguments),
        (Some(Command::Cache(arguments)), _) => cache::cache(arguments),
        (Some(Command::Schema), _) => schema::schema(),
        (None, Some(arguments)) => {
            match intention::unknown_command(&arguments.pipeline.to_string_lossy(), &[]) {
                Some(message) => exit_with_error(&message),
                None => run::run(&arguments, &cli.run_options),
            }
        }
        (None, None) => intention::explain_first_steps(),
    }
}
