//! Command lines that do not fit: what was probably meant.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use secateur_base::spelling::closest;

use crate::commands::arguments::Cli;
use crate::commands::output::{
    EXIT_INVALID, exit_with_clap_error, exit_with_error, print_to_stderr,
};

/// What is printed if the program is called without arguments.
const FIRST_STEPS: &str = "runner prunes language models, as a pipeline file describes it:

  runner check PIPELINE    find every mistake of the file, and run nothing
  runner plan PIPELINE     show what would run, and why
  runner PIPELINE          run it
  runner report results    print the tables of earlier runs
  runner --help            all commands and options

An example pipeline is pipelines/ablation.toml.
";

/// The program was called without arguments.
pub(crate) fn explain_first_steps() -> ExitCode {
    print_to_stderr(FIRST_STEPS);
    ExitCode::from(EXIT_INVALID)
}

/// Prints why the command line cannot be read; help and version are printed as such.
pub(crate) fn explain_error(error: &clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_surplus_word = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict
    );
    if let [first, rest @ ..] = &words[..]
        && is_surplus_word
    {
        if let Some(message) = unknown_command(first, rest) {
            return exit_with_error(&message);
        }
        if let [second, ..] = rest
            && Path::new(first).is_file()
            && Path::new(second).is_file()
        {
            return exit_with_error(&format!(
                "runner takes one pipeline, and `{first}` and `{second}` are two: call it for each"
            ));
        }
    }
    exit_with_clap_error(error)
}

/// A word in the place of a pipeline or command that is neither; None if it may be a file.
/// `following`: the words after it.
pub(crate) fn unknown_command(word: &str, following: &[String]) -> Option<String> {
    let is_name = word
        .chars()
        .all(|character| character.is_ascii_alphabetic());
    if !is_name || Path::new(word).exists() {
        return None;
    }
    if matches!(word, "run" | "start" | "exec") {
        let pipeline = following.first().map_or("PIPELINE", String::as_str);
        return Some(format!(
            "there is no command `{word}`: `runner {pipeline}` runs a pipeline"
        ));
    }
    let command = Cli::command();
    let names: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    if names.contains(&word) {
        return None;
    }
    let close = closest(word, names.iter().copied())?;
    Some(format!(
        "there is no command `{word}`; did you mean `{close}`? there are: {}",
        names.join(", ")
    ))
}
