//! Corpora: files of text, rows with a text field, or rows with token ids, read as rows of token
//! ids.
//!
//! | file | content |
//! |---|---|
//! | `source` | where a corpus is, how it is divided into documents |
//! | `documents` | a file → its documents, text or token ids |
//! | `inspect` | format, first document and sizes, for the check of a pipeline |
//! | `rows` | documents → rows of token ids |
//! | `windows` | random windows of long documents, for calibration |
//! | `token_row` | a row of token ids with its loss mask |
//! | `error` | the error type |

mod documents;
mod error;
mod inspect;
mod rows;
mod source;
#[cfg(test)]
mod tests;
mod token_row;
mod windows;

pub use error::CorpusError;
pub use inspect::CorpusContent;
pub use rows::{check_row_lengths, read_prompts, read_rows, read_text_documents};
pub use source::{CorpusSource, Sample};
pub use token_row::TokenRow;
pub use windows::sample_windows;
