//! The types of options, read from the JSON Schema that is derived from the options' structs. With
//! them a table is checked before it is decoded, so that all of its mistakes are found at once, and
//! a value of the command line is read as what its option expects.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use toml::Spanned;
use toml::de::DeValue;

use crate::pipeline::settings::RunSettings;
use crate::stages::registry::STAGE_TYPES;
use crate::stages::repeat;

/// The type of a stage that runs its own list of stages several times. The check unrolls it, so it
/// is not a [`crate::stages::Stage`].
pub(crate) const REPEAT_TAG: &str = "repeat";

/// What a value must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OptionType {
    Text,
    /// One of these texts.
    Choice(Vec<String>),
    Number,
    /// A whole number in this range, both ends included.
    Integer(i128, i128),
    Boolean,
    /// A number of bytes, or a text such as "4 GiB".
    Size,
    /// A list, of this length if there is one.
    List(Box<OptionType>, Option<usize>),
    /// A table of one of these types. If there are several, each has a key of its own.
    Table(Vec<TableType>),
    /// A value of one of these types.
    OneOf(Vec<OptionType>),
    /// The schema does not restrict the value.
    Any,
}

/// The options of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TableType {
    pub options: Vec<OptionDescription>,
}

/// One option of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OptionDescription {
    pub name: String,
    pub value_type: OptionType,
    pub is_required: bool,
    /// The default, where it is a fixed value.
    pub default: Option<Value>,
    /// A value of the type as TOML. It stands in for a wrong or missing value of a required option,
    /// so that the other options of its table can still be decoded and checked.
    placeholder: String,
}

static STAGE_TABLES: LazyLock<BTreeMap<&str, TableType>> = LazyLock::new(|| {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let mut schemas: Vec<(&str, Value)> = STAGE_TYPES
        .iter()
        .map(|stage_type| {
            let schema = (stage_type.option_schema)(&mut generator);
            (stage_type.tag, schema.to_value())
        })
        .collect();
    let repeat = repeat::Options::json_schema(&mut generator);
    schemas.push((REPEAT_TAG, repeat.to_value()));
    let definitions = generator.definitions();
    schemas
        .into_iter()
        .map(|(tag, schema)| (tag, read_table(&schema, definitions)))
        .collect()
});

static RUN_TABLE: LazyLock<TableType> = LazyLock::new(|| {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let schema = RunSettings::json_schema(&mut generator).to_value();
    read_table(&schema, generator.definitions())
});

/// The options of a stage type, `repeat` included.
pub(crate) fn stage_table(tag: &str) -> Option<&'static TableType> {
    STAGE_TABLES.get(tag)
}

/// The settings of `[run]`.
pub(crate) fn run_table() -> &'static TableType {
    &RUN_TABLE
}

/// The stage types that have an option of this name.
pub(crate) fn tags_with_option(name: &str) -> Vec<&'static str> {
    let tags = STAGE_TYPES.iter().map(|stage_type| stage_type.tag);
    tags.chain([REPEAT_TAG])
        .filter(|tag| stage_table(tag).is_some_and(|table| table.option(name).is_some()))
        .collect()
}

impl TableType {
    pub(crate) fn option(&self, name: &str) -> Option<&OptionDescription> {
        self.options.iter().find(|option| option.name == name)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        let options = self.options.iter();
        options.map(|option| option.name.as_str()).collect()
    }

    /// The type of the option at a path of nested tables.
    pub(crate) fn type_at(&self, path: &[String]) -> Option<&OptionType> {
        let (first, rest) = path.split_first()?;
        let value_type = &self.option(first)?.value_type;
        if rest.is_empty() {
            return Some(value_type);
        }
        let OptionType::Table(tables) = value_type else {
            return None;
        };
        tables.iter().find_map(|table| table.type_at(rest))
    }
}

impl OptionDescription {
    /// A value of the option's type.
    pub(crate) fn placeholder(&self) -> Option<Spanned<DeValue<'_>>> {
        DeValue::parse(&self.placeholder).ok()
    }
}

impl OptionType {
    /// A noun with its article, for messages such as "must be *a whole number*".
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Choice(choices) => match &choices[..] {
                [only] => format!("`{only}`"),
                _ => format!("one of `{}`", choices.join("`, `")),
            },
            Self::Number => "a number".to_owned(),
            Self::Integer(..) => "a whole number".to_owned(),
            Self::Boolean => "true or false".to_owned(),
            Self::Size => "a number of bytes, or a size such as \"4 GiB\"".to_owned(),
            Self::List(items, None) => format!("a list of {}", items.describe_several()),
            Self::List(items, Some(length)) => {
                format!("a list of {length} {}", items.describe_several())
            }
            Self::Table(_) => "a table".to_owned(),
            Self::OneOf(types) => {
                let types: Vec<String> = types.iter().map(Self::describe).collect();
                types.join(" or ")
            }
            Self::Any => "a value".to_owned(),
        }
    }

    /// The plural of [`OptionType::describe`].
    fn describe_several(&self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "texts",
            Self::Number => "numbers",
            Self::Integer(..) => "whole numbers",
            Self::List(..) => "lists",
            Self::Table(_) => "tables",
            Self::Boolean | Self::Size | Self::OneOf(_) | Self::Any => "values",
        }
    }

    /// A value of the type as TOML.
    fn placeholder(&self) -> String {
        match self {
            Self::Text | Self::Any => "\"\"".to_owned(),
            Self::Choice(choices) => choices.first().map_or(String::new(), |choice| {
                Value::from(choice.as_str()).to_string()
            }),
            Self::Number => "0.5".to_owned(),
            Self::Size => "1".to_owned(),
            Self::Integer(min, max) => 1.clamp(*min, *max).to_string(),
            Self::Boolean => "false".to_owned(),
            Self::List(items, length) => {
                let items = vec![items.placeholder(); length.unwrap_or(0)];
                format!("[{}]", items.join(", "))
            }
            Self::Table(tables) => {
                let options = tables.iter().take(1).flat_map(|table| &table.options);
                let entries: Vec<String> = options
                    .filter(|option| option.is_required)
                    .map(|option| format!("{} = {}", option.name, option.placeholder))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
            Self::OneOf(types) => types.first().map_or(String::new(), Self::placeholder),
        }
    }
}

fn read_table(schema: &Value, definitions: &serde_json::Map<String, Value>) -> TableType {
    let is_required = |name: &str| {
        let required = schema["required"].as_array();
        required.is_some_and(|required| required.iter().any(|key| key == name))
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    let options = properties.map(|(name, property)| {
        let value_type = read_type(property, definitions);
        OptionDescription {
            name: name.clone(),
            is_required: is_required(name),
            default: property.get("default").cloned(),
            placeholder: value_type.placeholder(),
            value_type,
        }
    });
    TableType {
        options: options.collect(),
    }
}

fn read_type(schema: &Value, definitions: &serde_json::Map<String, Value>) -> OptionType {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return definitions
            .get(name)
            .map_or(OptionType::Any, |schema| read_type(schema, definitions));
    }
    if let Some(choice) = schema["const"].as_str() {
        return OptionType::Choice(vec![choice.to_owned()]);
    }
    if let Some(choices) = schema["enum"].as_array() {
        let texts = choices.iter().filter_map(Value::as_str).map(str::to_owned);
        return OptionType::Choice(texts.collect());
    }
    let alternatives = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(alternatives) = alternatives {
        let is_null = |schema: &&Value| schema["type"] == "null";
        let types = alternatives.iter().filter(|schema| !is_null(schema));
        return unite(types.map(|schema| read_type(schema, definitions)));
    }
    match &schema["type"] {
        _ if schema["format"] == "size" => OptionType::Size,
        Value::Array(names) => unite(
            names
                .iter()
                .filter(|name| *name != "null")
                .map(|name| read_named_type(name, schema, definitions)),
        ),
        name => read_named_type(name, schema, definitions),
    }
}

/// The type that `"type": name` means in a schema.
fn read_named_type(
    name: &Value,
    schema: &Value,
    definitions: &serde_json::Map<String, Value>,
) -> OptionType {
    match name.as_str() {
        Some("string") => OptionType::Text,
        Some("number") => OptionType::Number,
        Some("integer") => {
            let (min, max) = integer_range(schema);
            OptionType::Integer(min, max)
        }
        Some("boolean") => OptionType::Boolean,
        Some("array") => {
            let items = Box::new(read_type(&schema["items"], definitions));
            let length = schema["minItems"].as_u64().filter(|_| {
                // Without a largest number the list has no fixed length.
                schema["minItems"] == schema["maxItems"]
            });
            OptionType::List(items, length.map(|length| length as usize))
        }
        Some("object") if schema["properties"].is_object() => {
            OptionType::Table(vec![read_table(schema, definitions)])
        }
        _ => OptionType::Any,
    }
}

/// The range of a whole number. TOML has no whole number beyond 64 bits with a sign.
fn integer_range(schema: &Value) -> (i128, i128) {
    let (type_min, type_max) = match schema["format"].as_str() {
        Some("uint8") => (0, i128::from(u8::MAX)),
        Some("uint16") => (0, i128::from(u16::MAX)),
        Some("uint32") => (0, i128::from(u32::MAX)),
        Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    };
    let bound = |key: &str| schema[key].as_i64().map(i128::from);
    (
        bound("minimum").unwrap_or(type_min),
        bound("maximum").unwrap_or(type_max),
    )
}

/// One type that allows the values of all these types. Choices become one list of choices, tables
/// one list of tables.
fn unite(types: impl Iterator<Item = OptionType>) -> OptionType {
    let mut united: Vec<OptionType> = Vec::new();
    for next in types {
        match (next, united.last_mut()) {
            (OptionType::Choice(next), Some(OptionType::Choice(choices))) => choices.extend(next),
            (OptionType::Table(next), Some(OptionType::Table(tables))) => tables.extend(next),
            (next, _) => united.push(next),
        }
    }
    match united.len() {
        0 => OptionType::Any,
        1 => united.remove(0),
        _ => OptionType::OneOf(united),
    }
}
