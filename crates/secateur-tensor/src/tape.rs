//! The tape on which operations record their backward steps.

use dfdx::prelude::{Cpu, Merge, OwnedTape, Tape};

/// A tape that records. `dfdx::prelude::NoneTape` is the one that does not. It is dfdx's tape for
/// its CPU device in either case: a GPU's operations use it for the order of their backward steps
/// alone.
pub type GradientTape = OwnedTape<f32, Cpu>;

/// The type parameter of an operation: the tape of its inputs and output, recording or not.
pub trait AnyTape: Tape<f32, Cpu> + Merge<Self> + 'static {}
impl<T: Tape<f32, Cpu> + Merge<T> + 'static> AnyTape for T {}
