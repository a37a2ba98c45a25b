//! The values on a path of the tree of variants, loaded when a stage needs them.
//!
//! A model whose stage was reused from the cache is rebuilt only when a later stage needs it.
//! Branches share a value; it is dropped with the last branch that may still need it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::plan::ids::NodeId;
use crate::stages::Stage;
use crate::stages::values::{StageValues, ValueKind};

/// The values that stages at one place of the tree can use. Clones share them.
#[derive(Clone, Default)]
pub struct LazyValues {
    by_kind: BTreeMap<ValueKind, Rc<Lazy>>,
}

/// One value of one stage.
pub struct Lazy {
    /// The node of the stage that makes it.
    pub node: NodeId,
    pub kind: ValueKind,
    state: RefCell<LazyState>,
}

enum LazyState {
    /// Not in memory. Holds the values before the stage: the value is restored from the cache or
    /// computed again from them.
    Unloaded(LazyValues),
    Loaded(StageValues),
}

/// The output of a stage for the stages after it: its values, and the inputs from which the missing
/// ones can be rebuilt.
pub struct NodeOutput {
    pub values: StageValues,
    /// The values before the stage, from which the models are rebuilt if `values` lacks them.
    pub inputs: LazyValues,
}

impl Lazy {
    /// The value; `load` makes it from the values before the stage unless it is loaded already.
    pub fn get_or_load<E>(
        &self,
        load: impl FnOnce(&LazyValues) -> Result<StageValues, E>,
    ) -> Result<StageValues, E> {
        let inputs = match &*self.state.borrow() {
            LazyState::Loaded(value) => return Ok(value.clone()),
            LazyState::Unloaded(inputs) => inputs.clone(),
        };
        let value = load(&inputs)?.select(self.kind);
        // As in `apply_stage`, the dense model is not kept.
        if self.kind == ValueKind::Dense {
            return Ok(value);
        }
        *self.state.borrow_mut() = LazyState::Loaded(value.clone());
        Ok(value)
    }
}

impl LazyValues {
    pub fn get(&self, kind: ValueKind) -> Option<&Rc<Lazy>> {
        self.by_kind.get(&kind)
    }

    /// After a stage: removes the values that it spends and adds those that it makes.
    pub fn apply_stage(&mut self, node: NodeId, stage: &dyn Stage, output: &NodeOutput) {
        self.by_kind
            .retain(|kind, _| !stage.spends().contains(kind));
        for &kind in stage.makes() {
            // The dense model is never kept in memory for later stages: few need it, and it can be
            // read again.
            let is_loaded = output.values.has(kind) && kind != ValueKind::Dense;
            let state = if is_loaded {
                LazyState::Loaded(output.values.select(kind))
            } else {
                LazyState::Unloaded(output.inputs.clone())
            };
            let lazy = Lazy {
                node,
                kind,
                state: RefCell::new(state),
            };
            self.by_kind.insert(kind, Rc::new(lazy));
        }
    }
}
