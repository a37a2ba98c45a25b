//! `str.title`, `str.capitalize` and `str.swapcase`.

use super::character::is_cased;

/// `text.title()`: the first letter of each run of letters with case in upper case, the others in
/// lower case.
pub(crate) fn title(text: &str) -> String {
    let mut lower_case = LowerCase::new(text);
    let mut result = String::with_capacity(text.len());
    let mut previous_is_cased = false;
    for c in text.chars() {
        if previous_is_cased {
            lower_case.push(c, &mut result);
        } else {
            lower_case.skip(c);
            push_title_case(c, &mut result);
        }
        previous_is_cased = is_cased(c);
    }
    result
}

/// `text.capitalize()`: the first character in title case, the others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let mut lower_case = LowerCase::new(text);
    let mut result = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        if index == 0 {
            lower_case.skip(c);
            push_title_case(c, &mut result);
        } else {
            lower_case.push(c, &mut result);
        }
    }
    result
}

/// `text.swapcase()`.
pub(crate) fn swap_case(text: &str) -> String {
    let mut lower_case = LowerCase::new(text);
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            lower_case.push(c, &mut result);
            continue;
        }
        lower_case.skip(c);
        if c.is_lowercase() {
            result.extend(c.to_uppercase());
        } else {
            result.push(c);
        }
    }
    result
}

/// The character in title case, which is the upper case except in a few scripts and ligatures.
fn push_title_case(c: char, result: &mut String) {
    let code = u32::from(c);
    let single = match code {
        // The digraphs Ǆ, Ǉ, Ǌ and Ǳ: upper, title and lower case follow each other.
        0x1c4..=0x1cc => Some(code - (code - 0x1c4) % 3 + 1),
        0x1f1..=0x1f3 => Some(0x1f2),
        // Georgian letters have no title case.
        0x10d0..=0x10fa | 0x10fd..=0x10ff => Some(code),
        // Greek letters with a iota below: the title case has it beside.
        0x1f80..=0x1faf => Some(code | 8),
        0x1fb3 | 0x1fbc => Some(0x1fbc),
        0x1fc3 | 0x1fcc => Some(0x1fcc),
        0x1ff3 | 0x1ffc => Some(0x1ffc),
        _ => None,
    };
    if let Some(title) = single.and_then(char::from_u32) {
        result.push(title);
        return;
    }
    // Of a ligature, whose upper case has several letters, only the first one stays in upper case.
    let mut upper = c.to_uppercase();
    let first = upper.next().unwrap_or(c);
    result.push(first);
    for other in upper {
        match other {
            _ if !first.is_uppercase() => result.push(other),
            'Ι' => result.push('\u{345}'),
            _ => result.extend(other.to_lowercase()),
        }
    }
}

/// Puts single characters of a text in lower case. That of Σ depends on the characters around it.
struct LowerCase {
    /// The lower case of each sigma of the text that is not passed yet.
    sigmas: std::vec::IntoIter<char>,
}

impl LowerCase {
    fn new(text: &str) -> Self {
        let is_sigma = |c: &char| matches!(c, 'Σ' | 'σ' | 'ς');
        let sigmas: Vec<char> = match text.contains('Σ') {
            true => text.to_lowercase().chars().filter(is_sigma).collect(),
            false => Vec::new(),
        };
        Self {
            sigmas: sigmas.into_iter(),
        }
    }

    /// Passes a character that is not put in lower case.
    fn skip(&mut self, c: char) -> Option<char> {
        matches!(c, 'Σ' | 'σ' | 'ς').then(|| self.sigmas.next())?
    }

    fn push(&mut self, c: char, result: &mut String) {
        let sigma = self.skip(c);
        match (c, sigma) {
            ('Σ', Some(sigma)) => result.push(sigma),
            _ => result.extend(c.to_lowercase()),
        }
    }
}
