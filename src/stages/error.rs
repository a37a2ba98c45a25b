//! Why a stage failed.

use std::error::Error;

use super::context::Interrupted;
use secateur_store::tables::TableError;

/// Why a stage did not finish: an error of the stage itself, or one that every stage can have.
///
/// Every error converts into [`StageError::Failed`], so a stage returns its own `Error` and those
/// of libraries with `?`. The exception is [`Interrupted`], which becomes
/// [`StageError::Interrupted`]. This conversion is possible only because the type does not
/// implement [`Error`] itself; use `Box<dyn Error>::from` where one is needed.
#[derive(Debug)]
pub enum StageError {
    /// The stage's own error, or one of a library it calls.
    Failed(Box<dyn Error + Send + Sync>),
    /// The run was stopped (Ctrl-C, SIGTERM).
    Interrupted,
    /// What the stage made cannot be written.
    Store(TableError),
    /// This input file changed after its content was hashed into the product's key.
    InputChanged(String),
    /// The CUDA allocator found no memory.
    GpuOutOfMemory,
    /// A library panicked, with this message.
    Panicked(String),
    /// An input is missing, although the check of the pipeline found every input.
    MissingInput(&'static str),
}

impl StageError {
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// The stage's own error, if it is of this type.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Failed(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// An error while the stage's product is written.
    pub fn store(error: impl Into<TableError>) -> Self {
        Self::Store(error.into())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for StageError {
    fn from(error: E) -> Self {
        let error: Box<dyn Error + Send + Sync> = Box::new(error);
        if error.is::<Interrupted>() {
            Self::Interrupted
        } else {
            Self::Failed(error)
        }
    }
}

impl From<StageError> for Box<dyn Error> {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Failed(error) => error,
            other => other.to_string().into(),
        }
    }
}

impl std::fmt::Display for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Interrupted => write!(f, "{Interrupted}"),
            Self::Store(error) => write!(f, "its results cannot be stored: {error}"),
            Self::InputChanged(path) => {
                write!(f, "`{path}` changed while the run was using it; run it again")
            }
            Self::GpuOutOfMemory => f.write_str(
                "the GPU is out of memory: use fewer or shorter samples, precision = \"float16\", or a GPU that no other program uses",
            ),
            Self::Panicked(message) => write!(
                f,
                "a library panicked, because of a defect of this program or a file that it cannot handle: {message}"
            ),
            Self::MissingInput(what) => {
                write!(f, "the stage has no input of this kind: {what}; the check should have refused the pipeline")
            }
        }
    }
}

/// A stored product could not be turned into values.
#[derive(Debug)]
pub enum RestoreError {
    /// This file of the product is not what was written.
    Damaged(String),
    /// The values cannot be built, although the product is whole.
    Failed(StageError),
}

impl From<StageError> for RestoreError {
    fn from(error: StageError) -> Self {
        Self::Failed(error)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for RestoreError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
