//! The JSON Schema of a pipeline, derived from the types of the options. Editors use it to complete
//! and to check.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::pipeline::settings::RunSettings;
use crate::stages::registry::STAGE_TYPES;
use crate::stages::repeat;

/// The schema of a whole pipeline file.
pub fn schema() -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let stages: Vec<Value> = STAGE_TYPES
        .iter()
        .map(|stage_type| {
            let schema = (stage_type.option_schema)(&mut generator);
            with_type_property(stage_type.tag, schema.to_value())
        })
        .collect();
    let mut repeat = with_type_property(
        "repeat",
        generator.root_schema_for::<repeat::Options>().to_value(),
    );
    if let Some(properties) = repeat["properties"].as_object_mut() {
        properties.insert(
            "stage".to_owned(),
            json!({
                "description": "The stages that run several times.",
                "type": "array",
                "items": { "oneOf": stages.clone() },
            }),
        );
    }
    let run = generator.subschema_for::<RunSettings>().to_value();
    let stages_and_repeat: Vec<Value> = stages.into_iter().chain([repeat]).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A pipeline of secateur",
        "type": "object",
        "additionalProperties": false,
        "required": ["stage"],
        "properties": {
            "run": run,
            "stage": {
                "description": "The stages, in the order in which they run.",
                "type": "array",
                "minItems": 1,
                "items": { "oneOf": stages_and_repeat },
            },
            "sweep": {
                "description": "Swept options: `\"type.key\" = [values]`. Every combination of the \
                                lists is a variant.",
                "type": "object",
                "properties": {
                    "zip": {
                        "description": "Tables of lists whose values change together.",
                        "type": "array",
                        "items": { "type": "object", "additionalProperties": { "type": "array" } },
                    },
                    "exclude": {
                        "description": "Combinations that are left out.",
                        "type": "array",
                        "items": { "type": "object" },
                    },
                },
                "additionalProperties": { "type": "array", "minItems": 1 }
            }
        },
        "$defs": generator.definitions(),
    })
}

/// The schema of a stage's options with its `type` added.
fn with_type_property(tag: &str, mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.insert("type".to_owned(), json!({ "const": tag }));
        }
        let required = object.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            required.push("type".into());
        }
        object.insert("additionalProperties".to_owned(), false.into());
    }
    schema
}
