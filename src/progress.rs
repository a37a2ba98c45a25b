//! How a stage says how far it is: a bar on a terminal, a line now and then without one.
//! (skeleton: the interface is fixed, the body is being written)

use std::fmt::Display;

#[derive(Clone, Debug, Default)]
pub struct Progress {}

/// A running count of steps; dropping it ends it.
#[derive(Debug)]
pub struct Bar {}

impl Progress {
    /// Begins a count of `steps` steps, called `label`.
    pub fn bar(&self, _label: &str, _steps: u64) -> Bar {
        Bar {}
    }
}

impl Bar {
    /// One more step is done.
    pub fn step(&self) {}
    /// What is said beside the bar: a loss, a score.
    pub fn note(&self, _text: impl Display) {}
}
