//! Data for models: corpora for calibration, training and perplexity, and evaluation tasks that are
//! described by files.
//!
//! | module | content |
//! |---|---|
//! | [`corpus`] | text or token-id files → rows of token ids, whole or as random windows |
//! | [`row_sampler`] | an endless sequence of training rows from a corpus |
//! | [`task`] | task files: how a data set becomes multiple-choice questions or texts |
//! | [`data_file`] | which format a file has; its rows, or its text |
//! | `input_file` | [`InputFile`], a file that a stage reads |
//! | [`python`] | Python's white space, string methods and texts of values |
//!
//! The crate turns files into questions, texts and token ids. It does not run a model.
//!
//! ```
//! use secateur_data::task::Task;
//!
//! // `tiny_boolq` is built into the program, with its rows.
//! let task = Task::find("tiny_boolq", None)?;
//! let questions = task.questions(Some(3), None)?;
//! assert_eq!(questions.len(), 3);
//! // One request for each of the choices "no" and "yes".
//! let continuations = questions[0].requests.iter().map(|request| &*request.continuation);
//! assert_eq!(continuations.collect::<Vec<_>>(), [" no", " yes"]);
//! # Ok::<(), secateur_data::task::TaskError>(())
//! ```

pub mod corpus;
pub mod data_file;
mod input_file;
pub mod python;
pub mod row_sampler;
pub mod task;

pub use input_file::InputFile;
