//! Reserved names and prefixes of names. The prefixes mark files and folders that are not complete.

/// Begins the name of a file or folder that is still being written.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";

/// Begins the name of a folder that was moved aside while its replacement is renamed into place.
/// The rest of the name is the folder's own name, so that it can be moved back.
pub(crate) const REPLACED_PREFIX: &str = ".replaced-";

/// The lock file of a folder that several processes share, see [`crate::locks`].
pub(crate) const LOCK_FILE_NAME: &str = ".lock";
