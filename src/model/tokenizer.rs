//! The tokenizer of a checkpoint.
//! (skeleton: being written)
