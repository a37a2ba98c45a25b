//! The variants of the sweep: each combination applied to the file's stages, decoded and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Value, json};

use crate::pipeline::arguments::ParsedArguments;
use crate::pipeline::assignment::{self, OptionAssignment};
use crate::pipeline::file::PipelineDocument;
use crate::pipeline::order;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::sweep::{self, Combination};
use crate::pipeline::unroll::DecodedStages;
use crate::plan::Variant;
use crate::plan::naming::{NamedOption, SweptOptions, readable_prefix};
use crate::stages::step::{Step, UnrolledStage};

/// Hexadecimal digits of the hash in a variant's id: enough to tell thousands of variants apart.
const ID_HASH_DIGITS: usize = 8;

/// Hexadecimal digits of the hash in the ids of variants whose shorter ids are equal.
const LONG_ID_HASH_DIGITS: usize = 32;

/// The seed of a run.
#[derive(Clone, Copy)]
pub(super) struct RunSeed {
    pub value: u64,
    /// Whether the command line or the environment gives another seed than the file.
    pub is_other_than_of_file: bool,
}

/// Decodes every variant of the sweep and checks its values and its order.
pub(super) fn expand_variants(
    document: &PipelineDocument<'_>,
    arguments: &ParsedArguments<'_>,
    seed: RunSeed,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Vec<Variant> {
    let counts = assignment::count_stages(&document.stages);
    let combinations = sweep::expand_sweep(
        document.sweep.as_ref(),
        arguments,
        &counts,
        sources,
        problems,
    );
    check_replaced_values(document, &combinations, arguments, sources, problems);
    let swept = SweptOptions::new(document.sweep.as_ref(), &counts);
    let mut command_line = Vec::new();
    if let Some(combination) = combinations.first() {
        let set = &arguments.set;
        command_line = command_line_options(document, combination, set, &swept, sources);
    }
    if seed.is_other_than_of_file {
        command_line.push(NamedOption::seed(seed.value));
    }
    let mut variants = Vec::with_capacity(combinations.len());
    for combination in combinations {
        let mut raw_stages = document.stages.clone();
        // The command line is applied last, so that it replaces the sweep's value.
        for option in combination.iter().chain(&arguments.set) {
            assignment::apply_assignment(&mut raw_stages, option, sources, problems);
        }
        let mut decoded = DecodedStages::decode(&raw_stages, sources, problems);
        order::check_order(&mut decoded.unrolled, sources, problems);
        let options = swept.of_variant(&combination, &command_line);
        variants.push(build_variant(options, decoded, seed.value));
    }
    if problems.iter().all(Problem::is_warning) {
        let span = arguments.sweep_span(document.sweep.as_ref());
        check_distinct(&variants, span, sources, problems);
    }
    lengthen_equal_ids(&mut variants);
    variants
}

/// The options of `--set` that a variant is named after, in the order of stage types and keys, so
/// that the order of the arguments does not matter. An option that has the value of the file, and
/// that the sweep does not have, is none of them.
fn command_line_options(
    document: &PipelineDocument<'_>,
    combination: &[OptionAssignment<'_>],
    set: &[OptionAssignment<'_>],
    swept: &SweptOptions<'_>,
    sources: &SourceTexts,
) -> Vec<NamedOption> {
    // The outcome without one of the arguments. The mistakes of these stages are reported where the
    // variants are decoded.
    let identities_without = |left_out: Option<&OptionAssignment<'_>>| {
        let mut raw_stages = document.stages.clone();
        let mut ignored = Vec::new();
        for option in combination.iter().chain(set) {
            if left_out.is_none_or(|left_out| left_out.address != option.address) {
                assignment::apply_assignment(&mut raw_stages, option, sources, &mut ignored);
            }
        }
        decoded_identities(&DecodedStages::decode(&raw_stages, sources, &mut ignored))
    };
    let identities = identities_without(None);
    let mut named: Vec<&OptionAssignment<'_>> = swept
        .effective(set)
        .into_iter()
        .filter(|option| {
            swept.is_replaced_by(option) || identities_without(Some(option)) != identities
        })
        .collect();
    named.sort_by(|one, other| one.address.cmp(&other.address));
    named
        .into_iter()
        .map(|option| swept.named_by_command_line(option))
        .collect()
}

/// What defines the outcome of each step that could be decoded.
fn decoded_identities(decoded: &DecodedStages) -> Vec<Value> {
    let stages = decoded.unrolled.iter();
    stages
        .filter_map(|stage| match stage {
            UnrolledStage::Step(step) => Some(step.identity()),
            UnrolledStage::Invalid(_) => None,
        })
        .collect()
}

/// Checks the file's own values of options that the sweep or `--set` replaces: no variant has them.
fn check_replaced_values(
    document: &PipelineDocument<'_>,
    combinations: &[Combination<'_>],
    arguments: &ParsedArguments<'_>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    // All combinations have the same options.
    let swept = combinations.iter().take(1).flatten();
    let mut replaced: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for OptionAssignment { address, .. } in swept.chain(&arguments.set) {
        let keys = replaced.entry(&address.tag).or_default();
        keys.extend(address.path.first().map(String::as_str));
    }
    for stage in &document.stages {
        stage.check_replaced_values(&replaced, sources, problems);
    }
}

/// Two variants with the same options and seed are a mistake of the sweep.
fn check_distinct(
    variants: &[Variant],
    sweep_span: Range<usize>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut seen = BTreeSet::new();
    if let Some(repeated) = variants.iter().find(|variant| !seen.insert(variant.hash)) {
        problems.push(sources.problem(
            sweep_span,
            format!("two variants of the sweep are the same: {}", repeated.id),
            "remove a value that is written twice",
        ));
    }
}

/// Adds further digits of the hash to ids that several variants have.
fn lengthen_equal_ids(variants: &mut [Variant]) {
    let mut id_counts: BTreeMap<String, usize> = BTreeMap::new();
    for variant in variants.iter() {
        *id_counts.entry(variant.id.clone()).or_default() += 1;
    }
    for variant in variants {
        if id_counts[&variant.id] > 1 {
            let hash = blake3::Hash::from(variant.hash).to_hex();
            variant
                .id
                .push_str(&hash[ID_HASH_DIGITS..LONG_ID_HASH_DIGITS]);
        }
    }
}

/// Builds a variant. Its id is a readable prefix and the hash of its stages' options and the seed.
fn build_variant(options: Vec<NamedOption>, decoded: DecodedStages, seed: u64) -> Variant {
    let identities = decoded_identities(&decoded);
    let hash_input = json!({ "seed": seed, "stages": identities }).to_string();
    let hash = blake3::hash(hash_input.as_bytes());
    let readable = readable_prefix(&options);
    let steps: Vec<Step> = decoded
        .unrolled
        .into_iter()
        .filter_map(|stage| match stage {
            UnrolledStage::Step(step) => Some(step),
            UnrolledStage::Invalid(_) => None,
        })
        .collect();
    Variant {
        id: format!("{readable}-{}", &hash.to_hex()[..ID_HASH_DIGITS]),
        hash: *hash.as_bytes(),
        swept: options
            .into_iter()
            .map(|option| (option.key, option.value))
            .collect(),
        listed_stages: decoded.listed,
        steps,
        nodes: Vec::new(),
    }
}
