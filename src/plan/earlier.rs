//! Variants of earlier runs: whether the pipeline file still gives them.

use serde_json::Value;

use crate::pipeline::arguments::{self, Argument, ParsedArguments};
use crate::pipeline::file;
use crate::pipeline::layers;
use crate::pipeline::problem::SourceTexts;
use crate::plan::variants::{RunSeed, expand_variants};

/// Whether a pipeline file gives a variant with this hash if these options are set as by `--set`:
/// the variant's other options are then those of the file. `hash` is the one in the variant's id.
pub(crate) fn gives_variant(pipeline_text: &str, options: &[(String, Value)], hash: &str) -> bool {
    // What is wrong with the file is reported where it is checked.
    let mut problems = Vec::new();
    let mut sources = SourceTexts::new("", pipeline_text);
    let environment = arguments::environment_arguments(&mut sources, &mut problems);
    let set: Vec<Argument> = options
        .iter()
        .filter_map(|(key, value)| Some((key, toml::Value::try_from(value).ok()?)))
        .map(|(key, value)| Argument::set(&format!("{key}={value}"), &mut sources))
        .collect();
    let arguments = ParsedArguments::parse(&environment, &set, &[], &sources, &mut problems);
    let Some(document) = file::parse(pipeline_text, &sources, &mut problems) else {
        return false;
    };
    let run_table = document.run.as_ref();
    let settings = layers::layer_settings(run_table, &arguments.run, &sources, &mut problems);
    let seed = RunSeed {
        value: settings.run.seed,
        is_other_than_of_file: false,
    };
    let variants = expand_variants(&document, &arguments, seed, &sources, &mut problems);
    let mut hashes = variants
        .iter()
        .map(|variant| blake3::Hash::from(variant.hash).to_hex());
    hashes.any(|full_hash| full_hash.starts_with(hash))
}
