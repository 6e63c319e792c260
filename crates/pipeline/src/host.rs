//! What a run needs of the program around it: somebody who hears what happens and is shown results, who says when to
//! stop, and a clock.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wels_device::Device;
use wels_runs::account::Comparison;
use wels_runs::ledger::Totals;
use wels_runs::plan::RunPlan;
use wels_runs::recipe::{DrawScore, Score};

/// The program around a run.
pub trait Host {
    /// Hears what happens.
    fn event(&mut self, event: Event<'_>);

    /// Is shown a result.
    ///
    /// # Errors
    /// When results cannot be passed on; the run then ends with this error.
    fn result(&mut self, result: Outcome<'_>) -> io::Result<()>;

    /// Whether the run should save what it has and leave.
    fn stop_asked(&self) -> bool;

    /// The time since any moment in the past, from a clock that nobody sets.
    fn clock(&self) -> Duration;
}

/// A host to whom nothing is told.
pub(crate) struct Silent;

impl Host for Silent {
    fn event(&mut self, _event: Event<'_>) {}

    fn result(&mut self, _result: Outcome<'_>) -> io::Result<()> {
        Ok(())
    }

    fn stop_asked(&self) -> bool {
        false
    }

    fn clock(&self) -> Duration {
        Duration::ZERO
    }
}

/// What happens in a run. Words are for people, and no interface.
pub enum Event<'a> {
    /// Work on a run begins, in this folder.
    Run(&'a Path),
    /// What is planned, all that can be known of it, and what will compute it.
    Plan { plan: &'a RunPlan, device: &'a dyn Device },
    /// A few steps of each stage are measured, which takes a while.
    Measuring,
    /// Something that people should know, and that stops nothing.
    Note(&'a str),
    /// Work that has a length begins at `done` of `total` units; all up to [`Event::Ended`] is about it.
    Began { label: &'static str, unit: &'static str, done: u64, total: Option<u64> },
    /// How far it is. The words cost something, and need not be asked for.
    Reached { done: u64, words: &'a dyn Fn() -> String },
    /// Something that should be heard at once.
    Remark(&'a str),
    /// It is over; with a last word.
    Ended(&'a str),
    /// A stage learns from so many examples.
    Examples { stage: &'a str, count: usize },
    /// A stage is over for now: its plan beside what it took.
    Account { stage: &'a str, comparison: &'a Comparison },
    /// Where the last model is.
    Model(&'a Path),
    /// Where the page about the run is.
    Report(&'a Path),
}

/// What a run was asked for.
pub enum Outcome<'a> {
    /// A prompt, and how the model went on.
    Sample { prompt: &'a str, text: &'a str },
    /// Models graded on held-out items, and what the run's stages took so far.
    Scores { of: &'a Score, models: &'a [Graded], took: Vec<(&'a str, Totals)>, usd_per_hour: f64 },
    /// Models graded on what they draw and see.
    Drawn { of: &'a DrawScore, models: &'a [DrawGraded] },
}

/// How many of some were right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub right: usize,
    pub of: usize,
}

impl Share {
    /// Of verdicts.
    pub fn of(verdicts: impl IntoIterator<Item = bool>) -> Share {
        let count = |share: Share, right| Share { right: share.right + usize::from(right), of: share.of + 1 };
        verdicts.into_iter().fold(Share::default(), count)
    }

    /// From 0 to 1; 0 of none.
    pub fn share(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }
}

/// How a model that draws and sees was graded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DrawGraded {
    /// As the recipe names it.
    pub model: String,
    /// Without the VQ tokenizer.
    pub parameters: u64,
    /// Pictures to captions like those of training, by GenEval's kinds.
    pub seen: BTreeMap<String, Share>,
    /// Pictures to captions that training never had.
    pub unseen: BTreeMap<String, Share>,
    /// How likely chance alone is to part this model's verdicts on unseen captions from the first model's as far,
    /// caption by caption; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// Questions about held-out pictures, by what they are about.
    pub answers: BTreeMap<String, Share>,
    /// Held-out pictures, made codes and pictures again.
    pub reconstructed: Share,
    /// Of these, in dB.
    pub psnr: f64,
    /// Codes that these have.
    pub codes_used: usize,
    pub codes: usize,
}

impl DrawGraded {
    /// The mean over kinds of captions.
    pub fn seen_share(&self) -> f64 {
        mean(&self.seen)
    }

    /// Likewise.
    pub fn unseen_share(&self) -> f64 {
        mean(&self.unseen)
    }

    /// Of all questions.
    pub fn all_answers(&self) -> Share {
        let add = |sum: Share, it: &Share| Share { right: sum.right + it.right, of: sum.of + it.of };
        self.answers.values().fold(Share::default(), add)
    }
}

fn mean(shares: &BTreeMap<String, Share>) -> f64 {
    shares.values().map(|share| share.share()).sum::<f64>() / shares.len().max(1) as f64
}

/// How a model was graded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Graded {
    /// As the recipe names it.
    pub model: String,
    /// Without layers of multi-token prediction.
    pub parameters: u64,
    /// Those that a token uses.
    pub parameters_activated: u64,
    pub answers: usize,
    /// Share of answers that are right.
    pub accuracy: f64,
    /// Of `accuracy`, with the answers to one item as one observation.
    pub standard_error: f64,
    /// Mean tokens of an answer.
    pub length: f64,
    /// Share of answers that ran into the limit.
    pub truncated: f64,
    /// How likely chance alone is to part this model's answers from the first model's as far, item by item; none for
    /// the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// Operations of a sampled token.
    #[serde(default)]
    pub flops_per_token: u64,
}
