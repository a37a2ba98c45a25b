//! The output matrix of a checkpoint whose config says that it is the embedding.

use super::{Checkpoint, CheckpointError, LocatedTensor};
use crate::stored::StorageDtype;
use crate::wiring::TensorId;

impl Checkpoint {
    /// If the config says that the output matrix is the embedding, and the checkpoint holds one that
    /// differs from it, the model keeps the stored one, as transformers 5 does. Returns a warning
    /// that says so.
    pub(super) fn untie_different_output_matrix(
        &mut self,
    ) -> Result<Option<String>, CheckpointError> {
        if !self.config.tied_embeddings || !self.holds_other_output_matrix()? {
            return Ok(None);
        }
        self.config.tied_embeddings = false;
        Ok(Some(format!(
            "config.json says tie_word_embeddings = true, and the checkpoint's `{}` differs from \
             `{}`; the model keeps both, and an export says tie_word_embeddings = false",
            self.family.tensor_name(TensorId::LmHead),
            self.family.tensor_name(TensorId::Embedding),
        )))
    }

    /// Whether the checkpoint holds an output matrix, and it is not the embedding.
    fn holds_other_output_matrix(&self) -> Result<bool, CheckpointError> {
        let ids = [TensorId::LmHead, TensorId::Embedding];
        let names = ids.map(|id| self.family.tensor_name(id));
        for name in &names {
            match self.tensor_info(name) {
                Ok((_, info)) if StorageDtype::from_stored(info.dtype).is_some() => {}
                _ => return Ok(false),
            }
        }
        if self.stored_shape(&names[0])? != self.stored_shape(&names[1])? {
            return Ok(true);
        }
        let [head, embedding] = ids.map(|id| self.locate_weight(id));
        differ(&head?, &embedding?)
    }
}

/// Whether two matrices of one shape have different values. They are read in bands of rows, on one
/// thread: the check calls this before the run sets its number of threads.
fn differ(a: &LocatedTensor, b: &LocatedTensor) -> Result<bool, CheckpointError> {
    const BAND_VALUES: usize = 1 << 20;
    let band_rows = (BAND_VALUES / a.cols.max(1)).max(1);
    for first in (0..a.rows).step_by(band_rows) {
        let rows: Vec<usize> = (first..(first + band_rows).min(a.rows)).collect();
        if a.file.read_rows(&rows)? != b.file.read_rows(&rows)? {
            return Ok(true);
        }
    }
    Ok(false)
}
