//! Checks a table against the types of its options: every mistake of the table, each at its place.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::pipeline::option_type::{OptionType, TableType};
use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::pipeline::value_words::{describe_value, example, integer_value, table_examples};
use secateur_base::spelling::closest;

/// The table that is checked, for messages.
#[derive(Clone, Copy)]
pub(crate) struct CheckedTable<'a> {
    /// The stage type, or `run`.
    pub tag: &'a str,
    /// Where a missing key is reported.
    pub span: &'a Range<usize>,
    pub sources: &'a SourceTexts,
    /// Whether required keys may be missing, because they are set elsewhere.
    pub may_lack_keys: bool,
}

/// The mistakes of a table.
#[derive(Default)]
pub(crate) struct TableMistakes {
    pub problems: Vec<Problem>,
    /// The keys of the table with a wrong value, and those that are missing or unknown.
    pub keys: BTreeSet<String>,
}

impl CheckedTable<'_> {
    /// How messages name the table.
    pub(crate) fn name(&self) -> String {
        match self.tag {
            "run" => "`[run]`".to_owned(),
            tag => format!("`{tag}`"),
        }
    }

    /// Checks all keys and values.
    pub(crate) fn check(&self, table: &DeTable<'_>, table_type: &TableType) -> TableMistakes {
        let mut mistakes = TableMistakes::default();
        self.check_keys(table, table_type, "", &mut mistakes);
        for option in &table_type.options {
            if !option.is_required || table.contains_key(option.name.as_str()) {
                continue;
            }
            let name = option.name.as_str();
            mistakes.keys.insert(name.to_owned());
            // A misspelt key was already reported, with this name as the suggestion.
            let mut keys = table.keys().map(|key| key.get_ref().as_ref());
            let is_misspelt = keys.any(|key| {
                table_type.option(key).is_none() && closest(key, table_type.names()) == Some(name)
            });
            if !self.may_lack_keys && !is_misspelt {
                mistakes.problems.push(self.sources.problem(
                    self.span.clone(),
                    format!("{} lacks the key `{name}`", self.name()),
                    format!("add {}", example(name, &option.value_type)),
                ));
            }
        }
        mistakes
    }

    /// Checks the keys and values that a table has. `path`: the dotted path of the table in the
    /// stage's table, with a dot at its end; empty for the stage's table itself.
    fn check_keys(
        &self,
        table: &DeTable<'_>,
        table_type: &TableType,
        path: &str,
        mistakes: &mut TableMistakes,
    ) {
        for (key, value) in table {
            let name = key.get_ref();
            let full_path = format!("{path}{name}");
            match table_type.option(name) {
                Some(option) => {
                    self.check_value(value, &option.value_type, &full_path, mistakes);
                }
                None => {
                    let help = self.unknown_key_help(name, table_type, path);
                    let table_name = match path.strip_suffix('.') {
                        Some(path) => format!("`{path}` of {}", self.name()),
                        None => self.name(),
                    };
                    let message = format!("unknown key `{name}` in {table_name}");
                    // A quoted key may have dots of its own.
                    let table_path = if path.is_empty() { name } else { path };
                    mistakes.keys.insert(name.to_string());
                    self.add(mistakes, key.span(), table_path, message, help);
                }
            }
        }
    }

    fn add(
        &self,
        mistakes: &mut TableMistakes,
        span: Range<usize>,
        path: &str,
        message: String,
        help: impl Into<String>,
    ) {
        let key = path.split(['.', '[']).next().unwrap_or(path);
        mistakes.keys.insert(key.to_owned());
        mistakes
            .problems
            .push(self.sources.problem(span, message, help));
    }

    /// Checks the value of the option at `path`.
    pub(crate) fn check_value(
        &self,
        value: &Spanned<DeValue<'_>>,
        value_type: &OptionType,
        path: &str,
        mistakes: &mut TableMistakes,
    ) {
        match (value_type, value.get_ref()) {
            (OptionType::Any, _)
            | (OptionType::Text | OptionType::Size, DeValue::String(_))
            | (OptionType::Number, DeValue::Float(_))
            | (OptionType::Boolean, DeValue::Boolean(_)) => {}
            (OptionType::Choice(choices), DeValue::String(text)) => {
                if !choices.iter().any(|choice| choice == text) {
                    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
                    let message = format!("unknown value `{text}` in {}", self.name());
                    let help = if self.is_list_without_brackets(text, value_type) {
                        self.sweep_help(text.split(',').map(|part| part.trim().to_owned()), path)
                    } else {
                        suggest(text, &choices)
                    };
                    self.add(mistakes, value.span(), path, message, help);
                }
            }
            (OptionType::Number, DeValue::Integer(_)) => {
                let all = (i128::from(i64::MIN), i128::from(i64::MAX));
                self.check_range(value, all, path, mistakes);
            }
            (&OptionType::Integer(min, max), DeValue::Integer(_)) => {
                self.check_range(value, (min, max), path, mistakes);
            }
            (OptionType::List(items, length), DeValue::Array(values)) => {
                if length.is_some_and(|length| length != values.len()) {
                    let message = format!(
                        "`{path}` of {} must be {}; this list has {}",
                        self.name(),
                        value_type.describe(),
                        values.len()
                    );
                    self.add(mistakes, value.span(), path, message, "");
                }
                for (index, item) in values.iter().enumerate() {
                    self.check_value(item, items, &format!("{path}[{index}]"), mistakes);
                }
            }
            (OptionType::Table(tables), DeValue::Table(table)) => {
                self.check_nested_table(value.span(), table, tables, path, mistakes);
            }
            (OptionType::Size, integer @ DeValue::Integer(_))
                if integer_value(integer).is_some_and(|bytes| bytes >= 0) => {}
            (OptionType::OneOf(types), _) if types.iter().any(|one| self.accepts(one, value)) => {}
            _ => {
                let message = format!(
                    "`{path}` of {} must be {}, not {}",
                    self.name(),
                    value_type.describe(),
                    describe_value(value.get_ref())
                );
                let help = self.wrong_type_help(value, value_type, path);
                self.add(mistakes, value.span(), path, message, help);
            }
        }
    }

    /// Whether a value is of a type.
    pub(crate) fn accepts(&self, value_type: &OptionType, value: &Spanned<DeValue<'_>>) -> bool {
        let mut mistakes = TableMistakes::default();
        self.check_value(value, value_type, "", &mut mistakes);
        mistakes.problems.is_empty()
    }

    fn check_range(
        &self,
        value: &Spanned<DeValue<'_>>,
        (min, max): (i128, i128),
        path: &str,
        mistakes: &mut TableMistakes,
    ) {
        let number = integer_value(value.get_ref()).map(i128::from);
        if number.is_some_and(|number| (min..=max).contains(&number)) {
            return;
        }
        let bound = match number {
            Some(number) if number < min => format!("at least {min}"),
            None if self.sources.text_at(&value.span()).starts_with('-') => {
                format!("at least {min}")
            }
            _ => format!("at most {max}"),
        };
        let message = format!(
            "`{path}` of {} must be {bound}, not {}",
            self.name(),
            describe_value(value.get_ref())
        );
        self.add(mistakes, value.span(), path, message, "");
    }

    /// Checks a table that is the value of an option. If it can be of several types, each type has
    /// one key, and exactly one of them must be written.
    fn check_nested_table(
        &self,
        span: Range<usize>,
        table: &DeTable<'_>,
        tables: &[TableType],
        path: &str,
        mistakes: &mut TableMistakes,
    ) {
        let all_options = tables.iter().flat_map(|table| table.options.clone());
        let united = TableType {
            options: all_options.collect(),
        };
        let problem_count = mistakes.problems.len();
        self.check_keys(table, &united, &format!("{path}."), mistakes);
        if mistakes.problems.len() > problem_count || self.may_lack_keys {
            return;
        }
        let fits = |table_type: &&TableType| {
            let lacks = |name: &str| !table.contains_key(name);
            let is_known = |name: &str| table_type.option(name).is_some();
            let mut options = table_type.options.iter();
            table.keys().all(|key| is_known(key.get_ref()))
                && !options.any(|option| option.is_required && lacks(&option.name))
        };
        if tables.iter().any(|table_type| fits(&table_type)) {
            return;
        }
        let written: Vec<&str> = table.keys().map(|key| key.get_ref().as_ref()).collect();
        let message = match &written[..] {
            [] => format!("`{path}` of {} is an empty table", self.name()),
            _ if tables.len() > 1 => format!(
                "`{path}` of {} has `{}`, and takes one of them",
                self.name(),
                written.join("` and `")
            ),
            _ => format!("`{path}` of {} is not complete", self.name()),
        };
        self.add(
            mistakes,
            span,
            path,
            message,
            format!("write {}", table_examples(path, tables)),
        );
    }
}
