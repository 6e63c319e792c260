//! Recipes: one TOML file that describes a run from tokenizer to samples.
//!
//! Two stages. *Raw* is the text as typed; reading it checks every key and value and fills in the defaults. *Resolved*
//! is [`Recipe`]: complete, valid, without options; it is what a run saves as its `recipe.toml`, and reading that gives
//! the same `Recipe` again.

mod lora;
mod model;
mod named;
mod optimizer;
mod pictures;
mod reader;
mod shared;
mod stages;
mod task_name;
mod work;

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
pub use wels_model::config::Precision;
pub use wels_model::schedule::Decay;

use crate::files;

pub use lora::{Base, Lora};
pub use model::{JANUS_PLACE, ModelSection};
use named::{Folder, joined};
pub use named::{HUB, Use};
use optimizer::Defaults;
pub use optimizer::{Checkpoints, Optimizer, Rule};
pub use pictures::{
    AnswerForm, CodesOf, DrawRl, DrawScore, JanusLearns, JanusTraining, Pictures, VqLearns, VqTraining, is_world,
};
use reader::{Document, ListOrWord, Section, Source};
pub use reader::{Place, RecipeError};
pub use shared::{AdvantageScale, LossMean, Optimization, PolicyObjective};
pub use stages::{
    Answering, Answers, DEMONSTRATIONS, DOCUMENTS, Distil, DivergenceWay, OverlongRule, OwnAnswers, Questions, Rl,
    Rollouts, SampleAndFilter, Score, StageSection, Start, Supervised, TRACES,
};
pub use task_name::{TaskAddress, TaskName};
pub use work::Work;

/// The stage that `[pretrain]` describes.
pub const PRETRAIN: &str = "pretrain";

/// The recipe of `wels run` without an argument.
pub const QUICKSTART: &str = include_str!("../../../recipes/quickstart.toml");

/// The name in `data.sources` that stands for the Rust sources of the crates that `Cargo.lock` pins.
pub const CARGO_SOURCES: &str = "cargo-sources";

/// A resolved recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Name, seed, machine.
    pub run: RunSection,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSection,
    /// What is trained on, and how it is cut.
    pub data: DataSection,
    /// The shape of the model.
    pub model: ModelSection,
    /// Optimization.
    pub pretrain: PretrainSection,
    /// Text written at the end.
    pub sample: SampleSection,
    /// What the run may take.
    pub budget: BudgetSection,
    /// What is done after pretraining, in order.
    #[serde(rename = "stage", skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageSection>,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSection {
    /// The run's directory is `runs/NAME`.
    pub name: String,
    /// All randomness follows from it.
    pub seed: u64,
    /// The price of an hour of this machine, for the ledger; 0 leaves money out.
    pub usd_per_hour: f64,
}

/// `[tokenizer]`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TokenizerSection {
    /// A byte-level BPE trained on the corpus.
    Train {
        /// Tokens, the special ones among them.
        vocab_size: usize,
        /// How much of the corpus the merges are learnt from.
        training_bytes: u64,
        /// Numbers of up to this many digits are one token each, whatever the corpus holds.
        number_digits: usize,
        /// The chat template that goes with it: "none", "deepseek_v3", "deepseek_r1" or, with
        /// the tokens of pictures, "janus".
        chat_template: String,
    },
    /// A `tokenizer.json` that exists.
    Load {
        /// Its path, or that of a folder or GGUF file with one; `hf://ORG/NAME` for that of a published model.
        path: PathBuf,
    },
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataSection {
    /// Files and folders; none where all text comes from stages; `hf://datasets/ORG/NAME[@REVISION]/PATH` for files of a published dataset, of which `*` stands
    /// for several; or `cargo-sources` alone.
    pub sources: Vec<String>,
    /// The key or column that holds the text, in JSONL and Parquet.
    pub field: String,
    /// Pass over bad records, and count them, instead of stopping at the first.
    pub skip_bad: bool,
    /// The fraction of documents held out.
    pub validation_fraction: f64,
    /// Tokens of one training sequence (T).
    pub sequence_length: usize,
    /// Sequences are shuffled within windows of so many. Where that is less than the corpus, each window has documents
    /// of its own, and losses swing from one to the next.
    pub shuffle_window: u64,
    /// The fraction of documents turned into prefix-suffix-middle order.
    pub fim_rate: f64,
    /// Whether attention stops at document borders (DeepSeek-V3 lets it pass).
    pub mask_documents: bool,
}

/// The recipe's word for an arithmetic.
pub fn word_of_precision(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::F16 => "f16",
    }
}

fn precision_word<S: Serializer>(precision: &Precision, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word_of_precision(*precision))
}

/// `[pretrain]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PretrainSection {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of one step.
    pub batch_tokens: u64,
    /// Tokens of the first step; the batch then grows on a straight line …
    pub batch_tokens_start: u64,
    /// … until so many tokens have been seen.
    pub batch_ramp_tokens: u64,
    /// Sequences that go through the model at once: memory and speed, no bit of the result.
    pub micro_batch: usize,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// Steps at the end in which the learning rate falls.
    pub decay_steps: u64,
    /// Steps in which router biases move; 0 afterwards.
    pub bias_update_steps: u64,
    /// λ of the multi-token-prediction loss from `mtp_lambda_late_step` on.
    pub mtp_lambda_late: f64,
    /// See `mtp_lambda_late`.
    pub mtp_lambda_late_step: u64,
    /// Number format of the products.
    #[serde(serialize_with = "precision_word")]
    pub precision: Precision,
    /// Layers whose activations are computed again in the backward pass: memory against time, no bit of the result.
    pub recompute_layers: Vec<usize>,
    /// Steps between validations.
    pub validate_every: u64,
    /// Sequences of one validation.
    pub validate_sequences: usize,
    /// When checkpoints are written, and which are kept.
    #[serde(flatten)]
    pub checkpoints: Checkpoints,
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleSection {
    /// Beginnings that the trained model continues.
    pub prompts: Vec<String>,
    /// Tokens written for each.
    pub tokens: usize,
    /// 0 takes the likeliest token each time.
    pub temperature: f64,
}

/// `[budget]`
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BudgetSection {
    /// Money, at `run.usd_per_hour`: in every kind of stage, a run whose next step would spend more, taken to be as the
    /// last, saves and stops; 0 sets no limit.
    pub usd: f64,
    /// Hours by the clock, of all processes that worked on the run; likewise.
    pub hours: f64,
    /// Tokens trained on; likewise.
    pub train_tokens: u64,
    /// Tokens sampled: answers of rollouts, samples and scores; likewise.
    pub sample_tokens: u64,
}

/// Keys that change no bit of the weights and may be changed in the recipe of a run that has begun.
const FREE_KEYS: [&str; 13] = [
    "budget.usd",
    "budget.hours",
    "budget.train_tokens",
    "budget.sample_tokens",
    "run.usd_per_hour",
    "pretrain.micro_batch",
    "pretrain.recompute_layers",
    "pretrain.checkpoint_every",
    "pretrain.checkpoint_seconds",
    "pretrain.keep_checkpoints",
    "sample.prompts",
    "sample.tokens",
    "sample.temperature",
];

impl Recipe {
    /// Reads and resolves the recipe at `path`. Paths in it are relative to its folder; `model.config` is one of them.
    pub fn load(path: &Path) -> Result<Recipe, RecipeError> {
        Recipe::load_with(path, &named::refuse)
    }

    /// The same where `config` gives the path of the `config.json` of a model that `model.config` names on a hub.
    pub fn load_with(path: &Path, config: &dyn Fn(&str) -> Result<PathBuf, String>) -> Result<Recipe, RecipeError> {
        let origin = path.display().to_string();
        let text = files::read_text(path, files::SMALL_BYTES_MAX)
            .map_err(|source| RecipeError::Read { path: origin.clone(), source })?;
        let absolute =
            std::path::absolute(path).map_err(|source| RecipeError::Read { path: origin.clone(), source })?;
        let folder = absolute.parent().unwrap_or(&absolute);
        Recipe::parse_with(&origin, &text, Folder { path: folder, config })
    }

    /// The built-in recipe.
    pub fn quickstart() -> Recipe {
        Recipe::parse("quickstart", QUICKSTART, Path::new("")).expect("the built-in recipe is valid, as a test shows")
    }

    /// Resolves a recipe's text; `origin` is its name in messages, `folder` what its paths are relative to.
    pub fn parse(origin: &str, text: &str, folder: &Path) -> Result<Recipe, RecipeError> {
        Recipe::parse_with(origin, text, Folder { path: folder, config: &named::refuse })
    }

    fn parse_with(origin: &str, text: &str, folder: Folder) -> Result<Recipe, RecipeError> {
        let mut document = Document::parse(Source { origin, text })?;
        let run = RunSection::resolve(document.section("run")?)?;
        let tokenizer = TokenizerSection::resolve(document.section("tokenizer")?, folder.path)?;
        let data = DataSection::resolve(document.section("data")?, folder.path, document.has("stage"))?;
        let section = document.section("model")?;
        let of_model = section.place_of(None);
        let model = ModelSection::resolve(section, &tokenizer, data.sequence_length, folder)?;
        let layers = model.config().layers;
        let pretrain = PretrainSection::resolve(document.section("pretrain")?, data.sequence_length, layers)?;
        let sample = SampleSection::resolve(document.section("sample")?)?;
        let earlier = vec![PRETRAIN.to_string()];
        let mut context =
            shared::RecipeContext { tokenizer: &tokenizer, janus: model.janus().is_some(), folder, earlier };
        let sections = document.sections("stage")?;
        let stages = sections.into_iter().map(|section| StageSection::resolve(section, &mut context));
        let stages = stages.collect::<Result<Vec<_>, _>>()?;
        let budget = BudgetSection::resolve(document.section("budget")?, &run)?;
        document.finish()?;
        let recipe = Recipe { run, tokenizer, data, model, pretrain, sample, budget, stages };
        match recipe.pretrains() && recipe.model.janus().is_some() {
            true => Err(RecipeError::Model { place: of_model, message: "a Janus model is learnt in stages".into() }),
            false => Ok(recipe),
        }
    }

    /// Whether the run pretrains: it does unless it has other stages and none of them begins there.
    pub fn pretrains(&self) -> bool {
        self.stages.is_empty() || self.stages.iter().any(|stage| stage.names(PRETRAIN))
    }

    /// The resolved recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds nothing that TOML cannot hold")
    }

    /// The keys in which `self` and the recipe of a run that has begun differ and may not, as `key: was → is`.
    pub fn changes_since(&self, begun: &Recipe) -> Vec<String> {
        let (was, is) = (begun.flattened(), self.flattened());
        let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        let show = |value: Option<&toml::Value>| value.map_or("nothing".to_string(), toml::Value::to_string);
        keys.into_iter()
            .filter(|key| !is_free(key) && was.get(*key) != is.get(*key))
            .map(|key| format!("{key}: {} → {}", show(was.get(key)), show(is.get(key))))
            .collect()
    }

    fn flattened(&self) -> std::collections::BTreeMap<String, toml::Value> {
        let table = toml::Table::try_from(self).expect("a recipe holds nothing that TOML cannot hold");
        let mut flat = std::collections::BTreeMap::new();
        let mut add = |section: String, keys: &toml::Value| {
            for (key, value) in keys.as_table().expect("a section is a table") {
                flat.insert(format!("{section}.{key}"), value.clone());
            }
        };
        for (section, keys) in &table {
            match keys.as_array() {
                None => add(section.clone(), keys),
                Some(stages) => stages.iter().for_each(|stage| {
                    add(format!("{section}.{}", stage["name"].as_str().unwrap_or_default()), stage);
                }),
            }
        }
        flat
    }
}

fn is_free(key: &str) -> bool {
    let of_stage = key.strip_prefix("stage.").and_then(|key| key.split_once('.'));
    FREE_KEYS.contains(&key) || of_stage.is_some_and(|(_, key)| stages::FREE.contains(&key))
}

impl RunSection {
    fn resolve(mut section: Section) -> Result<Self, RecipeError> {
        let name: String = section.get_or("name", "run".into())?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(
                section.wrong("name", format!("must consist of letters, digits, '-', '_', '.', but is '{name}'"))
            );
        }
        let seed = section.get_or("seed", 1)?;
        let usd_per_hour = section.get_where("usd_per_hour", 0.0, |x| x >= 0.0, "0 or more")?;
        section.finish(&[])?;
        Ok(RunSection { name, seed, usd_per_hour })
    }
}

impl TokenizerSection {
    fn resolve(mut section: Section, folder: &Path) -> Result<Self, RecipeError> {
        let of_training = section.written(&["training_bytes", "number_digits", "chat_template"]);
        let path: Option<String> = section.get("path")?;
        let vocab_size: Option<usize> = section.get("vocab_size")?;
        let training_bytes = section.get_where("training_bytes", 16 << 20, |n| n > 0, "1 or more")?;
        let number_digits = section.get_where("number_digits", 1, |n| (1..=3).contains(&n), "1 to 3")?;
        let chat_template = section.word(
            "chat_template",
            &["none", "deepseek_v3", "deepseek_r1", "janus"].map(|template| (template, template)),
        )?;
        section.finish(&[])?;
        match (path, vocab_size) {
            (Some(_), Some(_)) => Err(section.wrong("path", "and tokenizer.vocab_size exclude each other")),
            (Some(path), None) => {
                match of_training {
                    Some(key) => Err(section
                        .wrong(key, "is of a tokenizer that is trained; that of tokenizer.path is taken as it is")),
                    None => Ok(TokenizerSection::Load { path: joined(folder, &path).into() }),
                }
            }
            (None, size) => {
                let vocab_size = size.unwrap_or(4096);
                if !(300..=1 << 20).contains(&vocab_size) {
                    return Err(section.wrong(
                        "vocab_size",
                        format!("must be 300 to 1048576 (256 bytes, special tokens, merges), but is {vocab_size}"),
                    ));
                }
                let chat_template = chat_template.into();
                Ok(TokenizerSection::Train { vocab_size, training_bytes, number_digits, chat_template })
            }
        }
    }
}

impl DataSection {
    fn resolve(mut section: Section, folder: &Path, has_stages: bool) -> Result<Self, RecipeError> {
        let sources: Vec<String> = section.get_or("sources", vec![CARGO_SOURCES.to_string()])?;
        if sources.is_empty() && !has_stages {
            return Err(section.wrong("sources", "names no source"));
        }
        if sources.len() > 1 && sources.iter().any(|source| source == CARGO_SOURCES) {
            return Err(section.wrong("sources", format!("mixes {CARGO_SOURCES} with others; it stands alone")));
        }
        let absolute = |source: String| match source.as_str() {
            CARGO_SOURCES => source,
            path => joined(folder, path),
        };
        let in_unit = |x: f64| (0.0..=1.0).contains(&x);
        let data = DataSection {
            sources: sources.into_iter().map(absolute).collect(),
            field: section.get_or("field", "text".into())?,
            skip_bad: section.get_or("skip_bad", false)?,
            validation_fraction: section.get_where(
                "validation_fraction",
                0.01,
                |x| x > 0.0 && x < 1.0,
                "between 0 and 1",
            )?,
            sequence_length: section.get_where("sequence_length", 256, |n| n >= 2, "2 or more")?,
            shuffle_window: section.get_where("shuffle_window", 4096, |n| n > 0, "1 or more")?,
            fim_rate: section.get_where("fim_rate", 0.1, in_unit, "between 0 and 1")?,
            mask_documents: section.get_or("mask_documents", false)?,
        };
        section.finish(&[])?;
        Ok(data)
    }
}

impl PretrainSection {
    fn resolve(mut s: Section, sequence_length: usize, layers: usize) -> Result<Self, RecipeError> {
        let not_negative = |x: f64| x >= 0.0;
        let batch = Batches::resolve(&mut s, sequence_length as u64)?;
        let steps = batch.steps;
        let defaults = Defaults::of_pretraining(steps);
        let pretrain = PretrainSection {
            steps,
            batch_tokens: batch.last,
            batch_tokens_start: batch.first,
            batch_ramp_tokens: batch.ramp,
            micro_batch: s.get_where("micro_batch", 1, |n| n > 0, "1 or more")?,
            optimizer: Optimizer::resolve(&mut s, &defaults)?,
            decay_steps: s.get_where("decay_steps", steps * 3 / 10, |n| n <= steps, "at most steps")?,
            // V3 stops for the last 500B of 14.8T tokens.
            bias_update_steps: s.get_or("bias_update_steps", steps - steps * 5 / 148)?,
            mtp_lambda_late: s.get_where("mtp_lambda_late", 0.1, not_negative, "0 or more")?,
            // V3 changes λ after 10T of 14.8T tokens.
            mtp_lambda_late_step: s.get_or("mtp_lambda_late_step", steps * 100 / 148)?,
            precision: s
                .word("precision", &[("f32", Precision::F32), ("bf16", Precision::Bf16), ("f16", Precision::F16)])?,
            recompute_layers: recompute_layers(&mut s, layers)?,
            validate_every: s.get_where("validate_every", (steps / 10).max(1), |n| n > 0, "1 or more")?,
            validate_sequences: s.get_where("validate_sequences", 64, |n| n > 0, "1 or more")?,
            checkpoints: Checkpoints::resolve(&mut s, &defaults)?,
        };
        pretrain.optimizer.check_shards(&s, pretrain.batch_tokens_start / sequence_length as u64)?;
        s.finish(&[])?;
        Ok(pretrain)
    }

    /// Tokens of the step that begins after `tokens` tokens: a whole number of sequences.
    pub fn batch_tokens_after(&self, tokens: u64, sequence_length: usize) -> u64 {
        ramp(self.batch_tokens_start, self.batch_tokens, self.batch_ramp_tokens, tokens, sequence_length as u64)
    }

    /// Tokens of the whole of pretraining.
    pub fn total_tokens(&self, sequence_length: usize) -> u64 {
        (0..self.steps).fold(0, |tokens, _| tokens + self.batch_tokens_after(tokens, sequence_length))
    }
}

/// The batch ramp: from `first` to `last` tokens on a straight line over `length` tokens, in whole sequences.
fn ramp(first: u64, last: u64, length: u64, seen: u64, sequence: u64) -> u64 {
    if seen >= length {
        return last;
    }
    let grown = u128::from(last - first) * u128::from(seen) / u128::from(length);
    (first + grown as u64) / sequence * sequence
}

struct Batches {
    steps: u64,
    first: u64,
    last: u64,
    ramp: u64,
}

impl Batches {
    /// Batch sizes, and the steps: as written, or those that reach `tokens`.
    fn resolve(s: &mut Section, sequence: u64) -> Result<Batches, RecipeError> {
        let tokens: Option<u64> = s.get("tokens")?;
        let steps: Option<u64> = s.get("steps")?;
        let whole = |n: u64| n > 0 && n.is_multiple_of(sequence);
        let rule = format!("a multiple of data.sequence_length = {sequence}");
        let last = s.get_where("batch_tokens", 8 * sequence, whole, &rule)?;
        let first = s.get_where("batch_tokens_start", last, whole, &rule)?;
        if first > last {
            return Err(s.wrong("batch_tokens_start", format!("is {first}, more than batch_tokens = {last}")));
        }
        let ramp_tokens = s.get_or("batch_ramp_tokens", 0)?;
        const MOST_STEPS: u64 = 100_000_000;
        let steps = match (steps, tokens) {
            (Some(_), Some(_)) => return Err(s.wrong("tokens", "and pretrain.steps exclude each other")),
            (Some(steps), None) => steps,
            (None, Some(tokens)) => {
                let (mut steps, mut seen) = (0, 0);
                while seen < tokens.min(ramp_tokens) && steps < MOST_STEPS {
                    seen += ramp(first, last, ramp_tokens, seen, sequence);
                    steps += 1;
                }
                steps + tokens.saturating_sub(seen).div_ceil(last)
            }
            (None, None) => 1000,
        };
        if !(1..=MOST_STEPS).contains(&steps) {
            let key = if tokens.is_some() { "tokens" } else { "steps" };
            return Err(s.wrong(key, format!("gives {steps} steps, where 1 to {MOST_STEPS} are possible")));
        }
        Ok(Batches { steps, first, last, ramp: ramp_tokens })
    }
}

fn recompute_layers(s: &mut Section, layers: usize) -> Result<Vec<usize>, RecipeError> {
    match s.get_or("recompute_layers", ListOrWord::List(Vec::new()))? {
        ListOrWord::Word(word) if word == "all" => Ok((0..layers).collect()),
        ListOrWord::Word(word) => {
            Err(s.wrong("recompute_layers", format!("must be \"all\" or a list, but is \"{word}\"")))
        }
        ListOrWord::List(list) => match list.iter().find(|&&layer| layer >= layers) {
            None => Ok(list),
            Some(layer) => Err(s.wrong("recompute_layers", format!("names layer {layer} of a model with {layers}"))),
        },
    }
}

impl SampleSection {
    fn resolve(mut section: Section) -> Result<Self, RecipeError> {
        let sample = SampleSection {
            prompts: section.get_or("prompts", Vec::new())?,
            tokens: section.get_or("tokens", 64)?,
            temperature: section.get_where("temperature", 0.0, |x| x >= 0.0, "0 or more")?,
        };
        section.finish(&[])?;
        Ok(sample)
    }
}

impl BudgetSection {
    fn resolve(mut section: Section, run: &RunSection) -> Result<Self, RecipeError> {
        let usd = section.get_where("usd", 0.0, |x| x >= 0.0, "0 or more")?;
        let hours = section.get_where("hours", 0.0, |x| x >= 0.0, "0 or more")?;
        let train_tokens = section.get_or("train_tokens", 0)?;
        let sample_tokens = section.get_or("sample_tokens", 0)?;
        if usd > 0.0 && run.usd_per_hour == 0.0 {
            return Err(section.wrong("usd", "limits money, and run.usd_per_hour sets no price of an hour"));
        }
        section.finish(&[])?;
        Ok(BudgetSection { usd, hours, train_tokens, sample_tokens })
    }

    /// The limit that so much would go beyond, in words.
    pub fn exceeded_by(&self, usd: f64, hours: f64, trained: u64, sampled: u64) -> Option<String> {
        let BudgetSection { usd: most_usd, hours: most_hours, train_tokens, sample_tokens } = *self;
        let beyond = |limit: u64, tokens: u64| limit > 0 && tokens > limit;
        match () {
            () if most_usd > 0.0 && usd > most_usd => Some(format!("${most_usd}")),
            () if most_hours > 0.0 && hours > most_hours => Some(format!("{most_hours} hours")),
            () if beyond(train_tokens, trained) => Some(format!("{train_tokens} tokens")),
            () if beyond(sample_tokens, sampled) => Some(format!("{sample_tokens} sampled tokens")),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests;
