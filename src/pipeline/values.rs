//! Values on their way down the tree. Each is a promise: the model of a stage that was kept is brought back when a later
//! stage asks for it. Branches share a value, and it is dropped with the last branch that may still ask.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::execute::Products;
use super::stage::{Product, Stage};

/// What can be asked for at a place of the tree. Clones share it.
#[derive(Clone, Default)]
pub struct Values {
    promises: BTreeMap<Product, Rc<Promise>>,
}

/// One product of one stage.
pub struct Promise {
    /// The stage's node.
    pub node: usize,
    pub product: Product,
    state: RefCell<State>,
}

enum State {
    /// On disk, or to be made from these.
    Absent(Values),
    There(Products),
}

/// What a stage left behind.
pub struct Made {
    pub products: Products,
    /// Where they lack the model: the values that it is made from.
    pub before: Values,
}

impl Promise {
    /// The product, which `bring` makes from the values before the stage if nobody has asked so far.
    pub fn keep<E>(&self, bring: impl FnOnce(&Values) -> Result<Products, E>) -> Result<Products, E> {
        let before = match &*self.state.borrow() {
            State::There(product) => return Ok(product.clone()),
            State::Absent(before) => before.clone(),
        };
        let product = bring(&before)?.only(self.product);
        if self.product == Product::Dense {
            return Ok(product);
        }
        *self.state.borrow_mut() = State::There(product.clone());
        Ok(product)
    }
}

impl Values {
    pub fn get(&self, product: Product) -> Option<&Rc<Promise>> {
        self.promises.get(&product)
    }

    /// After a stage: what it spends is gone, what it makes is promised.
    pub fn advance(&mut self, node: usize, stage: &Stage, made: &Made) {
        self.promises.retain(|product, _| !stage.spends().contains(product));
        for &product in stage.makes() {
            // few ask for the dense model, and it can be read again: it is never kept in memory for them
            let is_at_hand = made.products.has(product) && product != Product::Dense;
            let state = match is_at_hand {
                true => State::There(made.products.only(product)),
                false => State::Absent(made.before.clone()),
            };
            self.promises.insert(product, Rc::new(Promise { node, product, state: RefCell::new(state) }));
        }
    }
}
