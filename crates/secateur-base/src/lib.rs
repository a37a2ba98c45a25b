//! What lies between secateur and the machine: files that appear whole or not at all, locks between
//! processes, the memory of the process, random streams, and the closest of several names.

pub mod files;
pub mod locks;
pub mod memory;
pub mod random;
pub mod spelling;
