//! Environments: items that are played in turns. The model speaks, the environment answers with what a tool or a
//! counterpart says, the model speaks again, until the episode is over and rewarded.
//!
//! ```text
//! begin       item × seed      → an episode, whose prompt is the item's
//! step        the model's turn → an observation, or the end with its reward
//! cut         a limit          → the end with its reward
//! ```
//! An episode is a function of item, seed and turns. Its observations stand in the context behind the turns, token for
//! token, and are never learnt from.

use serde::{Deserialize, Serialize};

use crate::task::{Item, Prompt, Reward, Task, TaskError};

/// A task that is played.
pub trait Environment: Task {
    /// Texts that end a turn of the model as soon as they are complete; the token that ends an answer does so too.
    fn stops(&self) -> Vec<String>;

    /// Begins an episode of `item`.
    fn begin<'a>(&'a self, item: &'a Item, seed: u64) -> Result<Box<dyn Episode + 'a>, TaskError>;

    /// Whether its steps take their time, so that those of several episodes are better taken at once.
    fn is_slow(&self) -> bool {
        false
    }

    /// A played episode to learn from, the `index`-th, often with mistakes on purpose.
    ///
    /// # Errors
    /// [`TaskError::Options`] where the environment shows none.
    fn demonstration(&self, _index: u64, _options: &DemonstrationOptions) -> Result<Demonstration, TaskError> {
        let reason = "it has no demonstrations".to_owned();
        Err(TaskError::Options { task: "demonstrations", reason: format!("{}: {reason}", self.name()) })
    }
}

/// An item that is being played.
pub trait Episode: Send {
    /// What comes of the model's next turn.
    fn step(&mut self, turn: &str) -> Result<Step, TaskError>;

    /// The end because of a limit, after a turn that may be unfinished.
    fn cut(&mut self, turn: &str) -> Result<Reward, TaskError>;
}

/// What comes of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The environment's turn, and the episode goes on.
    Observation(Observation),
    /// The episode is over.
    Done(Reward),
}

/// What an environment says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observation {
    /// Text that stands right behind the model's turn, which goes on behind it.
    Text(String),
    /// A message of this role, behind which the model is asked anew, as its chat template has it.
    Message {
        /// `user`, or `tool`.
        role: String,
        text: String,
    },
}

/// How demonstrations are played.
#[derive(Clone, Debug, PartialEq)]
pub struct DemonstrationOptions {
    /// Probability that a call is wrong.
    pub slips: f64,
    /// Probability of an answer without a call, which is a guess.
    pub direct: f64,
    /// Each demonstration takes one of these as its probability of giving up after a call that is not the last.
    pub quit: Vec<f64>,
    /// Of the demonstrations; apart from the seed of the items.
    pub seed: u64,
}

/// A played episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Demonstration {
    pub prompt: Prompt,
    /// In turn, the first the model's.
    pub turns: Vec<Said>,
    /// Whether the last one is right.
    pub correct: bool,
}

impl Demonstration {
    /// Prompt and turns as one text.
    pub fn text(&self) -> String {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => messages.iter().filter_map(|message| message.content.as_str()).collect(),
        };
        let said = self.turns.iter().map(|said| match said {
            Said::Model(text) | Said::Environment(Observation::Text(text) | Observation::Message { text, .. }) => text,
        });
        format!("{prompt}\n{}", said.map(String::as_str).collect::<String>())
    }
}

/// A turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Model(String),
    Environment(Observation),
}
