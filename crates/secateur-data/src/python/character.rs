//! What the characters of a text are: `str.isdigit`, `str.isalpha` and the like.

use std::sync::LazyLock;

use regex::Regex;

/// Python's categories L* of Unicode. `char::is_alphabetic` includes more.
static LETTERS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{L}+$").ok());
/// Python's decimal digits, category Nd.
static DECIMALS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{Nd}+$").ok());

/// Digits that are not decimals: superscripts, subscripts, and numbers in circles and the like.
const OTHER_DIGITS: [(char, char); 20] = [
    ('\u{b2}', '\u{b3}'),
    ('\u{b9}', '\u{b9}'),
    ('\u{1369}', '\u{1371}'),
    ('\u{19da}', '\u{19da}'),
    ('\u{2070}', '\u{2070}'),
    ('\u{2074}', '\u{2079}'),
    ('\u{2080}', '\u{2089}'),
    ('\u{2460}', '\u{2468}'),
    ('\u{2474}', '\u{247c}'),
    ('\u{2488}', '\u{2490}'),
    ('\u{24ea}', '\u{24ea}'),
    ('\u{24f5}', '\u{24fd}'),
    ('\u{24ff}', '\u{24ff}'),
    ('\u{2776}', '\u{277e}'),
    ('\u{2780}', '\u{2788}'),
    ('\u{278a}', '\u{2792}'),
    ('\u{10a40}', '\u{10a43}'),
    ('\u{10e60}', '\u{10e68}'),
    ('\u{11052}', '\u{1105a}'),
    ('\u{1f100}', '\u{1f10a}'),
];

/// Numbers that are letters: ideographs.
const NUMERIC_LETTERS: [(char, char); 72] = [
    ('\u{3405}', '\u{3405}'),
    ('\u{3483}', '\u{3483}'),
    ('\u{382a}', '\u{382a}'),
    ('\u{3b4d}', '\u{3b4d}'),
    ('\u{4e00}', '\u{4e00}'),
    ('\u{4e03}', '\u{4e03}'),
    ('\u{4e07}', '\u{4e07}'),
    ('\u{4e09}', '\u{4e09}'),
    ('\u{4e5d}', '\u{4e5d}'),
    ('\u{4e8c}', '\u{4e8c}'),
    ('\u{4e94}', '\u{4e94}'),
    ('\u{4e96}', '\u{4e96}'),
    ('\u{4ebf}', '\u{4ec0}'),
    ('\u{4edf}', '\u{4edf}'),
    ('\u{4ee8}', '\u{4ee8}'),
    ('\u{4f0d}', '\u{4f0d}'),
    ('\u{4f70}', '\u{4f70}'),
    ('\u{5104}', '\u{5104}'),
    ('\u{5146}', '\u{5146}'),
    ('\u{5169}', '\u{5169}'),
    ('\u{516b}', '\u{516b}'),
    ('\u{516d}', '\u{516d}'),
    ('\u{5341}', '\u{5341}'),
    ('\u{5343}', '\u{5345}'),
    ('\u{534c}', '\u{534c}'),
    ('\u{53c1}', '\u{53c4}'),
    ('\u{56db}', '\u{56db}'),
    ('\u{58f1}', '\u{58f1}'),
    ('\u{58f9}', '\u{58f9}'),
    ('\u{5e7a}', '\u{5e7a}'),
    ('\u{5efe}', '\u{5eff}'),
    ('\u{5f0c}', '\u{5f0e}'),
    ('\u{5f10}', '\u{5f10}'),
    ('\u{62fe}', '\u{62fe}'),
    ('\u{634c}', '\u{634c}'),
    ('\u{67d2}', '\u{67d2}'),
    ('\u{6f06}', '\u{6f06}'),
    ('\u{7396}', '\u{7396}'),
    ('\u{767e}', '\u{767e}'),
    ('\u{8086}', '\u{8086}'),
    ('\u{842c}', '\u{842c}'),
    ('\u{8cae}', '\u{8cae}'),
    ('\u{8cb3}', '\u{8cb3}'),
    ('\u{8d30}', '\u{8d30}'),
    ('\u{9621}', '\u{9621}'),
    ('\u{9646}', '\u{9646}'),
    ('\u{964c}', '\u{964c}'),
    ('\u{9678}', '\u{9678}'),
    ('\u{96f6}', '\u{96f6}'),
    ('\u{f96b}', '\u{f96b}'),
    ('\u{f973}', '\u{f973}'),
    ('\u{f978}', '\u{f978}'),
    ('\u{f9b2}', '\u{f9b2}'),
    ('\u{f9d1}', '\u{f9d1}'),
    ('\u{f9d3}', '\u{f9d3}'),
    ('\u{f9fd}', '\u{f9fd}'),
    ('\u{20001}', '\u{20001}'),
    ('\u{20064}', '\u{20064}'),
    ('\u{200e2}', '\u{200e2}'),
    ('\u{20121}', '\u{20121}'),
    ('\u{2092a}', '\u{2092a}'),
    ('\u{20983}', '\u{20983}'),
    ('\u{2098c}', '\u{2098c}'),
    ('\u{2099c}', '\u{2099c}'),
    ('\u{20aea}', '\u{20aea}'),
    ('\u{20afd}', '\u{20afd}'),
    ('\u{20b19}', '\u{20b19}'),
    ('\u{22390}', '\u{22390}'),
    ('\u{22998}', '\u{22998}'),
    ('\u{23b1b}', '\u{23b1b}'),
    ('\u{2626d}', '\u{2626d}'),
    ('\u{2f890}', '\u{2f890}'),
];

fn is_in(c: char, ranges: &[(char, char)]) -> bool {
    ranges
        .iter()
        .any(|&(first, last)| (first..=last).contains(&c))
}

fn is_match(regex: &Option<Regex>, c: char) -> bool {
    let mut buffer = [0; 4];
    let text = c.encode_utf8(&mut buffer);
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// `str.isalpha` of one character.
pub(crate) fn is_letter(c: char) -> bool {
    c.is_alphabetic() && (c.is_ascii() || is_match(&LETTERS, c))
}

/// `str.isdecimal` of one character.
pub(crate) fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || (c.is_numeric() && is_match(&DECIMALS, c))
}

/// `str.isdigit` of one character.
pub(crate) fn is_digit(c: char) -> bool {
    is_decimal(c) || is_in(c, &OTHER_DIGITS)
}

/// `str.isnumeric` of one character.
pub(crate) fn is_numeric(c: char) -> bool {
    c.is_numeric() || is_in(c, &NUMERIC_LETTERS)
}

/// `str.isalnum` of one character.
pub(crate) fn is_alphanumeric(c: char) -> bool {
    is_letter(c) || is_numeric(c)
}

/// Whether a character is in title case, such as ǅ.
fn is_title_case(c: char) -> bool {
    matches!(
        c,
        'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}'
            | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}'
    )
}

/// Whether a character is in upper, lower or title case.
pub(crate) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title_case(c)
}

/// `str.islower`: at least one character has case, and all of these are in lower case.
pub(crate) fn is_lower_case(text: &str) -> bool {
    let mut cased = text.chars().filter(|&c| is_cased(c)).peekable();
    cased.peek().is_some() && cased.all(char::is_lowercase)
}

/// `str.isupper`.
pub(crate) fn is_upper_case(text: &str) -> bool {
    let mut cased = text.chars().filter(|&c| is_cased(c)).peekable();
    cased.peek().is_some() && cased.all(char::is_uppercase)
}

/// `str.istitle`: letters in upper case begin words, those in lower case continue them.
pub(crate) fn is_title(text: &str) -> bool {
    let mut has_cased = false;
    let mut previous_is_cased = false;
    for c in text.chars() {
        let begins_word = c.is_uppercase() || is_title_case(c);
        if (begins_word && previous_is_cased) || (c.is_lowercase() && !previous_is_cased) {
            return false;
        }
        previous_is_cased = is_cased(c);
        has_cased |= previous_is_cased;
    }
    has_cased
}
