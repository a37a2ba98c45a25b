//! One node of the tree: what is kept of it, else what it makes now. Values that it takes are brought back, or made, when
//! they are asked for.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::machine::PROGRAM_VERSION;
use crate::plan::Plan;
use crate::plan::ids::NodeId;
use crate::plan::keys::ProductKeys;
use crate::progress::Progress;
use crate::run::execute::{self, RestoreError, StageError, StageValues};
use crate::run::values::{LazyValues, NodeOutput};
use crate::stages::registry::{Stage, Step, ValueKind};
use crate::stages::{Context, StageCheckpoint};
use secateur_base::locks::Claim;
use secateur_base::memory;
use secateur_base::random::Seed;
use secateur_store::cache::{ProductCache, ProductCost, ProductManifest, StoredProduct};
use secateur_store::tables::Table;
use secateur_tensor::WeightReadError;

/// Makes what nodes of a plan make, or takes what is kept.
pub struct NodeRunner<'a> {
    pub plan: &'a Plan,
    pub keys: &'a ProductKeys,
    pub cache: ProductCache,
    pub progress: Progress,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
}

/// A stage that ran, or was kept.
pub struct NodeOutcome {
    pub stored: StoredProduct,
    pub tables: Vec<Table>,
    pub output: NodeOutput,
    /// Whether an earlier run, or another one, made it.
    pub is_reused: bool,
    /// Nobody removes the product while it is handed to the variants.
    _claim: Claim,
}

impl NodeOutcome {
    /// What goes on down the tree; others may have the product now.
    pub fn into_output(self) -> NodeOutput {
        self.output
    }
}

impl NodeRunner<'_> {
    /// What is kept of a stage; else, or if it is forced, what it makes now.
    pub fn run_or_reuse(
        &self,
        at: NodeId,
        forced: bool,
        values: &LazyValues,
    ) -> Result<NodeOutcome, StageError> {
        let mut inputs = None;
        loop {
            let claim = self.claim(at)?;
            if !forced && let Some((kept, tables, products)) = self.load_stored(at) {
                let made = NodeOutput {
                    values: products,
                    inputs: values.clone(),
                };
                return Ok(NodeOutcome {
                    stored: kept,
                    tables,
                    output: made,
                    is_reused: true,
                    _claim: claim,
                });
            }
            match &inputs {
                // Inputs may have claims of their own: one at a time.
                None => {
                    drop(claim);
                    inputs = Some(
                        self.load_inputs(self.plan.nodes[at].step.stage.all_inputs(), values)?,
                    );
                }
                Some(inputs) => {
                    let (kept, tables, products) = self.run_and_store(at, forced, inputs)?;
                    let made = NodeOutput {
                        values: products,
                        inputs: LazyValues::default(),
                    };
                    return Ok(NodeOutcome {
                        stored: kept,
                        tables,
                        output: made,
                        is_reused: false,
                        _claim: claim,
                    });
                }
            }
        }
    }

    fn claim(&self, at: NodeId) -> Result<Claim, StageError> {
        self.cache
            .wait_for_claim(&self.keys[at].key, &self.stop)?
            .ok_or(StageError::Interrupted)
    }

    /// What is kept of a stage, if it is whole: all but the model.
    fn load_stored(&self, at: NodeId) -> Option<(StoredProduct, Vec<Table>, StageValues)> {
        let key = &self.keys[at].key;
        let kept = self.cache.get(key)?;
        let read = kept
            .tables()
            .map_err(|error| error.to_string())
            .and_then(|tables| {
                let rest = execute::restore_all_but_model(&self.plan.nodes[at].step, &kept);
                rest.map(|products| (tables, products))
                    .map_err(|error| error.to_string())
            });
        match read {
            Ok((tables, products)) => Some((kept, tables, products)),
            Err(why) => {
                self.cache.remove_damaged(key, &why);
                None
            }
        }
    }

    /// Runs one stage and keeps what it makes.
    fn run_and_store(
        &self,
        at: NodeId,
        forced: bool,
        inputs: &StageValues,
    ) -> Result<(StoredProduct, Vec<Table>, StageValues), StageError> {
        let step = &self.plan.nodes[at].step;
        let key = &self.keys[at].key;
        let room = self.cache.new_draft()?;
        let context = self.stage_context(step, key, &room.written_folder());
        if forced {
            context.checkpoint.delete();
        }
        self.check_unchanged(at, inputs)?;
        memory::reset_peak_resident();
        let began = Instant::now();
        let executed = catch_panics(|| execute::run_stage(step, &context, inputs));
        let cost = ProductCost {
            wall_seconds: began.elapsed().as_secs_f64(),
            peak_memory: memory::peak_resident_bytes(),
        };
        if let Err(changed) = self.check_unchanged(at, inputs) {
            // what it was made of has another key
            context.checkpoint.delete();
            return Err(changed);
        }
        let (products, tables) = executed?;
        execute::store_values(step, &products, &room)?;
        let entry = ProductManifest {
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            program: PROGRAM_VERSION.to_owned(),
            cost,
            files: BTreeMap::new(),
        };
        Ok((
            self.cache.store(key, room, entry, &tables)?,
            tables,
            products,
        ))
    }

    /// What a stage reads must be what its key says; a model that is streamed is read by all who use it.
    fn check_unchanged(&self, at: NodeId, inputs: &StageValues) -> Result<(), StageError> {
        let path = self.plan.nodes[at]
            .variants
            .first()
            .map_or(&[][..], |&variant| &self.plan.variants[variant].nodes);
        let loads = path
            .iter()
            .take_while(|&&node| inputs.is_streamed() && node != at);
        let loads =
            loads.filter(|&&node| matches!(self.plan.nodes[node].step.stage, Stage::Load(_)));
        let changed = loads
            .chain([&at])
            .find_map(|&node| self.keys.changed_input(self.plan, node));
        changed.map_or(Ok(()), |path| Err(StageError::InputChanged(path)))
    }

    /// The values that a stage takes.
    fn load_inputs(
        &self,
        takes: impl Iterator<Item = ValueKind>,
        values: &LazyValues,
    ) -> Result<StageValues, StageError> {
        let mut inputs = StageValues::default();
        for product in takes {
            if let Some(promise) = values.get(product) {
                if product == ValueKind::Dense
                    && values
                        .get(ValueKind::Model)
                        .is_some_and(|model| model.node == promise.node)
                {
                    inputs.use_model_as_dense();
                    continue;
                }
                inputs.copy_from(
                    product,
                    &promise.get_or_load(|before| self.restore_or_rerun(promise.node, before))?,
                );
            }
        }
        Ok(inputs)
    }

    /// A model that was not needed so far: brought back from disk, or, if it is not whole there, made again.
    fn restore_or_rerun(&self, at: NodeId, before: &LazyValues) -> Result<StageValues, StageError> {
        let step = &self.plan.nodes[at].step;
        let key = &self.keys[at].key;
        let mut inputs = self.load_inputs(
            execute::restore_model_inputs(&step.stage).iter().copied(),
            before,
        )?;
        let mut has_all = false;
        loop {
            let claim = self.claim(at)?;
            if let Some(kept) = self.cache.get(key) {
                match execute::restore_model(step, &kept, &inputs, self.plan.settings.run.budget())
                {
                    // a checkpoint is kept by the names of its files
                    Ok(products) if matches!(step.stage, Stage::Load(_)) => {
                        return self.check_unchanged(at, &inputs).map(|()| products);
                    }
                    Ok(products) => return Ok(products),
                    Err(RestoreError::Damaged(file)) => self.cache.remove_damaged(key, &file),
                    Err(RestoreError::Failed(error)) => return Err(error),
                }
            }
            if has_all {
                tracing::debug!(
                    "{} runs again: what it hands on is needed",
                    step.stage.tag()
                );
                return self
                    .run_and_store(at, false, &inputs)
                    .map(|(.., products)| products);
            }
            drop(claim);
            (inputs, has_all) = (self.load_inputs(step.stage.all_inputs(), before)?, true);
        }
    }

    fn stage_context(&self, step: &Step, key: &str, folder: &Path) -> Context {
        Context {
            seed: Seed::for_stage(
                self.plan.settings.run.seed,
                step.stage.tag(),
                step.occurrence,
            ),
            data_folder: self.plan.settings.run.data.clone(),
            output_folder: folder.to_owned(),
            memory_budget: self.plan.settings.run.budget(),
            occurrence: step.occurrence,
            checkpoint: StageCheckpoint::new(self.cache.checkpoint_path(key)),
            progress: self.progress.clone(),
            stop_requested: self.stop.clone(),
        }
    }
}

/// A panic inside a stage is that stage's failure, not the run's.
fn catch_panics<T>(work: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if let Some(unreadable) = panic.downcast_ref::<WeightReadError>() {
            return Err(StageError::Unreadable(unreadable.clone()));
        }
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        if text
            .as_ref()
            .is_some_and(|text| text.contains("CUDA_ERROR_OUT_OF_MEMORY"))
        {
            return Err(StageError::GpuOutOfMemory);
        }
        Err(StageError::Panicked(
            text.unwrap_or_else(|| "no reason was given".to_owned()),
        ))
    })
}
