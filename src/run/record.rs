//! The record of a run: the state of its variants, its failures and its status.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::pipeline::problem::StageFailure;
use crate::plan::Plan;
use crate::plan::ids::{NodeId, PerNode, VariantId};
use crate::plan::keys::ProductKeys;
use crate::plan::survey::{SecondsByType, Survey};
use crate::progress::format_clock;
use crate::report::VariantSummary;
use crate::report::shape::sweep_manifest;
use crate::results::VariantStatus;
use crate::run::context::RunContext;
use crate::run::node::StageResult;
use crate::run::outcome::{RunError, RunOutcome, write_report};
use crate::run::status::StatusWriter;
use crate::run::status_file::{CurrentStage, RunState, unix_seconds};
use crate::run::variants::{BeginOutcome, RunVariants};
use crate::stages::StageError;
use crate::stages::step::Step;

/// What a run has done so far.
pub(crate) struct RunRecord<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    survey: &'a Survey,
    context: &'a RunContext,
    pub(super) variants: RunVariants<'a>,
    pub(super) status_writer: StatusWriter,
    /// Nodes that this run has run, restored, or tried to.
    pub(super) visited_nodes: PerNode<bool>,
    /// The seconds of each stage that ran, by type; restored stages do not count.
    measured_seconds: SecondsByType,
    failures: Vec<StageFailure>,
}

impl<'a> RunRecord<'a> {
    /// The record of a run that begins: opens the results folder, and describes the sweep there.
    pub(super) fn new(
        plan: &'a Plan,
        keys: &'a ProductKeys,
        survey: &'a Survey,
        context: &'a RunContext,
    ) -> Result<Self, RunError> {
        let variants = RunVariants::open(plan, keys)?;
        sweep_manifest(plan).write(variants.results_folder())?;
        let status_writer = StatusWriter::new(
            variants.results().clone(),
            &plan.name,
            plan.variants.len(),
            &context.progress,
        )?;
        Ok(Self {
            plan,
            keys,
            survey,
            context,
            variants,
            status_writer,
            visited_nodes: plan.nodes.iter().map(|_| false).collect(),
            measured_seconds: SecondsByType::new(),
            failures: Vec::new(),
        })
    }

    /// Whether no further stage may begin.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stop_requested() || (self.context.fail_fast && !self.failures.is_empty())
    }

    fn is_stop_requested(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed)
    }

    /// Opens a variant, unless another run has it, and adds the stages that ran before it was open.
    pub(super) fn open_variant(
        &mut self,
        id: VariantId,
        earlier: &[Rc<StageResult>],
    ) -> Result<(), RunError> {
        match self.variants.begin(id, earlier)? {
            BeginOutcome::Opened => {
                for result in earlier {
                    self.add_to_variants(result, &[id]);
                }
            }
            BeginOutcome::Complete | BeginOutcome::Busy => {}
            // The other variants can still run.
            BeginOutcome::Failed(error) => {
                let first_step = &self.plan.variants[id].steps[0];
                self.fail_variants(&[id], first_step, &error.into());
            }
        }
        Ok(())
    }

    /// The span of a stage; its fields are printed with every event of the stage. It has the level
    /// of errors, so that a filter that shows only errors or warnings keeps it.
    pub(super) fn stage_span(&self, step: &Step, variants: &[VariantId]) -> tracing::Span {
        let seconds_left = self.status_writer.status.seconds_left;
        tracing::error_span!(
            "stage",
            stage = step.stage.tag(),
            step = step.position,
            r#for = self.variants.label(variants),
            variant = self.status_writer.variant_progress(),
            remaining = seconds_left.map(format_clock)
        )
    }

    pub(super) fn count_stage(&mut self, step: &Step, is_first_visit: bool, result: &StageResult) {
        if !result.is_reused {
            let seconds = result.stored.manifest.cost.wall_seconds;
            let measured = self.measured_seconds.entry(step.stage.tag());
            measured.or_default().push(seconds);
        }
        let counts = &mut self.status_writer.status.stages;
        match (is_first_visit, result.is_reused) {
            (true, true) => counts.kept += 1,
            (true, false) => counts.run += 1,
            (false, _) => {}
        }
    }

    /// Adds the outcome of a stage to those of these variants that are open and lack it.
    pub(super) fn add_to_variants(&mut self, result: &StageResult, variants: &[VariantId]) {
        let step = &self.plan.nodes[result.node].step;
        for &id in variants {
            // The other variants can still go on.
            if let Err(error) = self.variants.add_stage(id, result) {
                self.fail_variants(&[id], step, &error.into());
            }
        }
    }

    /// Ends the open variants of a node to which every stage has been added.
    pub(super) fn complete_variants(&mut self, node: NodeId) {
        let plan = self.plan;
        for &id in &plan.nodes[node].variants {
            if !self.variants.has_all_stages(id) {
                continue;
            }
            match self.variants.end(id, VariantStatus::Succeeded, None) {
                Ok(()) => tracing::info!("{} is complete", plan.variants[id].id),
                Err(error) => self.fail_variants(&[id], &plan.nodes[node].step, &error.into()),
            }
        }
    }

    /// Ends the variants of a node whose stage failed or was interrupted, except those that another
    /// run has claimed. Interrupted variants that have not begun leave no folder.
    pub(super) fn fail_node(
        &mut self,
        node: NodeId,
        failure: &StageError,
        earlier: &[Rc<StageResult>],
    ) -> Result<(), RunError> {
        let variants = self.variants.unfinished(node);
        if !failure.is_interrupted() {
            for &id in &variants {
                if self.variants.is_pending(id) {
                    self.open_variant(id, earlier)?;
                }
            }
        }
        let is_open = |id: &VariantId| self.variants.is_open(*id);
        let open_variants: Vec<VariantId> = variants.into_iter().filter(is_open).collect();
        if !open_variants.is_empty() {
            self.fail_variants(&open_variants, &self.plan.nodes[node].step, failure);
        }
        Ok(())
    }

    /// Ends variants because a stage failed or was interrupted. A failure is reported once for all
    /// variants that share the stage.
    pub(super) fn fail_variants(
        &mut self,
        variants: &[VariantId],
        step: &Step,
        failure: &StageError,
    ) {
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
    pub(super) fn update_status(&mut self, current: Option<(&Step, &[VariantId])>) {
        let succeeded = self.variants.count(VariantStatus::Succeeded);
        let failed = self.variants.count(VariantStatus::Failed);
        let is_remaining =
            |node: NodeId| !self.visited_nodes[node] && !self.variants.unfinished(node).is_empty();
        let (remaining_stages, seconds_left) =
            self.survey
                .remaining_stages(self.plan, is_remaining, &self.measured_seconds);
        let now = current.map(|(step, variants)| CurrentStage {
            step: step.position,
            stage: step.stage.tag().to_owned(),
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
    pub(super) fn finish(&mut self) -> Result<RunOutcome, RunError> {
        let is_stop_requested = self.is_stop_requested();
        if !is_stop_requested && let Some(first) = self.failures.first() {
            let reason = format!(
                "not run: {} failed, and --fail-fast was given",
                first.variant
            );
            self.skip_variants(&reason)?;
        }
        let open_variants = self.variants.all_open();
        self.end_unsuccessful(&open_variants, VariantStatus::Interrupted, None);
        self.context.log.set_paths([]);
        self.update_status(None);
        let (variants, report) = write_report(self.plan, self.keys, &self.variants)?;
        let total = self.plan.variants.len();
        let is_interrupted =
            is_stop_requested && self.variants.count(VariantStatus::Succeeded) < total;
        let is_failed = |variant: &VariantSummary| variant.status == VariantStatus::Failed;
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

    /// Ends the variants that the first failure under `--fail-fast` left open or not begun.
    fn skip_variants(&mut self, reason: &str) -> Result<(), RunError> {
        for id in self.variants.not_begun() {
            self.open_variant(id, &[])?;
        }
        let open_variants = self.variants.all_open();
        self.end_unsuccessful(&open_variants, VariantStatus::Interrupted, Some(reason));
        Ok(())
    }
}
