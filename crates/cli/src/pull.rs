//! `wels pull NAME`: fetches a model from a Hugging Face hub into the cache. Wherever a MODEL is asked for, a name that
//! is no path does the same.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_hub::{Event, Hub, Name, SHORT_NAMES, Settings};
use wels_pipeline::refusal::refuse;
use wels_runs::machine;

use crate::output;
use crate::progress::Progress;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// ORG/NAME, with @REVISION and :FILE.gguf or :QUANTISATION where they matter; or a short name such as r1:1.5b,
    /// with @QUANTISATION
    #[arg(value_name = "NAME")]
    name: String,
}

/// Fetches, and writes where the model is.
pub fn pull(args: &Args) -> Result<()> {
    let name = Name::parse(&args.name)
        .ok_or_else(|| refuse(format!("{} is not the name of a model", args.name), hint("give")))?;
    Ok(output::line(&fetch(&name)?.display().to_string())?)
}

/// The path of the model that the command line means, which is fetched if it is no path.
pub fn find(model: &Path) -> Result<PathBuf> {
    if model.symlink_metadata().is_ok() {
        return Ok(model.to_owned());
    }
    let shown = model.display();
    match model.to_str().and_then(Name::parse) {
        Some(name) => fetch(&name).with_context(|| format!("there is no path {shown}, and as the name of a model")),
        None => {
            let message = format!("{shown} is neither a path nor the name of a model");
            let hint = hint("give a run, a directory with config.json and safetensors files, a .gguf file,");
            Err(refuse(message, hint))
        }
    }
}

/// What a model is called whose name is `model`. `None` for a path.
pub fn title(model: &Path) -> Option<String> {
    match model.symlink_metadata().is_ok() {
        true => None,
        false => model.to_str().and_then(Name::parse).map(|name| name.title),
    }
}

fn hint(begin: &str) -> String {
    let short: Vec<&str> = SHORT_NAMES.iter().map(|short| short.name).collect();
    format!("{begin} an id such as deepseek-ai/DeepSeek-V2-Lite-Chat, or one of {}", short.join(", "))
}

fn fetch(name: &Name) -> Result<PathBuf> {
    let hub = Hub::new(Settings::from_env()?)?;
    Ok(hub.pull(name, machine::available_memory_bytes(), &mut Shown::of(&name.id).watch())?)
}

/// The fetching as stderr has it.
pub struct Shown<'a> {
    /// The model or dataset.
    id: &'a str,
    /// Of the file that is under way.
    progress: Option<Progress>,
    file: String,
}

/// Bytes in a unit of progress.
const MB: u64 = 1_000_000;

impl<'a> Shown<'a> {
    /// Of what is fetched from `id`.
    pub fn of(id: &'a str) -> Shown<'a> {
        Shown { id, progress: None, file: String::new() }
    }

    /// For the hub to tell.
    pub fn watch(&mut self) -> impl FnMut(Event<'_>) {
        |event| self.tell(event)
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Chosen { quantisation, bytes, fits } => {
                let id = self.id;
                let mb = bytes / MB;
                let why = if fits { "fits half of the memory that is left" } else { "does not fit half of the memory" };
                self.line(&format!("{:>9} {quantisation} of {id}, {mb} MB, which {why}", "pull"));
            }
            Event::Begin { file, done, bytes } => {
                self.file = file.to_owned();
                self.progress = Some(Progress::new("pull", "MB", done / MB, Some(bytes / MB)));
            }
            Event::At { done } => {
                if let Some(progress) = &mut self.progress {
                    progress.at(done / MB, || self.file.clone());
                }
            }
            Event::Done { file, bytes } => {
                if let Some(progress) = self.progress.take() {
                    progress.finish(&format!("{file}, {:.1} MB", bytes as f64 / MB as f64));
                }
            }
            Event::Again { reason } => self.line(&format!("note: {reason}; trying again")),
            Event::Waiting { file } => self.line(&format!("note: another process fetches {file}; waiting for it")),
            Event::FromCache { reason } => {
                self.line(&format!("note: the hub cannot be reached ({reason}); {} is taken from the cache", self.id));
            }
        }
    }

    fn line(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.line(text),
            None => eprintln!("{text}"),
        }
    }
}
