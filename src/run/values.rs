//! Values on their way down the tree. Each is a promise: the model of a stage that was kept is brought back when a later
//! stage asks for it. Branches share a value, and it is dropped with the last branch that may still ask.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::plan::ids::NodeId;
use crate::run::execute::StageValues;
use crate::stages::registry::{Stage, ValueKind};

/// What can be asked for at a place of the tree. Clones share it.
#[derive(Clone, Default)]
pub struct LazyValues {
    by_kind: BTreeMap<ValueKind, Rc<Lazy>>,
}

/// One product of one stage.
pub struct Lazy {
    /// The stage's node.
    pub node: NodeId,
    pub kind: ValueKind,
    state: RefCell<LazyState>,
}

enum LazyState {
    /// On disk, or to be made from these.
    Unloaded(LazyValues),
    Loaded(StageValues),
}

/// What a stage left behind.
pub struct NodeOutput {
    pub values: StageValues,
    /// Where they lack the model: the values that it is made from.
    pub inputs: LazyValues,
}

impl Lazy {
    /// The product, which `bring` makes from the values before the stage if nobody has asked so far.
    pub fn get_or_load<E>(
        &self,
        bring: impl FnOnce(&LazyValues) -> Result<StageValues, E>,
    ) -> Result<StageValues, E> {
        let before = match &*self.state.borrow() {
            LazyState::Loaded(product) => return Ok(product.clone()),
            LazyState::Unloaded(before) => before.clone(),
        };
        let product = bring(&before)?.select(self.kind);
        if self.kind == ValueKind::Dense {
            return Ok(product);
        }
        *self.state.borrow_mut() = LazyState::Loaded(product.clone());
        Ok(product)
    }
}

impl LazyValues {
    pub fn get(&self, product: ValueKind) -> Option<&Rc<Lazy>> {
        self.by_kind.get(&product)
    }

    /// After a stage: what it spends is gone, what it makes is promised.
    pub fn apply_stage(&mut self, node: NodeId, stage: &Stage, made: &NodeOutput) {
        self.by_kind
            .retain(|product, _| !stage.spends().contains(product));
        for &product in stage.makes() {
            // few ask for the dense model, and it can be read again: it is never kept in memory for them
            let is_at_hand = made.values.has(product) && product != ValueKind::Dense;
            let state = match is_at_hand {
                true => LazyState::Loaded(made.values.select(product)),
                false => LazyState::Unloaded(made.inputs.clone()),
            };
            self.by_kind.insert(
                product,
                Rc::new(Lazy {
                    node,
                    kind: product,
                    state: RefCell::new(state),
                }),
            );
        }
    }
}
