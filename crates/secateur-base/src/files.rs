//! Files and folders that are complete whenever they are visible under their final name.
//!
//! New files and folders have the permissions that the umask leaves, as those of other programs.
//!
//! Everything is written under a temporary name (`.partial-…`) in the folder of its destination and
//! then renamed, which is atomic. What a killed run leaves behind has such a name;
//! [`crate::locks::SharedFolder::open`] removes it when no other process is in the folder.
//!
//! | file | content |
//! |---|---|
//! | `atomic_write` | replacing one file |
//! | `partial_folder` | replacing or filling a folder |
//! | `leftovers` | removing what a killed run left |
//! | `fingerprint` | length and hash of a file |
//! | `tree` | listing and copying a folder with its subfolders |
//! | `temporary` | temporary files and folders, with the permissions that the umask leaves |
//! | `sync` | flushing files to the disk |
//! | `folder_fault` | why a folder cannot be used |
//! | `names` | reserved names and prefixes of names |
//! | `error` | the error type |

mod atomic_write;
mod error;
mod fingerprint;
mod folder_fault;
mod leftovers;
pub(crate) mod names;
mod partial_folder;
mod sync;
mod temporary;
mod tree;

pub use atomic_write::{write_atomic, write_atomic_unsynced, write_atomic_with};
pub use error::{FileAction, FileError};
pub use fingerprint::Fingerprint;
pub use folder_fault::FolderFault;
pub(crate) use folder_fault::check_writable;
pub(crate) use leftovers::remove_leftovers;
pub use partial_folder::{PartialFolder, delete_folder, remove_folder};
pub use sync::sync_tree;
pub use temporary::create_empty_file;
pub use tree::{create_folder, link_or_copy_files, link_or_copy_tree, list_files, set_time_of_use};
