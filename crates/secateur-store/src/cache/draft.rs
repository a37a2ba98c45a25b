//! A product that is being made.

use std::path::{Path, PathBuf};

use super::layout::{MANIFEST_FILE_NAME, TABLES_FOLDER, WRITTEN_FOLDER, table_path};
use super::manifest::ProductManifest;
use crate::tables::{Table, TableError};
use secateur_base::files::{self, FileError, Fingerprint, PartialFolder};

/// The folder in which a stage makes its product. It has a temporary name until
/// [`super::ProductCache::store`] moves it to its key; dropping it removes it.
#[derive(Debug)]
pub struct ProductDraft {
    pub(crate) folder: PartialFolder,
}

impl ProductDraft {
    pub(crate) fn new(cache_folder: &Path) -> Result<Self, FileError> {
        let folder = PartialFolder::new(cache_folder)?;
        for subfolder in [WRITTEN_FOLDER, TABLES_FOLDER] {
            files::create_folder(&folder.path().join(subfolder))?;
        }
        Ok(Self { folder })
    }

    /// The folder for the files that the stage writes beside its tables.
    pub fn written_folder(&self) -> PathBuf {
        self.folder.path().join(WRITTEN_FOLDER)
    }

    /// The folder of the whole product.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the tables, records the fingerprints of all files in the manifest, and writes the
    /// manifest last. Returns the completed manifest.
    pub(crate) fn complete(
        &self,
        mut manifest: ProductManifest,
        tables: &[Table],
    ) -> Result<ProductManifest, TableError> {
        let folder = self.path();
        let failed = |error: serde_json::Error| FileError::write(folder, error);
        for table in tables {
            table.save(&table_path(folder, &table.name))?;
        }
        for file in files::list_files(folder).map_err(|error| FileError::read(folder, error))? {
            let path = folder.join(&file);
            let fingerprint =
                Fingerprint::from_file(&path).map_err(|error| FileError::read(&path, error))?;
            // The names in the manifest are the same on every system.
            let name = file.to_string_lossy().replace('\\', "/");
            manifest.files.insert(name, fingerprint);
        }
        let json = serde_json::to_vec_pretty(&manifest).map_err(failed)?;
        files::write_atomic_unsynced(&folder.join(MANIFEST_FILE_NAME), &json)?;
        Ok(manifest)
    }
}
