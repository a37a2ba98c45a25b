//! The environment pass of the check: files, headers, folders and the device.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::{RunSettings, SettingSpans};
use crate::plan::ids::{NodeId, PerNode, PerVariant};
use crate::plan::{PlanNode, Variant};
use crate::stages::values::ValueKind;
use crate::stages::{Environment, OptionFault, ResourceEstimate, UnusedOption};
use secateur_base::files::FolderFault;
use secateur_base::locks::{LockSupport, check_shared_folder};
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
    let pipeline_results = run.results.join(pipeline_name);
    let cache_folder = run.cache_folder();
    let mut results_faults = folder_faults("results", "results folder", &run.results);
    if results_faults.is_empty() {
        results_faults = folder_faults("results", "results folder", &pipeline_results);
    }
    // By default the cache lies in the results folder: one fault is reported once.
    let is_reported = !results_faults.is_empty() && cache_folder.starts_with(&run.results);
    let cache_faults = match is_reported {
        true => Vec::new(),
        false => folder_faults("cache", "folder of kept products", &cache_folder),
    };
    for fault in results_faults.into_iter().chain(cache_faults) {
        problems.push(sources.option_problem(spans.get(&fault.key), fault));
    }
}

/// Why a folder that a run writes to cannot be used, or can be used by one run only.
fn folder_faults(key: &str, description: &str, folder: &Path) -> Vec<OptionFault> {
    let path = folder.display();
    let fault = match check_shared_folder(folder) {
        Ok(LockSupport::Available) => return Vec::new(),
        Ok(LockSupport::Missing) => {
            return vec![OptionFault::warning(
                key,
                format!("the file system of the {description} `{path}` has no locks"),
                "let only one run at a time use the folder: two would overwrite each other's files",
            )];
        }
        Err(fault) => fault,
    };
    let another_folder = match key {
        "results" => "write another folder in [run] results, or --results",
        _ => "write another folder in [run] cache",
    };
    let help = match &fault {
        FolderFault::DanglingLink { .. } => {
            format!("create the folder that the link names, or {another_folder}")
        }
        FolderFault::NotAFolder(_) => format!("move the file away, or {another_folder}"),
        FolderFault::NotWritable(error) if error.source.kind() == ErrorKind::PermissionDenied => {
            format!(
                "{another_folder}, or let its owner give you write access to it and to everything \
                 in it (users who share a folder need a common group and umask 002)"
            )
        }
        FolderFault::NotWritable(_) => another_folder.to_owned(),
    };
    let reason = match &fault {
        FolderFault::NotAFolder(file) if file == folder => "a file stands there".to_owned(),
        FolderFault::NotWritable(error) if error.path == folder => error.source.to_string(),
        _ => fault.to_string(),
    };
    let message = format!("the {description} `{path}` cannot be written: {reason}");
    vec![OptionFault::new(key, message, help)]
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
