//! The models: checkpoints, wiring, blocks, and the walk through them.

use std::path::Path;

/// What a model folder says before its weights are read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelHeader {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Parameters, a tied head counted once.
    pub parameters: u64,
    /// Whether the folder has a `tokenizer.json`.
    pub has_tokenizer: bool,
}

impl ModelHeader {
    pub fn read(_: &Path) -> Result<Self, String> {
        unimplemented!()
    }
}
