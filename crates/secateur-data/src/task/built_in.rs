//! The tasks that the program brings along.

use super::InputFile;

/// A task file, and the rows beside it.
pub struct BuiltInTask {
    pub name: &'static str,
    text: &'static str,
    pub rows: Option<&'static str>,
}

impl BuiltInTask {
    pub fn to_input_file(&self) -> InputFile {
        InputFile::BuiltIn {
            name: format!("{}.toml", self.name),
            content: self.text,
        }
    }

    pub fn text(&self) -> &'static str {
        self.text
    }
}

/// A task whose rows lie under `run.data`, and one with rows of its own.
macro_rules! built_in {
    ($name:literal) => {
        BuiltInTask {
            name: $name,
            text: include_str!(concat!("../../../../datasets/", $name, ".toml")),
            rows: None,
        }
    };
    ($name:literal, $rows:literal) => {
        BuiltInTask {
            name: $name,
            text: include_str!(concat!("../../../../datasets/", $name, ".toml")),
            rows: Some(include_str!(concat!("../../../../datasets/", $rows))),
        }
    };
}

pub const BUILT_IN_TASKS: [BuiltInTask; 12] = [
    built_in!("boolq"),
    built_in!("piqa"),
    built_in!("hellaswag"),
    built_in!("winogrande"),
    built_in!("arc_easy"),
    built_in!("arc_challenge"),
    built_in!("openbookqa"),
    built_in!("wikitext2"),
    built_in!("wikitext"),
    built_in!("ptb"),
    built_in!("tiny_boolq", "tiny_boolq.jsonl"),
    built_in!("tiny_piqa", "tiny_piqa.jsonl"),
];
