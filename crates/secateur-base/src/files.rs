//! Files and folders that are complete whenever they are visible under their final name.
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
//! | `permissions` | making finished files readable by other users |
//! | `names` | reserved names and prefixes of names |
//! | `error` | the error type |

mod atomic_write;
mod error;
mod fingerprint;
mod leftovers;
pub(crate) mod names;
mod partial_folder;
mod permissions;
mod tree;

pub use atomic_write::{write_atomic, write_atomic_unsynced, write_atomic_with};
pub use error::FileError;
pub use fingerprint::Fingerprint;
pub(crate) use leftovers::remove_leftovers;
pub use partial_folder::{PartialFolder, remove_folder};
pub use permissions::sync_and_make_readable;
pub use tree::{create_folder, link_or_copy_files, link_or_copy_tree, list_files};
