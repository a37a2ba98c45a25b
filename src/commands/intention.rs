//! Command lines that do not fit: what was probably meant.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
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
pub(crate) fn explain_error(mut error: clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_surplus_word = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict
    );
    let is_dry_run = matches!(
        error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(option)) if DRY_RUN_OPTIONS.contains(&option.as_str())
    );
    if is_surplus_word && is_dry_run {
        return exit_with_error(
            &"`runner plan PIPELINE` shows what would run, and `runner check PIPELINE` finds \
             mistakes; both run nothing",
        );
    }
    let message = match &words[..] {
        [help, word, rest @ ..] if help == "help" => unknown_command(word, rest),
        [first, rest @ ..] => {
            unknown_command(first, rest).or_else(|| surplus_word(first, &refused_word(&error)?))
        }
        [] => None,
    };
    if let Some(message) = message.filter(|_| is_surplus_word) {
        return exit_with_error(&message);
    }
    // clap suggests to write an unknown option after `--`, as a value.
    error.remove(ContextKind::Suggested);
    exit_with_clap_error(&error)
}

/// What other programs call an option with which nothing runs.
const DRY_RUN_OPTIONS: [&str; 3] = ["--dry-run", "--dryrun", "--plan"];

/// The word that clap refuses, unless it is an option.
fn refused_word(error: &clap::Error) -> Option<String> {
    let kinds = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
    match kinds.into_iter().find_map(|kind| error.get(kind))? {
        ContextValue::String(word) if !word.starts_with('-') => Some(word.clone()),
        _ => None,
    }
}

/// A word after the pipeline, or after a word in its place.
fn surplus_word(first: &str, second: &str) -> Option<String> {
    if command_names().iter().any(|name| name == first) {
        return None;
    }
    if !Path::new(first).is_file() {
        let is_option = first.contains('=');
        return (!is_option).then(|| no_command(first));
    }
    Some(if Path::new(second).is_file() {
        format!("runner takes one pipeline, and `{first}` and `{second}` are two: call it for each")
    } else if command_names().iter().any(|name| name == second) {
        format!("the command is written first: `runner {second} {first}`")
    } else if second.contains('=') {
        format!("an option is set with --set: `runner {first} --set '{second}'`")
    } else {
        format!("runner takes one pipeline; `{second}` is written after `{first}`")
    })
}

fn no_command(word: &str) -> String {
    let names = command_names().join(", ");
    format!("there is neither a command nor a file `{word}`; there are the commands {names}")
}

fn command_names() -> Vec<String> {
    let command = Cli::command();
    let names = command.get_subcommands().map(clap::Command::get_name);
    names.map(str::to_owned).collect()
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
    let names = command_names();
    if names.iter().any(|name| name == word) {
        return None;
    }
    let close = closest(word, names.iter().map(String::as_str))?;
    Some(format!(
        "there is no command `{word}`; did you mean `{close}`? there are: {}",
        names.join(", ")
    ))
}
