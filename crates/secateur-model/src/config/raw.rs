//! `config.json` as it was read: every key with its value, and with the text in which the value was
//! written, so that an export repeats unchanged values to the letter.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Map, Value};

/// The keys of a `config.json`. Empty for a model that was not read from one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawConfig {
    pub(crate) values: Map<String, Value>,
    /// The text of each value in the file.
    texts: BTreeMap<String, String>,
}

impl RawConfig {
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        Ok(Self {
            values: serde_json::from_str(text)?,
            texts: value_texts(text).unwrap_or_default(),
        })
    }

    /// Whether the file has this key with a value other than null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// The text in which the file has `value` at `key`; None if it has another value there. Two
    /// numbers are equal if their values are, so `1e-05` stands for 0.00001 and `10000` for
    /// 10000.0.
    pub(crate) fn text_of(&self, key: &str, value: &Value) -> Option<&str> {
        let read = self.values.get(key)?;
        let is_same_number = || Some(read.as_f64()? == value.as_f64()?);
        let is_same = read == value || is_same_number() == Some(true);
        is_same.then(|| self.texts.get(key))?.map(String::as_str)
    }
}

/// The text of every value of a JSON object, by key. None if `text` is not an object.
fn value_texts(text: &str) -> Option<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    let mut rest = text.trim_start().strip_prefix('{')?;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n', ',']);
        if rest.starts_with('}') {
            return Some(texts);
        }
        let mut keys = Deserializer::from_str(rest).into_iter::<String>();
        let key = keys.next()?.ok()?;
        let after_key = &rest[keys.byte_offset()..];
        let value = after_key.trim_start().strip_prefix(':')?.trim_start();
        let mut values = Deserializer::from_str(value).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let length = values.byte_offset();
        texts.insert(key, value[..length].to_owned());
        rest = &value[length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_keep_the_text_in_which_they_were_written() {
        let raw = RawConfig::parse(
            "{\"rms_norm_eps\": 1e-05,\"big\":12345678901234567890123 ,\n \"list\": [1.0, {\"a\": 2}],\
             \"none\": null, \"name\": \"a \\\"}, b\"}\n",
        )
        .expect("an object");
        for (key, text) in [
            ("rms_norm_eps", "1e-05"),
            ("big", "12345678901234567890123"),
            ("list", "[1.0, {\"a\": 2}]"),
            ("none", "null"),
            ("name", "\"a \\\"}, b\""),
        ] {
            assert_eq!(raw.text_of(key, &raw.values[key]), Some(text));
        }
        assert_eq!(raw.text_of("rms_norm_eps", &json!(0.00001)), Some("1e-05"));
        assert_eq!(raw.text_of("rms_norm_eps", &json!(0.00002)), None);
        assert_eq!(raw.text_of("other", &json!(1)), None);
        assert!(raw.has("name") && !raw.has("none") && !raw.has("other"));
    }
}
