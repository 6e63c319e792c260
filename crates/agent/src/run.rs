//! The loop: the model answers, the calls of its answer are made, it reads their results, until an answer calls
//! nothing.
//!
//! Calls are made one after another, in the order of the answer, and named by a counter of the conversation: the same
//! answers and results give the same messages.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use wels_data::Message;

use crate::tool::{Definition, Effect, Outcome, Stop, Toolbox, listed, shortened};

/// What an old result is shortened to where the context is full.
const OLD_RESULT_BYTES: usize = 256;
/// Calls of one answer that are made.
const CALLS_MAX: usize = 32;

/// A call as a model wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// JSON, an object.
    pub arguments: String,
}

/// Why a model's answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyEnd {
    /// The model ended it.
    Stop,
    /// It has all the tokens that it may have.
    Length,
    /// The user stopped it.
    Stopped,
}

/// An answer of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<Call>,
    pub end: ReplyEnd,
    /// What it took, its thinking and calls among it.
    pub tokens: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError<E> {
    /// The conversation has more tokens than the context.
    #[error("the conversation does not fit: the context holds {context} tokens, the answer's among them")]
    Full { context: usize },
    /// Everything else.
    #[error(transparent)]
    Other(E),
}

/// What answers are made from.
pub struct Context<'a> {
    pub messages: &'a [Message],
    /// That may be called.
    pub tools: &'a [Definition],
    /// Whether the answer has to call one.
    pub must_call: bool,
    /// The most tokens of the answer, if there is less left than the model's own limit.
    pub tokens_max: Option<usize>,
}

/// What answers: an engine, or a script in tests.
pub trait Model {
    /// What goes wrong that is not the loop's to mend.
    type Error;

    /// The next message of the assistant, passed on to the host as it comes.
    fn answer(&mut self, context: &Context, host: &mut dyn Host) -> Result<Reply, ModelError<Self::Error>>;
}

/// Whether a call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    Once,
    /// And all further ones of this tool.
    Always,
    /// It is not, and the model is told why.
    Refused(String),
    /// Neither it nor anything else.
    Quit,
}

/// Something to show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A piece of thinking.
    Reasoning(&'a str),
    /// A piece of the answer.
    Content(&'a str),
    /// The answer has ended.
    Answered(&'a Reply),
    /// A call that is about to be made or asked for; `preview`: what it would do, in lines.
    Calling { name: &'a str, arguments: &'a Value, preview: &'a str },
    /// How a call ended.
    Called { name: &'a str, outcome: &'a Outcome },
    /// Old results were shortened, so many, because the context is full.
    Shortened(usize),
}

/// Who is shown what happens, and allows it.
pub trait Host: Sync {
    fn show(&mut self, event: Event);

    /// Asked for a call that was shown.
    fn permit(&mut self, name: &str) -> Permission;

    /// Whether the user wants the answer or the call to end.
    fn is_stopped(&self) -> bool;
}

/// What a task may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Answers.
    pub turns: usize,
    /// Tokens of all answers together.
    pub tokens: Option<usize>,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last answer calls nothing.
    Answered,
    /// The last answer was cut at the model's limit.
    Cut,
    /// All answers that were allowed were given, and the last one calls tools.
    Turns,
    /// The tokens of all answers are used up.
    Tokens,
    /// By the user.
    Stopped,
}

/// Tools, and what may be done with them.
pub struct Agent {
    pub tools: Toolbox,
    /// Tools whose calls are not asked for, besides those that read.
    allowed: BTreeSet<String>,
    allows_all: bool,
    calls: usize,
}

impl Agent {
    /// `allowed`: names of tools; `all` for all of them.
    ///
    /// # Errors
    /// The first name that no tool has.
    pub fn new(tools: Toolbox, allowed: &[String]) -> Result<Agent, String> {
        let known = |name: &String| name == "all" || tools.names().any(|tool| tool == name);
        if let Some(unknown) = allowed.iter().find(|name| !known(name)) {
            return Err(unknown.clone());
        }
        let allows_all = allowed.iter().any(|name| name == "all");
        Ok(Agent { tools, allowed: allowed.iter().cloned().collect(), allows_all, calls: 0 })
    }

    /// Goes on with a conversation until the model has answered it; what is said and done is appended to `messages`.
    /// `must_call`: the first answer has to call a tool.
    ///
    /// # Errors
    /// The model's. What was done before stays in `messages`.
    pub fn run<M: Model>(
        &mut self,
        model: &mut M,
        messages: &mut Vec<Message>,
        must_call: bool,
        limits: Limits,
        host: &mut dyn Host,
    ) -> Result<End, ModelError<M::Error>> {
        let mut left = limits.tokens;
        for turn in 0..limits.turns {
            if left == Some(0) {
                return Ok(End::Tokens);
            }
            let must_call = must_call && turn == 0 && !self.tools.is_empty();
            let reply = self.answer(model, messages, must_call, left, host)?;
            left = left.map(|left| left.saturating_sub(reply.tokens));
            host.show(Event::Answered(&reply));
            let names = self.record(&reply, messages);
            match reply.end {
                ReplyEnd::Stopped => return Ok(self.leave(&reply.calls, &names, messages)),
                ReplyEnd::Length if left == Some(0) => {
                    self.leave(&reply.calls, &names, messages);
                    return Ok(End::Tokens);
                }
                ReplyEnd::Length if reply.calls.is_empty() => return Ok(End::Cut),
                _ if reply.calls.is_empty() => return Ok(End::Answered),
                _ => {}
            }
            if !self.make_all(&reply.calls, &names, messages, host) {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Turns)
    }

    /// An answer; where the context is full, old results are shortened first.
    fn answer<M: Model>(
        &mut self,
        model: &mut M,
        messages: &mut [Message],
        must_call: bool,
        tokens_max: Option<usize>,
        host: &mut dyn Host,
    ) -> Result<Reply, ModelError<M::Error>> {
        let tools = self.tools.definitions();
        loop {
            let context = Context { messages, tools: &tools, must_call, tokens_max };
            match model.answer(&context, host) {
                Err(full @ ModelError::Full { .. }) => match shorten_results(messages) {
                    0 => return Err(full),
                    count => host.show(Event::Shortened(count)),
                },
                result => return result,
            }
        }
    }

    /// Appends an answer to the conversation; the names of its calls.
    fn record(&mut self, reply: &Reply, messages: &mut Vec<Message>) -> Vec<String> {
        let mut message = Message::new("assistant", &reply.content);
        let mut names = Vec::new();
        if !reply.calls.is_empty() {
            let mut entries = Vec::new();
            for call in &reply.calls {
                self.calls += 1;
                // Nine letters and digits: Mistral's templates take no other.
                let id = format!("call{:05}", self.calls % 100_000);
                let function = json!({"name": call.name, "arguments": call.arguments});
                entries.push(json!({"id": id, "type": "function", "function": function}));
                names.push(id);
            }
            message.other.insert("tool_calls".to_owned(), Value::Array(entries));
            if reply.content.is_empty() {
                message.content = Value::Null;
            }
            // Thinking about results goes on from that before the call; of earlier answers it is left out.
            if !reply.reasoning.is_empty() {
                message.other.insert("reasoning_content".to_owned(), reply.reasoning.clone().into());
            }
        }
        messages.push(message);
        names
    }

    /// Makes calls in their order; whether to go on.
    fn make_all(&mut self, calls: &[Call], names: &[String], messages: &mut Vec<Message>, host: &mut dyn Host) -> bool {
        for (at, call) in calls.iter().enumerate() {
            let outcome = match at < CALLS_MAX {
                true => self.make(call, host),
                false => Some(Outcome::failed(format!("not called: one answer may call {CALLS_MAX} tools"))),
            };
            let Some(outcome) = outcome else {
                self.leave(&calls[at..], &names[at..], messages);
                return false;
            };
            host.show(Event::Called { name: &call.name, outcome: &outcome });
            messages.push(result(&names[at], &call.name, &outcome.text));
            if host.is_stopped() {
                self.leave(&calls[at + 1..], &names[at + 1..], messages);
                return false;
            }
        }
        true
    }

    /// Makes a call, if it is allowed; `None`: the user wants no more.
    fn make(&mut self, call: &Call, host: &mut dyn Host) -> Option<Outcome> {
        let arguments: Value = match serde_json::from_str(&call.arguments) {
            Ok(arguments @ Value::Object(_)) => arguments,
            _ => return Some(Outcome::failed("the arguments are no JSON object")),
        };
        let Some(tool) = self.tools.find(&call.name) else {
            return Some(Outcome::failed(format!("there is no tool {}", call.name)));
        };
        let preview = tool.preview(&arguments);
        host.show(Event::Calling { name: &call.name, arguments: &arguments, preview: &preview });
        let asks = tool.effect() == Effect::Acts && !self.allows_all && !self.allowed.contains(&call.name);
        if asks {
            match host.permit(&call.name) {
                Permission::Once => {}
                Permission::Always => drop(self.allowed.insert(call.name.clone())),
                Permission::Refused(why) => return Some(Outcome::failed(why)),
                Permission::Quit => return None,
            }
        }
        let host = &*host;
        let stop: Stop = &|| host.is_stopped();
        Some(tool.call(&arguments, stop).fitted())
    }

    /// Tells the model of calls that were not made: templates want a result for each.
    fn leave(&self, calls: &[Call], names: &[String], messages: &mut Vec<Message>) -> End {
        for (call, name) in calls.iter().zip(names) {
            messages.push(result(name, &call.name, "not called: the user stopped here"));
        }
        End::Stopped
    }

    /// Whether calls of a tool are asked for.
    pub fn asks(&mut self, name: &str) -> bool {
        let acts = self.tools.find(name).is_some_and(|tool| tool.effect() == Effect::Acts);
        acts && !self.allows_all && !self.allowed.contains(name)
    }
}

/// A tool's message.
fn result(id: &str, name: &str, text: &str) -> Message {
    let mut other = Map::new();
    other.insert("tool_call_id".to_owned(), id.into());
    other.insert("name".to_owned(), name.into());
    Message { role: "tool".to_owned(), content: text.into(), other }
}

/// Shortens results of earlier calls, all but those behind the assistant's last message, or, where they are short
/// already, those too; how many.
fn shorten_results(messages: &mut [Message]) -> usize {
    let last = messages.iter().rposition(|message| message.role == "assistant").unwrap_or(messages.len());
    let (old, new) = messages.split_at_mut(last);
    match shorten(old) {
        0 => shorten(new),
        count => count,
    }
}

fn shorten(messages: &mut [Message]) -> usize {
    let mut count = 0;
    for message in messages.iter_mut().filter(|message| message.role == "tool") {
        let text = message.content.as_str().unwrap_or_default();
        if text.len() > 2 * OLD_RESULT_BYTES {
            message.content = shortened(text, OLD_RESULT_BYTES).into();
            count += 1;
        }
    }
    count
}

/// A call as one line, for logs.
pub fn line(name: &str, arguments: &Value) -> String {
    let text = listed(arguments).replace('\n', " ");
    let short: String = text.chars().take(160).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{name} {short}{more}")
}
