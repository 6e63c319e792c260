//! Answers in channels, as gpt-oss gives them (OpenAI's harmony format): `<|channel|>analysis<|message|>…<|end|>` is
//! thinking, `final` is content, and what is said `to=functions.NAME` is a call, whose arguments are JSON.
//!
//! A call goes on as the text that says the same in the form of Hermes, which the reader of calls knows.

use serde_json::{Value, json};

use super::think::Part;
use super::undecided;

/// The end of a prompt in this format, behind which a header goes on.
pub const ANSWER_BEGIN: &str = "<|start|>assistant";
/// A header that begins the answer proper.
pub const FINAL_BEGIN: &str = "<|channel|>final<|message|>";
/// What a template of this format has.
pub(super) const CHANNEL: &str = "<|channel|>";

const MESSAGE: &str = "<|message|>";
const BEGIN: &str = "<|start|>";
/// What ends a message: all but the last are also followed by another.
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", BEGIN];
/// A header is short; what is longer is none.
const HEADER_MAX: usize = 512;

/// Reads messages in channels. What is in no channel is content.
pub(super) struct ChannelReader {
    state: State,
    held: String,
    /// Whether what comes first may be anything else.
    first: bool,
}

enum State {
    /// Before `<|message|>`.
    Header,
    Body(Body),
    /// After a message, where only a header comes.
    Between,
    /// Text without channels, to the end.
    Plain,
}

#[derive(Clone)]
enum Body {
    Analysis,
    Content,
    /// A call of this tool, and its arguments so far.
    Call(String, String),
}

impl ChannelReader {
    pub fn new() -> ChannelReader {
        ChannelReader { state: State::Header, held: String::new(), first: true }
    }

    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Body(Body::Analysis))
    }

    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Between) {
            State::Body(body) => body.end(rest),
            State::Plain => vec![Part::Content(rest)],
            State::Header if self.first && !rest.starts_with(CHANNEL) => vec![Part::Content(rest)],
            State::Header | State::Between => Vec::new(),
        }
    }

    /// Takes from what is held; whether the state has changed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Header => self.header(),
            State::Between => {
                let Some((_, rest)) = self.held.split_once(BEGIN) else { return false };
                self.held = rest.to_owned();
                self.state = State::Header;
                true
            }
            State::Plain => {
                parts.push(Part::Content(std::mem::take(&mut self.held)));
                false
            }
            State::Body(body) => {
                let first = ENDS.iter().filter_map(|end| Some((self.held.find(end)?, *end))).min();
                if let Some((at, end)) = first {
                    let rest = self.held[at + end.len()..].to_owned();
                    self.held.truncate(at);
                    parts.extend(body.clone().end(std::mem::replace(&mut self.held, rest)));
                    self.state = if end == BEGIN { State::Header } else { State::Between };
                    return true;
                }
                let unsure = ENDS.iter().map(|end| undecided(&self.held, end)).max().unwrap_or(0);
                let rest = self.held.split_off(self.held.len() - unsure);
                parts.extend(body.more(std::mem::replace(&mut self.held, rest)));
                false
            }
        }
    }

    fn header(&mut self) -> bool {
        if let Some((header, rest)) = self.held.split_once(MESSAGE) {
            let body = if header.len() <= HEADER_MAX { body_of(header) } else { Body::Content };
            (self.state, self.held, self.first) = (State::Body(body), rest.to_owned(), false);
            return true;
        }
        let begins = |marker: &str| self.held.starts_with(marker) || marker.starts_with(&self.held[..]);
        let no_header = self.first && !begins(CHANNEL) && !begins(" to=") || self.held.len() > HEADER_MAX;
        if no_header {
            self.state = State::Plain;
        }
        no_header
    }
}

impl Body {
    /// What more text of a message is, as far as it can be told now.
    fn more(&mut self, text: String) -> Option<Part> {
        match self {
            Body::Analysis => Some(Part::Reasoning(text)),
            Body::Content => Some(Part::Content(text)),
            Body::Call(_, arguments) => {
                arguments.push_str(&text);
                None
            }
        }
    }

    /// What the rest of a message is.
    fn end(mut self, text: String) -> Vec<Part> {
        let last = self.more(text);
        match self {
            Body::Call(name, arguments) => vec![Part::Content(call(&name, &arguments))],
            _ => last.into_iter().collect(),
        }
    }
}

/// What a message is by its header.
fn body_of(header: &str) -> Body {
    let channel = header.split_once(CHANNEL).map_or("", |(_, channel)| channel.trim_start());
    let recipient = header.split("to=").nth(1).map(|rest| {
        let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
        &rest[..end]
    });
    match recipient.and_then(|recipient| recipient.strip_prefix("functions.")) {
        Some(name) => Body::Call(name.to_owned(), String::new()),
        None if channel.starts_with("analysis") => Body::Analysis,
        None => Body::Content,
    }
}

/// A call in Hermes' form; what is no JSON stays text.
fn call(name: &str, arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(arguments) => format!("<tool_call>\n{}\n</tool_call>", json!({"name": name, "arguments": arguments})),
        Err(_) => arguments.to_owned(),
    }
}
