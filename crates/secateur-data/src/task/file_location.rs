//! A place in a file, for error messages.

use std::fmt;
use std::ops::Range;

/// The place of a mistake in a file. Displayed as `file:line:column`, both counted from 1, columns
/// in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLocation {
    /// The file's name as it is shown.
    pub file: String,
    /// The file's content.
    pub file_text: String,
    /// The bytes of the content that are wrong.
    pub span: Range<usize>,
}

impl fmt::Display for FileLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A span that does not begin between two characters counts as the end of the file.
        let text_before = self
            .file_text
            .get(..self.span.start)
            .unwrap_or(&self.file_text);
        let line_start = text_before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text_before.matches('\n').count() + 1;
        let column = text_before[line_start..].chars().count() + 1;
        write!(f, "{}:{line}:{column}", self.file)
    }
}
