//! The options of a variant as its own `pipeline.toml` has them, every default filled in. A column
//! of the sweep's table has these values for variants that have the option from the file.

use std::path::Path;

use serde_json::Value;
use toml::Table;

use crate::pipeline::address::OptionAddress;

/// The content of a variant's `pipeline.toml`.
pub(crate) struct OptionValues {
    pipeline: Table,
}

impl OptionValues {
    /// Reads the `pipeline.toml` in a variant's folder; without one, no option has a value.
    pub(crate) fn read(tables_folder: &Path) -> Self {
        let text = std::fs::read_to_string(tables_folder.join("pipeline.toml"));
        Self {
            pipeline: text
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
        }
    }

    /// The value of an option such as `prune.ratio`, `evaluate[2].limit` or `run.seed`; None if the
    /// pipeline does not have it, or if the stages of the type have several.
    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        let address = OptionAddress::parse(key).ok()?;
        let mut tables = Vec::new();
        if address.tag == "run" {
            tables.extend(self.pipeline.get("run").and_then(toml::Value::as_table));
        } else {
            collect_stages(&self.pipeline, &address.tag, &mut tables);
        }
        if let Some(index) = address.index {
            tables = tables.get(index - 1).copied().into_iter().collect();
        }
        let mut values = tables
            .into_iter()
            .map(|table| value_at(table, &address.path));
        let first = values.next()??;
        let is_common = values.all(|value| value == Some(first));
        is_common.then(|| serde_json::to_value(first).ok())?
    }
}

/// The tables of the stages of a type, those inside a `repeat` included.
fn collect_stages<'a>(parent: &'a Table, tag: &str, found: &mut Vec<&'a Table>) {
    let stages = parent.get("stage").and_then(toml::Value::as_array);
    for stage in stages
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_table)
    {
        if stage.get("type").and_then(toml::Value::as_str) == Some(tag) {
            found.push(stage);
        }
        collect_stages(stage, tag, found);
    }
}

/// The value at a path of nested tables. The path is not empty.
fn value_at<'a>(table: &'a Table, path: &[String]) -> Option<&'a toml::Value> {
    let value = table.get(&path[0])?;
    match &path[1..] {
        [] => Some(value),
        inner => value_at(value.as_table()?, inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> OptionValues {
        OptionValues {
            pipeline: text.parse().expect("TOML"),
        }
    }

    #[test]
    fn an_option_has_the_value_that_all_its_stages_have() {
        let values = values(
            "[run]\nseed = 7\n\
             [[stage]]\ntype = \"evaluate\"\nlimit = 3\n\
             [[stage]]\ntype = \"repeat\"\n\
             [[stage.stage]]\ntype = \"prune\"\nratio = 0.5\n\
             [[stage]]\ntype = \"recover\"\nduration = { updates = 2 }\n\
             [[stage]]\ntype = \"evaluate\"\nlimit = 4\n",
        );
        let expected = [
            ("run.seed", Some(7.into())),
            ("prune.ratio", Some(0.5.into())),
            ("recover.duration.updates", Some(2.into())),
            ("evaluate[2].limit", Some(4.into())),
            ("evaluate.limit", None),
            ("evaluate[3].limit", None),
            ("prune.scope", None),
            ("run.threads", None),
            ("ratio", None),
        ];
        for (key, value) in expected {
            assert_eq!(values.get(key), value, "{key}");
        }
    }
}
