//! Values on their way down the tree. What a stage hands on is made, or brought back from disk, when a later stage asks for
//! it; branches share it, and it is dropped with the last branch that may still ask.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::execute::Products;
use super::stage::{Product, Stage};

/// What can be asked for at a place of the tree. Clones share it.
#[derive(Clone, Default)]
pub struct Values {
    made: BTreeMap<Product, Rc<Made>>,
}

/// What one stage hands on.
pub struct Made {
    /// The stage's node.
    pub node: usize,
    state: RefCell<Being>,
}

enum Being {
    /// On disk, or to be made from these.
    Absent(Values),
    There(Products),
}

impl Made {
    pub fn there(node: usize, products: Products) -> Rc<Self> {
        Rc::new(Self { node, state: RefCell::new(Being::There(products)) })
    }

    /// Not needed yet; `before`: the values that it is made from.
    pub fn absent(node: usize, before: Values) -> Rc<Self> {
        Rc::new(Self { node, state: RefCell::new(Being::Absent(before)) })
    }

    /// The products, which `bring` makes from the values before the stage if nobody has asked so far.
    pub fn products<E>(&self, bring: impl FnOnce(&Values) -> Result<Products, E>) -> Result<Products, E> {
        let before = match &*self.state.borrow() {
            Being::There(products) => return Ok(products.clone()),
            Being::Absent(before) => before.clone(),
        };
        let products = bring(&before)?;
        *self.state.borrow_mut() = Being::There(products.clone());
        Ok(products)
    }
}

impl Values {
    pub fn get(&self, product: Product) -> Option<&Rc<Made>> {
        self.made.get(&product)
    }

    /// After a stage: what it spends is gone, what it makes is there.
    pub fn advance(&mut self, stage: &Stage, made: &Rc<Made>) {
        stage.spends().iter().for_each(|product| drop(self.made.remove(product)));
        self.made.extend(stage.makes().iter().map(|&product| (product, made.clone())));
    }
}
