//! How a row becomes contexts, choices, and the right one.

use serde::Deserialize;
use serde_json::{Map, Value};

type Row = Map<String, Value>;

/// The formats of rows. `prompt` is a text in which `{field}` stands for the row's field.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Format {
    /// The same choices for every row; `gold` is a field with the index of the right one.
    Fixed { prompt: String, choices: Vec<String>, gold: String },
    /// `choices` are fields; `gold` is a field with the index of the right one.
    Fields { prompt: String, choices: Vec<String>, gold: String },
    /// `choices` is a field that holds two lists, `text` and `label`; `gold` is a field with the label of the right one.
    Labelled { prompt: String, choices: String, gold: String },
    /// HellaSwag: activity and context, cleaned of WikiHow's brackets; the choices are `endings`.
    Hellaswag,
    /// WinoGrande: the sentence up to the blank with either option, the rest of it as the continuation of both.
    Winogrande,
}

impl Format {
    /// The context and choice of every request, and the index of the right one.
    pub fn requests(&self, row: &Row) -> Result<(Vec<(String, String)>, usize), String> {
        match self {
            Format::Fixed { prompt, choices, gold } => {
                let prompt = fill(prompt, row)?;
                Ok((choices.iter().map(|choice| (prompt.clone(), choice.clone())).collect(), index(row, gold)?))
            }
            Format::Fields { prompt, choices, gold } => {
                let prompt = fill(prompt, row)?;
                let requests = choices.iter().map(|field| Ok((prompt.clone(), text(row, field)?.to_owned())));
                Ok((requests.collect::<Result<_, String>>()?, index(row, gold)?))
            }
            Format::Labelled { prompt, choices, gold } => {
                let prompt = fill(prompt, row)?;
                let Some(Value::Object(lists)) = row.get(choices) else { return Err(format!("it lacks the table `{choices}`")) };
                let (texts, labels, gold) = (texts(lists, "text")?, texts(lists, "label")?, text(row, gold)?);
                let right =
                    labels.iter().position(|label| *label == gold).ok_or_else(|| format!("no choice has the label `{gold}`"))?;
                Ok((texts.into_iter().map(|choice| (prompt.clone(), choice.to_owned())).collect(), right))
            }
            Format::Hellaswag => {
                let context =
                    format!("{}: {} {}", text(row, "activity_label")?, text(row, "ctx_a")?, capitalise(text(row, "ctx_b")?));
                let context = clean(&context);
                let endings = texts(row, "endings")?;
                Ok((endings.into_iter().map(|ending| (context.clone(), clean(ending))).collect(), index(row, "label")?))
            }
            Format::Winogrande => {
                let sentence = text(row, "sentence")?;
                let (before, after) =
                    sentence.split_once('_').ok_or_else(|| format!("the sentence `{sentence}` has no blank"))?;
                let request = |option: &str| Ok((format!("{before}{option}"), after.trim().to_owned()));
                let requests = vec![request(text(row, "option1")?), request(text(row, "option2")?)];
                let gold = index(row, "answer")?.checked_sub(1).ok_or("the answer is 0, the options are 1 and 2")?;
                Ok((requests.into_iter().collect::<Result<_, String>>()?, gold))
            }
        }
    }
}

/// The template with the row's fields.
fn fill(template: &str, row: &Row) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, from)) = rest.split_once('{') {
        let (field, after) = from.split_once('}').ok_or("the prompt has a `{` without its `}`")?;
        filled.push_str(before);
        filled.push_str(text(row, field)?);
        rest = after;
    }
    Ok(filled + rest)
}

fn text<'a>(row: &'a Row, field: &str) -> Result<&'a str, String> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{field}` is {other}, not a text")),
        None => Err(format!("it lacks the field `{field}`")),
    }
}

fn texts<'a>(row: &'a Row, field: &str) -> Result<Vec<&'a str>, String> {
    let Some(Value::Array(items)) = row.get(field) else { return Err(format!("it lacks the list `{field}`")) };
    items.iter().map(|item| item.as_str().ok_or_else(|| format!("`{field}` holds {item}, not a text"))).collect()
}

/// An index, written as a number or as a text.
fn index(row: &Row, field: &str) -> Result<usize, String> {
    let found = row.get(field).ok_or_else(|| format!("it lacks the field `{field}`"))?;
    let number = found.as_u64().or_else(|| found.as_str()?.parse().ok());
    number.map(|n| n as usize).ok_or_else(|| format!("`{field}` is {found}, not the number of a choice"))
}

/// Python's `capitalize`: the first character raised, the rest lowered.
fn capitalise(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

/// The harness's clean-up: outer white space off, ` [title]` a full stop, other brackets gone, double spaces single.
fn clean(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut cleaned = String::new();
    let mut rest = text.as_str();
    while let Some((before, from)) = rest.split_once('[') {
        let Some((_, after)) = from.split_once(']') else { break };
        cleaned.push_str(before);
        rest = after;
    }
    (cleaned + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_texts_are_cleaned_as_the_harness_does() {
        assert_eq!(clean(" Roof: [header] How to roof [title] Buy [substeps] nails.  Go. "), "Roof: How to roof. Buy nails. Go.");
        assert_eq!(clean("an open [ bracket"), "an open [ bracket");
        assert_eq!(capitalise("a Man sits"), "A man sits");
        assert_eq!(capitalise(""), "");
    }
}
