//! Templates give the texts of Jinja2.

use super::*;
use crate::data_file::{Columns, DataFile, DataRow, FieldValue};

/// Written by Jinja2 3.1.6 on Python 3.11, with `StrictUndefined`, `keep_trailing_newline` and the
/// harness's filter `regex_replace`. Each line has templates, rows, and for each template the text
/// that each row gives.
const JINJA2: &str = include_str!("jinja2.jsonl");

fn rows(name: &str, lines: &'static str) -> Vec<DataRow> {
    let file = DataFile::built_in(name, lines);
    let rows: Result<_, _> = file.rows(Columns::All).expect("rows").collect();
    rows.expect("valid JSON Lines")
}

fn items(value: Option<&FieldValue>) -> &[FieldValue] {
    match value {
        Some(FieldValue::List(items)) => items,
        other => panic!("{other:?}"),
    }
}

fn text_of(value: &FieldValue) -> &str {
    match value {
        FieldValue::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn templates_give_the_texts_of_jinja2() {
    let engine = template_engine();
    let mut count = 0;
    let mut different = Vec::new();
    for group in rows("jinja2.jsonl", JINJA2) {
        let lines: String = items(group.field("rows"))
            .iter()
            .map(|row| format!("{}\n", text_of(row)))
            .collect();
        let rows = rows("row.jsonl", Box::leak(lines.into_boxed_str()));
        let templates = items(group.field("templates")).iter();
        for (template, texts) in templates.zip(items(group.field("texts"))) {
            let template = text_of(template);
            for (row, expected) in rows.iter().zip(items(Some(texts))) {
                let rendered = engine
                    .template_from_str(template)
                    .and_then(|template| template.render(row_variables(row)))
                    .unwrap_or_else(|error| format!("ERROR {error}"));
                count += 1;
                if rendered != text_of(expected) {
                    let fields = &row.fields;
                    different.push(format!(
                        "{template} of {fields:?}:\n{rendered:?}\n{expected:?}"
                    ));
                }
            }
        }
    }
    assert!(count > 2000, "{count}");
    assert!(
        different.is_empty(),
        "{} of {count} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn python_patterns_match_python_white_space() {
    for (pattern, expected) in [
        (r"a\s+b", r"a[\s\x1c-\x1f]+b"),
        (r"[^\s,]", r"[^\s\x1c-\x1f,]"),
        (r"\\s\[\s", r"\\s\[[\s\x1c-\x1f]"),
    ] {
        assert_eq!(python_pattern(pattern), expected);
    }
}

#[test]
fn a_value_without_a_text_is_named_at_every_depth() {
    let image = FieldValue::Other {
        type_name: "binary value",
        text: String::new(),
    };
    let mut row = rows("row.jsonl", "{}").remove(0);
    let nested = FieldValue::Object(vec![("bytes".to_owned(), image.clone())]);
    row.fields.push(("image".to_owned(), image));
    row.fields.push(("nested".to_owned(), nested));
    let engine = template_engine();
    for template in [
        "{{ image }}",
        "{{ nested }}",
        "{{ [nested] | join }}",
        "{{ nested.bytes | string }}",
        "{{ nested | tojson }}",
    ] {
        let rendered = engine.render_str(template, row_variables(&row));
        let error = rendered.expect_err(template).to_string();
        assert!(
            error.contains("cannot print a binary value"),
            "{template}: {error}"
        );
    }
}
