//! Typed indices into a plan, and vectors that only their own index type can index.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

use serde::Serialize;

/// Index of a [`PlanNode`](crate::plan::PlanNode) in `plan.nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeId(pub usize);

/// Index of a [`Variant`](crate::plan::Variant) in `plan.variants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VariantId(pub usize);

/// An index type of [`IdVec`].
pub trait Id: Copy {
    fn from_index(index: usize) -> Self;
    fn index(self) -> usize;
}

impl Id for NodeId {
    fn from_index(index: usize) -> Self {
        Self(index)
    }

    fn index(self) -> usize {
        self.0
    }
}

impl Id for VariantId {
    fn from_index(index: usize) -> Self {
        Self(index)
    }

    fn index(self) -> usize {
        self.0
    }
}

/// A `Vec<T>` that is indexed by `I` instead of `usize`.
#[derive(Clone, Debug)]
pub struct IdVec<I, T> {
    values: Vec<T>,
    id_type: PhantomData<I>,
}

/// One value for each node of a plan.
pub type PerNode<T> = IdVec<NodeId, T>;

/// One value for each variant of a plan.
pub type PerVariant<T> = IdVec<VariantId, T>;

impl<I: Id, T> IdVec<I, T> {
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Appends a value and returns its id.
    pub fn push(&mut self, value: T) -> I {
        self.values.push(value);
        I::from_index(self.values.len() - 1)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.values.iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.values.iter_mut()
    }

    /// All ids, in order. The iterator does not borrow the vector.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = I> + use<I, T> {
        (0..self.values.len()).map(I::from_index)
    }

    /// Every value with its id.
    pub fn iter_with_ids(&self) -> impl Iterator<Item = (I, &T)> {
        self.ids().zip(&self.values)
    }
}

impl<I, T> Default for IdVec<I, T> {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl<I, T> From<Vec<T>> for IdVec<I, T> {
    fn from(values: Vec<T>) -> Self {
        Self {
            values,
            id_type: PhantomData,
        }
    }
}

impl<I, T> FromIterator<T> for IdVec<I, T> {
    fn from_iter<Values: IntoIterator<Item = T>>(values: Values) -> Self {
        Self::from(Vec::from_iter(values))
    }
}

impl<'a, I, T> IntoIterator for &'a IdVec<I, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.iter()
    }
}

impl<I: Id, T> Index<I> for IdVec<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.values[id.index()]
    }
}

impl<I: Id, T> IndexMut<I> for IdVec<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.values[id.index()]
    }
}
