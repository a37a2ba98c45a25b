//! The check: a pipeline file → a [`Plan`] that can run, or every mistake in the file.
//!
//! The check runs in passes, as a compiler does: syntax and shape (`pipeline::file`), the sweep,
//! values (the stages' `option_faults`), order (every value that a stage takes was made and is
//! still valid), environment (files, headers, folders, device). Every stage that can be decoded
//! goes through all passes, so one check reports all mistakes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::pipeline::arguments::{self, Argument, ParsedArguments};
use crate::pipeline::file;
use crate::pipeline::layers::{self, LayeredSettings};
use crate::pipeline::problem::{InvalidPipeline, Problem, SourceTexts};
use crate::pipeline::settings::SettingSpans;
use crate::plan::ids::PerVariant;
use crate::plan::read::{Unreadable, read_pipeline};
use crate::plan::selection::{self, Selection};
use crate::plan::variants::RunSeed;
use crate::plan::{Plan, Variant, environment, owner, tree, unused, variants};

/// What the command line adds to a pipeline file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The arguments of `--set`: `type.key=value`.
    pub set: Vec<String>,
    /// The arguments of `--sweep`: `type.key=value,value`.
    pub sweep: Vec<String>,
    /// The results folder.
    pub results: Option<PathBuf>,
    pub selection: Selection,
    /// Whether every stage runs even if its product is stored.
    pub force: bool,
    /// Stages of these types, and all after them, run even if their products are stored.
    pub force_from: Vec<String>,
    /// Whether the inputs must be those of the lock file.
    pub locked: bool,
}

/// Checks the pipeline file at `path`. Files, folders and the device are not checked if
/// `with_environment` is false.
///
/// # Errors
/// Every problem of the file, the arguments and the environment, in the order of their places.
/// Warnings alone are no error: they are in [`Plan::warnings`].
pub fn check(
    path: &Path,
    overrides: &Overrides,
    with_environment: bool,
) -> Result<Plan, InvalidPipeline> {
    let path_text = path.display().to_string();
    let pipeline_text = match read_pipeline(path) {
        Ok(text) => text,
        Err(Unreadable { message, help }) => {
            let problem = SourceTexts::new(&path_text, "").problem(0..0, message, help);
            return Err(InvalidPipeline {
                name: path_text,
                problems: vec![problem],
            });
        }
    };
    let mut problems = Vec::new();

    // Syntax and shape of the file and of the arguments.
    let mut sources = SourceTexts::new(&path_text, &pipeline_text);
    let environment = arguments::environment_arguments(&mut sources, &mut problems);
    let set = overrides.set.iter();
    let set: Vec<Argument> = set
        .map(|argument| Argument::set(argument, &mut sources))
        .collect();
    let sweep = overrides.sweep.iter();
    let sweep: Vec<Argument> = sweep
        .map(|argument| Argument::sweep(argument, &mut sources))
        .collect();
    let arguments = ParsedArguments::parse(&environment, &set, &sweep, &sources, &mut problems);
    let Some(document) = file::parse(&pipeline_text, &sources, &mut problems) else {
        return Err(InvalidPipeline {
            name: path_text,
            problems: Problem::sort_and_dedup(problems),
        });
    };
    let run_table = document.run.as_ref();
    let mut settings = layers::layer_settings(run_table, &arguments.run, &sources, &mut problems);
    let mut spans = SettingSpans::new(run_table, &arguments.run);
    apply_setting_arguments(overrides, &mut settings, &mut spans, &mut sources);
    settings.run.check(&spans, &sources, &mut problems);

    // The sweep, values and order.
    let of_file =
        layers::layer_settings(run_table, &Default::default(), &sources, &mut Vec::new()).run;
    let seed = RunSeed {
        value: settings.run.seed,
        is_other_than_of_file: settings.run.seed != of_file.seed,
    };
    let all_variants =
        variants::expand_variants(&document, &arguments, seed, &sources, &mut problems);
    let variant_order: Vec<String> = all_variants
        .iter()
        .map(|variant| variant.id.clone())
        .collect();
    let (selected, unselected) =
        overrides
            .selection
            .split_variants(all_variants, &mut sources, &mut problems);
    let mut variants: PerVariant<Variant> = selected.into();
    let (mut nodes, roots) = tree::build_tree(&mut variants);
    selection::mark_forced(
        &mut nodes,
        overrides.force,
        &overrides.force_from,
        &mut sources,
        &mut problems,
    );

    let name = path.file_stem().map_or_else(
        || "pipeline".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    );
    let mut unused_by_node = BTreeMap::new();
    if with_environment {
        let run = &settings.run;
        let mut found = Vec::new();
        environment::check_run_environment(run, &name, &spans, &sources, &mut found);
        let results_folder = run.results.join(&name);
        owner::check_results_owner(path, &results_folder, &spans, &sources, &mut found);
        unused_by_node =
            environment::check_stage_environments(&variants, &mut nodes, run, &sources, &mut found);
        problems.extend(Problem::merge_equal_messages(found));
    }
    if problems.iter().all(Problem::is_warning) {
        let all_variants = || variants.iter().chain(&unselected);
        problems.extend(unused::warnings(all_variants(), &unused_by_node, &sources));
        let span = spans.get("seed");
        problems.extend(unused::seed_warning(
            all_variants(),
            &settings,
            span,
            &sources,
        ));
    }
    let problems = Problem::sort_and_dedup(problems);
    if !problems.iter().all(Problem::is_warning) {
        return Err(InvalidPipeline {
            name: path_text,
            problems,
        });
    }
    Ok(Plan {
        name,
        pipeline_path: path.to_owned(),
        recorded_path: owner::recorded_path(path),
        is_whole_file: overrides.set.is_empty()
            && overrides.sweep.is_empty()
            && overrides.selection.is_everything(),
        shard: overrides.selection.shard.map(|shard| shard.to_string()),
        pipeline_text,
        sources,
        settings,
        locked_span: spans.get("locked"),
        variants,
        unselected,
        variant_order,
        nodes,
        roots,
        warnings: problems,
    })
}

/// Applies `--results` and `--locked`, which replace the values of all other layers.
fn apply_setting_arguments(
    overrides: &Overrides,
    settings: &mut LayeredSettings,
    spans: &mut SettingSpans,
    sources: &mut SourceTexts,
) {
    let mut set_provenance = |key: &str, argument: &str| {
        settings
            .provenance
            .insert(key.to_owned(), argument.to_owned());
    };
    if let Some(results) = &overrides.results {
        settings.run.results.clone_from(results);
        set_provenance("results", "--results");
        let argument = format!("--results {}", results.display());
        spans.insert("results", sources.add_argument(&argument));
    }
    if overrides.locked {
        settings.run.locked = true;
        set_provenance("locked", "--locked");
        spans.insert("locked", sources.add_argument("--locked"));
    }
}
