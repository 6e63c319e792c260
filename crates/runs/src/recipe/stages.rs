//! `[[stage]]`: what a run does after pretraining, in order. Each stage begins with the weights of an earlier one, of a
//! published checkpoint, or with new ones.

use serde::Serialize;

use super::optimizer::{Defaults, OF_EXAMPLES, OF_REINFORCEMENT, OF_TUNING};
use super::pictures::{DrawRl, DrawScore, JanusTraining, VqTraining};
use super::reader::{RecipeError, Section};
use super::shared::{
    AdvantageScale, LossMean, NOT_NEGATIVE, Optimization, PROBABILITY, PolicyObjective, RecipeContext, place,
};
use super::task_name::TaskName;
use super::work::Work;
use super::{ModelSection, PRETRAIN, Precision, precision_word};

/// `[[stage]]` of every kind
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageSection {
    /// The stage's folder in the run.
    pub name: String,
    /// Number format of the products, of training and of answers alike.
    #[serde(serialize_with = "precision_word")]
    pub precision: Precision,
    /// What it does, by its kind.
    #[serde(flatten)]
    pub work: Work,
}

/// Defaults of rollouts that differ between kinds.
struct Sampling {
    prompts: usize,
    samples: usize,
}

/// `data` of worked puzzles.
pub const TRACES: &str = "traces";
/// `data` of played episodes.
pub const DEMONSTRATIONS: &str = "demonstrations";
/// `data` that is the text of `[data]`.
pub const DOCUMENTS: &str = "documents";

/// `task` of a stage of kind `questions`.
const CLOZE: &str = "cloze";

/// Where the weights of a stage come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Start {
    /// An earlier stage, or a Hugging Face directory, which `hf://ORG/NAME[@REVISION]` names on a hub.
    From {
        /// Its name, or path.
        from: String,
    },
    /// A new model, as the run's seed gives it.
    New {
        /// Its shape: the keys of `[model]`.
        model: Box<ModelSection>,
    },
}

/// `[[stage]]` of kind `pretrain` or `sft`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Supervised {
    /// What is learnt: "traces" for worked puzzles, "demonstrations" for played episodes of an environment, "documents"
    /// for the text of `data.sources`, in `pretrain` alone, the name of a stage that samples or makes questions, or a
    /// JSONL file of conversations, which `hf://datasets/ORG/NAME[@REVISION]/PATH` names on a hub.
    pub data: String,
    /// The environment of "demonstrations"; see [environments](environments.md).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// How often all of it is learnt.
    pub epochs: u64,
    /// Tokens of one step, as many whole examples as fit.
    pub batch_tokens: usize,
    /// Examples of "traces" or "demonstrations".
    pub traces: u64,
    /// Most tries of a trace.
    pub trace_tries: usize,
    /// Each try of a trace is the nearest to the target of this many candidates; 1 for any.
    pub trace_nearest_of: usize,
    /// Probability that an equation of a trace, or a call of a demonstration, is wrong.
    pub trace_slips: f64,
    /// Probability that the first try of a trace is right.
    pub trace_luck: f64,
    /// Probability of an answer without a try, or without a call.
    pub trace_direct: f64,
    /// Each trace takes one of these as its probability of giving up after a failed try; each demonstration after a
    /// call that is not the last.
    pub trace_quit: Vec<f64>,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// Where the weights come from.
    #[serde(flatten)]
    pub start: Start,
}

/// Words for what happens to answers that run into the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlongRule {
    /// Nothing.
    Keep,
    /// They are left out of the loss.
    Filter,
    /// A penalty that grows to 1 within the last `overlong_buffer` tokens.
    Penalty,
}

/// `[[stage]]` of every kind that samples: answers
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answering {
    /// What is asked, `[STYLE:]NAME[+TOOL][=FILE]`; see [tasks](tasks.md) and [environments](environments.md). The file
    /// may be `hf://datasets/ORG/NAME/PATH`.
    pub task: TaskName,
    /// Seconds that a program of one's own may take to judge an answer, or for a step of its environment: no bit of the
    /// result.
    pub checker_seconds: f64,
    /// Answers to each prompt: 16 in `rl`, 4 in `sample_and_filter` and `questions`, else 1.
    pub samples: usize,
    /// The most tokens of an answer; in an environment of all its turns, with what is said between them.
    pub max_tokens: usize,
    /// In an environment the most turns of an answer.
    pub max_turns: usize,
    /// In an environment the most tokens of a turn.
    pub max_turn_tokens: usize,
    /// Answers that are sampled at the same time: speed and memory, no bit of the result.
    pub running: usize,
}

/// `[[stage]]` of kind `rl`, and of `distil` on the student's own answers: rollouts
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rollouts {
    /// Rollouts.
    pub steps: u64,
    /// Prompts of a rollout: 16 in `rl`, 64 in `distil`.
    pub prompts: usize,
    /// Updates of a rollout, each on a random part of it.
    pub mini_batches: usize,
    /// What is asked and how it is answered.
    #[serde(flatten)]
    pub answering: Answering,
}

/// `[[stage]]` of kind `rl`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rl {
    /// What is asked, and how often.
    #[serde(flatten)]
    pub rollouts: Rollouts,
    /// Rounds of sampling at most, until `prompts` groups have rewards that differ (DAPO's dynamic sampling); 1 takes
    /// what comes.
    pub sampling_rounds: usize,
    /// What advantages are multiplied with: "grpo" if left out, the ratio of a token; "gspo", that of an answer; or
    /// "cispo", the clipped ratio of a token as a weight. See [tasks](tasks.md#the-objective).
    pub objective: PolicyObjective,
    /// What advantages are divided by: "deviation" if left out, "sample_deviation", or "none".
    pub advantage_scale: AdvantageScale,
    /// How tokens are added up: "token" if left out, "sequence", or "constant".
    pub loss_mean: LossMean,
    /// ε_low: how far the ratio may fall.
    pub clip_low: f64,
    /// ε_high: how far the ratio may rise.
    pub clip_high: f64,
    /// β of the KL to the reference; 0 for none.
    pub kl: f64,
    /// Rollouts after which the reference becomes the latest policy; 0 for never.
    pub reference_every: u64,
    /// What happens to answers that run into the limit.
    pub overlong: OverlongRule,
    /// See `overlong`; with a penalty a fifth of `max_tokens` if left out (DAPO: 4,096 of 20,480).
    pub overlong_buffer: usize,
    /// What a right answer counts.
    pub reward_accuracy: f64,
    /// What the asked form counts.
    pub reward_format: f64,
    /// What thinking in the target language counts.
    pub reward_language: f64,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// Where the weights come from.
    #[serde(flatten)]
    pub start: Start,
}

/// Words for which way the divergence from a teacher is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceWay {
    /// KL(teacher‖student).
    ForwardKl,
    /// KL(student‖teacher).
    ReverseKl,
}

/// `[[stage]]` of kind `distil`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distil {
    /// The model that is learnt from, with the run's tokenizer: an earlier stage, Hugging Face directory, GGUF file, or
    /// name (`hf://ORG/NAME`).
    pub teacher: String,
    /// "forward_kl" makes the student cover all that the teacher would say, "reverse_kl" say only what it would.
    pub divergence: DivergenceWay,
    /// Of both softmaxes.
    pub temperature: f64,
    /// Share of the cross-entropy with the tokens that came, in the loss.
    pub cross_entropy: f64,
    /// On which answers: "given" takes the further keys of `sft`, "own" those of the student's own answers.
    #[serde(flatten)]
    pub answers: Answers,
}

/// What a student and its teacher are compared on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "answers", rename_all = "snake_case")]
pub enum Answers {
    /// Off-policy: answers that are there.
    Given(Supervised),
    /// On-policy: what the student says as it learns.
    Own(OwnAnswers),
}

/// `[[stage]]` of kind `distil` with `answers = "own"`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OwnAnswers {
    /// What is asked, and how often.
    #[serde(flatten)]
    pub rollouts: Rollouts,
    /// How it is optimized.
    #[serde(flatten)]
    pub optimization: Optimization,
    /// Where the weights come from.
    #[serde(flatten)]
    pub start: Start,
}

/// `[[stage]]` of kind `sample_and_filter`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleAndFilter {
    /// The model that answers: an earlier stage, a Hugging Face directory, or a name (`hf://ORG/NAME`).
    pub from: String,
    /// Prompts.
    pub prompts: u64,
    /// Right answers that are kept of each prompt, the first ones; equal ones are kept once.
    pub keep: usize,
    /// Of the softmax.
    pub temperature: f64,
    /// What is asked and how it is answered.
    #[serde(flatten)]
    pub answering: Answering,
}

/// `[[stage]]` of kind `questions`, of the documents of `data.sources`: see [vertical](vertical.md)
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Questions {
    /// The model that has to answer them with the passage before it: an earlier stage, a Hugging Face directory, or a
    /// name (`hf://ORG/NAME`).
    pub from: String,
    /// Questions that are put to it at most, of all that the documents give.
    pub most: u64,
    /// Share of the sentences whose questions are held out.
    pub held_out: f64,
    /// Share of the answers with the passage that have to be right.
    pub right_with_passage: f64,
    /// Share of the answers without the passage that may be right, of a question that is learnt from; with 1 it is not
    /// asked so. Held-out questions are never chosen by it: what a model fails is no fair measure of that model.
    pub right_without_passage: f64,
    /// Of the softmax.
    pub temperature: f64,
    /// What is asked, "cloze" alone, and how it is answered.
    #[serde(flatten)]
    pub answering: Answering,
}

/// `[[stage]]` of kind `score`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The models that are graded: stages, Hugging Face directories, or names (`hf://ORG/NAME`).
    pub models: Vec<String>,
    /// Held-out items.
    pub items: u64,
    /// Of the softmax.
    pub temperature: f64,
    /// What is asked and how it is answered.
    #[serde(flatten)]
    pub answering: Answering,
}

/// Keys of a stage that change no bit of its result.
pub(super) const FREE: [&str; 7] = [
    "micro_rows",
    "micro_pictures",
    "running",
    "checker_seconds",
    "checkpoint_every",
    "checkpoint_seconds",
    "keep_checkpoints",
];

impl StageSection {
    pub(super) fn resolve(mut s: Section, context: &mut RecipeContext) -> Result<StageSection, RecipeError> {
        let name: String = s.get_or("name", String::new())?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(allowed) || ["tokenizer", "data"].contains(&name.as_str()) {
            return Err(s.wrong("name", format!("must consist of letters, digits, '-', '_', but is '{name}'")));
        }
        if context.earlier.contains(&name) {
            return Err(s.wrong("name", format!("'{name}' is the name of an earlier stage")));
        }
        let precision =
            s.word("precision", &[("f32", Precision::F32), ("bf16", Precision::Bf16), ("f16", Precision::F16)])?;
        let kinds = [
            "pretrain",
            "sft",
            "rl",
            "distil",
            "sample_and_filter",
            "questions",
            "score",
            "vq",
            "janus",
            "draw_rl",
            "draw_score",
        ];
        let kind = s.word("kind", &kinds.map(|kind| (kind, kind)))?;
        let work = match kind {
            "pretrain" => Work::Pretrain(Box::new(Supervised::resolve(&mut s, context, &OF_EXAMPLES)?)),
            "sft" => Work::Sft(Box::new(Supervised::resolve(&mut s, context, &OF_TUNING)?)),
            "rl" => Work::Rl(Box::new(Rl::resolve(&mut s, context)?)),
            "distil" => Work::Distil(Box::new(Distil::resolve(&mut s, context)?)),
            "questions" => Work::Questions(Box::new(Questions::resolve(&mut s, context)?)),
            "score" => Work::Score(Box::new(Score::resolve(&mut s, context)?)),
            "vq" => Work::Vq(Box::new(VqTraining::resolve(&mut s, context)?)),
            "janus" => Work::Janus(Box::new(JanusTraining::resolve(&mut s, context)?)),
            "draw_rl" => Work::DrawRl(Box::new(DrawRl::resolve(&mut s, context)?)),
            "draw_score" => Work::DrawScore(Box::new(DrawScore::resolve(&mut s, context)?)),
            _ => Work::SampleAndFilter(Box::new(SampleAndFilter::resolve(&mut s, context)?)),
        };
        let given = match &work {
            Work::Sft(it) => Some(&it.data),
            Work::Distil(it) => match &it.answers {
                Answers::Given(given) => Some(&given.data),
                Answers::Own(_) => None,
            },
            _ => None,
        };
        if given.is_some_and(|data| data == DOCUMENTS) {
            return Err(
                s.wrong("data", "is \"documents\", which have no answers: they are learnt by kind = \"pretrain\"")
            );
        }
        s.finish(&[])?;
        context.earlier.push(name.clone());
        Ok(StageSection { name, precision, work })
    }

    /// Whether the stage, or one that it begins with, needs `[pretrain]`.
    pub(super) fn names(&self, stage: &str) -> bool {
        let starts = |start: &Start| matches!(start, Start::From { from } if from == stage);
        match &self.work {
            Work::Pretrain(it) | Work::Sft(it) => starts(&it.start),
            Work::Rl(it) => starts(&it.start),
            Work::Distil(it) => it.teacher == stage || starts(it.start()),
            Work::SampleAndFilter(it) => it.from == stage,
            Work::Questions(it) => it.from == stage,
            Work::Score(it) => it.models.iter().any(|model| model == stage),
            // Their models are of pictures.
            Work::Vq(_) | Work::Janus(_) | Work::DrawRl(_) | Work::DrawScore(_) => false,
        }
    }
}

impl Start {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Start, RecipeError> {
        let from: Option<String> = s.get("from")?;
        match (from, s.table("model")?) {
            (Some(_), Some(_)) => Err(s.wrong("from", "and stage.model exclude each other")),
            (Some(from), None) => Ok(Start::From { from: place(from, context) }),
            (None, Some(model)) => {
                let model = ModelSection::resolve(model, context.tokenizer, 1, context.folder)?;
                Ok(Start::New { model: Box::new(model) })
            }
            (None, None) => Ok(Start::From { from: PRETRAIN.into() }),
        }
    }
}

impl Start {
    /// Refuses an adapter of weights that nobody has trained.
    fn check_lora(&self, s: &Section, optimization: &Optimization) -> Result<(), RecipeError> {
        match (self, &optimization.lora) {
            (Start::New { .. }, Some(_)) => {
                Err(s
                    .wrong("lora", "needs weights that are trained, and stage.model is new: name them with stage.from"))
            }
            _ => Ok(()),
        }
    }
}

impl Supervised {
    fn resolve(s: &mut Section, context: &RecipeContext, defaults: &Defaults) -> Result<Supervised, RecipeError> {
        let data: String = s.get_or("data", "traces".into())?;
        let data =
            if [TRACES, DEMONSTRATIONS, DOCUMENTS].contains(&data.as_str()) { data } else { place(data, context) };
        let task: Option<String> = s.get("task")?;
        match (&task, data == DEMONSTRATIONS) {
            (None, true) => return Err(s.wrong("task", "names the environment of \"demonstrations\", and is missing")),
            (Some(_), false) => return Err(s.wrong("task", "is the environment of data = \"demonstrations\" alone")),
            _ => {}
        }
        let task = task.map(|task| TaskName::parse(&task, context.folder.path));
        let trace_quit: Vec<f64> = s.get_or("trace_quit", vec![0.75, 0.45, 0.05])?;
        if trace_quit.is_empty() || !trace_quit.iter().all(|x| PROBABILITY(*x)) {
            return Err(s.wrong("trace_quit", "must be a list of probabilities"));
        }
        let optimization = Optimization::resolve_with_lora(s, defaults)?;
        let start = Start::resolve(s, context)?;
        start.check_lora(s, &optimization)?;
        Ok(Supervised {
            data,
            task,
            epochs: s.get_where("epochs", 1, |n| (1..=1000).contains(&n), "1 to 1000")?,
            batch_tokens: s.get_where("batch_tokens", 4096, |n| n > 0, "1 or more")?,
            traces: s.get_where("traces", 10_000, |n| (1..=100_000_000).contains(&n), "1 to 100000000")?,
            trace_tries: s.get_where("trace_tries", 20, |n| n > 0, "1 or more")?,
            trace_nearest_of: s.get_where("trace_nearest_of", 1, |n| n > 0, "1 or more")?,
            trace_slips: s.get_where("trace_slips", 0.005, PROBABILITY, "between 0 and 1")?,
            trace_luck: s.get_where("trace_luck", 0.25, PROBABILITY, "between 0 and 1")?,
            trace_direct: s.get_where("trace_direct", 0.35, PROBABILITY, "between 0 and 1")?,
            trace_quit,
            optimization,
            start,
        })
    }
}

impl Rl {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Rl, RecipeError> {
        let of = Sampling { prompts: 16, samples: 16 };
        let rollouts = Rollouts::resolve(s, context, &of)?;
        if rollouts.answering.samples < 2 {
            return Err(s.wrong("samples", "must be 2 or more: an answer is compared with others to its prompt"));
        }
        let clip_low = s.get_where("clip_low", 0.2, NOT_NEGATIVE, "0 or more")?;
        let optimization = Optimization::resolve_with_lora(s, &OF_REINFORCEMENT)?;
        optimization.optimizer.check_shards(s, rollouts.answers_of_an_update())?;
        let start = Start::resolve(s, context)?;
        start.check_lora(s, &optimization)?;
        let overlong = s.word(
            "overlong",
            &[("keep", OverlongRule::Keep), ("filter", OverlongRule::Filter), ("penalty", OverlongRule::Penalty)],
        )?;
        let overlong_buffer: Option<usize> = s.get("overlong_buffer")?;
        if overlong == OverlongRule::Penalty && overlong_buffer == Some(0) {
            return Err(s.wrong("overlong_buffer", "must be 1 or more for a penalty, which grows within it"));
        }
        let fifth = (rollouts.answering.max_tokens / 5).max(1);
        Ok(Rl {
            rollouts,
            sampling_rounds: s.get_where("sampling_rounds", 1, |n| n > 0, "1 or more")?,
            objective: PolicyObjective::resolve(s)?,
            advantage_scale: AdvantageScale::resolve(s)?,
            loss_mean: LossMean::resolve(s)?,
            clip_low,
            clip_high: s.get_where("clip_high", clip_low, NOT_NEGATIVE, "0 or more")?,
            kl: s.get_where("kl", 0.0, NOT_NEGATIVE, "0 or more")?,
            reference_every: s.get_or("reference_every", 0)?,
            overlong,
            overlong_buffer: overlong_buffer.unwrap_or(if overlong == OverlongRule::Penalty { fifth } else { 0 }),
            reward_accuracy: s.get_where("reward_accuracy", 1.0, NOT_NEGATIVE, "0 or more")?,
            reward_format: s.get_where("reward_format", 0.0, NOT_NEGATIVE, "0 or more")?,
            reward_language: s.get_where("reward_language", 0.0, NOT_NEGATIVE, "0 or more")?,
            optimization,
            start,
        })
    }
}

impl Distil {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Distil, RecipeError> {
        let teacher: String = s.get_or("teacher", PRETRAIN.into())?;
        Ok(Distil {
            teacher: place(teacher, context),
            divergence: s.word(
                "divergence",
                &[("forward_kl", DivergenceWay::ForwardKl), ("reverse_kl", DivergenceWay::ReverseKl)],
            )?,
            temperature: s.get_where("temperature", 1.0, |x| (0.01..=100.0).contains(&x), "between 0.01 and 100")?,
            cross_entropy: s.get_where("cross_entropy", 0.0, PROBABILITY, "between 0 and 1")?,
            answers: match s.word("answers", &[("given", false), ("own", true)])? {
                false => Answers::Given(Supervised::resolve(s, context, &OF_TUNING)?),
                true => Answers::Own(OwnAnswers::resolve(s, context)?),
            },
        })
    }

    /// Where the student's weights come from.
    pub fn start(&self) -> &Start {
        match &self.answers {
            Answers::Given(Supervised { start, .. }) | Answers::Own(OwnAnswers { start, .. }) => start,
        }
    }
}

impl OwnAnswers {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<OwnAnswers, RecipeError> {
        let rollouts = Rollouts::resolve(s, context, &Sampling { prompts: 64, samples: 1 })?;
        let optimization = Optimization::resolve_with_lora(s, &OF_TUNING)?;
        optimization.optimizer.check_shards(s, rollouts.answers_of_an_update())?;
        let start = Start::resolve(s, context)?;
        start.check_lora(s, &optimization)?;
        Ok(OwnAnswers { rollouts, optimization, start })
    }
}

impl Answering {
    fn resolve(s: &mut Section, context: &RecipeContext, samples: usize) -> Result<Answering, RecipeError> {
        let task: String = s.get_or("task", "countdown".into())?;
        let max_tokens = s.get_where("max_tokens", 256, |n| n > 0, "1 or more")?;
        Ok(Answering {
            task: TaskName::parse(&task, context.folder.path),
            checker_seconds: s.get_where(
                "checker_seconds",
                60.0,
                |x| x > 0.0 && x <= 1e6,
                "greater than 0, up to 1e6",
            )?,
            samples: s.get_where("samples", samples, |n| n > 0, "1 or more")?,
            max_tokens,
            max_turns: s.get_where("max_turns", 8, |n| n > 0, "1 or more")?,
            max_turn_tokens: s.get_where("max_turn_tokens", max_tokens, |n| n > 0, "1 or more")?,
            running: s.get_where("running", 64, |n| n > 0, "1 or more")?,
        })
    }
}

impl Rollouts {
    /// Sequences that an update learns from, at most.
    fn answers_of_an_update(&self) -> u64 {
        (self.prompts * self.answering.samples / self.mini_batches) as u64
    }

    fn resolve(s: &mut Section, context: &RecipeContext, of: &Sampling) -> Result<Rollouts, RecipeError> {
        Ok(Rollouts {
            steps: s.get_where("steps", 100, |n| n > 0, "1 or more")?,
            prompts: s.get_where("prompts", of.prompts, |n| n > 0, "1 or more")?,
            mini_batches: s.get_where("mini_batches", 1, |n| n > 0, "1 or more")?,
            answering: Answering::resolve(s, context, of.samples)?,
        })
    }
}

impl SampleAndFilter {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<SampleAndFilter, RecipeError> {
        let answering = Answering::resolve(s, context, 4)?;
        Ok(SampleAndFilter {
            from: place(s.get_or("from", PRETRAIN.into())?, context),
            prompts: s.get_where("prompts", 1000, |n| n > 0, "1 or more")?,
            keep: s.get_where("keep", answering.samples, |n| n > 0, "1 or more")?,
            temperature: s.get_where("temperature", 1.0, NOT_NEGATIVE, "0 or more")?,
            answering,
        })
    }
}

impl Questions {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Questions, RecipeError> {
        if s.get_or("task", CLOZE.to_string())? != CLOZE {
            return Err(s.wrong("task", format!("must be \"{CLOZE}\" in a stage of kind \"questions\"")));
        }
        let answering = Answering::resolve(s, context, 4)?;
        Ok(Questions {
            from: place(s.get_or("from", PRETRAIN.into())?, context),
            most: s.get_where("most", 2000, |n| n > 0, "1 or more")?,
            held_out: s.get_where("held_out", 0.2, |x| x > 0.0 && x < 1.0, "between 0 and 1")?,
            right_with_passage: s.get_where("right_with_passage", 0.5, PROBABILITY, "between 0 and 1")?,
            right_without_passage: s.get_where("right_without_passage", 1.0, PROBABILITY, "between 0 and 1")?,
            temperature: s.get_where("temperature", 1.0, NOT_NEGATIVE, "0 or more")?,
            answering: Answering { task: TaskName::parse(CLOZE, context.folder.path), ..answering },
        })
    }
}

impl Score {
    fn resolve(s: &mut Section, context: &RecipeContext) -> Result<Score, RecipeError> {
        let models: Vec<String> = s.get_or("models", vec![PRETRAIN.into()])?;
        Ok(Score {
            models: models.into_iter().map(|model| place(model, context)).collect(),
            items: s.get_where("items", 1000, |n| n > 0, "1 or more")?,
            temperature: s.get_where("temperature", 1.0, NOT_NEGATIVE, "0 or more")?,
            answering: Answering::resolve(s, context, 1)?,
        })
    }
}
