//! A mistake in a task file, before it is known which file it is.

use std::ops::Range;

use toml::Spanned;

/// What is wrong with a task file, and the bytes of the file that are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpannedMessage {
    pub(crate) message: String,
    pub(crate) span: Range<usize>,
}

/// Returns an error at a value of the file.
pub(crate) fn error_at<T, V>(
    value: &Spanned<V>,
    message: impl Into<String>,
) -> Result<T, SpannedMessage> {
    Err(SpannedMessage {
        message: message.into(),
        span: value.span(),
    })
}
