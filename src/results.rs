//! The results folder of a pipeline: `results/<pipeline>/`, with a folder for each variant. Files
//! are written atomically.
//!
//! | file | content |
//! |---|---|
//! | `manifest` | the manifest of a variant |
//! | `sweep` | what is recorded of the variants of a sweep |
//! | `variant_folder` | the folder of a variant while its stages run |

mod manifest;
pub mod sweep;
mod variant_folder;

use std::fs;
use std::path::{Path, PathBuf};

use manifest::MANIFEST_FILE;
pub use manifest::{StageRecord, VariantManifest, VariantStatus};
use variant_folder::ATTEMPT_FOLDER;
pub use variant_folder::VariantFolder;

use secateur_base::files::FileError;
use secateur_base::locks::{self, Claim, LockSupport, SharedFolder};

/// `results/<pipeline>/`, open for writing. Several processes can have it open; each variant is
/// claimed by one of them.
#[derive(Debug)]
pub struct ResultsFolder {
    folder: SharedFolder,
}

/// The state of a variant's results folder.
#[derive(Debug)]
pub enum ResultState {
    /// There is no complete result.
    Missing,
    /// A complete result of other inputs, code or options.
    Outdated,
    /// The result is complete.
    Complete,
    /// The result is complete, but this file is not what was written.
    Damaged(String),
}

/// The folders of the variants in the results folder of a pipeline, sorted by name.
pub fn variant_folders(results_folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(results_folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|folder| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            // Names of temporary folders begin with a dot.
            !name.starts_with('.') && folder.join(MANIFEST_FILE).is_file()
        })
        .collect();
    folders.sort();
    folders
}

/// Reads the manifest of the last run of a variant, and returns it with the folder that it lies in:
/// the `attempt` folder if the last run did not succeed where a complete result already was. The
/// status of a variant whose run was killed is `interrupted`.
pub fn read_last_manifest(folder: &Path) -> Option<(PathBuf, VariantManifest)> {
    let attempt = folder.join(ATTEMPT_FOLDER);
    if let Some(manifest) = VariantManifest::read(&attempt) {
        return Some((attempt, manifest));
    }
    let mut manifest = VariantManifest::read(folder)?;
    if is_abandoned(folder, &manifest) {
        manifest.set_interrupted();
    }
    Some((folder.to_owned(), manifest))
}

/// Whether a manifest says that the variant's stages are running, and no process has the claim.
fn is_abandoned(folder: &Path, manifest: &VariantManifest) -> bool {
    let results_folder = folder.parent().unwrap_or(Path::new("."));
    manifest.status == VariantStatus::Running
        && !locks::is_claimed(results_folder, &manifest.variant)
}

/// The state of a variant's folder. `verify_contents` hashes every file; otherwise only its length
/// is compared.
pub fn result_state(folder: &Path, keys: &[&str], verify_contents: bool) -> ResultState {
    let Some(manifest) = VariantManifest::read(folder)
        .filter(|manifest| manifest.status == VariantStatus::Succeeded)
    else {
        return ResultState::Missing;
    };
    if !manifest.has_stage_keys(keys) {
        return ResultState::Outdated;
    }
    let damaged = if verify_contents {
        find_damaged_file(folder, &manifest)
    } else {
        find_file_of_other_length(folder, &manifest)
    };
    damaged.map_or(ResultState::Complete, ResultState::Damaged)
}

/// A file of a complete result whose content is not what was written.
pub fn find_damaged_file(folder: &Path, manifest: &VariantManifest) -> Option<String> {
    let mut outputs = manifest.outputs.iter();
    let damaged = outputs.find(|(name, file)| !file.matches_file(&folder.join(name)));
    damaged.map(|(name, _)| name.clone())
}

fn find_file_of_other_length(folder: &Path, manifest: &VariantManifest) -> Option<String> {
    let mut outputs = manifest.outputs.iter();
    let damaged = outputs.find(|(name, file)| !file.has_length(&folder.join(name)));
    damaged.map(|(name, _)| name.clone())
}

impl ResultsFolder {
    /// Opens the results folder of a pipeline, and creates it if needed. Marks variants as
    /// interrupted whose run was killed.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        let results = Self {
            folder: SharedFolder::open(folder)?,
        };
        results.mark_abandoned_variants();
        Ok(results)
    }

    fn mark_abandoned_variants(&self) {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        for entry in entries {
            let folder = entry.path();
            let Some(found) = VariantManifest::read(&folder) else {
                continue;
            };
            if !is_abandoned(&folder, &found) {
                continue;
            }
            let Ok(Some(_claim)) = self.claim(&found.variant) else {
                continue;
            };
            // Another run may have begun and ended the variant before it was claimed here.
            let claimed = VariantManifest::read(&folder);
            let Some(mut manifest) =
                claimed.filter(|manifest| manifest.status == VariantStatus::Running)
            else {
                continue;
            };
            manifest.set_interrupted();
            if let Err(error) = manifest.write(&folder) {
                tracing::debug!("a variant of a killed run cannot be marked: {error}");
            }
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Claims a variant, by its id, or a table, by its file name; `None` while another process has
    /// the claim.
    pub fn claim(&self, id: &str) -> Result<Option<Claim>, FileError> {
        self.folder.try_claim(id)
    }

    /// Opens a variant's folder for a new run. A complete result of an earlier run stays until this
    /// one is complete.
    pub fn begin_variant(
        &self,
        claim: Claim,
        pipeline_toml: &str,
        manifest: VariantManifest,
    ) -> Result<VariantFolder, FileError> {
        VariantFolder::begin(self.folder(), claim, pipeline_toml, manifest)
    }

    /// Whether processes can share the folder.
    pub fn lock_support(&self) -> LockSupport {
        self.folder.lock_support()
    }

    /// The state of a variant's folder, with the content of every file verified. If the result is
    /// complete, removes a stale `attempt` folder. The caller holds the claim on the variant.
    pub fn verify(&self, id: &str, keys: &[&str]) -> ResultState {
        let folder = self.folder().join(id);
        let state = result_state(&folder, keys, true);
        if let ResultState::Complete = state {
            drop(fs::remove_dir_all(folder.join(ATTEMPT_FOLDER)));
        }
        state
    }
}
