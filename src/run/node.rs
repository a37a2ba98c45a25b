//! One node of the tree: reuses the product that the cache holds, or runs the stage and stores its
//! product.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::machine::PROGRAM_VERSION;
use crate::plan::Plan;
use crate::plan::ids::NodeId;
use crate::plan::keys::ProductKeys;
use crate::progress::Progress;
use crate::run::panics::catch_panics;
use crate::run::values::{LazyValues, NodeOutput};
use crate::stages::step::Step;
use crate::stages::values::{StageValues, ValueKind};
use crate::stages::{Context, RestoreError, StageCheckpoint, StageError};
use secateur_base::files::{FileError, PartialFolder, link_or_copy_files};
use secateur_base::locks::Claim;
use secateur_base::memory;
use secateur_base::random::Seed;
use secateur_store::cache::{ProductCache, ProductCost, ProductManifest, StoredProduct};
use secateur_store::tables::Table;

/// How long a run waits for a product that another run has claimed, before it goes on with other
/// work. Reading a product takes less in most cases, making one takes longer.
const CLAIM_PATIENCE: Duration = Duration::from_millis(100);

/// Runs the nodes of a plan, or reuses their products.
pub struct NodeRunner<'a> {
    pub plan: &'a Plan,
    pub keys: &'a ProductKeys,
    pub cache: ProductCache,
    pub progress: Progress,
    /// Set by Ctrl-C, SIGTERM and SIGHUP.
    pub stop: Arc<AtomicBool>,
}

/// A stage that ran, or whose product was reused.
pub struct NodeOutcome {
    pub result: StageResult,
    pub output: NodeOutput,
    /// While the claim is held no other process removes the product.
    _claim: Claim,
}

/// What a stage adds to the results of its variants.
pub struct StageResult {
    pub node: NodeId,
    pub stored: StoredProduct,
    /// The folder of the files that the stage wrote: that of the stored product, or a copy.
    pub written_folder: PathBuf,
    /// The copy, for variants that begin later: the product may leave the cache before. Dropping it
    /// removes it.
    pub kept_files: Option<PartialFolder>,
    pub tables: Vec<Table>,
    /// Whether an earlier or concurrent run made the product.
    pub is_reused: bool,
    /// The number of variants that share this run of the stage.
    pub shared_by: usize,
}

impl NodeOutcome {
    /// Releases the claim on the product.
    pub fn release(self) -> (StageResult, NodeOutput) {
        (self.result, self.output)
    }
}

impl StageResult {
    fn new(node: NodeId, stored: StoredProduct, tables: Vec<Table>) -> Self {
        Self {
            node,
            written_folder: stored.written_folder(),
            stored,
            kept_files: None,
            tables,
            is_reused: false,
            shared_by: 1,
        }
    }

    /// Links or copies the files that the stage wrote into a temporary folder inside `folder`. The
    /// caller holds the claim on the product.
    pub fn keep_files(&mut self, folder: &Path) -> Result<(), FileError> {
        let written = self.stored.written_files();
        if !written.is_empty() {
            let copy = PartialFolder::new(folder)?;
            let names = written.keys().map(Path::new);
            link_or_copy_files(&self.written_folder, names, copy.path())?;
            self.written_folder = copy.path().to_owned();
            self.kept_files = Some(copy);
        }
        Ok(())
    }
}

/// A product with its tables and its values other than models.
type ProductContent = (StoredProduct, Vec<Table>, StageValues);

impl NodeRunner<'_> {
    /// Reuses the product of a stage; runs the stage if there is none or if `is_forced`. Returns
    /// `None` if another run is making or using the product.
    pub fn run_or_reuse(
        &self,
        node: NodeId,
        is_forced: bool,
        values: &LazyValues,
        shared_by: usize,
    ) -> Result<Option<NodeOutcome>, StageError> {
        let mut loaded_inputs = None;
        loop {
            let claim = self.cache.claim_within(self.key(node), CLAIM_PATIENCE);
            let Some(claim) = claim.map_err(StageError::store)? else {
                return Ok(None);
            };
            if !is_forced && let Some((stored, tables, restored)) = self.load_stored(node) {
                let output = NodeOutput {
                    values: restored,
                    inputs: values.clone(),
                };
                let result = StageResult {
                    is_reused: true,
                    shared_by,
                    ..StageResult::new(node, stored, tables)
                };
                return Ok(Some(NodeOutcome {
                    result,
                    output,
                    _claim: claim,
                }));
            }
            let Some(inputs) = &loaded_inputs else {
                // Loading inputs may claim other products, so this claim is released first: a run
                // holds one claim at a time, and two runs cannot wait for each other. Another run
                // may store this product meanwhile, so the loop looks for it again.
                drop(claim);
                let kinds = self.step(node).stage.all_inputs();
                loaded_inputs = Some(self.load_inputs(&kinds, values)?);
                continue;
            };
            let (stored, tables, made) = self.run_and_store(node, is_forced, inputs)?;
            let output = NodeOutput {
                values: made,
                inputs: LazyValues::default(),
            };
            let result = StageResult {
                shared_by,
                ..StageResult::new(node, stored, tables)
            };
            return Ok(Some(NodeOutcome {
                result,
                output,
                _claim: claim,
            }));
        }
    }

    fn step(&self, node: NodeId) -> &Step {
        &self.plan.nodes[node].step
    }

    fn key(&self, node: NodeId) -> &str {
        &self.keys[node].key
    }

    /// Whether no other run is making or using the product of a node.
    pub fn is_released(&self, node: NodeId) -> Result<bool, FileError> {
        let claim = self.cache.claim_within(self.key(node), Duration::ZERO)?;
        Ok(claim.is_some())
    }

    fn claim(&self, node: NodeId) -> Result<Claim, StageError> {
        self.cache
            .wait_for_claim(self.key(node), &self.stop)
            .map_err(StageError::store)?
            .ok_or(StageError::Interrupted)
    }

    /// The stored product of a stage, read back; `None` if there is none. A damaged one is removed.
    fn load_stored(&self, node: NodeId) -> Option<ProductContent> {
        let stored = self.cache.get(self.key(node))?;
        let stage = &self.step(node).stage;
        let tables = stored.tables().map_err(|error| error.to_string());
        let content = tables.and_then(|tables| match stage.restore(&stored) {
            Ok(values) => Ok((tables, values)),
            Err(RestoreError::Damaged(file)) => Err(file),
            Err(RestoreError::Failed(error)) => Err(error.to_string()),
        });
        match content {
            Ok((tables, values)) => Some((stored, tables, values)),
            Err(reason) => {
                self.cache.remove_damaged(self.key(node), &reason);
                None
            }
        }
    }

    /// Runs one stage and stores what it makes.
    fn run_and_store(
        &self,
        node: NodeId,
        is_forced: bool,
        inputs: &StageValues,
    ) -> Result<ProductContent, StageError> {
        let step = self.step(node);
        let draft = self.cache.new_draft().map_err(StageError::store)?;
        let context = self.stage_context(step, self.key(node), &draft.written_folder());
        if is_forced {
            context.checkpoint.delete();
        }
        self.check_unchanged(node, inputs)?;
        memory::reset_peak_resident();
        let start = Instant::now();
        let result = catch_panics(|| step.stage.run(&context, inputs));
        let cost = ProductCost {
            wall_seconds: start.elapsed().as_secs_f64(),
            peak_memory: memory::peak_resident_bytes(),
        };
        if let Err(changed) = self.check_unchanged(node, inputs) {
            // The checkpoint was made from other files than those that the key covers.
            context.checkpoint.delete();
            return Err(changed);
        }
        let output = result?;
        step.stage.store(&output.values, &draft)?;
        let manifest = ProductManifest {
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            program: PROGRAM_VERSION.to_owned(),
            cost,
            files: BTreeMap::new(),
        };
        let stored = self
            .cache
            .store(self.key(node), draft, manifest, &output.tables)
            .map_err(StageError::store)?;
        Ok((stored, output.tables, output.values))
    }

    /// Checks that the files that a stage reads still have the content that its key was computed
    /// from. A model that is streamed is read from the files of the stage that loaded it, so these
    /// are checked too.
    fn check_unchanged(&self, node: NodeId, inputs: &StageValues) -> Result<(), StageError> {
        if inputs.is_streamed()
            && let Some(&variant) = self.plan.nodes[node].variants.first()
        {
            for &earlier in &self.plan.variants[variant].nodes {
                if earlier == node {
                    break;
                }
                if self.step(earlier).stage.stage_type().model_stays_in_inputs {
                    self.check_input_files(earlier)?;
                }
            }
        }
        self.check_input_files(node)
    }

    fn check_input_files(&self, node: NodeId) -> Result<(), StageError> {
        match self.keys.changed_input(self.plan, node) {
            Some(path) => Err(StageError::InputChanged(path)),
            None => Ok(()),
        }
    }

    /// Loads the values of these kinds that a stage before has made.
    fn load_inputs(
        &self,
        kinds: &[ValueKind],
        values: &LazyValues,
    ) -> Result<StageValues, StageError> {
        let mut inputs = StageValues::default();
        for &kind in kinds {
            let Some(lazy) = values.get(kind) else {
                continue;
            };
            if kind == ValueKind::Dense {
                let model = values.get(ValueKind::Model);
                if model.is_some_and(|model| model.node == lazy.node) {
                    // The model was not changed since it was loaded: one copy serves as both.
                    inputs.use_model_as_dense();
                    continue;
                }
            }
            let value = lazy.get_or_load(|before| self.restore_or_rerun(lazy.node, before))?;
            inputs.copy_from(kind, &value);
        }
        Ok(inputs)
    }

    /// Rebuilds the models of a stage that ran or was reused before. If its product is damaged or
    /// gone, runs the stage again.
    fn restore_or_rerun(
        &self,
        node: NodeId,
        before: &LazyValues,
    ) -> Result<StageValues, StageError> {
        let stage = &self.step(node).stage;
        let mut inputs = self.load_inputs(stage.restore_model_inputs(), before)?;
        let mut has_all_inputs = false;
        loop {
            let claim = self.claim(node)?;
            if let Some(stored) = self.cache.get(self.key(node)) {
                let memory_budget = self.plan.settings.run.budget();
                match stage.restore_model(&stored, &inputs, memory_budget) {
                    Ok(values) => {
                        if stage.stage_type().model_stays_in_inputs {
                            self.check_unchanged(node, &inputs)?;
                        }
                        return Ok(values);
                    }
                    Err(RestoreError::Damaged(file)) => {
                        self.cache.remove_damaged(self.key(node), &file);
                    }
                    Err(RestoreError::Failed(error)) => return Err(error),
                }
            }
            if has_all_inputs {
                tracing::debug!(
                    "{} runs again: a later stage needs its model, and its product is gone",
                    stage.tag()
                );
                let (.., values) = self.run_and_store(node, false, &inputs)?;
                return Ok(values);
            }
            // As in `run_or_reuse`: no claim is held while inputs are loaded.
            drop(claim);
            inputs = self.load_inputs(&stage.all_inputs(), before)?;
            has_all_inputs = true;
        }
    }

    fn stage_context(&self, step: &Step, key: &str, output_folder: &Path) -> Context {
        let run = &self.plan.settings.run;
        Context {
            seed: Seed::for_stage(run.seed, step.stage.tag(), step.occurrence),
            data_folder: run.data.clone(),
            output_folder: output_folder.to_owned(),
            memory_budget: run.budget(),
            occurrence: step.occurrence,
            repeat_position: step.repeat_position,
            checkpoint: StageCheckpoint::new(self.cache.checkpoint_path(key)),
            progress: self.progress.clone(),
            stop_requested: self.stop.clone(),
        }
    }
}
