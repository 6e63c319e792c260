//! Adapters and the models that they belong to.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use wels_device::Device;
use wels_hub::{Hub, Name, SCHEME, Settings};
use wels_model::adapter::{Adapter, AdapterFiles, BaseName};
use wels_model::config::ModelConfig;
use wels_model::params::Params;

use crate::identity::weights_sha256;
use crate::location::Location;
use crate::model::locate;
use crate::refusal::refuse;

/// A model with an adapter. Where `base` is not given, the adapter says what it belongs to.
///
/// # Errors
/// An adapter that is none or belongs to other weights, and a model that is not here or has an adapter itself.
pub fn adapted(base: Option<Location>, folder: &Path) -> Result<Location> {
    let files = AdapterFiles::open(folder)?;
    let base = match base {
        Some(base) => base,
        None => base_of(&files)?,
    };
    if let Location::Adapted { adapter, .. } = &base {
        let message = format!("{} has an adapter already: {}", base.path().display(), adapter.display());
        return Err(refuse(message, "merge that one first: wels convert MODEL OUT --merge ADAPTER"));
    }
    check_base(&files, &base)?;
    Ok(Location::Adapted { base: Box::new(base), adapter: folder.to_path_buf() })
}

/// Fails where an adapter says that it was trained on other weights than these. A GGUF file holds a model's weights in
/// another form, whose hash says nothing.
///
/// # Errors
/// Other weights, or none that can be read.
pub fn check_base(files: &AdapterFiles, base: &Location) -> Result<()> {
    let Some(expected) = files.base.sha256.as_ref().filter(|_| !matches!(base, Location::Gguf(_))) else {
        return Ok(());
    };
    let found = weights_sha256(base)?;
    if found == *expected {
        return Ok(());
    }
    let (adapter, base) = (files.dir().display(), base.path().display());
    let message =
        format!("the adapter {adapter} was trained on weights of hash {expected}; those of {base} are {found}");
    Err(refuse(message, "name the model that it was trained on, or train it again on this one"))
}

/// The model that an adapter says it belongs to: a path, from its own directory or as it is, or a name that the hub's
/// cache has.
fn base_of(files: &AdapterFiles) -> Result<Location> {
    let folder = files.dir();
    let hint = format!("name the model: --adapter {} behind it", folder.display());
    let Some(name) = &files.base.name else {
        return Err(refuse(format!("the adapter {} does not say which model it belongs to", folder.display()), hint));
    };
    for path in [folder.join(name), PathBuf::from(name)] {
        if path.exists() {
            return locate(&without_detours(&path));
        }
    }
    let revision = files.base.revision.as_ref().map_or_else(String::new, |revision| format!("@{revision}"));
    if let Some(name) = Name::parse(&format!("{name}{revision}"))
        && let Ok(cached) = Hub::new(Settings::from_env()?)?.cached(&name)
    {
        return locate(&cached);
    }
    let message = format!("the adapter {} belongs to {name}, which is not here", folder.display());
    Err(refuse(message, hint))
}

/// A path without the steps back in it.
fn without_detours(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match (part, plain.components().next_back()) {
            (Component::ParentDir, Some(Component::Normal(_))) => _ = plain.pop(),
            (part, _) => plain.push(part),
        }
    }
    plain
}

/// How an adapter in the directory `to` names its base: an id of the hub as one, a model elsewhere by its whole path,
/// and one of the same run by the way to it, so that the run can be moved.
pub(crate) fn name_of_base(named: &str, model: &Location, run: &Path, to: &Path) -> Result<BaseName> {
    let base = model.base();
    let sha256 = Some(weights_sha256(base)?);
    if let Some(earlier) = model.adapter() {
        // An adapter that is learnt further keeps the hub's name of its base.
        let files = AdapterFiles::open(earlier)?;
        let is_path = |name: &String| earlier.join(name).exists() || Path::new(name).exists();
        if files.base.name.as_ref().is_some_and(|name| !is_path(name)) {
            return Ok(BaseName { sha256, ..files.base });
        }
    }
    if let Some(name) = named.strip_prefix(SCHEME).and_then(Name::parse) {
        return Ok(BaseName { name: Some(name.id), revision: Some(name.revision), sha256 });
    }
    let path = std::path::absolute(base.path())?;
    let name = match (path.strip_prefix(run), to.strip_prefix(run)) {
        (Ok(path), Ok(to)) => to.components().map(|_| Component::ParentDir).collect::<PathBuf>().join(path),
        _ => path,
    };
    Ok(BaseName { name: Some(name.display().to_string()), revision: None, sha256 })
}

/// Brings the adapter in `folder` to the device of `params` and puts it behind them.
///
/// # Errors
/// Files that are damaged or of another model.
pub fn attach(params: &mut Params, config: &ModelConfig, folder: &Path) -> Result<()> {
    let adapter = load(&AdapterFiles::open(folder)?, config, params)?;
    params.attach(&adapter);
    Ok(())
}

/// Brings an adapter to where the matrices of `params` are that it changes.
///
/// # Errors
/// Files that are damaged or of another model.
pub fn load(files: &AdapterFiles, config: &ModelConfig, params: &Params) -> Result<Adapter> {
    let device = |param: usize| -> Arc<dyn Device> { Arc::clone(params.device_of(param)) };
    Ok(files.load(config, &device)?)
}
