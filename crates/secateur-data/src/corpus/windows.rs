//! Random windows of a corpus, for calibration.

use std::collections::BTreeSet;

use rand::{Rng, RngExt};

use super::error::CorpusError;
use super::rows::read_rows;
use super::source::CorpusSource;
use super::token_row::TokenRow;
use secateur_model::tokenizer::Tokenizer;

/// A document of more tokens than a window, and the starts of the windows that may be drawn from
/// it.
struct LongDocument {
    row: TokenRow,
    /// Not empty.
    window_starts: Vec<usize>,
}

/// Draws `samples` windows of `length` tokens: a random document longer than `length` tokens, then
/// a random start in it, as LLM-Pruner draws its calibration samples. No window is drawn twice, and
/// in each at least one prediction counts. (LLM-Pruner also accepts documents of exactly `length`
/// tokens, and draws from no document twice.)
///
/// Documents are drawn with equal probability, whatever their length, so a window of a short
/// document is more probable than one of a long document.
///
/// # Errors
/// If the corpus cannot be read or has fewer different windows than `samples`.
pub fn sample_windows(
    source: &CorpusSource,
    tokenizer: Option<&Tokenizer>,
    vocabulary_size: usize,
    samples: usize,
    length: usize,
    rng: &mut impl Rng,
) -> Result<Vec<TokenRow>, CorpusError> {
    let mut long_documents = Vec::new();
    let mut window_count = 0;
    for row in read_rows(source, tokenizer, vocabulary_size)? {
        // A document of exactly `length` tokens has one window only, and no start to draw.
        if row.ids.len() <= length {
            continue;
        }
        let window_starts = row.window_starts(length);
        if !window_starts.is_empty() {
            window_count += window_starts.len();
            long_documents.push(LongDocument { row, window_starts });
        }
    }
    if window_count < samples {
        return Err(CorpusError::TooFewWindows {
            path: source.path.clone(),
            found: window_count,
            requested: samples,
            length,
        });
    }
    let mut drawn = BTreeSet::new();
    let mut windows = Vec::with_capacity(samples);
    // Ends with probability 1, because there are at least `samples` different windows.
    while windows.len() < samples {
        let document_index = rng.random_range(0..long_documents.len());
        let LongDocument { row, window_starts } = &long_documents[document_index];
        let start = window_starts[rng.random_range(0..window_starts.len())];
        let is_new = drawn.insert((document_index, start));
        if is_new {
            windows.push(row.window(start, length));
        }
    }
    Ok(windows)
}
