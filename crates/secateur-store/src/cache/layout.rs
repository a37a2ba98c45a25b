//! Names of files and folders in the cache.

use std::fs;
use std::path::{Path, PathBuf};

/// Hexadecimal digits of a product's key.
pub const KEY_HEX_DIGITS: usize = 32;

/// Ends the name of an interrupted stage's checkpoint: `<key>.state`.
pub const CHECKPOINT_SUFFIX: &str = ".state";

/// The manifest in a product's folder.
pub(crate) const MANIFEST_FILE_NAME: &str = "entry.json";

/// The subfolder with a product's tables.
pub(crate) const TABLES_FOLDER: &str = "tables";

/// The subfolder with the files that a stage writes beside its tables.
pub(crate) const WRITTEN_FOLDER: &str = "written";

/// The subfolder with a product's model, in which a stage writes it. Its files are large, so they
/// are verified only when the model is needed.
pub const MODEL_FOLDER: &str = "model";

/// A tag by which backup programs recognise cache folders (<https://bford.info/cachedir/>).
pub(crate) const TAG_FILE_NAME: &str = "CACHEDIR.TAG";
pub(crate) const TAG_FILE_CONTENT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Products kept by secateur's runner.\n";

/// Whether a folder is a cache of products: whether it has this program's cache tag.
pub fn is_cache(folder: &Path) -> bool {
    fs::read_to_string(folder.join(TAG_FILE_NAME)).is_ok_and(|text| text == TAG_FILE_CONTENT)
}

/// The path of a table in a product's folder.
pub(crate) fn table_path(product_folder: &Path, table_name: &str) -> PathBuf {
    product_folder
        .join(TABLES_FOLDER)
        .join(format!("{table_name}.parquet"))
}

/// Whether `name` has the form of a product's key.
pub(crate) fn is_key(name: &str) -> bool {
    name.len() == KEY_HEX_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
