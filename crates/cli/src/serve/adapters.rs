//! Adapters of the models that are served: those of the command line, and those that are loaded later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use wels_device::Device;
use wels_model::adapter::AdapterFiles;
use wels_model::config::ModelConfig;
use wels_model::names::param_specs;
use wels_pipeline::adapters::check_base;
use wels_pipeline::identity::adapter_sha256;
use wels_pipeline::model::model_folder;
use wels_pipeline::refusal::refuse;
use wels_server::http::{AdapterSource, LoadedAdapter};

use crate::model::{LoadArgs, Location};

/// What the command line says of adapters.
#[derive(clap::Args)]
pub struct AdapterArgs {
    /// A LoRA adapter of a model, by the name that clients ask for: a directory in PEFT's form, or a run or stage that
    /// trained one; can be given several times. Of several models it belongs to the one whose weights it was trained on
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<String>,
    /// The directory from which operators may load adapters while the server runs, by POST /v1/adapters; none if left
    /// out
    #[arg(long, value_name = "DIR")]
    adapters_dir: Option<PathBuf>,
    /// The greatest rank of an adapter that is loaded
    #[arg(long, value_name = "RANK", default_value = "256")]
    max_adapter_rank: usize,
}

/// A model that adapters may belong to.
pub struct Base {
    /// By its first name.
    pub name: String,
    pub location: Location,
    /// As its weights are held.
    pub config: ModelConfig,
    pub load: LoadArgs,
}

/// Loads adapters of some models.
pub struct Adapters {
    /// By their numbers; none for models of pictures.
    bases: Vec<Option<Base>>,
    dir: Option<PathBuf>,
    rank_max: usize,
}

impl AdapterArgs {
    pub fn source(&self, bases: Vec<Option<Base>>) -> Result<Adapters> {
        let whole = |dir: &PathBuf| dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()));
        let dir = self.adapters_dir.as_ref().map(whole).transpose()?;
        Ok(Adapters { bases, dir, rank_max: self.max_adapter_rank })
    }

    /// Names of those of the command line.
    pub fn names(&self) -> Vec<String> {
        self.adapter.iter().filter_map(|text| Some(text.split_once('=')?.0.to_owned())).collect()
    }

    /// Those of the command line, each with its name and its model's number.
    pub fn load(&self, from: &Adapters) -> Result<Vec<(String, usize, LoadedAdapter)>> {
        self.adapter.iter().map(|text| self.load_one(from, text)).collect()
    }

    fn load_one(&self, from: &Adapters, text: &str) -> Result<(String, usize, LoadedAdapter)> {
        let no_name = || refuse(format!("--adapter {text} names no directory"), "write --adapter NAME=DIR");
        let named = text.split_once('=').filter(|(name, dir)| !name.is_empty() && !dir.is_empty());
        let (name, dir) = named.ok_or_else(no_name)?;
        // What is neither a run nor a model is an adapter, or refused as one.
        let folder = model_folder(Path::new(dir)).unwrap_or_else(|_| PathBuf::from(dir));
        let number = from.base_of(&folder)?;
        let loaded = from.load_from(number, &folder).with_context(|| format!("cannot load the adapter {name}"))?;
        Ok((name.to_owned(), number, loaded))
    }

    /// Whether adapters may be loaded later.
    pub fn loads_later(&self) -> bool {
        self.adapters_dir.is_some()
    }
}

impl Adapters {
    /// The model that an adapter belongs to: the only one, or the one whose weights it names.
    fn base_of(&self, folder: &Path) -> Result<usize> {
        if self.bases.len() == 1 {
            return Ok(0);
        }
        let files = AdapterFiles::open(folder)?;
        let fits = |base: &Option<Base>| {
            base.as_ref().is_some_and(|base| files.base.sha256.is_some() && check_base(&files, &base.location).is_ok())
        };
        self.bases.iter().position(fits).ok_or_else(|| {
            let message = format!("the adapter {} says of none of the models that it belongs to it", folder.display());
            refuse(message, "serve its model alone, or load it by POST /v1/adapters, which names the model")
        })
    }

    fn load_from(&self, number: usize, folder: &Path) -> Result<LoadedAdapter> {
        let none = || refuse("models of pictures take no adapters", "name a model of text");
        let base = self.bases[number].as_ref().ok_or_else(none)?;
        if let Some(own) = base.location.adapter() {
            let message = format!("{} has an adapter already: {}", base.name, own.display());
            return Err(refuse(message, "serve its base, and both as adapters"));
        }
        let files = AdapterFiles::open(folder)?;
        if files.rank() > self.rank_max {
            let message = format!("{} is of rank {}, more than {}", folder.display(), files.rank(), self.rank_max);
            return Err(refuse(message, "start the server with a greater --max-adapter-rank"));
        }
        check_base(&files, &base.location)?;
        let (placement, specs) = (base.load.place.open(&base.config)?, param_specs(&base.config));
        let device = |param: usize| -> Arc<dyn Device> {
            Arc::clone(placement.device(placement.of(&base.config, &specs[param])))
        };
        let adapter = Arc::new(files.load(&base.config, &device)?);
        Ok(LoadedAdapter { adapter, sha256: adapter_sha256(folder)? })
    }

    /// A directory within the one that the operator allows.
    fn allowed(&self, path: &str) -> Result<PathBuf, String> {
        let Some(dir) = &self.dir else {
            return Err("this server loads no adapters: start it with --adapters-dir DIR".to_owned());
        };
        let whole = dir.join(path).canonicalize().ok().filter(|whole| whole.starts_with(dir) && whole.is_dir());
        whole.ok_or_else(|| format!("there is no directory {path} among the adapters"))
    }
}

impl AdapterSource for Adapters {
    fn load(&self, model: usize, path: &str) -> Result<LoadedAdapter, String> {
        let folder = self.allowed(path)?;
        self.load_from(model, &folder).map_err(|error| format!("{error:#}"))
    }
}
