//! A pipeline file → a Plan that can run, or every mistake in it.
//!
//! Passes as a compiler has them: syntax and shape (`file`), the sweep, values (the stages' `faults`), order (what a
//! stage needs must have been made and not be spent), world (files, headers, folders, device). Every stage that decodes
//! goes through all of them. Only this module can build a Plan.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::pipeline::environment;
use crate::pipeline::file::{self, DecodedStage, PipelineDocument, RawStage};
use crate::pipeline::order;
use crate::pipeline::problem::{InvalidPipeline, Problem, SourceTexts};
use crate::pipeline::settings::{self, RunSettings};
use crate::pipeline::sweep::{self, OptionAddress, OptionAssignment, toml_to_json};
use crate::plan::ids::PerVariant;
use crate::plan::selection::{self, Selection};
use crate::plan::{self, Plan, Variant};
use crate::stages::prune::RepeatPosition;
use crate::stages::registry::{ListedStage, Stage, Step, UnrolledStage};

/// What the command line adds to a pipeline file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `type.key=value`, as given.
    pub set: Vec<String>,
    /// The folder of results.
    pub results: Option<PathBuf>,
    pub selection: Selection,
    /// Every stage runs, whatever is kept.
    pub force: bool,
    /// Stages of these types run, and all that follow them.
    pub force_from: Vec<String>,
    /// Whether the lock file beside the pipeline must hold.
    pub locked: bool,
}

/// Checks a pipeline. `world`: whether to look at files, folders and the device.
pub fn check(path: &Path, overrides: &Overrides, world: bool) -> Result<Plan, InvalidPipeline> {
    let name = path.display().to_string();
    let invalid = |problems| {
        Err(InvalidPipeline {
            name: name.clone(),
            problems: Problem::sort_and_dedup(problems),
        })
    };
    let text = match std::fs::read(path)
        .map_err(|e| e.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|e| format!("it is not UTF-8: {e}")))
    {
        Ok(text) => text,
        Err(message) => {
            let sources = SourceTexts::new(&name, "");
            return invalid(vec![sources.problem(
                0..0,
                format!("cannot read `{name}`: {message}"),
                "a pipeline is a TOML file; its path is relative to the working directory",
            )]);
        }
    };
    let mut sources = SourceTexts::new(&name, &text);
    let mut problems = Vec::new();
    let given: Vec<(String, String)> = overrides
        .set
        .iter()
        .map(|set| override_text(set, &mut sources))
        .collect();
    let document = file::parse(&text, &sources, &mut problems);
    let (run_sets, sets) = read_overrides(&given, &sources, &mut problems);
    let mut settings = settings::layer_settings(
        document.run.as_ref(),
        &run_sets,
        &mut sources,
        &mut problems,
    );
    if let Some(results) = &overrides.results {
        settings.run.results = results.clone();
        settings
            .provenance
            .insert("results".to_owned(), "--results".to_owned());
    }
    if overrides.locked {
        settings.run.locked = true;
        settings
            .provenance
            .insert("locked".to_owned(), "--locked".to_owned());
    }
    let places = setting_spans(&document, &run_sets, overrides, &mut sources);
    check_run_settings(&settings.run, &places, &sources, &mut problems);

    let all = expand_variants(&document, &sets, &settings.run, &sources, &mut problems);
    let order: Vec<String> = all.iter().map(|variant| variant.id.clone()).collect();
    let (variants, others) = overrides
        .selection
        .split_variants(all, &mut sources, &mut problems);
    let mut variants: PerVariant<Variant> = variants.into();
    let (mut nodes, roots) = plan::build_tree(&mut variants);
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
    if world {
        environment::check_environment(
            &variants,
            &mut nodes,
            (&settings.run, &name),
            &places,
            &sources,
            &mut problems,
        );
    }
    if problems.is_empty() {
        let locked = setting_span(&places, "locked");
        Ok(Plan {
            name,
            pipeline_path: path.to_owned(),
            pipeline_text: text,
            sources,
            settings,
            locked_span: locked,
            variants,
            unselected: others,
            variant_order: order,
            nodes,
            roots,
        })
    } else {
        invalid(problems)
    }
}

/// Where each run setting is written; "" is `[run]` itself.
pub type SettingSpans = BTreeMap<String, Range<usize>>;

fn setting_spans(
    document: &PipelineDocument<'_>,
    run_sets: &RunOverrides<'_>,
    overrides: &Overrides,
    sources: &mut SourceTexts,
) -> SettingSpans {
    let mut places = SettingSpans::from([(
        String::new(),
        document.run.as_ref().map_or(0..0, Spanned::span),
    )]);
    for table in document
        .run
        .iter()
        .chain(run_sets.iter().map(|(_, table)| table))
    {
        places.extend(
            table
                .get_ref()
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), value.span())),
        );
    }
    if let Some(results) = &overrides.results {
        places.insert(
            "results".to_owned(),
            sources.add_argument(&format!("--results {}", results.display())),
        );
    }
    if overrides.locked {
        places.insert("locked".to_owned(), sources.add_argument("--locked"));
    }
    places
}

/// The place of a setting, or of `[run]` where it is not written.
pub fn setting_span(places: &SettingSpans, key: &str) -> Range<usize> {
    places.get(key).or(places.get("")).cloned().unwrap_or(0..0)
}

/// A `--set` as TOML text that begins at its place among the sources, so that its values carry the right spans.
fn override_text(set: &str, sources: &mut SourceTexts) -> (String, String) {
    let (key, value) = set.split_once('=').unwrap_or((set, ""));
    let is_toml = DeTable::parse(&format!("x = {value}")).is_ok() && !value.trim().is_empty();
    let value = if is_toml {
        value.to_owned()
    } else {
        Value::from(value).to_string()
    };
    let line = format!("\"{key}\" = {value}");
    let start = sources.add_text(&format!("--set {set}"), &line);
    (set.to_owned(), format!("{}{line}", " ".repeat(start)))
}

type RunOverrides<'t> = Vec<(String, Spanned<DeTable<'t>>)>;

/// The overrides of run settings, and those of stages.
fn read_overrides<'t>(
    given: &'t [(String, String)],
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> (RunOverrides<'t>, Vec<OptionAssignment<'t>>) {
    let (mut run, mut stages) = (Vec::new(), Vec::new());
    for (set, text) in given {
        let whole = text.len() - text.trim_start().len()..text.len();
        let mut refuse = |message: String| {
            problems.push(sources.problem(
                whole.clone(),
                message,
                "write --set type.key=value, or --set run.key=value",
            ))
        };
        let table = DeTable::parse(text)
            .ok()
            .map(Spanned::into_inner)
            .filter(|table| table.len() == 1);
        let Some((key, value)) = table.and_then(|table| table.into_iter().next()) else {
            refuse(format!("`{set}` is not `type.key=value`"));
            continue;
        };
        if !set.contains('=') {
            refuse(format!("`{set}` has no value"));
            continue;
        }
        match OptionAddress::parse(key.get_ref()) {
            Err(message) => refuse(message),
            Ok(address)
                if address.tag == "run" && (address.index.is_some() || address.path.len() > 1) =>
            {
                refuse(format!("`{set}` is no run setting"));
            }
            Ok(address) if address.tag == "run" => {
                let mut table = DeTable::new();
                table.insert(
                    Spanned::new(key.span(), address.path[0].clone().into()),
                    value,
                );
                run.push((format!("--set {set}"), Spanned::new(whole, table)));
            }
            Ok(address) => stages.push(OptionAssignment {
                address,
                key: key.get_ref().to_string(),
                name_span: key.span(),
                value,
            }),
        }
    }
    (run, stages)
}

fn check_run_settings(
    run: &RunSettings,
    places: &SettingSpans,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |key: &str, message: String, help: &str| {
        problems.push(sources.problem(setting_span(places, key), message, help));
    };
    let paths = [
        ("results", Some(&run.results)),
        ("cache", run.cache.as_ref()),
        ("data", run.data.as_ref()),
    ];
    for (key, _) in paths
        .into_iter()
        .filter(|(_, path)| path.is_some_and(|path| path.as_os_str().is_empty()))
    {
        refuse(
            key,
            format!("`{key}` is empty"),
            "write a folder, or leave the line out",
        );
    }
    if let Some(threads) = run.threads.filter(|threads| !(1..=256).contains(threads)) {
        let help = "write threads = 1 to 256, or leave the line out";
        refuse("threads", format!("{threads} threads cannot work"), help);
    }
    if i64::try_from(run.seed).is_err() {
        let help = "write a seed of at most 9223372036854775807";
        refuse(
            "seed",
            "the seed is larger than a whole number of TOML".to_owned(),
            help,
        );
    }
}

/// Every variant of the sweep, decoded and in order.
fn expand_variants(
    document: &PipelineDocument<'_>,
    sets: &[OptionAssignment<'_>],
    run: &RunSettings,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Vec<Variant> {
    let counts = sweep::count_stages(&document.stages);
    let combinations =
        sweep::expand_sweep(document.sweep.as_ref(), sets, &counts, sources, problems);
    let mut variants = Vec::with_capacity(combinations.len());
    for combination in combinations {
        let mut stages = document.stages.clone();
        // What the command line says comes last, so it wins.
        for setting in combination.iter().chain(sets) {
            sweep::apply_assignment(&mut stages, setting, sources, problems);
        }
        let (entries, list) = decode_stages(&stages, sources, problems);
        order::check_order(&list, sources, problems);
        let steps = list.into_iter().filter_map(|listed| match listed {
            UnrolledStage::Step(step) => Some(step),
            UnrolledStage::Invalid(_) => None,
        });
        variants.push(build_variant(&combination, entries, steps.collect(), run));
    }
    let mut seen = BTreeSet::new();
    if problems.is_empty()
        && let Some(twice) = variants.iter().find(|variant| !seen.insert(variant.hash))
    {
        let span = document.sweep.as_ref().map_or(0..0, Spanned::span);
        problems.push(sources.problem(
            span,
            format!("two variants of the sweep are the same: {}", twice.id),
            "remove a value that is written twice",
        ));
    }
    // Eight digits tell thousands apart; where two have the same, more do.
    let mut ids = BTreeMap::new();
    variants
        .iter()
        .for_each(|variant| *ids.entry(variant.id.clone()).or_insert(0) += 1);
    for variant in variants.iter_mut().filter(|variant| ids[&variant.id] > 1) {
        variant
            .id
            .push_str(&blake3::Hash::from(variant.hash).to_hex()[8..32]);
    }
    variants
}

/// Stages as written, and unrolled.
fn decode_stages(
    stages: &[RawStage<'_>],
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> (Vec<ListedStage>, Vec<UnrolledStage>) {
    let (mut entries, mut list) = (Vec::new(), Vec::new());
    for raw in stages {
        match raw.decode(sources, problems) {
            Some(DecodedStage::Stage(stage)) => {
                push_step(&mut list, &stage, raw, None);
                entries.push(ListedStage::Stage(stage));
            }
            None if raw.tag != "repeat" => list.push(UnrolledStage::Invalid(raw.tag.clone())),
            repeat => {
                // A repeat that could not be read has stages all the same.
                let times = if let Some(DecodedStage::Repeat(options)) = repeat {
                    options.times.clamp(1, 1000)
                } else {
                    1
                };
                let inner: Vec<(Option<DecodedStage>, &RawStage<'_>)> = raw
                    .repeated_stages
                    .iter()
                    .map(|raw| (raw.decode(sources, problems), raw))
                    .collect();
                for time in 1..=times {
                    for (decoded, raw) in &inner {
                        match decoded {
                            Some(DecodedStage::Stage(stage)) => push_step(
                                &mut list,
                                stage,
                                raw,
                                Some(RepeatPosition {
                                    iteration: time,
                                    iterations: times,
                                }),
                            ),
                            _ => list.push(UnrolledStage::Invalid(raw.tag.clone())),
                        }
                    }
                }
                let stages = inner.into_iter().filter_map(|(decoded, _)| match decoded? {
                    DecodedStage::Stage(stage) => Some(stage),
                    DecodedStage::Repeat(_) => None,
                });
                entries.push(ListedStage::Repeat {
                    times,
                    stages: stages.collect(),
                });
            }
        }
    }
    (entries, list)
}

fn push_step(
    list: &mut Vec<UnrolledStage>,
    stage: &Stage,
    raw: &RawStage<'_>,
    schedule: Option<RepeatPosition>,
) {
    let same = list.iter().filter(
        |listed| matches!(listed, UnrolledStage::Step(step) if step.stage.tag() == stage.tag()),
    );
    let occurrence = same.count() as u32;
    let schedule = schedule.filter(|_| matches!(stage, Stage::Prune(_)));
    list.push(UnrolledStage::Step(Step {
        position: list.len() as u32,
        stage: stage.clone(),
        schedule,
        occurrence,
        span: raw.type_span.clone(),
        key_spans: raw.key_spans(),
    }));
}

/// The variant's id: a readable beginning, and a hash of its stages' options and the seed.
fn build_variant(
    combination: &[OptionAssignment<'_>],
    entries: Vec<ListedStage>,
    steps: Vec<Step>,
    run: &RunSettings,
) -> Variant {
    let swept: Vec<(String, Value)> = combination
        .iter()
        .map(|s| (s.key.clone(), toml_to_json(&s.value)))
        .collect();
    let identities: Vec<Value> = steps.iter().map(Step::identity).collect();
    let hash = blake3::hash(
        serde_json::json!({ "seed": run.seed, "stages": identities })
            .to_string()
            .as_bytes(),
    );
    let words = combination
        .iter()
        .map(|setting| match setting.value.get_ref() {
            DeValue::String(text) => text.to_string(),
            _ => format!(
                "{}{}",
                setting.address.path.last().map_or("", String::as_str),
                toml_to_json(&setting.value)
            ),
        });
    let readable = words
        .collect::<Vec<_>>()
        .join("-")
        .to_lowercase()
        .replace('+', "");
    let readable: String = readable
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    let readable = Some(readable.trim_matches(['-', '.'])).filter(|readable| !readable.is_empty());
    let id = format!("{}-{}", readable.unwrap_or("base"), &hash.to_hex()[..8]);
    Variant {
        id,
        hash: *hash.as_bytes(),
        swept,
        listed_stages: entries,
        steps,
        nodes: Vec::new(),
    }
}
