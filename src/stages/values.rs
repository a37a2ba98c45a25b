//! The values that stages pass to later stages, by kind. Each kind has one Rust type, which is the
//! type parameter of its [`ValueKey`].

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use super::error::StageError;
use super::products::{ChannelScores, GroupScores, PruningResult};
use secateur_model::Model;
use secateur_model::groups::DependencyGraph;
use secateur_model::lora::Adapter;

/// A kind of value that one stage passes to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValueKind {
    /// The model as the stages so far have left it.
    Model,
    /// The model as it was loaded, before any pruning.
    Dense,
    /// Groups of coupled structures.
    Graph,
    /// One score per channel of each group member.
    Scores,
    /// One score per unit of each group.
    GroupScores,
    /// The units that every pruning so far has kept.
    Plan,
    /// The adapter that the last recovery trained.
    Adapter,
}

impl ValueKind {
    pub const ALL: &[ValueKind] = &[
        ValueKind::Model,
        ValueKind::Dense,
        ValueKind::Graph,
        ValueKind::Scores,
        ValueKind::GroupScores,
        ValueKind::Plan,
        ValueKind::Adapter,
    ];

    /// A noun without an article, for messages such as "gives it another *model*".
    pub fn label(self) -> &'static str {
        match self {
            ValueKind::Model => "model",
            ValueKind::Dense => "dense model",
            ValueKind::Graph => "set of groups",
            ValueKind::Scores => "set of scores",
            ValueKind::GroupScores => "set of scores of units",
            ValueKind::Plan => "pruning plan",
            ValueKind::Adapter => "adapter",
        }
    }

    /// A noun with its article, for messages such as "needs *a model*".
    pub fn phrase(self) -> &'static str {
        match self {
            ValueKind::Model => "a model",
            ValueKind::Dense => "the dense model",
            ValueKind::Graph => "the groups",
            ValueKind::Scores => "scores",
            ValueKind::GroupScores => "scores of units",
            ValueKind::Plan => "a pruning plan",
            ValueKind::Adapter => "an adapter",
        }
    }
}

/// A kind of value together with its type.
#[derive(Debug)]
pub struct ValueKey<T> {
    kind: ValueKind,
    value_type: PhantomData<fn() -> T>,
}

impl<T> ValueKey<T> {
    const fn new(kind: ValueKind) -> Self {
        Self {
            kind,
            value_type: PhantomData,
        }
    }
}

pub const MODEL: ValueKey<Model> = ValueKey::new(ValueKind::Model);
pub const DENSE: ValueKey<Model> = ValueKey::new(ValueKind::Dense);
pub const GRAPH: ValueKey<DependencyGraph> = ValueKey::new(ValueKind::Graph);
pub const SCORES: ValueKey<ChannelScores> = ValueKey::new(ValueKind::Scores);
pub const GROUP_SCORES: ValueKey<GroupScores> = ValueKey::new(ValueKind::GroupScores);
pub const PLAN: ValueKey<PruningResult> = ValueKey::new(ValueKind::Plan);
pub const ADAPTER: ValueKey<Adapter> = ValueKey::new(ValueKind::Adapter);

/// A set of values with at most one of each kind. Clones share the values.
///
/// A new value is inserted only with its [`ValueKey`], so an entry always has the type of its key.
#[derive(Clone, Default)]
pub struct StageValues {
    by_kind: BTreeMap<ValueKind, Arc<dyn Any + Send + Sync>>,
}

impl StageValues {
    /// This set with one more value.
    pub fn with<T: Send + Sync + 'static>(mut self, key: ValueKey<T>, value: T) -> Self {
        self.by_kind.insert(key.kind, Arc::new(value));
        self
    }

    /// A model that was loaded or trained from scratch: it is also the dense model.
    pub fn from_dense_model(model: Model) -> Self {
        let mut values = Self::default().with(MODEL, model);
        values.use_model_as_dense();
        values
    }

    /// The value of this kind, if there is one.
    pub fn get<T: 'static>(&self, key: ValueKey<T>) -> Option<&T> {
        self.by_kind.get(&key.kind)?.downcast_ref()
    }

    /// The value of this kind.
    ///
    /// # Errors
    /// [`StageError::MissingInput`] if there is none, which the check of a pipeline rules out.
    pub fn require<T: 'static>(&self, key: ValueKey<T>) -> Result<&T, StageError> {
        let missing = StageError::MissingInput(key.kind.phrase());
        self.get(key).ok_or(missing)
    }

    /// Whether there is a value of this kind.
    pub fn has(&self, kind: ValueKind) -> bool {
        self.by_kind.contains_key(&kind)
    }

    /// Takes the value of one kind from another set; nothing happens if it has none.
    pub fn copy_from(&mut self, kind: ValueKind, other: &Self) {
        if let Some(value) = other.by_kind.get(&kind) {
            self.by_kind.insert(kind, value.clone());
        }
    }

    /// A set with only the value of this kind.
    pub fn select(&self, kind: ValueKind) -> Self {
        let mut selected = Self::default();
        selected.copy_from(kind, self);
        selected
    }

    /// Sets the dense model to the model, which share their memory.
    pub fn use_model_as_dense(&mut self) {
        if let Some(model) = self.by_kind.get(&ValueKind::Model) {
            self.by_kind.insert(ValueKind::Dense, model.clone());
        }
    }

    /// Whether the blocks of the model stay on disk and are read whenever they are used.
    pub fn is_streamed(&self) -> bool {
        self.get(MODEL)
            .is_some_and(|model| model.embedding.is_on_disk())
    }
}
