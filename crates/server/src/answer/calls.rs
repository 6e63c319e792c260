//! Calls of tools in the formats that models are trained on, read while they come.

use super::call::{CallReader, Step};
use super::{append, undecided};
use crate::keys::random_hex;
use crate::wire::{CallDelta, ChatDelta};

/// How a model writes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// DeepSeek-V3 and R1: calls within special tokens, the arguments fenced as JSON; V3.1's form without fence, too.
    DeepSeek,
    /// Hermes and Qwen: JSON objects within `<tool_call>…</tool_call>`.
    Hermes,
    /// Llama 3.1: the answer is one JSON object.
    Json,
}

const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
const CALLS_END: &str = "<｜tool▁calls▁end｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const FENCE: &str = "```json\n";
const FENCE_END: &str = "\n```";

impl ToolFormat {
    /// The format that a chat template speaks of.
    pub fn of_template(template: &str) -> Option<ToolFormat> {
        if template.contains(CALLS_BEGIN) || template.contains("tool▁calls▁begin") {
            Some(ToolFormat::DeepSeek)
        } else if template.contains("<tool_call>") {
            Some(ToolFormat::Hermes)
        } else if template.contains("\"parameters\": ") && template.contains("ipython") {
            Some(ToolFormat::Json)
        } else {
            None
        }
    }

    /// What stands before a call's name, and between the name and the arguments.
    pub fn around_name(self) -> (String, &'static str) {
        match self {
            ToolFormat::DeepSeek => (format!("{CALLS_BEGIN}{CALL_BEGIN}function{SEPARATOR}"), "\n```json\n"),
            ToolFormat::Hermes => ("<tool_call>\n{\"name\": \"".to_owned(), "\", \"arguments\": "),
            ToolFormat::Json => ("{\"name\": \"".to_owned(), "\", \"parameters\": "),
        }
    }
}

/// Reads an answer's text.
pub(super) struct CallParser {
    format: ToolFormat,
    tools: Vec<String>,
    state: State,
    held: String,
    begun: usize,
    complete: usize,
}

enum State {
    /// Text; a call may begin. For [`ToolFormat::Json`] only at the very beginning.
    Text,
    /// Text to the end.
    TextOnly,
    /// Between DeepSeek's calls.
    Between,
    /// DeepSeek: before the separator.
    Header,
    /// DeepSeek: the name and the fence after it.
    Name,
    /// DeepSeek: the arguments, up to the marker.
    Arguments { end: &'static str },
    /// JSON; `raw` is what it is made of, until the call is known to be one.
    Object { reader: Box<CallReader>, raw: String, announced: bool },
    /// Hermes: after the object, up to `</tool_call>`.
    Tail,
}

impl CallParser {
    pub fn new(format: ToolFormat, tools: Vec<String>) -> CallParser {
        CallParser { format, tools, state: State::Text, held: String::new(), begun: 0, complete: 0 }
    }

    pub fn complete(&self) -> usize {
        self.complete
    }

    pub fn has_begun(&self) -> bool {
        self.begun > 0
    }

    pub fn push(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        self.held.push_str(text);
        while self.step(deltas) {}
    }

    pub fn finish(&mut self, deltas: &mut Vec<ChatDelta>) {
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::TextOnly) {
            State::Text | State::TextOnly => append(deltas, ChatDelta::Content(rest)),
            State::Arguments { .. } => self.arguments(rest.trim_end_matches(FENCE_END), deltas),
            State::Object { reader, raw, announced } => self.end_object(*reader, &raw, announced, deltas),
            State::Between | State::Header | State::Name | State::Tail => {}
        }
    }

    /// Takes from what is held; whether there may be more to take.
    fn step(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        match &mut self.state {
            State::TextOnly => {
                append(deltas, ChatDelta::Content(std::mem::take(&mut self.held)));
                false
            }
            State::Text if self.format == ToolFormat::Json => self.begin_json(),
            State::Text => self.text(deltas),
            State::Between => self.between(),
            State::Header => match self.take_until(SEPARATOR) {
                Some(header) if header.trim() == "function" => self.enter(State::Name),
                Some(name) => {
                    self.begin(name.trim(), deltas);
                    self.enter(State::Arguments { end: CALL_END })
                }
                None => false,
            },
            State::Name => match self.take_until(FENCE) {
                Some(name) => {
                    self.begin(name.trim(), deltas);
                    self.enter(State::Arguments { end: FENCE_END })
                }
                None => false,
            },
            State::Arguments { end } => {
                let end = *end;
                self.read_arguments(end, deltas)
            }
            State::Object { .. } => self.object(deltas),
            State::Tail => match self.take_until("</tool_call>") {
                Some(_) => self.enter(State::Text),
                None => false,
            },
        }
    }

    fn enter(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    fn take_until(&mut self, marker: &str) -> Option<String> {
        let (before, after) = self.held.split_once(marker)?;
        let (before, after) = (before.to_owned(), after.to_owned());
        self.held = after;
        Some(before)
    }

    fn text(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        let marker = if self.format == ToolFormat::DeepSeek { CALLS_BEGIN } else { "<tool_call>" };
        if let Some(text) = self.take_until(marker) {
            append(deltas, ChatDelta::Content(text.trim_end().to_owned()));
            return self.enter(match self.format {
                ToolFormat::DeepSeek => State::Between,
                _ => State::Object { reader: Box::default(), raw: String::new(), announced: false },
            });
        }
        // White space before a call is not part of the answer.
        let sure = self.held[..self.held.len() - undecided(&self.held, marker)].trim_end().len();
        let rest = self.held.split_off(sure);
        append(deltas, ChatDelta::Content(std::mem::replace(&mut self.held, rest)));
        false
    }

    fn begin_json(&mut self) -> bool {
        match self.held.trim_start().chars().next() {
            None => false,
            Some('{') => self.enter(State::Object { reader: Box::default(), raw: String::new(), announced: false }),
            Some(_) => self.enter(State::TextOnly),
        }
    }

    fn between(&mut self) -> bool {
        let begin = self.held.find(CALL_BEGIN);
        let end = self.held.find(CALLS_END);
        match (begin, end) {
            (Some(begin), end) if end.is_none_or(|end| begin < end) => {
                self.take_until(CALL_BEGIN);
                self.enter(State::Header)
            }
            (_, Some(_)) => {
                self.take_until(CALLS_END);
                self.enter(State::TextOnly)
            }
            _ => false,
        }
    }

    fn read_arguments(&mut self, end: &'static str, deltas: &mut Vec<ChatDelta>) -> bool {
        if let Some(rest) = self.take_until(end) {
            self.arguments(&rest, deltas);
            self.complete += 1;
            return self.enter(State::Between);
        }
        let sure = self.held.len() - undecided(&self.held, end);
        let rest = self.held.split_off(sure);
        let text = std::mem::replace(&mut self.held, rest);
        self.arguments(&text, deltas);
        false
    }

    fn object(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        let State::Object { mut reader, mut raw, mut announced } = std::mem::replace(&mut self.state, State::TextOnly)
        else {
            unreachable!("called within an object")
        };
        let held = std::mem::take(&mut self.held);
        for (at, c) in held.char_indices() {
            raw.push(c);
            match reader.push(c) {
                Step::More => {}
                Step::End | Step::Wrong => {
                    self.held = held[at + c.len_utf8()..].to_owned();
                    self.end_object(*reader, &raw, announced, deltas);
                    let tail = self.format == ToolFormat::Hermes;
                    return self.enter(if tail { State::Tail } else { State::TextOnly });
                }
            }
        }
        if let Some(name) = reader.name.clone().filter(|name| self.is_call(name) && !reader.arguments.is_empty()) {
            if !announced {
                self.begin(&name, deltas);
                announced = true;
            }
            let arguments = std::mem::take(&mut reader.arguments);
            self.arguments(&arguments, deltas);
        }
        self.state = State::Object { reader, raw, announced };
        false
    }

    /// An object that is over: the rest of its arguments; or, if it is no call, its text.
    fn end_object(&mut self, reader: CallReader, raw: &str, announced: bool, deltas: &mut Vec<ChatDelta>) {
        match &reader.name {
            Some(name) if announced || self.is_call(name) => {
                let none = !announced && reader.arguments.is_empty();
                if !announced {
                    self.begin(name, deltas);
                }
                self.arguments(if none { "{}" } else { &reader.arguments }, deltas);
                self.complete += 1;
            }
            _ if self.format == ToolFormat::Hermes => {
                append(deltas, ChatDelta::Content(format!("<tool_call>{raw}")));
            }
            _ => append(deltas, ChatDelta::Content(raw.to_owned())),
        }
    }

    /// Without markers, JSON is a call only if it names a tool.
    fn is_call(&self, name: &str) -> bool {
        self.format != ToolFormat::Json || self.tools.iter().any(|tool| tool == name)
    }

    fn begin(&mut self, name: &str, deltas: &mut Vec<ChatDelta>) {
        let id = format!("call_{}", random_hex::<12>().unwrap_or_else(|_| self.begun.to_string()));
        append(deltas, ChatDelta::Call(CallDelta::Begin { index: self.begun, id, name: name.to_owned() }));
        self.begun += 1;
    }

    fn arguments(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        let delta = CallDelta::Arguments { index: self.begun.saturating_sub(1), text: text.to_owned() };
        append(deltas, ChatDelta::Call(delta));
    }
}
