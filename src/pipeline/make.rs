//! One node of the tree: what is kept of it, else what it makes now. Values that it takes are brought back, or made, when
//! they are asked for.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::cache::{Cache, Cost, Entry, Kept};
use super::execute::{self, Products, StageError, Unusable};
use super::plan::Plan;
use super::recipe::{self, Recipes};
use super::stage::{Product, Stage, Step};
use super::values::{Made, Values};
use crate::locks::Claim;
use crate::memory;
use crate::metrics::Table;
use crate::progress::Progress;
use crate::random::Seed;
use crate::stages::{Context, State};
use crate::tensor::Unreadable;

/// Makes what nodes of a plan make, or takes what is kept.
pub struct Maker<'a> {
    pub plan: &'a Plan,
    pub recipes: &'a Recipes,
    pub cache: Cache,
    pub progress: Progress,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
}

/// A stage that ran, or was kept.
pub struct Ran {
    pub kept: Kept,
    pub tables: Vec<Table>,
    pub made: Made,
    /// Whether an earlier run, or another one, made it.
    pub reused: bool,
    /// Nobody removes the product while it is handed to the variants.
    _claim: Claim,
}

impl Ran {
    /// What goes on down the tree; others may have the product now.
    pub fn handed_over(self) -> Made {
        self.made
    }
}

impl Maker<'_> {
    /// What is kept of a stage; else, or if it is forced, what it makes now.
    pub fn outcome(&self, at: usize, forced: bool, values: &Values) -> Result<Ran, StageError> {
        let mut inputs = None;
        loop {
            let claim = self.claim(at)?;
            if !forced && let Some((kept, tables, products)) = self.kept(at) {
                let made = Made { products, before: values.clone() };
                return Ok(Ran { kept, tables, made, reused: true, _claim: claim });
            }
            match &inputs {
                // Inputs may have claims of their own: one at a time.
                None => {
                    drop(claim);
                    inputs = Some(self.gather(self.plan.nodes[at].step.stage.takes(), values)?);
                }
                Some(inputs) => {
                    let (kept, tables, products) = self.compute(at, forced, inputs)?;
                    let made = Made { products, before: Values::default() };
                    return Ok(Ran { kept, tables, made, reused: false, _claim: claim });
                }
            }
        }
    }

    fn claim(&self, at: usize) -> Result<Claim, StageError> {
        self.cache.claim(&self.recipes.get(at).key, &self.stop)?.ok_or(StageError::Interrupted)
    }

    /// What is kept of a stage, if it is whole: all but the model.
    fn kept(&self, at: usize) -> Option<(Kept, Vec<Table>, Products)> {
        let key = &self.recipes.get(at).key;
        let kept = self.cache.take(key)?;
        let read = kept.tables().map_err(|error| error.to_string()).and_then(|tables| {
            let rest = execute::rest(&self.plan.nodes[at].step, &kept);
            rest.map(|products| (tables, products)).map_err(|error| error.to_string())
        });
        match read {
            Ok((tables, products)) => Some((kept, tables, products)),
            Err(why) => {
                self.cache.discard(key, &why);
                None
            }
        }
    }

    /// Runs one stage and keeps what it makes.
    fn compute(&self, at: usize, forced: bool, inputs: &Products) -> Result<(Kept, Vec<Table>, Products), StageError> {
        let step = &self.plan.nodes[at].step;
        let key = &self.recipes.get(at).key;
        let room = self.cache.room()?;
        let context = self.context(step, key, &room.written());
        if forced {
            context.state.forget();
        }
        self.check_unchanged(at, inputs)?;
        memory::reset_peak();
        let began = Instant::now();
        let executed = caught(|| execute::execute(step, &context, inputs));
        let cost = Cost { wall_seconds: began.elapsed().as_secs_f64(), peak_memory: memory::peak() };
        if let Err(changed) = self.check_unchanged(at, inputs) {
            // what it was made of has another key
            context.state.forget();
            return Err(changed);
        }
        let (products, tables) = executed?;
        execute::store(step, &products, &room)?;
        let entry = Entry {
            stage: step.stage.tag().to_owned(),
            options: step.stage.options(),
            program: recipe::PROGRAM.to_owned(),
            cost,
            files: BTreeMap::new(),
        };
        Ok((self.cache.keep(key, room, entry, &tables)?, tables, products))
    }

    /// What a stage reads must be what its key says; a model that is streamed is read by all who use it.
    fn check_unchanged(&self, at: usize, inputs: &Products) -> Result<(), StageError> {
        let path = self.plan.nodes[at].variants.first().map_or(&[][..], |&variant| &self.plan.variants[variant].path);
        let loads = path.iter().take_while(|&&node| inputs.is_streamed() && node != at);
        let loads = loads.filter(|&&node| matches!(self.plan.nodes[node].step.stage, Stage::Load(_)));
        let changed = loads.chain([&at]).find_map(|&node| self.recipes.changed(self.plan, node));
        changed.map_or(Ok(()), |path| Err(StageError::Changed(path)))
    }

    /// The values that a stage takes.
    fn gather(&self, takes: impl Iterator<Item = Product>, values: &Values) -> Result<Products, StageError> {
        let mut inputs = Products::default();
        for product in takes {
            if let Some(promise) = values.get(product) {
                if product == Product::Dense && values.get(Product::Model).is_some_and(|model| model.node == promise.node) {
                    inputs.model_is_dense();
                    continue;
                }
                inputs.add(product, &promise.keep(|before| self.bring(promise.node, before))?);
            }
        }
        Ok(inputs)
    }

    /// A model that was not needed so far: brought back from disk, or, if it is not whole there, made again.
    fn bring(&self, at: usize, before: &Values) -> Result<Products, StageError> {
        let step = &self.plan.nodes[at].step;
        let key = &self.recipes.get(at).key;
        let mut inputs = self.gather(execute::model_takes(&step.stage).iter().copied(), before)?;
        let mut has_all = false;
        loop {
            let claim = self.claim(at)?;
            if let Some(kept) = self.cache.take(key) {
                match execute::model(step, &kept, &inputs, self.plan.settings.run.budget()) {
                    // a checkpoint is kept by the names of its files
                    Ok(products) if matches!(step.stage, Stage::Load(_)) => {
                        return self.check_unchanged(at, &inputs).map(|()| products);
                    }
                    Ok(products) => return Ok(products),
                    Err(Unusable::Damaged(file)) => self.cache.discard(key, &file),
                    Err(Unusable::Failed(error)) => return Err(error),
                }
            }
            if has_all {
                tracing::debug!("{} runs again: what it hands on is needed", step.stage.tag());
                return self.compute(at, false, &inputs).map(|(.., products)| products);
            }
            drop(claim);
            (inputs, has_all) = (self.gather(step.stage.takes(), before)?, true);
        }
    }

    fn context(&self, step: &Step, key: &str, folder: &Path) -> Context {
        Context {
            seed: Seed::of_stage(self.plan.settings.run.seed, step.stage.tag(), step.occurrence),
            data: self.plan.settings.run.data.clone(),
            folder: folder.to_owned(),
            budget: self.plan.settings.run.budget(),
            occurrence: step.occurrence,
            state: State::at(self.cache.state(key)),
            progress: self.progress.clone(),
            stop: self.stop.clone(),
        }
    }
}

/// A panic inside a stage is that stage's failure, not the run's.
fn caught<T>(work: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if let Some(unreadable) = panic.downcast_ref::<Unreadable>() {
            return Err(StageError::Unreadable(unreadable.clone()));
        }
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        if text.as_ref().is_some_and(|text| text.contains("CUDA_ERROR_OUT_OF_MEMORY")) {
            return Err(StageError::GpuMemory);
        }
        Err(StageError::Panicked(text.unwrap_or_else(|| "no reason was given".to_owned())))
    })
}
