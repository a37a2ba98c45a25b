//! The variants of a run: each is pending, open or ended. Claims variants, so that two processes
//! never write to one folder, opens their results folders and closes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::plan::ids::{NodeId, PerVariant, VariantId};
use crate::plan::keys::ProductKeys;
use crate::plan::{Plan, Variant};
use crate::report::VARIANTS_FILE;
use crate::results::{ResultsFolder, StageRecord, VariantFolder, VariantManifest, VariantStatus};
use crate::run::node::NodeOutcome;
use secateur_base::files::FileError;
use secateur_base::locks::Claim;
use secateur_store::tables::TableError;

/// The time between two attempts to get a claim that another process has.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The variants of a plan, and the results folder that they are written to.
pub(crate) struct RunVariants<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    results: ResultsFolder,
    states: PerVariant<VariantState>,
}

enum VariantState {
    /// Not begun yet, or claimed by another process.
    Pending,
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
    /// An earlier run completed the variant, which has ended.
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
        Ok(Self {
            plan,
            keys,
            results: ResultsFolder::open(&folder)?,
            states: plan
                .variants
                .iter()
                .map(|_| VariantState::Pending)
                .collect(),
        })
    }

    pub(crate) fn results_folder(&self) -> &Path {
        self.results.folder()
    }

    /// Opens a variant, unless it is complete or claimed by another process. An error is a mistake
    /// in this program: the variant's own pipeline could not be written as TOML.
    pub(crate) fn begin(&mut self, id: VariantId) -> Result<BeginOutcome, toml::ser::Error> {
        let plan = self.plan;
        let variant = &plan.variants[id];
        let claim = match self.results.claim(&variant.id) {
            Ok(Some(claim)) => claim,
            Ok(None) => return Ok(BeginOutcome::Busy),
            Err(error) => return Ok(BeginOutcome::Failed(error)),
        };
        if !plan.is_forced(variant) && self.is_complete(variant) {
            self.set_ended(id, VariantStatus::Succeeded, None, self.folder_of(variant));
            return Ok(BeginOutcome::Complete);
        }
        let pipeline_toml = plan.variant_toml(variant)?;
        let manifest = VariantManifest::new(
            &variant.id,
            &plan.pipeline_text,
            &pipeline_toml,
            plan.settings.run.seed,
            plan.settings.run.device,
        );
        match self.results.begin_variant(claim, &pipeline_toml, manifest) {
            Ok(folder) => {
                self.states[id] = VariantState::Open(Box::new(folder));
                Ok(BeginOutcome::Opened)
            }
            Err(error) => Ok(BeginOutcome::Failed(error)),
        }
    }

    fn is_complete(&self, variant: &Variant) -> bool {
        self.results
            .is_complete(&variant.id, &self.keys.stage_keys(variant))
    }

    fn folder_of(&self, variant: &Variant) -> PathBuf {
        self.results.folder().join(&variant.id)
    }

    /// Waits until another process has released one of these variants, or until `is_stopping`.
    pub(crate) fn wait_for_release(
        &self,
        variants: &[VariantId],
        is_stopping: impl Fn() -> bool,
    ) -> Result<(), FileError> {
        while !is_stopping() {
            for &id in variants {
                // The claim is dropped at once: `begin` takes it again.
                if self.results.claim(&self.plan.variants[id].id)?.is_some() {
                    return Ok(());
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
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

    /// The open variants that a node is a part of.
    pub(crate) fn open_variants(&self, node: NodeId) -> Vec<VariantId> {
        let variants = self.plan.nodes[node].variants.iter().copied();
        variants.filter(|&id| self.is_open(id)).collect()
    }

    /// Every open variant.
    pub(crate) fn all_open_variants(&self) -> Vec<VariantId> {
        let variants = self.plan.variants.ids();
        variants.filter(|&id| self.is_open(id)).collect()
    }

    fn is_open(&self, id: VariantId) -> bool {
        matches!(self.states[id], VariantState::Open(_))
    }

    /// The log files of open variants.
    pub(crate) fn log_paths(&self, variants: &[VariantId]) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for &id in variants {
            if let VariantState::Open(folder) = &self.states[id] {
                paths.push(folder.log());
            }
        }
        paths
    }

    /// Adds the outcome of a stage to an open variant.
    pub(crate) fn add_stage(
        &mut self,
        id: VariantId,
        record: StageRecord,
        outcome: &NodeOutcome,
        input_hashes: &BTreeMap<String, String>,
    ) -> Result<(), TableError> {
        match &mut self.states[id] {
            VariantState::Open(folder) => {
                folder.add_stage(record, &outcome.tables, &outcome.stored, input_hashes)
            }
            VariantState::Pending | VariantState::Ended(_) => Ok(()),
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
            VariantState::Pending | VariantState::Open(_) => None,
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
