//! Perplexity: a text is encoded once, cut into windows without overlap, the rest dropped; each window predicts all its
//! tokens but the first; exp of the mean over all predictions (LLM-Pruner's protocol, which is GPTQ's).

use std::path::Path;

use super::{Error, Row};
use crate::data::corpus::{self, CorpusError, CorpusSource};
use crate::model::Model;
use crate::model::walk::{self, Sequence};
use crate::stages::Context;

/// Windows between two looks at the clock and at a request to stop.
pub const CHUNK: usize = 32;

/// What a corpus is called in the table: its file's stem.
pub fn name(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The perplexity of one file. Rows of a JSONL file are sequences of their own; one that is shorter than the window is
/// taken whole.
pub fn measure(path: &Path, window: usize, context: &Context, model: &Model) -> Result<Row, Error> {
    let source = CorpusSource::whole(path);
    let rows = corpus::rows(&source, model.tokenizer.as_deref(), model.config.vocab)?;
    let mut windows = Vec::new();
    for row in rows {
        let length = window.min(model.config.max_positions).min(row.ids.len()).max(1);
        let cut = row.ids.chunks_exact(length).zip(row.counts.chunks_exact(length));
        windows.extend(cut.map(|(ids, counts)| Sequence::new(ids.to_vec(), counts)).filter(|s| !s.targets.is_empty()));
    }
    let task = name(path);
    let bar = context.progress.bar(&task, windows.len() as u64);
    let (mut nll, mut n) = (0.0, 0);
    for chunk in windows.chunks(CHUNK) {
        context.go_on()?;
        let scores = walk::token_scores(model, chunk);
        nll -= scores.iter().map(|of| of.iter().map(|s| s.log_probability).sum::<f64>()).sum::<f64>();
        n += chunk.iter().map(|window| window.targets.len()).sum::<usize>();
        chunk.iter().for_each(|_| bar.step());
    }
    if n == 0 {
        return Err(CorpusError::NothingToPredict(path.to_owned()).into());
    }
    let value = (nll / n as f64).exp();
    if !value.is_finite() {
        return Err(Error::NotFinite { what: task, value });
    }
    Ok(Row { task, split: String::new(), metric: "perplexity".to_owned(), value, stderr: None, n: n as u64 })
}
