//! What a run will do: the variants of the sweep, and the tree of the stages that they share.
//!
//! [`check::check`] builds a [`Plan`]. The passes that follow take one: [`keys`] hashes what each
//! stage depends on, [`lockfile`] compares the inputs with `secateur.lock`, [`survey`] finds what
//! earlier runs left and what the rest is expected to take, [`capacity`] compares the estimates with
//! the machine.

pub mod capacity;
pub mod check;
pub mod ids;
pub mod keys;
pub mod lockfile;
pub mod selection;
pub mod shard;
pub mod survey;
pub mod text;

pub(crate) mod earlier;
mod environment;
mod expected_time;
mod naming;
pub(crate) mod owner;
mod read;
mod tree;
mod unused;
mod variants;

pub use tree::{Plan, PlanNode, Variant};
