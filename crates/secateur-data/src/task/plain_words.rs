//! Messages of the TOML library in plain words: "invalid type: string "one", expected u32" names
//! types of Rust.

use secateur_base::spelling::closest;

/// The message for a task file that does not parse. `source`: the text that it is about.
pub(crate) fn plain_message(message: &str, source: Option<&str>) -> String {
    if message.starts_with("invalid length ") && message.contains("expected struct ") {
        return "this is a list, and a table is expected".to_owned();
    }
    let mismatch = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = mismatch.and_then(|text| text.split_once(", expected ")) {
        let found = found_value(found, source.unwrap_or_default());
        let expected = expected_value(expected);
        return format!("this is {found}, and {expected} is expected");
    }
    if let Some(names) = message.strip_prefix("unknown field ") {
        return unknown_name("unknown key", names);
    }
    if let Some(names) = message.strip_prefix("unknown variant ") {
        return unknown_name("unknown value", names);
    }
    match message.strip_prefix("missing field ") {
        Some(name) => format!("the key {name} is missing"),
        None => message.to_owned(),
    }
}

/// `names`: "`splt`, expected one of `name`, `split`".
fn unknown_name(what: &str, names: &str) -> String {
    // Every second part stands between backquotes.
    let mut quoted = names.split('`').skip(1).step_by(2);
    let name = quoted.next().unwrap_or_default();
    let choices: Vec<&str> = quoted.collect();
    let possible = format!("possible are `{}`", choices.join("`, `"));
    match closest(name, choices) {
        Some(choice) => format!("{what} `{name}`: did you mean `{choice}`? ({possible})"),
        None => format!("{what} `{name}`: {possible}"),
    }
}

/// "string "one"" → "the text "one"".
fn found_value(found: &str, source: &str) -> String {
    for (kind, plain) in [
        ("string ", "the text "),
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("boolean ", ""),
    ] {
        if let Some(value) = found.strip_prefix(kind) {
            let value = value.replace('`', "");
            let value = value
                .trim_end_matches(" as i128")
                .trim_end_matches(" as u128");
            return format!("{plain}{value}");
        }
    }
    match found {
        // The TOML library hands dates and times on as tables.
        "map" if source.starts_with(|c: char| c.is_ascii_digit()) => "a date or a time",
        "map" => "a table",
        "sequence" => "a list",
        other => other,
    }
    .to_owned()
}

fn expected_value(expected: &str) -> &str {
    match expected {
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "f32" | "f64" => "a number",
        "a string" | "string" => "a text",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "a string or a list of strings" => "a text or a list of texts",
        _ if expected.starts_with("struct ") => "a table",
        other => other,
    }
}
