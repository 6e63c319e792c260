//! What the stages of a recipe will take.
//!
//! | work | tokens | operations a token |
//! |---|---|---|
//! | examples | those of the examples, each epoch | forward and backward, and the teacher's forward pass |
//! | answers to grade | those sampled | forward |
//! | own answers | those sampled | forward |
//! | … learnt from | those of live groups, each answer behind its prompt | forward and backward, and forward passes of
//! reference or teacher and of mini-batches that are compared before the first update |
//!
//! How long answers will be is not known before: [`ANSWER_SHARE`] of the most that they may be is assumed, half of
//! them to be right, and [`LIVE_SHARE`] of groups to have right and wrong ones. A plan that rests on such assumptions
//! says so, and its account is compared for as many tokens as came. Sampling computes a group's prompt once, which is
//! not counted. For memory, answers are as long as they may be.

use wels_model::config::ModelConfig;
use wels_model::count::{self, CacheLayout, Context};
use wels_model::janus::config::JanusConfig;

use super::{Activations, F32, LearningPlan, PROGRAM_BYTES, StagePlan, training_memory};
use crate::recipe::{
    Answering, Answers, Distil, Lora, Optimization, OwnAnswers, PolicyObjective, Questions, Rl, Rollouts,
    SampleAndFilter, Score, StageSection, Start, Supervised, Work,
};

/// The assumed length of an answer, as a share of `max_tokens`.
pub const ANSWER_SHARE: f64 = 0.5;

/// The assumed share of right answers.
pub const RIGHT_SHARE: f64 = 0.5;

/// The assumed share of groups with right and wrong answers: of the others there is nothing to learn.
pub const LIVE_SHARE: f64 = 0.75;

/// Items whose answers are sampled between two writes of a sampling stage.
pub const PART: u64 = 128;

/// Tokens of a page of the engine's cache.
const PAGE_TOKENS: u64 = 16;

/// Tokens of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Learnt from, or sampled.
    pub counted: u64,
    /// Where what was sampled is learnt from, the tokens of that, prompts included; else 0.
    pub learned: u64,
}

/// Operations of one token of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenFlops {
    /// See [`Tokens::counted`].
    pub counted: u64,
    /// See [`Tokens::learned`].
    pub learned: u64,
}

impl TokenFlops {
    /// Where all tokens are of one kind.
    pub fn counted(flops: u64) -> TokenFlops {
        TokenFlops { counted: flops, learned: 0 }
    }

    /// Operations of so many tokens.
    pub fn of(self, tokens: Tokens) -> f64 {
        self.counted as f64 * tokens.counted as f64 + self.learned as f64 * tokens.learned as f64
    }

    /// Of answers of the assumed length that are sampled and learnt from; `passes` more go forward for each of these.
    fn of_rollouts(config: &ModelConfig, of: &Rollouts, optimization: &Optimization, passes: f64) -> TokenFlops {
        let tokens = answer_tokens(&of.answering);
        let forward = answer_flops(config, tokens);
        let learning = learning_flops(config, optimization, None, tokens.round() as usize);
        TokenFlops { counted: forward, learned: learning + (forward as f64 * passes).round() as u64 }
    }

    /// Of a stage of reinforcement.
    pub fn of_reinforcement(config: &ModelConfig, section: &Rl) -> TokenFlops {
        TokenFlops::of_rollouts(config, &section.rollouts, &section.optimization, forward_passes(section))
    }

    /// Of a stage that learns a teacher's distributions on its own answers.
    pub fn of_own_answers(config: &ModelConfig, teacher: &ModelConfig, section: &OwnAnswers) -> TokenFlops {
        let own = TokenFlops::of_rollouts(config, &section.rollouts, &section.optimization, 0.0);
        TokenFlops { learned: own.learned + answer_flops(teacher, answer_tokens(&section.rollouts.answering)), ..own }
    }
}

/// Forward passes of what reinforcement learns from, besides those of learning: the reference's, and one of all
/// mini-batches but the first, which GSPO and CISPO need anew before each of these is learnt.
pub fn forward_passes(section: &Rl) -> f64 {
    let parts = section.rollouts.mini_batches as f64;
    let each = if section.objective == PolicyObjective::Grpo { 1.0 } else { 2.0 };
    f64::from(u8::from(section.kl > 0.0)) + each * (parts - 1.0) / parts
}

/// Operations of one token in an example of `tokens`, with what a teacher makes of it.
pub fn learning_flops(
    config: &ModelConfig,
    optimization: &Optimization,
    teacher: Option<&ModelConfig>,
    tokens: usize,
) -> u64 {
    let forward = |config| count::forward_flops(config, Context::Causal { tokens: tokens.max(1) });
    let own = match (&optimization.lora, optimization.optimizer.mtp_lambda) {
        // Forward and the gradients of activations; of weights those of the adapter alone.
        (Some(lora), _) => forward(config).total().0 * 2 + 6 * lora.parameters(config),
        (None, 0.0) => (forward(config).total() * 3).0,
        (None, _) => forward(config).training().0,
    };
    own + teacher.map_or(0, |teacher| forward(teacher).total().0)
}

/// Operations of one token that is sampled, in answers of `tokens`.
pub fn answer_flops(config: &ModelConfig, tokens: f64) -> u64 {
    count::forward_flops(config, Context::Causal { tokens: (tokens.round() as usize).max(1) }).total().0
}

/// Tokens of an answer, as they are assumed.
pub fn answer_tokens(answering: &Answering) -> f64 {
    (ANSWER_SHARE * answering.max_tokens as f64).max(1.0)
}

/// What a stage of given examples learns from.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    pub count: u64,
    /// Tokens of one, on average.
    pub tokens: f64,
    /// What was assumed, in words; `None` if nothing was.
    pub assumption: Option<String>,
}

impl Examples {
    /// Those that a stage of kind `sample_and_filter` will have kept, each behind its prompt.
    pub fn kept_by(section: &SampleAndFilter, prompt_tokens: f64) -> Examples {
        let right = (RIGHT_SHARE * section.answering.samples as f64).max(1.0);
        let each = right.min(section.keep as f64);
        let tokens = answer_tokens(&section.answering);
        let assumption = Some(format!("{each} right answers of {tokens} tokens to each prompt"));
        Examples { count: (section.prompts as f64 * each) as u64, tokens: tokens + prompt_tokens, assumption }
    }

    /// Of questions that are put to a model those that it keeps, where half is assumed, in this share of them.
    fn kept(self, share: f64) -> Examples {
        let assumption = "half of the questions kept".to_string();
        let assumption = Some(self.assumption.map_or(assumption.clone(), |it| format!("{it}; {assumption}")));
        Examples { count: (RIGHT_SHARE * share * self.count as f64).round() as u64, assumption, ..self }
    }
}

/// Where models and examples come from, which is not in the recipe alone.
pub trait PlanInputs {
    /// The configuration of a model that is no stage of the recipe.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn model(&self, name: &str) -> Result<ModelConfig, String>;
    /// The same of a Janus model.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn janus(&self, name: &str) -> Result<JanusConfig, String>;
    /// What the stage learns from, where that is no other stage's work.
    ///
    /// # Errors
    /// Why it cannot be said, in words.
    fn examples(&self, section: &Supervised) -> Result<Examples, String>;
    /// The questions that the stage makes of the documents, before any is refused.
    ///
    /// # Errors
    /// Why it cannot be said, in words.
    fn questions(&self, section: &Questions) -> Result<Examples, String>;
    /// Tokens of a question, on average.
    ///
    /// # Errors
    /// Why it cannot be said, in words.
    fn prompt_tokens(&self, answering: &Answering) -> Result<f64, String>;
    /// How many questions of a task are held out; none if they have no end, or it cannot be said.
    fn held_out(&self, _answering: &Answering) -> Option<u64> {
        None
    }
    /// How the device keeps them.
    fn activations(&self) -> Activations {
        Activations::F32
    }
}

/// The stages of a recipe, to look models up in.
pub struct Stages<'a> {
    /// The configuration of `[model]`, if it is trained.
    pub pretrained: Option<&'a ModelConfig>,
    /// `[model]`, if it is a Janus model.
    pub pictures: Option<&'a JanusConfig>,
    pub sections: &'a [StageSection],
    /// All else.
    pub inputs: &'a dyn PlanInputs,
}

impl Stages<'_> {
    /// The configuration of a stage's model, or of one elsewhere.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn config(&self, name: &str) -> Result<ModelConfig, String> {
        if let (crate::recipe::PRETRAIN, Some(config)) = (name, self.pretrained) {
            return Ok(config.clone());
        }
        match self.sections.iter().find(|stage| stage.name == name).map(|stage| &stage.work) {
            None => self.inputs.model(name),
            Some(Work::Pretrain(it) | Work::Sft(it)) => self.start(&it.start),
            Some(Work::Rl(it)) => self.start(&it.start),
            Some(Work::Distil(it)) => self.start(it.start()),
            Some(Work::SampleAndFilter(_) | Work::Questions(_) | Work::Score(_) | Work::DrawScore(_)) => {
                Err(format!("the stage {name} trains no model"))
            }
            Some(Work::Vq(_) | Work::Janus(_) | Work::DrawRl(_)) => Err(format!("the stage {name} is of pictures")),
        }
    }

    /// The configuration that a stage begins with.
    ///
    /// # Errors
    /// As [`config`](Self::config).
    pub fn start(&self, start: &Start) -> Result<ModelConfig, String> {
        match start {
            Start::New { model } => Ok(model.config().clone()),
            Start::From { from } => self.config(from),
        }
    }

    /// What the stage learns from.
    ///
    /// # Errors
    /// Why it cannot be said, in words.
    pub fn examples(&self, section: &Supervised) -> Result<Examples, String> {
        let of_stage = self.sections.iter().find(|stage| stage.name == section.data);
        match of_stage.map(|stage| &stage.work) {
            Some(Work::SampleAndFilter(sampling)) => {
                Ok(Examples::kept_by(sampling, self.prompt_tokens(&sampling.answering)?))
            }
            Some(Work::Questions(section)) => Ok(self.inputs.questions(section)?.kept(1.0 - section.held_out)),
            _ => self.inputs.examples(section),
        }
    }

    /// Tokens of a question, on average.
    ///
    /// # Errors
    /// Why it cannot be said, in words.
    pub fn prompt_tokens(&self, answering: &Answering) -> Result<f64, String> {
        match self.maker(answering) {
            Some(maker) => Ok(self.inputs.questions(maker)?.tokens),
            None => self.inputs.prompt_tokens(answering),
        }
    }

    /// The plan of a stage, without time and money; with what is missing, if something is.
    pub fn plan(&self, stage: &StageSection) -> StagePlan {
        let numbers = self.inputs.activations().bytes(stage.precision);
        let planned = match &stage.work {
            Work::Pretrain(section) | Work::Sft(section) => self.supervised(section, None, numbers),
            Work::Rl(section) => self.reinforced(section, numbers),
            Work::Distil(section) => self.distilled(section, numbers),
            Work::SampleAndFilter(section) => self.sampled(section),
            Work::Questions(section) => self.questioned(section),
            Work::Score(section) => self.scored(section),
            Work::Vq(section) => self.coded(section),
            Work::Janus(section) => self.pictured(section),
            Work::DrawRl(section) => self.drawn_and_learnt(section),
            Work::DrawScore(section) => self.drawn(section),
        };
        let plan = planned.unwrap_or_else(|unknown| StagePlan { unknown: Some(unknown), ..StagePlan::default() });
        StagePlan { stage: stage.name.clone(), kind: stage.work.kind().into(), ..plan }
    }

    fn supervised(
        &self,
        section: &Supervised,
        teacher: Option<&ModelConfig>,
        numbers: (u64, u64),
    ) -> Result<StagePlan, String> {
        let (config, examples) = (self.start(&section.start)?, self.examples(section)?);
        let tokens = section.epochs as f64 * examples.count as f64 * examples.tokens;
        let rows = section.optimization.micro_rows.min(section.batch_tokens);
        let memory = training_memory(&config, rows, &[], section.optimization.learnt(), numbers);
        let flops = learning_flops(&config, &section.optimization, teacher, examples.tokens.round() as usize);
        Ok(StagePlan {
            tokens: tokens.round() as u64,
            flops: flops as f64 * tokens,
            memory_bytes: memory.total + teacher.map_or(0, weight_bytes),
            estimated: examples.assumption.is_some(),
            assumptions: examples.assumption.into_iter().collect(),
            ..StagePlan::default()
        })
    }

    fn reinforced(&self, section: &Rl, numbers: (u64, u64)) -> Result<StagePlan, String> {
        let config = self.start(&section.start)?;
        // Beside an adapter, the reference shares what is not learnt.
        let learnt = |lora: &Lora| F32 * lora.parameters(&config);
        let whole = section.optimization.lora.as_ref().map_or_else(|| weight_bytes(&config), learnt);
        let reference = if section.kl > 0.0 { whole } else { 0 };
        let flops = TokenFlops::of_reinforcement(&config, section);
        let mut plan =
            self.rollouts(&config, flops, LIVE_SHARE, (&section.rollouts, &section.optimization), numbers)?;
        plan.memory_bytes += reference;
        let dead = 100.0 * (1.0 - LIVE_SHARE);
        plan.assumptions.push(format!("{dead:.0}% of groups all right or all wrong, of which nothing can be learnt"));
        if section.sampling_rounds > 1 {
            plan.assumptions.push("one round of sampling a step".into());
        }
        Ok(plan)
    }

    fn distilled(&self, section: &Distil, numbers: (u64, u64)) -> Result<StagePlan, String> {
        let teacher = self.config(&section.teacher)?;
        match &section.answers {
            Answers::Given(given) => self.supervised(given, Some(&teacher), numbers),
            Answers::Own(own) => {
                let config = self.start(&own.start)?;
                let flops = TokenFlops::of_own_answers(&config, &teacher, own);
                let mut plan = self.rollouts(&config, flops, 1.0, (&own.rollouts, &own.optimization), numbers)?;
                plan.memory_bytes += weight_bytes(&teacher);
                Ok(plan)
            }
        }
    }

    fn sampled(&self, section: &SampleAndFilter) -> Result<StagePlan, String> {
        let config = self.config(&section.from)?;
        Ok(answers(&[config], &section.answering, section.prompts))
    }

    fn questioned(&self, section: &Questions) -> Result<StagePlan, String> {
        let config = self.config(&section.from)?;
        let times = if section.right_without_passage < 1.0 { 2 } else { 1 };
        let asked = self.inputs.questions(section)?.count * times;
        Ok(answers(&[config], &section.answering, asked))
    }

    /// The stage that makes a task's questions.
    pub fn maker(&self, answering: &Answering) -> Option<&Questions> {
        self.sections.iter().find_map(|stage| match &stage.work {
            Work::Questions(section) if stage.name == answering.task.name => Some(&**section),
            _ => None,
        })
    }

    fn scored(&self, section: &Score) -> Result<StagePlan, String> {
        let configs = section.models.iter().map(|model| self.config(model)).collect::<Result<Vec<_>, _>>()?;
        let items = match self.maker(&section.answering) {
            Some(maker) => self.inputs.questions(maker)?.kept(maker.held_out).count.min(section.items),
            None => self.inputs.held_out(&section.answering).map_or(section.items, |len| len.min(section.items)),
        };
        let mut plan = answers(&configs, &section.answering, items);
        if configs.len() > 1 {
            plan.assumptions.push("as many tokens of each model".into());
        }
        Ok(plan)
    }

    /// Answers that are sampled, and of which the share `live` is learnt from.
    fn rollouts(
        &self,
        config: &ModelConfig,
        flops: TokenFlops,
        live: f64,
        (of, learning): (&Rollouts, &Optimization),
        numbers: (u64, u64),
    ) -> Result<StagePlan, String> {
        let answering = &of.answering;
        let each_step = (of.prompts * answering.samples) as u64;
        let (answers, length) = ((of.steps * each_step) as f64, answer_tokens(answering));
        let learned = live * answers * (length + self.prompt_tokens(answering)?);
        let tokens = Tokens { counted: (answers * length).round() as u64, learned: learned.round() as u64 };
        let rows = learning.micro_rows.min(each_step as usize * answering.max_tokens);
        let training = training_memory(config, rows, &[], learning.learnt(), numbers);
        // The answers are sampled with the weights that are trained; the buffers of learning are kept meanwhile.
        let sampling = cache_bytes(config, answering, each_step);
        Ok(StagePlan {
            tokens: tokens.counted,
            learning: Some(LearningPlan {
                tokens: tokens.learned,
                flops: flops.of(Tokens { counted: 0, ..tokens }),
                ..LearningPlan::default()
            }),
            flops: flops.of(tokens),
            memory_bytes: training.total + sampling,
            ..assumed(answering)
        })
    }
}

/// `items` put to each of the models in turn.
fn answers(configs: &[ModelConfig], answering: &Answering, items: u64) -> StagePlan {
    let length = answer_tokens(answering);
    let each = (items * answering.samples as u64) as f64 * length;
    let at_once = PART.min(items) * answering.samples as u64;
    let memory = |config| PROGRAM_BYTES + weight_bytes(config) + cache_bytes(config, answering, at_once);
    StagePlan {
        tokens: (each * configs.len() as f64).round() as u64,
        flops: configs.iter().map(|config| answer_flops(config, length) as f64 * each).sum(),
        memory_bytes: configs.iter().map(memory).max().unwrap_or(PROGRAM_BYTES),
        ..assumed(answering)
    }
}

fn assumed(answering: &Answering) -> StagePlan {
    let (length, most) = (answer_tokens(answering), answering.max_tokens);
    let assumption = format!("answers of {length} tokens, where {most} is the most");
    StagePlan { estimated: true, assumptions: vec![assumption], ..StagePlan::default() }
}

fn weight_bytes(config: &ModelConfig) -> u64 {
    count::training_bytes(config).weights.0
}

/// Pages of answers of the assumed length, of which later ones take the pages of those that have ended only when no
/// other page is left, and logits of those that run.
fn cache_bytes(config: &ModelConfig, answering: &Answering, answers: u64) -> u64 {
    let token = F32 * count::cache_elements_per_token(config, CacheLayout::Expanded);
    let running = (answering.running as u64).min(answers);
    let pages_most = (running + 1) * (config.rope.max_positions as u64).div_ceil(PAGE_TOKENS);
    let pages_each = (answer_tokens(answering).ceil() as u64).div_ceil(PAGE_TOKENS);
    let logits = running * config.vocab_size as u64 * F32;
    pages_most.min(answers * pages_each) * PAGE_TOKENS * token + logits
}
