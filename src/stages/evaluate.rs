//! `evaluate`: Model → accuracies of multiple-choice tasks (lm-evaluation-harness, zero-shot) and perplexities of texts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};

/// Measures the model as it stands at this place of the pipeline.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tasks by name (`boolq`, `tiny_piqa`, …) or by the path of a task file.
    pub tasks: Vec<String>,
    /// Only the first so many rows of each task, at least 1. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// How requests are put together and scored. Default `harness`.
    pub protocol: Protocol,
    /// Texts, taken whole as they stand, or JSONL rows of token ids, whose perplexity is measured: paths.
    pub corpora: Vec<String>,
    /// Tokens of a perplexity window, at least 2. Default 128.
    pub window: Option<usize>,
}

/// How requests are put together and scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// lm-evaluation-harness 0.4: BOS where the tokenizer adds one, context and choice encoded together, the log
    /// likelihood of the choice's tokens summed, the left of a long request cut away.
    #[default]
    Harness,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.tasks.is_empty() && self.corpora.is_empty() {
            faults.push(Fault::new("", "nothing to evaluate", "add `tasks = [\"…\"]`, `corpora = [\"…\"]`, or both"));
        }
        if self.limit == Some(0) {
            faults.push(Fault::new("limit", "a limit of 0 rows measures nothing", "write at least 1, or remove the line"));
        }
        if self.window.is_some_and(|w| w < 2) {
            faults.push(Fault::new("window", "a window below 2 tokens predicts nothing", "the usual number is 128"));
        }
        faults
    }

    pub fn world(&self, _: &mut World) -> Vec<Fault> {
        Vec::new()
    }
}
