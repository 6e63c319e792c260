//! The models of a server: opened at the start, so that what is wrong with their files is said then; loaded when they
//! are first asked for, the first one at once.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use wels_data::Tokenizer;
use wels_engine::{Options, give_free_back};
use wels_pipeline::identity::model_sha256;
use wels_pipeline::refusal::refuse;
use wels_server::loader::{Loadable, Loader, LoaderSettings};
use wels_server::money::{PriceList, Tariff};
use wels_server::prompt::ServedModel;
use wels_server::worker::Worker;

use super::adapters::{AdapterArgs, Base};
use crate::keys;
use crate::model::{LoadArgs, Location, default_name, locate};
use crate::opened::Opened;
use crate::over::Over;

const MERGE: &str = "serve the merged weights: wels convert MODEL OUT --merge ADAPTER";

/// What the command line says of the models.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b; with NAME= before it if
    /// clients are to call it so. Of several, each is loaded when it is first asked for
    #[arg(value_name = "[NAME=]MODEL", required = true)]
    models: Vec<PathBuf>,
    /// A name by which clients ask for the only model; can be given several times. That of the directory or file if
    /// left out
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Memory that several models may take together, of the device that computes; where one more finds no room, what
    /// has been unused the longest is unloaded. 90% of what is left if left out
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<NonZeroUsize>,
    /// Unload a model that nobody has asked for this long
    #[arg(long, value_name = "SECONDS")]
    unload_after: Option<u64>,
    /// The most tokens of an answer, and their number where a request does not say
    #[arg(long, value_name = "TOKENS", default_value = "4096", visible_alias = "max-tokens")]
    max_output: NonZeroUsize,
    /// Tokens of prompt and answer together; the model's own limit if left out
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroUsize>,
    /// Requests of a model that run at the same time
    #[arg(long, value_name = "N", default_value = "16")]
    max_running: NonZeroUsize,
    /// Requests of a model that wait; one more is refused with the time after which to come again
    #[arg(long, value_name = "N", default_value = "256")]
    max_waiting: usize,
    /// Memory for keys and values of a model, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024")]
    cache_mib: NonZeroUsize,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    pub adapters: AdapterArgs,
}

/// What is served.
pub struct Opening {
    pub models: Vec<(ServedModel, Tariff)>,
    pub loader: Loader,
    /// What adapters may belong to, by number.
    pub bases: Vec<Option<Base>>,
}

/// How a model's engine is made.
struct Recipe {
    opened: Opened,
    tokenizer: Arc<Tokenizer>,
    load: LoadArgs,
    context: usize,
    cache_mib: NonZeroUsize,
    max_running: usize,
    max_waiting: usize,
}

impl ModelArgs {
    /// Opens all models, and loads the first; over several ranks, as the first of them.
    pub fn open(&self, prices: &PriceList, over: Option<&'static Over>) -> Result<Opening> {
        if over.is_some() {
            self.only()?;
        }
        let named: Vec<(Vec<String>, &Path)> = self.models.iter().map(|model| self.named(model)).collect();
        self.check_names(&named, prices)?;
        let (mut models, mut recipes, mut bases, mut left) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (names, path) in named {
            let whose =
                |error: anyhow::Error| if self.models.len() > 1 { error.context(names[0].clone()) } else { error };
            let location = locate(path).map_err(whose)?;
            let (served, recipe) = self.open_one(names.clone(), &location).map_err(whose)?;
            bases.push(match &recipe.opened {
                Opened::Text(open) => {
                    let (name, config) = (names[0].clone(), open.config.clone());
                    Some(Base { name, location, config, load: self.load })
                }
                Opened::Janus(_) => None,
            });
            // What one model alone takes is nobody's business but its own.
            let (bytes, there) = match self.models.len() {
                1 => (0, None),
                _ => recipe.opened.memory(&self.load, self.cache_mib)?,
            };
            left = left.or(there);
            recipes.push((served.names[0].clone(), bytes, recipe));
            models.push((served, prices.of(&names).clone()));
        }
        // Weights come after everything that can be wrong with any of the models.
        let first = &mut recipes[0].2;
        let mut first = Some(match over {
            Some(over) => {
                first.load.place.over = Some(over);
                over.agree(self.print(&first.opened, &self.models[0]))?;
                match first.start() {
                    Ok(worker) => {
                        over.agree(Ok("loaded".to_owned()))?;
                        worker
                    }
                    Err(error) => return Err(over.agree(Err(error)).expect_err("its own error")),
                }
            }
            None => first.start()?,
        });
        let loadable = |(name, bytes, recipe): (String, u64, Recipe)| {
            let load = Box::new(move || recipe.start().map_err(|error| format!("{error:#}")));
            Loadable { name, bytes, loaded: first.take(), load }
        };
        let loadables: Vec<Loadable> = recipes.into_iter().map(loadable).collect();
        let settings = self.loader_settings(left);
        for model in loadables.iter().filter(|model| model.bytes > settings.memory_bytes) {
            let (mib, all) = (model.bytes >> 20, settings.memory_bytes >> 20);
            eprintln!("note: {} takes {mib} MiB of the {all} that models may take: it is loaded alone", model.name);
        }
        Ok(Opening { models, loader: Loader::start(loadables, settings)?, bases })
    }

    /// Loads this rank's part of the model that the first rank serves, and computes with it until that one ends.
    pub fn follow(&self, over: &'static Over) -> Result<()> {
        let found = self.only().and_then(|model| {
            let opened = Opened::find(&locate(model)?)?;
            Ok((self.print(&opened, model)?, opened))
        });
        let (print, opened) = match found {
            Ok((print, opened)) => (Ok(print), Some(opened)),
            Err(error) => (Err(error), None),
        };
        over.agree(print)?;
        let Some(Opened::Text(mut open)) = opened else { unreachable!("the ranks have agreed on a model of text") };
        // Text is the first rank's.
        open.tokenizer = None;
        let mut load = self.load;
        load.place.over = Some(over);
        let params = load.take(&open, self.context_of(open.config.rope.max_positions), 0);
        // Of the parameters that are not packed the first rank alone has use.
        let parts = over.ranks.hold();
        over.agree(params.map(|_| "loaded".to_owned()))?;
        give_free_back();
        over.ranks.follow()?;
        drop(parts);
        Ok(())
    }

    /// The model of a server over several ranks.
    pub fn only(&self) -> Result<&Path> {
        if self.adapters.loads_later() || !self.adapters.names().is_empty() {
            return Err(refuse("over several ranks there are no adapters", MERGE));
        }
        match &self.models[..] {
            [model] if self.unload_after.is_none() => Ok(self.named(model).1),
            [_] => Err(refuse("over several ranks a model stays loaded", "leave --unload-after out")),
            _ => Err(refuse("over several ranks there is one model", "start a server for each")),
        }
    }

    /// What ranks that serve together have to find alike.
    fn print(&self, opened: &Opened, model: &Path) -> Result<String> {
        if matches!(opened, Opened::Janus(_)) {
            let hint = "start one process; several serve pictures behind a proxy, each with the whole model";
            return Err(refuse("a model with pictures is not divided among ranks", hint));
        }
        let location = locate(self.named(model).1)?;
        if location.adapter().is_some() {
            return Err(refuse("an adapter is not divided among ranks", MERGE));
        }
        let files = model_sha256(&location)?;
        let context = self.context_of(opened.longest());
        let (version, LoadArgs { quant, expanded, .. }) = (env!("CARGO_PKG_VERSION"), self.load);
        Ok(format!("{version} {files} {quant:?} {expanded} {context}"))
    }

    /// Tokens of prompt and answer together, of a model that could have `own`.
    fn context_of(&self, own: usize) -> usize {
        self.context.map_or(own, |asked| asked.get().min(own))
    }

    fn loader_settings(&self, left: Option<u64>) -> LoaderSettings {
        let given = self.memory_mib.map(|mib| (mib.get() as u64).saturating_mul(1 << 20));
        LoaderSettings {
            memory_bytes: given.or(left.map(|bytes| bytes / 10 * 9)).unwrap_or(u64::MAX),
            unload_after: self.unload_after.map(Duration::from_secs),
            waiting_max: self.max_waiting,
        }
    }

    /// By what names clients ask for what stands on the command line.
    fn named<'a>(&self, model: &'a Path) -> (Vec<String>, &'a Path) {
        if !self.name.is_empty() {
            return (self.name.clone(), model);
        }
        let split = model.to_str().filter(|_| model.symlink_metadata().is_err()).and_then(|text| text.split_once('='));
        match split {
            Some((name, path)) => (vec![name.to_owned()], Path::new(path)),
            None => (vec![default_name(model)], model),
        }
    }

    fn check_names(&self, named: &[(Vec<String>, &Path)], prices: &PriceList) -> Result<()> {
        if named.len() > 1 && !self.name.is_empty() {
            return Err(refuse("--name is of one model, and there are several", "write NAME=MODEL"));
        }
        let mut names: Vec<&String> = named.iter().flat_map(|(names, _)| names).collect();
        let adapters = self.adapters.names();
        names.extend(&adapters);
        if let Some(priced) = prices.models.keys().find(|priced| !names.contains(priced)) {
            let hint =
                format!("the models are {}", names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "));
            return Err(refuse(format!("there are prices of `{priced}`, and no such model"), hint));
        }
        names.sort();
        if names[0].is_empty() {
            return Err(refuse("a model has a name without letters", "write NAME=MODEL"));
        }
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(refuse(format!("two models are called `{}`", pair[0]), "write NAME=MODEL")),
            None => Ok(()),
        }
    }

    fn open_one(&self, names: Vec<String>, location: &Location) -> Result<(ServedModel, Recipe)> {
        let mut opened = Opened::find(location)?;
        let unnamed = opened.served(self.context_of(opened.longest()))?;
        let tokenizer = Arc::clone(&unnamed.tokenizer);
        let context = unnamed.context;
        if unnamed.template.is_none() {
            eprintln!("note: {} has no chat template: chat is refused, completions work", names[0]);
        }
        let served = ServedModel {
            names,
            output_tokens_max: self.max_output.get().min(context),
            fingerprint: format!("wels-{}-{}", env!("CARGO_PKG_VERSION"), &tokenizer.sha256()[..8]),
            created_unix_s: keys::now_unix_ms() / 1000,
            ..unnamed
        };
        let recipe = Recipe {
            opened,
            tokenizer,
            load: self.load,
            context,
            cache_mib: self.cache_mib,
            max_running: self.max_running.get(),
            max_waiting: self.max_waiting,
        };
        Ok((served, recipe))
    }
}

impl Recipe {
    /// Loads the weights and starts the engine's thread.
    fn start(&self) -> Result<Worker> {
        let Recipe { opened, tokenizer, load, context, cache_mib, max_running, max_waiting } = self;
        let own = |options: Options| Options {
            max_running: *max_running,
            max_waiting: *max_waiting,
            waiting_kept: *max_waiting / 8,
            ..options
        };
        let engine = opened.engine(load, tokenizer, *context, *cache_mib, own)?;
        give_free_back();
        Worker::start(engine).context("cannot start the engine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        models: ModelArgs,
    }

    #[test]
    fn models_may_take_what_is_said_or_nine_tenths_of_what_is_left() {
        let settings = |more: &[&str], left| {
            let line = ["serve", "a.gguf", "b.gguf"].iter().chain(more);
            <Line as clap::Parser>::try_parse_from(line).unwrap().models.loader_settings(left)
        };
        assert_eq!(settings(&["--memory-mib", "3"], Some(1000)).memory_bytes, 3 << 20);
        assert_eq!(settings(&[], Some(1000)).memory_bytes, 900);
        assert_eq!(settings(&[], None).memory_bytes, u64::MAX);
        assert_eq!(settings(&["--max-waiting", "7"], None).waiting_max, 7);
        assert_eq!(settings(&["--unload-after", "60"], None).unload_after, Some(Duration::from_secs(60)));
    }
}
