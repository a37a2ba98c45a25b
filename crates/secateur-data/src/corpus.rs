//! Corpora: text, JSONL with a text field, or JSONL rows of token ids → rows of ids.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use secateur_model::tokenizer::{Tokenizer, TokenizerError};

/// Where a corpus is and how it is cut into documents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CorpusSource {
    pub path: PathBuf,
    /// What separates the documents of a text file. None: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. None: `text`.
    pub field: Option<String>,
    /// Whether the tokenizer's own special tokens, usually BOS in front, stand around a text.
    pub adds_special_tokens: bool,
}

impl CorpusSource {
    /// A file as it stands.
    pub fn from_path(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            separator: None,
            field: None,
            adds_special_tokens: true,
        }
    }

    /// Whether the first row is text, as far as a look at it tells.
    pub fn needs_tokenizer(&self) -> bool {
        let Ok(file) = std::fs::File::open(&self.path) else {
            return false;
        };
        let mut lines = BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .filter(|line| !line.trim().is_empty());
        !(self.is_jsonl() && lines.next().is_some_and(|line| line.contains("\"ids\"")))
    }

    /// Whether it is JSONL, by the file's ending; any other file is text.
    pub fn is_jsonl(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("jsonl"))
    }
}

/// Which part of a corpus is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sample {
    /// Random windows of documents longer than `length` tokens, none twice, as the reference draws them.
    #[default]
    Random,
    /// Every row whole, in file order.
    File,
}

/// One row of token ids, and which of them count in a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub ids: Vec<u32>,
    /// Whether the prediction of `ids[i]` counts; `counts[0]` is never used. Same length as `ids`.
    pub loss_mask: Vec<bool>,
}

impl TokenRow {
    /// The tokens of a window alone.
    pub fn window(&self, start: usize, length: usize) -> Self {
        let window = start..start + length;
        Self {
            ids: self.ids[window.clone()].to_vec(),
            loss_mask: self.loss_mask[window].to_vec(),
        }
    }

    /// Whether any prediction counts.
    pub fn has_loss_targets(&self) -> bool {
        self.loss_mask.iter().skip(1).any(|&counts| counts)
    }

    /// The starts of the windows of so many tokens in which a prediction counts.
    pub fn window_starts(&self, length: usize) -> Vec<usize> {
        let predicts = |start: &usize| self.loss_mask[start + 1..start + length].contains(&true);
        (0..(self.ids.len() + 1).saturating_sub(length))
            .filter(predicts)
            .collect()
    }
}

/// A document as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CorpusDocument {
    Text(String),
    TokenIds(TokenRow),
}

/// A corpus is missing, broken, or too small.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is not UTF-8 text from byte {offset} on", .path.display())]
    NotUtf8 { path: PathBuf, offset: usize },
    #[error("`{}`, line {line}: {message}", .path.display())]
    InvalidLine {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("`{}` holds no document", .0.display())]
    Empty(PathBuf),
    #[error("`{}` is text, and the model's folder has no tokenizer.json; give rows of token ids instead", .0.display())]
    NoTokenizer(PathBuf),
    #[error("`{}` holds token ids, and text is needed", .0.display())]
    NotText(PathBuf),
    #[error("`{}`, document {row}: its {tokens} tokens are more than the model's {positions} positions; write sample = \"random\", or cut it", .path.display())]
    DocumentTooLong {
        path: PathBuf,
        row: usize,
        tokens: usize,
        positions: usize,
    },
    #[error("`{}` has nothing to predict: every row has one token, or none that counts", .0.display())]
    NothingToPredict(PathBuf),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("`{}` has {found} different windows of {length} tokens in documents longer than that, {requested} are asked for", .path.display())]
    TooFewWindows {
        path: PathBuf,
        found: usize,
        requested: usize,
        length: usize,
    },
}

/// Every row whole, in file order; text as the tokenizer gives it, BOS and all.
pub fn read_rows(
    source: &CorpusSource,
    tokenizer: Option<&Tokenizer>,
    vocab: usize,
) -> Result<Vec<TokenRow>, CorpusError> {
    let encode = |document| match document {
        CorpusDocument::TokenIds(row) => Ok(row),
        CorpusDocument::Text(text) => {
            let tokenizer =
                tokenizer.ok_or_else(|| CorpusError::NoTokenizer(source.path.clone()))?;
            let ids = tokenizer.encode(&text, source.adds_special_tokens)?;
            Ok(TokenRow {
                loss_mask: vec![true; ids.len()],
                ids,
            })
        }
    };
    read_documents(source, vocab)?
        .into_iter()
        .map(encode)
        .collect()
}

/// # Errors
/// If a row that is to be taken whole is longer than the model was made for.
pub fn check_row_lengths(
    source: &CorpusSource,
    rows: &[TokenRow],
    positions: usize,
) -> Result<(), CorpusError> {
    match rows.iter().position(|row| row.ids.len() > positions) {
        Some(row) => {
            let (path, tokens) = (source.path.clone(), rows[row].ids.len());
            Err(CorpusError::DocumentTooLong {
                path,
                row: row + 1,
                tokens,
                positions,
            })
        }
        None => Ok(()),
    }
}

/// Windows drawn as LLM-Pruner draws its calibration samples: a random document longer than `length` tokens, a random
/// start in it; no window twice, and none in which no prediction counts.
pub fn sample_windows(
    source: &CorpusSource,
    tokenizer: Option<&Tokenizer>,
    vocab: usize,
    samples: usize,
    length: usize,
    stream: &mut impl Rng,
) -> Result<Vec<TokenRow>, CorpusError> {
    let long = read_rows(source, tokenizer, vocab)?
        .into_iter()
        .filter(|row| row.ids.len() > length);
    let long: Vec<(Vec<usize>, TokenRow)> = long
        .map(|row| (row.window_starts(length), row))
        .filter(|(starts, _)| !starts.is_empty())
        .collect();
    let found: usize = long.iter().map(|(starts, _)| starts.len()).sum();
    if found < samples {
        return Err(CorpusError::TooFewWindows {
            path: source.path.clone(),
            found,
            requested: samples,
            length,
        });
    }
    let mut taken = BTreeSet::new();
    let mut windows = Vec::new();
    while windows.len() < samples {
        let document = stream.random_range(0..long.len());
        let (starts, row) = &long[document];
        let start = starts[stream.random_range(0..starts.len())];
        if taken.insert((document, start)) {
            windows.push(row.window(start, length));
        }
    }
    Ok(windows)
}

/// The documents of a text corpus, as they stand.
pub fn read_text_documents(source: &CorpusSource) -> Result<Vec<String>, CorpusError> {
    let text = |document| match document {
        CorpusDocument::Text(text) => Ok(text),
        CorpusDocument::TokenIds(_) => Err(CorpusError::NotText(source.path.clone())),
    };
    read_documents(source, usize::MAX)?
        .into_iter()
        .map(text)
        .collect()
}

fn read_documents(source: &CorpusSource, vocab: usize) -> Result<Vec<CorpusDocument>, CorpusError> {
    let text = read_text(&source.path)?;
    let documents: Vec<CorpusDocument> = if source.is_jsonl() {
        let field = source.field.as_deref().unwrap_or("text");
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        let parse = |(i, line)| {
            parse_jsonl_line(line, field, vocab).map_err(|message| CorpusError::InvalidLine {
                path: source.path.clone(),
                line: i + 1,
                message,
            })
        };
        lines.map(parse).collect::<Result<_, _>>()?
    } else {
        let parts: Vec<&str> = match &source.separator {
            Some(separator) if !separator.is_empty() => {
                if !text.contains(separator.as_str()) {
                    tracing::warn!(path = %source.path.display(), separator, "the separator does not occur: the file is one document");
                }
                text.split(separator.as_str()).collect()
            }
            _ => vec![&text],
        };
        parts
            .into_iter()
            .filter(|part| !part.trim().is_empty())
            .map(|part| CorpusDocument::Text(part.to_owned()))
            .collect()
    };
    if documents.is_empty() {
        Err(CorpusError::Empty(source.path.clone()))
    } else {
        Ok(documents)
    }
}

/// A whole file of UTF-8 text.
pub fn read_text(path: &Path) -> Result<String, CorpusError> {
    let bytes = std::fs::read(path).map_err(|source| CorpusError::Read {
        path: path.to_owned(),
        source,
    })?;
    let encoding = |e: FromUtf8Error| CorpusError::NotUtf8 {
        path: path.to_owned(),
        offset: e.utf8_error().valid_up_to(),
    };
    Ok(strip_byte_order_mark(
        String::from_utf8(bytes).map_err(encoding)?,
    ))
}

/// Without the byte-order mark that some editors put in front.
pub fn strip_byte_order_mark(text: String) -> String {
    text.strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text)
}

/// One line of JSONL: `{"ids": [...]}`, with `"labels"` where a loss mask matters, or a field of text.
fn parse_jsonl_line(line: &str, field: &str, vocab: usize) -> Result<CorpusDocument, String> {
    let row: Value =
        serde_json::from_str(line).map_err(|e| format!("it is not valid JSON: {e}"))?;
    let Value::Object(row) = row else {
        return Err("it is not a JSON object".to_owned());
    };
    let Some(ids) = row.get("ids") else {
        return match row.get(field) {
            Some(Value::String(text)) => Ok(CorpusDocument::Text(text.clone())),
            Some(other) => Err(format!("`{field}` is {other}, not a text")),
            None => Err(format!("it has neither `{field}` nor `ids`")),
        };
    };
    let ids: Vec<u32> = serde_json::from_value(ids.clone())
        .map_err(|e| format!("`ids` is not a list of token ids: {e}"))?;
    if ids.is_empty() {
        return Err("`ids` is empty".to_owned());
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(format!(
            "the token id {id} lies outside the vocabulary of {vocab} entries"
        ));
    }
    let counts = match row.get("labels") {
        None => vec![true; ids.len()],
        Some(labels) => parse_loss_mask(&ids, labels)?,
    };
    Ok(CorpusDocument::TokenIds(TokenRow {
        ids,
        loss_mask: counts,
    }))
}

/// Labels → which predictions count: −100 is ignored, all others repeat the id.
fn parse_loss_mask(ids: &[u32], labels: &Value) -> Result<Vec<bool>, String> {
    let labels: Vec<i64> = serde_json::from_value(labels.clone())
        .map_err(|e| format!("`labels` is not a list of numbers: {e}"))?;
    if labels.len() != ids.len() {
        return Err(format!(
            "`labels` has {} entries, `ids` has {}",
            labels.len(),
            ids.len()
        ));
    }
    let counts = |(&id, &label): (&u32, &i64)| match label {
        -100 => Ok(false),
        label if label == i64::from(id) => Ok(true),
        label => Err(format!(
            "the label {label} is neither -100 nor its token id {id}"
        )),
    };
    ids.iter().zip(&labels).map(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur_base::random::Seed;

    fn source(
        name: &str,
        text: &str,
        separator: Option<&str>,
    ) -> (tempfile::TempDir, CorpusSource) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        (
            folder,
            CorpusSource {
                path,
                separator: separator.map(str::to_owned),
                field: None,
                adds_special_tokens: true,
            },
        )
    }

    fn error(text: &str) -> String {
        let (_folder, source) = source("rows.jsonl", text, None);
        read_rows(&source, None, 10)
            .expect_err("refused")
            .to_string()
            .split("rows.jsonl")
            .last()
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn bad_rows_are_named_by_line() {
        let good = "{\"ids\": [1, 2]}\n\n";
        assert_eq!(
            error(&format!("{good}{{\"ids\": [1, 10]}}")),
            "`, line 3: the token id 10 lies outside the vocabulary of 10 entries"
        );
        assert_eq!(
            error(&format!("{good}{{\"ids\": [1, 2], \"labels\": [-100]}}")),
            "`, line 3: `labels` has 1 entries, `ids` has 2"
        );
        assert_eq!(
            error("{\"ids\": [1, 2], \"labels\": [-100, 3]}"),
            "`, line 1: the label 3 is neither -100 nor its token id 2"
        );
        assert!(error("{\"ids\": [1, -2]}").contains("line 1: `ids` is not a list of token ids"));
        assert!(error(&format!("{good}{{\"ids\": [1")).contains("line 3: it is not valid JSON"));
        assert_eq!(
            error("{\"title\": 1}"),
            "`, line 1: it has neither `text` nor `ids`"
        );
        assert_eq!(error("\n"), "` holds no document");
        assert!(error("{\"text\": \"hi\"}").contains("no tokenizer.json"));
    }

    #[test]
    fn windows_are_inside_long_documents_and_differ() {
        let (_folder, source) = source(
            "rows.jsonl",
            "{\"ids\": [0, 1, 2, 3, 4]}\n{\"ids\": [5, 6, 7]}\n{\"ids\": [5, 6, 7, 8]}",
            None,
        );
        let draw =
            |samples| sample_windows(&source, None, 10, samples, 3, &mut Seed::from_u64(1).rng());
        let mut drawn: Vec<Vec<u32>> = draw(5)
            .expect("five windows")
            .into_iter()
            .map(|row| row.ids)
            .collect();
        drawn.sort();
        assert_eq!(
            drawn,
            [[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7], [6, 7, 8]]
        );
        assert!(
            draw(6)
                .expect_err("one too many")
                .to_string()
                .contains("has 5 different windows")
        );
    }

    #[test]
    fn text_is_cut_at_the_separator() {
        let (_folder, source) = source("stories.txt", "one\n--\ntwo\n--\n", Some("\n--\n"));
        assert_eq!(read_text_documents(&source).expect("text"), ["one", "two"]);
    }
}
