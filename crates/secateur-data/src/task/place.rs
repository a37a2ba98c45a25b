//! A stretch of a file, for mistakes that point to it.

use std::fmt;
use std::ops::Range;

/// Where in a file something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLocation {
    /// The file's name as it is shown.
    pub file: String,
    /// The file's content.
    pub file_text: String,
    /// Bytes of it.
    pub span: Range<usize>,
}

/// `file:line:column`, counted from 1, columns in characters.
impl fmt::Display for FileLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self
            .file_text
            .get(..self.span.start)
            .unwrap_or(&self.file_text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        write!(
            f,
            "{}:{line}:{}",
            self.file,
            before[line_start..].chars().count() + 1
        )
    }
}
