//! The variants of a run: each is pending, open or ended. A variant is claimed when the run reaches
//! its own stages, so that several runs in one folder divide the variants among them. The claim
//! keeps other processes out of the variant's results folder.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::plan::ids::{NodeId, PerVariant, VariantId};
use crate::plan::keys::{self, ProductKeys};
use crate::plan::{Plan, Variant};
use crate::report::VARIANTS_FILE;
use crate::results::{
    ResultState, ResultsFolder, StageRecord, VariantFolder, VariantManifest, VariantStatus,
};
use crate::run::node::StageResult;
use crate::run::stage_logs::StageLogs;
use secateur_base::files::FileError;
use secateur_base::locks::Claim;
use secateur_store::tables::TableError;

/// The time between two attempts to get a claim that another process has.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The variants of a plan, and the results folder that they are written to.
pub(crate) struct RunVariants<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    results: Arc<ResultsFolder>,
    states: PerVariant<VariantState>,
    logs: StageLogs,
}

enum VariantState {
    /// Not begun yet.
    Pending,
    /// Pending, and another process had the claim when this run last tried it.
    Busy,
    /// Its stages are running; the folder holds the claim.
    Open(Box<VariantFolder>),
    Ended(VariantEnding),
}

/// How a variant ended.
#[derive(Clone, Debug)]
pub(crate) struct VariantEnding {
    pub(crate) status: VariantStatus,
    /// Why it did not succeed.
    pub(crate) error: Option<String>,
    pub(crate) tables_folder: PathBuf,
}

/// The result of [`RunVariants::begin`].
pub(crate) enum BeginOutcome {
    /// The variant is open.
    Opened,
    /// An earlier or concurrent run completed the variant, which has ended.
    Complete,
    /// Another process has the claim; the variant is still pending.
    Busy,
    /// The variant's folder cannot be written; the variant is still pending.
    Failed(FileError),
}

impl<'a> RunVariants<'a> {
    /// Opens the results folder of a plan; all variants are pending.
    pub(crate) fn open(plan: &'a Plan, keys: &'a ProductKeys) -> Result<Self, FileError> {
        let folder = plan.settings.run.results.join(&plan.name);
        let results = Arc::new(ResultsFolder::open(&folder)?);
        Ok(Self {
            plan,
            keys,
            states: plan
                .variants
                .iter()
                .map(|_| VariantState::Pending)
                .collect(),
            logs: StageLogs::new(&folder)?,
            results,
        })
    }

    pub(crate) fn results_folder(&self) -> &Path {
        self.results.folder()
    }

    pub(crate) fn results(&self) -> &Arc<ResultsFolder> {
        &self.results
    }

    /// Tries the claim of every variant that has not begun: ends those that are complete, and notes
    /// which ones other processes have claimed. Returns how many were complete.
    pub(crate) fn survey(&mut self) -> usize {
        let plan = self.plan;
        let mut complete_count = 0;
        for id in plan.variants.ids() {
            if !matches!(self.states[id], VariantState::Pending | VariantState::Busy) {
                continue;
            }
            let variant = &plan.variants[id];
            self.states[id] = match self.results.claim(&variant.id) {
                Ok(None) => VariantState::Busy,
                Ok(Some(_claim)) if self.is_complete(variant) => {
                    complete_count += 1;
                    self.complete_ending(variant)
                }
                // `begin` reports the error.
                Ok(Some(_)) | Err(_) => VariantState::Pending,
            };
        }
        complete_count
    }

    /// Claims and opens a variant, unless it is complete or claimed by another process. An error is
    /// a mistake in this program: the variant's own pipeline could not be written as TOML.
    ///
    /// `earlier` are the results of stages before that were not added to the variant. Their part of
    /// the log is added here, their tables and files by [`RunVariants::add_stage`].
    pub(crate) fn begin(
        &mut self,
        id: VariantId,
        earlier: &[Rc<StageResult>],
    ) -> Result<BeginOutcome, toml::ser::Error> {
        let plan = self.plan;
        let variant = &plan.variants[id];
        let claim = match self.results.claim(&variant.id) {
            Ok(Some(claim)) => claim,
            Ok(None) => {
                self.states[id] = VariantState::Busy;
                return Ok(BeginOutcome::Busy);
            }
            Err(error) => return Ok(BeginOutcome::Failed(error)),
        };
        if self.is_complete(variant) {
            self.states[id] = self.complete_ending(variant);
            return Ok(BeginOutcome::Complete);
        }
        let pipeline_toml = plan.variant_toml(variant)?;
        let mut manifest = VariantManifest::new(
            &variant.id,
            &plan.pipeline_text,
            &pipeline_toml,
            plan.settings.run.seed,
            plan.settings.run.device,
        );
        manifest.description = Some(variant.into());
        match self.results.begin_variant(claim, &pipeline_toml, manifest) {
            Ok(folder) => {
                let nodes = earlier.iter().map(|result| result.node);
                self.logs.copy_to(&folder.log(), nodes);
                self.states[id] = VariantState::Open(Box::new(folder));
                Ok(BeginOutcome::Opened)
            }
            Err(error) => Ok(BeginOutcome::Failed(error)),
        }
    }

    /// Whether a complete result of the variant makes it unnecessary to run it. The caller holds
    /// the claim on the variant.
    fn is_complete(&self, variant: &Variant) -> bool {
        if self.plan.is_forced(variant) {
            return false;
        }
        match self
            .results
            .verify(&variant.id, &self.keys.stage_keys(variant))
        {
            ResultState::Complete => true,
            ResultState::Damaged(file) => {
                tracing::warn!(
                    variant = variant.id,
                    file,
                    "a result is damaged: it is assembled again"
                );
                false
            }
            ResultState::Missing | ResultState::Outdated => false,
        }
    }

    fn complete_ending(&self, variant: &Variant) -> VariantState {
        VariantState::Ended(VariantEnding {
            status: VariantStatus::Succeeded,
            error: None,
            tables_folder: self.folder_of(variant),
        })
    }

    fn folder_of(&self, variant: &Variant) -> PathBuf {
        self.results.folder().join(&variant.id)
    }

    /// Waits for the claim on the report tables.
    pub(crate) fn wait_for_report_claim(&self) -> Result<Claim, FileError> {
        loop {
            if let Some(claim) = self.results.claim(VARIANTS_FILE)? {
                return Ok(claim);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The variants for which a node, or a node after it, must be visited: those that have not
    /// begun, unless another process has claimed them, and open ones that lack the stage of this
    /// node or of a later one.
    pub(crate) fn unfinished(&self, node: NodeId) -> Vec<VariantId> {
        let plan = self.plan;
        let position = plan.nodes[node].step.position;
        let is_unfinished = |&id: &VariantId| match &self.states[id] {
            VariantState::Pending => true,
            VariantState::Open(folder) => {
                let steps = plan.variants[id].steps.iter().map(|step| step.position);
                steps
                    .filter(|&step| step >= position)
                    .any(|step| !folder.has_step(step))
            }
            VariantState::Busy | VariantState::Ended(_) => false,
        };
        let variants = plan.nodes[node].variants.iter().copied();
        variants.filter(is_unfinished).collect()
    }

    /// Whether a node's stage has still to be added to a variant.
    pub(crate) fn lacks(&self, id: VariantId, node: NodeId) -> bool {
        match &self.states[id] {
            VariantState::Open(folder) => !folder.has_step(self.plan.nodes[node].step.position),
            VariantState::Pending | VariantState::Busy => true,
            VariantState::Ended(_) => false,
        }
    }

    /// Whether every stage has been added to an open variant.
    pub(crate) fn has_all_stages(&self, id: VariantId) -> bool {
        let mut nodes = self.plan.variants[id].nodes.iter();
        self.is_open(id) && nodes.all(|&node| !self.lacks(id, node))
    }

    pub(crate) fn is_open(&self, id: VariantId) -> bool {
        matches!(self.states[id], VariantState::Open(_))
    }

    pub(crate) fn is_pending(&self, id: VariantId) -> bool {
        matches!(self.states[id], VariantState::Pending)
    }

    /// The variants that another process had claimed when this run last tried.
    pub(crate) fn busy(&self) -> Vec<VariantId> {
        self.select(|state| matches!(state, VariantState::Busy))
    }

    /// The variants that are pending or claimed by another process.
    pub(crate) fn not_begun(&self) -> Vec<VariantId> {
        self.select(|state| matches!(state, VariantState::Pending | VariantState::Busy))
    }

    pub(crate) fn all_open(&self) -> Vec<VariantId> {
        self.select(|state| matches!(state, VariantState::Open(_)))
    }

    /// Whether every variant has ended.
    pub(crate) fn have_ended(&self) -> bool {
        let mut states = self.states.iter();
        states.all(|state| matches!(state, VariantState::Ended(_)))
    }

    fn select(&self, is_selected: impl Fn(&VariantState) -> bool) -> Vec<VariantId> {
        let ids = self.plan.variants.ids();
        ids.filter(|&id| is_selected(&self.states[id])).collect()
    }

    /// Whether no process has the claim on a variant.
    pub(crate) fn is_released(&self, id: VariantId) -> Result<bool, FileError> {
        // The claim is dropped at once: `begin` takes it again.
        let claim = self.results.claim(&self.plan.variants[id].id)?;
        Ok(claim.is_some())
    }

    /// The log files for a stage that these variants share: those of open variants, and one that
    /// [`RunVariants::begin`] adds to the variants that begin later.
    pub(crate) fn log_paths(&self, node: NodeId, variants: &[VariantId]) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for &id in variants {
            if let VariantState::Open(folder) = &self.states[id] {
                paths.push(folder.log());
            }
        }
        if paths.len() < variants.len() {
            paths.push(self.logs.path(node));
        }
        paths
    }

    /// Keeps what a stage wrote for those of these variants that begin later. The caller holds the
    /// claim on the product.
    pub(crate) fn keep_for_later(&self, variants: &[VariantId], result: &mut StageResult) {
        let mut variants = variants.iter();
        if variants.any(|&id| self.is_pending(id))
            && let Err(error) = result.keep_files(self.results_folder())
        {
            tracing::debug!("the files of a shared stage are not kept: {error}");
        }
    }

    /// Adds the outcome of a stage to an open variant that lacks it.
    pub(crate) fn add_stage(
        &mut self,
        id: VariantId,
        result: &StageResult,
    ) -> Result<(), TableError> {
        let step = &self.plan.nodes[result.node].step;
        let product_key = &self.keys[result.node];
        let record = StageRecord {
            step: step.position,
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            key: product_key.key.clone(),
            code: keys::code_version(step.stage.tag()).to_owned(),
            kept: result.is_reused,
            cost: result.stored.manifest.cost,
            shared_by: result.shared_by,
        };
        match &mut self.states[id] {
            VariantState::Open(folder) if !folder.has_step(step.position) => folder.add_stage(
                record,
                &result.tables,
                &result.written_folder,
                result.stored.written_files(),
                &product_key.input_hashes,
            ),
            _ => Ok(()),
        }
    }

    /// Ends a variant and closes its folder. If the folder cannot be closed the variant has ended
    /// in this run anyway; its manifest on disk says that it is not complete.
    pub(crate) fn end(
        &mut self,
        id: VariantId,
        status: VariantStatus,
        error: Option<String>,
    ) -> Result<(), FileError> {
        let folder = self.folder_of(&self.plan.variants[id]);
        let old_state = std::mem::replace(&mut self.states[id], VariantState::Pending);
        self.set_ended(id, status, error.clone(), folder);
        if let VariantState::Open(open_folder) = old_state {
            let tables_folder = open_folder.finish(status, error.clone())?;
            self.set_ended(id, status, error, tables_folder);
        }
        Ok(())
    }

    fn set_ended(
        &mut self,
        id: VariantId,
        status: VariantStatus,
        error: Option<String>,
        tables_folder: PathBuf,
    ) {
        self.states[id] = VariantState::Ended(VariantEnding {
            status,
            error,
            tables_folder,
        });
    }

    /// How a variant ended; `None` if it has not.
    pub(crate) fn ending(&self, id: VariantId) -> Option<&VariantEnding> {
        match &self.states[id] {
            VariantState::Ended(ending) => Some(ending),
            VariantState::Pending | VariantState::Busy | VariantState::Open(_) => None,
        }
    }

    /// The number of variants that ended with this status.
    pub(crate) fn count(&self, status: VariantStatus) -> usize {
        self.plan
            .variants
            .ids()
            .filter_map(|id| self.ending(id))
            .filter(|ending| ending.status == status)
            .count()
    }

    /// The id of a single variant; `3 variants` for several.
    pub(crate) fn label(&self, variants: &[VariantId]) -> String {
        match variants {
            [one] => self.plan.variants[*one].id.clone(),
            several => format!("{} variants", several.len()),
        }
    }
}
