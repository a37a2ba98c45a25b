//! What secateur keeps on disk: Parquet tables, and the cache of the products of stages.

pub mod cache;
pub mod tables;
