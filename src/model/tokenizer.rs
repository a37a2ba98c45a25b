//! The tokenizer of a checkpoint.
//! (skeleton: being written on another branch)
use std::path::Path;
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {}
pub struct Tokenizer;
impl Tokenizer {
    pub fn load(_: &Path) -> Result<Option<Self>, TokenizerError> { Ok(None) }
    pub fn fits(&self, _: usize) -> Result<(), TokenizerError> { Ok(()) }
}
