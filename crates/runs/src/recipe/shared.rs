//! What several kinds of stages say in the same words.

use serde::Serialize;

use super::lora::Lora;
use super::named::{Folder, joined};
use super::optimizer::{Checkpoints, Defaults, Optimizer};
use super::reader::{RecipeError, Section};
use super::{PRETRAIN, TokenizerSection};

pub(super) const NOT_NEGATIVE: fn(f64) -> bool = |x| x >= 0.0;
pub(super) const PROBABILITY: fn(f64) -> bool = |x| (0.0..=1.0).contains(&x);

/// What all stages of a recipe share.
pub(super) struct RecipeContext<'a> {
    pub tokenizer: &'a TokenizerSection,
    /// Whether `[model]` is a Janus model.
    pub janus: bool,
    pub folder: Folder<'a>,
    /// Names of the stages so far.
    pub earlier: Vec<String>,
}

/// An earlier stage's name as it is, or a path.
pub(super) fn place(name: String, context: &RecipeContext) -> String {
    match name == PRETRAIN || context.earlier.contains(&name) {
        true => name,
        false => joined(context.folder.path, &name),
    }
}

/// `[[stage]]` of every kind that trains
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimization {
    /// Rows (tokens) that go through the model at once: memory and speed, no bit of the result.
    pub micro_rows: usize,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// Share of the updates, at the end, in which the learning rate falls.
    pub decay_fraction: f64,
    /// When checkpoints are written, and which are kept.
    #[serde(flatten)]
    pub checkpoints: Checkpoints,
    /// The adapter that is learnt in place of the weights, if `[stage.lora]` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

impl Optimization {
    pub(super) fn resolve(s: &mut Section, of: &Defaults) -> Result<Optimization, RecipeError> {
        Ok(Optimization {
            micro_rows: s.get_where("micro_rows", 4096, |n| n > 0, "1 or more")?,
            optimizer: Optimizer::resolve(s, of)?,
            decay_fraction: s.get_where("decay_fraction", 0.4, PROBABILITY, "between 0 and 1")?,
            checkpoints: Checkpoints::resolve(s, of)?,
            lora: None,
        })
    }

    /// The optimizer, and the adapter if it moves one.
    pub fn learnt(&self) -> (&Optimizer, Option<&Lora>) {
        (&self.optimizer, self.lora.as_ref())
    }

    /// Of a stage that may learn an adapter.
    pub(super) fn resolve_with_lora(s: &mut Section, of: &Defaults) -> Result<Optimization, RecipeError> {
        let Some(lora) = Lora::resolve(s)? else { return Optimization::resolve(s, of) };
        let optimization = Optimization::resolve(s, &Lora::defaults(of))?;
        Lora::check(s, &optimization.optimizer)?;
        Ok(Optimization { lora: Some(lora), ..optimization })
    }
}

/// Words for what advantages are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageScale {
    /// The deviation of the group, by n.
    Deviation,
    /// The deviation of the group, by n − 1.
    SampleDeviation,
    /// Nothing.
    None,
}

/// Words for how tokens are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMean {
    /// A mean over answers of means over their tokens.
    Sequence,
    /// A mean over tokens.
    Token,
    /// A sum over tokens, divided by answers and `max_tokens`.
    Constant,
}

/// Words for what advantages are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyObjective {
    /// The ratio of a token, clipped where that gives the lesser term.
    Grpo,
    /// The ratio of an answer, normalised by its length, likewise.
    Gspo,
    /// The clipped ratio of a token, as a weight of its log-probability.
    Cispo,
}

impl PolicyObjective {
    pub(super) fn resolve(s: &mut Section) -> Result<PolicyObjective, RecipeError> {
        use PolicyObjective::{Cispo, Grpo, Gspo};
        s.word("objective", &[("grpo", Grpo), ("gspo", Gspo), ("cispo", Cispo)])
    }
}

impl AdvantageScale {
    pub(super) fn resolve(s: &mut Section) -> Result<AdvantageScale, RecipeError> {
        use AdvantageScale::{Deviation, None, SampleDeviation};
        let words = [("deviation", Deviation), ("sample_deviation", SampleDeviation), ("none", None)];
        s.word("advantage_scale", &words)
    }
}

impl LossMean {
    pub(super) fn resolve(s: &mut Section) -> Result<LossMean, RecipeError> {
        let words = [("token", LossMean::Token), ("sequence", LossMean::Sequence), ("constant", LossMean::Constant)];
        s.word("loss_mean", &words)
    }
}
