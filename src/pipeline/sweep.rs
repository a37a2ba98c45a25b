//! `[sweep]` and `--sweep`: lists of values for options → the combinations of these values.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::pipeline::address::{CountByType, OptionAddress};
use crate::pipeline::arguments::ParsedArguments;
use crate::pipeline::assignment::{OptionAssignment, insert_value, toml_to_json};
use crate::pipeline::option_type;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::table_check::CheckedTable;

/// The largest number of variants; a larger sweep is a mistake.
const MAX_VARIANTS: usize = 100_000;

/// A combination of the sweep: the assignments of one variant.
pub(crate) type Combination<'t> = Vec<OptionAssignment<'t>>;

/// One dimension of the sweep: a list of values, each with the options that change together.
type SweepAxis<'t> = Vec<Combination<'t>>;

/// An entry of `exclude`: its span, and the assignments that a combination must have to be
/// excluded.
type Exclusion<'t> = (Range<usize>, Combination<'t>);

/// The combinations of the sweep that are not excluded, in the order of the file. Without a sweep
/// there is one, which is empty. An option of `--set` is not swept; a line of `[sweep]` whose option
/// is one of `--sweep` is replaced by it, and other options of `--sweep` come last.
pub(crate) fn expand_sweep<'t>(
    sweep: Option<&Spanned<DeTable<'t>>>,
    arguments: &ParsedArguments<'t>,
    counts: &CountByType,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Vec<Combination<'t>> {
    let set = &arguments.set[..];
    let mut parser = SweepParser {
        arguments,
        used_arguments: BTreeSet::new(),
        counts,
        sources,
        problems,
    };
    parser.check_arguments();
    let (mut axes, exclusions) = match sweep {
        Some(sweep) => parser.parse(sweep.get_ref()),
        None => Default::default(),
    };
    axes.extend(parser.unused_arguments());
    parser.check_overlaps(&axes);
    let sweep_span = arguments.sweep_span(sweep);
    let variant_count = axes
        .iter()
        .fold(1usize, |count, axis| count.saturating_mul(axis.len()));
    if variant_count > MAX_VARIANTS {
        problems.push(sources.problem(
            sweep_span,
            format!("the sweep has more than {MAX_VARIANTS} variants"),
            "sweep fewer values, or split the file",
        ));
        return vec![Combination::new()];
    }
    let mut combinations = cartesian_product(&axes);
    for (span, exclusion) in &exclusions {
        let count_before = combinations.len();
        combinations.retain(|combination| !is_excluded(combination, set, exclusion, counts));
        // An exclusion that matches nothing is a mistake, unless the command line replaced an
        // option that it names.
        let is_replaced = exclusion.iter().any(|excluded| {
            let swept = arguments.sweep.iter().flat_map(|sweep| &sweep.values);
            let mut assignments = set.iter().chain(swept);
            assignments.any(|assignment| assignment.address.covers(&excluded.address, counts))
        });
        if combinations.len() == count_before && !is_replaced {
            problems.push(sources.problem(
                span.clone(),
                "this exclusion matches no variant",
                "its options must be swept, with these values",
            ));
        }
    }
    if combinations.is_empty() {
        problems.push(sources.problem(sweep_span, "every variant of the sweep is excluded", ""));
    }
    combinations
}

/// All combinations of one value per axis; the last axis varies fastest.
fn cartesian_product<'t>(axes: &[SweepAxis<'t>]) -> Vec<Combination<'t>> {
    let mut combinations = vec![Combination::new()];
    for axis in axes {
        let mut extended = Vec::with_capacity(combinations.len() * axis.len());
        for combination in &combinations {
            for values in axis {
                extended.push([&combination[..], &values[..]].concat());
            }
        }
        combinations = extended;
    }
    combinations
}

/// Whether every assignment of the exclusion is among those of the combination or of `--set`.
fn is_excluded<'t>(
    combination: &[OptionAssignment<'t>],
    set: &[OptionAssignment<'t>],
    exclusion: &[OptionAssignment<'t>],
    counts: &CountByType,
) -> bool {
    exclusion.iter().all(|excluded| {
        let mut assignments = combination.iter().chain(set);
        assignments.any(|assignment| {
            assignment.address.covers(&excluded.address, counts)
                && toml_to_json(&assignment.value) == toml_to_json(&excluded.value)
        })
    })
}

/// Parses the table `[sweep]`.
struct SweepParser<'a, 't> {
    arguments: &'a ParsedArguments<'t>,
    /// The arguments of `--sweep` that have replaced a line, by index.
    used_arguments: BTreeSet<usize>,
    counts: &'a CountByType,
    sources: &'a SourceTexts,
    problems: &'a mut Vec<Problem>,
}

impl<'t> SweepParser<'_, 't> {
    fn refuse(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.problems
            .push(self.sources.problem(span, message, help));
    }

    /// An option that is given to both `--set` and `--sweep` is a mistake, and so is a wrong value.
    fn check_arguments(&mut self) {
        for option in self.arguments.sweep.iter().flat_map(|sweep| &sweep.values) {
            let mut set = self.arguments.set.iter();
            if set.any(|other| other.address.overlaps(&option.address, self.counts)) {
                let message = format!("`{}` is given to both --set and --sweep", option.key);
                let help = "give it to one of them";
                self.refuse(option.name_span.clone(), message, help);
            }
            self.check_value(option);
        }
    }

    /// The axes of the `--sweep` arguments that have replaced no line.
    fn unused_arguments(&self) -> Vec<SweepAxis<'t>> {
        let arguments = self.arguments.sweep.iter().enumerate();
        arguments
            .filter(|(index, _)| !self.used_arguments.contains(index))
            .map(|(_, argument)| argument.axis())
            .collect()
    }

    fn parse(&mut self, sweep: &DeTable<'t>) -> (Vec<SweepAxis<'t>>, Vec<Exclusion<'t>>) {
        let (mut axes, mut exclusions) = (Vec::new(), Vec::new());
        for (key, value) in sweep {
            match key.get_ref().as_ref() {
                "zip" => {
                    for (span, table) in self.parse_tables(value, "zip") {
                        axes.extend(self.parse_zip(span, table));
                    }
                }
                "exclude" => {
                    for (span, table) in self.parse_tables(value, "exclude") {
                        let mut assignments = Vec::new();
                        for (key, value) in table {
                            assignments.extend(self.parse_assignment(key, value));
                        }
                        exclusions.push((span, assignments));
                    }
                }
                _ => {
                    let axis = self.parse_axis(key, value);
                    let replacement = axis.as_ref().and_then(|axis| self.replacement(axis));
                    match replacement {
                        Some(index) if self.used_arguments.insert(index) => {
                            axes.push(self.arguments.sweep[index].axis());
                        }
                        Some(_) => {}
                        None => axes.extend(axis.filter(|axis| !self.is_set(axis))),
                    }
                }
            }
        }
        (axes, exclusions)
    }

    /// The `--sweep` argument that replaces an axis, by index.
    fn replacement(&self, axis: &SweepAxis<'t>) -> Option<usize> {
        let option = axis.first()?.first()?;
        self.arguments.sweep.iter().position(|argument| {
            let mut values = argument.values.iter();
            values.any(|value| value.address.covers(&option.address, self.counts))
        })
    }

    /// Whether `--set` replaces the option of an axis.
    fn is_set(&self, axis: &SweepAxis<'t>) -> bool {
        let option = axis.first().and_then(|values| values.first());
        option.is_some_and(|option| {
            let mut set = self.arguments.set.iter();
            set.any(|assignment| assignment.address.covers(&option.address, self.counts))
        })
    }

    /// Two axes that set the same option are a mistake: it would be unclear which value counts.
    fn check_overlaps(&mut self, axes: &[SweepAxis<'t>]) {
        // All values of an axis have the same options.
        let options: Vec<&OptionAssignment<'t>> = axes
            .iter()
            .filter_map(|axis| axis.first())
            .flatten()
            .collect();
        for (index, option) in options.iter().enumerate() {
            let mut earlier = options[..index].iter();
            if let Some(other) =
                earlier.find(|other| other.address.overlaps(&option.address, self.counts))
            {
                let message = if option.key == other.key {
                    format!("`{}` is swept twice", option.key)
                } else {
                    format!(
                        "`{}` is an option that `{}` sweeps too",
                        option.key, other.key
                    )
                };
                self.refuse(option.name_span.clone(), message, "sweep an option once");
            }
        }
    }

    /// Parses `"type.key" = [values]`. None if there is no value for an option. A value that is not
    /// a list is reported, and read as a list of one value.
    fn parse_axis(
        &mut self,
        key: &Spanned<DeString<'t>>,
        value: &Spanned<DeValue<'t>>,
    ) -> Option<SweepAxis<'t>> {
        let name = key.get_ref();
        let values = match value.get_ref() {
            DeValue::Array(values) => &values[..],
            // `prune.ratio = …` without quotes is a table `prune` to TOML.
            DeValue::Table(inner) => {
                let first_entry = inner.iter().next();
                let option = first_entry.map_or("key", |(key, _)| key.get_ref().as_ref());
                let message = format!("`{name}` is a table, not the name of an option");
                let help = format!("put the name in quotes: \"{name}.{option}\" = […]");
                self.refuse(value.span(), message, help);
                return None;
            }
            _ => {
                let written = self.sources.text_at(&value.span());
                let message = format!("`{name}` is swept over what is not a list");
                self.refuse(value.span(), message, format!("write a list: [{written}]"));
                std::slice::from_ref(value)
            }
        };
        if values.is_empty() {
            let message = format!("`{name}` is swept over an empty list");
            let help = "write at least one value, or remove the line";
            self.refuse(value.span(), message, help);
            return None;
        }
        let mut axis = SweepAxis::new();
        for value in values {
            axis.push(vec![self.parse_assignment(key, value)?]);
        }
        Some(axis)
    }

    /// Parses `{ "a.b" = [..], "c.d" = [..] }`: lists whose values change together.
    fn parse_zip(&mut self, span: Range<usize>, table: &DeTable<'t>) -> Option<SweepAxis<'t>> {
        let mut lists: Vec<SweepAxis<'t>> = Vec::new();
        for (key, value) in table {
            let axis = self.parse_axis(key, value);
            // An option that the command line sets or sweeps leaves its group.
            lists
                .extend(axis.filter(|axis| !self.is_set(axis) && self.replacement(axis).is_none()));
        }
        let lengths: BTreeSet<usize> = lists.iter().map(Vec::len).collect();
        if lengths.len() > 1 {
            let counts: Vec<String> = lists.iter().map(|list| list.len().to_string()).collect();
            let message = format!(
                "lists that advance together have {} values",
                counts.join(" and ")
            );
            self.refuse(span, message, "give them the same number of values");
            return None;
        }
        let length = *lengths.first()?;
        let mut axis = SweepAxis::new();
        for index in 0..length {
            let values_at_index = lists.iter().flat_map(|list| list[index].clone());
            axis.push(values_at_index.collect());
        }
        Some(axis)
    }

    /// The tables of `zip` or `exclude`: a list of tables, or one table alone.
    fn parse_tables<'v>(
        &mut self,
        value: &'v Spanned<DeValue<'t>>,
        key: &str,
    ) -> Vec<(Range<usize>, &'v DeTable<'t>)> {
        let items: Vec<&Spanned<DeValue<'t>>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        let mut tables = Vec::new();
        for item in items {
            if let DeValue::Table(table) = item.get_ref() {
                tables.push((item.span(), table));
            } else {
                self.refuse(
                    item.span(),
                    format!("`{key}` is a list of tables"),
                    format!("write {key} = [{{ \"prune.ratio\" = …, \"aggregate.with\" = … }}]"),
                );
            }
        }
        tables
    }

    fn parse_assignment(
        &mut self,
        key: &Spanned<DeString<'t>>,
        value: &Spanned<DeValue<'t>>,
    ) -> Option<OptionAssignment<'t>> {
        let address = match OptionAddress::parse(key.get_ref()) {
            Ok(address) => address,
            Err(message) => {
                let help = "for example \"prune.ratio\" = [0.25, 0.5]";
                self.refuse(key.span(), message, help);
                return None;
            }
        };
        if address.tag == "run" {
            let message = "run settings cannot be swept";
            let help =
                "sweep options of stages; for several seeds run the file with --set run.seed=…";
            self.refuse(key.span(), message, help);
            return None;
        }
        let assignment = OptionAssignment {
            address,
            key: key.get_ref().to_string(),
            name_span: key.span(),
            value: value.clone(),
        };
        self.check_value(&assignment);
        Some(assignment)
    }

    /// Checks the key and the type of a value. The variants that have it report the same problem
    /// again, but not every value reaches a variant.
    fn check_value(&mut self, assignment: &OptionAssignment<'t>) {
        let OptionAddress { tag, path, .. } = &assignment.address;
        let Some(table_type) = option_type::stage_table(tag) else {
            return;
        };
        let mut table = DeTable::new();
        // The table is empty, so no value stands in the way of a nested one.
        if insert_value(&mut table, path, assignment).is_ok() {
            let checked = CheckedTable {
                tag,
                span: &assignment.name_span,
                sources: self.sources,
                may_lack_keys: true,
            };
            let mistakes = checked.check(&table, table_type);
            self.problems.extend(mistakes.problems);
        }
    }
}
