//! Data: corpora for calibration, training and perplexity, and tasks for evaluation.

pub mod corpus;
pub mod feed;
pub mod task;
