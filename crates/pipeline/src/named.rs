//! What a recipe names on a hub, `hf://…`, where the cache has it. Nothing is fetched here: whoever begins a run has
//! fetched, and put a commit into each name.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_hub::{DataName, Hub, Name, SCHEME, Settings};

use crate::refusal::refuse;

/// A model with its weights: a path as it is, or where a name has it.
pub(crate) fn model(text: &str) -> Result<Cow<'_, Path>> {
    place(text, |hub, text| Ok(hub.cached(&name_of(text)?)?))
}

/// The path of a model of which the configuration is enough, or the tokenizer.
pub(crate) fn text_of_model(text: &str) -> Result<Cow<'_, Path>> {
    place(text, |hub, text| {
        let name = name_of(text)?;
        Ok(if name.pick.is_some() { hub.cached(&name)? } else { hub.cached_text(&name)? })
    })
}

/// The path of a file of data.
pub(crate) fn file(text: &str) -> Result<Cow<'_, Path>> {
    place(text, |hub, text| {
        let name = DataName::parse(text).ok_or_else(|| refuse(format!("{text} names no file of a dataset"), HINT))?;
        Ok(hub.cached_file(&name)?)
    })
}

/// How names are written.
pub const HINT: &str = "hf://ORG/NAME[@REVISION] is a model, hf://datasets/ORG/NAME[@REVISION]/PATH are files of a \
                        dataset";

fn name_of(text: &str) -> Result<Name> {
    Name::parse(text).ok_or_else(|| refuse(format!("{text} is not the name of a model"), HINT))
}

fn place<'a>(text: &'a str, find: impl FnOnce(&Hub, &str) -> Result<PathBuf>) -> Result<Cow<'a, Path>> {
    if !text.starts_with(SCHEME) {
        return Ok(Cow::Borrowed(Path::new(text)));
    }
    let hub = Hub::new(Settings::from_env()?)?;
    Ok(Cow::Owned(find(&hub, text).with_context(|| format!("cannot use {text}"))?))
}
