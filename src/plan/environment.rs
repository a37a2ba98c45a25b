//! The environment pass of the check: files, headers, folders and the device.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::{RunSettings, SettingSpans};
use crate::plan::ids::{NodeId, PerNode, PerVariant};
use crate::plan::{PlanNode, Variant};
use crate::stages::values::ValueKind;
use crate::stages::{Environment, ResourceEstimate, UnusedOption};
use secateur_tensor::Device;

/// Checks that the device exists and that the folders of the run can be written.
pub(super) fn check_run_environment(
    run: &RunSettings,
    pipeline_name: &str,
    spans: &SettingSpans,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |key: &str, message: String, help: &str| {
        problems.push(sources.problem(spans.get(key), message, help));
    };
    if let Err(missing) = secateur_tensor::resolve_device(run.device) {
        let message = format!("there is no device `{}`: {missing}", run.device);
        refuse("device", message, missing.help());
    }
    let cache_folder = run.cache_folder();
    for (key, description, folder) in [
        ("results", "results folder", run.results.as_path()),
        ("cache", "folder of kept products", &cache_folder),
    ] {
        if let Err(error) = tempfile::tempfile_in(nearest_existing_folder(folder)) {
            let folder = folder.display();
            let message = format!("the {description} `{folder}` cannot be written: {error}");
            let help = format!("write another folder in [run] {key}");
            refuse(key, message, &help);
        }
    }
    let pipeline_results = run.results.join(pipeline_name);
    if pipeline_results.exists() && !pipeline_results.is_dir() {
        refuse(
            "results",
            format!(
                "the results go to `{}`, and a file stands there",
                pipeline_results.display()
            ),
            "move the file away, or write another folder in [run] results, or --results",
        );
    }
}

/// Checks every node in the environment that the stages before it leave, once for all variants that
/// share it, and stores its estimate of memory and disk space. Returns the options of each node that
/// have no effect, as files and headers show.
pub(super) fn check_stage_environments(
    variants: &PerVariant<Variant>,
    nodes: &mut PerNode<PlanNode>,
    run: &RunSettings,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> BTreeMap<NodeId, Vec<UnusedOption>> {
    let device = secateur_tensor::resolve_device(run.device);
    let initial_environment = || Environment {
        data_folder: run.data.clone(),
        memory_budget: Some(run.budget()),
        is_on_gpu: device.as_ref().is_ok_and(|device| *device != Device::Cpu),
        ..Environment::default()
    };
    // The lookup cache holds what was read from files. It moves from one environment to the next,
    // so that all nodes share it.
    let mut lookup_cache = Environment::default().lookup_cache;
    let mut environment_after: BTreeMap<NodeId, Environment> = BTreeMap::new();
    let mut unused_options = BTreeMap::new();
    for variant in variants {
        let mut parent: Option<NodeId> = None;
        for (&node, step) in variant.nodes.iter().zip(&variant.steps) {
            if !environment_after.contains_key(&node) {
                let mut environment = parent.map_or_else(initial_environment, |parent| {
                    environment_after[&parent].clone()
                });
                environment.estimate = ResourceEstimate::default();
                std::mem::swap(&mut environment.lookup_cache, &mut lookup_cache);
                let faults = step.stage.environment_faults(&mut environment);
                std::mem::swap(&mut environment.lookup_cache, &mut lookup_cache);
                let faults = faults.into_iter().filter(|fault| step.reports(fault));
                problems.extend(faults.map(|fault| {
                    let key_span = step.key_spans.get(&fault.key);
                    let span = key_span.unwrap_or(&step.span).clone();
                    sources.option_problem(span, fault)
                }));
                nodes[node].estimate = Some(environment.estimate);
                unused_options.insert(node, std::mem::take(&mut environment.unused_options));
                // The model that a stage with replaced options makes is not that of the file.
                if !step.replaced_keys.is_empty() && step.stage.makes().contains(&ValueKind::Dense)
                {
                    environment.model = None;
                }
                environment_after.insert(node, environment);
            }
            parent = Some(node);
        }
    }
    unused_options
}

/// The folder if it exists, else its nearest ancestor that exists.
pub(super) fn nearest_existing_folder(folder: &Path) -> &Path {
    let mut ancestors = folder.ancestors();
    match ancestors.find(|ancestor| ancestor.exists()) {
        Some(nearest) if !nearest.as_os_str().is_empty() => nearest,
        _ => Path::new("."),
    }
}
