//! Names of a hub, `hf://…`, in recipes and where files of data stand: what they mean is fetched before anything begins,
//! and a recipe has the commit of each from then on, so that a run that goes on or is verified has the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_hub::{DataName, Hub, HubError, MAIN, Name, SCHEME, Settings};
use wels_pipeline::named::HINT;
use wels_pipeline::refusal::refuse;
use wels_runs::machine;
use wels_runs::recipe::{Recipe, Use};

use crate::pull::Shown;

/// What of a recipe's names is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Weights, tokenizers, configurations and data.
    Run,
    /// What steps need that are done again: the corpus and the tokenizer are in the run.
    Replay,
    /// Configurations of models and what a tokenizer is read from: never weights, never data.
    Plan,
}

/// Reads the recipe at `path`; each name gets the commit that it is now, or that it was when the run in `runs` began.
pub fn recipe(path: &Path, runs: Option<&Path>, purpose: For) -> Result<Recipe> {
    let mut recipe = Recipe::load_with(path, &|text| config_file(text).map_err(|error| format!("{error:#}")))?;
    let begun = runs.map(|runs| commits_of(&runs.join(&recipe.run.name))).unwrap_or_default();
    pin(&mut recipe, &begun, purpose)?;
    Ok(recipe)
}

/// Fetches what a recipe names whose names have their commits.
pub fn fetch(recipe: &Recipe, purpose: For) -> Result<()> {
    pin(&mut recipe.clone(), &BTreeMap::new(), purpose)
}

/// The `config.json` of a model by its name; its weights stay where they are.
pub fn config(name: &Name) -> Result<PathBuf> {
    let hub = Hub::new(Settings::from_env()?)?;
    let pinned = hub.pin_text(name, false, &mut Shown::of(&name.id).watch())?;
    Ok(hub.cached_text(&pinned)?.join("config.json"))
}

/// The files of data that the command line means: a path, or those of a name.
pub fn data(text: &Path) -> Result<Vec<PathBuf>> {
    Ok(match name_of_data(text)? {
        None => vec![text.to_owned()],
        Some(name) => files(&name)?.into_iter().map(|(_, path)| path).collect(),
    })
}

/// The same for one file.
pub fn data_file(text: &Path) -> Result<PathBuf> {
    match name_of_data(text)? {
        None => Ok(text.to_owned()),
        Some(name) => Ok(only(&name, files(&name)?)?.1),
    }
}

/// The same for a folder: that in which the files of a name lie.
pub fn data_folder(text: &Path) -> Result<PathBuf> {
    let Some(name) = name_of_data(text)? else { return Ok(text.to_owned()) };
    let (file, path) = files(&name)?.swap_remove(0);
    let depth = file.pattern.split('/').count() - name.folder().split('/').filter(|part| !part.is_empty()).count();
    Ok(path.ancestors().nth(depth).expect("the path ends in the file's").to_owned())
}

fn name_of_data(text: &Path) -> Result<Option<DataName>> {
    let Some(text) = text.to_str().filter(|text| text.starts_with(SCHEME)) else { return Ok(None) };
    DataName::parse(text).map(Some).ok_or_else(|| refuse(format!("{text} names no files of a dataset"), HINT))
}

fn name_of_model(text: &str) -> Result<Name> {
    Name::parse(text).ok_or_else(|| refuse(format!("{text} is not the name of a model"), HINT))
}

fn files(name: &DataName) -> Result<Vec<(DataName, PathBuf)>> {
    Ok(Hub::new(Settings::from_env()?)?.files(name, &mut Shown::of(&name.id).watch())?)
}

fn only(name: &DataName, mut files: Vec<(DataName, PathBuf)>) -> Result<(DataName, PathBuf)> {
    if files.len() == 1 {
        return Ok(files.remove(0));
    }
    let (id, pattern) = (name.id.clone(), name.pattern.clone());
    let files = files.into_iter().map(|(name, _)| name.pattern).collect();
    Err(HubError::Several { id, pattern, files }.into())
}

fn config_file(text: &str) -> Result<PathBuf> {
    config(&name_of_model(text)?)
}

/// What the names of a run that has begun mean, by model or dataset.
fn commits_of(run: &Path) -> BTreeMap<String, String> {
    let Ok(recipe) = Recipe::load(&run.join("recipe.toml")) else { return BTreeMap::new() };
    let commit = |text: &String| match DataName::parse(text) {
        Some(name) => Some((name.id, name.revision)),
        None => Name::parse(text).map(|name| (name.id, name.revision)),
    };
    recipe.names().iter().filter_map(commit).collect()
}

fn pin(recipe: &mut Recipe, begun: &BTreeMap<String, String>, purpose: For) -> Result<()> {
    recipe.replace_names(&mut |of, text| {
        let fetched = match of {
            Use::Model | Use::Tokenizer => model_at_commit(of, text, begun, purpose).map(|name| vec![name]),
            Use::File | Use::Files => files_at_commit(of, text, begun, purpose),
        };
        fetched.with_context(|| format!("cannot use {text}"))
    })
}

/// The revision that a name has, or the commit that it was when the run began.
fn since_begun(id: &str, revision: &mut String, begun: &BTreeMap<String, String>) {
    if let Some(commit) = begun.get(id).filter(|_| revision == MAIN) {
        revision.clone_from(commit);
    }
}

fn model_at_commit(of: Use, text: &str, begun: &BTreeMap<String, String>, purpose: For) -> Result<String> {
    let mut name = name_of_model(text)?;
    since_begun(&name.id, &mut name.revision, begun);
    let hub = Hub::new(Settings::from_env()?)?;
    let id = name.id.clone();
    let mut shown = Shown::of(&id);
    let mut watch = shown.watch();
    Ok(match (of, purpose) {
        (Use::Tokenizer, For::Replay) => text.to_owned(),
        // A GGUF file's configuration is in it, with the weights.
        (_, For::Plan) if name.pick.is_some() => text.to_owned(),
        (Use::Tokenizer, _) if name.pick.is_none() => hub.pin_text(&name, true, &mut watch)?.to_string(),
        (_, For::Plan) => hub.pin_text(&name, false, &mut watch)?.to_string(),
        _ => hub.pin(&name, machine::available_memory_bytes(), &mut watch)?.to_string(),
    })
}

fn files_at_commit(of: Use, text: &str, begun: &BTreeMap<String, String>, purpose: For) -> Result<Vec<String>> {
    let none = || refuse(format!("{text} names no files of a dataset"), HINT);
    let mut name = DataName::parse(text).ok_or_else(none)?;
    if purpose == For::Plan || (purpose == For::Replay && of == Use::Files) {
        return Ok(vec![text.to_owned()]);
    }
    since_begun(&name.id, &mut name.revision, begun);
    let found = files(&name)?;
    let found = if of == Use::File { vec![only(&name, found)?] } else { found };
    Ok(found.into_iter().map(|(name, _)| name.to_string()).collect())
}
