//! Checks of corpora and tasks.

use std::path::Path;

use super::{Environment, OptionFault};
use secateur_data::corpus::{CorpusContent, CorpusError, CorpusSource, Sample};
use secateur_data::data_file::DataFormat;
use secateur_data::task::{FewShot, Task, TaskError};

/// What the check knows of a corpus.
#[derive(Clone, Debug)]
pub(super) struct CorpusCheck {
    content: CorpusContent,
    /// The largest number of tokens that each document can have. None: the file is too large to be
    /// read by the check.
    max_tokens: Option<Vec<usize>>,
    lacks_separator: bool,
}

impl Environment {
    /// A task. Its templates are tested on its first row. The result is cached.
    pub fn check_task(
        &mut self,
        key: &str,
        name: &str,
        few_shot: Option<FewShot>,
    ) -> Result<Task, OptionFault> {
        let data_folder = self.data_folder.as_deref();
        let result = self
            .lookup_cache
            .tasks
            .entry((name.to_owned(), few_shot))
            .or_insert_with(|| find_task(name, data_folder, few_shot).map_err(task_fault));
        result.clone().map_err(|fault| OptionFault {
            key: key.to_owned(),
            ..fault
        })
    }

    /// Faults of a corpus that show in its first document, its options and the presence of a
    /// tokenizer.
    pub fn check_corpus(&mut self, key: &str, source: &CorpusSource) -> Vec<OptionFault> {
        if source.separator.as_deref() == Some("") {
            return vec![OptionFault::new(
                "separator",
                "an empty text separates nothing",
                "write what stands between documents, or remove the line",
            )];
        }
        let (content, lacks_separator) = match self.inspect_corpus(source) {
            Ok(corpus) => (corpus.content, corpus.lacks_separator),
            Err(fault) => {
                let key = key.to_owned();
                return vec![OptionFault { key, ..fault }];
            }
        };
        if let Some(fault) = corpus_option_fault(source, content.format) {
            return vec![fault];
        }
        let lacking = self.model.as_ref().filter(|model| !model.has_tokenizer);
        if let Some(model) = lacking
            && !content.is_token_ids
        {
            let message = format!(
                "`{}` is text, and the model's folder has no tokenizer.json",
                source.path.display()
            );
            return vec![OptionFault::new(
                key,
                message,
                format!(
                    "{}, or give rows of token ids",
                    model.missing_tokenizer_help
                ),
            )];
        }
        let mut faults = Vec::new();
        if lacks_separator {
            let path = source.path.display();
            let message =
                format!("the separator does not occur in `{path}`: the file is one document");
            faults.push(OptionFault::warning("separator", message, ""));
        }
        if source.adds_special_tokens && !content.is_token_ids {
            faults.extend(self.check_special_tokens(key));
        }
        faults
    }

    /// The number of questions or texts of a task, at most `limit`. 0 if a row is invalid: that is
    /// reported elsewhere. The result is cached.
    pub fn count_rows(&mut self, name: &str, task: &Task, limit: usize) -> usize {
        let cached = (name.to_owned(), limit);
        let counts = self.lookup_cache.row_counts.entry(cached);
        *counts.or_insert_with(|| match task.is_text() {
            true => task
                .text_documents(Some(limit))
                .map_or(0, |texts| texts.len()),
            false => task
                .questions(Some(limit), None)
                .map_or(0, |rows| rows.len()),
        })
    }

    /// Whether the corpus holds token ids, not texts. False if it cannot be read.
    pub fn holds_token_ids(&mut self, source: &CorpusSource) -> bool {
        self.inspect_corpus(source)
            .is_ok_and(|corpus| corpus.content.is_token_ids)
    }

    /// Faults of the number and the length of samples, as far as the sizes of the documents prove
    /// them. `default_samples`: the number that is used if none is written.
    pub fn check_samples(
        &mut self,
        source: &CorpusSource,
        sample: Sample,
        (samples, default_samples): (usize, usize),
        length: usize,
    ) -> Option<OptionFault> {
        let path = source.path.display();
        let max_tokens = self.inspect_corpus(source).ok()?.max_tokens?;
        let documents = max_tokens.len();
        if sample == Sample::File {
            return (samples > documents && samples != default_samples).then(|| {
                let message = format!(
                    "`{path}` has {documents} documents, and {samples} are asked for: all of them \
                     are used"
                );
                OptionFault::warning("samples", message, "")
            });
        }
        if max_tokens.iter().all(|&tokens| tokens <= length) {
            let message = format!("no document of `{path}` is longer than {length} tokens");
            let help =
                "write a smaller `length`, give longer documents, or write sample = \"file\"";
            return Some(OptionFault::new("length", message, help));
        }
        let windows = max_tokens
            .iter()
            .map(|&tokens| tokens.saturating_sub(length) + 1);
        let window_count: usize = windows.sum();
        (window_count < samples).then(|| {
            let message = format!(
                "`{path}` has at most {window_count} different windows of {length} tokens, and \
                 {samples} are asked for"
            );
            OptionFault::new(
                "samples",
                message,
                "write a smaller number, or give a larger corpus",
            )
        })
    }

    /// A warning if every document of a corpus is shorter than a window.
    pub fn check_window(&mut self, source: &CorpusSource, window: usize) -> Option<OptionFault> {
        let max_tokens = self.inspect_corpus(source).ok()?.max_tokens?;
        max_tokens.iter().all(|&tokens| tokens < window).then(|| {
            let message = format!(
                "every text of `{}` is shorter than {window} tokens, so each is one window",
                source.path.display()
            );
            OptionFault::warning("window", message, "")
        })
    }

    /// The result is cached.
    fn inspect_corpus(&mut self, source: &CorpusSource) -> Result<CorpusCheck, OptionFault> {
        self.lookup_cache
            .corpora
            .entry(source.clone())
            .or_insert_with(|| inspect_corpus(source).map_err(|error| corpus_fault(&error)))
            .clone()
    }
}

fn inspect_corpus(source: &CorpusSource) -> Result<CorpusCheck, CorpusError> {
    let content = source.inspect()?;
    Ok(CorpusCheck {
        content,
        // A mistake in a later row is reported by the stage that reads it.
        max_tokens: source.max_tokens().unwrap_or_default(),
        lacks_separator: source.lacks_separator(),
    })
}

fn corpus_fault(error: &CorpusError) -> OptionFault {
    OptionFault::new("", error.to_string(), error.help())
}

/// Finds a task and builds its first question or text, which fails if its templates do not fit its
/// rows.
fn find_task(
    name: &str,
    data_folder: Option<&Path>,
    few_shot: Option<FewShot>,
) -> Result<Task, TaskError> {
    let task = Task::find(name, data_folder)?;
    if task.is_text() {
        drop(task.text_documents(Some(1))?);
    } else {
        drop(task.questions(Some(1), few_shot)?);
    }
    Ok(task)
}

fn task_fault(error: TaskError) -> OptionFault {
    let fault = OptionFault::new("", error.message(), error.help());
    match error.location() {
        Some(location) => fault.with_location(location.clone()),
        None => fault,
    }
}

/// An option of the corpus that does not fit the format of its file.
fn corpus_option_fault(source: &CorpusSource, format: DataFormat) -> Option<OptionFault> {
    let format_name = format.name();
    match (&source.separator, &source.field) {
        (Some(_), _) if format.has_fields() => Some(OptionFault::new(
            "separator",
            format!(
                "the file is {format_name}, of which each row is one document, so no separator \
                 applies"
            ),
            "remove the line",
        )),
        (_, Some(_)) if !format.has_fields() => Some(OptionFault::new(
            "field",
            format!("only rows have fields, and this file is {format_name}"),
            "remove the line, or give JSON Lines, CSV or Parquet",
        )),
        _ => None,
    }
}
