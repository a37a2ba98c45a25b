//! The variants that did not succeed, and why.

use polars::prelude::*;

use super::columns::text_column;
use crate::progress::wrap_lines;

/// Variants with the same status and error.
struct FailureGroup<'a> {
    status: String,
    error: &'a str,
    variants: Vec<&'a str>,
}

/// The variants that have an error, one paragraph per status and error: the ids, and below them the
/// reason.
pub(crate) fn format_failures(table: &DataFrame, width: usize) -> Result<String, PolarsError> {
    let ids = table.column("variant")?.str()?;
    let errors = table.column("error")?.str()?;
    let mut groups: Vec<FailureGroup<'_>> = Vec::new();
    for (row, status) in text_column(table, "status")?.into_iter().enumerate() {
        let (Some(id), Some(error)) = (ids.get(row), errors.get(row)) else {
            continue;
        };
        let same = |group: &&mut FailureGroup<'_>| group.status == status && group.error == error;
        match groups.iter_mut().find(same) {
            Some(group) => group.variants.push(id),
            None => groups.push(FailureGroup {
                status,
                error,
                variants: vec![id],
            }),
        }
    }
    let paragraph = |group: &FailureGroup<'_>| {
        let variants = format!("{}: {}", group.status, group.variants.join(", "));
        let mut text = format!("\n{}\n", wrap_lines(&variants, width, "  "));
        for line in group.error.lines() {
            text.push_str(&wrap_lines(&format!("  {line}"), width, "  "));
            text.push('\n');
        }
        text
    };
    Ok(groups.iter().map(paragraph).collect())
}
