//! The integration tests: one binary, because each one links the whole program.
//!
//! - `contract`: the behaviour that users and outside checks rely on: the command line, exit codes,
//!   files, columns, messages, resuming, kept products.
//! - `golden`: numbers of other programs: LLM-Pruner, transformers, lm-evaluation-harness, PEFT.
//! - `properties`: statements that hold for every model, batch, device and amount of memory.
//! - `structure`: how the source files depend on each other, and what ships with the project.
//!
//! The documentation of `support::harness` explains how a test is written, and what happens where
//! its material is missing.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[macro_use]
mod support;

mod contract;
mod golden;
mod properties;
mod structure;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
