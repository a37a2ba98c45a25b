//! Mistakes of the TOML syntax in plain words.

use toml::de::Error;

use crate::pipeline::problem::{Problem, SourceTexts};

/// What the parser says, by a part of it, with a message and its help.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "string values must be quoted",
        "this is not a value",
        "a text needs quotes, such as model = \"models/tiny\"; values of a list are separated by \
         commas",
    ),
    (
        "expected `\"`",
        "this text is not closed",
        "write \" at its end, on the same line",
    ),
    (
        "expected `'`",
        "this text is not closed",
        "write ' at its end, on the same line",
    ),
    (
        "key with no value",
        "this key has no value",
        "write key = value",
    ),
    (
        "unclosed array table",
        "this header is not closed",
        "a stage begins with [[stage]]",
    ),
    (
        "unclosed table",
        "this header is not closed",
        "write [run], [sweep] or [[stage]]",
    ),
    (
        "unclosed array",
        "this list is not closed",
        "write ] at its end",
    ),
    (
        "unclosed inline table",
        "this table is not closed",
        "write } at its end",
    ),
    (
        "duplicate key",
        "this is written twice",
        "remove one of the two; for several stages write [[stage]], with two brackets",
    ),
    (
        "unexpected key or value",
        "something follows the value on its line",
        "write one key and one value on a line",
    ),
    (
        "invalid mantissa",
        "this number has no digits before or after its point",
        "write 0.5 or 5.0",
    ),
    (
        "invalid boolean",
        "this is not a value",
        "write true or false in lower case; a text needs quotes",
    ),
    (
        "escape",
        "this backslash begins no character that TOML knows",
        "write \\\\ for a backslash, or put the text into single quotes: 'C:\\models'",
    ),
];

/// The first mistake of the syntax.
pub(crate) fn syntax_problem(error: &Error, sources: &SourceTexts) -> Problem {
    let span = error.span().unwrap_or(0..0);
    let parser_message = error.message();
    let known = MISTAKES
        .iter()
        .find(|(part, ..)| parser_message.contains(part));
    let (message, help) = match known {
        Some((_, message, help)) => (*message, *help),
        // What the parser expects is a list of characters.
        None => (
            parser_message
                .split(", expected")
                .next()
                .unwrap_or_default(),
            "",
        ),
    };
    sources.problem(span, format!("this is not valid TOML: {message}"), help)
}
