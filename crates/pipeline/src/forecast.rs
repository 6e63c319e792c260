//! What a recipe will take on this machine: counts by `wels_runs::plan`, with lengths from the data and rates that are
//! known or measured here: a few steps of a stage's kind with random weights and tokens.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_device::Device;
use wels_kernels::par;
use wels_kernels::random::Key;
use wels_model::adapter::Adapter;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::count;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::read_config;
use wels_model::model::{Model, Teacher};
use wels_model::params::Params;
use wels_runs::machine::{self, Measurements};
use wels_runs::plan::stages::{
    Examples, PART, PlanInputs, Stages, answer_flops, answer_tokens, forward_passes, learning_flops,
};
use wels_runs::plan::{self, Activations, RunPlan, StageRates};
use wels_runs::recipe::{
    self, Answering, Answers, Optimization, PRETRAIN, Precision, Questions, Recipe, Rollouts, StageSection, Supervised,
    TokenizerSection, Work, word_of_precision,
};
use wels_tasks::{Prompt, Split};
use wels_train::example::Example;
use wels_train::rl::Prompter;
use wels_train::rollout::{Question, RolloutOptions, rollout};
use wels_train::trainer::{State, Trainer};
use wels_train::{distil, sft};

use crate::documents::open_corpus;
use crate::host::{Event, Host};
use crate::hyper::{of_stage, rollout_options, rule, stage_execution};
use crate::model::{locate, named_tokenizer};
use crate::{blanks, learn, measure, model, named, room, task};

/// Worked puzzles whose lengths are looked at.
const TRACES: u64 = 1000;
/// Questions whose lengths are looked at.
const QUESTIONS: u64 = 100;
/// Tokens of a passage that a question is put with. A guess.
const PASSAGE_TOKENS: f64 = 100.0;
/// Characters of a token, while there is no tokenizer to ask. A guess.
const CHARACTERS: f64 = 2.0;
/// Operations of a step that is measured, at most: a second or a few.
const STEP_FLOPS: f64 = 5e11;

/// What of a machine's rates may be found out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rates {
    /// What was measured before.
    Known,
    /// What was not, too.
    Measured,
}

/// The plan of `recipe`, whose run is at `run` if it has begun.
pub fn forecast(
    recipe: &Recipe,
    run: Option<&Path>,
    device: &Arc<dyn Device>,
    rates: Rates,
    host: &mut dyn Host,
) -> RunPlan {
    let inputs = RecipeInputs::of(recipe, run, room::activations_of(&**device));
    let expected = plan::of_recipe(recipe, &inputs);
    let begun = run.map(|run| run.join("plan.json")).filter(|plan| plan.exists());
    let found = match begun {
        // A run that goes on keeps the rates of its beginning.
        Some(plan) => plan::rates_in(&plan),
        None => rates_of(recipe, &inputs, &expected, device, rates, host),
    };
    inputs.notes.into_inner().iter().for_each(|note| host.event(Event::Note(note)));
    expected.at_rates(recipe, &found)
}

/// What a forecast needs besides the recipe.
struct RecipeInputs<'a> {
    recipe: &'a Recipe,
    tokenizer: Option<(Tokenizer, ChatTemplate)>,
    activations: Activations,
    /// What of the models' files is ignored.
    notes: RefCell<BTreeSet<String>>,
}

impl<'a> RecipeInputs<'a> {
    fn of(recipe: &'a Recipe, run: Option<&Path>, activations: Activations) -> RecipeInputs<'a> {
        let own = run.map(|run| run.join("tokenizer")).filter(|folder| folder.exists());
        let place: Option<PathBuf> = own.or_else(|| match &recipe.tokenizer {
            TokenizerSection::Load { path } => Some(path.clone()),
            TokenizerSection::Train { .. } => None,
        });
        // A tokenizer that cannot be loaded is named when the run begins.
        let place = place.and_then(|path| named::text_of_model(path.to_str()?).ok().map(Cow::into_owned));
        let tokenizer = place.and_then(|path| named_tokenizer(&path).ok());
        let tokenizer = tokenizer.and_then(|it| ChatTemplate::of(&it).ok().flatten().map(|template| (it, template)));
        RecipeInputs { recipe, tokenizer, activations, notes: RefCell::default() }
    }

    fn traces(&self, section: &Supervised) -> Result<Examples> {
        let pairs = task::traces(section, self.recipe.run.seed, TRACES.min(section.traces))?;
        let mut tokens = 0.0;
        for (question, answer) in &pairs {
            tokens += match &self.tokenizer {
                Some((tokenizer, template)) => sft::answer(tokenizer, template, question, answer)?.rows() as f64,
                None => (question.len() + answer.len()) as f64 / CHARACTERS,
            };
        }
        Ok(self.as_the_first(section.traces, tokens / pairs.len().max(1) as f64, "worked puzzle"))
    }

    fn demonstrations(&self, section: &Supervised) -> Result<Examples> {
        let played = task::demonstrations(section, self.recipe.run.seed, TRACES.min(section.traces))?;
        let mut tokens = 0.0;
        for played in &played {
            tokens += match &self.tokenizer {
                Some((tokenizer, template)) => {
                    let prompter = Prompter { tokenizer, template: Some(template) };
                    sft::demonstration(&prompter, played)?.rows() as f64
                }
                None => played.text().len() as f64 / CHARACTERS,
            };
        }
        Ok(self.as_the_first(section.traces, tokens / played.len().max(1) as f64, "demonstration"))
    }

    /// `count` examples that are as long as the first ones.
    fn as_the_first(&self, count: u64, tokens: f64, what: &str) -> Examples {
        let assumption = match (&self.tokenizer, count > TRACES) {
            (None, _) => Some(format!("{CHARACTERS} characters of a {what} a token")),
            (Some(_), true) => Some(format!("{tokens:.1} tokens a {what}, as the first {TRACES} have")),
            (Some(_), false) => None,
        };
        Examples { count, tokens, assumption }
    }

    fn conversations(&self, path: &Path) -> Result<Examples> {
        let Some((tokenizer, template)) = &self.tokenizer else {
            let text = std::fs::read_to_string(path)?;
            let count = text.lines().filter(|line| !line.trim().is_empty()).count().max(1);
            let tokens = text.len() as f64 / count as f64 / CHARACTERS;
            let assumption = Some(format!("{CHARACTERS} characters of {} a token", path.display()));
            return Ok(Examples { count: count as u64, tokens, assumption });
        };
        let held_out = task::HeldOutLines::of(self.recipe, path);
        let (examples, _) = learn::conversations(path, tokenizer, template, held_out.as_ref())?;
        let rows: Vec<usize> = examples.iter().map(|it| it.rows()).collect();
        let tokens = rows.iter().sum::<usize>() as f64 / rows.len().max(1) as f64;
        Ok(Examples { count: rows.len() as u64, tokens, assumption: None })
    }

    fn documents(&self) -> Result<Examples> {
        let (data, length) = (&self.recipe.data, self.recipe.data.sequence_length as f64);
        let Some((tokenizer, _)) = &self.tokenizer else {
            let mut bytes = 0;
            for text in open_corpus(data)?.documents() {
                bytes += text?.len();
            }
            let count = (bytes as f64 / CHARACTERS / length).ceil().max(1.0) as u64;
            let assumption = Some(format!("{CHARACTERS} characters of the documents a token"));
            return Ok(Examples { count, tokens: length, assumption });
        };
        let rows: Vec<usize> = learn::documents(data, tokenizer, usize::MAX)?.iter().map(Example::rows).collect();
        let tokens = rows.iter().sum::<usize>() as f64 / rows.len().max(1) as f64;
        Ok(Examples { count: rows.len() as u64, tokens, assumption: None })
    }

    /// With the tokens of the first ones, without the passage.
    fn questions_of_documents(&self, section: &Questions) -> Result<Examples> {
        let (count, texts) = blanks::expected(self.recipe, section, QUESTIONS as usize)?;
        let shown = texts.len().max(1) as f64;
        let mut tokens = 0.0;
        for messages in texts {
            let prompt = Prompt::Messages(messages);
            tokens += match &self.tokenizer {
                Some((tokenizer, template)) => {
                    Prompter { tokenizer, template: Some(template) }.tokens(&prompt)?.len() as f64
                }
                None => characters(&prompt) as f64 / CHARACTERS,
            };
        }
        Ok(Examples { count, tokens: tokens / shown, assumption: None })
    }

    /// Of the first questions.
    fn question_tokens(&self, answering: &Answering) -> Result<f64> {
        let questions = task::questions(answering, Split::Train)?;
        let count = questions.len().map_or(QUESTIONS, |len| len.min(QUESTIONS));
        let mut tokens = 0.0;
        for n in 0..count {
            let prompt = questions.item(n)?.prompt;
            tokens += match &self.tokenizer {
                Some((tokenizer, template)) => {
                    Prompter { tokenizer, template: Some(template) }.tokens(&prompt)?.len() as f64
                }
                None => characters(&prompt) as f64 / CHARACTERS,
            };
        }
        Ok(tokens / count.max(1) as f64)
    }
}

fn characters(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Messages(messages) => messages.iter().map(|it| it.content.as_str().map_or(0, str::len)).sum(),
    }
}

impl PlanInputs for RecipeInputs<'_> {
    fn model(&self, name: &str) -> Result<ModelConfig, String> {
        let read = named::text_of_model(name).and_then(|path| locate(&path)).and_then(|it| model::read_config(&it));
        let (config, notes) = read.map_err(|error| format!("{error:#}"))?;
        self.notes.borrow_mut().extend(notes.iter().map(ToString::to_string));
        Ok(config)
    }

    fn janus(&self, name: &str) -> Result<JanusConfig, String> {
        let read = || -> Result<JanusConfig> {
            let path = named::text_of_model(name)?;
            let (config, notes) = read_config(&path.join("config.json"))?
                .with_context(|| format!("{} is no Janus model", path.display()))?;
            self.notes.borrow_mut().extend(notes.iter().map(ToString::to_string));
            Ok(config)
        };
        read().map_err(|error| format!("{error:#}"))
    }

    fn examples(&self, section: &Supervised) -> Result<Examples, String> {
        let found = match section.data.as_str() {
            recipe::TRACES => self.traces(section),
            recipe::DEMONSTRATIONS => self.demonstrations(section),
            recipe::DOCUMENTS => self.documents(),
            path => named::file(path).and_then(|path| self.conversations(&path)),
        };
        found.map_err(|error| format!("{error:#}"))
    }

    fn questions(&self, section: &Questions) -> Result<Examples, String> {
        self.questions_of_documents(section).map_err(|error| format!("{error:#}"))
    }

    fn prompt_tokens(&self, answering: &Answering) -> Result<f64, String> {
        self.question_tokens(answering).map_err(|error| format!("{error:#}"))
    }

    fn held_out(&self, answering: &Answering) -> Option<u64> {
        task::questions(answering, Split::HeldOut).ok()?.len()
    }

    fn activations(&self) -> Activations {
        self.activations
    }
}

/// Rates by stage, as far as they are known or may be measured.
fn rates_of(
    recipe: &Recipe,
    inputs: &RecipeInputs,
    expected: &RunPlan,
    device: &Arc<dyn Device>,
    rates: Rates,
    host: &mut dyn Host,
) -> BTreeMap<String, StageRates> {
    let mut machine = Machine { known: Measurements::load().tokens_per_second, device, rates, said: false, host };
    let mut found = BTreeMap::new();
    if recipe.pretrains() {
        let name = Measurements::work(recipe, par::threads());
        let rate = machine.rate(name, || measure::training_rate(recipe, device));
        found.extend(rate.map(|rate| (PRETRAIN.to_string(), StageRates { counted: rate, learned: None })));
    }
    let pretrained = recipe.pretrains().then(|| recipe.model.config());
    let stages = Stages { pretrained, pictures: recipe.model.janus(), sections: &recipe.stages, inputs };
    for stage in &recipe.stages {
        let known = expected.stage(&stage.name).is_some_and(|planned| planned.unknown.is_none());
        let rates = if known { machine.rates_of(stage, &stages) } else { None };
        found.extend(rates.map(|rates| (stage.name.clone(), rates)));
    }
    found
}

/// Steps of learning, as they are measured.
struct Learning<'a> {
    config: &'a ModelConfig,
    teacher: Option<&'a ModelConfig>,
    /// Tokens of an example.
    tokens: usize,
    batch_tokens: usize,
    optimization: &'a Optimization,
    precision: Precision,
}

/// This machine's rates, in tokens a second.
struct Machine<'h> {
    known: BTreeMap<String, f64>,
    device: &'h Arc<dyn Device>,
    rates: Rates,
    /// Whether people know why they wait.
    said: bool,
    host: &'h mut dyn Host,
}

impl Machine<'_> {
    /// The rates at which a stage's tokens are worked on.
    fn rates_of(&mut self, stage: &StageSection, stages: &Stages) -> Option<StageRates> {
        let config = |name: &str| stages.config(name).ok();
        let counted = match &stage.work {
            Work::Pretrain(it) | Work::Sft(it) => self.supervised(it, None, stage, stages)?,
            Work::Rl(it) => {
                let config = stages.start(&it.start).ok()?;
                let parts = (&it.rollouts, &it.optimization);
                return self.rollouts(&config, None, parts, forward_passes(it), stage, stages);
            }
            Work::Distil(it) => {
                let teacher = config(&it.teacher)?;
                match &it.answers {
                    Answers::Given(given) => self.supervised(given, Some(&teacher), stage, stages)?,
                    Answers::Own(own) => {
                        let config = stages.start(&own.start).ok()?;
                        let parts = (&own.rollouts, &own.optimization);
                        return self.rollouts(&config, Some(&teacher), parts, 0.0, stage, stages);
                    }
                }
            }
            Work::SampleAndFilter(it) => {
                let prompts = it.prompts.min(PART);
                self.sampling(&config(&it.from)?, (&it.answering, stage.precision), prompts, stages)?
            }
            Work::Questions(it) => {
                let asked = stages.inputs.questions(it).ok()?;
                let of = (&it.answering, PASSAGE_TOKENS + asked.tokens);
                self.sampling_of(&config(&it.from)?, of, stage.precision, asked.count.min(PART))?
            }
            Work::Score(it) => {
                // Each model has as many tokens to sample.
                let (mut seconds, answering) = (0.0, (&it.answering, stage.precision));
                for model in &it.models {
                    seconds += 1.0 / self.sampling(&config(model)?, answering, it.items.min(PART), stages)?;
                }
                it.models.len() as f64 / seconds
            }
            // Not measured before they are done.
            Work::Vq(_) | Work::Janus(_) | Work::DrawRl(_) | Work::DrawScore(_) => return None,
        };
        Some(StageRates { counted, learned: None })
    }

    fn supervised(
        &mut self,
        it: &Supervised,
        teacher: Option<&ModelConfig>,
        stage: &StageSection,
        stages: &Stages,
    ) -> Option<f64> {
        let config = stages.start(&it.start).ok()?;
        let tokens = (stages.examples(it).ok()?.tokens.round() as usize).max(2);
        let (batch_tokens, optimization, precision) = (it.batch_tokens, &it.optimization, stage.precision);
        self.learning(&Learning { config: &config, teacher, tokens, batch_tokens, optimization, precision })
    }

    fn rollouts(
        &mut self,
        config: &ModelConfig,
        teacher: Option<&ModelConfig>,
        (of, optimization): (&Rollouts, &Optimization),
        passes: f64,
        stage: &StageSection,
        stages: &Stages,
    ) -> Option<StageRates> {
        let precision = stage.precision;
        let counted = self.sampling(config, (&of.answering, precision), of.prompts as u64, stages)?;
        let length = answer_tokens(&of.answering) + stages.prompt_tokens(&of.answering).ok()?;
        let tokens = (length as usize).max(2);
        let batch_tokens = of.prompts * of.answering.samples * tokens / of.mini_batches;
        let learned = self.learning(&Learning { config, teacher, tokens, batch_tokens, optimization, precision })?;
        // Forward is a third of learning.
        Some(StageRates { counted, learned: Some(learned / (1.0 + passes / 3.0)) })
    }

    fn learning(&mut self, of: &Learning) -> Option<f64> {
        let Learning { config, teacher, tokens, batch_tokens, optimization, precision } = of;
        let context = |config: &ModelConfig| config.rope.max_positions;
        let context = teacher.map_or(usize::MAX, context).min(context(config));
        let (tokens, batch_tokens) = ((*tokens).min(context), (*batch_tokens).max(*tokens));
        let flops = learning_flops(config, optimization, *teacher, tokens);
        let most = (STEP_FLOPS / flops as f64) as usize;
        let rows = batch_tokens.min(4 * optimization.micro_rows.max(tokens)).min(most) / tokens * tokens;
        let weights = |config: &ModelConfig| 4 * count::training_bytes(config).weights.0;
        // A teacher of another vocabulary is refused when the stage begins.
        let understood = teacher.is_none_or(|teacher| teacher.vocab_size == config.vocab_size);
        if rows == 0 || !understood || !fits(&**self.device, weights(config) + teacher.map_or(0, weights)) {
            return None;
        }
        let of = Learning { tokens, batch_tokens, ..*of };
        let what = json!({
            "model": json_of(config), "teacher": teacher.map(json_of), "tokens": tokens, "rows": rows,
            "precision": word_of_precision(*precision), "micro_rows": optimization.micro_rows, "mtp": optimization.optimizer.mtp_lambda > 0.0,
            "lora": optimization.lora.as_ref().map(|lora| json!([lora.rank, lora.parameters(config)])),
        });
        let device = self.device;
        let name = Measurements::name("learning", &what, par::threads());
        self.rate(name, || measure_learning(device, &of, rows))
    }

    fn sampling(
        &mut self,
        config: &ModelConfig,
        (answering, precision): (&Answering, Precision),
        prompts: u64,
        stages: &Stages,
    ) -> Option<f64> {
        let prompt_tokens = stages.prompt_tokens(answering).ok()?;
        self.sampling_of(config, (answering, prompt_tokens), precision, prompts)
    }

    /// Answers to prompts of so many tokens.
    fn sampling_of(
        &mut self,
        config: &ModelConfig,
        (answering, prompt_tokens): (&Answering, f64),
        precision: Precision,
        prompts: u64,
    ) -> Option<f64> {
        let tokens = answer_tokens(answering);
        let prompt_tokens = (prompt_tokens as usize).max(1);
        let most = STEP_FLOPS / answer_flops(config, tokens) as f64 / tokens;
        let answers = ((prompts * answering.samples as u64) as f64).min(most) as usize;
        if answers == 0 || !fits(&**self.device, count::training_bytes(config).weights.0) {
            return None;
        }
        let what = json!({
            "model": json_of(config), "answers": answers, "samples": answering.samples, "max_tokens":
            answering.max_tokens, "running": answering.running, "prompt_tokens": prompt_tokens,
            "precision": word_of_precision(precision),
        });
        let device = self.device;
        let name = Measurements::name("sampling", &what, par::threads());
        self.rate(name, || measure_sampling(device, config, (answering, precision), answers, prompt_tokens))
    }

    /// The device's rate that is known by this name, or what `measure` says if it may be asked.
    fn rate(&mut self, name: String, measure: impl FnOnce() -> Result<f64>) -> Option<f64> {
        let name = name_on(&**self.device, name);
        if self.known.contains_key(&name) || self.rates == Rates::Known {
            return self.known.get(&name).copied();
        }
        if !std::mem::replace(&mut self.said, true) {
            self.host.event(Event::Measuring);
        }
        // Work whose very first steps fail will say so when it is done.
        let rate = measure().ok().filter(|rate| rate.is_finite() && *rate > 0.0)?;
        self.known.insert(name.clone(), rate);
        let _ = Measurements::keep(name, rate); // without it the next plan measures again
        Some(rate)
    }
}

/// A measurement's name on a device; on the processor, as it is.
pub fn name_on(device: &dyn Device, name: String) -> String {
    match device.name() {
        "cpu" => name,
        other => format!("{other} {name}"),
    }
}

fn json_of(config: &ModelConfig) -> Value {
    serde_json::from_str(&config.to_hf_json(Dtype::F32)).unwrap_or_default()
}

/// Whether so much can be taken for a measurement without anybody noticing.
fn fits(device: &dyn Device, bytes: u64) -> bool {
    let left = device.memory().map(|memory| memory.free).or_else(machine::available_memory_bytes);
    left.is_none_or(|left| bytes <= left / 2)
}

/// Tokens a second of steps on examples of random tokens.
fn measure_learning(device: &Arc<dyn Device>, of: &Learning, rows: usize) -> Result<f64> {
    let Learning { config, teacher, tokens, optimization, precision, .. } = of;
    let mut params = Params::init(device, config, 0);
    if let Some(lora) = &optimization.lora {
        params.attach(&Adapter::init(device, config, lora.config(), 0)?);
    }
    let state = State::new(params, rule(&optimization.optimizer));
    let hyper = of_stage(optimization, 1_000_000);
    let mut trainer = Trainer::new((*config).clone(), *tokens, state, hyper, stage_execution(*precision, device));
    if optimization.optimizer.mtp_lambda == 0.0 {
        trainer.freeze_mtp();
    }
    let teacher = teacher.map(|config| (Model::new(config.clone(), *tokens), Params::init(device, config, 1)));
    let divergence = wels_kernels::distil::Divergence::Forward;
    measure::steady_rate(3, |step| {
        let batch = measure::random_batch(step, rows, *tokens, config.vocab_size);
        match &teacher {
            None => trainer.step(&batch, optimization.micro_rows)?,
            Some((model, params)) => {
                let teacher = Teacher { model, params, divergence, temperature: 1.0, cross_entropy: 0.0 };
                distil::step(&mut trainer, &teacher, &batch, optimization.micro_rows)?
            }
        };
        Ok(rows as u64)
    })
}

/// Tokens a second of answers to random prompts. So many tokens end an answer that it is as long as assumed on average:
/// random weights choose all of them about equally often.
fn measure_sampling(
    device: &Arc<dyn Device>,
    config: &ModelConfig,
    (answering, precision): (&Answering, Precision),
    answers: usize,
    prompt_tokens: usize,
) -> Result<f64> {
    let vocabulary = config.vocab_size as u64;
    let ends = (vocabulary as f64 / answer_tokens(answering)).round().max(1.0) as u32;
    let options = rollout_options(answering, precision, 1.0, config);
    let options = RolloutOptions { stop_tokens: (0..ends).collect(), ..options };
    let question = |n: u64| {
        let key = Key { seed: n, stream: 0 };
        let length = prompt_tokens as u64;
        Question { prompt: (0..length).map(|i| key.below_at(i, vocabulary) as u32).collect(), seed: key.u64_at(length) }
    };
    let questions: Vec<Question> = (0..answers.div_ceil(answering.samples) as u64).map(question).collect();
    let model = Arc::new(Model::new(config.clone(), config.rope.max_positions));
    let params = Arc::new(Params::init(device, config, 0));
    measure::steady_rate(1, |_| {
        let answers = rollout(&model, &params, &questions, &options, &mut |_, _| {})?;
        Ok(answers.iter().flatten().map(|answer| answer.tokens.len() as u64).sum())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_one_device_are_not_another_ones() {
        let on = |device: Arc<dyn Device>| name_on(&*device, "learning 1234".into());
        assert_eq!(on(wels_cpu::device()), "learning 1234");
        assert_eq!(on(wels_cpu::naive::Naive::new()), "naive learning 1234");
    }
}
