//! Corpora: files of text, JSON Lines with a text field, or JSON Lines with token ids, read as rows
//! of token ids.
//!
//! | file | content |
//! |---|---|
//! | `source` | where a corpus is, how it is divided into documents |
//! | `documents` | a file → its documents, text or token ids |
//! | `rows` | documents → rows of token ids |
//! | `windows` | random windows of long documents, for calibration |
//! | `token_row` | a row of token ids with its loss mask |
//! | `text_file` | reading a text file |
//! | `error` | the error type |

mod documents;
mod error;
mod rows;
mod source;
#[cfg(test)]
mod tests;
mod text_file;
mod token_row;
mod windows;

pub use error::CorpusError;
pub use rows::{check_row_lengths, read_rows, read_text_documents};
pub use source::{CorpusSource, Sample};
pub use text_file::read_text;
pub use token_row::TokenRow;
pub use windows::sample_windows;
