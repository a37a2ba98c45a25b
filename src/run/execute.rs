//! One stage: run from its inputs, kept on disk, or brought back from there. A stage's outcome is a set of products;
//! what is made faster from the rest than read is not stored: a checkpoint is read again, a pruned model is cut again,
//! an adapter is merged again.

use std::sync::Arc;

use crate::stages::products::{ChannelScores, GroupScores};
use crate::stages::prune::{self, PruningResult};
use crate::stages::registry::{Stage, Step, ValueKind};
use crate::stages::{
    Context, MemoryBudget, aggregate, dependencies, evaluate, export, generate, importance, load,
    pretrain, profile, recover,
};
use secateur_base::files::{self, FileError};
use secateur_model::Model;
use secateur_model::groups::DependencyGraph;
use secateur_model::lora::Adapter;
use secateur_model::stored::StorageDtype;
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::{Table, TableError};
use secateur_tensor::WeightReadError;

/// Values that stages hand on. Clones share them.
#[derive(Clone, Default)]
pub struct StageValues {
    model: Option<Arc<Model>>,
    dense: Option<Arc<Model>>,
    graph: Option<Arc<DependencyGraph>>,
    scores: Option<Arc<ChannelScores>>,
    group_scores: Option<Arc<GroupScores>>,
    pruning: Option<Arc<PruningResult>>,
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
    Store(#[from] TableError),
    #[error("`{0}` was changed while the run was at work; run it again")]
    InputChanged(String),
    #[error(transparent)]
    Unreadable(#[from] WeightReadError),
    #[error("interrupted")]
    Interrupted,
    #[error(
        "the GPU has no memory left: take fewer or shorter samples, precision = \"float16\", or a GPU that nobody else uses"
    )]
    GpuOutOfMemory,
    #[error(
        "it broke off inside a library, which is a defect of this program or a file that it does not understand: {0}"
    )]
    Panicked(String),
    #[error("the stage lacks {0}; this is a mistake of the check")]
    MissingInput(&'static str),
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

impl StageValues {
    /// Takes one product from others.
    pub fn copy_from(&mut self, product: ValueKind, from: &Self) {
        match product {
            ValueKind::Model => self.model.clone_from(&from.model),
            ValueKind::Dense => self.dense.clone_from(&from.dense),
            ValueKind::Graph => self.graph.clone_from(&from.graph),
            ValueKind::Scores => self.scores.clone_from(&from.scores),
            ValueKind::GroupScores => self.group_scores.clone_from(&from.group_scores),
            ValueKind::Plan => self.pruning.clone_from(&from.pruning),
            ValueKind::Adapter => self.adapter.clone_from(&from.adapter),
        }
    }

    /// Whether it holds this product.
    pub fn has(&self, product: ValueKind) -> bool {
        match product {
            ValueKind::Model => self.model.is_some(),
            ValueKind::Dense => self.dense.is_some(),
            ValueKind::Graph => self.graph.is_some(),
            ValueKind::Scores => self.scores.is_some(),
            ValueKind::GroupScores => self.group_scores.is_some(),
            ValueKind::Plan => self.pruning.is_some(),
            ValueKind::Adapter => self.adapter.is_some(),
        }
    }

    /// This product alone.
    pub fn select(&self, product: ValueKind) -> Self {
        let mut one = Self::default();
        one.copy_from(product, self);
        one
    }

    /// Its model is the one that was loaded.
    pub fn use_model_as_dense(&mut self) {
        self.dense.clone_from(&self.model);
    }

    /// Whether its model is read from disk as it is used.
    pub fn is_streamed(&self) -> bool {
        self.model
            .as_ref()
            .is_some_and(|model| model.embedding.is_on_disk())
    }

    fn from_model(model: Model) -> Self {
        Self {
            model: Some(Arc::new(model)),
            ..Self::default()
        }
    }

    /// A model that was loaded: it is its own dense model.
    fn from_dense_model(model: Model) -> Self {
        let model = Some(Arc::new(model));
        Self {
            dense: model.clone(),
            model,
            ..Self::default()
        }
    }

    fn require_model(&self) -> Result<&Model, StageError> {
        require(&self.model, ValueKind::Model)
    }

    fn require_graph(&self) -> Result<&DependencyGraph, StageError> {
        require(&self.graph, ValueKind::Graph)
    }
}

fn require<T>(value: &Option<Arc<T>>, product: ValueKind) -> Result<&T, StageError> {
    value
        .as_deref()
        .ok_or(StageError::MissingInput(product.phrase_and_maker().0))
}

/// Runs one stage. Returns what it hands on and what it measured.
pub fn run_stage(
    step: &Step,
    context: &Context,
    inputs: &StageValues,
) -> Result<(StageValues, Vec<Table>), StageError> {
    Ok(match &step.stage {
        Stage::Load(options) => (
            StageValues::from_dense_model(load::run(options, context.memory_budget)?),
            Vec::new(),
        ),
        Stage::Pretrain(options) => {
            let (model, tables) = pretrain::run(options, context)?;
            (StageValues::from_dense_model(model), tables)
        }
        Stage::Dependencies(options) => {
            let graph = dependencies::run(options, inputs.require_model()?)?;
            (
                StageValues {
                    graph: Some(Arc::new(graph)),
                    ..StageValues::default()
                },
                Vec::new(),
            )
        }
        Stage::Importance(options) => {
            let (scores, tables) = importance::run(
                options,
                context,
                inputs.require_model()?,
                inputs.require_graph()?,
            )?;
            (
                StageValues {
                    scores: Some(Arc::new(scores)),
                    ..StageValues::default()
                },
                tables,
            )
        }
        Stage::Aggregate(options) => {
            let scores = require(&inputs.scores, ValueKind::Scores)?;
            let (units, tables) = aggregate::run(
                options,
                inputs.require_model()?,
                inputs.require_graph()?,
                scores,
            )?;
            (
                StageValues {
                    group_scores: Some(Arc::new(units)),
                    ..StageValues::default()
                },
                tables,
            )
        }
        Stage::Prune(options) => {
            let scores = require(&inputs.group_scores, ValueKind::GroupScores)?;
            let (model, graph, before) = (
                inputs.require_model()?,
                inputs.require_graph()?,
                inputs.pruning.as_deref(),
            );
            let (model, pruning, tables) =
                prune::run(options, step.schedule, model, graph, scores, before)?;
            (
                StageValues {
                    pruning: Some(Arc::new(pruning)),
                    ..StageValues::from_model(model)
                },
                tables,
            )
        }
        Stage::Recover(options) => {
            let (model, adapter, tables) = recover::run(options, context, inputs.require_model()?)?;
            (
                StageValues {
                    adapter: Some(Arc::new(adapter)),
                    ..StageValues::from_model(model)
                },
                tables,
            )
        }
        Stage::Evaluate(options) => (
            StageValues::default(),
            evaluate::run(options, context, inputs.require_model()?)?,
        ),
        Stage::Generate(options) => (
            StageValues::default(),
            generate::run(options, context, inputs.require_model()?)?,
        ),
        Stage::Profile(options) => {
            let (model, dense) = (
                inputs.require_model()?,
                require(&inputs.dense, ValueKind::Dense)?,
            );
            profile::run(
                options,
                context,
                model,
                (!std::ptr::eq(model, dense)).then_some(dense),
            )?;
            (StageValues::default(), Vec::new())
        }
        Stage::Export(options) => {
            export::run(
                options,
                context,
                inputs.require_model()?,
                inputs.pruning.as_deref().map(|pruning| &pruning.plan),
            )?;
            (StageValues::default(), Vec::new())
        }
    })
}

/// Puts what a stage hands on into its room, as far as [`model`] and [`rest`] read it.
pub fn store_values(
    step: &Step,
    products: &StageValues,
    room: &ProductDraft,
) -> Result<(), StageError> {
    let encoded = match &step.stage {
        Stage::Pretrain(_) => {
            return Ok(products
                .require_model()?
                .save(&room.path().join("model"), StorageDtype::Float32)?);
        }
        Stage::Dependencies(_) => postcard::to_stdvec(products.require_graph()?),
        Stage::Importance(_) => postcard::to_stdvec(require(&products.scores, ValueKind::Scores)?),
        Stage::Aggregate(_) => {
            postcard::to_stdvec(require(&products.group_scores, ValueKind::GroupScores)?)
        }
        Stage::Prune(_) => postcard::to_stdvec(require(&products.pruning, ValueKind::Plan)?),
        Stage::Recover(_) => postcard::to_stdvec(require(&products.adapter, ValueKind::Adapter)?),
        Stage::Load(_)
        | Stage::Evaluate(_)
        | Stage::Generate(_)
        | Stage::Profile(_)
        | Stage::Export(_) => return Ok(()),
    };
    let path = room.path().join(VALUE_FILE);
    let bytes = encoded.map_err(|e| FileError {
        path: path.clone(),
        source: std::io::Error::other(e),
    })?;
    Ok(files::write_atomic_unsynced(&path, &bytes)?)
}

/// The file of a product that is one.
const VALUE_FILE: &str = "product";

/// What [`model`] needs besides what is kept.
pub fn restore_model_inputs(stage: &Stage) -> &'static [ValueKind] {
    match stage {
        Stage::Prune(_) => &[ValueKind::Model, ValueKind::Graph],
        Stage::Recover(_) => &[ValueKind::Model],
        Stage::Load(_) | Stage::Pretrain(_) | Stage::Dependencies(_) | Stage::Importance(_) => &[],
        Stage::Aggregate(_)
        | Stage::Evaluate(_)
        | Stage::Generate(_)
        | Stage::Profile(_)
        | Stage::Export(_) => &[],
    }
}

/// A kept product could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// This file is not what was written.
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Failed(#[from] StageError),
}

/// Brings back the model that a stage handed on.
pub fn restore_model(
    step: &Step,
    kept: &StoredProduct,
    inputs: &StageValues,
    budget: MemoryBudget,
) -> Result<StageValues, RestoreError> {
    let model = match &step.stage {
        Stage::Load(options) => {
            return Ok(StageValues::from_dense_model(
                load::run(options, budget).map_err(StageError::from)?,
            ));
        }
        Stage::Pretrain(_) => {
            let folder = kept
                .verified_folder("model")
                .map_err(RestoreError::Damaged)?;
            return Ok(StageValues::from_dense_model(
                load::load_model(&folder, budget).map_err(StageError::from)?,
            ));
        }
        Stage::Prune(_) => prune::apply_pruning(
            inputs.require_model()?,
            inputs.require_graph()?,
            &*decode_stored::<PruningResult>(kept)?,
        ),
        Stage::Recover(_) => decode_stored::<Adapter>(kept)?.merge_into(inputs.require_model()?),
        Stage::Dependencies(_) | Stage::Importance(_) | Stage::Aggregate(_) => {
            return Ok(StageValues::default());
        }
        Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => {
            return Ok(StageValues::default());
        }
    };
    Ok(StageValues::from_model(model))
}

/// Brings back all that a stage handed on but the model: it is small.
pub fn restore_all_but_model(
    step: &Step,
    kept: &StoredProduct,
) -> Result<StageValues, RestoreError> {
    let mut products = StageValues::default();
    match &step.stage {
        Stage::Dependencies(_) => products.graph = Some(decode_stored(kept)?),
        Stage::Importance(_) => products.scores = Some(decode_stored(kept)?),
        Stage::Aggregate(_) => products.group_scores = Some(decode_stored(kept)?),
        Stage::Prune(_) => products.pruning = Some(decode_stored(kept)?),
        Stage::Recover(_) => products.adapter = Some(decode_stored(kept)?),
        Stage::Load(_) | Stage::Pretrain(_) => {}
        Stage::Evaluate(_) | Stage::Generate(_) | Stage::Profile(_) | Stage::Export(_) => {}
    }
    Ok(products)
}

fn decode_stored<T: serde::de::DeserializeOwned>(
    kept: &StoredProduct,
) -> Result<Arc<T>, RestoreError> {
    let damaged = || RestoreError::Damaged(VALUE_FILE.to_owned());
    let bytes = std::fs::read(kept.file_path(VALUE_FILE)).map_err(|_| damaged())?;
    postcard::from_bytes::<T>(&bytes)
        .map(Arc::new)
        .map_err(|_| damaged())
}
