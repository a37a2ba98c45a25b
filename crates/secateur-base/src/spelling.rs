//! Suggestions for misspelled names ("did you mean").

use std::path::{Path, PathBuf};

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

/// Returns the path of the entry of a folder whose name is most similar to `misspelled`, among those
/// whose paths `accepts` holds for. An empty `folder` is the working directory. `None` if no name is
/// similar, or the folder cannot be listed.
pub fn closest_entry(
    folder: &Path,
    misspelled: &str,
    accepts: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let listed = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let mut names: Vec<String> = std::fs::read_dir(listed)
        .ok()?
        .flatten()
        .filter(|entry| accepts(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    // The order in which the system lists entries must not decide between equal similarities.
    names.sort();
    let similar = closest(misspelled, names.iter().map(String::as_str))?;
    Some(folder.join(similar))
}
