//! What secateur stores on disk: tables of measurements and the cache of stages' products.
//!
//! | module | content |
//! |---|---|
//! | [`tables`] | rows of plain structs as Parquet files |
//! | [`cache`] | what stages made, stored under a key and verified by hashes |
//!
//! The crate does not depend on stages or models: a product is a folder of files with a manifest.
//!
//! ```
//! use secateur_store::tables::Table;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct LossRow {
//!     update: u32,
//!     loss: f64,
//! }
//!
//! let rows = [LossRow { update: 1, loss: 2.5 }, LossRow { update: 2, loss: 2.25 }];
//! let table = Table::from_rows("recover", &rows)?;
//! assert_eq!(table.rows.num_rows(), 2);
//!
//! let diverged = [LossRow { update: 3, loss: f64::NAN }];
//! let error = Table::from_rows("recover", &diverged).expect_err("NaN is refused");
//! assert!(error.to_string().contains("column `loss`, row 0"));
//! # Ok::<(), secateur_store::tables::TableError>(())
//! ```

pub mod cache;
pub mod tables;
