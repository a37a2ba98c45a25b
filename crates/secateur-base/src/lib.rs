//! What every other crate of secateur needs from the machine, without any knowledge of models,
//! tables or pipelines.
//!
//! | module | content |
//! |---|---|
//! | [`files`] | files and folders that are replaced atomically; their hashes |
//! | [`git_lfs`] | recognising a pointer of Git LFS |
//! | [`locks`] | locks between processes that share a folder |
//! | [`memory`] | memory of the process and the machine; the global allocator |
//! | [`process`] | what identifies this process |
//! | [`random`] | random streams derived from one seed |
//! | [`spelling`] | suggestions for misspelled names |
//!
//! It is a crate of its own because `secateur-tensor` and `secateur-model` need random streams,
//! atomic files and memory readings, but must not depend on the Parquet libraries of
//! `secateur-store`.
//!
//! ```
//! use secateur_base::files::{Fingerprint, write_atomic};
//! # let folder = std::env::temp_dir().join(format!("secateur-base-doctest-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let path = folder.join("manifest.json");
//! write_atomic(&path, b"{}")?;
//! assert!(Fingerprint::from_bytes(b"{}").matches_file(&path));
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod files;
pub mod git_lfs;
pub mod locks;
pub mod memory;
pub mod process;
pub mod random;
pub mod spelling;
