//! One stage: run from its inputs, kept on disk, or brought back from there. A stage's outcome is a set of products;
//! what is made faster from the rest than read is not stored: a checkpoint is read again, a pruned model is cut again,
//! an adapter is merged again.

use std::sync::Arc;

use super::cache::{Kept, Room};
use super::stage::{Product, Stage, Step};
use crate::files::{self, FileError};
use crate::metrics::{MetricsError, Table};
use crate::model::Model;
use crate::model::groups::DependencyGraph;
use crate::model::lora::Adapter;
use crate::model::stored::Precision;
use crate::stages::products::{GroupScores, Scores};
use crate::stages::prune::{self, Pruning};
use crate::stages::{
    Budget, Context, aggregate, dependencies, evaluate, export, generate, importance, load, pretrain, profile, recover,
};
use crate::tensor::Unreadable;

/// Values that stages hand on. Clones share them.
#[derive(Clone, Default)]
pub struct Products {
    model: Option<Arc<Model>>,
    dense: Option<Arc<Model>>,
    graph: Option<Arc<DependencyGraph>>,
    scores: Option<Arc<Scores>>,
    group_scores: Option<Arc<GroupScores>>,
    pruning: Option<Arc<Pruning>>,
    adapter: Option<Arc<Adapter>>,
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error(transparent)]
    Pretrain(#[from] pretrain::Error),
    #[error(transparent)]
    Dependencies(#[from] dependencies::Error),
    #[error(transparent)]
    Importance(#[from] importance::Error),
    #[error(transparent)]
    Aggregate(#[from] aggregate::Error),
    #[error(transparent)]
    Prune(#[from] prune::Error),
    #[error(transparent)]
    Recover(#[from] recover::Error),
    #[error(transparent)]
    Evaluate(#[from] evaluate::Error),
    #[error(transparent)]
    Generate(#[from] generate::Error),
    #[error(transparent)]
    Profile(#[from] profile::Error),
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error("its results cannot be stored: {0}")]
    Store(#[from] MetricsError),
    #[error("`{0}` was changed while the run was at work; run it again")]
    Changed(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("interrupted")]
    Interrupted,
    #[error("the GPU has no memory left: take fewer or shorter samples, precision = \"float16\", or a GPU that nobody else uses")]
    GpuMemory,
    #[error("it broke off inside a library, which is a defect of this program or a file that it does not understand: {0}")]
    Panicked(String),
    #[error("the stage lacks {0}; this is a mistake of the check")]
    Lacks(&'static str),
}

impl From<FileError> for StageError {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

impl StageError {
    pub fn is_interrupted(&self) -> bool {
        matches!(
            self,
            Self::Interrupted
                | Self::Pretrain(pretrain::Error::Interrupted(_))
                | Self::Importance(importance::Error::Interrupted(_))
                | Self::Recover(recover::Error::Interrupted(_))
                | Self::Evaluate(evaluate::Error::Interrupted(_))
                | Self::Generate(generate::Error::Interrupted(_))
                | Self::Profile(profile::Error::Interrupted(_))
        )
    }
}

impl Products {
    /// Takes one product from others.
    pub fn add(&mut self, product: Product, from: &Self) {
        match product {
            Product::Model => self.model.clone_from(&from.model),
            Product::Dense => self.dense.clone_from(&from.dense),
            Product::Graph => self.graph.clone_from(&from.graph),
            Product::Scores => self.scores.clone_from(&from.scores),
            Product::GroupScores => self.group_scores.clone_from(&from.group_scores),
            Product::Plan => self.pruning.clone_from(&from.pruning),
            Product::Adapter => self.adapter.clone_from(&from.adapter),
        }
    }

    /// Whether it holds this product.
    pub fn has(&self, product: Product) -> bool {
        match product {
            Product::Model => self.model.is_some(),
            Product::Dense => self.dense.is_some(),
            Product::Graph => self.graph.is_some(),
            Product::Scores => self.scores.is_some(),
            Product::GroupScores => self.group_scores.is_some(),
            Product::Plan => self.pruning.is_some(),
            Product::Adapter => self.adapter.is_some(),
        }
    }

    /// This product alone.
    pub fn only(&self, product: Product) -> Self {
        let mut one = Self::default();
        one.add(product, self);
        one
    }

    /// Its model is the one that was loaded.
    pub fn model_is_dense(&mut self) {
        self.dense.clone_from(&self.model);
    }

    /// Whether its model is read from disk as it is used.
    pub fn is_streamed(&self) -> bool {
        self.model.as_ref().is_some_and(|model| model.embedding.is_on_disk())
    }

    fn of_model(model: Model) -> Self {
        Self { model: Some(Arc::new(model)), ..Self::default() }
    }

    /// A model that was loaded: it is its own dense model.
    fn of_dense(model: Model) -> Self {
        let model = Some(Arc::new(model));
        Self { dense: model.clone(), model, ..Self::default() }
    }

    fn model(&self) -> Result<&Model, StageError> {
        there(&self.model, Product::Model)
    }

    fn graph(&self) -> Result<&DependencyGraph, StageError> {
        there(&self.graph, Product::Graph)
    }
}

fn there<T>(value: &Option<Arc<T>>, product: Product) -> Result<&T, StageError> {
    value.as_deref().ok_or(StageError::Lacks(product.described().0))
}

/// Runs one stage. Returns what it hands on and what it measured.
pub fn execute(step: &Step, context: &Context, inputs: &Products) -> Result<(Products, Vec<Table>), StageError> {
    Ok(match &step.stage {
        Stage::Load(options) => (Products::of_dense(load::run(options, context.budget)?), Vec::new()),
        Stage::Pretrain(options) => {
            let (model, tables) = pretrain::run(options, context)?;
            (Products::of_dense(model), tables)
        }
        Stage::Dependencies(options) => {
            let graph = dependencies::run(options, inputs.model()?)?;
            (Products { graph: Some(Arc::new(graph)), ..Products::default() }, Vec::new())
        }
        Stage::Importance(options) => {
            let (scores, tables) = importance::run(options, context, inputs.model()?, inputs.graph()?)?;
            (Products { scores: Some(Arc::new(scores)), ..Products::default() }, tables)
        }
        Stage::Aggregate(options) => {
            let scores = there(&inputs.scores, Product::Scores)?;
            let (units, tables) = aggregate::run(options, inputs.model()?, inputs.graph()?, scores)?;
            (Products { group_scores: Some(Arc::new(units)), ..Products::default() }, tables)
        }
        Stage::Prune(options) => {
            let scores = there(&inputs.group_scores, Product::GroupScores)?;
            let (model, graph, before) = (inputs.model()?, inputs.graph()?, inputs.pruning.as_deref());
            let (model, pruning, tables) = prune::run(options, step.schedule, model, graph, scores, before)?;
            (Products { pruning: Some(Arc::new(pruning)), ..Products::of_model(model) }, tables)
        }
        Stage::Recover(options) => {
            let (model, adapter, tables) = recover::run(options, context, inputs.model()?)?;
            (Products { adapter: Some(Arc::new(adapter)), ..Products::of_model(model) }, tables)
        }
        Stage::Evaluate(options) => (Products::default(), evaluate::run(options, context, inputs.model()?)?),
        Stage::Generate(options) => (Products::default(), generate::run(options, context, inputs.model()?)?),
        Stage::Profile(options) => {
            let (model, dense) = (inputs.model()?, there(&inputs.dense, Product::Dense)?);
            profile::run(options, context, model, (!std::ptr::eq(model, dense)).then_some(dense))?;
            (Products::default(), Vec::new())
        }
        Stage::Export(options) => {
            export::run(options, context, inputs.model()?, inputs.pruning.as_deref().map(|pruning| &pruning.plan))?;
            (Products::default(), Vec::new())
        }
    })
}

/// Puts what a stage hands on into its room, as far as [`model`] and [`rest`] read it.
pub fn store(step: &Step, products: &Products, room: &Room) -> Result<(), StageError> {
    let encoded = match &step.stage {
        Stage::Pretrain(_) => return Ok(products.model()?.save(&room.path().join("model"), Precision::Float32)?),
        Stage::Dependencies(_) => postcard::to_stdvec(products.graph()?),
        Stage::Importance(_) => postcard::to_stdvec(there(&products.scores, Product::Scores)?),
        Stage::Aggregate(_) => postcard::to_stdvec(there(&products.group_scores, Product::GroupScores)?),
        Stage::Prune(_) => postcard::to_stdvec(there(&products.pruning, Product::Plan)?),
        Stage::Recover(_) => postcard::to_stdvec(there(&products.adapter, Product::Adapter)?),
        Stage::Load(_) | Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => return Ok(()),
    };
    let path = room.path().join(PRODUCT);
    let bytes = encoded.map_err(|e| FileError { path: path.clone(), source: std::io::Error::other(e) })?;
    Ok(files::write_quickly(&path, &bytes)?)
}

/// The file of a product that is one.
const PRODUCT: &str = "product";

/// What [`model`] needs besides what is kept.
pub fn model_takes(stage: &Stage) -> &'static [Product] {
    match stage {
        Stage::Prune(_) => &[Product::Model, Product::Graph],
        Stage::Recover(_) => &[Product::Model],
        Stage::Load(_) | Stage::Pretrain(_) | Stage::Dependencies(_) | Stage::Importance(_) => &[],
        Stage::Aggregate(_) | Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => &[],
    }
}

/// A kept product could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// This file is not what was written.
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Failed(#[from] StageError),
}

/// Brings back the model that a stage handed on.
pub fn model(step: &Step, kept: &Kept, inputs: &Products, budget: Budget) -> Result<Products, Unusable> {
    let model = match &step.stage {
        Stage::Load(options) => return Ok(Products::of_dense(load::run(options, budget).map_err(StageError::from)?)),
        Stage::Pretrain(_) => {
            let folder = kept.folder("model").map_err(Unusable::Damaged)?;
            return Ok(Products::of_dense(load::model(&folder, budget).map_err(StageError::from)?));
        }
        Stage::Prune(_) => prune::cut(inputs.model()?, inputs.graph()?, &*decoded::<Pruning>(kept)?),
        Stage::Recover(_) => decoded::<Adapter>(kept)?.merge(inputs.model()?),
        Stage::Dependencies(_) | Stage::Importance(_) | Stage::Aggregate(_) => return Ok(Products::default()),
        Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => return Ok(Products::default()),
    };
    Ok(Products::of_model(model))
}

/// Brings back all that a stage handed on but the model: it is small.
pub fn rest(step: &Step, kept: &Kept) -> Result<Products, Unusable> {
    let mut products = Products::default();
    match &step.stage {
        Stage::Dependencies(_) => products.graph = Some(decoded(kept)?),
        Stage::Importance(_) => products.scores = Some(decoded(kept)?),
        Stage::Aggregate(_) => products.group_scores = Some(decoded(kept)?),
        Stage::Prune(_) => products.pruning = Some(decoded(kept)?),
        Stage::Recover(_) => products.adapter = Some(decoded(kept)?),
        Stage::Load(_) | Stage::Pretrain(_) => {}
        Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => {}
    }
    Ok(products)
}

fn decoded<T: serde::de::DeserializeOwned>(kept: &Kept) -> Result<Arc<T>, Unusable> {
    let damaged = || Unusable::Damaged(PRODUCT.to_owned());
    let bytes = std::fs::read(kept.path(PRODUCT)).map_err(|_| damaged())?;
    postcard::from_bytes::<T>(&bytes).map(Arc::new).map_err(|_| damaged())
}
