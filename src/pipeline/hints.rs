//! What was probably meant by a key or a value that is wrong: the help of a mistake.

use toml::Spanned;
use toml::de::DeValue;

use crate::pipeline::address::OptionAddress;
use crate::pipeline::option_type::{self, OptionType, TableType};
use crate::pipeline::problem::suggest;
use crate::pipeline::table_check::CheckedTable;
use crate::pipeline::value_words::{example_value, table_examples};
use secateur_base::spelling::closest;

impl CheckedTable<'_> {
    /// Help for a key that the table does not have: the closest one, or where the key belongs.
    pub(crate) fn unknown_key_help(
        &self,
        name: &str,
        table_type: &TableType,
        path: &str,
    ) -> String {
        let own_names = table_type.names();
        let place = if path.is_empty() {
            self.place_of_key(name)
        } else {
            String::new()
        };
        if place.is_empty() {
            return suggest(name, &own_names);
        }
        match closest(name, own_names.iter().copied()) {
            Some(close) => format!("did you mean `{close}`? {place}"),
            None => format!("{place}; {} has: {}", self.name(), own_names.join(", ")),
        }
    }

    /// Where a key that is not one of this table belongs; empty if no table has it.
    fn place_of_key(&self, name: &str) -> String {
        let is_address = OptionAddress::parse(name)
            .is_ok_and(|address| option_type::stage_table(&address.tag).is_some());
        if is_address || matches!(name, "zip" | "exclude") {
            return format!("`{name}` belongs to [sweep]");
        }
        if self.tag != "run" && option_type::run_table().option(name).is_some() {
            return format!("`{name}` is a setting of [run]");
        }
        let tags = option_type::tags_with_option(name);
        if tags.is_empty() {
            return String::new();
        }
        format!("`{name}` is an option of `{}`", tags.join("`, `"))
    }

    /// Help for a value of the wrong type: how the intended value is written.
    pub(crate) fn wrong_type_help(
        &self,
        value: &Spanned<DeValue<'_>>,
        value_type: &OptionType,
        path: &str,
    ) -> String {
        let source = self.sources.text_at(&value.span());
        let write = |toml: &str| match self.sources.is_set_argument(&value.span()) {
            true => format!("write --set '{}.{path}={toml}'", self.tag),
            false => format!("write {toml}"),
        };
        match (value_type, value.get_ref()) {
            (OptionType::List(items, _), DeValue::String(text)) => {
                if !matches!(**items, OptionType::Text | OptionType::Choice(_)) {
                    // A list of numbers that is not TOML.
                    return write(&example_value(value_type));
                }
                let words = text.trim_matches(['[', ']']).split(',');
                let quoted: Vec<String> = words
                    .map(|word| serde_json::Value::from(word.trim()).to_string())
                    .collect();
                write(&format!("[{}]", quoted.join(", ")))
            }
            (
                OptionType::List(items, None),
                DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_),
            ) if matches!(**items, OptionType::Text) => write(&format!("[\"{source}\"]")),
            (OptionType::List(_, Some(_)), _) => write(&example_value(value_type)),
            (OptionType::List(items, None), _) if self.accepts(items, value) => {
                write(&format!("[{source}]"))
            }
            (_, DeValue::Array(items))
                if items.iter().all(|item| self.accepts(value_type, item)) =>
            {
                self.sweep_help(
                    items.iter().map(|item| self.sources.text_at(&item.span())),
                    path,
                )
            }
            (OptionType::Table(tables), _) => format!("write {}", table_examples(path, tables)),
            (
                OptionType::Text,
                DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_),
            ) => format!("put it in quotes: {}", serde_json::Value::from(source)),
            (_, DeValue::String(text)) if self.is_list_without_brackets(text, value_type) => {
                self.sweep_help(text.split(',').map(|part| part.trim().to_owned()), path)
            }
            (_, DeValue::String(text)) => {
                let unquoted = DeValue::parse(text);
                match unquoted {
                    Ok(unquoted) if self.accepts(value_type, &unquoted) => {
                        format!("remove the quotes: {text}")
                    }
                    _ => match text.parse::<f64>() {
                        // TOML has no `.5` and no `5.`.
                        Ok(number) if *value_type == OptionType::Number && number.is_finite() => {
                            write(&number.to_string())
                        }
                        _ if *value_type == OptionType::Number => {
                            share(text).map_or_else(String::new, |share| write(&share.to_string()))
                        }
                        _ => String::new(),
                    },
                }
            }
            (OptionType::Integer(..), DeValue::Float(float)) => {
                match float.as_str().parse::<f64>() {
                    Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
                        format!("write {number}")
                    }
                    _ => String::new(),
                }
            }
            _ => String::new(),
        }
    }

    /// Whether a text is several values of a type with commas between them.
    pub(crate) fn is_list_without_brackets(&self, text: &str, value_type: &OptionType) -> bool {
        let is_value = |part: &str| match value_type {
            OptionType::Choice(choices) => choices.iter().any(|choice| choice == part),
            _ => DeValue::parse(part).is_ok_and(|value| self.accepts(value_type, &value)),
        };
        text.contains(',') && text.split(',').all(|part| is_value(part.trim()))
    }

    /// Help for a list of values where one is expected.
    pub(crate) fn sweep_help(&self, values: impl Iterator<Item = String>, path: &str) -> String {
        if self.tag == "run" {
            return "run settings cannot be swept; write one value".to_owned();
        }
        let values: Vec<String> = values.collect();
        let as_toml = |value: &String| match DeValue::parse(value) {
            Ok(_) => value.clone(),
            Err(_) => serde_json::Value::from(value.as_str()).to_string(),
        };
        let toml_values: Vec<String> = values.iter().map(as_toml).collect();
        format!(
            "to run a variant for each value, write \"{0}.{path}\" = [{1}] under [sweep], or give \
             --sweep '{0}.{path}={2}'",
            self.tag,
            toml_values.join(", "),
            values.join(",")
        )
    }
}

/// The number of a share that is written as a percentage (`25%`) or a fraction (`1/4`).
fn share(text: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match (text.trim().strip_suffix('%'), text.split_once('/')) {
        (Some(percentage), _) => number(percentage)? / 100.0,
        (None, Some((part, whole))) => number(part)? / number(whole)?,
        (None, None) => return None,
    };
    share.is_finite().then_some(share)
}
