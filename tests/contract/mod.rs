//! The behaviour that users and outside checks rely on: the command line, exit codes, files,
//! columns, messages, resuming, kept products.

mod accumulation;
mod broken_input;
mod check;
mod command_line;
mod data_files;
mod exports;
mod generation;
mod interruption;
mod kept_products;
mod lock_file;
mod model_folders;
mod options;
mod output;
mod printed_tables;
mod several_runs;
mod shards;
mod shared_folders;
mod special_tokens;
mod stages;
mod sweep_tables;
mod task_file_mistakes;
pub(crate) mod task_files;
