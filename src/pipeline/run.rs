//! The spine: walks the tree of variants and gives what each stage made to those that share it. Values go from stage to stage
//! here and nowhere else; `make.rs` makes them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cache::Cache;
use super::execute::StageError;
use super::log::LogFiles;
use super::make::Maker;
use super::plan::{Plan, Variant};
use super::problem::StageFailed;
use super::recipe::{self, Recipes};
use super::report::{self, ReportError, VariantSummary};
use super::results::{Manifest, Results, StageRecord, Status, VariantFolder};
use super::shape::Sweep;
use super::stage::Step;
use super::status::{Now, RunState, Teller};
use super::survey::{Costs, Survey};
use super::values::{Made, Values};
use crate::files::FileError;
use crate::progress::{Progress, clock};

/// What surrounds a run.
#[derive(Clone, Default)]
pub struct Surroundings {
    pub progress: Progress,
    pub log: LogFiles,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
    /// Whether the first failure ends the run.
    pub fail_fast: bool,
}

/// What became of the variants.
#[derive(Debug)]
pub struct Outcome {
    /// In the order of the plan.
    pub variants: Vec<VariantSummary>,
    pub failures: Vec<StageFailed>,
    pub interrupted: bool,
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
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Runs every variant that is not complete; one that fails does not stop the others.
pub fn run(plan: &Plan, recipes: &Recipes, survey: &Survey, surroundings: &Surroundings) -> Result<Outcome, RunError> {
    let settings = &plan.settings.run;
    let results = Results::open(&settings.results.join(&plan.name))?;
    let cache = Cache::open(&settings.cache(), settings.cache_limit.as_u64())?;
    Sweep::of(plan).write(results.folder())?;
    let teller = Teller::new(results.folder(), &plan.name, plan.variants.len(), &surroundings.progress);
    let mut walk = Walk {
        plan,
        recipes,
        survey,
        surroundings,
        maker: Maker { plan, recipes, cache, progress: surroundings.progress.clone(), stop: surroundings.stop.clone() },
        results,
        teller,
        folders: plan.variants.iter().map(|_| None).collect(),
        ended: vec![None; plan.variants.len()],
        done: vec![false; plan.nodes.len()],
        costs: Costs::new(),
        failures: Vec::new(),
    };
    let outcome = walk.go();
    if outcome.is_err() {
        walk.teller.tell(|status| (status.state, status.now) = (RunState::Failed, None));
    }
    outcome
}

struct Walk<'a> {
    plan: &'a Plan,
    recipes: &'a Recipes,
    survey: &'a Survey,
    surroundings: &'a Surroundings,
    maker: Maker<'a>,
    results: Results,
    teller: Teller,
    /// Variants that are being built.
    folders: Vec<Option<VariantFolder>>,
    /// Those that have ended.
    ended: Vec<Option<Ended>>,
    /// Nodes that were run, or taken from what is kept.
    done: Vec<bool>,
    /// What the stages of each type took that ran.
    costs: Costs,
    failures: Vec<StageFailed>,
}

/// How a variant ended, why, and where its tables lie.
type Ended = (Status, Option<String>, PathBuf);

impl Walk<'_> {
    /// Rounds down the tree: the first for all variants, further ones for those that another run had begun.
    fn go(&mut self) -> Result<Outcome, RunError> {
        let mut waiting: Vec<usize> = (0..self.plan.variants.len()).collect();
        loop {
            waiting = self.begin(&waiting)?;
            for &root in &self.plan.roots {
                self.descend(root, Values::default());
            }
            if waiting.is_empty() || self.is_over() {
                return self.finish();
            }
            self.wait_for(&waiting)?;
        }
    }

    /// Begins the variants that are not complete. Returns those that another run works on.
    fn begin(&mut self, variants: &[usize]) -> Result<Vec<usize>, RunError> {
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
                    self.fail(&[v], &variant.steps[0], &error.into());
                    continue;
                }
            };
            let folder = self.results.folder().join(&variant.id);
            if !self.plan.is_forced(variant) && self.results.is_complete(&variant.id, &self.recipes.keys(variant)) {
                self.ended[v] = Some((Status::Succeeded, None, folder));
                continue;
            }
            let resolved = self.plan.resolved(variant)?;
            match self.results.begin(claim, &resolved, Manifest::new(self.plan, variant, &resolved)) {
                Ok(begun) => self.folders[v] = Some(begun),
                // One variant's folder is no reason for the others to fail.
                Err(error) => self.fail(&[v], &variant.steps[0], &error.into()),
            }
        }
        let complete = variants.iter().filter(|&&v| self.ended[v].is_some()).count();
        if complete > 0 {
            tracing::info!("{complete} of {} variants are complete", self.plan.variants.len());
        }
        if !busy.is_empty() && variants.len() == self.plan.variants.len() {
            tracing::info!("{} variants are left to another run that works on them", busy.len());
        }
        self.tell(None);
        Ok(busy)
    }

    /// Until another run lets go of one of its variants.
    fn wait_for(&self, variants: &[usize]) -> Result<(), RunError> {
        while !self.is_over() {
            for &v in variants {
                if self.results.claim(&self.plan.variants[v].id)?.is_some() {
                    return Ok(());
                }
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        Ok(())
    }

    /// Whether no further stage may begin.
    fn is_over(&self) -> bool {
        self.surroundings.stop.load(Ordering::Relaxed) || (self.surroundings.fail_fast && !self.failures.is_empty())
    }

    /// The variants of a node that are being built.
    fn open(&self, at: usize) -> Vec<usize> {
        self.plan.nodes[at].variants.iter().copied().filter(|&v| self.folders[v].is_some()).collect()
    }

    /// Runs a node, then what comes after it in each of its branches.
    fn descend(&mut self, mut at: usize, mut values: Values) {
        while !self.is_over() {
            let node = &self.plan.nodes[at];
            let variants = self.open(at);
            if variants.is_empty() {
                return;
            }
            match self.stage(at, &variants, &values) {
                Ok(made) => values.advance(at, &node.step.stage, &made),
                Err(failure) => return self.fail(&variants, &node.step, &failure),
            }
            for variant in self.open(at).into_iter().filter(|&v| self.plan.variants[v].path.last() == Some(&at)) {
                if let Err(error) = self.end(variant, Status::Succeeded, None) {
                    self.fail(&[variant], &node.step, &error.into());
                }
            }
            let Some((&last, others)) = node.children.split_last() else { return };
            others.iter().for_each(|&child| self.descend(child, values.clone()));
            at = last;
        }
    }

    /// Runs one stage, or takes what is kept of it, and gives what it measured and wrote to every variant that shares it.
    fn stage(&mut self, at: usize, variants: &[usize], values: &Values) -> Result<Made, StageError> {
        let step = &self.plan.nodes[at].step;
        self.surroundings.log.set(variants.iter().filter_map(|&v| self.folders[v].as_ref().map(VariantFolder::log)));
        self.tell(Some((step, variants)));
        let whose = self.whose(variants);
        let left = self.teller.status.seconds_left.map(clock);
        let _span =
            tracing::info_span!("stage", step = step.position, r#for = whose, variant = self.teller.variant(), left).entered();
        tracing::debug!("{} begins", step.stage.tag());
        // Forced once: a second round is for variants that another run let go of.
        let first = !std::mem::replace(&mut self.done[at], true);
        let forced = first && self.plan.nodes[at].forced.is_some();
        let ran = self.maker.outcome(at, forced, values)?;
        let cost = ran.kept.entry.cost;
        if !ran.reused {
            self.costs.entry(step.stage.tag()).or_default().push(cost.wall_seconds);
        }
        tracing::debug!(seconds = cost.wall_seconds, kept = ran.reused, "{} is done", step.stage.tag());
        let recipe = self.recipes.get(at);
        let record = StageRecord {
            step: step.position,
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            key: recipe.key.clone(),
            code: recipe::code(step.stage.tag()).to_owned(),
            kept: ran.reused,
            cost,
            shared_by: variants.len(),
        };
        for &v in variants {
            let Some(folder) = &mut self.folders[v] else { continue };
            // One variant's folder is no reason for the others to fail.
            if let Err(error) = folder.stage_done(record.clone(), &ran.tables, &ran.kept, &recipe.inputs) {
                self.fail(&[v], step, &error.into());
            }
        }
        let stages = &mut self.teller.status.stages;
        match (first, ran.reused) {
            (true, true) => stages.kept += 1,
            (true, false) => stages.run += 1,
            (false, _) => {}
        }
        let made = ran.handed_over();
        self.maker.cache.trim();
        Ok(made)
    }

    /// Records that variants cannot go on, and says so once.
    fn fail(&mut self, variants: &[usize], step: &Step, failure: &StageError) {
        let interrupted = failure.is_interrupted();
        let whose = self.whose(variants);
        if !interrupted {
            tracing::error!(r#for = whose, "{} failed: {failure}", step.stage.tag());
        }
        let status = if interrupted { Status::Interrupted } else { Status::Failed };
        for &v in variants {
            let why = format!("step {}: `{}` failed: {failure}", step.position, step.stage.tag());
            if let Err(error) = self.end(v, status, (!interrupted).then_some(why)) {
                tracing::error!(variant = self.plan.variants[v].id, "its manifest cannot be written: {error}");
            }
        }
        if !interrupted {
            let sources = &self.plan.sources;
            let reason = failure.to_string();
            self.failures.push(sources.stage_failed(&step.span, whose, step.position, step.stage.tag(), reason));
        }
    }

    /// A variant by its name, several by their number.
    fn whose(&self, variants: &[usize]) -> String {
        match variants {
            [one] => self.plan.variants[*one].id.clone(),
            _ => format!("{} variants", variants.len()),
        }
    }

    /// Ends a variant. Nobody may take it for complete before it is, so what is written last says so.
    fn end(&mut self, v: usize, status: Status, error: Option<String>) -> Result<(), FileError> {
        let id = &self.plan.variants[v].id;
        let mut place = self.results.folder().join(id);
        self.ended[v] = Some((status, error.clone(), place.clone()));
        if let Some(folder) = self.folders[v].take() {
            place = folder.end(status, error.clone())?;
        }
        self.ended[v] = Some((status, error, place));
        if status == Status::Succeeded {
            tracing::info!("{id} is complete");
        }
        Ok(())
    }

    /// Says where the run is: which stage begins, for which variants.
    fn tell(&mut self, begins: Option<(&Step, &[usize])>) {
        let count = |status| self.ended.iter().flatten().filter(|ended| ended.0 == status).count();
        let (succeeded, failed) = (count(Status::Succeeded), count(Status::Failed));
        let is_left = |at: usize| !self.done[at] && !self.open(at).is_empty();
        let (left, seconds_left) = self.survey.left(self.plan, is_left, &self.costs);
        let now = begins.map(|(step, variants)| Now {
            step: step.position,
            stage: step.stage.tag(),
            variants: variants.iter().map(|&v| self.plan.variants[v].id.clone()).collect(),
            since: super::status::now(),
        });
        self.teller.tell(|status| {
            (status.variants.succeeded, status.variants.failed) = (succeeded, failed);
            (status.stages.left, status.seconds_left) = (left, seconds_left);
            status.now = now;
        });
    }

    /// Ends what has not ended, and writes the table of the sweep.
    fn finish(&mut self) -> Result<Outcome, RunError> {
        let stopped = self.surroundings.stop.load(Ordering::Relaxed);
        let first = self.failures.first().filter(|_| !stopped);
        let why = first.map(|first| format!("not run: {} failed, and --fail-fast was given", first.variant));
        for v in 0..self.plan.variants.len() {
            if self.folders[v].is_some()
                && let Err(error) = self.end(v, Status::Interrupted, why.clone())
            {
                tracing::error!(variant = self.plan.variants[v].id, "its manifest cannot be written: {error}");
            }
        }
        self.surroundings.log.set([]);
        self.tell(None);
        // Whoever writes the table last has seen all that was there before.
        let _claim = loop {
            match self.results.claim(report::TABLE)? {
                Some(claim) => break claim,
                None => std::thread::sleep(BETWEEN_LOOKS),
            }
        };
        let folder = self.results.folder().to_owned();
        let summary = |(variant, ended): (&Variant, &Option<Ended>)| match ended.clone() {
            Some((status, error, tables)) => VariantSummary::new(variant.into(), status, error, tables),
            // another run had it to the end
            None => VariantSummary::of_folder(variant.into(), &folder)
                .unwrap_or_else(|| VariantSummary::new(variant.into(), Status::Interrupted, None, folder.join(&variant.id))),
        };
        let variants: Vec<VariantSummary> = self.plan.variants.iter().zip(&self.ended).map(summary).collect();
        let others = report::others(self.plan, &folder, &self.recipes.inputs());
        let mut rows: Vec<VariantSummary> = variants.iter().cloned().chain(others).collect();
        rows.sort_by_key(|row| self.plan.order.iter().position(|id| *id == row.shape.id));
        let summary = report::write_variants(&folder, &rows)?;
        let is_any = |status| variants.iter().any(|variant| variant.status == status);
        let (failed, interrupted) = (is_any(Status::Failed), stopped && variants.iter().any(|v| v.status != Status::Succeeded));
        self.teller.tell(|status| {
            status.state = match (interrupted, failed) {
                (true, _) => RunState::Interrupted,
                (false, true) => RunState::Failed,
                (false, false) => RunState::Succeeded,
            };
        });
        Ok(Outcome { variants, failures: std::mem::take(&mut self.failures), interrupted, summary, folder })
    }
}
