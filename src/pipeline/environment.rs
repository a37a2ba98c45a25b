//! The world pass of the check: files, headers, folders, device; and whether memory and disk are large enough.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pipeline::check::{SettingSpans, setting_span};
use crate::pipeline::problem::{InvalidPipeline, Problem, SourceTexts};
use crate::pipeline::settings::RunSettings;
use crate::plan::ids::{NodeId, PerNode, PerVariant};
use crate::plan::survey::{NodeState, Survey};
use crate::plan::{Plan, PlanNode, Variant, format_bytes};
use crate::stages::registry::Step;
use crate::stages::{Environment, OptionFault, ResourceEstimate};
use secateur_base::memory;
use secateur_tensor::{self, Device};

/// Looks once at every beginning that variants share, and leaves each node's estimate.
pub fn check_environment(
    variants: &PerVariant<Variant>,
    nodes: &mut PerNode<PlanNode>,
    (run, name): (&RunSettings, &str),
    places: &SettingSpans,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |key: &str, message: String, help: &str| {
        problems.push(sources.problem(setting_span(places, key), message, help));
    };
    let device = secateur_tensor::resolve_device(run.device);
    if let Err(missing) = &device {
        refuse(
            "device",
            format!("there is no device `{}`: {missing}", run.device),
            missing.help(),
        );
    }
    let on_gpu = device.is_ok_and(|device| device != Device::Cpu);
    let cache = run.cache_folder();
    for (key, what, folder) in [
        ("results", "results folder", run.results.as_path()),
        ("cache", "folder of kept products", &cache),
    ] {
        if let Err(error) = tempfile::tempfile_in(nearest_existing_folder(folder)) {
            let message = format!(
                "the {what} `{}` cannot be written: {error}",
                folder.display()
            );
            refuse(
                key,
                message,
                &format!("write another folder in [run] {key}"),
            );
        }
    }
    let own = run.results.join(name);
    if own.exists() && !own.is_dir() {
        let message = format!(
            "the results go to `{}`, and a file stands there",
            own.display()
        );
        refuse(
            "results",
            message,
            "move the file away, or write another folder in [run] results, or --results",
        );
    }
    let mut after: BTreeMap<NodeId, Environment> = BTreeMap::new();
    let budget = Some(run.budget());
    let mut shared = Environment {
        data_folder: run.data.clone(),
        memory_budget: budget,
        is_on_gpu: on_gpu,
        ..Environment::default()
    };
    for variant in variants {
        for (i, (&node, step)) in variant.nodes.iter().zip(&variant.steps).enumerate() {
            if after.contains_key(&node) {
                continue;
            }
            let mut world = match i.checked_sub(1) {
                Some(before) => after[&variant.nodes[before]].clone(),
                None => Environment {
                    data_folder: shared.data_folder.clone(),
                    memory_budget: budget,
                    is_on_gpu: on_gpu,
                    ..Environment::default()
                },
            };
            world.estimate = ResourceEstimate::default();
            // What was read once is not read again, whichever variant asked.
            std::mem::swap(&mut world.lookup_cache, &mut shared.lookup_cache);
            let faults = step.stage.environment_faults(&mut world);
            problems.extend(
                faults
                    .into_iter()
                    .map(|fault| step_problem(step, fault, sources)),
            );
            std::mem::swap(&mut world.lookup_cache, &mut shared.lookup_cache);
            nodes[node].estimate = Some(world.estimate);
            after.insert(node, world);
        }
    }
}

/// Refuses a plan that needs more memory or disk than there is. `survey`: what is kept needs none; None: nothing is.
pub fn check_capacity(plan: &Plan, survey: Option<&Survey>) -> Result<(), InvalidPipeline> {
    let must_run = |at: &NodeId| {
        survey.is_none_or(|survey| matches!(survey.nodes[*at], NodeState::MustRun(_)))
    };
    let nodes = || plan.nodes.ids().filter(must_run).map(|at| &plan.nodes[at]);
    let estimated = || nodes().filter_map(|node| Some((node, node.estimate?)));
    let memory = memory::total_bytes();
    let mut problems = Vec::new();
    let mut refuse = |node: &PlanNode, message: String, help: &str| {
        problems.push(plan.sources.problem(node.step.span.clone(), message, help))
    };
    // A machine that does not tell is not held against anybody.
    if let Some((node, needed)) =
        estimated().find(|(_, estimate)| memory > 0 && estimate.cpu_memory > memory)
    {
        let message = format!(
            "this needs about {} of memory, the machine has {}",
            format_bytes(needed.cpu_memory),
            format_bytes(memory)
        );
        refuse(
            node,
            message,
            "take a smaller model, fewer samples, or shorter ones",
        );
    }
    let gpu = secateur_tensor::total_gpu_memory(plan.settings.run.device);
    if let Some(there) = gpu
        && let Some((node, needed)) =
            estimated().find(|(_, estimate)| estimate.min_gpu_memory > there)
    {
        let needed = format_bytes(needed.min_gpu_memory);
        let message = format!(
            "this needs about {needed} of the GPU's memory even block by block, it has {}",
            format_bytes(there)
        );
        refuse(
            node,
            message,
            "take a smaller model, shorter samples, or precision = \"float16\"",
        );
    }
    let disk: u64 = estimated().map(|(_, estimate)| estimate.disk_space).sum();
    if let Ok(free) = fs4::available_space(nearest_existing_folder(&plan.settings.run.results))
        && disk > free
        && let Some((node, _)) = estimated().find(|(_, estimate)| estimate.disk_space > 0)
    {
        let message = format!(
            "all exports take about {}, and the results folder has room for {}",
            format_bytes(disk),
            format_bytes(free)
        );
        refuse(
            node,
            message,
            "write results to a larger disk, or export fewer variants",
        );
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(InvalidPipeline {
            name: plan.pipeline_path.display().to_string(),
            problems,
        })
    }
}

/// A fault of a decoded step: at its place in another file, else at the value of its key, else at the stage.
fn step_problem(step: &Step, fault: OptionFault, sources: &SourceTexts) -> Problem {
    if let Some(place) = fault.location {
        return SourceTexts::problem_in_file(*place, fault.message, fault.help);
    }
    let span = step
        .key_spans
        .get(&fault.key)
        .cloned()
        .unwrap_or(step.span.clone());
    sources.problem(span, fault.message, fault.help)
}

/// The folder, or the nearest one above it that exists.
fn nearest_existing_folder(folder: &Path) -> &Path {
    let nearest = folder
        .ancestors()
        .find(|f| f.exists())
        .unwrap_or(Path::new("."));
    if nearest.as_os_str().is_empty() {
        Path::new(".")
    } else {
        nearest
    }
}
