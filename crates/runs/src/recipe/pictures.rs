//! `[[stage]]` of the kinds that have to do with pictures: a VQ tokenizer, a Janus model that learns to see and to
//! draw, reinforcement of its drawing, and what comes of it. Their models are of `transformers`' `janus` form, each
//! stage's checkpoint a directory that the next one begins with.

use serde::Serialize;

use super::optimizer::{Defaults, OF_CODES, OF_DRAWING, OF_PICTURES, Optimizer, Rule};
use super::reader::{RecipeError, Section};
use super::shared::{AdvantageScale, NOT_NEGATIVE, Optimization, PROBABILITY, RecipeContext, place};
use super::{PRETRAIN, joined};

/// Words for what the codes of a VQ tokenizer are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CodesOf {
    /// Whatever comes of learning.
    Latents,
    /// Clusters of patches.
    Patches,
}

/// Words for what of a VQ tokenizer learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VqLearns {
    /// Encoder, codes and decoder.
    All,
    /// The decoder, from codes that stay as they are.
    Decoder,
}

/// `[[stage]]` of every kind with pictures: what they are of
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pictures {
    /// A world that is drawn, "grid-24" or "free-32"; or pictures of one's own with captions: a folder, or a JSONL,
    /// Parquet or tar file. See [images](images.md).
    pub pictures: String,
    /// Pictures that are prepared when the stage begins: so many scenes of a world, so many of a folder at most.
    pub pool: u64,
}

/// `[[stage]]` of kind `vq`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VqTraining {
    /// Updates.
    pub steps: u64,
    /// Pictures of an update.
    pub batch: usize,
    /// Pictures that go through the tokenizer at a time: memory and speed, no bit of the result.
    pub micro_pictures: usize,
    /// "all", or "decoder" for the decoder alone, from codes that stay.
    pub learns: VqLearns,
    /// What codes are for: "latents" for whatever makes pictures come back best, "patches" for clusters of the pixels
    /// of a code's own patch, as many as there are codes, which the encoder learns to find.
    pub codes_of: CodesOf,
    /// Share of the pictures whose patches, of which each has a code, come in random order, so that a code is about its
    /// own patch: a model that draws has less to learn.
    pub shuffle: f64,
    /// Factor on the mean of |x̂ − x|.
    pub l1: f64,
    /// Factor on the mean of (x̂ − x)².
    pub l2: f64,
    /// Factor on the commitment: latents to codes.
    pub commitment: f64,
    /// Steps after which a code that nothing was near to is put where a latent is, if codes are of latents.
    pub dead_after: u32,
    /// What is learnt.
    #[serde(flatten)]
    pub data: Pictures,
    /// How it is optimized, always by AdamW without weight decay.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// What it begins with: an earlier stage, or a Janus model's directory; a new one of `[model]` if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Words for what of a Janus model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JanusLearns {
    /// All but the VQ tokenizer.
    All,
    /// Aligners, and embeddings and head of codes: Janus-Pro's first stage.
    Adaptors,
    /// All but VQ tokenizer and tower: its second.
    Language,
}

/// Words for how questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// By a word or two.
    Short,
    /// By what is seen, and then a word or two that follow from it.
    Reasoned,
}

/// `[[stage]]` of kind `janus`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JanusTraining {
    /// Updates.
    pub steps: u64,
    /// Pictures of an update that are to be drawn.
    pub draws: usize,
    /// Questions of an update, about what is seen.
    pub questions: usize,
    /// Questions about each picture, one after the other in a conversation.
    pub turns: usize,
    /// "short" answers of a word or two, or "reasoned" ones that first say what is seen, if it was not said before: "a large
    /// red circle so yes".
    pub answers: AnswerForm,
    /// Captions of an update as text alone.
    pub texts: usize,
    /// Share of drawn pictures whose caption is left out, for guidance.
    pub unconditional: f64,
    /// Weight of the loss of a token.
    pub text_weight: f64,
    /// Weight of the loss of a code.
    pub code_weight: f64,
    /// "all" but the VQ tokenizer; "adaptors": aligners, embeddings and head of codes; "language": all but VQ tokenizer
    /// and tower.
    pub learns: JanusLearns,
    /// What is learnt.
    #[serde(flatten)]
    pub data: Pictures,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// What it begins with: a stage of kind `vq`, of whose model all else is new; or of another kind here; or a Janus
    /// model's directory.
    pub from: String,
}

/// `[[stage]]` of kind `draw_rl`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DrawRl {
    /// A world, whose grader gives the reward.
    pub pictures: String,
    /// Rollouts.
    pub steps: u64,
    /// Captions of a rollout.
    pub prompts: usize,
    /// Pictures of each caption.
    pub samples: usize,
    /// Updates of a rollout, each on a random part of it.
    pub mini_batches: usize,
    /// What advantages are divided by: "deviation" if left out, "sample_deviation", or "none".
    pub advantage_scale: AdvantageScale,
    /// ε_low: how far the ratio may fall.
    pub clip_low: f64,
    /// ε_high: how far the ratio may rise.
    pub clip_high: f64,
    /// β of the KL to the reference; 0 for none.
    pub kl: f64,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// The stage or Janus model's directory that it begins with.
    pub from: String,
}

/// `[[stage]]` of kind `draw_score`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DrawScore {
    /// The models that draw: stages, or Janus models' directories.
    pub models: Vec<String>,
    /// A world, whose grader judges.
    pub pictures: String,
    /// Captions of each kind, seen and unseen alike.
    pub items: u64,
    /// Of the softmax over codes.
    pub temperature: f64,
    /// Scale of classifier-free guidance; 1 for none.
    pub guidance: f64,
    /// Held-out pictures that each model is asked about.
    pub questions: u64,
}

impl Pictures {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Pictures, RecipeError> {
        Ok(Pictures {
            pictures: pictures(s, context)?,
            pool: s.get_where("pool", 8192, |n| (1..=100_000_000).contains(&n), "1 to 100000000")?,
        })
    }
}

/// A world's name as it is, or a path.
fn pictures(s: &mut Section, context: &RecipeContext) -> Result<String, RecipeError> {
    let pictures: String = s.get_or("pictures", "grid-24".into())?;
    match is_world(&pictures) {
        true => Ok(pictures),
        false => Ok(joined(context.folder.path, &pictures)),
    }
}

/// Whether `pictures` names a world: a path has a `/` or a point.
pub fn is_world(pictures: &str) -> bool {
    !pictures.contains(['/', '.', '\\'])
}

fn world(s: &mut Section, context: &RecipeContext) -> Result<String, RecipeError> {
    let name = pictures(s, context)?;
    match is_world(&name) {
        true => Ok(name),
        false => Err(s.wrong("pictures", "must be a world: nothing else is graded")),
    }
}

fn from(s: &mut Section, context: &RecipeContext) -> Result<String, RecipeError> {
    match s.get::<String>("from")? {
        Some(from) if from != PRETRAIN => Ok(place(from, context)),
        _ => Err(s.wrong("from", "must name a stage of pictures before this one, or a Janus model's directory")),
    }
}

impl VqTraining {
    pub(super) fn resolve(s: &mut Section, context: &RecipeContext) -> Result<VqTraining, RecipeError> {
        let section = VqTraining {
            steps: s.get_where("steps", 1000, |n| n > 0, "1 or more")?,
            batch: s.get_where("batch", 32, |n| n > 0, "1 or more")?,
            micro_pictures: s.get_where("micro_pictures", 16, |n| n > 0, "1 or more")?,
            learns: s.word("learns", &[("all", VqLearns::All), ("decoder", VqLearns::Decoder)])?,
            codes_of: s.word("codes_of", &[("latents", CodesOf::Latents), ("patches", CodesOf::Patches)])?,
            shuffle: s.get_where("shuffle", 0.0, PROBABILITY, "between 0 and 1")?,
            l1: s.get_where("l1", 0.3, NOT_NEGATIVE, "0 or more")?,
            l2: s.get_where("l2", 1.0, NOT_NEGATIVE, "0 or more")?,
            commitment: s.get_where("commitment", 0.25, NOT_NEGATIVE, "0 or more")?,
            dead_after: s.get_where("dead_after", 30, |n: u64| n > 0 && n < 1 << 31, "1 or more")? as u32,
            data: Pictures::resolve(s, context)?,
            optimization: optimization(s, &OF_CODES)?,
            from: match s.get::<String>("from")? {
                None if !context.janus => {
                    return Err(
                        s.wrong("from", "must name a Janus model, or [model] be one: nothing says what is learnt")
                    );
                }
                from => from.map(|from| place(from, context)),
            },
        };
        section.check(s)?;
        Ok(section)
    }

    /// Refuses what would say nothing.
    fn check(&self, s: &Section) -> Result<(), RecipeError> {
        let Optimizer { optimizer, weight_decay, .. } = self.optimization.optimizer;
        let decoder = self.learns == VqLearns::Decoder;
        match () {
            () if optimizer != Rule::AdamW => Err(s.wrong("optimizer", "must be \"adamw\" in stages of kind vq")),
            () if weight_decay != 0.0 => Err(s.wrong("weight_decay", "must be 0 in stages of kind vq")),
            () if decoder && self.codes_of != CodesOf::Latents => {
                Err(s.wrong("codes_of", "says nothing where the decoder alone learns, from codes that stay"))
            }
            () if decoder && self.shuffle > 0.0 => {
                Err(s.wrong("shuffle", "must be 0 where the decoder alone learns: codes are of whole pictures"))
            }
            () => Ok(()),
        }
    }
}

/// Without gradient shards, which one rank has no use for.
fn optimization(s: &mut Section, of: &Defaults) -> Result<Optimization, RecipeError> {
    let optimization = Optimization::resolve(s, of)?;
    match optimization.optimizer.gradient_shards {
        1 => Ok(optimization),
        _ => Err(s.wrong("gradient_shards", "must be 1 in stages of pictures, which have one rank")),
    }
}

impl JanusTraining {
    pub(super) fn resolve(s: &mut Section, context: &RecipeContext) -> Result<JanusTraining, RecipeError> {
        let training = JanusTraining {
            steps: s.get_where("steps", 1000, |n| n > 0, "1 or more")?,
            draws: s.get_or("draws", 64)?,
            questions: s.get_or("questions", 16)?,
            turns: s.get_where("turns", 1, |n| n > 0, "1 or more")?,
            answers: s.word("answers", &[("short", AnswerForm::Short), ("reasoned", AnswerForm::Reasoned)])?,
            texts: s.get_or("texts", 0)?,
            unconditional: s.get_where("unconditional", 0.1, PROBABILITY, "between 0 and 1")?,
            text_weight: s.get_where("text_weight", 1.0, NOT_NEGATIVE, "0 or more")?,
            code_weight: s.get_where("code_weight", 1.0, NOT_NEGATIVE, "0 or more")?,
            learns: s.word(
                "learns",
                &[("all", JanusLearns::All), ("adaptors", JanusLearns::Adaptors), ("language", JanusLearns::Language)],
            )?,
            data: Pictures::resolve(s, context)?,
            optimization: optimization(s, &OF_PICTURES)?,
            from: from(s, context)?,
        };
        let JanusTraining { draws, questions, texts, text_weight, code_weight, .. } = training;
        let of_text = text_weight > 0.0 && questions + texts > 0;
        let of_codes = code_weight > 0.0 && draws > 0;
        if !of_text && !of_codes {
            return Err(s.wrong("draws", "is 0, and so is all else that has a weight: nothing would be learnt"));
        }
        if questions > 0 && !is_world(&training.data.pictures) {
            return Err(s.wrong("questions", "must be 0: pictures of one's own come without questions"));
        }
        for (key, given) in [("answers", training.answers != AnswerForm::Short), ("turns", training.turns > 1)] {
            if questions == 0 && given {
                return Err(s.wrong(key, "says nothing where no questions are learnt"));
            }
        }
        Ok(training)
    }
}

impl DrawRl {
    pub(super) fn resolve(s: &mut Section, context: &RecipeContext) -> Result<DrawRl, RecipeError> {
        let clip_low = s.get_where("clip_low", 0.2, NOT_NEGATIVE, "0 or more")?;
        Ok(DrawRl {
            pictures: world(s, context)?,
            steps: s.get_where("steps", 100, |n| n > 0, "1 or more")?,
            prompts: s.get_where("prompts", 16, |n| n > 0, "1 or more")?,
            samples: s.get_where("samples", 8, |n| n > 1, "2 or more")?,
            mini_batches: s.get_where("mini_batches", 1, |n| n > 0, "1 or more")?,
            advantage_scale: AdvantageScale::resolve(s)?,
            clip_low,
            clip_high: s.get_where("clip_high", clip_low, NOT_NEGATIVE, "0 or more")?,
            kl: s.get_where("kl", 0.0, NOT_NEGATIVE, "0 or more")?,
            optimization: optimization(s, &OF_DRAWING)?,
            from: from(s, context)?,
        })
    }
}

impl DrawScore {
    pub(super) fn resolve(s: &mut Section, context: &RecipeContext) -> Result<DrawScore, RecipeError> {
        let models: Vec<String> = s.get_or("models", Vec::new())?;
        if models.is_empty() {
            return Err(s.wrong("models", "names no model"));
        }
        Ok(DrawScore {
            models: models.into_iter().map(|model| place(model, context)).collect(),
            pictures: world(s, context)?,
            items: s.get_where("items", 100, |n| n > 0, "1 or more")?,
            temperature: s.get_where("temperature", 1.0, NOT_NEGATIVE, "0 or more")?,
            guidance: s.get_where("guidance", 1.0, NOT_NEGATIVE, "0 or more")?,
            questions: s.get_or("questions", 100)?,
        })
    }
}
