//! Checks that `load.model` names a folder, and says what was probably meant where it does not.

use std::path::{Component, Path, PathBuf};

use crate::stages::environment::OptionFault;
use secateur_base::spelling::closest_entry;

/// The fault of a name that is not that of a model's folder.
pub(crate) fn fault(model: &str) -> Option<OptionFault> {
    let path = Path::new(model);
    if path.is_dir() {
        return folder_of_models(path);
    }
    let (message, help) = match hub_repository(model) {
        Some(repository) => (
            "models are read from folders, not from the Hugging Face Hub".to_owned(),
            download_help(repository),
        ),
        None if path.symlink_metadata().is_ok() => not_a_folder(path),
        None => (
            format!("there is no folder `{model}`"),
            missing_folder_help(model),
        ),
    };
    Some(OptionFault::new("model", message, help))
}

/// The fault of a folder that holds no model, but folders that do: a folder of models, or a
/// repository in the cache of the Hugging Face Hub.
fn folder_of_models(folder: &Path) -> Option<OptionFault> {
    let has_config = |folder: &Path| folder.join("config.json").symlink_metadata().is_ok();
    if has_config(folder) {
        return None;
    }
    let is_model = |folder: &PathBuf| has_config(folder);
    let mut models: Vec<PathBuf> = [folder.to_owned(), folder.join("snapshots")]
        .iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_model)
        .collect();
    models.sort();
    let names: Vec<String> = models
        .iter()
        .map(|model| format!("`{}`", model.display()))
        .collect();
    (!names.is_empty()).then(|| {
        OptionFault::new(
            "model",
            format!("`{}` has no config.json", folder.display()),
            format!("did you mean {}?", names.join(" or ")),
        )
    })
}

/// The repository in a text that can only be meant as a place on the Hub.
fn hub_repository(model: &str) -> Option<&str> {
    const BEGINNINGS: [&str; 4] = [
        "hf://",
        "https://huggingface.co/",
        "http://huggingface.co/",
        "huggingface.co/",
    ];
    let name = BEGINNINGS
        .iter()
        .find_map(|beginning| model.strip_prefix(beginning))?;
    Some(name.trim_end_matches('/'))
}

/// How to get a repository of the Hub: `owner/name`, or `owner/name@revision`.
fn download_help(repository: &str) -> String {
    let (name, revision) = match repository.split_once('@') {
        Some((name, revision)) => (name, format!(" --revision {revision}")),
        None => (repository, String::new()),
    };
    let folder = name.rsplit_once('/').map_or(name, |(_, last)| last);
    format!(
        "download it with `hf download {name}{revision} --local-dir models/{folder}`, and write \
         model = \"models/{folder}\""
    )
}

/// What stands at a path that exists and is not a folder.
fn not_a_folder(path: &Path) -> (String, String) {
    let name = path.display();
    if let Ok(target) = path.read_link()
        && !path.exists()
    {
        let target = target.display();
        return (
            format!("`{name}` is a link to `{target}`, which does not exist"),
            String::new(),
        );
    }
    let holds_model = |folder: &&Path| folder.join("config.json").exists();
    let help = match path.parent().filter(holds_model) {
        Some(folder) if folder != Path::new("") => {
            format!("write the folder that it lies in: `{}`", folder.display())
        }
        Some(_) => "write the folder that it lies in: `.`".to_owned(),
        None => "write the folder that holds config.json and the weights".to_owned(),
    };
    (format!("`{name}` is not a folder"), help)
}

fn missing_folder_help(model: &str) -> String {
    let path = Path::new(model);
    if model.starts_with('~') {
        return "`~` stands for no folder here; write the whole path".to_owned();
    }
    if let Some(similar) = similar_folder(path) {
        return format!("did you mean `{}`?", similar.display());
    }
    let parts: Vec<Component> = path.components().collect();
    let are_names = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let is_parent_missing = path
        .parent()
        .is_some_and(|parent| parent == Path::new("") || !parent.exists());
    if are_names && parts.len() <= 2 && is_parent_missing {
        return format!(
            "a path is relative to the working directory; if a model of the Hugging Face Hub is \
             meant, {}",
            download_help(model)
        );
    }
    "a model is a folder with config.json and safetensors files, relative to the working directory"
        .to_owned()
}

/// The folder that a path probably means: each part that does not exist is replaced with the most
/// similar name beside it.
fn similar_folder(path: &Path) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in path.components() {
        let next = found.join(part);
        if next.is_dir() {
            found = next;
            continue;
        }
        let name = part.as_os_str().to_str()?;
        found = closest_entry(&found, name, Path::is_dir)?;
    }
    Some(found)
}
