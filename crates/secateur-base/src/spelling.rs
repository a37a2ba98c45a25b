//! "Did you mean": the closest of several names.

/// The closest of the choices, if it is close.
pub fn closest<'a>(wrong: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |choice: &&str| strsim::jaro_winkler(wrong, choice);
    choices
        .into_iter()
        .filter(|choice| near(choice) > 0.75)
        .max_by(|a, b| near(a).total_cmp(&near(b)))
}
