//! A conversation with a model that may have tools.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wels_agent::{Agent, End, Host, Limits, ModelError};
use wels_data::chat::Message;
use wels_engine::image;
use wels_pipeline::refusal::refuse;
use wels_runs::files;

use super::answers::{Answers, Figures};
use crate::janus::WHICH;

/// Bytes of a picture's file.
const PICTURE_BYTES_MAX: u64 = 64 << 20;

/// A model, tools, and what was said so far.
pub struct Session {
    pub model: Answers,
    pub agent: Agent,
    /// Of one question.
    pub limits: Limits,
    /// Whether the first answer to a question has to call a tool.
    pub must_call: bool,
    system: Option<String>,
    messages: Vec<Message>,
    /// Pictures that the next question is about, as data: URLs.
    attached: Vec<String>,
}

/// What `/save` writes.
#[derive(Serialize, Deserialize)]
struct Saved {
    messages: Vec<Message>,
}

impl Session {
    /// Nothing was said so far.
    pub fn new(model: Answers, agent: Agent, limits: Limits) -> Session {
        Session { model, agent, limits, must_call: false, system: None, messages: Vec::new(), attached: Vec::new() }
    }

    /// What the model is told before the conversation.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Has the next question be about a picture, too.
    pub fn attach(&mut self, file: &Path) -> Result<()> {
        if !self.model.sees() {
            return Err(refuse("the model is a model of text, and sees no pictures", WHICH));
        }
        let cannot = || format!("cannot show {}", file.display());
        let bytes = files::read(file, PICTURE_BYTES_MAX).with_context(cannot)?;
        // What is no picture is said before there is a question.
        image::decode(&bytes).with_context(cannot)?;
        self.attached.push(format!("data:;base64,{}", STANDARD.encode(&bytes)));
        Ok(())
    }

    /// Forgets what was said.
    pub fn clear(&mut self) {
        self.attached.clear();
        self.messages.clear();
        self.model.thinking.clear();
    }

    /// What was said and done, the system's words first.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// What the answers to the last question took.
    pub fn figures(&self) -> &Figures {
        &self.model.figures
    }

    /// Asks, and shows the host what happens. A question that fails is forgotten.
    pub fn ask(&mut self, question: &str, host: &mut dyn Host) -> Result<End> {
        let before = self.messages.len();
        let attached = std::mem::take(&mut self.attached);
        self.messages.push(about(&attached, question));
        self.model.retries = 0;
        let end = self.answer(host);
        if end.is_err() {
            self.messages.truncate(before);
            self.attached = attached;
        }
        end
    }

    /// Asks the last question again.
    pub fn retry(&mut self, host: &mut dyn Host) -> Result<End> {
        let Some(question) = self.messages.iter().rposition(|message| message.role == "user") else {
            return Err(refuse("there is no question to ask again", "ask one"));
        };
        let old = self.messages.split_off(question + 1);
        self.model.retries += 1;
        let end = self.answer(host);
        if end.is_err() {
            self.messages.truncate(question + 1);
            self.messages.extend(old);
        }
        end
    }

    fn answer(&mut self, host: &mut dyn Host) -> Result<End> {
        self.model.thinking.clear();
        self.model.figures = Figures::default();
        let mut messages = self.messages();
        let end = self.agent.run(&mut self.model, &mut messages, self.must_call, self.limits, host);
        let system = usize::from(self.system.is_some());
        self.messages = messages.split_off(system);
        end.map_err(|error| match error {
            ModelError::Other(error) => error,
            full @ ModelError::Full { .. } => refuse(
                full.to_string(),
                "forget what was said with /new, or start with a larger --context; results of tools are short already",
            ),
        })
    }

    /// Writes the conversation to `path`, as OpenAI's `messages`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&Saved { messages: self.messages() }).expect("plain data");
        let cannot = || format!("cannot save to {}", path.display());
        let path = std::path::absolute(path).with_context(cannot)?;
        files::write_atomically(&path, text.as_bytes()).with_context(cannot)
    }

    /// Goes on from what [`Session::save`] wrote. How many messages there are.
    pub fn load(&mut self, path: &Path) -> Result<usize> {
        let cannot = || format!("cannot load {}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        let Saved { mut messages } = serde_json::from_str(&text).with_context(cannot)?;
        let system = messages.first().filter(|first| first.role == "system").and_then(|first| first.content.as_str());
        self.system = system.map(str::to_owned);
        if self.system.is_some() {
            messages.remove(0);
        }
        self.messages = messages;
        self.model.thinking.clear();
        Ok(self.messages.len())
    }
}

/// A question in OpenAI's form, pictures first.
fn about(pictures: &[String], question: &str) -> Message {
    if pictures.is_empty() {
        return Message::new("user", question);
    }
    let picture = |url| json!({"type": "image_url", "image_url": {"url": url}});
    let text = json!({"type": "text", "text": question});
    let content = pictures.iter().map(picture).chain([text]).collect();
    Message { content, ..Message::new("user", "") }
}
