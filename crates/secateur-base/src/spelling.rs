//! Suggestions for misspelled names ("did you mean").

/// Up to this Jaro-Winkler similarity (0 to 1) a name is not suggested in place of another.
const SIMILARITY_THRESHOLD: f64 = 0.75;

/// Returns the choice that is most similar to `misspelled`, or `None` if no choice is similar.
/// Upper and lower case count as equal.
///
/// ```
/// use secateur_base::spelling::closest;
///
/// assert_eq!(closest("tiny_bool", ["tiny_boolq", "tiny_piqa"]), Some("tiny_boolq"));
/// assert_eq!(closest("TINY_BOOLQ", ["tiny_boolq", "tiny_piqa"]), Some("tiny_boolq"));
/// assert_eq!(closest("wikitext", ["boolq", "piqa"]), None);
/// ```
pub fn closest<'a>(
    misspelled: &str,
    choices: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let misspelled = misspelled.to_lowercase();
    let similarity = |choice: &&str| strsim::jaro_winkler(&misspelled, &choice.to_lowercase());
    choices
        .into_iter()
        .filter(|choice| similarity(choice) > SIMILARITY_THRESHOLD)
        .max_by(|left, right| similarity(left).total_cmp(&similarity(right)))
}
