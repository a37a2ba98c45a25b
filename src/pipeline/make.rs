//! One node of the tree: what is kept of it, else what it makes now. Values that it takes are brought back, or made, when
//! they are asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::cache::{Cache, Cost, Entry, Kept};
use super::execute::{self, Products, StageError, Unusable};
use super::plan::Plan;
use super::recipe::{self, Recipes};
use super::results;
use super::stage::{Product, Step};
use super::values::{Made, Values};
use crate::locks::Claim;
use crate::metrics::Table;
use crate::progress::Progress;
use crate::random::Seed;
use crate::stages::{Context, State};

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
    pub made: Rc<Made>,
    /// Whether an earlier run, or another one, made it.
    pub reused: bool,
    /// Nobody removes the product while it is handed to the variants.
    _claim: Claim,
}

impl Maker<'_> {
    /// What is kept of a stage; else what it makes now.
    pub fn outcome(&self, at: usize, values: &Values) -> Result<Ran, StageError> {
        let node = &self.plan.nodes[at];
        let mut inputs = None;
        loop {
            let claim = self.claim(at)?;
            if node.forced.is_none()
                && let Some((kept, tables)) = self.kept(at)
            {
                return Ok(Ran { kept, tables, made: Made::absent(at, values.clone()), reused: true, _claim: claim });
            }
            match &inputs {
                // Inputs may have claims of their own: one at a time.
                None => {
                    drop(claim);
                    inputs = Some(self.gather(node.step.stage.takes(), values)?);
                }
                Some(inputs) => {
                    let (kept, tables, products) = self.compute(at, inputs)?;
                    return Ok(Ran { kept, tables, made: Made::there(at, products), reused: false, _claim: claim });
                }
            }
        }
    }

    fn claim(&self, at: usize) -> Result<Claim, StageError> {
        self.cache.claim(&self.recipes.get(at).key, &self.stop)?.ok_or(StageError::Interrupted)
    }

    /// What is kept of a stage, if it is whole.
    fn kept(&self, at: usize) -> Option<(Kept, Vec<Table>)> {
        let key = &self.recipes.get(at).key;
        let kept = self.cache.take(key)?;
        match kept.tables() {
            Ok(tables) => Some((kept, tables)),
            Err(error) => {
                self.cache.discard(key, &error.to_string());
                None
            }
        }
    }

    /// Runs one stage and keeps what it makes.
    fn compute(&self, at: usize, inputs: &Products) -> Result<(Kept, Vec<Table>, Products), StageError> {
        let node = &self.plan.nodes[at];
        let (step, key) = (&node.step, &self.recipes.get(at).key);
        let room = self.cache.room()?;
        let context = self.context(step, key, &room.written());
        if node.forced.is_some() {
            context.state.forget();
        }
        results::reset_peak_memory();
        let began = Instant::now();
        let (products, tables) = execute::execute(step, &context, inputs)?;
        let cost = Cost { wall_seconds: began.elapsed().as_secs_f64(), peak_memory: results::peak_memory() };
        self.check_unchanged(at)?;
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

    /// What a stage read must be what its key says.
    fn check_unchanged(&self, at: usize) -> Result<(), StageError> {
        self.recipes.changed(at).map_or(Ok(()), |path| Err(StageError::Changed(path.to_owned())))
    }

    /// The values that a stage takes.
    fn gather(&self, takes: impl Iterator<Item = Product>, values: &Values) -> Result<Products, StageError> {
        let mut inputs = Products::default();
        for product in takes {
            if let Some(made) = values.get(product) {
                inputs.add(product, &made.products(|before| self.bring(made.node, before))?);
            }
        }
        Ok(inputs)
    }

    /// What a stage handed on that was not needed so far: brought back from disk, or, if it is not whole there, made again.
    fn bring(&self, at: usize, before: &Values) -> Result<Products, StageError> {
        let step = &self.plan.nodes[at].step;
        let key = &self.recipes.get(at).key;
        let inputs = self.gather(execute::restored_from(&step.stage).iter().copied(), before)?;
        {
            let _claim = self.claim(at)?;
            if let Some(kept) = self.cache.take(key) {
                match execute::restore(step, &kept, &inputs) {
                    Ok(products) => return self.check_unchanged(at).map(|()| products),
                    Err(Unusable::Damaged(file)) => self.cache.discard(key, &file),
                    Err(Unusable::Failed(error)) => return Err(error),
                }
            }
        }
        let inputs = self.gather(step.stage.takes(), before)?;
        let _claim = self.claim(at)?;
        tracing::debug!("{} runs again: what it hands on is needed", step.stage.tag());
        self.compute(at, &inputs).map(|(.., products)| products)
    }

    fn context(&self, step: &Step, key: &str, folder: &Path) -> Context {
        let seed = Seed::root(self.plan.settings.run.seed).derive(&format!("{} {}", step.stage.tag(), step.occurrence));
        Context {
            seed,
            data: self.plan.settings.run.data.clone(),
            folder: folder.to_owned(),
            occurrence: step.occurrence,
            state: State::at(self.cache.state(key)),
            progress: self.progress.clone(),
            stop: self.stop.clone(),
        }
    }
}
