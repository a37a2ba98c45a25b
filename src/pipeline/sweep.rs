//! `[sweep]` and `--set`: values for options, applied to the parsed tables before they are decoded. A value keeps the
//! place where it is written, so a bad one is blamed there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::pipeline::file::RawStage;
use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::stages::registry;

/// An option of a stage: `prune.ratio`, `recover.duration.updates`, `evaluate[2].limit`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OptionAddress {
    pub tag: String,
    /// The how-manieth stage of the type, from 1. None: all of them.
    pub index: Option<usize>,
    pub path: Vec<String>,
}

/// One option of an axis, where it is named, and its value.
#[derive(Clone)]
pub struct OptionAssignment<'t> {
    pub address: OptionAddress,
    pub key: String,
    pub name_span: Range<usize>,
    pub value: Spanned<DeValue<'t>>,
}

/// Settings that change together, one entry for each value.
type SweepAxis<'t> = Vec<Vec<OptionAssignment<'t>>>;

/// How many stages of each type there are, those inside a `repeat` included.
pub type CountByType = BTreeMap<String, usize>;

/// Counts the stages.
pub fn count_stages(stages: &[RawStage<'_>]) -> CountByType {
    let mut counts = CountByType::new();
    for stage in stages {
        *counts.entry(stage.tag.clone()).or_default() += 1;
        for (tag, count) in self::count_stages(&stage.repeated_stages) {
            *counts.entry(tag).or_default() += count;
        }
    }
    counts
}

impl OptionAddress {
    /// The stage that is meant, None for all; the only one of its type is all of them.
    fn stage_index(&self, counts: &CountByType) -> Option<usize> {
        self.index
            .filter(|index| !(*index == 1 && counts.get(&self.tag) == Some(&1)))
    }

    /// Whether a value here decides all that one there would.
    fn covers(&self, other: &Self, counts: &CountByType) -> bool {
        let (own, others) = (self.stage_index(counts), other.stage_index(counts));
        self.tag == other.tag
            && (own.is_none() || own == others)
            && other.path.starts_with(&self.path)
    }

    /// Whether values here and there decide a thing in common.
    fn overlaps(&self, other: &Self, counts: &CountByType) -> bool {
        let (own, others) = (self.stage_index(counts), other.stage_index(counts));
        let same_stage = own.is_none() || others.is_none() || own == others;
        self.tag == other.tag
            && same_stage
            && (self.path.starts_with(&other.path) || other.path.starts_with(&self.path))
    }

    /// Reads `type.key`, `type[2].key`, `type.key.sub`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (stage, path) = text
            .split_once('.')
            .ok_or_else(|| format!("`{text}` names no option; an option is `type.key`"))?;
        let (tag, index) = match stage.strip_suffix(']').and_then(|s| s.split_once('[')) {
            Some((tag, index)) => match index.parse() {
                Ok(index @ 1..) => (tag, Some(index)),
                _ => {
                    return Err(format!(
                        "`{index}` is not the number of a stage; the first is 1"
                    ));
                }
            },
            None => (stage, None),
        };
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("`{text}` names no option; an option is `type.key`"));
        }
        Ok(Self {
            tag: tag.to_owned(),
            index,
            path,
        })
    }
}

/// Puts a setting into the stages it names, those inside a `repeat` included.
pub fn apply_assignment<'t>(
    stages: &mut [RawStage<'t>],
    setting: &OptionAssignment<'t>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let OptionAddress { tag, index, .. } = &setting.address;
    let mut seen = 0;
    if apply_within(stages, setting, &mut seen, sources, problems) {
        return;
    }
    let known: Vec<&str> = registry::tags().chain(["repeat", "run"]).collect();
    let (message, help) = match (known.contains(&tag.as_str()), index) {
        (false, _) => (
            format!("there is no stage type `{tag}`"),
            suggest(tag, &known),
        ),
        (true, Some(index)) => (
            format!("the pipeline has {seen} stages of type `{tag}`, not {index}"),
            String::new(),
        ),
        (true, None) => (
            format!("the pipeline has no stage of type `{tag}`"),
            format!("add one: [[stage]] and type = \"{tag}\""),
        ),
    };
    problems.push(sources.problem(setting.name_span.clone(), message, help));
}

/// Whether any stage was found. `seen` counts the stages of the type.
fn apply_within<'t>(
    stages: &mut [RawStage<'t>],
    setting: &OptionAssignment<'t>,
    seen: &mut usize,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> bool {
    let OptionAddress { tag, index, path } = &setting.address;
    let mut found = false;
    for stage in stages {
        if stage.tag == *tag {
            *seen += 1;
            if index.is_none_or(|index| index == *seen) {
                found = true;
                if let Err(message) = insert_value(&mut stage.options, path, setting) {
                    problems.push(sources.problem(setting.name_span.clone(), message, ""));
                }
            }
        }
        found |= apply_within(&mut stage.repeated_stages, setting, seen, sources, problems);
    }
    found
}

fn insert_value<'t>(
    table: &mut DeTable<'t>,
    path: &[String],
    setting: &OptionAssignment<'t>,
) -> Result<(), String> {
    let key = || Spanned::new(setting.name_span.clone(), DeString::Owned(path[0].clone()));
    if path.len() == 1 {
        table.insert(key(), setting.value.clone());
        return Ok(());
    }
    let inner = table
        .entry(key())
        .or_insert_with(|| Spanned::new(setting.name_span.clone(), DeValue::Table(DeTable::new())));
    match inner.get_mut() {
        DeValue::Table(inner) => insert_value(inner, &path[1..], setting),
        _ => Err(format!(
            "`{}` is not a table, so it has no `{}`",
            path[0], path[1]
        )),
    }
}

/// Every combination of the sweep that is not excluded, in the order of the file; one empty combination without a sweep.
/// `sets`: what `--set` decides, in place of what the sweep says of it.
pub fn expand_sweep<'t>(
    sweep: Option<&Spanned<DeTable<'t>>>,
    sets: &[OptionAssignment<'t>],
    counts: &CountByType,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Vec<Vec<OptionAssignment<'t>>> {
    let Some(sweep) = sweep else {
        return vec![Vec::new()];
    };
    let before = problems.len();
    let mut axes: Vec<SweepAxis<'t>> = Vec::new();
    let mut exclusions: Vec<(Range<usize>, Vec<OptionAssignment<'t>>)> = Vec::new();
    for (key, value) in sweep.get_ref() {
        match key.get_ref().as_ref() {
            "zip" => parse_tables(value, "zip", sources, problems).for_each(|(span, table)| {
                axes.extend(parse_zip(span, table, (sets, counts), sources, problems))
            }),
            "exclude" => exclusions.extend(
                parse_tables(value, "exclude", sources, problems)
                    .map(|(span, table)| {
                        let single = table.iter().filter_map(|(key, value)| {
                            parse_assignment(key, value.clone(), sources, problems)
                        });
                        (span, single.collect())
                    })
                    .collect::<Vec<_>>(),
            ),
            _ => axes.extend(parse_axis(key, value, (sets, counts), sources, problems)),
        }
    }
    check_overlaps(&axes, counts, sources, problems);
    if problems.len() > before {
        return vec![Vec::new()];
    }
    if axes
        .iter()
        .fold(1usize, |all, axis| all.saturating_mul(axis.len()))
        > MAX_VARIANTS
    {
        problems.push(sources.problem(
            sweep.span(),
            format!("the sweep has more than {MAX_VARIANTS} variants"),
            "sweep fewer values, or split the file",
        ));
        return vec![Vec::new()];
    }
    let mut all: Vec<Vec<OptionAssignment<'t>>> = vec![Vec::new()];
    for axis in &axes {
        all = all
            .iter()
            .flat_map(|chosen| {
                axis.iter()
                    .map(move |values| chosen.iter().chain(values).cloned().collect())
            })
            .collect();
    }
    for (span, exclusion) in &exclusions {
        let excluded = |chosen: &Vec<OptionAssignment<'t>>| {
            let says = |e: &OptionAssignment<'t>, s: &OptionAssignment<'t>| {
                s.address.covers(&e.address, counts)
                    && toml_to_json(&s.value) == toml_to_json(&e.value)
            };
            exclusion
                .iter()
                .all(|e| chosen.iter().chain(sets).any(|s| says(e, s)))
        };
        let found = all.len();
        all.retain(|chosen| !excluded(chosen));
        let is_set = exclusion
            .iter()
            .any(|e| sets.iter().any(|s| s.address.covers(&e.address, counts)));
        if all.len() == found && !is_set {
            problems.push(sources.problem(
                span.clone(),
                "this exclusion matches no variant",
                "its options must be swept, with these values",
            ));
        }
    }
    if all.is_empty() {
        problems.push(sources.problem(sweep.span(), "every variant of the sweep is excluded", ""));
    }
    all
}

/// A sweep larger than this is a mistake.
const MAX_VARIANTS: usize = 100_000;

/// No two axes may decide one option: which of them would count?
fn check_overlaps(
    axes: &[SweepAxis<'_>],
    counts: &CountByType,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let options: Vec<&OptionAssignment<'_>> = axes
        .iter()
        .filter_map(|axis| axis.first())
        .flatten()
        .collect();
    for (i, option) in options.iter().enumerate() {
        if let Some(other) = options[..i]
            .iter()
            .find(|other| other.address.overlaps(&option.address, counts))
        {
            problems.push(sources.problem(
                option.name_span.clone(),
                format!(
                    "`{}` decides what `{}` decides already",
                    option.key, other.key
                ),
                "sweep an option once",
            ));
        }
    }
}

/// `"type.key" = [values]`
fn parse_axis<'t>(
    key: &Spanned<DeString<'t>>,
    value: &Spanned<DeValue<'t>>,
    (sets, counts): (&[OptionAssignment<'t>], &CountByType),
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<SweepAxis<'t>> {
    let DeValue::Array(values) = value.get_ref() else {
        problems.push(sources.problem(
            value.span(),
            format!("`{}` is swept over what is not a list", key.get_ref()),
            match value.get_ref() {
                DeValue::Table(inner) if key.get_ref() != "zip" => {
                    let option = inner
                        .iter()
                        .next()
                        .map_or("key", |(option, _)| option.get_ref().as_ref());
                    format!(
                        "put the name in quotes: \"{}.{option}\" = […]",
                        key.get_ref()
                    )
                }
                _ => "write a list: [0.25, 0.5]".to_owned(),
            },
        ));
        return None;
    };
    if values.is_empty() {
        problems.push(sources.problem(
            value.span(),
            format!("`{}` is swept over an empty list", key.get_ref()),
            "write at least one value, or remove the line",
        ));
        return None;
    }
    let entries: SweepAxis<'t> = values
        .iter()
        .map(|value| {
            parse_assignment(key, value.clone(), sources, problems)
                .into_iter()
                .collect()
        })
        .collect();
    let first = entries.first()?.first()?;
    (!sets
        .iter()
        .any(|set| set.address.covers(&first.address, counts)))
    .then_some(entries)
}

/// `{ "a.b" = [..], "c.d" = [..] }`: lists that advance together.
fn parse_zip<'t>(
    span: Range<usize>,
    table: &DeTable<'t>,
    decided: (&[OptionAssignment<'t>], &CountByType),
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<SweepAxis<'t>> {
    let axes: Vec<SweepAxis<'t>> = table
        .iter()
        .filter_map(|(key, value)| parse_axis(key, value, decided, sources, problems))
        .collect();
    let lengths: BTreeSet<usize> = axes.iter().map(Vec::len).collect();
    if lengths.len() > 1 {
        let lengths: Vec<String> = axes.iter().map(|axis| axis.len().to_string()).collect();
        problems.push(sources.problem(
            span,
            format!(
                "lists that advance together have {} values",
                lengths.join(" and ")
            ),
            "give them the same number of values",
        ));
        return None;
    }
    let entries = *lengths.first()?;
    Some(
        (0..entries)
            .map(|i| axes.iter().flat_map(|axis| axis[i].clone()).collect())
            .collect(),
    )
}

fn parse_tables<'a, 't>(
    value: &'a Spanned<DeValue<'t>>,
    key: &str,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> std::vec::IntoIter<(Range<usize>, &'a DeTable<'t>)> {
    let items = match value.get_ref() {
        DeValue::Array(items) => items.iter().collect::<Vec<_>>(),
        _ => vec![value],
    };
    let mut found = Vec::new();
    for item in items {
        match item.get_ref() {
            DeValue::Table(table) => found.push((item.span(), table)),
            _ => problems.push(sources.problem(
                item.span(),
                format!("`{key}` is a list of tables"),
                format!("write {key} = [{{ \"prune.ratio\" = …, \"aggregate.with\" = … }}]"),
            )),
        }
    }
    found.into_iter()
}

fn parse_assignment<'t>(
    key: &Spanned<DeString<'t>>,
    value: Spanned<DeValue<'t>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<OptionAssignment<'t>> {
    let text = key.get_ref().to_string();
    match OptionAddress::parse(&text) {
        Ok(address) if address.tag == "run" => {
            problems.push(sources.problem(
                key.span(),
                "run settings cannot be swept",
                "sweep options of stages; for several seeds run the file with --set run.seed=…",
            ));
            None
        }
        Ok(address) => Some(OptionAssignment {
            address,
            key: text,
            name_span: key.span(),
            value,
        }),
        Err(message) => {
            problems.push(sources.problem(
                key.span(),
                message,
                "for example \"prune.ratio\" = [0.25, 0.5]",
            ));
            None
        }
    }
}

/// A value without its place.
pub fn toml_to_json(value: &Spanned<DeValue<'_>>) -> serde_json::Value {
    match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(number.as_str().into(), Into::into),
        DeValue::Float(number) => number
            .as_str()
            .parse::<f64>()
            .map_or(number.as_str().into(), Into::into),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => items.iter().map(toml_to_json).collect(),
        DeValue::Table(table) => serde_json::Value::Object(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), toml_to_json(value)))
                .collect(),
        ),
    }
}
