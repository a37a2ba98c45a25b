//! Walks the tree of stages. Variants with equal beginnings share the nodes of the tree: each node
//! runs once, and its outcome is added to every variant that it is a part of.
//!
//! Several runs can work on one plan. A run claims a variant when it reaches the variant's own
//! stages, and leaves those that another run has claimed. Where another run is making a product, it
//! goes on with what does not depend on it: the stages after a measurement, and other branches of
//! the tree. It walks the tree again for what was left out, and waits only if nothing else is left.

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::plan::Plan;
use crate::plan::ids::{NodeId, PerNode, VariantId};
use crate::plan::keys::ProductKeys;
use crate::plan::survey::Survey;
use crate::run::context::RunContext;
use crate::run::node::{NodeRunner, StageResult};
use crate::run::outcome::{RunError, RunOutcome};
use crate::run::record::RunRecord;
use crate::run::status_file::RunState;
use crate::run::values::LazyValues;
use crate::run::variants::POLL_INTERVAL;
use crate::stages::StageError;
use secateur_store::cache::ProductCache;

/// Runs every variant that is not complete. A variant that fails does not stop the others, unless
/// `fail_fast` is set.
pub fn run(
    plan: &Plan,
    keys: &ProductKeys,
    survey: &Survey,
    context: &RunContext,
) -> Result<RunOutcome, RunError> {
    let settings = &plan.settings.run;
    let record = RunRecord::new(plan, keys, survey, context)?;
    let cache = ProductCache::open(&settings.cache_folder(), settings.cache_limit.as_u64())?;
    let mut walk = TreeWalk {
        plan,
        runner: NodeRunner {
            plan,
            keys,
            cache,
            progress: context.progress.clone(),
            stop: context.stop.clone(),
        },
        context,
        record,
        executed_nodes: plan.nodes.iter().map(|_| false).collect(),
        busy_nodes: BTreeSet::new(),
        has_waited: false,
    };
    let outcome = walk.run_rounds();
    if outcome.is_err() {
        walk.record.status_writer.update(|status| {
            status.state = RunState::Failed;
            status.now = None;
        });
    }
    outcome
}

struct TreeWalk<'a> {
    plan: &'a Plan,
    context: &'a RunContext,
    runner: NodeRunner<'a>,
    record: RunRecord<'a>,
    /// Nodes whose stage this run has executed.
    executed_nodes: PerNode<bool>,
    /// Nodes of this round whose product another run was making or using.
    busy_nodes: BTreeSet<NodeId>,
    /// Whether a message has said that the run waits.
    has_waited: bool,
}

/// What the stages on the path from the root to a node have made.
#[derive(Clone, Default)]
struct Branch {
    values: LazyValues,
    /// For the variants that begin below.
    results: Vec<Rc<StageResult>>,
}

impl TreeWalk<'_> {
    /// Walks the tree until every variant has ended. A later round visits what other runs had
    /// claimed in the rounds before.
    fn run_rounds(&mut self) -> Result<RunOutcome, RunError> {
        let plan = self.plan;
        let complete_count = self.begin_round();
        if complete_count > 0 {
            let total = plan.variants.len();
            tracing::info!("{complete_count} of {total} variants are complete");
        }
        loop {
            for &root in &plan.roots {
                self.run_subtree(root, Branch::default())?;
            }
            if self.record.variants.have_ended() || self.record.is_stopping() {
                return self.record.finish();
            }
            self.wait_for_other_runs()?;
            self.begin_round();
        }
    }

    /// Looks at what other runs have done and are doing. Returns the number of variants that were
    /// found complete.
    fn begin_round(&mut self) -> usize {
        let complete_count = self.record.variants.survey();
        self.busy_nodes.clear();
        self.record.update_status(None);
        complete_count
    }

    /// Waits until another run has released a variant or a product that this run has left out, or
    /// until the run is to stop.
    fn wait_for_other_runs(&mut self) -> Result<(), RunError> {
        let variants = self.record.variants.busy();
        if variants.is_empty() && self.busy_nodes.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.has_waited, true) {
            tracing::info!("waiting for what another run is doing");
        }
        self.record.update_status(None);
        while !self.record.is_stopping() {
            for &id in &variants {
                if self.record.variants.is_released(id)? {
                    return Ok(());
                }
            }
            for &node in &self.busy_nodes {
                if self.runner.is_released(node)? {
                    return Ok(());
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Visits a node, then the subtree of each of its children. The last child is visited by the
    /// loop and not by recursion: it takes over `branch`, so that a product which it spends is
    /// freed, and a plan without branches needs one stack frame.
    fn run_subtree(&mut self, root: NodeId, mut branch: Branch) -> Result<(), RunError> {
        let plan = self.plan;
        let mut node_id = root;
        while !self.record.is_stopping() {
            let node = &plan.nodes[node_id];
            self.open_variants(node_id, &branch)?;
            let variants = self.record.variants.unfinished(node_id);
            if variants.is_empty() {
                return Ok(());
            }
            let makes_values = !node.step.stage.makes().is_empty();
            let is_lacking = |&id: &VariantId| self.record.variants.lacks(id, node_id);
            if makes_values || variants.iter().any(is_lacking) {
                match self.run_node(node_id, &variants, &mut branch) {
                    Ok(true) => {}
                    // No later stage takes a value from this one.
                    Ok(false) if !makes_values => {}
                    Ok(false) => return Ok(()),
                    Err(failure) => {
                        return self.record.fail_node(node_id, &failure, &branch.results);
                    }
                }
            }
            self.record.complete_variants(node_id);
            let Some((&last_child, other_children)) = node.children.split_last() else {
                return Ok(());
            };
            for &child in other_children {
                self.run_subtree(child, branch.clone())?;
            }
            node_id = last_child;
        }
        Ok(())
    }

    /// Opens the variants that have no other variant beside them at this node, or end with it.
    fn open_variants(&mut self, node: NodeId, branch: &Branch) -> Result<(), RunError> {
        let variants = self.record.variants.unfinished(node);
        for &id in &variants {
            let is_alone = variants.len() == 1;
            let ends_here = self.plan.variants[id].nodes.last() == Some(&node);
            if (is_alone || ends_here) && self.record.variants.is_pending(id) {
                self.record.open_variant(id, &branch.results)?;
            }
        }
        Ok(())
    }

    /// Runs a stage, or restores its product from the cache, and adds its outcome to the branch and
    /// to the open variants that share it. Returns false if another run has claimed the product.
    fn run_node(
        &mut self,
        node: NodeId,
        variants: &[VariantId],
        branch: &mut Branch,
    ) -> Result<bool, StageError> {
        let plan = self.plan;
        let step = &plan.nodes[node].step;
        let tag = step.stage.tag();
        self.context
            .log
            .set_paths(self.record.variants.log_paths(node, variants));
        self.record.update_status(Some((step, variants)));
        let _span = self.record.stage_span(step, variants).entered();
        tracing::debug!("{tag} begins");
        // `--force` applies to the first visit: a later round visits the node only for variants
        // that another process has released, and the product of the first visit is already new.
        let is_first_visit = !self.record.visited_nodes[node];
        let is_forced = is_first_visit && plan.nodes[node].forced_by.is_some();
        let outcome = self
            .runner
            .run_or_reuse(node, is_forced, &branch.values, variants.len());
        let Some(mut outcome) = outcome.inspect_err(|_| self.record.visited_nodes[node] = true)?
        else {
            tracing::debug!("{tag} is left to another run");
            self.busy_nodes.insert(node);
            return Ok(false);
        };
        self.record.visited_nodes[node] = true;
        tracing::debug!(
            seconds = outcome.result.stored.manifest.cost.wall_seconds,
            kept = outcome.result.is_reused,
            "{tag} is done"
        );
        self.record
            .count_stage(step, is_first_visit, &outcome.result);
        self.executed_nodes[node] |= !outcome.result.is_reused;
        outcome.result.is_reused = !self.executed_nodes[node];
        self.record
            .variants
            .keep_for_later(variants, &mut outcome.result);
        self.record.add_to_variants(&outcome.result, variants);
        // Releases the claim on the product, which `trim` may then remove from the cache.
        let (result, output) = outcome.release();
        self.runner.cache.trim();
        branch.values.apply_stage(node, &*step.stage, &output);
        branch.results.push(Rc::new(result));
        Ok(true)
    }
}
