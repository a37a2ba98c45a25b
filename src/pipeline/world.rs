//! The world pass of the check: files, headers, folders, device; and whether memory and disk are large enough.

use std::collections::BTreeMap;
use std::path::Path;

use super::check::{Places, place_of};
use super::plan::{Node, Plan, Variant, size};
use super::problem::{InvalidPipeline, Problem, Sources};
use super::settings::RunSettings;
use super::stage::Step;
use super::survey::{State, Survey};
use crate::memory;
use crate::stages::{Estimate, Fault, World};
use crate::tensor::{self, Device};

/// Looks once at every beginning that variants share, and leaves each node's estimate.
pub fn look(
    variants: &[Variant],
    nodes: &mut [Node],
    (run, name): (&RunSettings, &str),
    places: &Places,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |key: &str, message: String, help: &str| {
        problems.push(sources.problem(place_of(places, key), message, help));
    };
    let device = tensor::find(run.device);
    if let Err(missing) = &device {
        refuse("device", format!("there is no device `{}`: {missing}", run.device), missing.help());
    }
    let on_gpu = device.is_ok_and(|device| device != Device::Cpu);
    let cache = run.cache();
    for (key, what, folder) in
        [("results", "results folder", run.results.as_path()), ("cache", "folder of kept products", &cache)]
    {
        if let Err(error) = tempfile::tempfile_in(existing(folder)) {
            let message = format!("the {what} `{}` cannot be written: {error}", folder.display());
            refuse(key, message, &format!("write another folder in [run] {key}"));
        }
    }
    let own = run.results.join(name);
    if own.exists() && !own.is_dir() {
        let message = format!("the results go to `{}`, and a file stands there", own.display());
        refuse("results", message, "move the file away, or write another folder in [run] results, or --results");
    }
    let mut after: BTreeMap<usize, World> = BTreeMap::new();
    let budget = Some(run.budget());
    let mut shared = World { data: run.data.clone(), budget, on_gpu, ..World::default() };
    for variant in variants {
        for (i, (&node, step)) in variant.path.iter().zip(&variant.steps).enumerate() {
            if after.contains_key(&node) {
                continue;
            }
            let mut world = match i.checked_sub(1) {
                Some(before) => after[&variant.path[before]].clone(),
                None => World { data: shared.data.clone(), budget, on_gpu, ..World::default() },
            };
            world.estimate = Estimate::default();
            // What was read once is not read again, whichever variant asked.
            std::mem::swap(&mut world.memory, &mut shared.memory);
            let faults = step.stage.world(&mut world);
            problems.extend(faults.into_iter().map(|fault| located(step, fault, sources)));
            std::mem::swap(&mut world.memory, &mut shared.memory);
            nodes[node].estimate = Some(world.estimate);
            after.insert(node, world);
        }
    }
}

/// Refuses a plan that needs more memory or disk than there is. `survey`: what is kept needs none; None: nothing is.
pub fn room(plan: &Plan, survey: Option<&Survey>) -> Result<(), InvalidPipeline> {
    let must_run = |at: &usize| survey.is_none_or(|survey| matches!(survey.nodes[*at], State::MustRun(_)));
    let nodes = || (0..plan.nodes.len()).filter(must_run).map(|at| &plan.nodes[at]);
    let estimated = || nodes().filter_map(|node| Some((node, node.estimate?)));
    let memory = memory::total();
    let mut problems = Vec::new();
    let mut refuse =
        |node: &Node, message: String, help: &str| problems.push(plan.sources.problem(node.step.span.clone(), message, help));
    // A machine that does not tell is not held against anybody.
    if let Some((node, needed)) = estimated().find(|(_, estimate)| memory > 0 && estimate.memory > memory) {
        let message = format!("this needs about {} of memory, the machine has {}", size(needed.memory), size(memory));
        refuse(node, message, "take a smaller model, fewer samples, or shorter ones");
    }
    let gpu = tensor::memory_of(plan.settings.run.device);
    if let Some(there) = gpu
        && let Some((node, needed)) = estimated().find(|(_, estimate)| estimate.gpu_at_least > there)
    {
        let needed = size(needed.gpu_at_least);
        let message = format!("this needs about {needed} of the GPU's memory even block by block, it has {}", size(there));
        refuse(node, message, "take a smaller model, shorter samples, or precision = \"float16\"");
    }
    let disk: u64 = estimated().map(|(_, estimate)| estimate.disk).sum();
    if let Ok(free) = fs4::available_space(existing(&plan.settings.run.results))
        && disk > free
        && let Some((node, _)) = estimated().find(|(_, estimate)| estimate.disk > 0)
    {
        let message = format!("all exports take about {}, and the results folder has room for {}", size(disk), size(free));
        refuse(node, message, "write results to a larger disk, or export fewer variants");
    }
    if problems.is_empty() { Ok(()) } else { Err(InvalidPipeline { name: plan.file.display().to_string(), problems }) }
}

/// A fault of a decoded step: at its place in another file, else at the value of its key, else at the stage.
fn located(step: &Step, fault: Fault, sources: &Sources) -> Problem {
    if let Some(place) = fault.place {
        return Sources::elsewhere(*place, fault.message, fault.help);
    }
    let span = step.key_spans.get(&fault.key).cloned().unwrap_or(step.span.clone());
    sources.problem(span, fault.message, fault.help)
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> &Path {
    let nearest = folder.ancestors().find(|f| f.exists()).unwrap_or(Path::new("."));
    if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest }
}
