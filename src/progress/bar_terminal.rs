//! Where bars are drawn: standard error as a terminal.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::TermLike;
use textwrap::core::display_width;

/// Draws bars on standard error.
///
/// indicatif fills every line of a bar with spaces to the edge of the terminal, so the `^C` that a
/// terminal prints for Ctrl-C would begin a new line, and removing the bars would leave a line of
/// them. Here the spaces are left out and lines are ended by line feeds: the `^C` then stands in the
/// last line of the bars and is removed with it.
#[derive(Debug)]
pub(crate) struct BarTerminal {
    width: fn() -> usize,
    pending: Mutex<Pending>,
}

/// What has not been written to the terminal yet.
#[derive(Debug, Default)]
struct Pending {
    output: String,
    /// Text after `output`, of lines that are filled with spaces.
    text: String,
}

impl BarTerminal {
    /// `width`: the number of characters in a line of the terminal.
    pub(crate) fn new(width: fn() -> usize) -> Self {
        Self {
            width,
            pending: Mutex::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) -> io::Result<()> {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn push_sequence(&self, sequence: &str) -> io::Result<()> {
        self.change(|pending| {
            pending.end_text((self.width)());
            pending.output.push_str(sequence);
        })
    }

    fn move_cursor(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.push_sequence(&format!("\x1b[{count}{direction}"))
    }
}

impl Pending {
    /// Moves the text to the output, cut into lines of `width`.
    fn end_text(&mut self, width: usize) {
        let mut lines = vec![String::new()];
        let mut line_width = 0;
        for character in std::mem::take(&mut self.text).chars() {
            let character_width = display_width(character.encode_utf8(&mut [0; 4]));
            if line_width + character_width > width {
                lines.push(String::new());
                line_width = 0;
            }
            line_width += character_width;
            if let Some(line) = lines.last_mut() {
                line.push(character);
            }
        }
        let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        self.output.push_str(&lines.join("\r\n"));
    }
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        u16::try_from((self.width)()).unwrap_or(u16::MAX)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.change(|pending| pending.text.push_str(s))?;
        self.push_sequence("\r\n")
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.change(|pending| pending.text.push_str(s))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push_sequence("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        self.push_sequence("")?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let output = std::mem::take(&mut pending.output);
        let mut stderr = io::stderr();
        stderr.write_all(output.as_bytes())?;
        stderr.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_before_the_edge_of_the_terminal() {
        let terminal = BarTerminal::new(|| 10);
        let draw = |text: &str| terminal.write_str(text).expect("a string is written");
        terminal.clear_line().expect("a string is written");
        // Two lines as indicatif writes them: text, then spaces to the edge.
        for text in ["headline", "  ", "bar 1/3", "   "] {
            draw(text);
        }
        terminal.move_cursor_up(1).expect("a string is written");
        terminal.move_cursor_up(0).expect("a string is written");
        let pending = terminal.pending.lock().expect("no panic");
        assert_eq!(pending.output, "\r\x1b[2Kheadline\r\nbar 1/3\x1b[1A");
    }
}
