//! The tasks that are built into the program.

use crate::InputFile;

/// A task file that is built into the program, and for some tasks the rows beside it.
pub(crate) struct BuiltInTask {
    pub(crate) name: &'static str,
    /// The content of the task file.
    pub(crate) text: &'static str,
    /// The content of the rows file. `None`: the rows are in the folder `run.data`.
    pub(crate) rows: Option<&'static str>,
}

impl BuiltInTask {
    /// Finds a task by its name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        BUILT_IN_TASKS.iter().find(|task| task.name == name)
    }

    pub(crate) fn to_input_file(&self) -> InputFile {
        InputFile::BuiltIn {
            name: format!("{}.toml", self.name),
            content: self.text,
        }
    }
}

/// The names of all built-in tasks.
pub(crate) fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN_TASKS.iter().map(|task| task.name)
}

/// `built_in!("boolq")`: a task whose rows are in `run.data`.
/// `built_in!("tiny_boolq", "tiny_boolq.jsonl")`: a task with rows of its own.
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

static BUILT_IN_TASKS: [BuiltInTask; 12] = [
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
