//! What standard output and standard error can show: colour, bars, and a width. This is the only
//! file that reads `NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE`, `TERM` and `COLUMNS`; errors, events,
//! bars, tables and `--help` follow it.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};

use terminal_size::{Width, terminal_size_of};

/// The width of tables where there is no terminal.
const DEFAULT_WIDTH: usize = 80;

/// Narrower output would consist of single words.
const MIN_WIDTH: usize = 40;

#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Output,
    Error,
}

impl Stream {
    pub(crate) fn is_terminal(self) -> bool {
        match self {
            Self::Output => io::stdout().is_terminal(),
            Self::Error => io::stderr().is_terminal(),
        }
    }

    /// Whether text may be coloured.
    pub(crate) fn has_color(self) -> bool {
        has_color(|name| std::env::var_os(name), self.is_terminal())
    }

    /// Whether bars may be drawn, which are replaced while they grow.
    pub(crate) fn can_move_cursor(self) -> bool {
        self.is_terminal() && has_capable_terminal(|name| std::env::var_os(name))
    }

    /// The number of characters in a line: [`Stream::known_width`], else 80.
    pub(crate) fn width(self) -> usize {
        self.known_width().unwrap_or(DEFAULT_WIDTH)
    }

    /// `COLUMNS`, else the terminal's width; `None` without a terminal.
    pub(crate) fn known_width(self) -> Option<usize> {
        let columns = std::env::var("COLUMNS").ok();
        let columns = columns.and_then(|columns| columns.parse::<usize>().ok());
        let width = columns.filter(|&columns| columns > 0).or_else(|| {
            let size = match self {
                Self::Output => terminal_size_of(io::stdout()),
                Self::Error => terminal_size_of(io::stderr()),
            };
            size.map(|(Width(width), _)| usize::from(width))
        });
        // A terminal without a known size reports 0.
        width
            .filter(|&width| width > 0)
            .map(|width| width.max(MIN_WIDTH))
    }
}

/// `NO_COLOR` (no-color.org) forbids colour. Else `CLICOLOR_FORCE` asks for it, on a terminal or
/// not. Else text is coloured on a terminal, unless `CLICOLOR` is 0 or the terminal has no colour.
fn has_color(variable: impl Fn(&str) -> Option<OsString>, is_terminal: bool) -> bool {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let is_zero = |name: &str| variable(name).is_some_and(|value| value == OsStr::new("0"));
    if is_set("NO_COLOR") {
        return false;
    }
    if is_set("CLICOLOR_FORCE") && !is_zero("CLICOLOR_FORCE") {
        return true;
    }
    is_terminal && !is_zero("CLICOLOR") && has_capable_terminal(variable)
}

/// Whether the terminal knows escape sequences.
fn has_capable_terminal(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("TERM").is_some_and(|term| !term.is_empty() && term != OsStr::new("dumb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_follows_the_conventions() {
        let color = |variables: &[(&str, &str)], is_terminal: bool| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| OsString::from(value))
            };
            has_color(variable, is_terminal)
        };
        let xterm = ("TERM", "xterm");
        assert!(color(&[xterm], true));
        assert!(!color(&[xterm], false));
        assert!(!color(&[], true));
        assert!(!color(&[("TERM", "dumb")], true));
        assert!(!color(&[xterm, ("NO_COLOR", "1")], true));
        assert!(!color(&[xterm, ("NO_COLOR", "0")], true));
        assert!(color(&[xterm, ("NO_COLOR", "")], true));
        assert!(!color(&[xterm, ("CLICOLOR", "0")], true));
        assert!(color(&[("CLICOLOR_FORCE", "1")], false));
        assert!(color(&[("TERM", "dumb"), ("CLICOLOR_FORCE", "1")], true));
        assert!(!color(&[xterm, ("CLICOLOR_FORCE", "0")], false));
        assert!(!color(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
    }
}
