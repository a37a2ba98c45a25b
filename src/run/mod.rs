//! The spine: walks the tree of variants and gives what each stage made to those that share it. Values go from stage to stage
//! here and nowhere else; `make.rs` makes them.

pub mod execute;
pub mod log;
pub mod node;
pub mod status;
pub mod values;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::pipeline::problem::StageFailure;
use crate::plan::ids::{NodeId, PerNode, PerVariant, VariantId};
use crate::plan::keys::{self, ProductKeys};
use crate::plan::survey::{SecondsByType, Survey};
use crate::plan::{Plan, Variant};
use crate::progress::{Progress, format_clock};
use crate::report::results::{
    ResultsFolder, StageRecord, VariantFolder, VariantManifest, VariantStatus,
};
use crate::report::shape::SweepManifest;
use crate::report::{self, ReportError, VariantSummary};
use crate::run::execute::StageError;
use crate::run::log::LogFiles;
use crate::run::node::NodeRunner;
use crate::run::status::{CurrentStage, RunState, StatusWriter};
use crate::run::values::{LazyValues, NodeOutput};
use crate::stages::registry::Step;
use secateur_base::files::FileError;
use secateur_store::cache::ProductCache;

/// What surrounds a run.
#[derive(Clone, Default)]
pub struct RunContext {
    pub progress: Progress,
    pub log: LogFiles,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
    /// Whether the first failure ends the run.
    pub fail_fast: bool,
}

/// What became of the variants.
#[derive(Debug)]
pub struct RunOutcome {
    /// In the order of the plan.
    pub variants: Vec<VariantSummary>,
    pub failures: Vec<StageFailure>,
    pub is_interrupted: bool,
    /// The table of the sweep, as a person reads it.
    pub summary: String,
    pub folder: PathBuf,
}

/// The run itself could not go on: not a stage, but the place of its results.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("the variant's own pipeline cannot be written: {0}")]
    Resolve(#[from] toml::ser::Error),
}

/// Between two looks at a variant that another run works on.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs every variant that is not complete; one that fails does not stop the others.
pub fn run(
    plan: &Plan,
    recipes: &ProductKeys,
    survey: &Survey,
    surroundings: &RunContext,
) -> Result<RunOutcome, RunError> {
    let settings = &plan.settings.run;
    let results = ResultsFolder::open(&settings.results.join(&plan.name))?;
    let cache = ProductCache::open(&settings.cache_folder(), settings.cache_limit.as_u64())?;
    SweepManifest::from_plan(plan).write(results.folder())?;
    let teller = StatusWriter::new(
        results.folder(),
        &plan.name,
        plan.variants.len(),
        &surroundings.progress,
    );
    let mut walk = TreeWalk {
        plan,
        keys: recipes,
        survey,
        context: surroundings,
        runner: NodeRunner {
            plan,
            keys: recipes,
            cache,
            progress: surroundings.progress.clone(),
            stop: surroundings.stop.clone(),
        },
        results,
        status_writer: teller,
        open_folders: plan.variants.iter().map(|_| None).collect(),
        endings: plan.variants.iter().map(|_| None).collect(),
        finished_nodes: plan.nodes.iter().map(|_| false).collect(),
        measured_seconds: SecondsByType::new(),
        failures: Vec::new(),
    };
    let outcome = walk.run_rounds();
    if outcome.is_err() {
        walk.status_writer
            .update(|status| (status.state, status.now) = (RunState::Failed, None));
    }
    outcome
}

struct TreeWalk<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    survey: &'a Survey,
    context: &'a RunContext,
    runner: NodeRunner<'a>,
    results: ResultsFolder,
    status_writer: StatusWriter,
    /// Variants that are being built.
    open_folders: PerVariant<Option<VariantFolder>>,
    /// Those that have ended.
    endings: PerVariant<Option<VariantEnding>>,
    /// Nodes that were run, or taken from what is kept.
    finished_nodes: PerNode<bool>,
    /// What the stages of each type took that ran.
    measured_seconds: SecondsByType,
    failures: Vec<StageFailure>,
}

/// How a variant ended, why, and where its tables lie.
type VariantEnding = (VariantStatus, Option<String>, PathBuf);

impl TreeWalk<'_> {
    /// Rounds down the tree: the first for all variants, further ones for those that another run had begun.
    fn run_rounds(&mut self) -> Result<RunOutcome, RunError> {
        let mut waiting: Vec<VariantId> = self.plan.variants.ids().collect();
        loop {
            waiting = self.begin_variants(&waiting)?;
            for &root in &self.plan.roots {
                self.run_subtree(root, LazyValues::default());
            }
            if waiting.is_empty() || self.is_stopping() {
                return self.finish();
            }
            self.wait_for_any(&waiting)?;
        }
    }

    /// Begins the variants that are not complete. Returns those that another run works on.
    fn begin_variants(&mut self, variants: &[VariantId]) -> Result<Vec<VariantId>, RunError> {
        let mut busy = Vec::new();
        for &v in variants {
            let variant = &self.plan.variants[v];
            let claim = match self.results.claim(&variant.id) {
                Ok(Some(claim)) => claim,
                Ok(None) => {
                    busy.push(v);
                    continue;
                }
                Err(error) => {
                    self.fail_variants(&[v], &variant.steps[0], &error.into());
                    continue;
                }
            };
            let folder = self.results.folder().join(&variant.id);
            if !self.plan.is_forced(variant)
                && self
                    .results
                    .is_complete(&variant.id, &self.keys.stage_keys(variant))
            {
                self.endings[v] = Some((VariantStatus::Succeeded, None, folder));
                continue;
            }
            let resolved = self.plan.variant_toml(variant)?;
            match self.results.begin_variant(
                claim,
                &resolved,
                VariantManifest::new(self.plan, variant, &resolved),
            ) {
                Ok(begun) => self.open_folders[v] = Some(begun),
                // One variant's folder is no reason for the others to fail.
                Err(error) => self.fail_variants(&[v], &variant.steps[0], &error.into()),
            }
        }
        let complete = variants
            .iter()
            .filter(|&&v| self.endings[v].is_some())
            .count();
        if complete > 0 {
            tracing::info!(
                "{complete} of {} variants are complete",
                self.plan.variants.len()
            );
        }
        if !busy.is_empty() && variants.len() == self.plan.variants.len() {
            tracing::info!(
                "{} variants are left to another run that works on them",
                busy.len()
            );
        }
        self.update_status(None);
        Ok(busy)
    }

    /// Until another run lets go of one of its variants.
    fn wait_for_any(&self, variants: &[VariantId]) -> Result<(), RunError> {
        while !self.is_stopping() {
            for &v in variants {
                if self.results.claim(&self.plan.variants[v].id)?.is_some() {
                    return Ok(());
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Whether no further stage may begin.
    fn is_stopping(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed)
            || (self.context.fail_fast && !self.failures.is_empty())
    }

    /// The variants of a node that are being built.
    fn open_variants(&self, at: NodeId) -> Vec<VariantId> {
        self.plan.nodes[at]
            .variants
            .iter()
            .copied()
            .filter(|&v| self.open_folders[v].is_some())
            .collect()
    }

    /// Runs a node, then what comes after it in each of its branches.
    fn run_subtree(&mut self, mut at: NodeId, mut values: LazyValues) {
        while !self.is_stopping() {
            let node = &self.plan.nodes[at];
            let variants = self.open_variants(at);
            if variants.is_empty() {
                return;
            }
            match self.run_node(at, &variants, &values) {
                Ok(made) => values.apply_stage(at, &node.step.stage, &made),
                Err(failure) => return self.fail_variants(&variants, &node.step, &failure),
            }
            for variant in self
                .open_variants(at)
                .into_iter()
                .filter(|&v| self.plan.variants[v].nodes.last() == Some(&at))
            {
                if let Err(error) = self.end_variant(variant, VariantStatus::Succeeded, None) {
                    self.fail_variants(&[variant], &node.step, &error.into());
                }
            }
            let Some((&last, others)) = node.children.split_last() else {
                return;
            };
            others
                .iter()
                .for_each(|&child| self.run_subtree(child, values.clone()));
            at = last;
        }
    }

    /// Runs one stage, or takes what is kept of it, and gives what it measured and wrote to every variant that shares it.
    fn run_node(
        &mut self,
        at: NodeId,
        variants: &[VariantId],
        values: &LazyValues,
    ) -> Result<NodeOutput, StageError> {
        let step = &self.plan.nodes[at].step;
        self.context.log.set_paths(
            variants
                .iter()
                .filter_map(|&v| self.open_folders[v].as_ref().map(VariantFolder::log)),
        );
        self.update_status(Some((step, variants)));
        let whose = self.variants_label(variants);
        let left = self.status_writer.status.seconds_left.map(format_clock);
        let _span = tracing::info_span!(
            "stage",
            step = step.position,
            r#for = whose,
            variant = self.status_writer.variant_progress(),
            left
        )
        .entered();
        tracing::debug!("{} begins", step.stage.tag());
        // Forced once: a second round is for variants that another run let go of.
        let first = !std::mem::replace(&mut self.finished_nodes[at], true);
        let forced = first && self.plan.nodes[at].forced_by.is_some();
        let ran = self.runner.run_or_reuse(at, forced, values)?;
        let cost = ran.stored.manifest.cost;
        if !ran.is_reused {
            self.measured_seconds
                .entry(step.stage.tag())
                .or_default()
                .push(cost.wall_seconds);
        }
        tracing::debug!(
            seconds = cost.wall_seconds,
            kept = ran.is_reused,
            "{} is done",
            step.stage.tag()
        );
        let recipe = self.keys.get(at);
        let record = StageRecord {
            step: step.position,
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            key: recipe.key.clone(),
            code: keys::code_version(step.stage.tag()).to_owned(),
            kept: ran.is_reused,
            cost,
            shared_by: variants.len(),
        };
        for &v in variants {
            let Some(folder) = &mut self.open_folders[v] else {
                continue;
            };
            // One variant's folder is no reason for the others to fail.
            if let Err(error) = folder.add_stage(
                record.clone(),
                &ran.tables,
                &ran.stored,
                &recipe.input_hashes,
            ) {
                self.fail_variants(&[v], step, &error.into());
            }
        }
        let stages = &mut self.status_writer.status.stages;
        match (first, ran.is_reused) {
            (true, true) => stages.kept += 1,
            (true, false) => stages.run += 1,
            (false, _) => {}
        }
        let made = ran.into_output();
        self.runner.cache.trim();
        Ok(made)
    }

    /// Records that variants cannot go on, and says so once.
    fn fail_variants(&mut self, variants: &[VariantId], step: &Step, failure: &StageError) {
        let interrupted = failure.is_interrupted();
        let whose = self.variants_label(variants);
        if !interrupted {
            tracing::error!(r#for = whose, "{} failed: {failure}", step.stage.tag());
        }
        let status = if interrupted {
            VariantStatus::Interrupted
        } else {
            VariantStatus::Failed
        };
        for &v in variants {
            let why = format!(
                "step {}: `{}` failed: {failure}",
                step.position,
                step.stage.tag()
            );
            if let Err(error) = self.end_variant(v, status, (!interrupted).then_some(why)) {
                tracing::error!(
                    variant = self.plan.variants[v].id,
                    "its manifest cannot be written: {error}"
                );
            }
        }
        if !interrupted {
            let sources = &self.plan.sources;
            let reason = failure.to_string();
            self.failures.push(sources.stage_failure(
                &step.span,
                whose,
                step.position,
                step.stage.tag(),
                reason,
            ));
        }
    }

    /// A variant by its name, several by their number.
    fn variants_label(&self, variants: &[VariantId]) -> String {
        match variants {
            [one] => self.plan.variants[*one].id.clone(),
            _ => format!("{} variants", variants.len()),
        }
    }

    /// Ends a variant. Nobody may take it for complete before it is, so what is written last says so.
    fn end_variant(
        &mut self,
        v: VariantId,
        status: VariantStatus,
        error: Option<String>,
    ) -> Result<(), FileError> {
        let id = &self.plan.variants[v].id;
        let mut place = self.results.folder().join(id);
        self.endings[v] = Some((status, error.clone(), place.clone()));
        if let Some(folder) = self.open_folders[v].take() {
            place = folder.finish(status, error.clone())?;
        }
        self.endings[v] = Some((status, error, place));
        if status == VariantStatus::Succeeded {
            tracing::info!("{id} is complete");
        }
        Ok(())
    }

    /// Says where the run is: which stage begins, for which variants.
    fn update_status(&mut self, begins: Option<(&Step, &[VariantId])>) {
        let count = |status| {
            self.endings
                .iter()
                .flatten()
                .filter(|ended| ended.0 == status)
                .count()
        };
        let (succeeded, failed) = (
            count(VariantStatus::Succeeded),
            count(VariantStatus::Failed),
        );
        let is_left = |at: NodeId| !self.finished_nodes[at] && !self.open_variants(at).is_empty();
        let (left, seconds_left) =
            self.survey
                .remaining_stages(self.plan, is_left, &self.measured_seconds);
        let now = begins.map(|(step, variants)| CurrentStage {
            step: step.position,
            stage: step.stage.tag(),
            variants: variants
                .iter()
                .map(|&v| self.plan.variants[v].id.clone())
                .collect(),
            since: status::unix_seconds(),
        });
        self.status_writer.update(|status| {
            (status.variants.succeeded, status.variants.failed) = (succeeded, failed);
            (status.stages.left, status.seconds_left) = (left, seconds_left);
            status.now = now;
        });
    }

    /// Ends what has not ended, and writes the table of the sweep.
    fn finish(&mut self) -> Result<RunOutcome, RunError> {
        let stopped = self.context.stop.load(Ordering::Relaxed);
        let first = self.failures.first().filter(|_| !stopped);
        let why = first.map(|first| {
            format!(
                "not run: {} failed, and --fail-fast was given",
                first.variant
            )
        });
        for v in self.plan.variants.ids() {
            if self.open_folders[v].is_some()
                && let Err(error) = self.end_variant(v, VariantStatus::Interrupted, why.clone())
            {
                tracing::error!(
                    variant = self.plan.variants[v].id,
                    "its manifest cannot be written: {error}"
                );
            }
        }
        self.context.log.set_paths([]);
        self.update_status(None);
        // Whoever writes the table last has seen all that was there before.
        let _claim = loop {
            match self.results.claim(report::VARIANTS_FILE)? {
                Some(claim) => break claim,
                None => std::thread::sleep(POLL_INTERVAL),
            }
        };
        let folder = self.results.folder().to_owned();
        let summary = |(variant, ended): (&Variant, &Option<VariantEnding>)| match ended.clone() {
            Some((status, error, tables)) => {
                VariantSummary::new(variant.into(), status, error, tables)
            }
            // another run had it to the end
            None => VariantSummary::from_folder(variant.into(), &folder).unwrap_or_else(|| {
                VariantSummary::new(
                    variant.into(),
                    VariantStatus::Interrupted,
                    None,
                    folder.join(&variant.id),
                )
            }),
        };
        let variants: Vec<VariantSummary> = self
            .plan
            .variants
            .iter()
            .zip(&self.endings)
            .map(summary)
            .collect();
        let others = report::unselected_summaries(self.plan, &folder, &self.keys.input_hashes());
        let mut rows: Vec<VariantSummary> = variants.iter().cloned().chain(others).collect();
        rows.sort_by_key(|row| {
            self.plan
                .variant_order
                .iter()
                .position(|id| *id == row.description.id)
        });
        let summary = report::write_report_tables(&folder, &rows)?;
        let is_any = |status| variants.iter().any(|variant| variant.status == status);
        let (failed, interrupted) = (
            is_any(VariantStatus::Failed),
            stopped
                && variants
                    .iter()
                    .any(|v| v.status != VariantStatus::Succeeded),
        );
        self.status_writer.update(|status| {
            status.state = match (interrupted, failed) {
                (true, _) => RunState::Interrupted,
                (false, true) => RunState::Failed,
                (false, false) => RunState::Succeeded,
            };
        });
        Ok(RunOutcome {
            variants,
            failures: std::mem::take(&mut self.failures),
            is_interrupted: interrupted,
            summary,
            folder,
        })
    }
}
