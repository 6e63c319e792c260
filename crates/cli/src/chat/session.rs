//! A conversation with a model.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::chat::{ChatTemplate, Message, RenderOptions};
use wels_data::tokenizer::Tokenizer;
use wels_engine::{Engine, Event, FinishReason, LoadedModel, Options, Request, RequestError, Sampling, Usage};
use wels_model::model::Model;
use wels_model::params::Params;
use wels_pipeline::refusal::refuse;
use wels_runs::files;

pub use super::thinking::Part;
use super::thinking::Splitter;

/// How answers are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

/// A model and what was said so far.
pub struct Session {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    /// Without one, each question is a text to be continued.
    template: Option<ChatTemplate>,
    eos: Vec<u32>,
    system: Option<String>,
    messages: Vec<Message>,
    /// May be changed between questions.
    pub settings: Settings,
    /// How often the last question was asked again: each time draws other random numbers.
    retries: u32,
    thinking: String,
}

/// An answer's figures.
pub struct Answer {
    reason: FinishReason,
    usage: Usage,
    seconds: f64,
    /// From the question to the first token.
    first_token_seconds: f64,
}

/// What `/save` writes.
#[derive(Serialize, Deserialize)]
struct Saved {
    messages: Vec<Message>,
}

impl Session {
    /// Nothing was said so far.
    pub fn new(
        model: Model,
        params: Params,
        tokenizer: Option<Tokenizer>,
        options: Options,
        settings: Settings,
    ) -> Result<Session> {
        let none = || refuse("the model has no tokenizer", "put its tokenizer.json beside the weights");
        let tokenizer = Arc::new(tokenizer.ok_or_else(none)?);
        let template = ChatTemplate::of(&tokenizer)?;
        let eos = model.config().eos_ids.iter().copied().chain(tokenizer.special().eos).collect();
        let tokenizer_too = Some(Arc::clone(&tokenizer));
        let loaded = LoadedModel { model: Arc::new(model), params: Arc::new(params), tokenizer: tokenizer_too };
        let engine = Engine::new(loaded, options)?;
        let messages = Vec::new();
        let (system, thinking) = (None, String::new());
        Ok(Session { engine, tokenizer, template, eos, system, messages, settings, retries: 0, thinking })
    }

    /// Whether it was trained to talk; else questions are continued like any text.
    pub fn can_chat(&self) -> bool {
        self.template.is_some()
    }

    /// What the model is told before the conversation.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Forgets what was said.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.thinking.clear();
    }

    /// The thinking before the last answer.
    pub fn thinking(&self) -> &str {
        &self.thinking
    }

    /// Asks, and passes the answer on as it comes. `stop` may end it. A question that fails is forgotten.
    pub fn ask(
        &mut self,
        question: &str,
        stop: &dyn Fn() -> bool,
        show: &mut dyn FnMut(Part) -> std::io::Result<()>,
    ) -> Result<Answer> {
        self.messages.push(Message::new("user", question));
        self.retries = 0;
        let answer = self.answer(stop, show);
        if answer.is_err() {
            self.messages.pop();
        }
        answer
    }

    /// Asks the last question again.
    pub fn retry(
        &mut self,
        stop: &dyn Fn() -> bool,
        show: &mut dyn FnMut(Part) -> std::io::Result<()>,
    ) -> Result<Answer> {
        let old = self.messages.pop_if(|last| last.role == "assistant");
        if self.messages.is_empty() {
            return Err(refuse("there is no question to ask again", "ask one"));
        }
        self.retries += 1;
        let answer = self.answer(stop, show);
        if answer.is_err() {
            self.messages.extend(old);
        }
        answer
    }

    fn answer(&mut self, stop: &dyn Fn() -> bool, show: &mut dyn FnMut(Part) -> std::io::Result<()>) -> Result<Answer> {
        let (prompt, text) = self.prompt()?;
        let request = Request {
            sampling: self.settings.sampling.clone(),
            choice: self.retries,
            stop_tokens: self.eos.clone(),
            ..Request::new(prompt, self.settings.max_tokens)
        };
        let begin = Instant::now();
        let id = self.engine.enqueue(request).map_err(too_long)?;
        let (mut answer, mut thinking) = (String::new(), String::new());
        let mut keep = |part: Part| {
            match part {
                Part::Thinking(text) => thinking.push_str(text),
                Part::Answer(text) => answer.push_str(text),
            }
            show(part)
        };
        let mut splitter = Splitter::new(&text);
        let mut first_token_seconds = 0.0;
        let mut shown = Ok(());
        let end = loop {
            if stop() || shown.is_err() {
                self.engine.cancel(id);
            }
            let mut end = None;
            for event in self.engine.step() {
                match event {
                    Event::Token(token) => {
                        if first_token_seconds == 0.0 {
                            first_token_seconds = begin.elapsed().as_secs_f64();
                        }
                        shown = shown.and_then(|()| splitter.push(&token.text, &mut keep));
                    }
                    Event::Embedding { .. } => {} // nobody asks for one here
                    Event::Finished(finished) => end = Some(finished),
                }
            }
            if let Some(end) = end {
                break end;
            }
        };
        shown.and_then(|()| splitter.finish(&mut keep))?;
        if end.reason == FinishReason::Error {
            return Err(refuse("the model's logits are not finite", "its weights are damaged"));
        }
        self.messages.push(Message::new("assistant", &answer));
        self.thinking = thinking;
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Answer { reason: end.reason, usage: end.usage, seconds, first_token_seconds })
    }

    /// The tokens that the model continues, and their text.
    fn prompt(&self) -> Result<(Vec<u32>, String)> {
        let Some(template) = &self.template else {
            let question = self.messages.last().and_then(|message| message.content.as_str()).unwrap_or_default();
            let mut ids: Vec<u32> = self.tokenizer.special().bos.into_iter().collect();
            ids.extend(self.tokenizer.encode_ordinary(question)?);
            return Ok((ids, question.to_owned()));
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let options = RenderOptions { add_generation_prompt: true, now_unix_s: now, ..RenderOptions::default() };
        let system = self.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let text = template.render(&messages, &options)?;
        Ok((self.tokenizer.encode(&text)?, text))
    }

    /// Writes the conversation to `path`, as OpenAI's `messages`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let saved = Saved { messages: system.chain(self.messages.iter().cloned()).collect() };
        let text = serde_json::to_string_pretty(&saved).expect("plain data");
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
        self.thinking.clear();
        Ok(self.messages.len())
    }
}

fn too_long(refusal: RequestError) -> anyhow::Error {
    let hint = match refusal {
        RequestError::PromptTooLong { .. } => "forget what was said with /clear, or start with a larger --context",
        _ => "change the setting",
    };
    refuse(refusal.to_string(), hint)
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { prompt, cached, generated, drafted, accepted } = self.usage;
        let rest = self.seconds - self.first_token_seconds;
        write!(f, "{generated} tokens, {:.1} tokens/s", generated.saturating_sub(1) as f64 / rest.max(1e-9))?;
        write!(f, "; first after {:.2} s, {cached} of {prompt} before it from the cache", self.first_token_seconds)?;
        if drafted > 0 {
            write!(f, "; {accepted} of {drafted} drafted tokens accepted")?;
        }
        match self.reason {
            FinishReason::Length => write!(f, "; cut at the limit"),
            FinishReason::Cancelled => write!(f, "; stopped"),
            _ => Ok(()),
        }
    }
}
