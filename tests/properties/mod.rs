//! Statements that hold for every model, batch, device and amount of memory.

mod batching;
mod devices;
mod pruning;
mod streaming;
