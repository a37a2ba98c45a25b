//! Walks the tree of stages. Variants with equal beginnings share the nodes of the tree: each node
//! runs once, and its outcome is added to every variant that it is a part of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::pipeline::problem::StageFailure;
use crate::plan::Plan;
use crate::plan::ids::{NodeId, PerNode, VariantId};
use crate::plan::keys::{self, ProductKeys};
use crate::plan::survey::{SecondsByType, Survey};
use crate::progress::{Progress, format_clock};
use crate::report::VariantSummary;
use crate::report::shape::SweepManifest;
use crate::results::{StageRecord, VariantStatus};
use crate::run::log::LogFiles;
use crate::run::node::{NodeOutcome, NodeRunner};
use crate::run::outcome::{RunError, RunOutcome, write_report};
use crate::run::status::{CurrentStage, RunState, StatusWriter, unix_seconds};
use crate::run::values::{LazyValues, NodeOutput};
use crate::run::variants::{BeginOutcome, RunVariants};
use crate::stages::StageError;
use crate::stages::step::Step;
use secateur_store::cache::ProductCache;

/// What a run reports to and what can stop it. None of it changes results.
#[derive(Clone, Default)]
pub struct RunContext {
    pub progress: Progress,
    pub log: LogFiles,
    /// Set by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
    /// Whether the first failure ends the run.
    pub fail_fast: bool,
}

/// Runs every variant that is not complete. A variant that fails does not stop the others, unless
/// `fail_fast` is set.
pub fn run(
    plan: &Plan,
    keys: &ProductKeys,
    survey: &Survey,
    context: &RunContext,
) -> Result<RunOutcome, RunError> {
    let settings = &plan.settings.run;
    let variants = RunVariants::open(plan, keys)?;
    let cache = ProductCache::open(&settings.cache_folder(), settings.cache_limit.as_u64())?;
    SweepManifest::from_plan(plan).write(variants.results_folder())?;
    let status_writer = StatusWriter::new(
        variants.results_folder(),
        &plan.name,
        plan.variants.len(),
        &context.progress,
    );
    let runner = NodeRunner {
        plan,
        keys,
        cache,
        progress: context.progress.clone(),
        stop: context.stop.clone(),
    };
    let mut walk = TreeWalk {
        plan,
        keys,
        survey,
        context,
        runner,
        variants,
        status_writer,
        visited_nodes: plan.nodes.iter().map(|_| false).collect(),
        measured_seconds: SecondsByType::new(),
        failures: Vec::new(),
    };
    let outcome = walk.run_rounds();
    if outcome.is_err() {
        walk.status_writer.update(|status| {
            status.state = RunState::Failed;
            status.now = None;
        });
    }
    outcome
}

struct TreeWalk<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    survey: &'a Survey,
    context: &'a RunContext,
    runner: NodeRunner<'a>,
    variants: RunVariants<'a>,
    status_writer: StatusWriter,
    /// Nodes that this run has run, restored, or tried to.
    visited_nodes: PerNode<bool>,
    /// The seconds of each stage that ran, by type; restored stages do not count.
    measured_seconds: SecondsByType,
    failures: Vec<StageFailure>,
}

impl TreeWalk<'_> {
    /// Walks the tree once for all variants that can be claimed, then again for those that another
    /// process had claimed, each time one of them is released.
    fn run_rounds(&mut self) -> Result<RunOutcome, RunError> {
        let plan = self.plan;
        let mut pending: Vec<VariantId> = plan.variants.ids().collect();
        loop {
            pending = self.begin_variants(&pending)?;
            for &root in &plan.roots {
                self.run_subtree(root, LazyValues::default());
            }
            if pending.is_empty() || self.is_stopping() {
                return self.finish();
            }
            self.variants
                .wait_for_release(&pending, || self.is_stopping())?;
        }
    }

    /// Opens the variants that are not complete. Returns those that another process has claimed.
    fn begin_variants(&mut self, variants: &[VariantId]) -> Result<Vec<VariantId>, RunError> {
        let mut busy = Vec::new();
        let mut ended_count = 0;
        for &id in variants {
            match self.variants.begin(id)? {
                BeginOutcome::Opened => {}
                BeginOutcome::Complete => ended_count += 1,
                BeginOutcome::Busy => busy.push(id),
                // The other variants can still run.
                BeginOutcome::Failed(error) => {
                    let first_step = &self.plan.variants[id].steps[0];
                    self.fail_variants(&[id], first_step, &error.into());
                    ended_count += 1;
                }
            }
        }
        let total = self.plan.variants.len();
        if ended_count > 0 {
            tracing::info!("{ended_count} of {total} variants are complete");
        }
        let is_first_round = variants.len() == total;
        if is_first_round && !busy.is_empty() {
            tracing::info!("{} variants are run by another process", busy.len());
        }
        self.update_status(None);
        Ok(busy)
    }

    /// Whether no further stage may begin.
    fn is_stopping(&self) -> bool {
        self.is_stop_requested() || (self.context.fail_fast && !self.failures.is_empty())
    }

    fn is_stop_requested(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed)
    }

    /// Runs a node, then the subtree of each of its children. The last child is visited by the loop
    /// and not by recursion: it takes over `values`, so that a product which it spends is freed,
    /// and a plan without branches needs one stack frame.
    fn run_subtree(&mut self, root: NodeId, mut values: LazyValues) {
        let plan = self.plan;
        let mut node_id = root;
        while !self.is_stopping() {
            let node = &plan.nodes[node_id];
            let variants = self.variants.open_variants(node_id);
            if variants.is_empty() {
                return;
            }
            match self.run_node(node_id, &variants, &values) {
                Ok(output) => values.apply_stage(node_id, &*node.step.stage, &output),
                Err(failure) => return self.fail_variants(&variants, &node.step, &failure),
            }
            self.complete_variants(node_id);
            let Some((&last_child, other_children)) = node.children.split_last() else {
                return;
            };
            for &child in other_children {
                self.run_subtree(child, values.clone());
            }
            node_id = last_child;
        }
    }

    /// Runs a stage, or restores its product from the cache, and adds its outcome to the variants
    /// that share it.
    fn run_node(
        &mut self,
        node: NodeId,
        variants: &[VariantId],
        values: &LazyValues,
    ) -> Result<NodeOutput, StageError> {
        let plan = self.plan;
        let step = &plan.nodes[node].step;
        let tag = step.stage.tag();
        self.context
            .log
            .set_paths(self.variants.log_paths(variants));
        self.update_status(Some((step, variants)));
        let _span = self.stage_span(step, variants).entered();
        tracing::debug!("{tag} begins");
        // `--force` applies to the first visit: a later round visits the node only for variants
        // that another process has released, and the product of the first visit is already new.
        let is_first_visit = !std::mem::replace(&mut self.visited_nodes[node], true);
        let is_forced = is_first_visit && plan.nodes[node].forced_by.is_some();
        let outcome = self.runner.run_or_reuse(node, is_forced, values)?;
        tracing::debug!(
            seconds = outcome.stored.manifest.cost.wall_seconds,
            kept = outcome.is_reused,
            "{tag} is done"
        );
        self.count_stage(step, is_first_visit, &outcome);
        self.add_to_variants(node, variants, &outcome);
        // Releases the claim on the product, which `trim` may then remove from the cache.
        let output = outcome.into_output();
        self.runner.cache.trim();
        Ok(output)
    }

    /// The span of a stage; its fields are printed with every event of the stage.
    fn stage_span(&self, step: &Step, variants: &[VariantId]) -> tracing::Span {
        let seconds_left = self.status_writer.status.seconds_left;
        tracing::info_span!(
            "stage",
            stage = step.stage.tag(),
            step = step.position,
            r#for = self.variants.label(variants),
            variant = self.status_writer.variant_progress(),
            remaining = seconds_left.map(format_clock)
        )
    }

    fn count_stage(&mut self, step: &Step, is_first_visit: bool, outcome: &NodeOutcome) {
        if !outcome.is_reused {
            let seconds = outcome.stored.manifest.cost.wall_seconds;
            let measured = self.measured_seconds.entry(step.stage.tag());
            measured.or_default().push(seconds);
        }
        let counts = &mut self.status_writer.status.stages;
        match (is_first_visit, outcome.is_reused) {
            (true, true) => counts.kept += 1,
            (true, false) => counts.run += 1,
            (false, _) => {}
        }
    }

    fn add_to_variants(&mut self, node: NodeId, variants: &[VariantId], outcome: &NodeOutcome) {
        let plan = self.plan;
        let step = &plan.nodes[node].step;
        let product_key = &self.keys[node];
        let record = StageRecord {
            step: step.position,
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            key: product_key.key.clone(),
            code: keys::code_version(step.stage.tag()).to_owned(),
            kept: outcome.is_reused,
            cost: outcome.stored.manifest.cost,
            shared_by: variants.len(),
        };
        for &id in variants {
            let added =
                self.variants
                    .add_stage(id, record.clone(), outcome, &product_key.input_hashes);
            // The other variants can still go on.
            if let Err(error) = added {
                self.fail_variants(&[id], step, &error.into());
            }
        }
    }

    /// Ends the open variants whose last stage is this node.
    fn complete_variants(&mut self, node: NodeId) {
        let plan = self.plan;
        for id in self.variants.open_variants(node) {
            let variant = &plan.variants[id];
            if variant.nodes.last() != Some(&node) {
                continue;
            }
            match self.variants.end(id, VariantStatus::Succeeded, None) {
                Ok(()) => tracing::info!("{} is complete", variant.id),
                Err(error) => self.fail_variants(&[id], &plan.nodes[node].step, &error.into()),
            }
        }
    }

    /// Ends variants because a stage failed or was interrupted. A failure is reported once for all
    /// variants that share the stage.
    fn fail_variants(&mut self, variants: &[VariantId], step: &Step, failure: &StageError) {
        if failure.is_interrupted() {
            self.end_unsuccessful(variants, VariantStatus::Interrupted, None);
            return;
        }
        let tag = step.stage.tag();
        let label = self.variants.label(variants);
        tracing::error!(r#for = label, "{tag} failed: {failure}");
        let error = format!("step {}: `{tag}` failed: {failure}", step.position);
        self.end_unsuccessful(variants, VariantStatus::Failed, Some(&error));
        self.failures.push(self.plan.sources.stage_failure(
            &step.span,
            label,
            step.position,
            tag,
            failure.to_string(),
        ));
    }

    fn end_unsuccessful(
        &mut self,
        variants: &[VariantId],
        status: VariantStatus,
        error: Option<&str>,
    ) {
        for &id in variants {
            if let Err(file_error) = self.variants.end(id, status, error.map(str::to_owned)) {
                tracing::error!(
                    variant = self.plan.variants[id].id,
                    "its manifest cannot be written: {file_error}"
                );
            }
        }
    }

    /// Updates `status.json` and the headline; `current` is the stage that begins, and its
    /// variants.
    fn update_status(&mut self, current: Option<(&Step, &[VariantId])>) {
        let succeeded = self.variants.count(VariantStatus::Succeeded);
        let failed = self.variants.count(VariantStatus::Failed);
        let is_remaining = |node: NodeId| {
            !self.visited_nodes[node] && !self.variants.open_variants(node).is_empty()
        };
        let (remaining_stages, seconds_left) =
            self.survey
                .remaining_stages(self.plan, is_remaining, &self.measured_seconds);
        let now = current.map(|(step, variants)| CurrentStage {
            step: step.position,
            stage: step.stage.tag(),
            variants: variants
                .iter()
                .map(|&id| self.plan.variants[id].id.clone())
                .collect(),
            since: unix_seconds(),
        });
        self.status_writer.update(|status| {
            status.variants.succeeded = succeeded;
            status.variants.failed = failed;
            status.stages.left = remaining_stages;
            status.seconds_left = seconds_left;
            status.now = now;
        });
    }

    /// Ends the variants that are still open, and writes the report of the sweep.
    fn finish(&mut self) -> Result<RunOutcome, RunError> {
        let is_stop_requested = self.is_stop_requested();
        self.interrupt_open_variants(is_stop_requested);
        self.context.log.set_paths([]);
        self.update_status(None);
        let (variants, report) = write_report(self.plan, self.keys, &self.variants)?;
        let is_succeeded = |variant: &VariantSummary| variant.status == VariantStatus::Succeeded;
        let is_failed = |variant: &VariantSummary| variant.status == VariantStatus::Failed;
        let is_interrupted = is_stop_requested && !variants.iter().all(is_succeeded);
        let state = if is_interrupted {
            RunState::Interrupted
        } else if variants.iter().any(is_failed) {
            RunState::Failed
        } else {
            RunState::Succeeded
        };
        self.status_writer.update(|status| status.state = state);
        Ok(RunOutcome {
            variants,
            failures: std::mem::take(&mut self.failures),
            is_interrupted,
            report,
        })
    }

    /// Ends open variants as interrupted: after a stop request, or after the first failure under
    /// `--fail-fast`.
    fn interrupt_open_variants(&mut self, is_stop_requested: bool) {
        let reason = match self.failures.first() {
            Some(first) if !is_stop_requested => Some(format!(
                "not run: {} failed, and --fail-fast was given",
                first.variant
            )),
            _ => None,
        };
        let open_variants = self.variants.all_open_variants();
        self.end_unsuccessful(
            &open_variants,
            VariantStatus::Interrupted,
            reason.as_deref(),
        );
    }
}
