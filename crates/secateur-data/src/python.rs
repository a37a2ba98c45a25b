//! Texts by Python's definition, because the templates of lm-evaluation-harness are Python's: white
//! space, string methods, and how values are printed.
//!
//! | file | content |
//! |---|---|
//! | `white_space` | which characters are white space; trimming |
//! | `split` | `split`, `rsplit`, `splitlines` |
//! | `case` | `title`, `capitalize`, `swapcase` |
//! | `character` | `isdigit`, `isalpha`, …: what the characters of a text are |
//! | `print` | `str` and `repr` of floats and texts |

pub(crate) mod case;
pub(crate) mod character;
pub(crate) mod print;
pub(crate) mod split;
mod white_space;

pub use white_space::{is_blank, is_white_space, trim, trim_end, trim_start};
