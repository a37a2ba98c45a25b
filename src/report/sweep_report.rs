//! The tables of a sweep together, as text and as JSON.

use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde_json::{Value, json};

use super::error::ReportError;
use super::json::to_json_records;
use super::parquet::{GENERATIONS_FILE, VARIANTS_FILE, read_parquet, read_parquet_if_exists};
use super::text;

/// The tables of one results folder: what a run, a merge and `runner report` print.
#[derive(Debug)]
pub struct SweepReport {
    /// `results/<pipeline>`.
    pub folder: PathBuf,
    /// One row per variant.
    pub(crate) variants: DataFrame,
    /// One row per variant and prompt; `None` if no variant generated a text.
    pub(crate) generations: Option<DataFrame>,
}

impl SweepReport {
    /// Reads the tables that a run or a merge has written.
    pub(crate) fn read(folder: PathBuf) -> Result<Self, ReportError> {
        Ok(Self {
            variants: read_parquet(&folder.join(VARIANTS_FILE), None)?,
            generations: read_parquet_if_exists(&folder.join(GENERATIONS_FILE))?,
            folder,
        })
    }

    /// The rows of one variant, whose folder is at `path`.
    pub(crate) fn into_variant(self, path: &Path, variant: &str) -> Result<Self, ReportError> {
        let rows_of = |table: &DataFrame| -> Result<DataFrame, PolarsError> {
            let ids = table.column("variant")?.str()?;
            table.filter(&ids.equal(variant))
        };
        let variants = rows_of(&self.variants)?;
        if variants.height() == 0 {
            return Err(ReportError::NoRow(path.to_owned()));
        }
        Ok(Self {
            variants,
            generations: self.generations.as_ref().map(rows_of).transpose()?,
            folder: self.folder,
        })
    }

    /// The tables as text, in lines of at most `width` characters.
    ///
    /// # Errors
    /// If a column that the text needs is missing or has another type.
    pub fn to_text(&self, width: usize) -> Result<String, ReportError> {
        let sweep = text::format_sweep(&self.variants, self.generations.as_ref(), width)?;
        let profiles = text::format_profiles(&self.folder, &self.variants, width)?;
        Ok(sweep + &profiles)
    }

    /// The same below the path of the folder.
    ///
    /// # Errors
    /// As [`SweepReport::to_text`].
    pub fn to_titled_text(&self, width: usize) -> Result<String, ReportError> {
        let text = self.to_text(width)?;
        Ok(format!("{}\n\n{text}", self.folder.display()))
    }

    /// `results`, the folder; `variants` and `generations`, the rows of the two tables as objects.
    pub fn to_json(&self) -> Value {
        let generations = self
            .generations
            .as_ref()
            .map_or_else(|| json!([]), to_json_records);
        json!({
            "results": self.folder,
            "variants": to_json_records(&self.variants),
            "generations": generations,
        })
    }
}
