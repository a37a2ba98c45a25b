//! The variants of the sweep: each combination applied to the file's stages, decoded and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Value, json};
use toml::de::DeValue;

use crate::pipeline::arguments::ParsedArguments;
use crate::pipeline::assignment::{self, OptionAssignment, toml_to_json};
use crate::pipeline::file::PipelineDocument;
use crate::pipeline::order;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::sweep::{self, Combination};
use crate::pipeline::unroll::DecodedStages;
use crate::plan::Variant;
use crate::stages::step::{Step, UnrolledStage};

/// The length of the readable part of a variant's id, in characters.
const MAX_READABLE_CHARS: usize = 40;

/// Hexadecimal digits of the hash in a variant's id: enough to tell thousands of variants apart.
const ID_HASH_DIGITS: usize = 8;

/// Hexadecimal digits of the hash in the ids of variants whose shorter ids are equal.
const LONG_ID_HASH_DIGITS: usize = 32;

/// Decodes every variant of the sweep and checks its values and its order.
pub(super) fn expand_variants(
    document: &PipelineDocument<'_>,
    arguments: &ParsedArguments<'_>,
    seed: u64,
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
    let mut variants = Vec::with_capacity(combinations.len());
    for combination in combinations {
        let mut raw_stages = document.stages.clone();
        // The command line is applied last, so that it replaces the sweep's value.
        for option in combination.iter().chain(&arguments.set) {
            assignment::apply_assignment(&mut raw_stages, option, sources, problems);
        }
        let mut decoded = DecodedStages::decode(&raw_stages, sources, problems);
        order::check_order(&mut decoded.unrolled, sources, problems);
        variants.push(build_variant(&combination, decoded, seed));
    }
    if problems.iter().all(Problem::is_warning) {
        let span = arguments.sweep_span(document.sweep.as_ref());
        check_distinct(&variants, span, sources, problems);
    }
    lengthen_equal_ids(&mut variants);
    variants
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
fn build_variant(
    combination: &[OptionAssignment<'_>],
    decoded: DecodedStages,
    seed: u64,
) -> Variant {
    let steps: Vec<Step> = decoded
        .unrolled
        .into_iter()
        .filter_map(|stage| match stage {
            UnrolledStage::Step(step) => Some(step),
            UnrolledStage::Invalid(_) => None,
        })
        .collect();
    let identities: Vec<Value> = steps.iter().map(Step::identity).collect();
    let hash_input = json!({ "seed": seed, "stages": identities }).to_string();
    let hash = blake3::hash(hash_input.as_bytes());
    let readable = readable_prefix(combination);
    Variant {
        id: format!("{readable}-{}", &hash.to_hex()[..ID_HASH_DIGITS]),
        hash: *hash.as_bytes(),
        swept: combination
            .iter()
            .map(|assignment| (assignment.key.clone(), toml_to_json(&assignment.value)))
            .collect(),
        listed_stages: decoded.listed,
        steps,
        nodes: Vec::new(),
    }
}

/// The swept values joined by `-`, such as `sum-ratio0.25`: a text as it is, any other value after
/// the name of its option. `base` without a sweep.
fn readable_prefix(combination: &[OptionAssignment<'_>]) -> String {
    let words: Vec<String> = combination
        .iter()
        .map(|assignment| match assignment.value.get_ref() {
            DeValue::String(text) => text.to_string(),
            _ => {
                let option = assignment.address.path.last().map_or("", String::as_str);
                format!("{option}{}", toml_to_json(&assignment.value))
            }
        })
        .collect();
    // `+` is left out: it is the sign of exponents such as 1e+3.
    let joined = words.join("-").to_lowercase().replace('+', "");
    let file_name: String = joined
        .chars()
        .map(|character| match character {
            'a'..='z' | '0'..='9' | '.' => character,
            _ => '-',
        })
        .take(MAX_READABLE_CHARS)
        .collect();
    match file_name.trim_matches(['-', '.']) {
        "" => "base".to_owned(),
        readable => readable.to_owned(),
    }
}
