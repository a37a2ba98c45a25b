//! Statements that hold for every model, batch, device and amount of memory.

mod batching;
mod checkpoints;
mod devices;
mod pruning;
mod streaming;
