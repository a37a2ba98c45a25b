//! What tells a variant from its pipeline file: the options of the sweep, and those of `--set` that
//! change something. They are columns of the sweep's table and words of the variant's name.

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::pipeline::address::{CountByType, OptionAddress};
use crate::pipeline::assignment::{OptionAssignment, toml_to_json};

/// The length of the readable part of a variant's id, in characters.
const MAX_READABLE_CHARS: usize = 40;

/// The option under which a seed that is not that of the file is recorded.
const SEED_KEY: &str = "run.seed";

/// An option that tells a variant from the file.
#[derive(Clone, Debug)]
pub(super) struct NamedOption {
    /// The option as it is written, such as `prune.ratio`.
    pub key: String,
    pub value: Value,
    /// Its part of the variant's name.
    word: String,
    /// The position of its line in `[sweep]`; None if it has none.
    position: Option<usize>,
}

/// The options that the file's `[sweep]` lists, in the order of the file. The words of a name are
/// in this order, whether the sweep or the command line gives the value, so that both lead to one
/// name.
pub(super) struct SweptOptions<'c> {
    options: Vec<(String, OptionAddress)>,
    counts: &'c CountByType,
}

impl<'c> SweptOptions<'c> {
    pub(super) fn new(sweep: Option<&Spanned<DeTable<'_>>>, counts: &'c CountByType) -> Self {
        let mut options = Vec::new();
        if let Some(sweep) = sweep {
            add_options(sweep.get_ref(), &mut options);
        }
        Self { options, counts }
    }

    /// The first option of the sweep that an assignment replaces, if any.
    fn position(&self, address: &OptionAddress) -> Option<usize> {
        let mut options = self.options.iter();
        options.position(|(_, swept)| address.covers(swept, self.counts))
    }

    /// The assignments that have an effect: the last of several for one option counts.
    pub(super) fn effective<'a, 't>(
        &self,
        set: &'a [OptionAssignment<'t>],
    ) -> Vec<&'a OptionAssignment<'t>> {
        let is_replaced = |index: usize| {
            let mut later = set[index + 1..].iter();
            later.any(|other| other.address.covers(&set[index].address, self.counts))
        };
        (0..set.len())
            .filter(|&index| !is_replaced(index))
            .map(|index| &set[index])
            .collect()
    }

    pub(super) fn is_replaced_by(&self, assignment: &OptionAssignment<'_>) -> bool {
        self.position(&assignment.address).is_some()
    }

    /// A value of the sweep.
    fn named_by_sweep(&self, assignment: &OptionAssignment<'_>) -> NamedOption {
        NamedOption {
            key: assignment.key.clone(),
            value: toml_to_json(&assignment.value),
            word: word(assignment),
            position: self.position(&assignment.address),
        }
    }

    /// A value of the command line. If it replaces one of the sweep it has the name that the sweep
    /// gives it. A path is named by its last part.
    pub(super) fn named_by_command_line(&self, assignment: &OptionAssignment<'_>) -> NamedOption {
        let option = self.named_by_sweep(assignment);
        let swept = option.position.map(|position| &self.options[position]);
        match swept {
            Some((key, address)) if address.covers(&assignment.address, self.counts) => {
                NamedOption {
                    key: key.clone(),
                    ..option
                }
            }
            _ => NamedOption {
                word: last_path_component(&option.word).to_owned(),
                ..option
            },
        }
    }

    /// The options of a variant: those of its combination and those of the command line.
    pub(super) fn of_variant(
        &self,
        combination: &[OptionAssignment<'_>],
        command_line: &[NamedOption],
    ) -> Vec<NamedOption> {
        let mut options: Vec<NamedOption> = combination
            .iter()
            .map(|assignment| self.named_by_sweep(assignment))
            .collect();
        options.extend(command_line.iter().cloned());
        // The sort is stable: options without a line in the sweep stay in their order.
        options.sort_by_key(|option| option.position.unwrap_or(usize::MAX));
        options
    }
}

impl NamedOption {
    pub(super) fn seed(seed: u64) -> Self {
        Self {
            key: SEED_KEY.to_owned(),
            value: seed.into(),
            word: format!("seed{seed}"),
            position: None,
        }
    }
}

fn add_options(table: &DeTable<'_>, options: &mut Vec<(String, OptionAddress)>) {
    for (key, value) in table {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("exclude", _) => {}
            ("zip", DeValue::Table(lists)) => add_options(lists, options),
            ("zip", DeValue::Array(tables)) => {
                for lists in tables {
                    if let DeValue::Table(lists) = lists.get_ref() {
                        add_options(lists, options);
                    }
                }
            }
            (key, _) => {
                if let Ok(address) = OptionAddress::parse(key) {
                    options.push((key.to_owned(), address));
                }
            }
        }
    }
}

/// A text as it is, any other value after the name of its option.
fn word(assignment: &OptionAssignment<'_>) -> String {
    match assignment.value.get_ref() {
        DeValue::String(text) => text.to_string(),
        _ => {
            let option = assignment.address.path.last().map_or("", String::as_str);
            format!("{option}{}", toml_to_json(&assignment.value))
        }
    }
}

fn last_path_component(text: &str) -> &str {
    let path = text.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

/// The words of a variant's options joined by `-`, such as `sum-ratio0.25`; `base` without any.
pub(super) fn readable_prefix(options: &[NamedOption]) -> String {
    let words: Vec<&str> = options.iter().map(|option| option.word.as_str()).collect();
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
