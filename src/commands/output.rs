//! Standard output, standard error and exit codes.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use secateur::pipeline::problem::{InvalidPipeline, Problem};
use secateur::plan::Plan;
use secateur::progress::wrap_lines;
use serde_json::Value;
use textwrap::{WordSeparator, WordSplitter};

use crate::commands::arguments::OutputFormat;
use crate::commands::terminal::Stream;

/// The exit code of a wrong command line or pipeline.
pub(crate) const EXIT_INVALID: u8 = 2;

/// The width of diagnostics where there is no terminal.
const DIAGNOSTIC_WIDTH: usize = 200;

/// The exit code of an interrupted run.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// Writes to standard output. Ignores errors: a closed standard output changes no exit code.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
    ExitCode::SUCCESS
}

/// Writes indented JSON and a line feed to standard output.
pub(crate) fn print_json(value: &Value) -> ExitCode {
    print(&format!("{value:#}\n"))
}

/// Writes to standard error. Ignores errors.
pub(crate) fn print_to_stderr(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Prints an error and returns the exit code of a wrong command line.
pub(crate) fn exit_with_error(error: &dyn Display) -> ExitCode {
    print_to_stderr(&wrap_paragraphs(&error.to_string()));
    ExitCode::from(EXIT_INVALID)
}

/// Prints a mistake of the command line, or the help that it asks for, as clap words it.
pub(crate) fn exit_with_clap_error(error: &clap::Error) -> ExitCode {
    let stream = if error.use_stderr() {
        Stream::Error
    } else {
        Stream::Output
    };
    let rendered = error.render();
    let text = if stream.has_color() {
        rendered.ansi().to_string()
    } else {
        rendered.to_string()
    };
    match stream {
        Stream::Output => print(&text),
        Stream::Error => {
            print_to_stderr(&text);
            ExitCode::from(EXIT_INVALID)
        }
    }
}

/// Each line of a text, wrapped at the width of standard error. Without a terminal lines stay whole:
/// other programs search in them.
pub(crate) fn wrap_paragraphs(text: &str) -> String {
    let width = Stream::Error.known_width().unwrap_or(usize::MAX);
    let lines = text.lines();
    lines
        .map(|line| wrap_lines(line, width, "  ") + "\n")
        .collect()
}

/// Prints every problem of a pipeline, as text on standard error or as JSON on standard output.
pub(crate) fn report_invalid(invalid: &InvalidPipeline, format: OutputFormat) -> ExitCode {
    match format {
        OutputFormat::Text => print_to_stderr(&render_diagnostic(invalid)),
        OutputFormat::Json => {
            print_problems_json(&invalid.problems);
        }
    }
    ExitCode::from(EXIT_INVALID)
}

/// Prints problems as a JSON array on standard output.
pub(crate) fn print_problems_json(problems: &[Problem]) -> ExitCode {
    let records: Vec<_> = problems.iter().map(Problem::to_record).collect();
    print_json(&serde_json::json!(records))
}

/// Prints the warnings of a checked pipeline on standard error.
pub(crate) fn print_warnings(plan: &Plan) {
    for warning in &plan.warnings {
        print_to_stderr(&render_diagnostic(warning));
    }
}

/// A diagnostic with the lines of the file that it points to. Its text is wrapped between words, so
/// that ids and paths stay whole.
pub(crate) fn render_diagnostic(diagnostic: &dyn Diagnostic) -> String {
    let theme = if Stream::Error.has_color() {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_links(false)
        .with_width(Stream::Error.known_width().unwrap_or(DIAGNOSTIC_WIDTH))
        .with_break_words(false)
        .with_word_separator(WordSeparator::AsciiSpace)
        .with_word_splitter(WordSplitter::NoHyphenation);
    let mut text = String::new();
    match handler.render_report(&mut text, diagnostic) {
        Ok(()) => text,
        Err(_) => format!("{diagnostic}\n"),
    }
}
