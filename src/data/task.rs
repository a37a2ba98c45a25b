//! Tasks as files.
