//! What stages of pictures will take. Tokens are those of the language model, or codes where it is the VQ tokenizer
//! that learns. Lengths of captions and questions are assumed: [`CAPTION`] and [`QUESTION`] tokens, prompt included, and [`REASONS`].

use wels_model::count::{self, Context};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::count::{flops, params};

use super::stages::{LIVE_SHARE, Stages, TokenFlops, Tokens};
use super::{F32, LearningPlan, PROGRAM_BYTES, StagePlan};
use crate::recipe::{AnswerForm, DrawRl, DrawScore, JanusTraining, VqLearns, VqTraining, Work};

/// Tokens before a picture that is drawn. A guess.
pub const CAPTION: u64 = 16;
/// Tokens of a question with its answer, without the picture. A guess.
pub const QUESTION: u64 = 16;
/// Tokens of a reasoned answer before what follows. A guess.
pub const REASONS: u64 = 12;
/// Numbers that are kept of a row of the language model for each of its widths and layers while it learns. A guess.
const KEPT: u64 = 24;
/// The same of a pixel, for each channel of the VQ tokenizer's first resolution and each of its resolutions.
const KEPT_PIXEL: u64 = 40;

impl Stages<'_> {
    /// The Janus model that comes of a stage, or one elsewhere.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn janus(&self, name: &str) -> Result<JanusConfig, String> {
        match self.sections.iter().find(|stage| stage.name == name).map(|stage| &stage.work) {
            None => self.inputs.janus(name),
            Some(Work::Vq(it)) => self.vq_model(it),
            Some(Work::Janus(it)) => self.janus(&it.from),
            Some(Work::DrawRl(it)) => self.janus(&it.from),
            Some(_) => Err(format!("the stage {name} trains no model of pictures")),
        }
    }

    fn vq_model(&self, section: &VqTraining) -> Result<JanusConfig, String> {
        match &section.from {
            Some(from) => self.janus(from),
            None => self.pictures.cloned().ok_or_else(|| "[model] is no Janus model".into()),
        }
    }

    pub(super) fn coded(&self, section: &VqTraining) -> Result<StagePlan, String> {
        let config = self.vq_model(section)?;
        let codes = config.vq.tokens() as u64;
        let tokens = section.steps * section.batch as u64 * codes;
        let pixels = (config.vq.image_size() as u64).pow(2) * section.micro_pictures.min(section.batch) as u64;
        let kept = pixels * (config.vq.base_channels * config.vq.multipliers.len()) as u64 * KEPT_PIXEL;
        let states = 4 * params(&config).vqmodel;
        Ok(StagePlan {
            tokens,
            flops: vq_flops(&config, section.learns) as f64 * tokens as f64,
            memory_bytes: PROGRAM_BYTES + F32 * (states + kept),
            ..StagePlan::default()
        })
    }

    pub(super) fn pictured(&self, section: &JanusTraining) -> Result<StagePlan, String> {
        let config = self.janus(&section.from)?;
        let rows = rows_of_step(&config, section);
        let tokens = section.steps * rows;
        Ok(StagePlan {
            tokens,
            flops: janus_flops(&config, section) as f64 * tokens as f64,
            memory_bytes: training_bytes(&config, rows.min(section.optimization.micro_rows as u64)),
            ..assumed()
        })
    }

    pub(super) fn drawn_and_learnt(&self, section: &DrawRl) -> Result<StagePlan, String> {
        let config = self.janus(&section.from)?;
        let codes = config.vq.tokens() as u64;
        let pictures = section.steps * (section.prompts * section.samples) as u64;
        let counted = pictures * codes;
        let learned = (LIVE_SHARE * (pictures * (codes + CAPTION)) as f64).round() as u64;
        let flops = draw_flops(&config, section);
        let each_step = (section.prompts * section.samples) as u64;
        let rows = (each_step * (codes + CAPTION)).min(section.optimization.micro_rows as u64);
        let reference = if section.kl > 0.0 { F32 * params(&config).without_vq() } else { 0 };
        let mut plan = assumed();
        let dead = 100.0 * (1.0 - LIVE_SHARE);
        plan.assumptions.push(format!("{dead:.0}% of groups all right or all wrong, of which nothing can be learnt"));
        Ok(StagePlan {
            tokens: counted,
            learning: Some(LearningPlan {
                tokens: learned,
                flops: flops.of(Tokens { counted: 0, learned }),
                ..LearningPlan::default()
            }),
            flops: flops.of(Tokens { counted, learned }),
            memory_bytes: training_bytes(&config, rows) + cache_bytes(&config, each_step) + reference,
            ..plan
        })
    }

    pub(super) fn drawn(&self, section: &DrawScore) -> Result<StagePlan, String> {
        let configs = section.models.iter().map(|model| self.janus(model)).collect::<Result<Vec<_>, _>>()?;
        let each = |config: &JanusConfig| score_tokens(config, section);
        let memory = |config: &JanusConfig| PROGRAM_BYTES + F32 * params(config).total() + cache_bytes(config, 64);
        Ok(StagePlan {
            tokens: configs.iter().map(each).sum(),
            flops: configs.iter().map(|config| (score_flops(config) * each(config)) as f64).sum(),
            memory_bytes: configs.iter().map(memory).max().unwrap_or(PROGRAM_BYTES),
            ..assumed()
        })
    }
}

fn assumed() -> StagePlan {
    let assumptions = vec![format!("{CAPTION} tokens before a picture, and {QUESTION} about one")];
    StagePlan { estimated: true, assumptions, ..StagePlan::default() }
}

/// Operations of a code that a VQ tokenizer learns from.
pub fn vq_flops(config: &JanusConfig, learns: VqLearns) -> u64 {
    let of = flops(config);
    let forward = if learns == VqLearns::All { of.encode + of.decode } else { of.decode };
    3 * forward / config.vq.tokens() as u64
}

/// Rows of the language model in a step.
pub fn rows_of_step(config: &JanusConfig, section: &JanusTraining) -> u64 {
    let (codes, seen) = (config.vq.tokens() as u64, config.vision.tokens() as u64);
    let reasons = if section.answers == AnswerForm::Reasoned { REASONS } else { 0 };
    section.draws as u64 * (CAPTION + codes)
        + section.questions as u64 * (QUESTION * section.turns as u64 + reasons + seen)
        + section.texts as u64 * CAPTION
}

/// Operations of a row of a step, on average.
pub fn janus_flops(config: &JanusConfig, section: &JanusTraining) -> u64 {
    let of = flops(config);
    let rows = rows_of_step(config, section);
    let others = section.draws as u64 * config.vq.tokens() as u64 * of.code + section.questions as u64 * of.see;
    3 * (forward(config) + others / rows.max(1))
}

/// Operations of a code that is drawn, and of a row of what was drawn that is learnt from.
pub fn draw_flops(config: &JanusConfig, section: &DrawRl) -> TokenFlops {
    let of = flops(config);
    let counted = forward(config) + of.code + of.decode / config.vq.tokens() as u64;
    let passes = 3 + u64::from(section.kl > 0.0);
    TokenFlops { counted, learned: passes * (forward(config) + of.code) }
}

/// Operations of a code that is drawn to be graded.
pub fn score_flops(config: &JanusConfig) -> u64 {
    forward(config) + flops(config).code + flops(config).decode / config.vq.tokens() as u64
}

/// Codes that a model draws to be graded: six kinds of captions that were seen and that were not.
fn score_tokens(config: &JanusConfig, section: &DrawScore) -> u64 {
    let sequences = if section.guidance == 1.0 { 1 } else { 2 };
    12 * section.items * config.vq.tokens() as u64 * sequences
}

/// Of a row of the language model, in a sequence of a caption and a picture.
fn forward(config: &JanusConfig) -> u64 {
    let tokens = config.vq.tokens() + CAPTION as usize;
    count::forward_flops(&config.text, Context::Causal { tokens }).total().0
}

fn training_bytes(config: &JanusConfig, rows: u64) -> u64 {
    let states = 4 * params(config).without_vq() + params(config).vqmodel;
    let kept = rows * (config.text.hidden_size * (config.text.layers + 2)) as u64 * KEPT;
    PROGRAM_BYTES + F32 * (states + kept)
}

/// Keys and values of pictures under way.
fn cache_bytes(config: &JanusConfig, pictures: u64) -> u64 {
    let token = count::cache_elements_per_token(&config.text, count::CacheLayout::Expanded);
    F32 * token * pictures * (config.vq.tokens() as u64 + CAPTION)
}
