//! Compares the estimates of a plan with the memory and the disk of the machine.

use crate::pipeline::problem::InvalidPipeline;
use crate::plan::environment::nearest_existing_folder;
use crate::plan::survey::{NodeState, Survey};
use crate::plan::text::format_bytes;
use crate::plan::{Plan, PlanNode};
use crate::stages::ResourceEstimate;
use secateur_base::memory;

/// Refuses a plan that needs more memory or disk space than the machine has. Only nodes that must
/// run according to `survey` count; without a survey, all count.
///
/// # Errors
/// One problem for each kind of memory or disk space that is too small.
pub fn check_capacity(plan: &Plan, survey: Option<&Survey>) -> Result<(), InvalidPipeline> {
    let estimated: Vec<(&PlanNode, ResourceEstimate)> = plan
        .nodes
        .iter_with_ids()
        .filter(|(id, _)| {
            survey.is_none_or(|survey| matches!(survey.nodes[*id], NodeState::MustRun(_)))
        })
        .filter_map(|(_, node)| Some((node, node.estimate?)))
        .collect();
    let shortages = [
        cpu_memory_shortage(&estimated),
        gpu_memory_shortage(&estimated, plan),
        disk_space_shortage(&estimated, plan),
    ];
    let problems: Vec<_> = shortages
        .into_iter()
        .flatten()
        .map(|shortage| {
            let span = shortage.node.step.span.clone();
            plan.sources.problem(span, shortage.message, shortage.help)
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(InvalidPipeline {
            name: plan.pipeline_path.display().to_string(),
            problems,
        })
    }
}

/// A node that needs more than the machine has. The problem is reported at its stage.
struct Shortage<'a> {
    node: &'a PlanNode,
    message: String,
    help: &'static str,
}

fn cpu_memory_shortage<'a>(estimated: &[(&'a PlanNode, ResourceEstimate)]) -> Option<Shortage<'a>> {
    let total = memory::total_bytes();
    // 0: the system reports no total, and the check is skipped.
    if total == 0 {
        return None;
    }
    let mut nodes = estimated.iter();
    let (node, estimate) = nodes.find(|(_, estimate)| estimate.cpu_memory > total)?;
    Some(Shortage {
        node,
        message: format!(
            "this needs about {} of memory, the machine has {}",
            format_bytes(estimate.cpu_memory),
            format_bytes(total)
        ),
        help: "take a smaller model, fewer samples, or shorter ones",
    })
}

fn gpu_memory_shortage<'a>(
    estimated: &[(&'a PlanNode, ResourceEstimate)],
    plan: &Plan,
) -> Option<Shortage<'a>> {
    let total = secateur_tensor::total_gpu_memory(plan.settings.run.device)?;
    let mut nodes = estimated.iter();
    let (node, estimate) = nodes.find(|(_, estimate)| estimate.min_gpu_memory > total)?;
    Some(Shortage {
        node,
        message: format!(
            "this needs about {} of the GPU's memory even block by block, it has {}",
            format_bytes(estimate.min_gpu_memory),
            format_bytes(total)
        ),
        help: "take a smaller model, shorter samples, or precision = \"float16\"",
    })
}

/// Exports add up on the disk, so the sum over all nodes is compared with the free space. The
/// problem is reported at the first node that writes.
fn disk_space_shortage<'a>(
    estimated: &[(&'a PlanNode, ResourceEstimate)],
    plan: &Plan,
) -> Option<Shortage<'a>> {
    let needed: u64 = estimated
        .iter()
        .map(|(_, estimate)| estimate.disk_space)
        .sum();
    let results_folder = nearest_existing_folder(&plan.settings.run.results);
    let free = fs4::available_space(results_folder).ok()?;
    let mut nodes = estimated.iter();
    let (node, _) = nodes.find(|(_, estimate)| estimate.disk_space > 0)?;
    (needed > free).then(|| Shortage {
        node,
        message: format!(
            "all exports take about {}, and the results folder has room for {}",
            format_bytes(needed),
            format_bytes(free)
        ),
        help: "write results to a larger disk, or export fewer variants",
    })
}
