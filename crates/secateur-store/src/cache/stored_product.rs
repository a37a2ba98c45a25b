//! A product in the cache.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::layout::{TABLES_FOLDER, WRITTEN_FOLDER, table_path};
use super::manifest::ProductManifest;
use crate::tables::{Table, TableError};
use secateur_base::files::Fingerprint;

/// A product in the cache. All of its files except those of a model have been verified; a model is
/// verified by [`StoredProduct::verified_folder`] when it is needed.
#[derive(Debug)]
pub struct StoredProduct {
    pub(crate) folder: PathBuf,
    pub manifest: ProductManifest,
}

impl StoredProduct {
    /// Reads the product's tables.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub fn tables(&self) -> Result<Vec<Table>, TableError> {
        let prefix = format!("{TABLES_FOLDER}/");
        let file_names = self.manifest.files.keys();
        let table_names =
            file_names.filter_map(|file| file.strip_prefix(&prefix)?.strip_suffix(".parquet"));
        table_names
            .map(|name| Table::read(name, &table_path(&self.folder, name)))
            .collect()
    }

    /// The folder with the files that the stage wrote beside its tables.
    pub fn written_folder(&self) -> PathBuf {
        self.folder.join(WRITTEN_FOLDER)
    }

    /// The files in [`StoredProduct::written_folder`], by their path relative to it.
    pub fn written_files(&self) -> BTreeMap<String, Fingerprint> {
        let prefix = format!("{WRITTEN_FOLDER}/");
        let mut written_files = BTreeMap::new();
        for (file, fingerprint) in &self.manifest.files {
            if let Some(name) = file.strip_prefix(&prefix) {
                written_files.insert(name.to_owned(), fingerprint.clone());
            }
        }
        written_files
    }

    /// The path of a file of the product.
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Verifies the files in a subfolder of the product and returns its path.
    ///
    /// # Errors
    /// The name of the first file whose content differs from its fingerprint.
    pub fn verified_folder(&self, name: &str) -> Result<PathBuf, String> {
        let prefix = format!("{name}/");
        let is_inside = |file: &str| file.starts_with(&prefix);
        match self.manifest.find_damaged_file(&self.folder, is_inside) {
            Some(damaged_file) => Err(damaged_file),
            None => Ok(self.folder.join(name)),
        }
    }
}
