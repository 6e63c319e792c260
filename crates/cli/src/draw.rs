//! `wels draw MODEL "PROMPT" -n 4 --seed 7 -o out.png`: pictures of a text, by a Janus model.
//!
//! Picture k of a command has the seed `--seed` + k, so that each can be drawn again alone; its file says how. stdout
//! gets the names of the files, each once it is written.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::chat::ChatTemplate;
use wels_model::generate::Sampling;
use wels_model::janus::picture::{encode_drawn, from_pixels};
use wels_model::janus::{DrawBatch, DrawPrompt, Janus, without_words};
use wels_model::paged::CacheDtype;
use wels_model::tape::Execution;
use wels_pipeline::identity::model_sha256;
use wels_pipeline::refusal::refuse;
use wels_runs::files;
use wels_runs::hash::sha256;

use crate::janus::{OpenJanus, WHICH};
use crate::model::{CacheDtypeArg, Location, Quant, default_name, locate};
use crate::output;
use crate::progress::Progress;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A Janus model: a Hugging Face directory, a run, or the name of a model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What to draw
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// How many pictures
    #[arg(short, long = "number", value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    number: u32,
    /// The same prompt, settings and seed give the same picture; the next picture has the next seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Scale of classifier-free guidance, 0 to 100; 1 for none, which takes half of the time
    #[arg(long, default_value_t = 5.0, value_name = "SCALE")]
    cfg: f64,
    /// 0 for the likeliest code each time
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f64,
    /// Where to; several pictures get -1, -2, … before the extension
    #[arg(short, long, value_name = "FILE", default_value = "out.png", visible_alias = "out")]
    output: PathBuf,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
    /// Pictures that are drawn at a time, each with a cache of its own. Changes no picture
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    at_once: u32,
    /// Number format of the matrices of the language model and of the heads of codes
    #[arg(long, value_enum, default_value_t)]
    quant: Quant,
    /// Number format of the cache
    #[arg(long, value_enum, default_value_t = CacheDtypeArg::F16)]
    cache: CacheDtypeArg,
    /// Write a line of JSON for each picture: file, seed, settings, the model's hash and the file's, seconds
    #[arg(long)]
    json: bool,
}

/// Draws.
pub fn draw(args: &Args) -> Result<()> {
    args.check()?;
    let outputs = outputs(&args.output, args.number as usize);
    check_outputs(&outputs, args.force)?;
    let location = locate(&args.model)?;
    let studio = Studio::open(args, &location)?;
    let mut done = Done { args, model: default_name(&args.model), model_sha256: model_sha256(&location)? };
    let seeds: Vec<u64> = (0..u64::from(args.number)).map(|k| args.seed.wrapping_add(k)).collect();
    let total = seeds.len() * studio.janus.config().vq.tokens();
    // Whoever reads a log needs no line for each second of it.
    let mut progress = std::io::stderr().is_terminal().then(|| Progress::new("draw", "codes", 0, Some(total as u64)));
    let batch = args.at_once as usize;
    for (number, (seeds, outputs)) in seeds.chunks(batch).zip(outputs.chunks(batch)).enumerate() {
        let begin = Instant::now();
        let first = number * batch;
        let codes = studio.codes(args, seeds, |codes| {
            if let Some(progress) = &mut progress {
                let said = || format!("picture {} of {}", (first + seeds.len()).min(args.number as usize), args.number);
                progress.at((first * studio.janus.config().vq.tokens() + codes) as u64, said);
            }
        })?;
        for ((codes, seed), output) in codes.iter().zip(seeds).zip(outputs) {
            done.write(&studio, codes, *seed, output, begin)?;
        }
    }
    if let Some(progress) = progress {
        progress.finish(&format!("{} of {:?}", counted(args.number), args.prompt));
    }
    Ok(())
}

fn counted(pictures: u32) -> String {
    if pictures == 1 { "1 picture".into() } else { format!("{pictures} pictures") }
}

impl Args {
    fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64| match (0.0..=100.0).contains(&value) {
            true => Ok(()),
            false => Err(refuse(format!("--{name} is {value}"), "give a number from 0 to 100")),
        };
        within("cfg", self.cfg)?;
        within("temperature", self.temperature)?;
        match self.prompt.trim() {
            "" => Err(refuse("the prompt is empty", "say what is to be drawn")),
            _ => Ok(()),
        }
    }

    fn sampling(&self, seed: u64) -> Sampling {
        match self.temperature {
            0.0 => Sampling::Greedy,
            temperature => Sampling::Random { temperature: temperature as f32, top_p: 1.0, seed },
        }
    }

    fn cache_dtype(&self) -> CacheDtype {
        match self.cache {
            CacheDtypeArg::F32 => CacheDtype::F32,
            CacheDtypeArg::F16 => CacheDtype::F16,
        }
    }
}

/// `out.png`, or `out-1.png` and so on.
fn outputs(output: &Path, number: usize) -> Vec<PathBuf> {
    if number == 1 {
        return vec![output.to_path_buf()];
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension =
        output.extension().map_or_else(String::new, |extension| format!(".{}", extension.to_string_lossy()));
    (1..=number).map(|k| output.with_file_name(format!("{stem}-{k}{extension}"))).collect()
}

fn check_outputs(outputs: &[PathBuf], force: bool) -> Result<()> {
    for output in outputs {
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(refuse(format!("there is no folder {}", folder.display()), "make it, or choose another one"));
        }
        match output.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {
                return Err(refuse(format!("{} is a folder", output.display()), "give the name of a file with -o"));
            }
            Ok(_) if !force => {
                let hint = "choose another name with -o, or write over it with --force";
                return Err(refuse(format!("{} already exists", output.display()), hint));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A model with a prompt for it.
struct Studio {
    janus: Arc<Janus>,
    execution: Execution,
    tokens: Vec<u32>,
    unconditional: Vec<u32>,
}

impl Studio {
    fn open(args: &Args, location: &Location) -> Result<Studio> {
        let name = args.model.display();
        let none = || refuse(format!("{name} is a model of text, and draws no pictures"), WHICH);
        let open = OpenJanus::find(location)?.ok_or_else(none)?;
        let OpenJanus { config, tokenizer, around, .. } = &open;
        if config.vq.out_channels != 3 {
            let message = format!("{name} draws pictures of {} colours, not of 3", config.vq.out_channels);
            return Err(refuse(message, "PNG files have red, green and blue"));
        }
        let tokens = around.draw_prompt(tokenizer, ChatTemplate::of(tokenizer)?.as_ref(), &args.prompt)?;
        let (context, longest) = (tokens.len() + config.vq.tokens(), config.text.rope.max_positions);
        if context > longest {
            let room = longest.saturating_sub(config.vq.tokens());
            let message = format!("the prompt has {} tokens, and beside a picture {room} fit", tokens.len());
            return Err(refuse(message, "say it in fewer words"));
        }
        let janus = open.load_to_draw(args.quant, context)?;
        let unconditional = without_words(&tokens, around.pad);
        Ok(Studio { janus, execution: Execution::new(wels_cpu::device()), tokens, unconditional })
    }

    /// The codes of a picture of each seed, drawn together; `at` hears how many there are.
    fn codes(&self, args: &Args, seeds: &[u64], mut at: impl FnMut(usize)) -> Result<Vec<Vec<u32>>> {
        let (janus, execution) = (&*self.janus, &self.execution);
        let prompt = DrawPrompt { tokens: &self.tokens, unconditional: &self.unconditional, guidance: args.cfg as f32 };
        let pages = DrawBatch::pages_for(janus, &prompt, seeds.len());
        let mut batch = DrawBatch::new(janus, execution, args.cache_dtype(), pages);
        let samplings: Vec<Sampling> = seeds.iter().map(|seed| args.sampling(*seed)).collect();
        batch.add(janus, execution, &prompt, &samplings)?;
        for code in 1..janus.config().vq.tokens() {
            at(code * seeds.len());
            batch.step(janus, execution);
        }
        at(janus.config().vq.tokens() * seeds.len());
        Ok(batch.take_complete(janus).into_iter().map(|(_, drawn)| drawn.codes).collect())
    }
}

/// What is said of pictures that are drawn.
struct Done<'a> {
    args: &'a Args,
    model: String,
    model_sha256: String,
}

impl Done<'_> {
    /// How a picture can be drawn again.
    fn settings(&self, seed: u64) -> Value {
        let Args { prompt, cfg, temperature, quant, cache, .. } = self.args;
        json!({
            "prompt": prompt, "seed": seed, "cfg": cfg, "temperature": temperature,
            "quant": name(quant), "cache": name(cache), "model": self.model, "model_sha256": self.model_sha256,
        })
    }

    /// Writes the picture of some codes, and says so.
    fn write(&mut self, studio: &Studio, codes: &[u32], seed: u64, output: &Path, begin: Instant) -> Result<()> {
        let side = studio.janus.config().vq.image_size();
        let picture = from_pixels(&studio.janus.decode(&studio.execution, codes)?, side);
        let settings = self.settings(seed);
        let file = encode_drawn(&picture, &self.args.prompt, &settings.to_string());
        let cannot = || format!("cannot write {}", output.display());
        files::write_atomically(&std::path::absolute(output)?, &file).with_context(cannot)?;
        if !self.args.json {
            return Ok(output::line(&output.display().to_string())?);
        }
        let mut line = settings;
        line["file"] = output.display().to_string().into();
        line["sha256"] = sha256(&file).into();
        line["side"] = side.into();
        line["codes"] = codes.len().into();
        line["seconds"] = begin.elapsed().as_secs_f64().into();
        Ok(output::json(&line)?)
    }
}

/// As on the command line.
fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
