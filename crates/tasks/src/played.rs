//! An environment of anyone's own: an executable, or whoever else a [`Counterpart`] reaches, that plays episodes over
//! lines of JSON.
//!
//! ```text
//! → {"id": "1", "hello": {"split": "train"}}
//! ← {"id": "1", "items": 500, "stops": ["</tool>"]}                     both may be left out: no end, no stops
//! → {"id": "2", "episode": "1", "reset": {"item": 17, "seed": 9}}         with a file also "record", its line
//! ← {"id": "2", "prompt": "…"}                                           or "messages"; with a file neither
//! → {"id": "3", "episode": "1", "step": "what the model wrote"}
//! ← {"id": "3", "observation": "…"}                                      or {"role": "user", "content": "…"}
//! ← {"id": "3", "done": true, "reward": 1.0, "correct": true, "reason": "…"}
//! → {"id": "4", "episode": "1", "close": true}                            a limit was reached
//! ← {"id": "4", "reward": 0.0}
//! ```
//! The program is started once; many episodes are open at a time, and it answers line by line. `correct`, if left out,
//! is `reward ≥ 1`. The 1st, 2nd, 4th, 8th, … episode that it ends is played to it once more, with the same item, seed
//! and turns: one whose replies change would make a run that cannot be repeated.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wels_data::Message;

use crate::completion::{AnswerStyle, Format, Thinking};
use crate::environment::{Environment, Episode, Observation, Step};
use crate::lines::Lines;
use crate::listed::Listed;
use crate::task::{Grade, Item, Prompt, Reason, Reference, Reward, Split, Task, TaskError};

/// What messages about its first line call it.
const NAME: &str = "hello";

/// A running environment.
pub struct Played {
    name: String,
    /// Where its questions come from a file.
    listed: Option<Listed>,
    items: Option<u64>,
    stops: Vec<String>,
    running: Mutex<Running>,
}

/// Whoever answers questions, objects of JSON, one after the other.
pub trait Counterpart: Send {
    /// The answer to `question`, without its `id`; messages say that it is about `name`.
    ///
    /// # Errors
    /// What came instead. It is not to be asked again then.
    fn ask(&mut self, question: Value, name: &str) -> Result<Value, String>;
}

impl Counterpart for Lines {
    fn ask(&mut self, question: Value, name: &str) -> Result<Value, String> {
        Lines::ask(self, question, name)
    }
}

/// Asks, and takes the answer for what it is to be.
fn ask<T: DeserializeOwned>(of: &mut dyn Counterpart, question: Value, name: &str) -> Result<T, String> {
    let said = of.ask(question, name)?;
    let shown: String = said.to_string().chars().take(80).collect();
    serde_json::from_value(said).map_err(|error| format!("answered {name} with `{shown}`: {error}"))
}

struct Running {
    counterpart: Box<dyn Counterpart>,
    /// Episodes that were begun.
    begun: u64,
    /// Episodes that it has ended.
    ended: u64,
    /// Once it has failed, its answers could belong to other questions.
    failed: bool,
}

#[derive(Deserialize)]
struct Hello {
    #[serde(default)]
    items: Option<u64>,
    #[serde(default)]
    stops: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Reset {
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Seen {
    Text(String),
    Message { role: String, content: String },
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Stepped {
    observation: Option<Seen>,
    done: bool,
    reward: Option<f64>,
    correct: Option<bool>,
    reason: String,
}

impl Played {
    /// Starts `program`, which has `timeout` for each line.
    ///
    /// # Errors
    /// [`TaskError::Environment`] if it cannot be started, or does not say hello.
    pub fn start(program: &Path, listed: Option<Listed>, split: Split, timeout: Duration) -> Result<Played, TaskError> {
        let name = program.display().to_string();
        let fail = |reason: String| TaskError::Environment { name: name.clone(), reason };
        let lines = Lines::start(program, &[], timeout).map_err(|error| fail(format!("cannot be started: {error}")))?;
        Played::over(name.clone(), Box::new(lines), listed, split)
    }

    /// The environment that `counterpart` reaches, which messages call `name`.
    ///
    /// # Errors
    /// [`TaskError::Environment`] if it does not say hello.
    pub fn over(
        name: String,
        counterpart: Box<dyn Counterpart>,
        listed: Option<Listed>,
        split: Split,
    ) -> Result<Played, TaskError> {
        let fail = |reason: String| TaskError::Environment { name: name.clone(), reason };
        let mut running = Running { counterpart, begun: 0, ended: 0, failed: false };
        let split = if split == Split::Train { "train" } else { "held_out" };
        let hello: Hello = ask(&mut *running.counterpart, json!({"hello": {"split": split}}), NAME).map_err(fail)?;
        if hello.items == Some(0) && listed.is_none() {
            return Err(TaskError::Environment { name, reason: format!("has no item to {split}") });
        }
        let items = listed.as_ref().map_or(hello.items, Task::len);
        Ok(Played { name, listed, items, stops: hello.stops, running: Mutex::new(running) })
    }

    /// Does `work` with the program, which is not asked again once that fails.
    fn with<T>(&self, work: impl FnOnce(&mut Running) -> Result<T, String>) -> Result<T, TaskError> {
        let fail = |reason: String| TaskError::Environment { name: self.name.clone(), reason };
        let mut running = self.running.lock().map_err(|_| fail("was interrupted".to_owned()))?;
        if running.failed {
            return Err(fail("failed before".to_owned()));
        }
        running.failed = true;
        let done = work(&mut running).map_err(fail)?;
        running.failed = false;
        Ok(done)
    }

    /// What an item is to the program.
    fn reference(item: &Item) -> Result<&Value, TaskError> {
        match &item.reference {
            Reference::Record(record) => Ok(record),
            _ => Err(TaskError::ForeignItem { task: "environment".to_owned(), item: item.id.clone() }),
        }
    }
}

impl Running {
    /// Begins an episode: its number, and what the program says.
    fn reset(&mut self, reference: &Value, seed: u64, name: &str) -> Result<(String, Reset), String> {
        self.begun += 1;
        let episode = self.begun.to_string();
        let mut reset = json!({"seed": seed});
        match reference {
            Value::Number(item) => reset["item"] = Value::Number(item.clone()),
            record => reset["record"] = record.clone(),
        }
        let said = ask(&mut *self.counterpart, json!({"episode": episode, "reset": reset}), name)?;
        Ok((episode, said))
    }

    fn step(&mut self, episode: &str, turn: &str, name: &str) -> Result<Stepped, String> {
        let stepped: Stepped = ask(&mut *self.counterpart, json!({"episode": episode, "step": turn}), name)?;
        match (&stepped.observation, stepped.done, stepped.reward) {
            (_, true, None) => Err(format!("ended an episode of {name} without a reward")),
            (None, false, _) => Err(format!("neither ended an episode of {name} nor said anything")),
            _ => Ok(stepped),
        }
    }

    fn close(&mut self, episode: &str, name: &str) -> Result<Stepped, String> {
        ask(&mut *self.counterpart, json!({"episode": episode, "close": true}), name)
    }
}

impl Task for Played {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        self.items
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        if let Some(listed) = &self.listed {
            return listed.item(index);
        }
        if let Some(len) = self.items.filter(|len| index >= *len) {
            return Err(TaskError::NoItem { task: self.name.clone(), len, index });
        }
        let (id, reference) = (format!("item-{index}"), json!(index));
        let said = self.with(|running| {
            let (episode, said) = running.reset(&reference, 0, &id)?;
            running.close(&episode, &id)?;
            Ok(said)
        })?;
        let prompt = match said {
            Reset { messages: Some(messages), .. } => Prompt::Messages(messages),
            Reset { prompt: Some(prompt), .. } => Prompt::Text(prompt),
            Reset { .. } => {
                let reason = format!("gave neither prompt nor messages for {id}, and there is no file of questions");
                return Err(TaskError::Environment { name: self.name.clone(), reason });
            }
        };
        Ok(Item { id, prompt, reference: Reference::Record(reference) })
    }

    /// Of no matter: the program grades.
    fn format(&self) -> Format {
        Format { thinking: Thinking::Free, answer: AnswerStyle::Whole }
    }

    fn check(&self, _: &Item, _: &str) -> Result<Reason, TaskError> {
        Ok(Reason::Malformed("an answer without its episode".to_owned()))
    }

    fn environment(&self) -> Option<&dyn Environment> {
        Some(self)
    }
}

impl Environment for Played {
    fn stops(&self) -> Vec<String> {
        self.stops.clone()
    }

    fn begin<'a>(&'a self, item: &'a Item, seed: u64) -> Result<Box<dyn Episode + 'a>, TaskError> {
        let (reference, name) = (Played::reference(item)?, &item.id);
        let episode = self.with(|running| {
            let (episode, said) = running.reset(reference, seed, name)?;
            let same = match (&said, &item.prompt) {
                (Reset { messages: Some(messages), .. }, Prompt::Messages(asked)) => messages == asked,
                (Reset { messages: None, prompt: Some(prompt) }, Prompt::Text(asked)) => prompt == asked,
                (Reset { messages: None, prompt: None }, _) => true,
                _ => false,
            };
            // What is asked of a file's question is the style's to say.
            match same || self.listed.is_some() {
                true => Ok(episode),
                false => Err(format!("gave another prompt for {name} than before: it must not depend on the seed")),
            }
        })?;
        Ok(Box::new(PlayedEpisode { environment: self, item, reference, seed, episode, turns: Vec::new() }))
    }
}

/// An episode that the program plays.
struct PlayedEpisode<'a> {
    environment: &'a Played,
    item: &'a Item,
    reference: &'a Value,
    seed: u64,
    episode: String,
    /// What the model has said, and what came of it.
    turns: Vec<(String, Stepped)>,
}

impl PlayedEpisode<'_> {
    /// Counts the episode, and plays it again where its turn has come.
    fn check(&self, running: &mut Running) -> Result<(), String> {
        running.ended += 1;
        if !running.ended.is_power_of_two() {
            return Ok(());
        }
        let name = &self.item.id;
        let (episode, _) = running.reset(self.reference, self.seed, name)?;
        for (turn, said) in &self.turns {
            let again = running.step(&episode, turn, name)?;
            if again != *said {
                return Err(format!("said two things to the same turns of {name}, {said:?} and {again:?}"));
            }
        }
        Ok(())
    }
}

impl Episode for PlayedEpisode<'_> {
    fn step(&mut self, turn: &str) -> Result<Step, TaskError> {
        let stepped = self.environment.with(|running| running.step(&self.episode, turn, &self.item.id))?;
        self.turns.push((turn.to_owned(), stepped.clone()));
        if stepped.done {
            self.environment.with(|running| self.check(running))?;
            return Ok(Step::Done(reward(stepped)));
        }
        let observation = match stepped.observation.expect("looked at by Running::step") {
            Seen::Text(text) => Observation::Text(text),
            Seen::Message { role, content } => Observation::Message { role, text: content },
        };
        Ok(Step::Observation(observation))
    }

    fn cut(&mut self, _: &str) -> Result<Reward, TaskError> {
        let closed = self.environment.with(|running| running.close(&self.episode, &self.item.id))?;
        Ok(reward(Stepped { reason: "cut at a limit".to_owned(), correct: Some(false), ..closed }))
    }
}

fn reward(of: Stepped) -> Reward {
    let worth = of.reward.unwrap_or(0.0);
    let correct = of.correct.unwrap_or(worth >= 1.0);
    let reason = match (correct, of.reason) {
        (true, _) => Reason::Right,
        (false, reason) if reason.is_empty() => Reason::Wrong(format!("its reward is {worth}")),
        (false, reason) => Reason::Wrong(reason),
    };
    Reward { accuracy: worth, format: 1.0, language: None, fault: None, grade: Grade { correct, answer: None, reason } }
}
