//! The spine: walks the tree of variants, the only code that hands values from stage to stage.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::log::LogFiles;
use super::plan::{Plan, Variant};
use super::problem::StageFailed;
use super::report::{self, ReportError, VariantSummary};
use super::results::{self, Manifest, Results, StageRecord, Status, VariantFolder};
use super::stage::{Stage, Step};
use crate::files::FileError;
use crate::metrics::{MetricsError, Table};
use crate::model::Model;
use crate::model::groups::DependencyGraph;
use crate::model::plan::PruningPlan;
use crate::progress::Progress;
use crate::random::Seed;
use crate::stages::products::{GroupScores, Scores};
use crate::stages::prune::Baseline;
use crate::stages::{Context, Input, aggregate, dependencies, evaluate, export, importance, load, pretrain, prune, recover};

/// What surrounds a run.
#[derive(Clone, Default)]
pub struct Surroundings {
    pub progress: Progress,
    pub log: LogFiles,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
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

/// The values on their way. Clones share them; each is dropped with the last branch that uses it.
#[derive(Clone, Default)]
struct Values {
    model: Option<Arc<Model>>,
    graph: Option<Arc<DependencyGraph>>,
    scores: Option<Arc<Scores>>,
    group_scores: Option<Arc<GroupScores>>,
    plan: Option<Arc<PruningPlan>>,
    /// Units of each group when the repeat at hand began.
    initial: Option<Arc<Baseline>>,
}

/// Runs every variant; one that fails does not stop the others.
pub fn run(plan: &Plan, surroundings: &Surroundings) -> Result<Outcome, RunError> {
    let settings = &plan.settings.run;
    let results = Results::open(&settings.results, &plan.name)?;
    let mut walk = Walk {
        plan,
        surroundings,
        results,
        folders: Vec::new(),
        ended: vec![None; plan.variants.len()],
        failures: Vec::new(),
        hashes: HashMap::new(),
    };
    for variant in &plan.variants {
        let resolved = plan.resolved(variant)?;
        let manifest = walk.manifest(variant, &resolved);
        walk.folders.push(walk.results.variant(&variant.id, &resolved, manifest)?);
    }
    for &root in &plan.roots {
        walk.descend(root, Values::default());
    }
    walk.finish()
}

struct Walk<'a> {
    plan: &'a Plan,
    surroundings: &'a Surroundings,
    results: Results,
    /// One for each variant of the plan.
    folders: Vec<VariantFolder>,
    /// How each variant ended, and why.
    ended: Vec<Option<(Status, Option<String>)>>,
    failures: Vec<StageFailed>,
    /// blake3 of files already read.
    hashes: HashMap<PathBuf, String>,
}

impl Walk<'_> {
    /// Runs a node, then what comes after it in each of its branches.
    fn descend(&mut self, mut at: usize, mut values: Values) {
        while !self.surroundings.stop.load(Ordering::Relaxed) {
            let node = &self.plan.nodes[at];
            let open =
                |walk: &Self| -> Vec<usize> { node.variants.iter().copied().filter(|&v| walk.ended[v].is_none()).collect() };
            let variants = open(self);
            if variants.is_empty() {
                return;
            }
            if let Err(failure) = self.stage(&node.step, &variants, &mut values) {
                return self.fail(&variants, &node.step, &failure);
            }
            for variant in open(self).into_iter().filter(|&v| self.plan.variants[v].path.last() == Some(&at)) {
                if let Err(error) = self.end(variant, Status::Succeeded, None) {
                    self.fail(&[variant], &node.step, &StageError::Store(error.into()));
                }
            }
            let Some((&last, others)) = node.children.split_last() else { return };
            others.iter().for_each(|&child| self.descend(child, values.clone()));
            at = last;
        }
    }

    /// Runs one stage, and writes what it measured and made to every variant that shares it.
    fn stage(&mut self, step: &Step, variants: &[usize], values: &mut Values) -> Result<(), StageError> {
        self.surroundings.log.set(variants.iter().map(|&v| self.folders[v].log()));
        let whose = match variants[..] {
            [one] => self.plan.variants[one].id.clone(),
            _ => format!("{} variants", variants.len()),
        };
        let _span = tracing::info_span!("stage", step = step.position, r#for = whose).entered();
        tracing::debug!("{} begins", step.stage.tag());
        let folder = self.results.stage_folder().map_err(MetricsError::from)?;
        let context = self.context(step, folder.path());
        results::reset_peak_memory();
        let began = Instant::now();
        let tables = execute(step, &context, values)?;
        let record = StageRecord {
            step: step.position,
            stage: step.stage.tag(),
            wall_seconds: began.elapsed().as_secs_f64(),
            peak_memory: results::peak_memory(),
            shared_by: variants.len(),
        };
        tracing::debug!(seconds = record.wall_seconds, peak_memory = record.peak_memory, "{} is done", step.stage.tag());
        let inputs = self.inputs(step);
        for &variant in variants {
            // One variant's folder is no reason for the others to fail.
            if let Err(error) = self.folders[variant].stage_done(record.clone(), &tables, folder.path(), &inputs) {
                self.fail(&[variant], step, &error.into());
            }
        }
        Ok(())
    }

    fn context(&self, step: &Step, folder: &Path) -> Context {
        let seed = Seed::root(self.plan.settings.run.seed).derive(&format!("{} {}", step.stage.tag(), step.occurrence));
        Context {
            seed,
            data: self.plan.settings.run.data.clone(),
            folder: folder.to_owned(),
            occurrence: step.occurrence,
            progress: self.surroundings.progress.clone(),
            stop: self.surroundings.stop.clone(),
        }
    }

    /// Content hashes of what a step reads.
    fn inputs(&mut self, step: &Step) -> BTreeMap<String, String> {
        let mut hash = |input: Input| match input {
            Input::File(path) => {
                let hash = self
                    .hashes
                    .entry(path.clone())
                    .or_insert_with(|| file_hash(&path).unwrap_or_else(|error| format!("it cannot be read any more: {error}")));
                (path.display().to_string(), hash.clone())
            }
            Input::BuiltIn { name, content } => (name, blake3::hash(content.as_bytes()).to_hex().to_string()),
        };
        step.stage.inputs(self.plan.settings.run.data.as_deref()).into_iter().map(&mut hash).collect()
    }

    /// Records that variants cannot go on.
    fn fail(&mut self, variants: &[usize], step: &Step, failure: &StageError) {
        let interrupted = failure.is_interrupted();
        for &v in variants {
            let variant = &self.plan.variants[v];
            let failed = self.plan.sources.stage_failed(
                &step.span,
                &variant.id,
                step.position,
                step.stage.tag(),
                failure.to_string(),
                interrupted,
            );
            tracing::error!(variant = variant.id, "{} failed: {failure}", step.stage.tag());
            let status = if interrupted { Status::Interrupted } else { Status::Failed };
            if let Err(error) = self.end(v, status, Some(failed.to_string())) {
                tracing::error!(variant = variant.id, "its manifest cannot be written: {error}");
            }
            self.failures.push(failed);
        }
    }

    fn end(&mut self, variant: usize, status: Status, error: Option<String>) -> Result<(), FileError> {
        self.ended[variant] = Some((status, error.clone()));
        self.folders[variant].finish(status, error)
    }

    fn manifest(&self, variant: &Variant, resolved: &str) -> Manifest {
        Manifest {
            program: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
            source: blake3::hash(self.plan.text.as_bytes()).to_hex().to_string(),
            pipeline: blake3::hash(resolved.as_bytes()).to_hex().to_string(),
            variant: variant.id.clone(),
            seed: self.plan.settings.run.seed,
            device: if cfg!(feature = "cuda") { "cuda" } else { "cpu" }.to_owned(),
            processor: results::processor(),
            threads: rayon::current_num_threads(),
            dtype: "float32",
            inputs: BTreeMap::new(),
            status: Status::Running,
            error: None,
            stages: Vec::new(),
        }
    }

    /// Ends what has not ended, and writes the table of the sweep.
    fn finish(mut self) -> Result<Outcome, RunError> {
        for variant in 0..self.plan.variants.len() {
            if self.ended[variant].is_none() {
                self.end(variant, Status::Interrupted, None)?;
            }
        }
        self.surroundings.log.set([]);
        let selected = self.plan.variants.iter().zip(&self.ended).filter_map(|(variant, ended)| Some((variant, ended.clone()?)));
        let variants: Vec<VariantSummary> = selected.map(|(variant, ended)| VariantSummary::of(variant, ended)).collect();
        // Variants of the sweep that this run was not asked for keep their rows.
        let others =
            self.plan.others.iter().filter_map(|other| Some(VariantSummary::of(other, self.results.earlier(&other.id)?)));
        let mut rows: Vec<VariantSummary> = variants.iter().cloned().chain(others).collect();
        rows.sort_by_key(|row| self.plan.order.iter().position(|id| *id == row.id));
        let folder = self.results.folder().to_owned();
        let summary = report::write_variants(&folder, &rows)?;
        let interrupted = variants.iter().any(|variant| variant.status == Status::Interrupted);
        Ok(Outcome { variants, failures: self.failures, interrupted, summary, folder })
    }
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
enum StageError {
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
    Export(#[from] export::Error),
    #[error("its results cannot be stored: {0}")]
    Store(#[from] MetricsError),
    #[error("the stage lacks {0}; this is a mistake of the check")]
    Lacks(&'static str),
}

impl StageError {
    fn is_interrupted(&self) -> bool {
        matches!(
            self,
            Self::Pretrain(pretrain::Error::Interrupted(_))
                | Self::Importance(importance::Error::Interrupted(_))
                | Self::Recover(recover::Error::Interrupted(_))
                | Self::Evaluate(evaluate::Error::Interrupted(_))
        )
    }
}

/// Runs one stage: takes its inputs from the values, puts its outputs among them.
fn execute(step: &Step, context: &Context, values: &mut Values) -> Result<Vec<Table>, StageError> {
    let model = || values.model.as_deref().ok_or(StageError::Lacks("a model"));
    let graph = || values.graph.as_deref().ok_or(StageError::Lacks("groups"));
    let tables = match &step.stage {
        Stage::Load(options) => {
            *values = Values { model: Some(Arc::new(load::run(options)?)), ..Values::default() };
            Vec::new()
        }
        Stage::Pretrain(options) => {
            let (model, tables) = pretrain::run(options, context)?;
            *values = Values { model: Some(Arc::new(model)), ..Values::default() };
            tables
        }
        Stage::Dependencies(options) => {
            let graph = dependencies::run(options, model()?)?;
            *values = Values { graph: Some(Arc::new(graph)), scores: None, group_scores: None, ..std::mem::take(values) };
            Vec::new()
        }
        Stage::Importance(options) => {
            let (scores, tables) = importance::run(options, context, model()?, graph()?)?;
            values.scores = Some(Arc::new(scores));
            tables
        }
        Stage::Aggregate(options) => {
            let scores = values.scores.as_deref().ok_or(StageError::Lacks("scores"))?;
            let (group_scores, tables) = aggregate::run(options, model()?, graph()?, scores)?;
            values.group_scores = Some(Arc::new(group_scores));
            tables
        }
        Stage::Prune(options) => {
            let scores = values.group_scores.as_deref().ok_or(StageError::Lacks("scores of units"))?;
            let (before, initial) = (values.plan.as_deref(), values.initial.as_deref());
            let (pruned, tables) = prune::run(options, step.schedule, model()?, graph()?, scores, before, initial)?;
            *values = Values {
                model: Some(Arc::new(pruned.model)),
                plan: Some(Arc::new(pruned.plan)),
                initial: Some(Arc::new(pruned.initial)),
                ..Values::default()
            };
            tables
        }
        Stage::Recover(options) => {
            // The adapter itself lies in the stage's folder.
            let (model, _, tables) = recover::run(options, context, model()?)?;
            *values = Values { model: Some(Arc::new(model)), scores: None, group_scores: None, ..std::mem::take(values) };
            tables
        }
        Stage::Evaluate(options) => evaluate::run(options, context, model()?)?,
        Stage::Export(options) => {
            export::run(options, context, model()?, values.plan.as_deref())?;
            Vec::new()
        }
    };
    Ok(tables)
}

fn file_hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}
