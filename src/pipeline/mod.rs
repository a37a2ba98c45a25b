//! The one list of stages, the file, the check, the tree of variants, and the spine that walks it.
