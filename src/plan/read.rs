//! Reads the text of a pipeline file. What is not a regular file is not opened: a FIFO would wait
//! for a writer.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use secateur_base::spelling::closest_entry;

/// Why there is no text of a pipeline, and what to give instead.
pub(super) struct Unreadable {
    pub message: String,
    pub help: String,
}

const USAGE: &str = "a pipeline is a TOML file; its path is relative to the working directory";

/// The folder of pipelines that a project usually has.
const USUAL_FOLDER: &str = "pipelines";

pub(super) fn read_pipeline(path: &Path) -> Result<String, Unreadable> {
    let name = path.display();
    let unreadable = |message: String, help: String| Unreadable { message, help };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing_file(path),
        _ => unreadable(format!("cannot read `{name}`: {error}"), USAGE.to_owned()),
    })?;
    if metadata.is_dir() {
        let files: Vec<String> = toml_files(path)
            .iter()
            .map(|file| format!("`{}`", file.display()))
            .collect();
        let help = match files.is_empty() {
            true => USAGE.to_owned(),
            false => format!("give a file of it: {}", files.join(", ")),
        };
        return Err(unreadable(
            format!("`{name}` is a folder, not a pipeline"),
            help,
        ));
    }
    if !metadata.is_file() {
        let message = format!("`{name}` is neither a file nor a folder");
        return Err(unreadable(message, USAGE.to_owned()));
    }
    let bytes = std::fs::read(path)
        .map_err(|error| unreadable(format!("cannot read `{name}`: {error}"), String::new()))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let message = format!("`{name}` is not UTF-8 text: byte {offset} is wrong");
        unreadable(
            message,
            "a pipeline is a TOML file, saved as UTF-8".to_owned(),
        )
    })
}

/// A path that does not exist: a link to nothing, or a misspelt name.
fn missing_file(path: &Path) -> Unreadable {
    let name = path.display();
    if let Ok(target) = std::fs::read_link(path) {
        let target = target.display();
        return Unreadable {
            message: format!("`{name}` is a link to `{target}`, which does not exist"),
            help: String::new(),
        };
    }
    let help = match similar_file(path) {
        Some(similar) => format!("did you mean `{}`?", similar.display()),
        None => USAGE.to_owned(),
    };
    Unreadable {
        message: format!("there is no file `{name}`"),
        help,
    }
}

/// The TOML file that was probably meant: the one with the most similar name in the same folder, or
/// one of this name in the folder of pipelines.
fn similar_file(path: &Path) -> Option<PathBuf> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file_name = path.file_name()?.to_string_lossy();
    find_similar(folder, &file_name).or_else(|| find_similar(Path::new(USUAL_FOLDER), &file_name))
}

fn find_similar(folder: &Path, file_name: &str) -> Option<PathBuf> {
    let similar = closest_entry(folder, file_name, is_toml_file)?;
    Some(similar.strip_prefix(".").unwrap_or(&similar).to_owned())
}

/// The TOML files of a folder, by name.
fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_toml_file(path))
        .collect();
    files.sort();
    files
}

fn is_toml_file(path: &Path) -> bool {
    let has_extension = path
        .extension()
        .is_some_and(|extension| extension == "toml");
    has_extension && path.is_file()
}
