//! The one place where panics inside a stage become errors.
//!
//! Errors of input and output are `Result`s, those of weights on disk too. Two kinds of failure reach the
//! runner as panics, because a library leaves no other way:
//! - dfdx panics when the CUDA allocator finds no memory; only the text of the panic says so;
//! - a library (tokenizers, safetensors, …) panics on a file that it does not expect.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::stages::StageError;

/// Runs a stage. A panic ends the stage, not the run.
pub(crate) fn catch_panics<T>(
    work: impl FnOnce() -> Result<T, StageError>,
) -> Result<T, StageError> {
    // Nothing of a stage that panicked is used afterwards: its values are dropped, its product is
    // never stored.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => Err(panic_error(&*payload)),
    }
}

fn panic_error(payload: &(dyn Any + Send)) -> StageError {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    match text {
        Some(text) if text.contains("CUDA_ERROR_OUT_OF_MEMORY") => StageError::GpuOutOfMemory,
        Some(text) => StageError::Panicked(text.to_owned()),
        None => StageError::Panicked("the panic has no message".to_owned()),
    }
}
